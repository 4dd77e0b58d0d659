"""What rests on which papers, and what of it is lnsim's own.

Credits are given to statements of theory, to methods and to measures, by name; experiments name
theirs, and the statements and methods that they show, in `Experiment.rests_on`.  A measure has the
name of its array (run/quantities.py) or of its function (lnsim_torch.linearization).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lnsim.references.papers import PAPERS, short


@dataclass(frozen=True, kw_only=True)
class Credit:
    """The papers that a statement, a method or a measure rests on.

    says: what it is, in words that follow its name.
    theirs, ours: what of it papers have and what no paper has, in sentences; `ours` is empty where
    all of it is in papers, `theirs` where `Paper.gave` says all.
    option: of a method, the key of a configuration and the values with which a run uses it; without
    values, any that is neither 0 nor false.
    """

    papers: tuple[str, ...] = ()
    says: str = ""
    theirs: str = ""
    ours: str = ""
    option: tuple[str, tuple[object, ...]] | None = None

    def used_by(self, config: Mapping[str, Any]) -> bool:
        """Whether a run of this configuration uses the method."""
        if self.option is None or self.option[0] not in config:
            return False
        value = config[self.option[0]]
        return value in self.option[1] if self.option[1] else bool(value)


_PAPER = ("zhang2026",)
_FLATTEST = ("blanc2020", "damian2021", "li2021")

STATEMENTS: dict[str, Credit] = {
    "lazy-regime": Credit(
        papers=(*_PAPER, "chizat2019"),
        says="every neuron within 1/sqrt(m) of its start (Definition 1)",
    ),
    "condition-1": Credit(papers=_PAPER, says="the assumptions of the theory"),
    "theorem-2": Credit(papers=_PAPER, says="by when every neuron has left the lazy regime"),
    "norm-identity": Credit(papers=_PAPER, says="what changes the norm of a neuron, step by step"),
    "lemma-3": Credit(papers=_PAPER, says="while lazy, the norms fall with these probabilities"),
    "lemma-4": Credit(papers=_PAPER, says="an oscillating second layer shrinks the first"),
    "phase-two": Credit(papers=_PAPER, says="all weights at most sqrt(lr)"),
    "lemma-5": Credit(
        papers=_PAPER,
        says="by when the neurons are aligned",
        ours="The time as the linearised growth gives it, 1/lr times the one printed, is ours.",
    ),
    "lemma-6": Credit(papers=_PAPER, says="by when the predictor has converged"),
    "law-of-modes": Credit(
        papers=_FLATTEST,
        says="|W(t)|_F^2 and |a(t)|^2 under label noise, without simulation",
        theirs="At leading order the rates (lr sigma)^2 lambda_i follow from the drift down tr H"
        f" ({short(*_FLATTEST)}).",
        ours="The term 2L beside sigma^2, the closure for L and the second order in the"
        " fluctuations are ours.",
    ),
    "law-of-the-cloud": Credit(
        papers=(*_FLATTEST, "wen2022"),
        says="the mean course of all that is recorded, and its times, without simulation",
        theirs="That the noise carries a network along the interpolators down tr H is known for"
        f" label noise ({short(*_FLATTEST)}) and for one-sample SAM ({short('wen2022')}).",
        ours="The one matrix that carries every neuron, its equations with the fit before the"
        " drift, the moments of SAM's steps, and what they give of the neurons, the losses and the"
        " kernel are ours.",
    ),
    "law-of-sam": Credit(
        papers=("wen2022",),
        says="how fast one-sample SAM goes down tr H, and how full-batch SAM lowers the largest"
        " eigenvalues together",
        theirs="That one-sample SAM goes down tr H and full-batch SAM down the largest eigenvalue,"
        f" with the rates at leading order in lr and rho, is known ({short('wen2022')}).",
        ours="The part of SAM's own shaking in its speed, the label noise that is as fast, and the"
        " course where several eigenvalues are the largest and lr lambda is not small are ours.",
    ),
    "stationary-state": Credit(
        papers=(*_FLATTEST, "ziyin2023", "ziyin2024", "wen2022"),
        says="the network at rest: of rank one, |W|_F/|a| known",
        theirs=f"That label noise ends at the flattest interpolator is known ({short(*_FLATTEST)}),"
        f" and so is the balance of noise that gives |W|_F/|a| ({short('ziyin2023', 'ziyin2024')});"
        f" one-sample SAM lowers tr H too ({short('wen2022')}).",
        ours="The curve that leads to this state (law of modes) and its comparison with runs are"
        " ours.",
    ),
}
"""Statements of theory: the paper's, then those beyond it."""

METHODS: dict[str, Credit] = {
    "reduction": Credit(
        says="training at width r + C in place of m, exactly",
        ours="The exact reduction of the hidden layer, for any loss, noise and SAM that"
        " commutes with its rotations, is ours.",
    ),
    "linearised-twin": Credit(
        papers=("lee2019", "jacot2018", "chizat2019"),
        says="the network's first-order expansion, trained along",
    ),
    "tangent-kernel": Credit(
        papers=("jacot2018", "novak2022"), says="the empirical kernel of a torch network"
    ),
    "published-results": Credit(
        papers=(
            "andriushchenko2022", "andriushchenko2023", "haochen2021", "pillaudvivien2022",
            "pesme2021", "even2023", "orvieto2022", "chen2023", "lewkowycz2020", "kunin2024",
            "domine2025", "marion2024", "wen2022",
        ),
        says="what `lnsim papers` runs again",
        ours="What is derived there beyond the papers is said to be ours, claim by claim.",
    ),
    "random-streams": Credit(
        papers=("salmon2011",), says="the words that samples and noise are drawn from"
    ),
    "imaginary-step": Credit(
        papers=("squire1998",), says="products with H, exact in floating point"
    ),
    "law-integrator": Credit(
        papers=("sommeijer1998",), says="by which the law of modes is followed"
    ),
    "momentum": Credit(papers=("polyak1964",), says="the heavy ball", option=("momentum", ())),
    "label-k": Credit(
        papers=("haochen2021",),
        says="noise on K labels, added to the full gradient",
        option=("noise", ("label-k",)),
    ),
    "anticorrelated": Credit(
        papers=("orvieto2022",), says="noise on weights", option=("noise", ("anticorrelated",))
    ),
    "dropout": Credit(
        papers=("srivastava2014",), says="of hidden units", option=("noise", ("dropout",))
    ),
    "sharpness-aware": Credit(
        papers=("foret2021",), says="SAM, with the key rho", option=("rho", ())
    ),
    "micro-batches": Credit(
        papers=("andriushchenko2022",),
        says="SAM that moves the weights for a few samples at a time",
        option=("micro_batch", ()),
    ),
    "sam-through": Credit(
        papers=("baek2024",), says="SAM through parts of the network",
        option=("through", ("jacobian", "loss")),
    ),
    "balanced-start": Credit(
        papers=("braun2022",), says="weights at the start", option=("start", ("balanced",))
    ),
    "unbalanced-start": Credit(
        papers=("kunin2024",), says="weights at the start", option=("start", ("unbalanced",))
    ),
    "product-form": Credit(
        papers=("andriushchenko2022", "pesme2021"), says="beta = u v",
        option=("form", ("product",)),
    ),
    "difference-form": Credit(
        papers=("woodworth2020",), says="beta = u^D - v^D", option=("form", ("difference",))
    ),
}  # fmt: skip
"""Ways to compute, and options of experiments; a run rests on those that its configuration uses."""

_ALIGNMENT = Credit(papers=("cortes2012", "cristianini2001"))
_RANK = Credit(papers=("roy2007",))
_LINEARISED = Credit(papers=("lee2019",))
_LEDGER = Credit(papers=_PAPER, says="the norm identity of every neuron")
_LEMMA_3 = Credit(papers=_PAPER, says="shares of the events of Lemma 3")
_TWO_PHASES = Credit(papers=_PAPER, says="shows the two phases in Figure 2")
_LEFT = Credit(papers=(*_PAPER, "chizat2019"), says="the lazy regime, by Definition 1")

MEASURES: dict[str, Credit] = {
    "norm_mean": _TWO_PHASES,
    "alignment_mean": _TWO_PHASES,
    "lazy_fraction": _LEFT,
    "lazy_escape": _LEFT,
    "ledger_removed": _LEDGER,
    "ledger_restored": _LEDGER,
    "lemma_3_nonpositive": _LEMMA_3,
    "lemma_3_decrease": _LEMMA_3,
    "linearized_train_loss": _LINEARISED,
    "linearized_test_loss": _LINEARISED,
    "ntk_distance": Credit(papers=("jacot2018", "chizat2019")),
    "kernel_alignment": _ALIGNMENT,
    "label_alignment": Credit(papers=(*_ALIGNMENT.papers, "kornblith2019")),
    "effective_rank": _RANK,
    "predictor_rank": _RANK,
    "balancedness": Credit(papers=("arora2019", "du2018")),
    "sharpness": Credit(papers=("cohen2021", "lewkowycz2020"), says="largest eigenvalue of H"),
    "batch_sharpness": Credit(papers=("andreyev2024",)),
    "hessian_trace": Credit(papers=_FLATTEST, says="tr H"),
    "flatness_gap": Credit(
        papers=(*_FLATTEST, "mulayoff2020", "ding2024", "gatmiry2023"),
        says="tr H beside its least value",
    ),
    "pruned_accuracy": Credit(papers=("han2015",)),
}  # fmt: skip

BY_KIND = {"statements": STATEMENTS, "methods": METHODS, "measures": MEASURES}
CREDITS: dict[str, Credit] = {**STATEMENTS, **METHODS, **MEASURES}


def papers_of(*names: str) -> tuple[str, ...]:
    """The keys of the papers that names stand for, each once: keys themselves, or those of credits.

    Raises KeyError for a name that is neither.
    """
    keys = (key for name in names for key in ((name,) if name in PAPERS else CREDITS[name].papers))
    return tuple(dict.fromkeys(keys))


def named(*names: str) -> str:
    """The papers of `papers_of` as a sentence names them: "Blanc et al. 2020, ..."."""
    return short(*papers_of(*names))


def whose(*names: str) -> dict[str, str]:
    """What is others' and what is ours of those names that are credits and say so, in sentences."""
    shares = {
        name: f"{CREDITS[name].theirs} {CREDITS[name].ours}".strip()
        for name in names
        if name in CREDITS
    }
    return {name: share for name, share in shares.items() if share}


def markdown() -> str:
    """The tables and the list of docs/credits.md: what rests on what, and the papers."""
    lines = ["| name | rests on | what is whose |", "| --- | --- | --- |"]
    for name in CREDITS:
        share = whose(name).get(name, "").replace("|", r"\|")
        lines.append(f"| `{name}` | {named(name) or 'no paper that we know'} | {share} |")
    references = [f"- `{key}`: {paper.reference}" for key, paper in PAPERS.items()]
    return "\n".join([*lines, "", "## Papers", "", *references, ""])


def used_by(config: Mapping[str, Any]) -> Iterable[str]:
    """The names of the methods that a run of this configuration uses by its options."""
    return (name for name, method in METHODS.items() if method.used_by(config))
