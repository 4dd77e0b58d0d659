"""Times products with the Hessian and the Gauss-Newton matrix against a gradient, in turns.

    python -m bench.curvature            on CUDA: ResNet-18 of width 64, 10,000 images
    python -m bench.curvature --tiny     on the CPU: ResNet-18 of width 8, 256 images

All are of the mean loss over all images, in eval mode, in the same micro-batches: those that
`memory` allows, and on the CPU those that stay in cache.  "at one point" is a product that shares
the gradient and its graph with the products before it.  The gradient is a forward and a backward
pass and nothing else.  Times on the CPU are processor time, which other programs disturb less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.curvature import MATRICES, Curvature
from torch import Tensor, nn

from bench.tables import Table, parser, ratios, report


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


def measured(tiny: bool, memory: float, rounds: int) -> Table:
    """Times all at the setting of the CPU, which is tiny, or of CUDA."""
    device, width, n = ("cpu", 8, 256) if tiny else ("cuda", 64, 10_000)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 32, 32, generator=generator).to(device)
    y = torch.randint(10, (n,), generator=generator).to(device)
    network = networks.resnet18(width=width).to(device).eval()
    size, times = measure(network, x, y, memory, rounds)
    return Table(
        "Products with the Hessian",
        f"ResNet-18 of width {width}, cross-entropy, {n:,} images, {size:,} at a time; "
        f"{'processor time, ' if tiny else ''}{rounds} rounds.",
        ("s", "gradients"),
        {name: (values, ratios(values, times["gradient"])) for name, values in times.items()},
    )


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--tiny", action="store_true", help="a small setting, on the CPU")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--memory", type=float, default=3 * 2**29, help="bytes of a product")
    arguments = options.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing measured; --tiny runs a small setting on the CPU")
    command = f"python -m bench.curvature{' --tiny' if arguments.tiny else ''}"
    report([measured(arguments.tiny, arguments.memory, arguments.rounds)], command, arguments.out)
