"""What one step of a dynamics does to the scalar network, in the mean over its draws.

A step on the sample x_k multiplies the stacked weights M = [W | a] from the right (modes.py).  With
the residual r = f(x_k) - y_k - epsilon and S(x) = [[0, x], [x^T, 0]] it is

    M <- M (I - lr e S(x_k) - lr k S(x_k)^2),

e the number by which the sample pulls, and k that by which it contracts besides.  For SGD e = r and
k = 0.

One-sample SAM moves M by rho grad l/|grad l| = kappa M S(x), kappa = rho sign(r)/s, s = |grad f| =
sqrt(x^T A x), A = W^T W + |a|^2 I.  As f = <M, M S(x)>/2, the prediction there is f + kappa s^2 to
the first order in rho, so that

    e = r + rho sign(r) s,   k = kappa e = rho^2 + rho |r|/s.

sign(r) pulls every residual back by rho s, and kicks it across zero: SAM makes its own noise.

The mean over draws needs the law of r.  Near the manifold the predictor theta fluctuates about its
mean as a sum of many kicks, so r is taken as normal of mean mu = x.E[delta] and variance tau^2 =
x.C x, minus the label noise epsilon, over which nodes average.  Then, with phi and Phi the normal
density and distribution,

    E[sign r] = 2 Phi(mu/tau) - 1,   d E[sign r]/d mu = 2 phi(mu/tau)/tau,
    E|r| = mu E[sign r] + 2 tau phi(mu/tau),
    E|r|^3 = (mu^3 + 3 mu tau^2) E[sign r] + 2 tau (mu^2 + 2 tau^2) phi(mu/tau).

The derivative is how strongly the sample restores theta (linear response of a normal variable,
Stein's lemma: E[delta' e] = C x dE[e]/dmu).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray

NODES = 12
"""Nodes of the quadrature over label noise that is not +-sigma."""


MEAN_SIZE = math.sqrt(2 / math.pi)
"""E|x| of a standard normal x, and twice its density at 0."""

KURTOSIS = {"rademacher": 1.0, "gaussian": 3.0, "uniform": 1.8}
"""E[epsilon^4]/sigma^4 of each law."""


class Kick(NamedTuple):
    """The means over draws for each of n samples, each (n,)."""

    pull: FloatArray  # E[e]
    square: FloatArray  # E[e^2]
    fourth: FloatArray  # E[e^4]
    restoring: FloatArray  # dE[e]/dmu
    contraction: FloatArray  # E[k]


class Dynamics(Protocol):
    """A dynamics as the theory sees it."""

    @property
    def lr(self) -> float: ...

    @property
    def sigma(self) -> float: ...

    def shares(self, samples: int) -> tuple[float, float]:
        """The shares of E[e^2 x x^T] and of E[g] E[g]^T in E[g g^T], g = (1/B) sum_k e_k x_k."""
        ...

    def kick(self, mean: FloatArray, variance: FloatArray, size: FloatArray) -> Kick:
        """Of samples whose residuals have this mean and variance, (n,); size: |grad f|^2, (n,)."""
        ...


@dataclass(frozen=True)
class Descent:
    """SGD with label noise of standard deviation sigma and any law.

    Of B samples with replacement E[g g^T] is E[e^2 x x^T]/B + (1 - 1/B) E[g] E[g]^T; of all of
    them, `batch_size` 0, only the noise differs from step to step.

    Raises ValueError or TypeError for values out of range.
    """

    lr: float
    sigma: float
    batch_size: int = 1
    law: str = "rademacher"

    def __post_init__(self) -> None:
        checks.real("lr", self.lr, above=0.0)
        checks.real("sigma", self.sigma, least=0.0)
        if math.isinf(self.sigma * self.sigma):
            raise ValueError(f"sigma must have a finite square, got {self.sigma}")
        checks.integer("batch_size", self.batch_size, 0)
        checks.choice("law", self.law, tuple(KURTOSIS))

    def shares(self, samples: int) -> tuple[float, float]:
        """See Dynamics."""
        return 1 / (self.batch_size or samples), 1 - 1 / self.batch_size if self.batch_size else 1.0

    def kick(self, mean: FloatArray, variance: FloatArray, size: FloatArray) -> Kick:
        """See Dynamics."""
        if not self.batch_size:  # samples are not drawn: only the noise differs
            mean, variance, pull = np.zeros_like(mean), np.zeros_like(mean), mean
        else:
            pull = mean
        square = mean**2 + variance
        noise = self.sigma**2
        fourth = mean**4 + 6 * mean**2 * variance + 3 * variance**2
        fourth = fourth + 6 * square * noise + KURTOSIS[self.law] * noise**2
        return Kick(pull, square + noise, fourth, np.ones_like(mean), np.zeros_like(mean))


@dataclass(frozen=True)
class Sharp:
    """One-sample SAM of radius rho, with label noise of standard deviation sigma.

    Raises ValueError or TypeError for values out of range.
    """

    lr: float
    rho: float
    sigma: float = 0.0
    law: str = "rademacher"
    nodes: tuple[FloatArray, FloatArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        Descent(self.lr, self.sigma, law=self.law)
        checks.real("rho", self.rho, above=0.0)
        object.__setattr__(self, "nodes", _nodes(self.sigma, self.law))

    def shares(self, samples: int) -> tuple[float, float]:
        """See Dynamics."""
        return 1.0, 0.0

    def kick(self, mean: FloatArray, variance: FloatArray, size: FloatArray) -> Kick:
        """See Dynamics."""
        tau, s = np.sqrt(np.maximum(variance, 1e-300)), np.sqrt(size)
        move = self.rho * s
        if self.sigma == 0.0 and not mean.any():
            absolute, of_sign = MEAN_SIZE * tau, np.zeros_like(mean)
            slope, pull, square = MEAN_SIZE / tau, mean, variance
            cubic, quartic = 2 * absolute * variance, 3 * variance**2
        else:
            of_sign, slope, absolute, cubic, square, quartic = self._residuals(mean, tau)
            pull = mean + move * of_sign
        push = move**2
        return Kick(
            pull=pull,
            square=square + 2 * move * absolute + push,
            fourth=quartic + push * (6 * square + push) + 4 * move * (cubic + push * absolute),
            restoring=1 + move * slope,
            contraction=self.rho**2 + self.rho * absolute / s,
        )

    def _residuals(self, mean: FloatArray, tau: FloatArray) -> tuple[FloatArray, ...]:
        """E[sign r], d E[sign r]/d mu, E|r|, E|r|^3, E[r^2], E[r^4], (n,) each, over the noise."""
        from scipy.special import ndtr  # a slow import

        noise, weights = self.nodes
        mu, tau = mean[:, None] - noise, tau[:, None]
        z = np.clip(mu / tau, -40.0, 40.0)
        sign = 2 * ndtr(z) - 1
        twice = MEAN_SIZE * np.exp(-0.5 * z**2)
        mu_2, tau_2 = mu**2, tau**2
        each = (
            sign,
            twice / tau,
            mu * sign + tau * twice,
            mu * (mu_2 + 3 * tau_2) * sign + tau * (mu_2 + 2 * tau_2) * twice,
            mu_2 + tau_2,
            mu_2 * (mu_2 + 6 * tau_2) + 3 * tau_2**2,
        )
        return tuple(moment @ weights for moment in each)


@dataclass(frozen=True)
class FullSharp:
    """SAM of radius rho over all samples, without noise: full_sam.py has its theory.

    Raises ValueError or TypeError for values out of range.
    """

    lr: float
    rho: float
    sigma: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        Descent(self.lr, self.sigma)
        checks.real("rho", self.rho, above=0.0)

    def shares(self, samples: int) -> tuple[float, float]:
        """Nothing is drawn: E[g g^T] = E[g] E[g]^T."""
        return 0.0, 1.0

    def kick(self, mean: FloatArray, variance: FloatArray, size: FloatArray) -> Kick:
        """The means of powers of the residuals alone: full_sam.py has the step, (1) there."""
        return Descent(self.lr, self.sigma).kick(mean, variance, size)


def _nodes(sigma: float, law: str) -> tuple[FloatArray, FloatArray]:
    """Values of the label noise and their weights, (k,) each."""
    if sigma == 0.0:
        return np.zeros(1), np.ones(1)
    if law == "rademacher":
        return np.array([-sigma, sigma]), np.array([0.5, 0.5])
    if law == "gaussian":
        x, weights = np.polynomial.hermite_e.hermegauss(NODES)
        return sigma * x, weights / weights.sum()
    x, weights = np.polynomial.legendre.leggauss(NODES)
    return math.sqrt(3) * sigma * x, weights / 2
