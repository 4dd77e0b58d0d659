"""What is done to the weights at a step: frozen descriptions, without any state.

One step of SGD with a mini-batch b = 1 ... B, label noise eps_b and residuals
r_b = f(x_b) - y_b - eps_b follows the gradient of (1/2B) sum_b r_b^2:

    z = (1/B) sum_b r_b x_b,     grad W = a z^T,     grad a = W z,

both taken at the same W and a.  With momentum mu and weight decay w (heavy ball; Polyak 1964,
written as torch.optim.SGD writes it), for each of the two layers:

    V <- mu V + grad + w (weights),     weights <- weights - lr V.
"""

from __future__ import annotations

from dataclasses import dataclass

from lnsim import _checks, streams
from lnsim._checks import Scalar


@dataclass(frozen=True)
class LabelNoise:
    """Fresh noise on every label drawn: mean 0, standard deviation `sigma`.

    `law`: "rademacher" (+sigma or -sigma, the paper's), "gaussian" or "uniform" (on
    [-sqrt(3) sigma, sqrt(3) sigma]).  Raises ValueError for sigma < 0 or an unknown law.
    """

    sigma: Scalar
    law: str = "rademacher"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _checks.real("sigma", self.sigma, least=0.0))
        _checks.choice("law", self.law, streams.LAWS)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, `batch_size` samples a step drawn with replacement.

    `lr`, `momentum` in [0, 1), `weight_decay` and the noise's sigma may be arrays of one value
    per replica.  Raises ValueError for values out of range.
    """

    lr: Scalar
    noise: LabelNoise | None = None
    batch_size: int = 1
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", _checks.real("lr", self.lr, above=0.0))
        _checks.integer("batch_size", self.batch_size, 1)
        momentum = _checks.real("momentum", self.momentum, least=0.0)
        if (momentum >= 1.0) if isinstance(momentum, float) else (momentum >= 1.0).any():
            raise ValueError(f"momentum must be below 1, got {self.momentum}")
        object.__setattr__(self, "momentum", momentum)
        decay = _checks.real("weight_decay", self.weight_decay, least=0.0)
        object.__setattr__(self, "weight_decay", decay)
        _check_noise(self.noise)

    def draws(self, samples: int) -> int:
        """Words of the training stream that one step uses; `samples` is n."""
        return self.batch_size


def _check_noise(noise: object) -> None:
    if noise is not None and not isinstance(noise, LabelNoise):
        raise TypeError(f"noise must be a LabelNoise or None, got {noise!r}")
