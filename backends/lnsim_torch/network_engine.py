"""The network engine of torch (lnsim.backend.NetworkEngine), for the experiments on images.

It takes and returns numbers and plain arrays, besides networks and placed images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn, set_num_threads

from lnsim.base.checks import FloatArray
from lnsim.images import erf_network
from lnsim_torch.curvature import Curvature, CurvatureError, top_eigenvalues, trace
from lnsim_torch.distributed import group, joined
from lnsim_torch.linearization.descent import (
    effective_rank,
    kernel_change,
    label_alignment,
    mse_predictor,
)
from lnsim_torch.networks import resnet18, wide_resnet
from lnsim_torch.ntk.kernel import empirical_ntk
from lnsim_torch.samples import Data, Samples, place
from lnsim_torch.threads import held
from lnsim_torch.training.evaluation import evaluate, summed_loss
from lnsim_torch.training.pruning import pruning_curve
from lnsim_torch.training.recipe import Execution, Recipe
from lnsim_torch.training.train import Result, train

__all__ = [
    "Execution",
    "Recipe",
    "Result",
    "Tangent",
    "curvature",
    "default_device",
    "first_layer_norm",
    "group",
    "held",
    "joined",
    "place",
    "pruned_accuracy",
    "resnet18",
    "set_num_threads",
    "train",
    "wide_resnet",
]


TOLERANCE = 1e-3
"""Relative residual at which a sharpness is taken as found, and the bound of its relative error."""

TRACE_PRODUCTS = 12
"""Products with the Hessian for an estimate of its trace."""


def default_device() -> str:
    """ "cuda" where there is a CUDA device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def first_layer_norm(network: nn.Module) -> float:
    """Frobenius norm of the first layer's weights."""
    return float(next(network.parameters()).detach().norm())


def curvature(network: nn.Module, samples: Samples, loss: str, seed: int) -> dict[str, float]:
    """`sharpness` and `hessian_trace` of the mean loss on `samples`; NaN where not finite.

    `loss` is one of Recipe's; batch norm is in eval mode.
    """

    def mean_loss(f: Tensor, labels: Tensor) -> Tensor:
        return summed_loss(f, labels, loss) / len(labels)

    dtype = next(network.parameters()).dtype
    x = samples.inputs(slice(None), dtype)
    try:
        hessian = Curvature(network, x, samples.targets, mean_loss)
        with hessian.at_one_point():
            sharpness = float(top_eigenvalues(hessian, tolerance=TOLERANCE, seed=seed)[0])
            value = trace(hessian, TRACE_PRODUCTS, seed=seed).value
    except CurvatureError:
        return {"sharpness": math.nan, "hessian_trace": math.nan}
    return {"sharpness": sharpness, "hessian_trace": value}


def pruned_accuracy(
    network: nn.Module, data: Data, loss: str, percentages: Sequence[float], execution: Execution
) -> FloatArray:
    """Test accuracy with each of the `percentages` of the weights kept; see pruning.py."""
    measure = partial(evaluate, samples=data.test, loss=loss, execution=execution)
    return np.array([accuracy for _, accuracy in pruning_curve(network, measure, percentages)])


class Tangent:
    """A network's tangent kernel on the training images, and predictions from it.

    The kernel of all outputs, (n, n, C, C), at the network's present parameters.  Below
    `largest_stable_lr` gradient descent on the linearised network's squared loss converges.
    """

    def __init__(self, network: nn.Module, data: Data) -> None:
        self._data = data
        self._one_at_a_time = Lock()  # two kernels at once may exceed the memory
        self._x = _inputs(data.train)
        try:
            self._kernel = empirical_ntk(network.to(data.device), self._x)
            self.largest_stable_lr = _largest_stable_lr(self._kernel)
        except RuntimeError as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if out_of_memory or "can't allocate memory" in str(error):
                raise ValueError(
                    f"not enough memory on {data.device} for the kernel of {len(self._x)} samples:"
                    " lower samples"
                ) from error
            raise

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Of the kernel K of `network` on the same images, three numbers.

        `ntk_distance`: |K - K_0|_F / |K_0|_F.  Of the trace of K over the outputs, (n, n):
        `kernel_alignment` with the labels, and `kernel_rank`, its effective rank.
        """
        with self._one_at_a_time:
            kernel = empirical_ntk(network, self._x)
            traced = kernel.double().diagonal(dim1=2, dim2=3).sum(-1)
            y = erf_network.one_hot(self._data.train.labels, self._data.classes)
            return {
                "ntk_distance": float(kernel_change(kernel, self._kernel)),
                "kernel_alignment": float(
                    label_alignment(traced, torch.tensor(y, device=kernel.device))
                ),
                "kernel_rank": float(effective_rank(traced)),
            }

    def losses(self, network: nn.Module, lr: float, steps: Sequence[int]) -> dict[str, FloatArray]:
        """Training and test loss of the linearised network after `steps` of gradient descent.

        `network` must have the parameters of the kernel.  Squared loss, full batch, clean labels.
        """
        x_test = _inputs(self._data.test)
        with torch.no_grad():
            f, f_test = network(self._x), network(x_test)
        targets = [
            erf_network.one_hot(samples.labels, self._data.classes)
            for samples in (self._data.train, self._data.test)
        ]
        predictor = mse_predictor(
            self._kernel, f, torch.tensor(targets[0], device=f.device), lr,
            empirical_ntk(network, x_test, self._x), f_test,
        )  # fmt: skip
        return {
            f"{part}_loss": erf_network.loss(predict(steps, discrete=True).cpu().numpy(), y)
            for part, predict, y in zip(
                ("train", "test"), (predictor.train, predictor.test), targets, strict=True
            )
        }


def _largest_stable_lr(kernel: Tensor) -> float:
    """2 nC / l for the largest eigenvalue l: a step multiplies the residual by 1 - lr l / nC."""
    n, _, classes, _ = kernel.shape
    matrix = kernel.double().transpose(1, 2).reshape(n * classes, n * classes)
    return 2.0 * n * classes / float(torch.linalg.eigvalsh(matrix)[-1])


def _inputs(samples: Samples) -> Tensor:
    return samples.inputs(slice(None))
