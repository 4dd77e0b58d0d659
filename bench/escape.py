"""The predicted escape of every neuron against replicas, over 54 settings; writes docs/escape.md.

    python -m bench.escape [--replicas 32] [--again 256] [--page docs/escape.md] [--keep FOLDER]

n = 200 samples and label noise +-sigma, one sample a step, as in the figures; seed 0 of the data
and of the network.  A neuron's measured escape is the median of `lazy_escape` over the replicas.
Runs end when the last of 99 in 100 neurons should have left by the crude estimate
|D| = (lr^2/2) (sigma^2 + 2 L) |Sigma w| t, half as late again.  With --keep the measured escapes
are saved, and taken from there the next time.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lnsim
from lnsim.base.checks import FloatArray
from lnsim.theory import escape, modes

SIGMAS, RATES, WIDTHS, DIMS = (2.0, 4.0, 8.0), (3e-4, 1e-3), (300, 1000, 4000), (5, 20, 50)
MEDIAN_WITHIN, BAND_WITHIN = 0.05, 0.15
NOISY = 0.02
"""The error of measured medians from which on rows that fail are measured again."""
SMALL = 0.1
"""The small parameter up to which the prediction is held to these."""


@dataclass(frozen=True)
class Setting:
    """A setting, its problem and its network."""

    sigma: float
    lr: float
    width: int
    dim: int

    @property
    def problem(self) -> lnsim.Problem:
        return lnsim.gaussian_regression(200, self.dim)

    @property
    def network(self) -> lnsim.Network:
        return lnsim.ntk_init(self.width, self.dim)

    @property
    def dynamics(self) -> lnsim.SGD:
        return lnsim.SGD(self.lr, lnsim.LabelNoise(self.sigma))

    @property
    def steps(self) -> int:
        """The steps after which nearly all neurons have left; 0 without a stationary loss."""
        W, a, Sigma = self.network.W, self.network.a, self.problem.gram
        A = W.T @ W + a @ a * np.eye(self.dim)
        loss = modes.quasi_stationary_loss(A, Sigma, self.lr, self.sigma)
        if math.isinf(loss):
            return 0
        pace = self.lr**2 / 2 * (self.sigma**2 + 2 * loss) * np.linalg.norm(W @ Sigma, axis=1)
        return int(1.5 * np.quantile(1 / (math.sqrt(self.width) * pace), 0.99))

    def measured(self, replicas: int, keep: Path | None) -> FloatArray:
        """The escapes, (replicas, width), infinite where a neuron is lazy to the end."""
        name = f"escape-{replicas}-{self.sigma:g}-{self.lr:g}-{self.width}-{self.dim}.npy"
        file = None if keep is None else keep / name
        if file is not None and file.exists():
            return np.asarray(np.load(file), dtype=np.float64)
        steps = self.steps
        run = lnsim.simulate(
            self.problem, self.network, self.dynamics, steps=steps, record_every=steps,
            replicas=replicas, linearized=False, tracked=0, clouds=False, measures="none",
        )  # fmt: skip
        escapes = run["lazy_escape"].astype(np.float64)
        escapes[escapes < 0] = np.inf
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, escapes.astype(np.float32))
        return escapes


@dataclass(frozen=True)
class Row:
    """A setting with its result, or the reason why there is none."""

    setting: Setting
    reason: str = ""
    measured: float = math.nan  # the median over neurons, steps
    error: float = math.nan  # standard error of a neuron's measured median, median over neurons
    ratio: tuple[float, float, float] = (math.nan,) * 3  # 5th percentile, median, 95th
    expansion: float = math.nan
    excess: float = math.nan
    seconds: float = math.nan
    replicas: int = 0

    @property
    def median_holds(self) -> bool:
        return abs(self.ratio[1] - 1) <= MEDIAN_WITHIN

    @property
    def band_holds(self) -> bool:
        return self.ratio[0] >= 1 - BAND_WITHIN and self.ratio[2] <= 1 + BAND_WITHIN

    @property
    def cells(self) -> list[str]:
        s = self.setting
        first = [f"{s.sigma:g}", f"{s.lr:g}", f"{s.width:,}", str(s.dim)]
        if self.reason:
            return [*first, *[""] * 7]
        low, middle, high = (f"{ratio:.3f}" for ratio in self.ratio)
        middle = middle if self.median_holds else f"**{middle}**"
        band = f"{low} to {high}" if self.band_holds else f"**{low} to {high}**"
        return [
            *first, f"{self.expansion:.4f}", f"{self.excess:.2f}", f"{self.measured:,.0f}",
            f"{self.error:.1%}", middle, band, f"{self.seconds:.1f}",
        ]  # fmt: skip


def row(setting: Setting, replicas: int, keep: Path | None) -> Row:
    """Predicts and measures one setting."""
    if not setting.steps:
        return Row(setting, reason="no stationary loss: lr tr(A Sigma) is above 2")
    escapes = setting.measured(replicas, keep)
    problem, network = setting.problem, setting.network
    start = time.perf_counter()
    predicted = escape.predict(problem, network, setting.dynamics, setting.steps)
    seconds = time.perf_counter() - start
    measured = np.median(escapes, axis=0)
    both = np.isfinite(measured) & (predicted.median > 0)
    low, high = np.quantile(escapes[:, both], [0.16, 0.84], axis=0, method="nearest")
    spread = (high - low) / 2 / measured[both]
    ratio = np.quantile(predicted.median[both] / measured[both], [0.05, 0.5, 0.95])
    return Row(
        setting,
        measured=float(np.median(measured)),
        error=1.25 * float(np.median(spread)) / math.sqrt(replicas),
        ratio=(float(ratio[0]), float(ratio[1]), float(ratio[2])),
        expansion=predicted.expansion,
        excess=predicted.excess,
        seconds=seconds,
        replicas=replicas,
    )


HEADS = (
    "σ", "η", "m", "d", "small parameter", "excess", "measured, steps", "its error",
    "predicted / measured", "5th to 95th percentile", "seconds",
)  # fmt: skip


def page(rows: list[Row], again: list[Row], replicas: int) -> str:
    """The page, in Markdown; `again`: rows measured with more replicas."""
    judged = [r for r in rows if not r.reason]
    better = {r.setting: r for r in again}
    best = [better.get(r.setting, r) for r in judged]
    parts = [
        "# When neurons leave the lazy regime: prediction and measurement",
        "`lnsim.theory.escape` predicts for every neuron the median over the noise of the step at"
        " which it is first seen outside the lazy radius 1/√m, from the initial weights and the"
        " data alone. No parameter is fitted and nothing is simulated. The docstrings of"
        " `escape.py`, `displacement.py`, `fit_noise.py` and `passage.py` have the derivation."
        " This page is written by `python -m bench.escape`.",
        f"The table has 54 settings with n = 200 samples. Measured is the median of `lazy_escape`"
        f" over {replicas} replicas for each neuron, and the column the median over neurons."
        " Its error is the standard error of the measured median of one neuron, from the spread"
        " between replicas. All neurons of a replica share its noise, so that it moves their"
        " ratios together. Ratios are of predicted over measured, quantiles over the neurons."
        f" Bold: the median is off by more than {MEDIAN_WITHIN:.0%}, or the band leaves"
        f" ±{BAND_WITHIN:.0%}. Seconds are those of a prediction, on one thread of a busy machine.",
        *_verdicts(judged, best, len(rows) - len(judged)),
        _table(rows),
        *_measured_again(again),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Row]) -> str:
    head = [f"| {' | '.join(HEADS)} |", f"|{' ---: |' * len(HEADS)}"]
    return "\n".join([*head, *(f"| {' | '.join(r.cells)} |" for r in rows)])


def _measured_again(again: list[Row]) -> list[str]:
    if not again:
        return []
    return [
        f"Where a bold row's measured medians had an error of {NOISY:.0%} or more, they were"
        f" measured again, with {again[0].replicas} replicas:",
        _table(again),
    ]


def _verdicts(judged: list[Row], best: list[Row], unsettled: int) -> list[str]:
    """Where the prediction holds and where not, in sentences; `best`: the better measured rows."""
    small = [r for r in best if r.expansion <= SMALL and math.isfinite(r.excess)]
    large = [r for r in best if r.expansion > SMALL and math.isfinite(r.excess)]
    heavy = [r for r in best if math.isinf(r.excess)]
    worst = max(small, key=lambda r: abs(r.ratio[1] - 1))
    again = sum(r not in judged for r in best)
    parts = [
        f"**Where it holds.** Of the {len(judged)} settings with a stationary loss,"
        f" {_count(judged)}"
        + (f"; with the {again} rows that were measured again, {_count(best)}. " if again else ". ")
        + f"Where the small parameter is at most {SMALL:g} and the variance of the loss is finite,"
        f" {len(small)} settings, {_count(small)}. The largest error of a median is"
        f" {abs(worst.ratio[1] - 1):.1%} there ({_name(worst)}).",
    ]
    if large:
        parts.append(
            f"**Where the small parameter is above {SMALL:g}**, {_count(large)}: "
            + "; ".join(f"{_name(r)}, parameter {r.expansion:.2f}: {_ratio(r)}" for r in large)
            + "."
        )
    if heavy:
        parts.append(
            "**Where the variance of the loss is infinite** (excess infinite), it fails: "
            + "; ".join(f"{_name(r)}: {_ratio(r)}" for r in heavy)
            + ". With η tr(AΣ) above 1 and few dimensions the residuals have so heavy a tail that"
            " the fourth moment does not exist. Most runs have less noise than the mean, so that"
            " the median comes later than predicted. The error shrinks as runs get longer (small"
            " σ), as the tail then averages out. Whatever the small parameter says, the excess"
            " warns of it: `cloud.predict` then gives no escapes, and `escape.predict` an infinite"
            " excess."
        )
    parts.append(
        f"**Where there is no prediction** ({unsettled} settings, at m = 4,000 and η = 0.001), η"
        " is too large for a stationary loss: the prediction refuses with a ValueError."
    )
    return parts


def _count(rows: list[Row]) -> str:
    medians, bands = sum(r.median_holds for r in rows), sum(r.band_holds for r in rows)
    return (
        f"the median is within {MEDIAN_WITHIN:.0%} in {medians} and the band within"
        f" {BAND_WITHIN:.0%} in {bands}"
    )


def _ratio(r: Row) -> str:
    return f"median {r.ratio[1]:.3f}, band {r.ratio[0]:.3f} to {r.ratio[2]:.3f}"


def _name(r: Row) -> str:
    s = r.setting
    return f"σ = {s.sigma:g}, η = {s.lr:g}, m = {s.width:,}, d = {s.dim}"


def main() -> None:
    """Measures, predicts, prints the table line by line, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument("--again", type=int, default=256, metavar="REPLICAS")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    rows = []
    for sigma, lr, width, dim in itertools.product(SIGMAS, RATES, WIDTHS, DIMS):
        rows.append(row(Setting(sigma, lr, width, dim), arguments.replicas, arguments.keep))
        print(" | ".join(rows[-1].cells), rows[-1].reason, flush=True)
    again = [
        row(r.setting, arguments.again, arguments.keep)
        for r in rows
        if arguments.again and r.error >= NOISY and not (r.median_holds and r.band_holds)
    ]
    for r in again:
        print("again", " | ".join(r.cells), flush=True)
    if arguments.page is not None:
        arguments.page.write_text(page(rows, again, arguments.replicas), encoding="utf-8")


if __name__ == "__main__":
    main()
