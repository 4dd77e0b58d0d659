"""Networks linearised at their parameters, and their gradient descent in closed form."""

from lnsim_torch.linearization.descent import linearize, mse_predictor

__all__ = ["linearize", "mse_predictor"]
