"""What is done to the weights at a step: frozen descriptions, without any state.

One step on a batch b = 1 ... B, with label noise eps_b and residuals r_b = f(x_b) - y_b - eps_b,
follows the gradient of (1/2B) sum_b r_b^2:

    z = (1/B) sum_b r_b x_b,     grad W = a z^T,     grad a = W z,

both taken at the same W and a.  With momentum mu and weight decay w (heavy ball; Polyak 1964,
written as torch.optim.SGD writes it), for each of the two layers:

    V <- mu V + grad + w (weights),     weights <- weights - lr V.

SAM takes the gradient, on the same batch with the same labels, at weights moved by rho along the
gradient's direction.  The oscillation simulation (Lemma 4) trains W by full-batch gradient descent
while every a_i is a three-state Markov chain of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import Scalar

FULL_BATCH = 0
"""As a batch size: all n samples, each once."""


@dataclass(frozen=True)
class LabelNoise:
    """Fresh noise on every label drawn: mean 0, standard deviation `sigma`.

    `law`: "rademacher" (+sigma or -sigma, the paper's), "gaussian" or "uniform" (on
    [-sqrt(3) sigma, sqrt(3) sigma]).  Raises ValueError for sigma < 0 or an unknown law.
    """

    sigma: Scalar
    law: str = "rademacher"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", checks.real("sigma", self.sigma, least=0.0))
        checks.choice("law", self.law, streams.LAWS)


class _Step:
    """What all dynamics have; the numbers that a dynamics does not set are these."""

    lr: Scalar
    noise: LabelNoise | None = None
    batch_size: int = 1
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0
    rho: Scalar = 0.0
    memory: int = 0
    equivariant: ClassVar[bool] = True
    """Whether a step commutes with rotations of the hidden layer (reduction.py)."""

    def __post_init__(self) -> None:
        least = {"momentum": 0.0, "weight_decay": 0.0, "rho": 0.0}
        for name in vars(self).keys() & least.keys():
            value = checks.real(name, getattr(self, name), least=least[name])
            object.__setattr__(self, name, value)
        object.__setattr__(self, "lr", checks.real("lr", self.lr, above=0.0))
        checks.integer("batch_size", self.batch_size, 0, checks.MOST_ENTRIES)
        if np.any(np.asarray(self.momentum) >= 1.0):
            raise ValueError(f"momentum must be below 1, got {self.momentum}")
        if self.noise is not None and not isinstance(self.noise, LabelNoise):
            raise TypeError(f"noise must be a LabelNoise or None, got {self.noise!r}")

    def draws(self, samples: int, width: int) -> int:
        """Words of the training stream that one step uses, with n = `samples`, m = `width`."""
        if self.batch_size == FULL_BATCH:
            return 0 if self.noise is None else samples
        return self.batch_size

    def off(self) -> Dynamics:
        """The same steps on the same draws, without the label noise."""
        if self.noise is None:
            return cast(Dynamics, self)
        return replace(cast(Any, self), noise=replace(self.noise, sigma=0.0))

    def at(self, step: int) -> tuple[Dynamics, int]:
        """What is done at `step`, and the step before which that does not change."""
        return cast(Dynamics, self), sys.maxsize


@dataclass(frozen=True)
class SGD(_Step):
    """Stochastic gradient descent, `batch_size` samples a step drawn with replacement.

    `lr`, `momentum` in [0, 1), `weight_decay` and the noise's sigma may be arrays of one value
    per replica.  `batch_size=0` takes all samples, each once.  Raises ValueError for values out of
    range.
    """

    lr: Scalar
    noise: LabelNoise | None = None
    batch_size: int = 1
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0


@dataclass(frozen=True)
class GD(_Step):
    """Gradient descent on all samples; `noise`, if any, is drawn afresh for every label and step.

    `lr` and the noise's sigma may be arrays of one value per replica.  Raises ValueError for values
    out of range.
    """

    lr: Scalar
    noise: LabelNoise | None = None
    batch_size: ClassVar[int] = FULL_BATCH  # type: ignore[misc]


@dataclass(frozen=True)
class SAM(_Step):
    """Sharpness-aware minimisation: theta <- theta - lr grad(theta + rho grad(theta) / |grad|).

    Both gradients are of the same batch with the same labels; `batch_size=0` takes all samples.
    `rho` >= 0 (the paper leaves it open), `lr` and the noise's sigma may be arrays of one value
    per replica.  Raises ValueError for values out of range.
    """

    lr: Scalar
    rho: Scalar
    noise: LabelNoise | None = None
    batch_size: int = 1

    def off(self) -> Dynamics:
        """Plain SGD on the same draws: rho = 0 and no label noise."""
        return replace(cast(SAM, super().off()), rho=0.0)


@dataclass(frozen=True)
class Oscillation(_Step):
    """Lemma 4: W <- W - lr a (dL/dtheta)^T on the clean loss, every a_i a Markov chain of its own.

    Its states are -amplitude, 0 and +amplitude (default lr^(1/4)): from +-amplitude it goes to 0,
    from 0 to either with probability 1/2.  It starts at 0 with probability 1/2, else at either,
    in place of the network's a.  While `oscillating` is off both layers follow plain gradient
    descent; the chain runs on unseen, and a takes its state when it is on again (the paper leaves
    both open).  Raises ValueError for lr or amplitude <= 0.
    """

    lr: Scalar
    amplitude: Scalar | None = None
    oscillating: bool = True
    batch_size: ClassVar[int] = FULL_BATCH  # type: ignore[misc]
    equivariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amplitude is None:
            object.__setattr__(self, "amplitude", np.sqrt(np.sqrt(self.lr)))
        amplitude = checks.real("amplitude", self.amplitude, above=0.0)
        object.__setattr__(self, "amplitude", amplitude)

    def draws(self, samples: int, width: int) -> int:
        """ceil(m / 64): neuron i's sign is bit i mod 64 of word i // 64."""
        return -(-width // 64)

    def off(self) -> Dynamics:
        """Plain full-batch gradient descent of both layers."""
        return replace(self, oscillating=False)


@dataclass(frozen=True, repr=False)
class CustomDynamics(_Step):
    """A rule of your own: step(W, a, X, y, t) -> (W, a), float64 arrays, all of it in NumPy.

    W : (p, r) and a : (p,) are the weights at step `t`, the step's to change; X : (B, r) and
    y : (B,) its samples and their labels, noise included, from the same draws as SGD's.  The rule
    must depend on its arguments alone.  With `memory` = K > 0 it keeps K more copies of the
    weights' shapes, zero at the start: step(W, a, X, y, t, V_W, V_a) -> (W, a, V_W, V_a) with
    V_W : (K, p, r), V_a : (K, p).

    It is reduced where a check finds that it may be (custom.py), and trains the dense network where
    not: `provenance["reduced"]` of the trajectory names the sides that were.  A `step` compiled by
    numba.njit runs from a compiled loop.  A run is resumed by the name of its `step`, or by its
    repr if it has none: as a dataclass with __call__ it carries its numbers there.

    Raises TypeError for a `step` that is no function, ValueError for values out of range.
    """

    step: Callable[..., Any]
    noise: LabelNoise | None = None
    batch_size: int = 1
    memory: int = 0
    lr: ClassVar[float] = 1.0  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.step):
            raise TypeError(f"step must be a function, got {self.step!r}")
        checks.integer("memory", self.memory, 0)

    def __repr__(self) -> str:
        name = getattr(self.step, "__qualname__", None) or repr(self.step)
        return (
            f"CustomDynamics(step={name}, noise={self.noise!r}, "
            f"batch_size={self.batch_size}, memory={self.memory})"
        )


Dynamics = SGD | GD | SAM | Oscillation | CustomDynamics


@dataclass(frozen=True)
class Alternating:
    """`dynamics` for `period` steps, `dynamics.off()` for `period` steps, and so on.

    The draws of the steps it is off are consumed all the same.  Raises ValueError for period < 1.
    """

    dynamics: Dynamics
    period: int = 5000

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, _Step):
            raise TypeError(f"dynamics must be SGD, GD, SAM, ... of lnsim, got {self.dynamics!r}")
        checks.integer("period", self.period, 1, checks.MOST_STEPS)

    def at(self, step: int) -> tuple[Dynamics, int]:
        """On in windows 0, 2, 4, ... of `period` steps."""
        window = step // self.period
        now = self.dynamics if window % 2 == 0 else self.dynamics.off()
        return now, (window + 1) * self.period
