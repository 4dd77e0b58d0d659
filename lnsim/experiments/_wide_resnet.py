"""What `wide-resnet` and `wide-resnet-sam` share: network, setting, linearisation, run, report.

A Wide ResNet in NTK parameterisation without normalisation, squared loss (1 / 2nC) sum (f - y)^2,
full-batch gradient descent, each set of images normalised by its own mean and deviation as in the
notebook.  The linearised network is trained by the same descent: with K the tangent kernel of all
outputs at the start, f_t - y = (1 - lr K / nC)^t (f_0 - y), and one eigendecomposition of K gives
every t (linearization/descent.py).  A resumed run continues bit for bit.

The paper leaves depth, width, learning rate and time open.  Preset "paper" has the sizes of the
architecture's source (block_size 4, k 1) and the notebook's 10,000 steps; preset "small" has one
block per group.  Both learning rates are 0.3 to 0.4 of the largest at which the linearised
network's descent is stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import NetworkEngine, load_networks
from lnsim.base import checks
from lnsim.base.config import key, recorded
from lnsim.experiments import _images
from lnsim.experiments._arms import Arms, Records
from lnsim.run import quantities
from lnsim.run.loop import record_steps
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = quantities.names(quantities.WIDE_RESNET)
"""The series of every arm, (records,), named by the arm, an underscore and this name."""

KERNEL = "ntk_distance"
OF_KERNEL = (KERNEL, "kernel_alignment", "kernel_rank")
"""Those of SERIES that are recorded only at `kernel_step`."""

OF_CURVATURE = _images.OF_CURVATURE
"""Those of SERIES that are recorded only at `curvature_step`; a run without has only KERNEL."""

LOSS = "squared"

PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "block_size": 4,
        "lr": 0.4,
        "steps": 10_000,
        "record_every": 100,
        "kernel_every": 1000,
        "curvature_every": 1000,
    },
}

LABELS = {"clean": "clean", "noisy": "noisy", "sam": "SAM", "linearized": "linearised"}


@dataclass(frozen=True)
class WideResNetConfig(_images.ImageConfig):
    """The network is wide_resnet(block_size, k, alpha=alpha); `alpha` scales its output.

    The kernel, which costs more than ten steps, is measured every `kernel_every` steps, a multiple
    of `record_every`, or never if that is 0; the curvature, which costs a hundred, every
    `curvature_every`.  `compile` uses torch.compile, on CUDA.
    """

    samples: int = key(64, "n, training samples; of images, 0: all")
    test_samples: int = key(64, "samples of the test set; of images, 0: all")
    block_size: int = key(1, "residual blocks in a group")
    k: int = key(1, "widening factor")
    alpha: float = key(1.0, "scale of the network's output at the start")
    lr: float = key(2.0, "learning rate, eta in the paper")
    steps: int = key(900, "number of training steps")
    record_every: int = key(25, "steps between records; for resnet, epochs")
    kernel_every: int = key(150, "steps between measurements of the tangent kernel; 0: never")
    curvature_every: int = key(
        450, _images.CURVATURE_EVERY, later=True, before=_images.NO_CURVATURE
    )
    compile: bool = key(False, "compile the network; needs CUDA")


def run(
    experiment: str,
    config: WideResNetConfig,
    arms: Mapping[str, Mapping[str, Any]],
    backend: str,
    device: str,
    resume: Trajectory | None = None,
    **driver: Any,
) -> Trajectory:
    """Trains an arm for each of `arms`, which maps its name to its changes of the plan.

    `resume` and `driver` are as for `lnsim.simulate`.  Raises ValueError or TypeError
    for bad input.
    """
    engine = load_networks(backend)
    device = device or engine.default_device()
    _check(config)
    recipes = {name: _recipe(engine, config, changes) for name, changes in arms.items()}
    execution = engine.Execution(compile=config.compile)
    images = _images.choose(config)
    for recipe in recipes.values():
        recipe.check_batches(len(images.train_labels), engine.group().size)
    identity = {
        "experiment": experiment,
        "backend": backend,
        **recorded(config, _images.config_of(resume)),
    }
    with engine.held(config.threads):
        data = engine.place(images, device, normalization="global")
        recorder = _Recorder(engine, config, data)
        all_arms = Arms(
            engine, recipes, images, recorder.series, recorder.assemble, identity, device
        )
        if resume is not None:
            all_arms.restore(resume)
        return all_arms.train(
            recorder.start, data, execution, observe=recorder.observe, threads=config.threads,
            **driver,
        )  # fmt: skip


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    curves = [curve for curve in LABELS if f"{curve}_train_loss" in trajectory.arrays]
    arms = [curve for curve in curves if curve != "linearized"]
    step = f"(clean labels, step {trajectory.steps[-1]:,})"
    lines = []
    for part, label in (("train", "training loss"), ("test", "test loss")):
        ends = {curve: trajectory[f"{curve}_{part}_loss"][-1] for curve in curves}
        lines.append(f"{label:<14}{_each(ends, '.4g')} {step}")
    norms = {arm: trajectory[f"{arm}_first_layer_norm"] for arm in arms}
    start = norms["clean"][0]
    changes = {arm: norm[-1] - start for arm, norm in norms.items()}
    lines.append(f"first layer   {start:.4g} at the start, {_each(changes, '+.3g')}")
    if trajectory["kernel_step"].size:
        moved = {arm: trajectory[f"{arm}_{KERNEL}"][-1] for arm in arms}
        at = trajectory["kernel_step"][-1]
        lines.append(f"kernel        moved by {_each(moved, '.3g')} (of its norm, step {at:,})")
    if trajectory.arrays.get("curvature_step", np.empty(0)).size:
        at = trajectory["curvature_step"][-1]
        for name, label in (("sharpness", "sharpness"), ("hessian_trace", "Hessian trace")):
            ends = {arm: trajectory[f"{arm}_{name}"][-1] for arm in arms}
            lines.append(f"{label:<14}{_each(ends, '.3g')} (clean labels, step {at:,})")
    stable = float(trajectory["largest_stable_lr"])
    lr = trajectory.config["lr"]
    lines.append(f"learning rate {lr:g}; the linearised network is stable below {stable:.3g}")
    return lines


def figure(trajectory: Trajectory, cls: type[WideResNetConfig], *words: str) -> Figure:
    """Losses, norm, kernel and curvature of all curves; `words` say what the arms are."""
    from lnsim.figures import networks

    config = trajectory.config
    shape = [f"Wide ResNet of block size {config['block_size']}, k = {config['k']}"]
    lr = f"lr {config['lr']:g} (linearised: stable below {trajectory['largest_stable_lr']:.3g})"
    caption = _images.caption(trajectory, cls, PRESETS, [*shape, lr, *words])
    return networks.of_arms(trajectory, caption)


def _each(values: Mapping[str, Any], form: str) -> str:
    """The values with the names of their arms; "-" for an arm that diverged or never began."""
    texts = {curve: "-" if np.isnan(v) else f"{v:{form}}" for curve, v in values.items()}
    return ", ".join(f"{text} {LABELS[curve]}" for curve, text in texts.items())


def _check(config: WideResNetConfig) -> None:
    checks.choice("preset", config.preset, PRESETS)
    every = checks.integer("record_every", config.record_every, 1)
    if checks.integer("kernel_every", config.kernel_every, 0) % every:
        raise ValueError(
            f"kernel_every must be a multiple of record_every {every}, got {config.kernel_every}"
        )
    checks.integer("curvature_every", config.curvature_every, 0)


def _recipe(engine: NetworkEngine, config: WideResNetConfig, changes: Mapping[str, Any]) -> Any:
    return engine.Recipe(
        steps=config.steps, record_every=config.record_every, lr=config.lr, seed=config.seed,
        loss=LOSS, **changes,
    )  # fmt: skip


def _is_kernel_due(step: int, config: WideResNetConfig) -> bool:
    return config.kernel_every > 0 and step % config.kernel_every == 0


class _Recorder:
    """The network at the start, its linearisation, and the observations of an arm."""

    def __init__(self, engine: NetworkEngine, config: WideResNetConfig, data: Any) -> None:
        self._engine, self._config, self._data = engine, config, data
        self._steps = np.array(record_steps(config.steps, config.record_every))
        left_out = () if config.curvature_every else (*OF_KERNEL[1:], *OF_CURVATURE)
        self.series = tuple(name for name in SERIES if name not in left_out)
        network = self.start()
        self._tangent = engine.Tangent(network, data)
        losses = self._tangent.losses(network, config.lr, self._steps.tolist())
        self._linearized = {f"linearized_{name}": values for name, values in losses.items()}

    def start(self) -> Any:
        """The network that every arm begins with."""
        config = self._config
        return self._engine.wide_resnet(
            config.block_size, config.k, alpha=config.alpha, seed=config.seed
        )

    def observe(self, network: Any, step: int) -> dict[str, float]:
        """First-layer norm and, at their steps, kernel and curvature; NaN at the others."""
        config = self._config
        values = dict.fromkeys((*OF_KERNEL, *OF_CURVATURE), np.nan)
        values["first_layer_norm"] = self._engine.first_layer_norm(network)
        if _is_kernel_due(step, config):
            values |= self._tangent.measure(network)
        if _images.curvature_is_due(step, config):
            values |= self._engine.curvature(network, self._data.train, LOSS, config.seed)
        return {name: value for name, value in values.items() if name in self.series}

    def assemble(
        self, records: Mapping[str, Records], measured: Mapping[str, Records]
    ) -> dict[str, NDArray[Any]]:
        """The trajectory's arrays."""
        config, steps = self._config, self._steps
        with_kernel, with_curvature = (
            np.array([is_due(step, config) for step in steps])
            for is_due in (_is_kernel_due, _images.curvature_is_due)
        )
        arrays: dict[str, NDArray[Any]] = {
            **self._linearized,
            "kernel_step": steps[with_kernel],
            "largest_stable_lr": np.array(self._tangent.largest_stable_lr),
        }
        if config.curvature_every:
            arrays["curvature_step"] = steps[with_curvature]
        shown = {
            **dict.fromkeys(OF_KERNEL, with_kernel), **dict.fromkeys(OF_CURVATURE, with_curvature)
        }  # fmt: skip
        for arm, of_arm in records.items():
            arrays |= {
                f"{arm}_{name}": of_arm[name][shown[name]] if name in shown else of_arm[name]
                for name in self.series
            }
        return arrays
