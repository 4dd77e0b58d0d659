"""A user's own observables: functions of a network, called at every record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lnsim.base.checks import Noting
from lnsim.models.base import Model
from lnsim.run import quantities

Observable = Callable[[Any], float]
"""A user's own observable: a number computed from a read-only Network or other model."""


def check_observables(observables: Mapping[str, Observable], model: str) -> dict[str, Observable]:
    """`observables`, by names that are free in a run of `model`, its name in the table.

    Raises ValueError or TypeError.
    """
    for name, function in observables.items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("state_"):
            raise ValueError(f"an observable needs a name such as my_loss, got {name!r}")
        weights = model != quantities.TWO_LAYER and name.startswith("final_")
        if name in quantities.reserved(model) or weights:
            raise ValueError(f"observable {name!r}: a trajectory has an array of that name already")
        if not callable(function):
            raise TypeError(f"observable {name!r} must be a function, got {function!r}")
    return dict(observables)


def ask(name: str, function: Observable, network: Model) -> float:
    """The value of the observable `name` of a network.  Raises TypeError if it is not a number."""
    with Noting(f"raised by the observable {name!r}"):
        value = function(network)
    array = np.asarray(value)
    if array.ndim > 0 or array.dtype.kind not in "biuf":
        shape = f" of shape {array.shape}" if array.ndim else ""
        raise TypeError(
            f"observable {name!r} must return a number, got {type(value).__name__}{shape}"
        )
    return float(array)
