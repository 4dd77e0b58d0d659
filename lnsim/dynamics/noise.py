"""Noise that any dynamics takes: on labels, on gradients, on parameters, on hidden units.

Which noises keep the reduction (models/reduction.py) follows from what they do to M = [W | A^T]:

- Label noise and label flips change the derivative g of the loss alone; the gradient stays a
  product of M from the right.  The reduction is exact, draw by draw.
- Gaussian noise Xi on the gradient or on M itself: for a rotation O of the hidden layer O Xi has
  the law of Xi, so M^T M is a Markov chain of its own and has the law of a smaller system, but not
  draw by draw: one seed gives the rotated network other numbers.  And Xi leaves the span of
  M and of the inputs.  Such a run trains dense, so that one seed means one trajectory.
- Dropout multiplies hidden units by numbers of their own: there is no rotation.  The inputs' side
  is kept.

How words become these numbers is in draws.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import Scalar


@dataclass(frozen=True)
class Noise:
    """A noise of a strength: the field that `strength` names, one value or one per replica."""

    strength: ClassVar[str]
    keeps_hidden: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = True
    """Whether a step with it commutes with rotations of the hidden layers, of the inputs."""
    on_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = self.strength
        object.__setattr__(self, name, checks.real(name, getattr(self, name), least=0.0))

    def check_fits(self, loss: str, classes: int | None, model: str, hidden: int) -> None:
        """Raises ValueError unless it goes with this loss, these classes and this model.

        classes: their number, None for labels that are no classes.  model: its name; hidden: its
        number of hidden units.
        """

    @property
    def scalar(self) -> Scalar:
        """Its strength."""
        value: Scalar = getattr(self, self.strength)
        return value

    def scaled(self, factor: Scalar) -> Self:
        """The same noise, `factor` times as strong."""
        return replace(self, **{self.strength: self.scalar * factor})


@dataclass(frozen=True)
class LabelNoise(Noise):
    """Fresh noise on every label drawn: mean 0, standard deviation `sigma`, on every output.

    `law`: "rademacher" (+sigma or -sigma, the paper's), "gaussian" or "uniform" (on
    [-sqrt(3) sigma, sqrt(3) sigma]).  `labels` = K: on K labels of the full batch, drawn with
    replacement, whose mean noise term is added to the full gradient (HaoChen et al. 2021; the term
    is not divided by n).  Raises ValueError for sigma < 0, an unknown law, labels < 1.
    """

    sigma: Scalar
    law: str = "rademacher"
    labels: int | None = None

    strength: ClassVar = "sigma"
    on_labels: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("law", self.law, streams.LAWS)
        if self.labels is not None:
            checks.integer("labels", self.labels, 1, checks.MOST_ENTRIES)

    def check_fits(self, loss: str, classes: int | None, model: str, hidden: int) -> None:
        """See Noise."""
        if loss != "squared":
            raise ValueError(f"LabelNoise is for the squared loss, got {loss!r}: use LabelFlips")

    def __repr__(self) -> str:
        drawn = "" if self.labels is None else f", labels={self.labels!r}"
        return f"LabelNoise(sigma={self.sigma!r}, law={self.law!r}{drawn})"


@dataclass(frozen=True)
class LabelFlips(Noise):
    """Every class label drawn is replaced, with probability `tau`, by one drawn uniformly.

    `to`: "other", from the other classes (the paper's Algorithm 1), or "any", from all of them.
    Raises ValueError for tau outside [0, 1] or another word.
    """

    tau: Scalar
    to: str = "other"

    strength: ClassVar = "tau"
    on_labels: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "to", "any" if self.to == "all" else self.to)
        checks.choice("to", self.to, ("any", "other"))
        _at_most_one("tau", self.tau)

    def check_fits(self, loss: str, classes: int | None, model: str, hidden: int) -> None:
        """See Noise."""
        if classes is None:
            raise ValueError("LabelFlips needs labels that are classes, got other numbers")


@dataclass(frozen=True)
class GradientNoise(Noise):
    """N(0, sigma^2) added to every entry of the gradient at every step (Langevin dynamics).

    Raises ValueError for sigma < 0.
    """

    sigma: Scalar

    strength: ClassVar = "sigma"
    keeps_hidden: ClassVar = False
    keeps_inputs: ClassVar = False


@dataclass(frozen=True)
class ParameterNoise(Noise):
    """xi ~ N(0, sigma^2) added to every parameter after every step.

    `anticorrelated`: xi_t - xi_{t-1} is added instead, xi before the first step being 0 (Orvieto et
    al. 2022, Anti-PGD).  Raises ValueError for sigma < 0.
    """

    sigma: Scalar
    anticorrelated: bool = False

    strength: ClassVar = "sigma"
    keeps_hidden: ClassVar = False
    keeps_inputs: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.flag("anticorrelated", self.anticorrelated)


@dataclass(frozen=True)
class Dropout(Noise):
    """Every hidden unit of every sample is 0 with probability `rate`, else divided by 1 - rate.

    Raises ValueError for a rate outside [0, 1).
    """

    rate: Scalar

    strength: ClassVar = "rate"
    keeps_hidden: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_most_one("rate", self.rate)
        if np.any(np.asarray(self.rate) == 1.0):
            raise ValueError("rate must be below 1, got 1")

    def check_fits(self, loss: str, classes: int | None, model: str, hidden: int) -> None:
        """See Noise."""
        if hidden == 0:
            raise ValueError(f"Dropout needs hidden units, and a {model} has none")


def _at_most_one(name: str, value: Scalar) -> None:
    if np.any(np.asarray(value) > 1.0):
        raise ValueError(f"{name} must be a probability, at most 1, got {np.max(value)}")


def check_noises(noise: Any) -> tuple[Noise, ...]:
    """The noises of a dynamics: none, one, or several of different kinds.

    Raises TypeError for what is no noise, ValueError for two of a kind or two on labels.
    """
    noises = noise if isinstance(noise, tuple) else () if noise is None else (noise,)
    for each in noises:
        if not isinstance(each, Noise):
            raise TypeError(f"noise must be a LabelNoise or another noise of lnsim, got {each!r}")
    kinds = ["a noise on labels" if each.on_labels else type(each).__name__ for each in noises]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"noise must have {kind} only once, got {noises!r}")
    return noises
