"""What determines a run of training (Recipe), and how it is computed (Execution)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lnsim.base import checks
from lnsim.dynamics.flips import FLIPS, check_tau
from lnsim.streams import check_seed

LOSSES = ("cross_entropy", "squared")
SCHEDULES = ("constant", "cosine")
PERTURBATIONS = ("batch", "process")
PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters and the seed of a run, which determine its numbers.

    `steps` of size `lr`, recorded every `record_every`; `batch_size` 0 is the full batch.
    `schedule`: "constant", or "cosine" from lr to 0 over all steps.
    `rho` > 0 makes it SAM.  `normalized`: the weights are moved by rho along the gradient, rather
    than by rho times the gradient.  `micro_batch`: the number of samples that are perturbed
    together, by their own gradient (m-SAM); 0 for the whole batch.
    `perturbation`: "batch", where several processes train like one, or "process", where each
    perturbs by the gradient of its own share of the batch.  With rho = 0 these change nothing.
    `tau`: the probability that a label is redrawn, `flip`: from which classes ("other" than the
    true one, or "any"); `sigma`: the noise of the targets, for the squared loss.  `augment`: crop
    and flip.  `smoothing`: see train.smoothed.  `train_measured`: the number of training images,
    evenly spaced, for the recorded training loss and accuracy; 0 for all.

    Raises ValueError or TypeError for values that are not allowed.
    """

    steps: int
    record_every: int
    lr: float
    batch_size: int = 0
    schedule: str = "constant"
    rho: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: str = "squared"
    tau: float = 0.0
    flip: str = "other"
    sigma: float = 0.0
    augment: bool = False
    smoothing: float = 0.9
    train_measured: int = 0
    seed: int = 0
    normalized: bool = True
    micro_batch: int = 0
    perturbation: str = "batch"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "train_measured", "micro_batch"):
            checks.integer(name, getattr(self, name), 0)
        checks.integer("record_every", self.record_every, 1)
        _number("lr", self.lr, above=0.0)
        for name in ("rho", "weight_decay", "sigma"):
            _number(name, getattr(self, name))
        for name in ("momentum", "smoothing"):
            if _number(name, getattr(self, name)) >= 1.0:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        for name in ("normalized", "augment"):
            checks.flag(name, getattr(self, name))
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("loss", self.loss, LOSSES)
        checks.choice("flip", self.flip, FLIPS)
        checks.choice("perturbation", self.perturbation, PERTURBATIONS)
        check_tau(self.tau)
        check_seed(self.seed)
        if self.sigma > 0 and self.loss != "squared":
            raise ValueError(f"sigma must be 0 unless loss is squared, got {self.sigma}")

    def check_batches(self, samples: int, processes: int = 1) -> None:
        """Raises ValueError for batches that this many samples and processes do not allow."""
        batch = self.batch_size or samples
        if batch > samples:
            raise ValueError(f"batch_size must be at most the {samples} samples, got {batch}")
        if batch < processes:
            raise ValueError(f"batch_size must be at least the {processes} processes, got {batch}")
        micro_batch = self.micro_batch or batch
        if batch % micro_batch:
            raise ValueError(
                f"micro_batch must divide the batch of {batch} samples, got {micro_batch}"
            )
        if self.perturbation == "batch":
            return
        if batch % processes:
            raise ValueError(
                f"perturbation 'process' needs a batch that {processes} processes share equally,"
                f" got {batch} samples"
            )
        if self.micro_batch and batch // processes % self.micro_batch:
            raise ValueError(
                f"micro_batch must divide the {batch // processes} samples of each of {processes}"
                f" processes, got {self.micro_batch}"
            )

    @property
    def perturbed_by_process(self) -> bool:
        """Whether the result depends on the number of processes, each of which perturbs alone."""
        return self.rho > 0 and self.perturbation == "process" and self.micro_batch == 0

    def perturbed_together(self, samples: int, processes: int = 1) -> int:
        """The number of samples of a batch that SAM perturbs together; all of them without SAM."""
        batch = self.batch_size or samples
        if self.perturbed_by_process:
            return batch // processes
        return (self.micro_batch or batch) if self.rho > 0 else batch

    def lr_at(self, step: int) -> float:
        """The learning rate of step number `step`, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Execution:
    """How a run is computed on the device of its data; results change by rounding alone.

    `precision`: "float32" keeps the network's dtype, "bfloat16" is autocast; weights, losses and
    sums keep their dtype.  `compile`: use torch.compile.  `channels_last`: the memory format of
    images and weights, a quarter faster on the CPU too.  bfloat16 and compile need CUDA.
    """

    precision: str = "float32"
    compile: bool = False
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name in ("compile", "channels_last"):
            checks.flag(name, getattr(self, name))
        checks.choice("precision", self.precision, PRECISIONS)

    def check(self, device: str) -> None:
        """Raises ValueError for options that a `device` of this type ("cpu", "cuda") lacks."""
        if device != "cuda":
            if self.precision != "float32":
                raise ValueError(f"precision must be float32 on {device}, got {self.precision!r}")
            if self.compile:
                raise ValueError(f"compile must be off on {device}: it needs CUDA")


PLAIN = Execution()


def _number(name: str, value: Any, *, above: float = -math.inf) -> float:
    number = checks.real(name, value, least=0.0, above=above)
    if not isinstance(number, float):
        raise TypeError(f"{name} must be one number, got {value!r}")
    return number
