"""Time and memory of the empirical NTK on two threads, and the time of its arithmetic alone.

    python bench/ntk.py [resnet18|wrn|mlp] [full|mean]

Uses 64 random images in float32.  The machine's GEMM rate drifts: it is measured before and after
every repetition (ten calls for the MLP), and the floor is the time of the operations that the
method requires, at the median rate.  For a layer with patches (L x K) and outputs (L x O) these are
one forward pass, C backward passes, and the cheapest of the three products of
lnsim_torch/ntk/products.py; symmetric products count half.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from lnsim_torch.ntk.kernel import empirical_ntk
from torch import Tensor, nn

SAMPLES, CLASSES, THREADS = 64, 10, 2
ROUNDS = {"resnet18": (1, 1), "wrn": (1, 1), "mlp": (20, 10)}  # repetitions, calls in each
GEMM_SIZE = 1024


class Block(nn.Module):
    """A residual block of ResNet or, without normalisation, of the Wide ResNet."""

    def __init__(self, cin: int, cout: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.norm = norm
        self.first = convolution(cin, cout, 3, stride, norm)
        self.second = convolution(cout, cout, 3, 1, norm)
        shortcut = convolution(cin, cout, 1 if norm else 3, stride, norm)
        self.shortcut = nn.Identity() if cin == cout else shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x if self.norm else x.relu()).relu_()
        y = self.second(y) + self.shortcut(x)
        return y.relu_() if self.norm else y


class Erf(nn.Module):
    """erf as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


def convolution(cin: int, cout: int, size: int, stride: int, norm: bool) -> nn.Module:
    """A convolution with batch norm and no bias, or with a bias and no batch norm."""
    conv = nn.Conv2d(cin, cout, size, stride, size // 2, bias=not norm)
    return nn.Sequential(conv, nn.BatchNorm2d(cout)) if norm else conv


def residual(stem: int, widths: list[int], norm: bool) -> nn.Module:
    """A stem, then two blocks of each width, at half the resolution from the second width on."""
    layers: list[nn.Module] = [convolution(3, stem, 3, 1, norm)]
    layers += [nn.ReLU(inplace=True)] if norm else []
    channels = stem
    for width in widths:
        layers += [Block(channels, width, 1 if width == widths[0] else 2, norm)]
        layers += [Block(width, width, 1, norm)]
        channels = width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return nn.Sequential(*layers, *head).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: residual(64, [64, 128, 256, 512], norm=True),
    "wrn": lambda: residual(16, [64, 128, 256], norm=False),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 512), Erf(), nn.Linear(512, CLASSES)
    ),
}


def operations(network: nn.Module, x: Tensor, outputs: str) -> float:
    """Floating point operations of the products that the kernel of x requires."""
    counts: list[float] = []
    c, times = (CLASSES, 1) if outputs == "full" else (1, CLASSES)

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        weight = module.get_parameter("weight")
        n, o, k = len(x), len(weight) * times, weight[0].numel()
        length = output[0, 0].numel()
        passes = CLASSES + 1 if counts else 1  # the first layer has no backward pass to the images
        blocks = 2 * n * c * o * k * length + (n * c) ** 2 * o * k
        gram = (n * length) ** 2 * k
        apply = gram + (n * length) ** 2 * c * o + n**2 * length * c**2 * o
        hadamard = gram + (n * length * c) ** 2 * o
        counts.append(2 * n * length * len(weight) * k * passes + min(blocks, apply, hadamard))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(x)
    return sum(counts)


def gemm_rate() -> float:
    """Floating point operations per second of one large product."""
    a = torch.ones(GEMM_SIZE, GEMM_SIZE)
    start = time.perf_counter()
    a @ a
    return 2 * GEMM_SIZE**3 / (time.perf_counter() - start)


def main() -> None:
    """Measures one network and prints a line."""
    name, outputs = [*sys.argv[1:], *("mlp", "full")[len(sys.argv) - 1 :]]
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    network, x = NETWORKS[name](), torch.randn(SAMPLES, 3, 32, 32)
    empirical_ntk(network, x[:2], outputs=outputs)
    times, rates = [], [gemm_rate() for _ in range(3)][2:]
    repetitions, calls = ROUNDS[name]
    for _ in range(repetitions):
        for _ in range(calls):
            start = time.perf_counter()
            empirical_ntk(network, x, outputs=outputs)
            times.append(time.perf_counter() - start)
        rates.append(gemm_rate())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = statistics.median(rates)
    print(
        f"{name} {outputs}: {statistics.median(times):.4g} s, peak RSS {peak:.2f} GiB; floor "
        f"{operations(network, x, outputs) / rate:.4g} s at {rate / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
