"""Measures of curvature, rank and balance: their rows in the table, and which a run records.

Those that cost a recorded run little are recorded by default; the others where they are named.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lnsim.base.config import nearest
from lnsim.run.quantity import (
    ANY,
    DEEP,
    DIAGONAL,
    ERF,
    HIDDEN,
    LINEAR,
    NETWORKS,
    TWO_LAYER,
    TWO_LAYER_ANY,
    WIDE_RESNET,
    Axis,
    Quantity,
)

NEEDS = "measures"
"""What the rows of measures have as `needs`."""

ALL, NONE = "all", "none"
"""Words in place of a measure's name."""

_MODELS = (TWO_LAYER, *ANY)

ROWS = (
    Quantity(
        name="sharpness", formula="λ_max of the Hessian H of the training loss, clean labels",
        models=(*_MODELS, *NETWORKS), needs=NEEDS, by_name=ANY, from_zero=True, drawn=NETWORKS,
        costly=True, over="curvature_step",
        label=r"sharpness $\lambda_{\max}(H)$", last_label=r"$\lambda_{\max}(H)$ at the end",
    ),
    Quantity(
        name="hessian_trace", formula="tr H (of a ResNet by Hutch++)",
        models=(*_MODELS, *NETWORKS), needs=NEEDS, costly=True, over="curvature_step",
        label=r"$\mathrm{tr}\,H$", last_label=r"$\mathrm{tr}\,H$ at the end",
    ),
    Quantity(
        name="flatness_gap", models=LINEAR, needs=NEEDS,
        formula="tr of the Gauss–Newton matrix over its least value at the same predictor,"
        " squared loss",
        label=r"$\mathrm{tr}\,H$ over its least value",
        last_label=r"$\mathrm{tr}\,H$ over its least value, at the end",
    ),
    Quantity(
        name="kernel_alignment", models=(*_MODELS, ERF, WIDE_RESNET), needs=NEEDS, by_name=ANY,
        costly=True,
        formula="centred alignment of the tangent kernel with the labels’ YYᵀ",
        label="kernel–label alignment", last_label="kernel–label alignment at the end",
    ),
    Quantity(
        name="kernel_rank", models=(ERF, WIDE_RESNET), needs=NEEDS, costly=True,
        label="effective rank of kernel",
        formula="exp of the entropy of that kernel's eigenvalues, divided by their sum",
    ),
    Quantity(
        name="effective_rank", models=(*HIDDEN, DEEP), needs=NEEDS, from_zero=True,
        formula="exp of the entropy of the singular values of W (or W₁) over their sum",
        label="effective rank of $W$", last_label="effective rank of $W$ at the end",
    ),
    Quantity(
        name="predictor_rank", models=(TWO_LAYER_ANY, DEEP), needs=NEEDS, from_zero=True,
        formula="the same of the predictor Θ, for several outputs",
        label=r"effective rank of $\Theta$", last_label=r"effective rank of $\Theta$ at the end",
    ),
    Quantity(
        name="balancedness", models=_MODELS, needs=NEEDS,
        formula="the largest ‖W_{l+1}ᵀW_{l+1} − W_lW_lᵀ‖_F, here ‖AᵀA − WWᵀ‖_F, of ReLU its"
        " diagonal alone",
        label=r"balancedness $\|A^\top A - W W^\top\|_F$",
    ),
    Quantity(
        name="gradient_noise", models=_MODELS, needs=NEEDS,
        formula="trace of the covariance of one-sample gradients, clean labels",
        label="trace of the gradient covariance",
    ),
    Quantity(
        name="batch_sharpness", models=_MODELS, needs=NEEDS, by_name=ANY, from_zero=True,
        formula="E[gᵀHg] / E[‖g‖²] of the gradient g and the Hessian H of a drawn batch",
        label="batch sharpness",
    ),
    Quantity(
        name="support", formula="entries of β above 1 % of the largest", models=(DIAGONAL,),
        needs=NEEDS, label=r"support of $\beta$", from_zero=True,
    ),
    Quantity(
        name="l1_norm", formula="‖β‖₁", models=(DIAGONAL,), needs=NEEDS, from_zero=True,
        label=r"$\|\beta\|_1$",
    ),
    Quantity(
        name="hessian_spectrum", models=_MODELS, needs=NEEDS, by_name=_MODELS, axis=Axis.CLOUD,
        of_neurons=True,
        formula="where it is named: eigenvalues of H at the clouds, and how often each stands in"
        " that of the full network (curvature.py)",
    ),
    Quantity(
        name="hessian_multiplicity", models=_MODELS, needs=NEEDS, by_name=_MODELS, axis=Axis.RUN,
        beside="hessian_spectrum",
        formula="where it is named: eigenvalues of H at the clouds, and how often each stands in"
        " that of the full network (curvature.py)",
    ),
)  # fmt: skip


def measures(model: str) -> tuple[Quantity, ...]:
    """The measures of a model, by its name in the table of quantities, that can be named."""
    return tuple(row for row in ROWS if model in row.models and row.axis is not Axis.RUN)


def named(asked: str | Sequence[str]) -> list[str]:
    """The names in `asked`, in a sequence or separated by commas.  Raises TypeError for others."""
    words = asked.split(",") if isinstance(asked, str) else asked
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise TypeError(
            "measures must be names of measures, in a sequence or separated by commas,"
            f" got {asked!r}"
        )
    return [word.strip() for word in words if word.strip()]


def chosen(model: str, asked: str | Sequence[str], costly: Collection[str] = ()) -> set[str]:
    """The measures that a run of `model` records.

    `asked`: see `named`; the names are added to the default ones; "none" leaves out the default
    ones, "all" names all.  `costly` are further ones that are not recorded by default.  Raises
    ValueError for an unknown name and for "all" beside "none", and TypeError for other types.
    """
    names = set(named(asked))
    if {ALL, NONE} <= names:
        raise ValueError(f"measures must not have both {ALL!r} and {NONE!r}, got {asked!r}")
    rows = {row.name: row for row in measures(model)}
    for name in sorted(names - rows.keys() - {ALL, NONE}):
        known = (*rows, ALL, NONE)
        raise ValueError(f"measures has no {name!r} for this model: {nearest(name, known)}")
    if ALL in names:
        return set(rows)
    usual = {name for name, row in rows.items() if model not in row.by_name and name not in costly}
    return (names & rows.keys()) | (set() if NONE in names else usual)
