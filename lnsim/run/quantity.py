"""A row of the table of quantities (quantities.py), and the words that rows are made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TWO_LAYER, ERF, WIDE_RESNET, RESNET = "two-layer", "erf", "wide-resnet", "resnet"
"""The models: the two-layer linear network, and those of the experiments on images."""

NETWORKS = (ERF, WIDE_RESNET, RESNET)
ALL = (TWO_LAYER, *NETWORKS)

TWO_LAYER_ANY, DEEP, DIAGONAL, RELU = "two-layer, any loss", "deep", "diagonal", "relu"
"""Models under any loss and noise, by the kernels for any model."""

LINEAR = (TWO_LAYER, TWO_LAYER_ANY, DEEP, DIAGONAL)
HIDDEN = (TWO_LAYER, TWO_LAYER_ANY, RELU)
ANY = (TWO_LAYER_ANY, DEEP, DIAGONAL, RELU)

IMAGES, STEPS = "share of images", "steps"
"""Units of what is no pure number."""


class Axis(Enum):
    """What an array has its values for."""

    RECORD = "every record"
    CLOUD = "the records at which all neurons are kept"
    PERCENT = "every share of the weights that pruning keeps"
    RUN = "the run, known at its start"
    END = "the run, known at its end"
    FILE = "the file: no array of a Record"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One row of the table.

    formula: in words, what it is.
    models: those of which it is recorded.
    axis, of_neurons: what there are values for, and whether at each there is one for every neuron.
    label, last_label: its name on the axis of a figure, and that of its last value on the axis of a
    sweep's; empty for `name`.
    drawn: the models of which it is drawn where no curve is named; from_zero: on an axis from 0.
    needs: the option of `lnsim.simulate` that has it recorded; empty for always.
    costly: in a run with the array `over` it is over that.
    beside: the quantity whose row of the README's table it shares.
    given: what the problem must have for it: "theta_star", or "classes" for labels; empty: nothing.
    by_name: of a measure, the models of which it is recorded only where it is named (measures.py).
    """

    name: str
    formula: str
    models: tuple[str, ...] = (TWO_LAYER,)
    axis: Axis = Axis.RECORD
    of_neurons: bool = False
    label: str = ""
    last_label: str = ""
    unit: str = ""
    drawn: tuple[str, ...] = ()
    from_zero: bool = False
    needs: str = ""
    costly: bool = False
    over: str = "kernel_step"
    beside: str = ""
    given: str = ""
    by_name: tuple[str, ...] = ()
