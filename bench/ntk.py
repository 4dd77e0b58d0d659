"""Time and memory of the empirical NTK on two threads, beside what its arithmetic alone would take.

    python bench/ntk.py [resnet18|wrn|mlp] [full|mean]

64 random images, float32.  The machine's GEMM rate drifts: it is measured before and after every
repetition (ten calls of the MLP's), and the floor is the operations that the method cannot do
without at the median rate.  Those of a layer with patches (L x K) and outputs (L x O) are one
forward pass, C backward passes, and the cheapest of the three products of
lnsim_torch/ntk/products.py, of symmetric ones half.
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
    """A residual block: ResNet's, or without normalisation the Wide ResNet's."""

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
    """With batch norm and no bias, or without and with one."""
    conv = nn.Conv2d(cin, cout, size, stride, size // 2, bias=not norm)
    return nn.Sequential(conv, nn.BatchNorm2d(cout)) if norm else conv


def residual(stem: int, widths: list[int], norm: bool) -> nn.Module:
    """A stem, then two blocks of each width, at half the resolution from the second width on."""
    layers: list[nn.Module] = [convolution(3, stem, 3, 1, norm)]
    layers += [nn.ReLU(inplace=True)] if norm else []
    before = stem
    for width in widths:
        layers += [Block(before, width, 1 if width == widths[0] else 2, norm)]
        layers += [Block(width, width, 1, norm)]
        before = width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))
    return nn.Sequential(*layers, *head).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: residual(64, [64, 128, 256, 512], norm=True),
    "wrn": lambda: residual(16, [64, 128, 256], norm=False),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 512), Erf(), nn.Linear(512, CLASSES)
    ),
}


def operations(network: nn.Module, x: Tensor, outputs: str) -> float:
    """Floating point operations that the kernel of x cannot do without, of products alone."""
    counts: list[float] = []
    c, times = (CLASSES, 1) if outputs == "full" else (1, CLASSES)

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        weight = module.get_parameter("weight")
        n, o, k = len(x), len(weight) * times, weight[0].numel()
        length = output[0, 0].numel()
        passes = CLASSES + 1 if counts else 1  # none goes back to the images
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
    """Floating point operations a second of one large product."""
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
