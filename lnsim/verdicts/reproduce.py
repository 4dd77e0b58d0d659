"""Runs every synthetic experiment at its defaults, with the controls that the claims need.

`OUT/EXPERIMENT` are run folders as `lnsim run` writes them; `OUT/verdicts.json` and
`OUT/index.html`, a page that contains its figures, hold the verdicts (claims.py).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lnsim.base import files
from lnsim.base.checks import FloatArray
from lnsim.base.progress import reports
from lnsim.dynamics import GD, Oscillation
from lnsim.experiments import _chain, _synthetic
from lnsim.experiments.case import Case
from lnsim.figures import output
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network
from lnsim.run import experiment
from lnsim.simulation.simulate import simulate
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import paper
from lnsim.verdicts import claims, cloud, judge, large_steps, networks, page, sections
from lnsim.verdicts.judge import Verdict

SYNTHETIC = ("label-noise", "label-noise-periodic", "oscillation", "oscillation-periodic", "sam")
"""The experiments on the two-layer linear network."""
SEEDS = 4
"""Replicas for claims about all seeds of the oscillation."""
CLOUD_SEEDS = 8
"""Replicas for those of label noise and SAM, with twice the records: see verdicts/cloud.py."""
RATE_SEEDS = 16
"""Replicas for the decay rates of single modes."""
Overrides = Mapping[str, Mapping[str, Any]]


def reproduce(
    out: str | os.PathLike[str],
    *,
    backend: str = "numba",
    progress: bool | Callable[[str], object] | None = None,
    overrides: Overrides | None = None,
    undrawn: Callable[[str], object] = warnings.warn,
    data: str = "",
) -> list[Verdict]:
    """Runs everything into the folder `out`, writes its page, and returns the verdicts.

    `data`: images (images/data.py) on which the networks of networks.py are trained and judged too,
    at their small presets, with torch; empty: none are.

    `progress`: True for a bar on a terminal, or a function called with the name of each run.
    `overrides`: keys to change by experiment, such as {"sam": {"steps": 1000}}.  `undrawn` is
    called with the reason why a figure could not be drawn; the page then lacks the figure.

    Raises OSError if `out` cannot be written, ValueError for overrides out of range.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with reports(progress, _begin, unit="run") as note:
        runner = _Runner(folder, backend, note, undrawn, overrides or {})
        runs = {name: runner.run(name) for name in SYNTHETIC}
        parts = _sections(runner, runs)
        if data:
            on_images = {name: runner.on_images(name, data) for name in networks.RUNS}
            parts.append(sections.networks(networks.sharpness(on_images)))
    verdicts = [verdict for section in parts for verdict in section.verdicts]
    provenance = runs["label-noise"].provenance
    files.write_json(folder / "verdicts.json", page.plain(parts, provenance))
    conditions = Case.of_run(runs["label-noise"]).conditions  # at the setting of Figure 2
    files.write_text(folder / "index.html", page.render(folder, parts, conditions, provenance))
    return verdicts


@dataclass
class _Runner:
    """Makes the runs and writes them into `folder`."""

    folder: Path
    backend: str
    note: Callable[[str], object]
    undrawn: Callable[[str], object]
    overrides: Overrides = field(default_factory=dict)

    def config(self, name: str) -> Any:
        """The configuration of an experiment, with its overrides."""
        changes: dict[str, Any] = {"ledger": True} if name == "label-noise" else {}
        return experiment.load(name).Config(**{**changes, **self.overrides.get(name, {})})

    def run(self, name: str) -> Trajectory:
        """Runs an experiment and writes its run folder with its figures."""
        self.note(name)
        module = experiment.load(name)
        trajectory: Trajectory = module.run(self.config(name), backend=self.backend)
        self._save(trajectory, name)
        return trajectory

    def control(self, name: str, to: str, **changes: Any) -> Trajectory:
        """Runs an experiment with a few keys changed, and writes it as run folder `to`."""
        self.note(to)
        module = experiment.load(name)
        config = replace(self.config(name), **changes)
        trajectory: Trajectory = module.run(config, backend=self.backend)
        self._save(trajectory, to)
        return trajectory

    def on_images(self, name: str, data: str) -> Trajectory:
        """Runs an experiment on images at its small preset, and writes its run folder."""
        self.note(name)
        module = experiment.load(name)
        config = module.Config(preset="small", data=data, **self.overrides.get(name, {}))
        trajectory: Trajectory = module.run(config, backend=module.backend)
        self._save(trajectory, name)
        return trajectory

    def seeds(self, name: str, count: int, driver: dict[str, Any], **changes: Any) -> Trajectory:
        """Runs replicas of an experiment; writes nothing."""
        self.note(f"{name}, {count} seeds")
        config = replace(self.config(name), **changes)
        ensemble: Trajectory = experiment.load(name).run(
            config, backend=self.backend, replicas=count, **driver
        )
        return ensemble

    def _save(self, trajectory: Trajectory, to: str) -> None:
        trajectory.save(self.folder / to)
        if reason := output.write(trajectory, self.folder / to):
            self.undrawn(f"{to}: {reason}")


def _sections(runner: _Runner, runs: Mapping[str, Trajectory]) -> list[sections.Section]:
    """The sections of the page: a figure of the paper each, two for the theory, and large steps."""
    cases = {name: Case.of_run(run) for name, run in runs.items()}
    base = runner.config("label-noise")
    seeds = _cloud_seeds(runner, "label-noise", ledger=False)
    of_seeds = Case.of_run(seeds)
    of_sam_seeds = Case.of_run(_cloud_seeds(runner, "sam"))
    clean = runner.control("label-noise", "label-noise-clean", sigma=0.0, ledger=False,
                           **_shorter(base, 20))  # fmt: skip
    plain = runner.control("sam", "sam-without-rho", rho=0.0, **_shorter(runner.config("sam"), 10))
    noisy = runner.control("sam", "sam-with-label-noise", sigma=base.sigma)
    full = runner.control("sam", "sam-full-batch", batch_size=0,
                          **_shorter(runner.config("sam"), 25))  # fmt: skip
    return [
        sections.figure_2(claims.two_phases("Figure 2", seeds, clean, "sigma = 0")),
        sections.figure_4([
            *claims.two_phases("Figure 4", claims.of_run(of_sam_seeds), plain, "rho = 0"),
            *claims.stationary(of_sam_seeds, "one-sample SAM"),
            *claims.escape_and_phases("SAM with label noise", noisy),
        ]),
        sections.periodic(claims.windows(runs["label-noise-periodic"], "the noise")),
        sections.oscillation(_oscillation(runner, cases["oscillation"])),
        sections.oscillation_periodic(
            claims.windows(runs["oscillation-periodic"], "the oscillation")
        ),
        sections.paper_theory([
            claims.lazy_escape(of_seeds),
            claims.norm_identity(cases["label-noise"]),
            *claims.lemma_3(_while_lazy(runner, cases["label-noise"])),
            claims.phase_two(cases["label-noise"]),
            *claims.small_start([(s, _small_start(runner, s)) for s in (0.1, 1.0)]),
        ]),
        sections.our_theory([
            *_law_of_modes(runner, of_seeds),
            *claims.stationary(of_seeds, "label noise SGD"),
            *cloud.law_of_the_cloud(of_seeds, "law of the cloud"),
            *cloud.law_of_the_cloud(of_sam_seeds, "law of the cloud, SAM"),
        ]),
        sections.flat_minima(claims.flatness(of_seeds, cases["sam"], clean, full)),
        sections.large_steps(_large_steps(runner)),
    ]  # fmt: skip


def _cloud_seeds(runner: _Runner, name: str, **changes: Any) -> Trajectory:
    """Seeds of an experiment, recorded as the claims of verdicts/cloud.py need it."""
    every = max(1, runner.config(name).record_every // 2)
    return runner.seeds(name, CLOUD_SEEDS, {}, record_every=every, tracked=0,
                        measures="none,hessian_trace", **changes)  # fmt: skip


def _shorter(config: _synthetic.LinearConfig, share: int) -> dict[str, int]:
    """Keys of a run with 1/`share` of the steps and as many records."""
    steps = max(1, config.steps // share)
    return {"steps": steps, "record_every": max(1, config.record_every // share)}


def _oscillation(runner: _Runner, case: Case) -> list[Verdict]:
    config: _chain.ChainConfig = runner.config("oscillation")
    width = max(1, round(case.lemma_4.premise_width))
    every = max(1, config.steps // 500)
    premise = runner.seeds("oscillation", SEEDS, {"linearized": False}, width=width,
                           record_every=every)  # fmt: skip
    runner.note("oscillation, off")
    problem, network = _synthetic.start(config)
    still = simulate(
        problem, network, Oscillation(config.lr, config.amplitude).off(),
        steps=config.steps // 10, record_every=max(1, config.steps // 100), seed=config.seed,
        backend=runner.backend,
    )  # fmt: skip
    return claims.oscillation(case, Case.of_run(premise), still)


def _while_lazy(runner: _Runner, case: Case) -> Case:
    """The run of `case` up to the step at which the first neuron leaves the lazy regime."""
    first = case.phase("first_escape")
    steps = case.length if np.isnan(first) else int(first)
    changes = {"steps": steps, "record_every": max(1, steps // 100), "ledger": True}
    runner.note("label-noise while lazy")
    config = replace(runner.config("label-noise"), **changes)
    return Case.of_run(experiment.load("label-noise").run(config, backend=runner.backend))


def _small_start(runner: _Runner, share: float) -> Trajectory:
    """Gradient descent from weights of norm at most `share` sqrt(lr), on infinitely many samples.

    The width is 1/sqrt(lr), the smallest of (A1), and |theta*| = m^(-1/4), the largest of (A4).
    Gradient descent depends on the samples only through X^T X/n and X^T y/n.  For n = infinity, the
    limit of (A3), these are I and theta*, as for the d samples sqrt(d) e_i.
    """
    runner.note(f"gradient descent from {share:g} sqrt(lr)")
    base = runner.config("label-noise")
    width = max(2, round(base.lr**-0.5))
    config = _synthetic.LinearConfig(
        samples=base.samples, dim=base.dim, width=width, theta_norm=width**-0.25, lr=base.lr,
        seed=base.seed,
    )  # fmt: skip
    finite, network = _synthetic.start(config)
    X = np.sqrt(config.dim) * np.eye(config.dim)
    assert finite.theta_star is not None
    problem = Problem(X, X @ finite.theta_star, finite.theta_star)
    level = share * paper.phase_two_threshold(config.lr)
    W = network.W * (level / np.linalg.norm(network.W, axis=1).max())
    a = network.a * (level / np.abs(network.a).max())
    steps = int(judge.descent(config.lr, config.theta_norm).converged) + 1
    return simulate(
        problem, Network(W, a), GD(config.lr), steps=steps, record_every=max(1, steps // 2000),
        tracked=width, backend=runner.backend, config=asdict(config),
    )  # fmt: skip


def _law_of_modes(runner: _Runner, case: Case) -> list[Verdict]:
    base = runner.config("label-noise")
    span = max(1, base.steps // 40)
    early, late = (
        runner.seeds("label-noise", RATE_SEEDS, {"linearized": False}, steps=steps,
                     record_every=max(1, span // 50), ledger=False, tracked=0)
        for steps in (span, 2 * span)
    )  # fmt: skip
    return claims.law_of_modes(case, _mode_ratios(case, early, late))


def _mode_ratios(case: Case, early: Trajectory, late: Trajectory) -> FloatArray:
    """Measured divided by predicted decay rate of each mode between the ends of two runs, (d,).

    The part of W along theta* does not decay and is left out.
    """
    problem, theta_star = case.start.problem, case.start.theta_star
    _, vectors = np.linalg.eigh(problem.gram)
    direction = theta_star / np.linalg.norm(theta_star)

    def modes(run: Trajectory) -> FloatArray:
        W = run["final_W"] - (run["final_W"] @ direction)[..., None] * direction
        energy: FloatArray = ((W @ vectors) ** 2).sum(axis=1).mean(axis=0)
        return energy

    span = late.status.step - early.status.step
    loss = late["train_loss"][:, late.steps >= early.status.step].mean()
    measured = np.log(modes(early) / modes(late)) / span
    return measured / paper.decay_rates(problem.X, case.config.lr, case.config.sigma, float(loss))


def _large_steps(runner: _Runner) -> list[Verdict]:
    """One sample, and the data of Figure 2 in cells twice as wide, as it takes longer."""
    config = runner.config("large-steps")
    single = runner.control("large-steps", "large-steps", problem="single")
    data = runner.control("large-steps", "large-steps-regression", problem="regression",
                          count=max(1, config.count // 2))  # fmt: skip
    return [*large_steps.one_sample(single), *large_steps.regression(data)]


def _begin(bar: Any, name: str) -> None:
    """Shows on the bar that the run `name` begins."""
    bar.set_description(name)
    bar.update()
