"""The two-layer erf network on torch: the same training, with gradients by autograd.

The reduction is in lnsim/images/erf_network.py: a step of gradient descent on the first layer is
A <- A - lr dL/dH, so autograd computes the gradients at the preactivations H and at the second
layer, in some thirty small kernels a step.  On a GPU all runs share them.  On the CPU each run has
its own thread: threads that share such small products wait for each other, ten times as long as
they work if another program uses a core.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss

from lnsim.base.threads import in_blocks
from lnsim.images.erf_network import Start, State
from lnsim_torch.devices import check_device
from lnsim_torch.threads import held

__all__ = ["advance", "check_device"]


def advance(
    state: State,
    start: Start,
    labels: NDArray[np.int64],
    lr: float,
    *,
    dtype: str,
    device: str = "cpu",
) -> None:
    """See lnsim.images.erf_network.Engine."""
    real = getattr(torch, dtype)
    if torch.device(device).type != "cpu":
        _descend(state, start, labels, lr, real, device)
        return

    def descend(runs: slice) -> None:
        torch.set_num_threads(1)  # for the calling thread
        part = State(*(values[runs] for values in vars(state).values()))
        _descend(part, start, labels[runs], lr, real, device)

    with held(1):
        in_blocks(descend, len(state.b2))


def _descend(
    state: State,
    start: Start,
    labels: NDArray[np.int64],
    lr: float,
    real: torch.dtype,
    device: str,
) -> None:
    """Takes all runs of `state` through T steps together."""
    runs, classes = state.b2.shape

    def tensor(array: NDArray[np.generic]) -> Tensor:
        return torch.tensor(array, device=device)

    gram = tensor(start.gram).expand(runs, -1, -1)
    preactivation = tensor(start.preactivation)
    masters = [tensor(values) for values in vars(state).values()]
    targets = torch.eye(classes, dtype=torch.float64, device=device)[tensor(labels.swapaxes(0, 1))]
    coefficients, W2, b2 = masters
    for target in targets.mT:
        H = torch.baddbmm(preactivation, gram, coefficients)
        gradients = _gradients(H, W2, b2, target, real)
        for master, gradient in zip(masters, gradients, strict=True):
            master.sub_(gradient, alpha=lr)
    for values, master in zip(vars(state).values(), masters, strict=True):
        values[...] = master.cpu().numpy()


def _gradients(
    H: Tensor, W2: Tensor, b2: Tensor, target: Tensor, real: torch.dtype
) -> tuple[Tensor, ...]:
    """Gradients of the loss at H, W2 and b2, of type `real`.  `target` : (S, C, n).

    The loss is differentiated in double precision, the network in `real`: late in training f - y
    is a small difference of large numbers, and an error of f would not fade like an error of a
    gradient.  So the f on autograd's tape gets the value computed in double precision.
    """
    leaves = [value.detach().to(real).requires_grad_() for value in (H, W2, b2)]
    f = _outputs(*leaves).double()
    if real != torch.float64:
        f.detach().copy_(_outputs(H, W2, b2))
    # The losses of all runs are summed: runs share no parameter.
    loss = mse_loss(f, target, reduction="sum") / (2 * target[0].numel())
    return torch.autograd.grad(loss, leaves)


def _outputs(H: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
    """f at preactivations H, (S, C, n); this layout gives the fastest products in both passes."""
    return torch.baddbmm(b2[:, :, None], W2, torch.erf(H).mT)
