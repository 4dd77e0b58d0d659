"""Function-space linearisation on real images (the paper's released notebook).

Two-layer erf networks on 64 images of CIFAR-10: one trained on clean labels, one with labels
redrawn at every step, and the linearisation of both at their start.  The clean run follows the
linearisation, so it is lazy; the noisy one leaves it: higher training loss, lower test loss, and
first-layer norms that fall more.  The science is in images/erf_network.py and dynamics/flips.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import DIVERGED_ABOVE, FloatArray
from lnsim.base.config import key, recorded
from lnsim.base.progress import of_steps
from lnsim.dynamics.flips import FLIPS, check_tau, flip_labels
from lnsim.experiments import _images
from lnsim.images import data as images
from lnsim.images import erf_network
from lnsim.images.data import CLASSES
from lnsim.images.erf_curvature import Curvature
from lnsim.images.erf_network import Engine, Start, State
from lnsim.images.kernels import effective_rank, label_alignment
from lnsim.run import quantities
from lnsim.run.experiment import Experiment
from lnsim.run.loop import drive, record_steps
from lnsim.run.machine import provenance
from lnsim.run.record import Status
from lnsim.run.resume import records_kept
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = ("clean", "noisy")
CURVES = ("clean", "noisy", "linearized")
LOSSES = ("train_loss", "test_loss")
OF_KERNEL = ("kernel_alignment", "kernel_rank")
OF_CURVATURE = _images.OF_CURVATURE
MEASURES = tuple(
    name
    for name in quantities.names(quantities.ERF)
    if name not in (*LOSSES, *OF_KERNEL, *OF_CURVATURE)
)
SERIES = (
    *(f"{curve}_{name}" for curve in CURVES for name in LOSSES),
    *(f"{run}_{name}" for run in RUNS for name in MEASURES),
)
"""The recorded arrays beside `step`, each (records,).

A run with `curvature_every` has also those of OF_KERNEL for each of RUNS and, over
`curvature_step`, those of OF_CURVATURE.
"""

STEPS_AT_ONCE = 1000
"""Number of steps whose labels are in memory at a time."""

SAME = 1e-6
"""Relative difference up to which the start of a resumed run equals that of the earlier run."""


@dataclass(frozen=True)
class Config:
    """The notebook's setting.

    `data` is the path of an .npz file, or "cifar10", which is downloaded to `data_root`.  `samples`
    and `test_samples` count images; 0 means all.  `tau` is the probability that a label is drawn
    anew at a step; `flip` "any" draws it from all classes (the notebook), "other" from those other
    than the true one (the README).  `dtype` is the type of single gradients.
    """

    data: str = key("", "FILE.npz of images, or cifar10, which is downloaded")
    data_root: str = key("data", "folder of cifar10")
    samples: int = key(64, "n, training samples; of images, 0: all")
    test_samples: int = key(64, "samples of the test set; of images, 0: all")
    width: int = key(512, "m, hidden neurons; of resnet, channels of the first group")
    lr: float = key(1e-3, "learning rate, eta in the paper")
    steps: int = key(10_000, "number of training steps")
    record_every: int = key(100, "steps between records; for resnet, epochs")
    tau: float = key(0.5, "probability that a label is drawn anew each time it is used")
    flip: str = key("any", "any or other: the classes from which a noisy label is drawn")
    curvature_every: int = key(
        500, _images.CURVATURE_EVERY, later=True, before=_images.NO_CURVATURE
    )
    dtype: str = key("float32", "type of the gradients: float32 or float64")
    seed: int = key(0, "seed of the data, the network and the noise")


def run(
    config: Config,
    *,
    backend: str = "numba",
    device: str = "",
    progress: bool | Callable[[int], object] | None = None,
    resume: Trajectory | None = None,
    checkpoint: Callable[[Trajectory], object] | None = None,
    checkpoint_every: float = 60.0,
    stop: Callable[[], bool] | None = None,
) -> Trajectory:
    """Trains both runs; the keywords are as for `lnsim.simulate`.

    Raises ValueError or TypeError for bad input.
    """
    _check(config)
    device = device or "cpu"
    engine = erf_network.load_engine(backend)
    engine.check_device(device)
    kept = recorded(config, _images.config_of(resume))
    identity = {"experiment": "linearization", "backend": backend, **kept}
    run = _Run(config, identity, device, engine)
    step = 0 if resume is None else run.restore(resume)
    with of_steps(progress, config.steps, step) as report:
        return drive(
            run, step, config.steps, report=report, stop=stop,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        )  # fmt: skip


def figure(trajectory: Trajectory) -> Figure:
    """Training loss, test loss, and mean and deviation of the first-layer norms."""
    from lnsim.figures import linearization

    return linearization.of_arms(trajectory)


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    lines = []
    for part, label in (("train", "training loss"), ("test", "test loss")):
        ends = {curve: trajectory[f"{curve}_{part}_loss"][-1] for curve in CURVES}
        lines.append(
            f"{label:<14}{ends['linearized']:.4g} linearised, {ends['clean']:.4g} clean,"
            f" {ends['noisy']:.4g} noisy (clean labels, step {trajectory.steps[-1]:,})"
        )
    norms = [trajectory[f"{run}_norm_mean"] for run in RUNS]
    changes = [norm[-1] - norm[0] for norm in norms]
    lines.append(
        f"mean norm     {norms[0][0]:.4g} at the start,"
        f" {changes[0]:+.2e} clean, {changes[1]:+.2e} noisy"
    )
    moved = [trajectory[f"{run}_ntk_distance"][-1] for run in RUNS]
    lines.append(f"kernel        moved by {moved[0]:.3g} clean, {moved[1]:.3g} noisy (of its norm)")
    if trajectory.arrays.get("curvature_step", np.empty(0)).size:
        at = trajectory["curvature_step"][-1]
        for name, label in zip(OF_CURVATURE, ("sharpness", "Hessian trace"), strict=True):
            clean, noisy = (trajectory[f"{run}_{name}"][-1] for run in RUNS)
            lines.append(
                f"{label:<14}{clean:.4g} clean, {noisy:.4g} noisy (clean labels, step {at:,})"
            )
    return lines


def _check(config: Config) -> None:
    """Refuses numbers and words out of range."""
    for name, least in (
        ("samples", 0), ("test_samples", 0), ("width", 1), ("steps", 0), ("record_every", 1),
        ("curvature_every", 0),
    ):  # fmt: skip
        checks.integer(name, getattr(config, name), least)
    if not isinstance(checks.real("lr", config.lr, above=0.0), float):
        raise TypeError(f"lr must be one number, got {config.lr!r}")
    check_tau(config.tau)
    checks.choice("flip", config.flip, FLIPS)
    checks.choice("dtype", config.dtype, erf_network.DTYPES)
    streams.check_seed(config.seed)


class _Run:
    """Both runs: advances them, records their observables, and makes the trajectory."""

    diverged_at: int | None = None

    def __init__(
        self, config: Config, identity: dict[str, Any], device: str, engine: Engine
    ) -> None:
        self._config, self._engine = config, engine
        self._identity, self._device = identity, device
        source = images.load(config.data, config.data_root)
        self.task = erf_network.choose(
            source, config.samples, config.test_samples, CLASSES, config.seed
        )
        network = erf_network.standard_init(
            config.width, self.task.X.shape[1], CLASSES, config.seed
        )
        self.start: Start = erf_network.reduce(self.task, network)
        self.state: State = erf_network.state_at_start(network, len(self.task.labels), len(RUNS))
        self._linear = erf_network.linearize(self.state, self.start, self.task, config.lr)
        self._plan = record_steps(config.steps, config.record_every)
        self._count = 0
        self._words = streams.WordStream(config.seed, 1, 0)
        self._arrays = {name: np.full(len(self._plan), np.nan) for name in SERIES}
        self._has_curvature = np.array(
            [_images.curvature_is_due(step, config) for step in self._plan]
        )
        if config.curvature_every:
            self._curvature = Curvature(self.start, self.task, config.seed)
            for name in (*OF_KERNEL, *OF_CURVATURE):
                self._arrays |= {f"{run}_{name}": np.full(len(self._plan), np.nan) for run in RUNS}

    def events(self, step: int) -> list[int]:
        """The steps that remain to be recorded."""
        return self._plan[self._count :]

    def advance(self, step: int, target: int) -> Iterator[int]:
        """Trains both runs to `target`, in pieces of STEPS_AT_ONCE steps."""
        while step < target:
            count = min(target - step, STEPS_AT_ONCE)
            self._engine.advance(
                self.state, self.start, self._labels(count),
                self._config.lr, dtype=self._config.dtype, device=self._device,
            )  # fmt: skip
            step += count
            yield step

    def _labels(self, count: int) -> NDArray[np.int64]:
        """The labels on which both runs train in the next `count` steps, (2, T, n)."""
        labels, config = self.task.labels, self._config
        drawn = self._words.take(count * len(labels)).reshape(count, len(labels))
        noisy = flip_labels(labels, drawn, config.tau, config.flip, CLASSES)
        return np.stack([np.broadcast_to(labels, noisy.shape), noisy])

    def observe(self, step: int) -> bool:
        """Records both runs at `step`; returns False and records nothing if one diverged."""
        with np.errstate(all="ignore"):
            values = self._values(step)
        # "not <" and not ">=", so that NaN counts as diverged.
        if not max(values["clean_train_loss"], values["noisy_train_loss"]) < DIVERGED_ABOVE:
            self.diverged_at = step
            return False
        if self._has_curvature[self._count]:
            values |= self._curvature_values()
        for name, value in values.items():
            self._arrays[name][self._count] = value
        self._count += 1
        return True

    def _values(self, step: int) -> dict[str, float]:
        """The value of every one of SERIES at the present state."""
        state, start, task = self.state, self.start, self.task
        H, H_test = erf_network.preactivations(state, start)
        norms = erf_network.neuron_norms(H, state, start)
        kernels = erf_network.mean_kernel(H, H, state.W2, start.gram)
        of_runs = {
            "train_loss": erf_network.loss(erf_network.outputs(H, state), task.y),
            "test_loss": erf_network.loss(erf_network.outputs(H_test, state), task.y_test),
            "norm_mean": norms.mean(axis=1),
            "norm_std": norms.std(axis=1),
            "ntk_distance": self._ntk_distance(kernels),
        }
        if self._config.curvature_every:
            of_runs["kernel_alignment"] = label_alignment(kernels, task.y)
            of_runs["kernel_rank"] = effective_rank(kernels)
        values = _by_run(of_runs)
        f, f_test = self._linear.train(step), self._linear.test(step)
        values["linearized_train_loss"] = float(erf_network.loss(f, task.y))
        values["linearized_test_loss"] = float(erf_network.loss(f_test, task.y_test))
        return values

    def _ntk_distance(self, kernels: FloatArray) -> FloatArray:
        """|K(t) - K(0)|_F / |K(0)|_F of both runs, (2,)."""
        start = self._linear.kernel
        return np.linalg.norm(kernels - start, axis=(1, 2)) / np.linalg.norm(start)

    def _curvature_values(self) -> dict[str, float]:
        """The values of OF_CURVATURE at the present state."""
        H, _ = erf_network.preactivations(self.state, self.start)
        measures = (self._curvature.sharpness, self._curvature.trace)
        of_runs = [measure(self.state, H) for measure in measures]
        return _by_run(dict(zip(OF_CURVATURE, of_runs, strict=True)))

    def result(self, status: Status) -> Trajectory:
        """All records so far, and the state from which to resume."""
        arrays: dict[str, Any] = {
            name: value[: self._count].copy() for name, value in self._arrays.items()
        }
        arrays["step"] = np.array(self._plan[: self._count])
        if self._config.curvature_every:
            measured = self._has_curvature[: self._count]
            arrays["curvature_step"] = arrays["step"][measured]
            for name in _of_curvature():
                arrays[name] = arrays[name][measured]
        state = {name: value.copy() for name, value in vars(self.state).items()}
        about = {**provenance(self._identity), "device": self._device}
        return Trajectory(arrays, self._identity, status, state, about)

    def restore(self, earlier: Trajectory) -> int:
        """Takes over the records and the state of `earlier`; returns its last step."""
        count = records_kept(earlier, self._identity, self._plan)
        self._check_same(earlier)
        measured = self._has_curvature[:count]
        for name, values in self._arrays.items():
            if name in _of_curvature():
                values[:count][measured] = earlier[name][: measured.sum()]
            else:
                values[:count] = earlier[name][:count]
        for name, value in vars(self.state).items():
            value[...] = earlier.state[name]
        self._count, step = count, earlier.status.step
        self._words = streams.WordStream(self._config.seed, 1, step * len(self.task.labels))
        return step

    def _check_same(self, earlier: Trajectory) -> None:
        """Refuses a trajectory with another start, or a state of other names or shapes."""
        start_values = self._values(0)
        for name in SERIES:
            if name not in earlier.arrays or not np.isclose(
                earlier[name][0], start_values[name], rtol=SAME, atol=0.0
            ):
                raise ValueError("cannot resume: the earlier run had other data or another network")
        for name, value in vars(self.state).items():
            if name not in earlier.state or earlier.state[name].shape != value.shape:
                raise ValueError(f"cannot resume: the earlier run has no fitting state {name!r}")


def _by_run(of_runs: Mapping[str, FloatArray]) -> dict[str, float]:
    """Values : (2,) of both runs, under names that begin with that of the run."""
    return {
        f"{run}_{name}": float(of_run[s])
        for name, of_run in of_runs.items()
        for s, run in enumerate(RUNS)
    }


def _of_curvature() -> list[str]:
    return [f"{run}_{name}" for run in RUNS for name in OF_CURVATURE]


EXPERIMENT = Experiment(
    name="linearization",
    meaning="label noise on images and the linearisation (notebook)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    rests_on=("zhang2026", "lee2019", "jacot2018", "krizhevsky2009"),
)
