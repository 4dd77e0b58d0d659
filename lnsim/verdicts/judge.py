"""The statements of theory at one setting, and the rules that judge measurements by them.

`theory` (table.py) and `reproduce` (claims.py) take from here what each statement predicts, when it
is vacuous, and whether a measurement satisfies it; they differ in measurement and wording.  A claim
says that a number is at most, at least, or about a predicted number (within a stated share).

    holds              the measured number satisfies the claim
    does not hold      it does not
    vacuous            the statement says nothing here (for example, a probability is at least -1)
    premise not met    it does not, but a premise of the statement fails too
    not decided        the interval over seeds has numbers that satisfy it and numbers that do not
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.experiments.case import Case
from lnsim.theory import paper

HOLDS, FAILS, VACUOUS, UNMET = "holds", "does not hold", "vacuous", "premise not met"
NOT_REACHED, UNDECIDED = "not reached", "not decided"

BEYOND = "beyond the paper"

ALLOWANCE = "plus two standard errors where one exceeds a third of that"
"""The rule of `allowance`, in words that follow a bound."""


@dataclass(frozen=True)
class Verdict:
    """One claim and its verdict; a number that does not exist is NaN or infinite."""

    claim: str
    source: str
    relation: str
    predicted: float
    measured: float
    verdict: str
    rule: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<17}{self.source + ': ' if self.source else ''}{self.claim}"


@dataclass(frozen=True)
class Statement:
    """The statement of `source` that a number is "at most", "at least" or "about" `predicted`.

    `within`: the relative error that "about" allows.  `vacuous`: reasons why it says nothing here.
    """

    source: str
    relation: str
    predicted: float
    vacuous: Sequence[str] = ()
    within: float = 0.0

    def met(self, measured: float) -> bool:
        """Whether the measured number satisfies the statement; NaN does not."""
        return {
            "at most": measured <= self.predicted,
            "at least": measured >= self.predicted,
            "about": abs(measured - self.predicted) <= self.within * abs(self.predicted),
        }[self.relation]

    def after(self, length: float) -> bool:
        """Of a time: whether a run of `length` steps ends before it, and so cannot refute it."""
        return length < self.predicted < math.inf

    def verdict(
        self,
        claim: str,
        measured: float,
        rule: str,
        *,
        vacuous: str = "",
        unmet: str = "",
        note: str = "",
    ) -> Verdict:
        """The verdict on a measured number.

        `vacuous`: a further reason why the statement says nothing.  `unmet`: the premise that
        fails; it turns "does not hold" into "premise not met", and is part of the note.
        """
        reasons = [reason for reason in (*self.vacuous, vacuous) if reason]
        failed = UNMET if unmet else FAILS
        verdict = VACUOUS if reasons else HOLDS if self.met(measured) else failed
        text = ". ".join(p[:1].upper() + p[1:] for p in (*reasons, unmet, note) if p)
        predicted, measured = float(self.predicted), float(measured)
        return Verdict(claim, self.source, self.relation, predicted, measured, verdict, rule, text)

    def remark(self, measured: float | None) -> str:
        """The verdict in a word, or "" if nothing was measured and the statement is not vacuous."""
        if self.vacuous:
            return VACUOUS
        return "" if measured is None else HOLDS if self.met(measured) else FAILS

    def remark_on_time(self, measured: float, length: float | None, since: float = 0.0) -> str:
        """The verdict on a time from step `since` on; `length` is that of the run, None for no run.

        `measured` is NaN if the run did not reach it.
        """
        remark = ""
        if length is not None and not math.isnan(since):
            unfinished = math.isnan(measured) and length - since < self.predicted
            remark = HOLDS if self.met(measured) else NOT_REACHED if unfinished else FAILS
        if not self.vacuous:
            return remark
        return f"{HOLDS}, {VACUOUS}" if remark == HOLDS and self.predicted < math.inf else VACUOUS


def judge(
    claim: str,
    source: str,
    relation: str,
    predicted: float,
    measured: float,
    rule: str,
    *,
    within: float = 0.0,
    vacuous: str = "",
    unmet: str = "",
    note: str = "",
) -> Verdict:
    """The verdict on a claim that has no Statement of its own.  See Statement."""
    statement = Statement(source, relation, predicted, within=within)
    return statement.verdict(claim, measured, rule, vacuous=vacuous, unmet=unmet, note=note)


def failing(case: Case) -> str:
    """Names the assumptions of Condition 1 that fail; "" if none does."""
    names = [condition.name for condition in case.conditions if condition.holds is False]
    verb = "fails" if len(names) == 1 else "fail"
    return f"of Condition 1 {' and '.join(names)} {verb}" if names else ""


def _no_noise(case: Case) -> tuple[str, ...]:
    return ("no label noise",) if case.config.sigma == 0 else ()


def theorem_2(case: Case) -> Statement:
    """The step after which no neuron is lazy."""
    narrow = ("it needs a width of at least 2",) if case.config.width < 2 else ()
    return Statement("Theorem 2", "at most", case.escape_bound, narrow or _no_noise(case))


def lemma_3(case: Case) -> tuple[Statement, Statement]:
    """The probabilities that a lazy neuron's norm does not grow, and that falls by (sigma/4)^2."""
    lemma, noise = case.lemma_3, _no_noise(case)
    empty = ("no probability is below 0",) if lemma.vacuous else ()
    return (
        Statement("Lemma 3", "at least", lemma.nonpositive_probability, (*noise, *empty)),
        Statement("Lemma 3", "at least", lemma.decrease_probability, noise),
    )


def lemma_4(case: Case) -> Statement:
    """The step by which the mean squared norm has reached the lemma's level."""
    return Statement("Lemma 4", "at most", case.lemma_4.latest)


def of_lemma_4_width(case: Case) -> bool:
    """Whether the width is the one that Lemma 4 requires."""
    return math.isclose(case.config.width, case.lemma_4.premise_width, rel_tol=0.05)


def phase_two(case: Case) -> Statement:
    """The largest weight at which Phase II has begun."""
    return Statement("Phase II", "at most", paper.phase_two_threshold(case.config.lr))


class Descent(NamedTuple):
    """Lemmas 5 and 6: gradient descent in Phase II, with times in steps from its start.

    `aligned` is T2 as printed and `aligned_linearized` by the linearised growth; `converging` is
    T3, counted from T2.  `misalignment` and `distance` are known up to a constant.
    """

    aligned: float
    aligned_linearized: float
    converging: float
    misalignment: float
    distance: float

    @property
    def converged(self) -> float:
        """T2 by the linearised growth plus T3."""
        return self.aligned_linearized + self.converging


def descent(lr: float, theta_norm: float) -> Descent:
    """Lemmas 5 and 6 at one learning rate and norm of theta*."""
    return Descent(
        paper.alignment_time(lr, theta_norm),
        paper.alignment_time_linearized(lr, theta_norm),
        paper.convergence_time(lr, theta_norm),
        paper.misalignment_order(lr),
        paper.distance_order(lr),
    )


def allowance(bound: float, error: float) -> float:
    """What a mean with this standard error may differ by from a prediction that is within `bound`.

    It is `bound`, and two standard errors more where one exceeds a third of it: see ALLOWANCE.
    """
    return bound + 2 * error if error > bound / 3 else bound


def worst_deviation(measured: FloatArray, predicted: FloatArray) -> tuple[float, int]:
    """The largest relative deviation of a measured curve, (records,), and its record's index."""
    deviation = np.abs(measured / predicted - 1)
    worst = int(np.argmax(deviation))
    return float(deviation[worst]), worst
