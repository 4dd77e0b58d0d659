"""SAM beside its theory: the speed of one-sample SAM, its label noise, and full-batch SAM.

    python bench/sam_speed.py          docs/sam.md: about five minutes on one core

The speed is that in the middle of Phase I: the mean rate of log |W|_F^2 between its passages
through UPPER and LOWER of its start.  The label noise that is as fast is predicted as the sigma
whose own course takes as long between the passages.  It is measured by a run at that sigma:
sigma_eff = sigma sqrt(rate of SAM/rate of the label noise).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lnsim
from lnsim.base.checks import FloatArray
from lnsim.experiments.sam import Config
from lnsim.theory import cloud, kicks, sam
from lnsim.theory.axes import Data

UPPER, LOWER = 0.7, 0.4
RECORDS = 400
MARGIN = 2.0
"""A run is this much longer than the law's passage."""
SAMPLES, DIM, WIDTH = 200, 20, 1000
RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RATES = (3e-4, 1e-3)
FULL = ((200, 20, 1e-3, 0.1), (60, 20, 1e-2, 0.05), (50, 5, 4e-3, 0.1), (20, 30, 2e-3, 0.1))
"""n, d, lr, rho of the full-batch rows."""
ONE_HEAD = (
    "lr", "ρ", "lr tr H", "shaking v", "small parameter", "decay rate", "law", "first mode",
    "last mode", "closed", "σ_eff", "law", "closed", "its small parameter",
)  # fmt: skip
FULL_HEAD = (
    "n", "d", "lr", "ρ", "step", "\\|W\\|²", "law", "λ_max", "law", "tr H", "law",
    "small parameter", "seconds",
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "docs" / "sam.md"

Dynamics = lnsim.SAM | lnsim.SGD


class Setting(NamedTuple):
    """The problem, the network at the start, and the axes of the modes."""

    problem: lnsim.Problem
    network: lnsim.Network

    @classmethod
    def of(cls, samples: int, dim: int) -> Setting:
        problem = lnsim.gaussian_regression(samples, dim, 0, test_samples=10)
        return cls(problem, lnsim.ntk_init(WIDTH, dim, 0))

    @property
    def start(self) -> float:
        """|W|_F^2."""
        return float(np.sum(self.network.W**2))


class Passage(NamedTuple):
    """Between the passages through UPPER and LOWER, of the law or of a run."""

    begin: float
    end: float
    rate: float  # of |W|_F^2
    first: float  # of the mode of the largest variance
    last: float  # of that of the smallest one


def passage(times: FloatArray, norms: FloatArray, modes: FloatArray, start: float) -> Passage:
    """Of norms : (T,) and modes : (2, T); NaN where |W|_F^2 does not fall to LOWER."""
    if norms.min() > LOWER * start:
        return Passage(*[math.nan] * 5)
    fallen = -np.log(norms / start)
    at = np.interp(-np.log([UPPER, LOWER]), np.maximum.accumulate(fallen), times)
    logs = [np.interp(at, times, np.log(mode)) for mode in modes]
    span = float(at[1] - at[0])
    rates = [float(log[0] - log[1]) / span for log in logs]
    return Passage(float(at[0]), float(at[1]), math.log(UPPER / LOWER) / span, *rates)


def predicted(setting: Setting, dynamics: Dynamics, guess: float) -> tuple[Passage, FloatArray]:
    """The law's passage and its small parameters; `guess` is a rate of |W|_F^2."""
    end = 2.0 / guess
    while True:
        times = np.linspace(0, end, RECORDS + 1)
        law = cloud.predict(*setting, dynamics, times)
        norms = law["norm_squared"]
        if norms[-1] <= LOWER * setting.start:
            squares = law.mean.squares
            modes = np.stack([squares[:, 0, 0], squares[:, -1, -1]])
            found = passage(times, norms, modes, setting.start)
            return found, law.expansion[times <= found.end]
        end *= 2


def measured(setting: Setting, dynamics: Dynamics, law: Passage, seeds: int) -> list[Passage]:
    """The passages of replicas, each on its own."""
    basis = Data.of(setting.problem.X).basis
    every = max(1, round(MARGIN * law.end / RECORDS))

    def mode(k: int) -> Callable[[lnsim.Network], float]:
        return lambda network: float(np.sum((network.W @ basis[:, k]) ** 2))

    run = lnsim.simulate(
        *setting, dynamics, steps=RECORDS * every, record_every=every, replicas=seeds, tracked=0,
        observables={"mode_first": mode(0), "mode_last": mode(-1)},
        measures="none", linearized=False,
    )  # fmt: skip
    modes = np.stack([run["mode_first"], run["mode_last"]], axis=1)
    steps = run.steps.astype(np.float64)
    return [
        passage(steps, norms, of_modes, setting.start)
        for norms, of_modes in zip(run["norm_squared"], modes, strict=True)
    ]


def mean(passages: list[Passage], name: str) -> tuple[float, float]:
    """The mean over the replicas and its relative standard error."""
    values = np.array([getattr(each, name) for each in passages])
    average = float(values.mean())
    return average, float(values.std(ddof=1)) / math.sqrt(len(values)) / average


def equal_noise(
    setting: Setting, lr: float, law: Passage, guess: float
) -> tuple[float, Passage, FloatArray]:
    """The sigma whose course takes as long between the passages as `law`, and its prediction."""
    sigma = guess
    for _ in range(8):
        noisy, small = predicted(setting, lnsim.SGD(lr, lnsim.LabelNoise(sigma)), law.rate)
        ratio = math.sqrt(law.rate / noisy.rate)
        sigma *= ratio
        if abs(ratio - 1) < 1e-3:
            break
    return sigma / ratio, noisy, small


def one_sample(lr: float, rho: float, seeds: int) -> str:
    """A row of the first table."""
    setting = Setting.of(SAMPLES, DIM)
    dynamics = lnsim.SAM(lr, rho)
    head = f"| {lr:g} | {rho:g} |"
    try:
        law, expansion = predicted(setting, dynamics, 3 * lr * rho**2)
    except ValueError as refusal:
        return f"{head} {refusal} |" + " |" * 11
    runs = measured(setting, dynamics, law, seeds)
    trace = _trace(setting, dynamics, law)
    closed = sam.speed_law(lr, rho, trace)
    rate, error = mean(runs, "rate")
    cells = [f"{lr * trace:.2f}", f"{closed.shaking:.2f}", f"{expansion.max():.2g}",
             f"{rate:.3g} ± {100 * error:.1f} %", _off(law.rate, rate)]  # fmt: skip
    cells += [_off(getattr(law, name), mean(runs, name)[0]) for name in ("first", "last")]
    cells.append(_off(closed.rate * _level(setting, dynamics, law), rate))
    sigma, its_law, small = equal_noise(setting, lr, law, closed.sigma_eff)
    noisy = measured(setting, lnsim.SGD(lr, lnsim.LabelNoise(sigma)), its_law, seeds)
    of_noise, its_error = mean(noisy, "rate")
    found = sigma * math.sqrt(rate / of_noise)
    cells += [f"{found:.3g} ± {50 * math.hypot(error, its_error):.1f} %", f"{sigma:.3g}",
              f"{closed.sigma_eff:.3g}", f"{small.max():.2g}"]  # fmt: skip
    return f"{head} " + " | ".join(cells) + " |"


def _middle(setting: Setting, dynamics: Dynamics, law: Passage) -> cloud.Prediction:
    return cloud.predict(*setting, dynamics, [0.0, (law.begin + law.end) / 2])


def _trace(setting: Setting, dynamics: Dynamics, law: Passage) -> float:
    """tr(A Sigma) half of the time between the passages."""
    return float(_middle(setting, dynamics, law)["hessian_trace"][-1])


def _level(setting: Setting, dynamics: Dynamics, law: Passage) -> float:
    """lambda in the mean over W^T W at that time: the closed form is per lambda."""
    middle = _middle(setting, dynamics, law).mean
    P = middle.squares[-1]
    return float(P.diagonal() @ middle.data.spectrum / P.trace())


def _head(names: tuple[str, ...]) -> str:
    return "| " + " | ".join(names) + " |\n" + "| ---: " * len(names) + "|"


def _off(law: float, run: float) -> str:
    return f"{100 * (law / run - 1):+.1f} %"


def full_batch(samples: int, dim: int, lr: float, rho: float, steps: int) -> list[str]:
    """Rows of the second table: the law over the run, at three times."""
    setting, dynamics = Setting.of(samples, dim), lnsim.SAM(lr, rho, batch_size=0)
    run = lnsim.simulate(
        *setting, dynamics, steps=steps, record_every=steps // 100, tracked=0,
        measures="sharpness,hessian_trace", linearized=False,
    )  # fmt: skip
    begin = time.perf_counter()
    law = cloud.predict(*setting, dynamics, run.steps.astype(np.float64))
    names = ("norm_squared", "sharpness", "hessian_trace")
    values = [law[name] for name in names]
    seconds = time.perf_counter() - begin
    rows = []
    for k in (10, 30, 100):
        cells = [f"{run[name][k]:.4g} | {_off(value[k], run[name][k])}"
                 for name, value in zip(names, values, strict=True)]  # fmt: skip
        rows.append(
            f"| {samples} | {dim} | {lr:g} | {rho:g} | {run.steps[k]:,} | " + " | ".join(cells)
            + f" | {law.expansion[k]:.1g} | {seconds:.1f} |"
        )  # fmt: skip
    return rows


TEXT = """# SAM beside its theory

Made by

    python bench/sam_speed.py

with no fitted parameter anywhere.

## One sample a step

n = {samples}, d = {dim}, m = {width}, {seeds} seeds of the draws. The speed is the mean rate of
log |W|² while it falls from {upper:g} to {lower:g} of its start, the middle of Phase I, with the
standard error of the mean over the seeds. `law` is the law of the cloud
(`lnsim/theory/cloud.py`), predicted over measured; so are the modes of the largest and of the
smallest input variance. `closed` is the speed law 2 lr ρ² (1 + 2bv + v²) λ of
`lnsim/theory/sam.py`, at the middle of the course and with λ in the mean over WᵀW. σ_eff is the
standard deviation of the label noise that takes as long: measured, by the law, and in closed form.

{one_head}
{one_sample}

The leading order in lr, 2 lr ρ² λ (Wen, Ma, Li 2022), is the closed form at v = 0: it is too slow
by the factor 1 + 2bv + v². The closed form takes all samples alike and leaves out the second order
in the fluctuation; both are in the law. The law fails as its small parameter grows, equation (4) of
`lnsim/theory/modes.py`, here the largest up to the end of the passage. The label noise that is as
fast has a larger one, given last, and fails sooner. The law takes residuals as normal, as sums of
many kicks; at rest in few dimensions a single kick moves one by more than its spread.

The default of the experiment `sam` is ρ = {default:g}: at the figures' setting (lr = 10⁻³) it takes
|W|² to 1/e of its start in the same time as label noise of σ = 4 does (`radius_over_phase` gives
{over:.4g}). The contraction of one moment is as fast with ρ = {fitted:.3g} once the labels are
fitted, and with {rest:.3g} at rest. `lnsim theory` prints all three.

## All samples

A run is deterministic; the network is that above (m = {width}). `law` is the law of full-batch SAM
(`lnsim/theory/full_sam.py`), predicted over measured: the largest eigenvalues of the Hessian fall
together, by steepest descent of the largest one along the interpolators.

{full_head}
{full_batch}

λ_max of a run stands a little above the law's, as the largest eigenvalues take turns. Where the
least λ_max of all interpolators is reached the law ends, and refuses: what moves the network from
there on is of higher order in ρ. It refuses also where lr λ_max reaches 2.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100_000, help="steps of full-batch runs")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    rows = []
    for lr in RATES:
        for rho in RADII:
            rows.append(one_sample(lr, rho, arguments.seeds))
            print(rows[-1], flush=True)
    full = [row for setting in FULL for row in full_batch(*setting, arguments.steps)]
    print("\n".join(full), flush=True)
    problem, network = Setting.of(SAMPLES, DIM)
    noise = kicks.Descent(1e-3, 4.0)
    assert problem.theta_star is not None
    target = problem.X, problem.theta_star
    arguments.out.write_text(
        TEXT.format(
            samples=SAMPLES, dim=DIM, width=WIDTH, seeds=arguments.seeds, upper=UPPER, lower=LOWER,
            one_sample="\n".join(rows), full_batch="\n".join(full), default=Config().rho,
            one_head=_head(ONE_HEAD), full_head=_head(FULL_HEAD),
            over=sam.radius_over_phase(problem, network, noise),
            fitted=sam.matched_radius(sam.fitted(*target, network.W, network.a), noise),
            rest=sam.matched_radius(sam.at_rest(*target), noise),
        ),
        encoding="utf-8",
    )  # fmt: skip


if __name__ == "__main__":
    main()
