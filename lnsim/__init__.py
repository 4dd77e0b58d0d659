"""lnsim: how noise in training carries a network from the lazy to the rich regime."""

from lnsim.dynamics import GD, SAM, SGD, Alternating, CustomDynamics, LabelNoise, Oscillation
from lnsim.network import Network, ntk_init
from lnsim.problem import Problem, gaussian_regression
from lnsim.simulate import simulate
from lnsim.sweep import Sweep, sweep
from lnsim.trajectory import Status, Trajectory

__all__ = [
    "GD",
    "SAM",
    "SGD",
    "Alternating",
    "CustomDynamics",
    "LabelNoise",
    "Network",
    "Oscillation",
    "Problem",
    "Status",
    "Sweep",
    "Trajectory",
    "gaussian_regression",
    "ntk_init",
    "simulate",
    "sweep",
]
