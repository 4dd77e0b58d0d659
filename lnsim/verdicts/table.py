"""The theory of one setting as lines of text, with the measurements of a run if there is one.

The columns are the predictions, the measurements of a run if there is one, and a remark:

    holds         the run satisfies the statement; also "does not hold" and "not reached"
    vacuous       the statement says nothing here; the reason is in the line below, for Lemmas 5 and
                  6 at the start of Phase II, which is their premise
    unstated      known up to a constant that the paper leaves out
    not covered   not derived for this configuration; the head of the table says what is missing

Condition 1, which the paper assumes throughout, is judged once, at the top: its failure alone does
not make a later row vacuous.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, replace

import numpy as np

from lnsim.experiments._synthetic import first_below, series
from lnsim.experiments.case import LARGEST_EXPANSION, Case, first_replica
from lnsim.references.credits import whose
from lnsim.run.times import WITHIN
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import modes
from lnsim.verdicts import judge, speed
from lnsim.verdicts.judge import FAILS, HOLDS, NOT_REACHED, VACUOUS, Statement

WIDTH = 80
LABEL, NUMBER = 36, 14
SHARES = (0.0, 0.02, 0.1, 0.3, 1.0)
"""Times at which |W|_F^2 is listed, as shares of the length of the run."""


def table(case: Case) -> list[str]:
    """The lines of the table for a case, with measurements if it has a run.

    Raises ValueError for sizes out of range, and for lr of 1 or more.
    """
    columns = ("predicted",) if case.trajectory is None else ("predicted", "measured")
    speeds = [_Row(label, _number(value)) for label, value in speed.rows(case)]
    of_speeds = ["law-of-sam"] if speeds else []
    return [
        *_heading(case),
        *_section("Condition 1", ("value", "threshold"), _conditions(case)),
        *_section("Times by the law of the cloud", columns, _times(case)),
        *_section("The paper's bounds on times", ("bound", *columns[1:]), _bounds(case)),
        *_section("Bounds of the lemmas", columns, _lemmas(case)),
        *_section("Law of modes, beyond the paper", columns, _modes(case)),
        *(_section(speed.TITLE, columns, speeds) if speeds else []),
        *_credit("law-of-the-cloud", "law-of-modes", "stationary-state", *of_speeds),
    ]


def _credit(*statements: str) -> list[str]:
    """What is others' and what is ours of statements beyond the paper, and how to cite it."""
    shares = [
        textwrap.fill(share, WIDTH, break_on_hyphens=False) for share in whose(*statements).values()
    ]
    lines = "\n".join(["", *shares, f"BibTeX: lnsim cite {' '.join(statements)}"])
    return lines.split("\n")


@dataclass(frozen=True)
class _Row:
    label: str
    predicted: str = "-"
    measured: str = "-"
    remark: str = ""
    note: str = ""


def _heading(case: Case) -> list[str]:
    config = case.config
    lines = [
        f"{case.experiment}: n = {config.samples}, d = {config.dim}, m = {config.width}, "
        f"lr = {config.lr:g}, sigma = {config.sigma:g}, batch size {config.batch_size}"
        + (f", rho = {case.rho:g}" if case.rho else ""),
        f"|theta*| = {case.theta_norm:.4g}, seed {config.seed}, {config.steps:,} steps",
    ]
    lines += [] if case.trajectory is None else [f"the run {case.trajectory.status}"]
    if case.gaps:
        but = "" if isinstance(case.whole, str) else ", except for times and speed"
        lines.append(f"not covered{but}: {', '.join(case.gaps)}")
    return [part for line in lines for part in textwrap.wrap(line, WIDTH)]


def _section(title: str, columns: tuple[str, ...], rows: list[_Row]) -> list[str]:
    lines = ["", f"{title:<{LABEL}}" + "".join(f"{column:>{NUMBER}}" for column in columns)]
    for row in rows:
        numbers = (row.predicted, row.measured)[: len(columns)]
        text = f"  {row.label:<{LABEL - 2}}" + "".join(f"{text:>{NUMBER}}" for text in numbers)
        lines.append(f"{text}  {row.remark}".rstrip())
        lines += textwrap.wrap(row.note, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _conditions(case: Case) -> list[_Row]:
    remarks = {True: HOLDS, False: FAILS, None: "unstated"}
    return [
        _Row(f"{c.name}  {c.statement}", _number(c.value), _number(c.threshold), remarks[c.holds],
             c.note)
        for c in case.conditions
    ]  # fmt: skip


TIMES = {
    "first_escape": "first neuron not lazy",
    "median_escape": "median neuron not lazy",
    "last_escape": "last neuron not lazy",
    "half_norm": "mean |w_i| half of its start",
    "alignment": "mean |cos| half of its way to 1",
    "convergence": "mean |cos| nine tenths of it",
    "rest": f"|W|_F^2 within {WITHIN:.0%} of that at rest",
}
"""What the times of run/times.py are called in the table."""
EXTREMES = "of the neurons' medians over the noise; first and last of one run are more extreme"
"""What the predicted escapes are, beside those of a run."""


def _times(case: Case) -> list[_Row]:
    """The times by the law of the cloud, whose premises are not those of the paper."""
    whole, times = case.whole, case.predicted_times
    rows = []
    for name, label in TIMES.items():
        predicted = math.nan if times is None else vars(times)[name]
        if case.trajectory is None:
            rows.append(_Row(label, _steps(predicted)))
            continue
        measured = vars(case.measured_times())[name]
        reached = measured if math.isfinite(measured) else math.nan
        row = replace(_compared(label, predicted, reached), predicted=_steps(predicted))
        missing = NOT_REACHED if math.isinf(measured) else row.remark
        note = EXTREMES if name == "first_escape" and math.isfinite(predicted) else ""
        rows.append(replace(row, measured=_steps(reached), remark=missing, note=note))
    rows = [row for row in rows if (row.predicted, row.measured, row.remark) != ("-", "-", "")]
    if isinstance(whole, str):
        return [*rows, _Row("law of the cloud", remark="no prediction", note=whole)]
    if whole.prediction.unescaped:
        reason = f"neurons not lazy: {whole.prediction.unescaped}"
        rows.append(_Row("law of the cloud", remark="no escapes", note=reason))
    if whole.beyond:
        rows.append(_Row("predicted up to", _steps(whole.until), note=whole.beyond))
    return rows


def _bounds(case: Case) -> list[_Row]:
    lemmas = judge.descent(case.config.lr, case.theta_norm)
    aligning, converged = case.phase("alignment"), case.phase("convergence")
    premise = [""] if case.premise else []  # the row of Phase II gives the reason
    printed, linearized = (
        _time(case, label, Statement("Lemma 5", "at most", bound, premise), converged - aligning,
              since=aligning)
        for label, bound in (
            ("T2: aligned, as printed (Lemma 5)", lemmas.aligned),
            ("T2: aligned, linearised growth", lemmas.aligned_linearized),
        )
    )  # fmt: skip
    if case.trajectory is not None:
        linearized = replace(linearized, note="measured from half of the way to nine tenths")
    rows = [
        _escape(case),
        _threshold(case),
        printed,
        linearized,
        _Row("T3: converged, after T2 (Lemma 6)", _steps(lemmas.converging),
             remark=VACUOUS if premise else ""),
    ]  # fmt: skip
    return [_uncovered(row) if case.gaps and row.predicted != "-" else row for row in rows]


def _escape(case: Case) -> _Row:
    """Theorem 2 against the last neuron's escape."""
    row = _time(
        case, "T1: no neuron lazy (Theorem 2)", judge.theorem_2(case), case.phase("last_escape")
    )
    uncovered = case.config.width > 1 and case.beyond_noise
    return _uncovered(row, case.beyond_noise) if uncovered else row


def _threshold(case: Case) -> _Row:
    """The start of Phase II, as the paper defines it, against the largest weight at the end."""
    statement = judge.phase_two(case)
    label, level = "Phase II: all |w_i|, |a_i| at most", _number(statement.predicted)
    row = _Row(label, level, note=case.premise)
    if case.finished is None:
        return row
    W, a = case.finished.final.W, case.finished.final.a
    largest = float(max(np.linalg.norm(W, axis=1).max(), np.abs(a).max()))
    remark = "reached" if statement.met(largest) else NOT_REACHED
    return replace(row, measured=_number(largest), remark=remark)


def _time(
    case: Case, label: str, statement: Statement, measured: float, since: float = 0.0
) -> _Row:
    """A claimed upper bound on a time from step `since` on, against the measured time."""
    if statement.after(case.length):
        statement = replace(statement, vacuous=[*statement.vacuous, "longer than the run"])
    length = None if case.trajectory is None else case.length
    remark = statement.remark_on_time(measured, length, since)
    reasons = "; ".join(filter(None, statement.vacuous))
    return _Row(label, _steps(statement.predicted), _steps(measured), remark, reasons)


def _lemmas(case: Case) -> list[_Row]:
    lemmas = judge.descent(case.config.lr, case.theta_norm)
    nonpositive, decrease = judge.lemma_3(case)
    fall = f"P(dW_i <= {0 - case.lemma_3.decrease:.3g})"
    rows = [
        _lemma_3(case, "P(dW_i <= 0)", nonpositive, "lemma_3_nonpositive"),
        _lemma_3(case, fall, decrease, "lemma_3_decrease"),
        _order(case, "Lemma 5: order of 1 - |cos|", lemmas.misalignment, _misalignment(case)),
        _order(case, "Lemma 6: order of |theta - theta*|", lemmas.distance,
               case.last("interpolator_distance")),
    ]  # fmt: skip
    rows = [_uncovered(row) for row in rows] if case.gaps else rows
    return [*rows[:2], _lemma_4(case), *rows[2:]]


def _lemma_3(case: Case, event: str, statement: Statement, name: str) -> _Row:
    """Lemma 3 against the shares at the start, which are recorded with the norm ledger."""
    row = _Row(f"Lemma 3: {event} >=", _number(statement.predicted))
    if case.beyond_noise:
        return _uncovered(row, case.beyond_noise)
    share = None
    if case.trajectory is not None and name in case.trajectory.arrays:
        share = float(series(case.trajectory, name)[0])
        row = replace(row, measured=_number(share))
    return replace(row, remark=statement.remark(share), note="; ".join(statement.vacuous))


def _lemma_4(case: Case) -> _Row:
    """Lemma 4 against the first record at which the mean squared norm is at most its level."""
    lemma, run = case.lemma_4, case.trajectory
    reasons = ["it is about the oscillation simulation"] if case.experiment != "oscillation" else []
    if not judge.of_lemma_4_width(case):
        reasons.append(f"it requires a width of {lemma.premise_width:.3g}")
    first = math.nan if run is None else first_below(run, lemma.level)
    label = f"Lemma 4: mean |w|^2 <= {lemma.level:.3g} at"
    return _time(case, label, replace(judge.lemma_4(case), vacuous=reasons), first)


def _order(case: Case, label: str, order: float, measured: float) -> _Row:
    """A bound known up to a constant, with the smallest constant for which it holds."""
    remark = VACUOUS if case.premise else "unstated"
    note = f"it holds with a constant of {measured / order:.3g}" if measured >= 0 else ""
    return _Row(label, _number(order), _number(measured), remark, note)


def _misalignment(case: Case) -> float:
    """The largest 1 - |cos(w_i, theta_star)| of a neuron at the end."""
    if case.finished is None:
        return math.nan
    W = case.finished.final.W
    norms = np.linalg.norm(W, axis=1) * case.theta_norm
    return float(1 - (np.abs(W @ case.start.theta_star) / np.where(norms > 0, norms, np.inf)).min())


def _modes(case: Case) -> list[_Row]:
    curve = case.curve if not case.gaps else ""
    rate = case.phase("decay_rate")
    rows = [_Row("Phase I decay rate of |W|_F^2", measured=_number(rate)), *_rest(case)]
    if case.gaps:
        return [_uncovered(row) for row in rows]
    if isinstance(curve, str):
        return [*rows, _Row("|W|_F^2 over the run", remark="no prediction", note=curve)]
    rows[0] = _compared(rows[0].label, _predicted_rate(case.finished, curve), rate)
    small = float(curve.expansion.max())
    judgement = "small" if small <= 0.2 else "not small"
    if small >= LARGEST_EXPANSION:
        judgement = "no prediction"
    return [
        *rows,
        *_course(case, curve),
        _Row("largest small parameter (modes.py)", _number(small), remark=judgement),
    ]


def _rest(case: Case) -> list[_Row]:
    """The norms predicted at rest against those at the end."""
    predicted, note = case.stationary, ""
    if case.config.sigma == 0:
        predicted, note = (math.nan, math.nan), "no label noise, hence no decay"
    first, second = case.last("norm_squared"), case.last("second_layer_norm") ** 2
    return [
        _compared("|W|_F^2 at rest, and at the end", predicted[0], first),
        replace(_compared("|a|^2 at rest, and at the end", predicted[1], second), note=note),
    ]


def _course(case: Case, curve: modes.ModeCurve) -> list[_Row]:
    """|W|_F^2 at a few records, and its largest deviation from the curve."""
    records = np.unique(np.searchsorted(curve.steps, np.array(SHARES) * curve.steps[-1]))
    run, label = case.trajectory, "|W|_F^2 at step "
    measured = np.full(curve.steps.shape, np.nan) if run is None else series(run, "norm_squared")
    rows = [
        _compared(label + _steps(curve.steps[k]), float(curve.norm_squared[k]), float(measured[k]))
        for k in records
    ]
    if case.finished is None:
        return rows
    worst, record = judge.worst_deviation(measured, curve.norm_squared)
    note = f"at step {_steps(curve.steps[record])}"
    return [*rows, _Row("worst deviation of |W|_F^2", "-", f"{worst:.2%}", note=note)]


def _predicted_rate(run: Trajectory | None, curve: modes.ModeCurve) -> float:
    """The decay rate of phases.py, computed from the curve instead of the recorded norms.

    Without a run, which determines the end of Phase I, the mean rate until the curve falls by e.
    """
    steps, norms = curve.steps, curve.norm_squared
    if run is not None:
        series = np.broadcast_to(norms, run["norm_squared"].shape)
        as_run = replace(run, arrays={**run.arrays, "norm_squared": series})
        return first_replica(as_run.phases().decay_rate)
    if len(steps) < 2:
        return math.nan
    fallen = np.flatnonzero(norms <= norms[0] / math.e)
    k = int(fallen[0]) if fallen.size else len(steps) - 1
    return math.log(norms[0] / norms[k]) / float(steps[k] - steps[0])


def _uncovered(row: _Row, note: str = "") -> _Row:
    return replace(row, predicted="-", remark="not covered", note=note)


def _compared(label: str, predicted: float, measured: float) -> _Row:
    """A prediction and its measurement, with their relative difference or ratio as the remark."""
    remark = ""
    if math.isfinite(measured) and math.isfinite(predicted) and predicted != 0:
        ratio = measured / predicted
        remark = f"{round(ratio - 1, 3) + 0:+.1%}" if ratio < 10 else f"x {ratio:.3g}"
    return _Row(label, _number(predicted), _number(measured), remark)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _steps(value: float) -> str:
    """A time in steps, as text."""
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if 100 <= value < 1e9 else _number(value)
