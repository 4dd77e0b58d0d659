"""The linear network trained by label noise SGD, written in several ways.

A loop takes the problem, the weights and the draws, all NumPy arrays, and returns the weights after
the last draw.  `train` wraps it into the same work as lnsim.simulate: draws from random words, the
state (dense, or lnsim's reduction of it), the loop, and the lift back to full weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lnsim
from bench.rounds import importable
from lnsim import streams
from lnsim.models.reduction import dense, reduce

Array = NDArray[np.float64]
Loop = Callable[[Array, Array, Array, NDArray[np.int64], Array, float], tuple[Array, Array]]

LR, SIGMA, SEED = 1e-3, 4.0, 0
OURS = "lnsim, numba"


def numpy_loop(
    X: Array, W: Array, a: Array, index: NDArray[np.int64], targets: Array, lr: float
) -> tuple[Array, Array]:
    """The equations of lnsim_numba/kernels.py, line by line."""
    W, a = W.copy(), a.copy()
    for i, target in zip(index.tolist(), targets.tolist(), strict=True):
        x = X[i]
        u = W @ x
        c = lr * (a @ u - target)
        W -= np.multiply.outer(c * a, x)
        a -= c * u
    return W, a


def torch_loops(device: str) -> dict[str, Loop]:
    """The loops on torch's `device`; their results are on the host, so the work has ended."""
    import torch

    def on_device(*arrays: Any) -> list[torch.Tensor]:
        return [torch.tensor(array, device=device) for array in arrays]

    def autograd(
        X: Array, W: Array, a: Array, index: NDArray[np.int64], targets: Array, lr: float
    ) -> tuple[Array, Array]:
        inputs, first, second, labels = on_device(X, W, a, targets)
        weights = first.requires_grad_(), second.requires_grad_()
        for t, i in enumerate(index.tolist()):
            loss = 0.5 * (second @ (first @ inputs[i]) - labels[t]).square()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.sub_(gradient, alpha=lr)
        return first.detach().cpu().numpy(), second.detach().cpu().numpy()

    @torch.inference_mode()
    def by_hand(
        X: Array, W: Array, a: Array, index: NDArray[np.int64], targets: Array, lr: float
    ) -> tuple[Array, Array]:
        inputs, first, second, labels = on_device(X, W, a, targets)
        for t, i in enumerate(index.tolist()):
            x = inputs[i]
            u = first @ x
            c = lr * (second @ u - labels[t])
            first.addr_(second, c * x, alpha=-1)
            second.sub_(c * u)
        return first.cpu().numpy(), second.cpu().numpy()

    return {"PyTorch, autograd": autograd, "PyTorch, by hand": by_hand}


def jax_loop(device: str) -> Loop:
    """One compiled lax.scan over all draws, in float64."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    place = jax.devices(device)[0]

    @jax.jit
    def scan(X: Any, W: Any, a: Any, index: Any, targets: Any, lr: float) -> Any:
        def step(weights: Any, draw: Any) -> Any:
            (W, a), (i, target) = weights, draw
            x = X[i]
            u = W @ x
            c = lr * (a @ u - target)
            return (W - jnp.outer(c * a, x), a - c * u), None

        return jax.lax.scan(step, (W, a), (index, targets))[0]

    def loop(
        X: Array, W: Array, a: Array, index: NDArray[np.int64], targets: Array, lr: float
    ) -> tuple[Array, Array]:
        first, second = scan(*jax.device_put((X, W, a, index, targets, lr), place))
        return np.asarray(first), np.asarray(second)

    return loop


Call = Callable[[lnsim.Problem, lnsim.Network, int, bool], tuple[Array, Array]]
"""(problem, network, steps, reduced) -> the weights W and a after `steps` steps."""


def train(
    loop: Loop, problem: lnsim.Problem, network: lnsim.Network, steps: int, reduced: bool
) -> tuple[Array, Array]:
    """Trains with `loop`, on the draws of replica 0 of seed SEED."""
    words = streams.WordStream(SEED, 1).take(steps)[0]
    index = streams.sample_index(words, problem.samples)
    targets = problem.y[index] + SIGMA * streams.unit_noise(words, "rademacher")
    state = reduce(problem, network) if reduced else dense(problem, network)
    return state.lift(*loop(state.problem.X, state.W, state.a, index, targets, LR), 1.0)


def simulate(
    backend: str, problem: lnsim.Problem, network: lnsim.Network, steps: int, reduced: bool
) -> tuple[Array, Array]:
    """The same training by lnsim."""
    run = lnsim.simulate(
        problem,
        network,
        lnsim.SGD(LR, lnsim.LabelNoise(SIGMA)),
        steps=steps,
        record_every=steps,
        seed=SEED,
        backend=backend,
        reduce=reduced,
        linearized=False,
    )
    return run.final.W, run.final.a


def contenders(device: str) -> tuple[dict[str, Call], dict[str, str]]:
    """The available calls by name, and the reasons why others are missing, by name.

    lnsim's numba backend and NumPy run on the CPU whatever `device` is.
    """
    calls: dict[str, Call] = {OURS: partial(simulate, "numba")}
    loops: dict[str, Loop] = {"NumPy loop": numpy_loop}
    missing = {}
    if importable("torch"):
        calls["lnsim, torch"] = partial(simulate, f"torch:{device}")
        loops |= torch_loops(device)
    else:
        missing["PyTorch"] = "not installed"
    try:
        loops["JAX, lax.scan"] = jax_loop(device)
    except ImportError:
        missing["JAX"] = "not installed"
    except RuntimeError:
        missing["JAX"] = f"sees no {device}"
    return calls | {name: partial(train, loop) for name, loop in loops.items()}, missing
