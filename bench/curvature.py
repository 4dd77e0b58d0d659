"""Times products with the Hessian and the Gauss-Newton matrix against a gradient, in turns.

    python bench/curvature.py            on CUDA: ResNet-18 of width 64, 10,000 images
    python bench/curvature.py --tiny     on the CPU: ResNet-18 of width 8, 256 images

All are of the mean loss over all images, in eval mode, in the same micro-batches: those that
`memory` allows, and on the CPU those that stay in cache.  "at one point" is a product that shares
the gradient and its graph with the products before it.  The gradient is a forward and a backward
pass and nothing else.  Prints the time of each (on the CPU processor time, which other programs
disturb less) and its median ratio to that of the gradient, with the range.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.curvature import MATRICES, Curvature
from torch import Tensor, nn


def gradient(
    network: nn.Module, x: Tensor, y: Tensor, at_a_time: int
) -> Callable[[], list[Tensor]]:
    """A function that takes the gradient of the mean loss, micro-batch by micro-batch."""
    parameters = list(network.parameters())

    def compute() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in parameters]
        for part, labels in zip(x.split(at_a_time), y.split(at_a_time), strict=True):
            loss = F.cross_entropy(network(part), labels, reduction="sum") / len(x)
            for sum_, g in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += g
        return total

    return compute


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def measure(
    network: nn.Module, x: Tensor, y: Tensor, memory: float, rounds: int
) -> tuple[int, dict[str, list[float]]]:
    """The micro-batch, and the times of each in turns after one uncounted round."""
    operators = {
        matrix: Curvature(network, x, y, F.cross_entropy, matrix=matrix, memory=memory)
        for matrix in MATRICES
    }
    size = operators["hessian"].micro_batch
    vector = torch.ones(operators["hessian"].size, device=x.device)
    # One that stays at its point changes the layers of its network meanwhile.
    again = Curvature(deepcopy(network), x, y, F.cross_entropy, memory=memory)
    operators["at one point"] = again
    turns: dict[str, Callable[[], object]] = {"gradient": gradient(network, x, y, size)}
    for name, operator in operators.items():
        turns[name] = lambda operator=operator: operator.product(vector)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in turns}
    with again.at_one_point():
        for _ in range(rounds + 1):
            for name, compute in turns.items():
                start = clock(x.device)
                compute()
                times[name].append(clock(x.device) - start)
    return size, {name: of_all[1:] for name, of_all in times.items()}


def main() -> None:
    """Chooses the setting, measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small setting, on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=float, default=3 * 2**29, help="bytes of a product")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing measured; --tiny runs a small setting on the CPU")
    device, width, n = ("cpu", 8, 256) if arguments.tiny else ("cuda", 64, 10_000)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 32, 32, generator=generator).to(device)
    y = torch.randint(10, (n,), generator=generator).to(device)
    network = networks.resnet18(width=width).to(device).eval()
    size, times = measure(network, x, y, arguments.memory, arguments.rounds)
    where = platform.processor() or platform.machine()
    where = where if arguments.tiny else torch.cuda.get_device_name()
    print(f"ResNet-18, width {width}, {n:,} images, {size:,} at a time, on {where}")
    for name, of_all in times.items():
        ratios = [t / g for t, g in zip(of_all, times["gradient"], strict=True)]
        middle = f"{statistics.median(of_all):9.3f} s, {statistics.median(ratios):.2f} gradients"
        print(f"{name:14}{middle} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


if __name__ == "__main__":
    main()
