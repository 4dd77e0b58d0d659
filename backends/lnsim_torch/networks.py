"""Networks that are trained on images: multilayer perceptrons, Wide ResNet, ResNet-18.

Parameterisation.  A layer with input x and fan-in n (input features, or channels times kernel
area) gives, with gain g,

    "standard"    z = W x + b,               W ~ N(0, g^2 / n),
    "ntk"         z = W (g x / sqrt(n)) + b,    W ~ N(0, 1),

with b ~ N(0, 1) in `mlp`, b = 0 initially in `resnet18`, and no b in `wide_resnet`.  Both give the
same function at initialisation, but another gradient descent: under "ntk" the tangent kernel has a
finite limit as the width grows (Jacot, Gabriel, Hongler 2018).  The factor multiplies the layer's
input, so that the layer itself is a plain nn.Conv2d or nn.Linear, for which ntk/layers.py has exact
rules.

`alpha` multiplies the output: the larger, the lazier the training (Chizat, Oyallon, Bach 2019).

The same `seed` gives the same weights everywhere: they are drawn layer by layer from
numpy.random.default_rng([seed, 7]), and torch's own generator is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lnsim.base import checks
from lnsim.streams import check_seed

PARAMETERIZATIONS = ("ntk", "standard")
GAINS = {"erf": 1.0, "relu": math.sqrt(2.0)}
"""The gain of all layers of `mlp` for each activation."""

TORCH_GAIN = 1.0 / math.sqrt(3.0)
"""The gain of torch's own initial weights, uniform on +-1/sqrt(n)."""

# A purpose of numpy.random.default_rng([seed, purpose]); images/erf_network.py has those up to 6.
_INIT = 7


def mlp(
    sizes: Sequence[int],
    *,
    activation: str = "relu",
    parameterization: str = "ntk",
    alpha: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Dense layers with biases, `sizes` from the input's features to the outputs.

    Takes samples of any shape, (N, ...), and flattens them.  `activation`: "relu" or "erf"; two
    sizes make a linear model.  Raises ValueError or TypeError for arguments out of range.
    """
    widths = [checks.integer("sizes", size, 1) for size in sizes]
    if len(widths) < 2:
        raise ValueError(
            f"sizes must have at least 2 entries, input features and outputs, got {sizes}"
        )
    gain = GAINS[checks.choice("activation", activation, GAINS)]
    make = _Layers(parameterization, seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        if i > 0:
            layers.append(nn.ReLU() if activation == "relu" else Erf())
        layers.append(make.dense(inputs, outputs, gain, bias=1.0))
    return nn.Sequential(*layers, Scale(_alpha(alpha)))


def wide_resnet(
    block_size: int = 4,
    k: int = 1,
    *,
    classes: int = 10,
    parameterization: str = "ntk",
    alpha: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Wide ResNet without normalisation or biases, gain 1 everywhere; takes (N, 3, H, W).

    A 3x3 convolution to 16 channels; three groups of `block_size` residual blocks with 16k, 32k,
    64k channels and strides 1, 2, 2 (ReLU before each 3x3 convolution, a 3x3 convolution as the
    shortcut of each group's first block); the average over all pixels; a dense layer.

    Source: the example of neural-tangents (Novak et al. 2020), after Zagoruyko, Komodakis 2016.
    """
    block_size = checks.integer("block_size", block_size, 1)
    k = checks.integer("k", k, 1)
    make = _Layers(parameterization, seed)
    layers: list[nn.Module] = [make.conv(3, 16, gain=1.0)]
    channels = 16
    for group, stride in enumerate((1, 2, 2)):
        for block in range(block_size):
            outputs, first = 16 * k * 2**group, block == 0
            layers.append(_wide_block(make, channels, outputs, stride if first else 1, first))
            channels = outputs
    return nn.Sequential(*layers, *_head(make, channels, classes, alpha, 1.0, bias=None))


def resnet18(
    *,
    width: int = 64,
    classes: int = 10,
    parameterization: str = "standard",
    alpha: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """ResNet-18 for small images, with a 3x3 stem and batch norm; takes (N, 3, H, W).

    Four groups of two blocks with 1, 2, 4 and 8 times `width` channels and strides 1, 2, 2, 2; a
    1x1 convolution is the shortcut where the shape changes.  The gain 1/sqrt(3) gives the variance
    of torch's own weights: batch norm cancels the gain of the layers before it, but with a larger
    gain a step rotates the weights less.

    Source: He, Zhang, Ren, Sun 2016; the stem is that of their networks for CIFAR-10.
    """
    width = checks.integer("width", width, 1)
    make = _Layers(parameterization, seed)
    layers: list[nn.Module] = [make.conv(3, width), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for group, stride in enumerate((1, 2, 2, 2)):
        for block in range(2):
            outputs = width * 2**group
            layers += [_block(make, channels, outputs, 1 if block else stride), nn.ReLU()]
            channels = outputs
    return nn.Sequential(*layers, *_head(make, channels, classes, alpha, TORCH_GAIN, bias=0.0))


class Scale(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Erf(nn.Module):
    """The error function."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


class Sum(nn.Module):
    """The sum of two branches: a block and its shortcut."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class _Layers:
    """Makes layers of one parameterisation, with weights drawn in order from one generator."""

    def __init__(self, parameterization: str, seed: int) -> None:
        self._ntk = checks.choice("parameterization", parameterization, PARAMETERIZATIONS) == "ntk"
        self._random = np.random.default_rng([check_seed(seed), _INIT])

    def conv(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        kernel: int = 3,
        gain: float = TORCH_GAIN,
    ) -> nn.Module:
        """A convolution without bias that keeps the image's size, divided by the stride."""
        layer = skip_init(
            nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        return self._drawn(layer, gain / math.sqrt(inputs * kernel**2))

    def dense(self, inputs: int, outputs: int, gain: float, bias: float | None) -> nn.Module:
        """A dense layer; `bias`: the standard deviation of its biases, None for no biases."""
        layer = skip_init(nn.Linear, inputs, outputs, bias=bias is not None)
        if bias is not None:
            self._draw(layer.bias, bias)
        return self._drawn(layer, gain / math.sqrt(inputs))

    def _drawn(self, layer: nn.Conv2d | nn.Linear, scale: float) -> nn.Module:
        """The layer with drawn weights, preceded by the factor under "ntk"."""
        self._draw(layer.weight, 1.0 if self._ntk else scale)
        return nn.Sequential(Scale(scale), layer) if self._ntk else layer

    @torch.no_grad()
    def _draw(self, parameter: Tensor, deviation: float) -> None:
        parameter.copy_(torch.from_numpy(deviation * self._random.standard_normal(parameter.shape)))


def _wide_block(make: _Layers, inputs: int, outputs: int, stride: int, change: bool) -> nn.Module:
    main = nn.Sequential(
        nn.ReLU(),
        make.conv(inputs, outputs, stride, gain=1.0),
        nn.ReLU(),
        make.conv(outputs, outputs, gain=1.0),
    )
    return Sum(main, make.conv(inputs, outputs, stride, gain=1.0) if change else nn.Identity())


def _block(make: _Layers, inputs: int, outputs: int, stride: int) -> nn.Module:
    main = nn.Sequential(
        make.conv(inputs, outputs, stride),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        make.conv(outputs, outputs),
        nn.BatchNorm2d(outputs),
    )
    if stride == 1 and inputs == outputs:
        return Sum(main, nn.Identity())
    # A pool of one pixel skips pixels like a strided 1x1 convolution, which is unsafe on the CPU:
    # see _check_layout in training/train.py.
    shortcut = (nn.AvgPool2d(1, stride), make.conv(inputs, outputs, kernel=1))
    return Sum(main, nn.Sequential(*shortcut, nn.BatchNorm2d(outputs)))


def _head(
    make: _Layers, channels: int, classes: int, alpha: float, gain: float, bias: float | None
) -> list[nn.Module]:
    """The average over all pixels, a dense layer, and `alpha`."""
    classes = checks.integer("classes", classes, 1)
    dense = make.dense(channels, classes, gain, bias)
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense, Scale(_alpha(alpha))]


def _alpha(alpha: float) -> float:
    value = checks.real("alpha", alpha, above=0.0)
    if not isinstance(value, float):
        raise TypeError(f"alpha must be one number, got {alpha!r}")
    return value
