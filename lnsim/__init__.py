"""lnsim: how noise in training carries a network from the lazy to the rich regime."""

from lnsim.dynamics import SGD, LabelNoise
from lnsim.network import Network, ntk_init
from lnsim.problem import Problem, gaussian_regression
from lnsim.simulate import simulate
from lnsim.trajectory import Status, Trajectory

__all__ = [
    "SGD",
    "LabelNoise",
    "Network",
    "Problem",
    "Status",
    "Trajectory",
    "gaussian_regression",
    "ntk_init",
    "simulate",
]
