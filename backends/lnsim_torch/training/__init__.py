"""Training of networks on images: recipes, batches, state, evaluation, pruning."""

from lnsim_torch.training.recipe import Execution, Recipe
from lnsim_torch.training.train import Result, train

__all__ = ["Execution", "Recipe", "Result", "train"]
