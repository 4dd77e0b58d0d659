"""The tangent kernels of torchvision's networks, by lnsim and by plain Jacobians, in turns.

    python -m bench.kernel_networks [NAME ...] [--rounds N] [--threads T] [--out FILE.json]

Random weights and inputs, float32, 10 outputs, all 10 x 10 blocks of the kernel.  The peers are
torch.func's Jacobians, and a loop of backward passes over samples and outputs; both hold the whole
Jacobian, which decides how many samples a network gets.  Results are compared before a time counts:
cancelling sums in single precision leave some 1e-5 of the norm, TOLERANCE is an error.  A peer that
cannot take a network is named with the reason.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import kernel_peers
from bench.tables import Cell, Table, parser, ratios, report, text

TOLERANCE = 1e-2
CLASSES, SEED = 10, 0


@dataclass(frozen=True)
class Case:
    """A network of torchvision.models (or .video), with this many samples of this shape."""

    samples: int
    shape: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()


SMALL, LARGER, FILM = (3, 32, 32), (3, 64, 64), (3, 8, 32, 32)
CASES = {
    "resnet18": Case(16, SMALL),
    "resnet50": Case(4, LARGER),
    "resnext50_32x4d": Case(4, LARGER),
    "mobilenet_v2": Case(8, LARGER),
    "mobilenet_v3_small": Case(16, LARGER),
    "mobilenet_v3_large": Case(8, LARGER),
    "shufflenet_v2_x0_5": Case(16, LARGER),
    "squeezenet1_1": Case(16, LARGER),
    "mnasnet0_5": Case(16, LARGER),
    "efficientnet_b0": Case(4, LARGER),
    "regnet_x_400mf": Case(8, LARGER),
    "regnet_y_400mf": Case(8, LARGER),
    "densenet121": Case(4, LARGER),
    "googlenet": Case(8, LARGER, (("aux_logits", False), ("init_weights", True))),
    "convnext_tiny": Case(2, LARGER),
    "swin_t": Case(2, LARGER),
    "swin_v2_t": Case(2, LARGER),
    "vit_tiny": Case(8, SMALL),
    "r3d_18": Case(2, FILM),
    "mc3_18": Case(2, FILM),
    "r2plus1d_18": Case(2, FILM),
    "s3d": Case(1, (3, 16, 224, 224)),
}


def network_and_inputs(name: str) -> tuple[nn.Module, Tensor]:
    """The network, and its samples."""
    from torchvision import models

    case = CASES[name]
    torch.manual_seed(SEED)
    if name == "vit_tiny":  # torchvision names none of this size; 64 patches and a class token
        sizes = {"num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
        network = models.VisionTransformer(32, 4, num_classes=CLASSES, **sizes).eval()
        nn.init.normal_(network.heads.head.weight)  # zero at first: so would be every gradient
        return network, torch.randn(case.samples, *case.shape)
    build = getattr(models, name, None) or getattr(models.video, name)
    network = build(weights=None, num_classes=CLASSES, **dict(case.options)).eval()
    return network, torch.randn(case.samples, *case.shape)


KERNELS: dict[str, kernel_peers.Kernel] = {
    kernel_peers.OURS: kernel_peers.lnsim_kernel,
    "torch.func, Jacobians": kernel_peers.jacobian_contraction,
    "backward loop": kernel_peers.backward_loop,
}


def measured(name: str, rounds: int) -> tuple[Cell, ...]:
    """The row of one network: results are compared, then the contenders timed in turns."""
    network, x = network_and_inputs(name)
    times: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    differences: dict[str, float] = {}
    expected = None
    for kernel_name, kernel in KERNELS.items():
        try:
            result = kernel(network, x)
        except RuntimeError as error:
            missing[kernel_name] = str(error).splitlines()[0]
            continue
        times[kernel_name] = []
        expected = result if expected is None else expected
        differences[kernel_name] = float(
            np.linalg.norm(result - expected) / np.linalg.norm(expected)
        )
        if not differences[kernel_name] <= TOLERANCE:
            raise ValueError(f"{kernel_name} differs by {differences[kernel_name]:.1e} on {name}")
    for _ in range(rounds):
        for kernel_name, seconds in times.items():
            seconds.append(_seconds(KERNELS[kernel_name], network, x))
    peers = [seconds for key, seconds in times.items() if key != kernel_peers.OURS]
    ours = times[kernel_peers.OURS]
    fastest = [min(round_) for round_ in zip(*peers, strict=True)] if peers else []
    cells: list[Cell] = [times.get(key, missing.get(key)) for key in KERNELS]
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    return (str(len(x)), parameters, *cells, ratios(fastest, ours) if fastest else None)


def _seconds(kernel: Callable[..., Any], network: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    kernel(network, x)
    return time.perf_counter() - start


def table(names: Sequence[str], rounds: int, threads: int) -> Table:
    """A row for each network, which is printed as it is measured."""
    rows: dict[str, tuple[Cell, ...]] = {}
    for name in names:
        rows[name] = measured(name, rounds)
        print(name, *map(text, rows[name]), sep="  ", file=sys.stderr, flush=True)
    return Table(
        "Kernels of torchvision's networks",
        f"All 10 x 10 blocks of the empirical tangent kernel, float32, threads: {threads}, random "
        f"weights and inputs, {rounds} rounds. The last column is the fastest peer's time over "
        "ours.",
        ("N", "parameters, 10^6", *(f"{name}, s" for name in KERNELS), "fastest peer to ours"),
        rows,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table; exit code 1 if results disagree."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME", default=[*CASES])
    options.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    arguments = options.parse_args(argv)
    if arguments.rounds < 1 or arguments.threads < 1:
        options.error("--rounds and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    try:
        measured_ = table(arguments.names, arguments.rounds, arguments.threads)
    except ValueError as error:
        print(f"bench.kernel_networks: {error}", file=sys.stderr)
        return 1
    report([measured_], "python -m bench.kernel_networks", arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
