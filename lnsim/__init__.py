"""lnsim: how noise in training carries a network from the lazy to the rich regime."""

from lnsim.dynamics import (
    GD,
    SAM,
    SGD,
    Alternating,
    CustomDynamics,
    Decay,
    Dropout,
    GradientNoise,
    LabelFlips,
    LabelNoise,
    Oscillation,
    ParameterNoise,
    Piecewise,
    Scheduled,
    WarmUp,
)
from lnsim.models.curvature import Curvature
from lnsim.models.deep import DeepLinear, deep_init
from lnsim.models.diagonal import Diagonal, diagonal_init
from lnsim.models.problem import Problem
from lnsim.models.problems import (
    gaussian_classes,
    gaussian_regression,
    low_rank_teacher,
    sparse_regression,
)
from lnsim.models.relu import ReLUNetwork, relu_init
from lnsim.models.two_layer import Network, ntk_init
from lnsim.run.record import Status
from lnsim.simulation.simulate import simulate
from lnsim.simulation.trajectory import Trajectory
from lnsim.sweeps.sweep import Sweep, sweep

__all__ = [
    "GD",
    "SAM",
    "SGD",
    "Alternating",
    "Curvature",
    "CustomDynamics",
    "Decay",
    "DeepLinear",
    "Diagonal",
    "Dropout",
    "GradientNoise",
    "LabelFlips",
    "LabelNoise",
    "Network",
    "Oscillation",
    "ParameterNoise",
    "Piecewise",
    "Problem",
    "ReLUNetwork",
    "Scheduled",
    "Status",
    "Sweep",
    "Trajectory",
    "WarmUp",
    "deep_init",
    "diagonal_init",
    "gaussian_classes",
    "gaussian_regression",
    "low_rank_teacher",
    "ntk_init",
    "relu_init",
    "simulate",
    "sparse_regression",
    "sweep",
]
