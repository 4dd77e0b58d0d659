"""lnsim: how noise in training carries a network from the lazy to the rich regime."""

from lnsim.dynamics import GD, SAM, SGD, Alternating, CustomDynamics, LabelNoise, Oscillation
from lnsim.models.problem import Problem, gaussian_regression
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
