"""Times epochs of lnsim's training loop and of a bare loop on ResNet-18, in turns.

    python -m bench.resnet            on CUDA: width 64, 50,000 images, batches of 128
    python -m bench.resnet --tiny     on the CPU: width 8, 1,000 images, batches of 16, one thread,
                                      as an arm of `lnsim run resnet`, preset small

Both loops have images in the device's memory, channels last and, on CUDA, bfloat16 and a compiled
network.  The bare loop has its images normalised in advance and does nothing but forward, backward
and update.  lnsim's loop flips labels, gathers and normalises bytes, and includes a record in each
epoch: loss and accuracy on a fifth as many test images.  The images are random, as speed does not
depend on them.  On the CPU the machine's rate in a product of two matrices is taken in turns too,
and the arithmetic of both loops (multiply-adds of convolutions and dense layers, records left out)
is a share of it; times are processor time there, which other programs disturb less.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.training.train import Data, Execution, Recipe, place, train
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.tables import Cell, Table, parser, ratios, report
from lnsim.images.data import Images


def random_images(n: int) -> Images:
    """`n` random training images, and a fifth as many test images."""
    random = np.random.default_rng(0)
    sets = []
    for count in (n, n // 5):
        sets += [
            random.integers(0, 256, (count, 32, 32, 3), np.uint8),
            random.integers(0, 10, count),
        ]
    return Images(*sets)


def bare_epoch(
    network: nn.Module, x: Tensor, labels: Tensor, batch: int, autocast: bool
) -> Callable[[], None]:
    """A function that trains `network` for one epoch, without anything else."""
    network.train()
    forward = torch.compile(network, dynamic=False) if autocast else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def epoch() -> None:
        order = torch.randperm(len(x), device=x.device)
        for chosen in order.split(batch):
            optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                f = forward(x[chosen])
            F.cross_entropy(f.float(), labels[chosen]).backward()
            optimizer.step()

    return epoch


def arithmetic(network: nn.Module, x: Tensor, labels: Tensor) -> int:
    """The floating-point operations of forward and backward, two for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(x), labels).backward()
    network.zero_grad()
    return counter.get_total_flops()


SIDE = 1024
"""The size of the matrices of `product`."""


def product(device: torch.device) -> Callable[[], None]:
    """A function that multiplies two float32 matrices, ten times."""
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))

    def multiply() -> None:
        for _ in range(10):
            a @ b

    return multiply


class Turns:
    """Called at every record of lnsim's run: times its epoch, a bare one, and a product."""

    def __init__(self, bare: Callable[[], None], device: torch.device) -> None:
        self._bare, self._device = bare, device
        self._product = product(device)
        self.times: dict[str, list[float]] = {"lnsim": [], "bare": []}
        self.products: list[float] = []
        self.memory = {"lnsim": 0, "bare": 0}
        self._start = math.nan

    def __call__(self, network: nn.Module, step: int) -> dict[str, float]:
        self._stop("lnsim")
        self._bare()
        self._stop("bare")
        if self._device.type == "cpu":
            self._product()
            self.products.append(10 * 2 * SIDE**3 / (time.process_time() - self._start))
            self._start = time.process_time()
        return {}

    def _stop(self, name: str) -> None:
        """Adds the time since the last call to the times of `name`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.memory[name] = max(self.memory[name], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        now = time.perf_counter() if self._device.type == "cuda" else time.process_time()
        self.times[name].append(now - self._start)
        self._start = now


def measure(data: Data, width: int, batch: int, rounds: int) -> Turns:
    """Runs both loops in turns, `rounds` times after one uncounted round."""
    cuda = data.device.type == "cuda"
    n = len(data.train)
    steps = math.ceil(n / batch)
    x = data.train.inputs(slice(None)).contiguous(memory_format=torch.channels_last)
    other = networks.resnet18(width=width).to(data.device).to(memory_format=torch.channels_last)
    turns = Turns(bare_epoch(other, x, data.train.targets, batch, cuda), data.device)
    recipe = Recipe(
        steps=(rounds + 1) * steps, record_every=steps, lr=0.1, batch_size=batch, tau=0.1,
        loss="cross_entropy", train_measured=1,
    )  # fmt: skip
    execution = Execution(precision="bfloat16" if cuda else "float32", compile=cuda)
    train(networks.resnet18(width=width), data, recipe, execution, observe=turns)
    # The first record precedes all epochs; the first epoch includes compilation.
    turns.times = {name: times[2:] for name, times in turns.times.items()}
    return turns


def measured(tiny: bool, rounds: int) -> Table:
    """Both loops at the setting of the CPU, which is tiny, or of CUDA."""
    device, width, n, batch = ("cpu", 8, 1000, 16) if tiny else ("cuda", 64, 50_000, 128)
    if tiny:
        torch.set_num_threads(1)
    data = place(random_images(n), device)
    turns = measure(data, width, batch, rounds)
    few = slice(0, 2)
    network = networks.resnet18(width=width).to(device)
    each = arithmetic(network, data.train.inputs(few), data.train.targets[few]) / 2
    rows: dict[str, tuple[Cell, ...]] = {}
    for name, times in turns.times.items():
        images = [n / seconds for seconds in times]
        if tiny:  # the rate of a product, before the first epoch too
            rates = turns.products[-len(times) :]
            more: Cell = [100 * i * each / rate for i, rate in zip(images, rates, strict=True)]
        else:
            more = turns.memory[name] / 2**30
        rows[name] = (times, images, ratios(times, turns.times["bare"]), more)
    return Table(
        "Training of a ResNet",
        f"ResNet-18 of width {width}, {n:,} images in batches of {batch}"
        f"{', one thread, processor time' if tiny else ', bfloat16, compiled'}: lnsim's loop "
        "with a record in each epoch, beside a bare loop of forward, backward and update on images"
        f" normalised in advance; {rounds} epochs of each, in turns.",
        (
            "s an epoch", "images/s", "to bare",
            "% of a product's rate" if tiny else "peak GiB, both held",
        ),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--tiny", action="store_true", help="a small setting, on the CPU")
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing measured; --tiny runs a small setting on the CPU")
    command = f"python -m bench.resnet{' --tiny' if arguments.tiny else ''}"
    report([measured(arguments.tiny, arguments.rounds)], command, arguments.out)
