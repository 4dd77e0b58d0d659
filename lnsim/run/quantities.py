"""Everything that a run can record, one row a quantity.

From `TABLE` come the names that a user's observable cannot take, what is a curve and over which
array, the curves that are drawn where none is named, labels, the columns of a sweep, the parts of a
run that `verify` compares, the series of the experiments on images, and the README's table of
arrays.

A new quantity is a row here and, under the same name, a formula in `FORMULAS`: of the two-layer
network with one output in simulation/observables.py, of any model in simulation/model_view.py.
Measures of curvature and rank have their rows in measures.py.
"""

from __future__ import annotations

from lnsim.run import measures
from lnsim.run.quantity import (
    ALL,
    ANY,
    DEEP,
    DIAGONAL,
    ERF,
    HIDDEN,
    IMAGES,
    LINEAR,
    NETWORKS,
    RELU,
    RESNET,
    STEPS,
    TWO_LAYER,
    TWO_LAYER_ANY,
    WIDE_RESNET,
    Axis,
    Quantity,
)

ARMS = ("clean", "linearized", "noisy", "sam")
"""How names begin where a run has a series for each of its networks: clean_test_loss, ..."""

INDEXES = ("step", "epoch", "kernel_step", "curvature_step", "cloud_step", "kept_percent")
"""The arrays that the others are over."""

_LOSS = "mean loss, clean labels: half the squared error under the squared loss"
_TWIN_LOSS = "the same of the linearised twin, trained on the same draws"
_SINGLE, _CLOUD = "single neurons at every record", "all neurons at some records"
_LEDGER = "with `ledger`: the two sums of the norm identity, for every neuron"
_LEMMA_3 = "with `ledger`: shares of the events of Lemma 3, at the clouds"
_ENDED = "how it ended, and what a resumed run starts from"

_ROWS = (
    Quantity(
        name="step", formula="the recorded steps", models=(*ALL, *ANY), label="step $t$",
        unit=STEPS,
    ),
    Quantity(name="epoch", formula="the recorded epochs", models=(RESNET,), label="epoch"),
    Quantity(
        name="train_loss", formula=_LOSS, models=(*ALL, *ANY), drawn=(*ALL, *ANY),
        label="training loss (clean labels)", last_label="training loss at the end",
    ),
    Quantity(
        name="test_loss", formula=_LOSS, beside="train_loss", models=(*ALL, *ANY),
        drawn=(*ALL, *ANY), label="test loss", last_label="test loss at the end",
    ),
    Quantity(
        name="linearized_train_loss", formula=_TWIN_LOSS, needs="linearized",
        label="training loss, linearised",
    ),
    Quantity(
        name="linearized_test_loss", formula=_TWIN_LOSS, needs="linearized",
        beside="linearized_train_loss", label="test loss, linearised",
    ),
    Quantity(
        name="train_accuracy", formula="share of training samples classified rightly",
        given="classes", models=(WIDE_RESNET, RESNET, *ANY), unit=IMAGES,
    ),
    Quantity(
        name="test_accuracy", formula="share of test samples classified rightly", given="classes",
        models=(WIDE_RESNET, RESNET, *ANY), unit=IMAGES, drawn=(WIDE_RESNET, RESNET, *ANY),
    ),
    Quantity(
        name="smoothed_test_accuracy", formula="exponential mean of the test accuracy",
        models=(RESNET,), unit=IMAGES,
    ),
    Quantity(
        name="first_layer_norm", formula="‖W₁‖_F", models=(WIDE_RESNET,), drawn=(WIDE_RESNET,),
        label=r"first layer $\|W_1\|_F$",
    ),
    Quantity(
        name="norm_mean", formula="mean ‖wᵢ‖", models=(*HIDDEN, ERF), drawn=(*HIDDEN, ERF),
        from_zero=True, label=r"mean $\|w_i\|$", last_label=r"mean $\|w_i\|$ at the end",
    ),
    Quantity(
        name="norm_std", formula="standard deviation of ‖wᵢ‖", models=(ERF,),
        label=r"deviation of $\|w_i\|$",
    ),
    Quantity(
        name="norm_squared", models=HIDDEN, formula="‖W‖²_F", beside="norm_mean",
        label=r"$\|W\|_F^2$", last_label=r"$\|W\|_F^2$ at the end",
    ),
    Quantity(
        name="second_layer_norm", models=HIDDEN, formula="‖a‖", beside="norm_mean",
        label=r"$\|a\|$", last_label=r"$\|a\|$ at the end",
    ),
    Quantity(
        name="alignment_mean", models=HIDDEN, given="theta_star", formula="mean of |⟨wᵢ, θ*⟩|",
        drawn=HIDDEN, from_zero=True, label=r"mean $|\langle w_i, \theta^\star\rangle|$",
    ),
    Quantity(
        name="cosine_mean", models=HIDDEN, given="theta_star", formula="mean of |cos(wᵢ, θ*)|",
        beside="alignment_mean", drawn=HIDDEN, from_zero=True,
        label=r"mean $|\cos(w_i, \theta^\star)|$",
        last_label=r"mean $|\cos(w_i, \theta^\star)|$ at the end",
    ),
    Quantity(
        name="interpolator_distance", models=LINEAR, given="theta_star",
        formula="‖Θ − Θ*‖_F, for one output ‖Wᵀa − θ*‖",
        label=r"$\|\theta - \theta^\star\|$",
    ),
    Quantity(
        name="lazy_fraction", models=HIDDEN, formula="share of neurons within 1/√m of their start",
        label="share of lazy neurons",
    ),
    Quantity(
        name="lazy_escape", models=HIDDEN, beside="lazy_fraction", axis=Axis.END, of_neurons=True,
        unit=STEPS,
        formula="when each left, in steps, interpolated between looks four an octave (−1: never)",
    ),
    Quantity(
        name="ntk_distance", models=(TWO_LAYER, TWO_LAYER_ANY, ERF, WIDE_RESNET),
        drawn=(ERF, WIDE_RESNET),
        formula="‖K_t − K_0‖_F / ‖K_0‖_F, tangent kernel on the training inputs", costly=True,
        label=r"$\|K_t - K_0\|_F\,/\,\|K_0\|_F$",
    ),
    Quantity(
        name="curvature_step", formula="the steps at which the curvature was measured",
        models=NETWORKS, axis=Axis.RUN, label="step $t$", unit=STEPS,
    ),
    Quantity(
        name="kernel_step", formula="the steps at which the kernel was measured",
        models=(WIDE_RESNET,), axis=Axis.RUN, label="step $t$", unit=STEPS,
    ),
    Quantity(
        name="pruned_accuracy", formula="test accuracy with that share of the weights kept",
        models=(RESNET,), axis=Axis.PERCENT, unit=IMAGES, drawn=(RESNET,),
    ),
    Quantity(
        name="kept_percent", formula="shares of the weights that pruning keeps", models=(RESNET,),
        axis=Axis.RUN, label="weights kept (%)", unit="%",
    ),
    Quantity(
        name="parameter_norm", formula="‖all parameters‖", models=ANY, label=r"$\|$parameters$\|$",
    ),
    Quantity(
        name="effective_nonzeros", formula="‖β‖₁² / ‖β‖₂², the number of entries if all are alike",
        models=(DIAGONAL,), drawn=(DIAGONAL,), label=r"$\|\beta\|_1^2\,/\,\|\beta\|_2^2$",
    ),
    Quantity(
        name="singular_values", formula="singular values of the predictor Θ : (C, d), descending",
        models=(TWO_LAYER_ANY, DEEP), of_neurons=True, label="singular values",
    ),
    *measures.ROWS,
    Quantity(
        name="tracked_neurons", models=(*HIDDEN, DIAGONAL), formula=_SINGLE, axis=Axis.RUN,
        of_neurons=True,
    ),
    Quantity(
        name="tracked_norm", models=HIDDEN, formula=_SINGLE, beside="tracked_neurons",
        of_neurons=True,
    ),
    Quantity(
        name="tracked_alignment", models=HIDDEN, given="theta_star", formula=_SINGLE,
        beside="tracked_neurons", of_neurons=True,
    ),
    Quantity(
        name="tracked_second_layer", models=HIDDEN, formula=_SINGLE, beside="tracked_neurons",
        of_neurons=True,
    ),
    Quantity(
        name="tracked_beta", formula="single coordinates of β at every record", models=(DIAGONAL,),
        of_neurons=True, label=r"$\beta_j$",
    ),
    # The last record is the last cloud: which steps have one is known when the run has ended.
    Quantity(
        name="cloud_step", models=(*HIDDEN, DIAGONAL), formula=_CLOUD, axis=Axis.END,
        label="step $t$", unit=STEPS,
    ),
    Quantity(
        name="cloud_norm", models=HIDDEN, formula=_CLOUD, beside="cloud_step", axis=Axis.CLOUD,
        of_neurons=True,
    ),
    Quantity(
        name="cloud_alignment", models=HIDDEN, given="theta_star", formula=_CLOUD,
        beside="cloud_step", axis=Axis.CLOUD, of_neurons=True,
    ),
    Quantity(
        name="cloud_beta", formula="β at some records", models=(DIAGONAL,), axis=Axis.CLOUD,
        of_neurons=True,
    ),
    Quantity(
        name="model", formula="what the model is, besides its weights, in JSON", models=ANY,
        axis=Axis.RUN,
    ),
    Quantity(name="final_W", models=HIDDEN, formula="the network at the end", axis=Axis.END),
    Quantity(
        name="final_a", models=(TWO_LAYER, TWO_LAYER_ANY), formula="the network at the end",
        beside="final_W", axis=Axis.END,
    ),
    Quantity(
        name="final_…", models=(DEEP, DIAGONAL, RELU), formula="its other weights at the end",
        beside="final_W", axis=Axis.END,
    ),
    Quantity(
        name="theta_star", models=(TWO_LAYER, *ANY), given="theta_star",
        formula="the interpolator", beside="final_W", axis=Axis.RUN,
    ),
    Quantity(name="ledger_removed", formula=_LEDGER, needs="ledger", of_neurons=True),
    Quantity(
        name="ledger_restored", formula=_LEDGER, beside="ledger_removed", needs="ledger",
        of_neurons=True,
    ),
    Quantity(name="lemma_3_nonpositive", formula=_LEMMA_3, needs="ledger", axis=Axis.CLOUD),
    Quantity(
        name="lemma_3_decrease", formula=_LEMMA_3, beside="lemma_3_nonpositive", needs="ledger",
        axis=Axis.CLOUD,
    ),
    Quantity(
        name="diverged_at", models=(TWO_LAYER, *ANY), formula=_ENDED, axis=Axis.END, unit=STEPS,
    ),
    Quantity(name="about", formula=_ENDED, beside="diverged_at", axis=Axis.FILE),
    Quantity(name="state_…", formula=_ENDED, beside="diverged_at", axis=Axis.FILE),
    Quantity(
        name="tau", formula="the label noise of each network", models=(RESNET,), axis=Axis.RUN,
    ),
    Quantity(
        name="images", formula="how many images there are for training and for the test",
        models=(WIDE_RESNET, RESNET), axis=Axis.RUN,
    ),
    Quantity(
        name="largest_stable_lr", models=(WIDE_RESNET,), axis=Axis.RUN,
        formula="the learning rate below which the linearised network is stable",
    ),
)  # fmt: skip

TABLE: dict[str, Quantity] = {row.name: row for row in _ROWS}
"""The rows by their names, in the order in which arrays are recorded."""


def find(name: str) -> Quantity | None:
    """The quantity that an array holds, of all networks or of one arm; None for a user's own.

    The weights of models at the end have names that follow their parameters: final_W1, final_v, ...
    """
    arm, _, of_arm = name.partition("_")
    row = TABLE.get(name)
    if row is None and arm == "final":
        return TABLE["final_…"]
    if row is None and arm in ARMS:
        row = TABLE.get(of_arm)
        if row is not None and (row.axis is not Axis.RECORD or row.of_neurons):
            return None
    return row


def names(
    model: str, axis: Axis = Axis.RECORD, *, of_neurons: bool = False, needs: str = ""
) -> tuple[str, ...]:
    """The quantities recorded of a model for this axis, in order, without INDEXES.

    `needs`: those that the option of this name adds; the networks on images have no such options.
    """
    return tuple(
        row.name
        for row in TABLE.values()
        if model in row.models
        and (row.axis, row.of_neurons) == (axis, of_neurons)
        and ("" if model in NETWORKS else row.needs) == needs
        and row.name not in INDEXES
    )


def of_kernel(kernel: str) -> str:
    """The name in this table of a model under any loss, by its `kernel` (models/base.py)."""
    return TWO_LAYER_ANY if kernel == TWO_LAYER else kernel


def drawn(*models: str) -> list[str]:
    """The quantities that are drawn of any of these models where none is named."""
    return [row.name for row in TABLE.values() if not set(models).isdisjoint(row.drawn)]


def reserved(model: str = TWO_LAYER) -> set[str]:
    """The names that a user's observable cannot take: those of a trajectory and of its file.

    `model` is never free: a run that has it is one of any model.  An observable with the name of a
    measure stands in its place.
    """
    rows = (row for row in TABLE.values() if row.needs != measures.NEEDS)
    return {"model", *(row.name for row in rows if {model, TWO_LAYER} & {*row.models})}


def label(name: str) -> str:
    """What an array is called on the axis of a figure."""
    row = TABLE.get(name)
    return row.label if row is not None and row.label else name.replace("_", " ")


def last_label(name: str) -> str:
    """What the last value of a quantity is called on the axis of a sweep's figure."""
    row = TABLE.get(name)
    return row.last_label if row is not None and row.last_label else name


def markdown(model: str = TWO_LAYER) -> str:
    """The table of a model's arrays, as it stands in the README."""
    rows: dict[str, list[Quantity]] = {}
    for row in TABLE.values():
        if model in row.models:
            rows.setdefault(row.beside or row.name, []).append(row)
    lines = ["| in `trajectory.npz` | what |", "| --- | --- |"]
    for together in rows.values():
        arrays = ", ".join(f"`{row.name}`" for row in together)
        words = "; ".join(dict.fromkeys(row.formula for row in together)).replace("|", r"\|")
        lines.append(f"| {arrays} | {words} |")
    return "\n".join(lines) + "\n"
