"""Training of networks on images: plans, batches, state, measures, pruning."""

from lnsim_torch.training.plan import Execution, Plan
from lnsim_torch.training.train import Result, train

__all__ = ["Execution", "Plan", "Result", "train"]
