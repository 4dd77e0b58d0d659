"""The law of the cloud beside runs: how far each predicted curve is from the mean over seeds.

    python bench/predictions.py                  docs/predictions.md: an hour on two cores
    python bench/predictions.py --folds 1        a shorter course
    python bench/predictions.py --only sam

A run takes `folds` times 1/(lr sigma)^2 steps, the time in which |W|_F^2 falls by e, but at most
LONGEST.  At every record the prediction is compared with the mean over the seeds; of the losses and
of tr H, whose records are noisy, the means over WINDOWS windows of time are.  A quantity meets its
bound where no record is further from the prediction than the bound plus ERRORS standard errors of
the mean.  The first record is the start, which both have; it is left out.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lnsim
from lnsim.base.checks import FloatArray
from lnsim.models.problems import gaussian_regression
from lnsim.models.two_layer import ntk_init
from lnsim.theory import cloud

LONGEST = 20_000_000
RECORDS = 800
WINDOWS = 8
ERRORS = 4
SAMPLES = 200
BOUNDS = {
    "norm_mean": 0.01,
    "norm_squared": 0.02,
    "alignment_mean": 0.02,
    "cosine_mean": 0.02,
    "ntk_distance": 0.03,
    "train_loss": 0.05,
    "test_loss": 0.05,
    "hessian_trace": 0.02,
}
"""How far a prediction may be: relative, of cosine_mean absolute."""
NOISY = ("train_loss", "test_loss", "hessian_trace")
HEADS = (
    "mean norm",
    "‖W‖²",
    "alignment",
    "mean abs cos",
    "kernel",
    "train loss",
    "test loss",
    "tr H",
)
SMALL = 0.2
"""Small parameters up to which the page counts the entries apart."""
PAGE = Path(__file__).parents[1] / "docs" / "predictions.md"


class Setting(NamedTuple):
    """One row of the table; rho above 0 is one-sample SAM, without label noise."""

    dim: int
    width: int
    lr: float
    sigma: float
    rho: float = 0.0

    @property
    def dynamics(self) -> lnsim.SGD | lnsim.SAM:
        """What the runs train by."""
        if self.rho:
            return lnsim.SAM(self.lr, self.rho)
        return lnsim.SGD(self.lr, lnsim.LabelNoise(self.sigma))

    def steps(self, folds: float) -> int:
        """The length of a run."""
        rate = 2 * self.lr * self.rho**2 if self.rho else (self.lr * self.sigma) ** 2
        return min(round(folds / rate), LONGEST)


class Error(NamedTuple):
    """How far one quantity is: root mean square over the course, and its standard error."""

    deviation: float
    standard: float
    met: bool
    within: bool


def settings(only: str) -> Iterator[Setting]:
    """The rows of the table `only`, noise or sam."""
    if only == "noise":
        grid = itertools.product((5, 20, 50), (300, 1000, 4000), (3e-4, 1e-3), (2.0, 4.0, 8.0))
        yield from (Setting(*values) for values in grid)
    else:
        for dim, width, lr, rho in itertools.product(
            (5, 20, 50), (300, 1000), (3e-4, 1e-3), (0.05, 0.1)
        ):
            yield Setting(dim, width, lr, 0.0, rho)


def compare(setting: Setting, folds: float, seeds: int) -> tuple[float, dict[str, Error]] | str:
    """The largest small parameter and every quantity's error, or why there is no prediction."""
    problem = gaussian_regression(SAMPLES, setting.dim, 0, test_samples=1000)
    network = ntk_init(setting.width, setting.dim, 0)
    steps = setting.steps(folds)
    every = max(1, steps // RECORDS)
    times = np.append(np.arange(0, steps, every), steps).astype(np.float64)
    try:
        prediction = cloud.predict(problem, network, setting.dynamics, times)
    except ValueError as error:
        return str(error)
    run = lnsim.simulate(
        problem, network, setting.dynamics, steps=steps, record_every=every, replicas=seeds
    )
    if np.any(run["diverged_at"] >= 0):
        return "a run diverged"
    assert np.array_equal(run.steps, times)
    errors = {name: _error(name, prediction[name], run[name], bound)
              for name, bound in BOUNDS.items()}  # fmt: skip
    return float(prediction.expansion.max()), errors


def _error(name: str, predicted: FloatArray, measured: FloatArray, bound: float) -> Error:
    """Of measured : (S, records) and predicted : (records,)."""
    groups = [[k] for k in range(1, len(predicted))]
    if name in NOISY:
        groups = [list(g) for g in np.array_split(np.arange(1, len(predicted)), WINDOWS)]
    of_seeds = np.stack([measured[:, group].mean(axis=1) for group in groups], axis=1)
    means = of_seeds.mean(axis=0)
    scale = np.ones_like(means) if name == "cosine_mean" else np.abs(means)
    standard = of_seeds.std(axis=0, ddof=1) / np.sqrt(len(of_seeds)) / scale
    of_theory = np.array([predicted[group].mean() for group in groups])
    deviation = np.abs(of_theory - means) / scale
    met = bool(np.all(deviation <= bound + ERRORS * standard))
    rms, error = (float(np.sqrt(np.mean(values**2))) for values in (deviation, standard))
    return Error(rms, error, met, rms <= bound)


def row(setting: Setting, result: tuple[float, dict[str, Error]] | str) -> str:
    """A line of the table."""
    strength = f"ρ = {setting.rho:g}" if setting.rho else f"{setting.sigma:g}"
    head = f"| {strength} | {setting.lr:g} | {setting.width} | {setting.dim} |"
    if isinstance(result, str):
        return f"{head} - |" + " - |" * len(HEADS)
    expansion, errors = result
    cells = []
    for name, error in errors.items():
        text = f"{100 * error.deviation:.1f} ± {100 * error.standard:.1f}"
        if name == "cosine_mean":
            text = f"{error.deviation:.3f} ± {error.standard:.3f}"
        cells.append(text if error.met else f"**{text}**")
    return f"{head} {expansion:.2g} | " + " | ".join(cells) + " |"


def header(first: str) -> str:
    """The first two lines of a table."""
    names = (first, "lr", "m", "d", "small parameter", *HEADS)
    return "| " + " | ".join(names) + " |\n" + "| ---: " * len(names) + "|"


TEXT = """# Predictions beside runs

The law of the cloud (`lnsim/theory/cloud.py`) predicts the course of training from the start and
the data, without simulation and without a fitted parameter.  This page holds it beside runs.  It is
made by

    python bench/predictions.py

Each row is {seeds} seeds of the noise on one problem (n = 200) and one network.  A run takes
{folds:g} times the steps in which ‖W‖² falls by e at first, 1/(lr σ)² (under SAM 1/(2 lr ρ²)), and
at most {longest:,}.  An entry is the root mean square, over the records of the whole course, of
predicted minus measured over measured, in per cent; of the mean abs cos it is the difference.
After ± stands the standard error of the measured mean, which a perfect prediction would have as its
error.  Of the losses and of tr H, whose records are noisy, the means over {windows} windows of time
are compared.

The bounds are 1 % for the mean norm, 2 % for ‖W‖², alignment and tr H, 0.02 for the mean of abs
cos, 3 % for the distance of the kernel, 5 % for the losses.  An entry is bold where the prediction
is at some record further away than its bound and {errors} standard errors.  The small parameter is
equation (4) of `lnsim/theory/modes.py`, the largest of the course.  Rows of dashes are refused, the
first for: {refused}.

{met} of {count} entries meet their bounds in this sense; {met_small} of {count_small} where the
small parameter is at most {small:g}.  The root mean square alone, noise of the runs included, is
within the bound in {within} of all.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--folds", type=float, default=6.0, help="length of a run")
    parser.add_argument("--only", choices=("noise", "sam"), help="one of the two tables")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    tables, refused, errors, small = [], [], [], []
    for only, first in (("noise", "σ"), ("sam", "ρ")):
        if arguments.only not in (None, only):
            continue
        lines = [header(first)]
        for setting in settings(only):
            result = compare(setting, arguments.folds, arguments.seeds)
            if isinstance(result, str):
                refused.append(result)
            else:
                errors += list(result[1].values())
                small += list(result[1].values()) if result[0] <= SMALL else []
            lines.append(row(setting, result))
            print(lines[-1], flush=True)
        title = "Label noise SGD" if only == "noise" else "One-sample SAM"
        tables.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    if arguments.only is None:
        text = TEXT.format(
            seeds=arguments.seeds, folds=arguments.folds, longest=LONGEST, windows=WINDOWS,
            errors=ERRORS,
            refused=refused[0] if refused else "there is none", count=len(errors),
            met=sum(error.met for error in errors), small=SMALL, count_small=len(small),
            met_small=sum(error.met for error in small), within=sum(e.within for e in errors),
        )  # fmt: skip
        PAGE.write_text(text + "\n" + "\n".join(tables), encoding="utf-8")
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
