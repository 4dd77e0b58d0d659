"""Networks linearised at their parameters, and their gradient descent in closed form."""

from lnsim_torch.linearization.descent import (
    effective_rank,
    kernel_change,
    label_alignment,
    linearize,
    mse_predictor,
)

__all__ = ["effective_rank", "kernel_change", "label_alignment", "linearize", "mse_predictor"]
