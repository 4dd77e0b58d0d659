"""Networks linearised at their parameters, and descent on them in closed form."""

from lnsim_torch.linearization.descent import linearize, mse_predictor

__all__ = ["linearize", "mse_predictor"]
