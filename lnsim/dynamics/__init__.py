"""What is done to the weights at a step: a base class and one file a family of descriptions.

A dynamics is a frozen description without any state.  One step on a batch b = 1 ... B, with label
noise eps_b and residuals r_b = f(x_b) - y_b - eps_b, follows the gradient of (1/2B) sum_b r_b^2:

    z = (1/B) sum_b r_b x_b,     grad W = a z^T,     grad a = W z,

both taken at the same W and a; what becomes of the gradient is written in each file.
"""

from lnsim.dynamics.base import FULL_BATCH, Dynamics, Schedule
from lnsim.dynamics.custom import CustomDynamics
from lnsim.dynamics.descent import GD, SGD
from lnsim.dynamics.noise import (
    Dropout,
    GradientNoise,
    LabelFlips,
    LabelNoise,
    Noise,
    ParameterNoise,
)
from lnsim.dynamics.oscillation import Oscillation
from lnsim.dynamics.sam import SAM
from lnsim.dynamics.schedule import Alternating, Decay, Factor, Piecewise, Scheduled, WarmUp

__all__ = [
    "FULL_BATCH",
    "GD",
    "SAM",
    "SGD",
    "Alternating",
    "CustomDynamics",
    "Decay",
    "Dropout",
    "Dynamics",
    "Factor",
    "GradientNoise",
    "LabelFlips",
    "LabelNoise",
    "Noise",
    "Oscillation",
    "ParameterNoise",
    "Piecewise",
    "Schedule",
    "Scheduled",
    "WarmUp",
]
