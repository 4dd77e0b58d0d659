"""The linear engine on torch, CPU or CUDA: gradients by autograd, replicas as a batch.

It verifies the hand-derived kernels independently: every step computes the loss of the network and
its gradient by autograd, without the algebra of lnsim_numba.

A mask freezes a replica whose squared residual reaches DIVERGED_ABOVE, so that no step waits for
the host.  On CUDA, blocks of `BLOCK` steps are captured as a CUDA graph and replayed: a step then
costs its kernels, not their launches.  Words become samples and noise on the CPU (lnsim.streams),
for one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lnsim import streams
from lnsim.backend import Gradient, ModelState, Segment, State, kernel_of
from lnsim.base.checks import DIVERGED_ABOVE, FloatArray
from lnsim.dynamics import FULL_BATCH, Dynamics, Oscillation
from lnsim.models.problem import Problem
from lnsim.models.twin import Twin
from lnsim_torch.devices import check_device
from lnsim_torch.general import train_model
from lnsim_torch.tensors import ratio, to_numpy
from lnsim_torch.threads import held

BLOCK = 64
"""Steps in a CUDA graph; a call of fewer than two blocks is not worth capturing."""

CAPTURING = ("cuda",)
"""Types of devices that can capture graphs."""

DTYPES = {"float64": torch.float64, "float32": torch.float32}

Words = NDArray[np.uint64]


class TorchEngine:
    """Implements lnsim.backend.LinearEngine.

    `device`: "cpu", "cuda" or "cuda:N"; `dtype`: "float64" or "float32".  Raises ValueError for
    other values, and for a device that is not available.
    """

    def __init__(self, device: str = "cpu", dtype: str = "float64") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        check_device(device)
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]

    @held(1)
    def advance(
        self,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        first_step: int,
        rows: FloatArray | None = None,
        twin: Twin | None = None,
    ) -> None:
        """See lnsim.backend.LinearEngine.advance.  Uses one CPU thread: see threads.py."""
        kernel = kernel_of(KERNELS, dynamics, "torch")
        steps = words.shape[1]
        if steps == 0:
            return
        run = kernel(self, state, problem, dynamics, words, first_step)
        done = run.replay_blocks() if self.device.type in CAPTURING and rows is None else 0
        for t in range(done, steps):
            before = run.W.clone(), run.a.clone()
            run.step(t)
            if rows is not None:
                slot = (first_step + t) % rows.shape[2]
                rows[:, 0, slot], rows[:, 1, slot] = _moves(*before, run.W, run.a)
        run.store(state)
        if twin is not None:
            self._advance_twin(twin, problem, dynamics, words)

    def _advance_twin(
        self, linearized: Twin, problem: Problem, dynamics: Dynamics, words: Words
    ) -> None:
        draws = _Draws(self, problem, dynamics, words)
        rates = _Rates(self, dynamics, len(words))
        theta, V = self.tensor(linearized.theta), self.tensor(linearized.velocity)
        A, start = self.tensor(linearized.A), self.tensor(linearized.start)
        alive = torch.ones(len(words), 1, dtype=torch.bool, device=self.device)
        for t in range(words.shape[1]):
            z, deciding = draws.gradient(theta, t)
            alive &= (deciding < DIVERGED_ABOVE)[:, None]
            if rates.sharpness_aware:
                move = z @ A
                norm = (z * move).sum(dim=1, keepdim=True).clamp(min=0.0).sqrt()
                z, _ = draws.gradient(theta + ratio(rates.rho[:, None], norm) * move, t)
            new_V = rates.momentum[:, None] * V + z @ A + rates.decay[:, None] * (theta + start)
            V = torch.where(alive, new_V, V)
            theta = torch.where(alive, theta - rates.lr[:, None] * new_V, theta)
        linearized.theta[:], linearized.velocity[:] = to_numpy(theta), to_numpy(V)

    @held(1)
    def train(self, state: ModelState, segment: Segment) -> None:
        """See lnsim.backend.LinearEngine.train.  Uses one CPU thread: see threads.py."""
        train_model(state, segment, self.tensor)

    def gradient(self, state: State, problem: Problem) -> Gradient:
        """See lnsim.backend.LinearEngine.gradient."""
        W, a = self.tensor(state.W).requires_grad_(), self.tensor(state.a).requires_grad_()
        predictions = (a[:, None, :] @ W)[:, 0] @ self.tensor(problem.X).T
        loss = 0.5 * (predictions - self.tensor(problem.y)).square().mean(dim=1).sum()
        grad_W, grad_a = torch.autograd.grad(loss, (W, a))
        return Gradient(to_numpy(grad_W), to_numpy(grad_a))

    def tensor(self, array: FloatArray) -> Tensor:
        """A copy of `array` on the device, in the engine's precision."""
        return torch.tensor(array, dtype=self.dtype, device=self.device)


class _Rates:
    """lr, rho, momentum and weight decay of every replica, (S,) each."""

    def __init__(self, engine: TorchEngine, dynamics: Dynamics, replicas: int) -> None:
        scalars = dynamics.scalars()
        values = (scalars.get(name, 0.0) for name in ("lr", "rho", "momentum", "weight_decay"))
        each = (engine.tensor(np.full(replicas, value)) for value in values)
        self.lr, self.rho, self.momentum, self.decay = each
        self.sharpness_aware = bool(np.any(np.asarray(scalars.get("rho", 0.0)) > 0.0))


class _Draws:
    """The samples and labels of every step of a call, on the device."""

    def __init__(
        self, engine: TorchEngine, problem: Problem, dynamics: Dynamics, words: Words
    ) -> None:
        replicas, steps, _ = words.shape
        self.X, self.y = engine.tensor(problem.X), engine.tensor(problem.y)
        self.full = dynamics.batch_size == FULL_BATCH
        self.chain: Tensor | None = None
        self.index = torch.zeros(steps, 0, device=engine.device)
        if not self.full:
            index = streams.sample_index(words, problem.samples)
            self.index = torch.tensor(index, device=engine.device).transpose(0, 1).contiguous()
        noise = np.zeros((replicas, steps, 1))
        if dynamics.label_noise is not None:
            sigma = np.broadcast_to(dynamics.label_noise.sigma, (replicas,))
            noise = sigma[:, None, None] * streams.unit_noise(words, dynamics.label_noise.law)
        self.noise = engine.tensor(noise).transpose(0, 1).contiguous()

    def loss(self, theta: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(1/2B) sum_b r_b^2 over the batch of step t, summed over replicas, at theta : (S, r).

        Also returns the squared residual that decides on divergence, (S,): the largest in the
        batch; for the full batch the mean of the residuals without noise.
        """
        if self.full:
            clean = theta @ self.X.T - self.y
            return 0.5 * (clean - self.noise[t]).square().mean(dim=1).sum(), clean.square().mean(1)
        x = self.X[self.index[t]]
        residual = (x @ theta[:, :, None])[:, :, 0] - self.y[self.index[t]] - self.noise[t]
        return 0.5 * residual.square().mean(dim=1).sum(), residual.square().amax(dim=1)

    def gradient(self, theta: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The gradient of the loss in theta, (S, r), and the deciding squared residual, (S,)."""
        theta = theta.detach().requires_grad_()
        loss, deciding = self.loss(theta, t)
        return torch.autograd.grad(loss, theta)[0], deciding.detach()


class _DescentKernel:
    """The kernel "descent": the weights of all replicas, and one step of training in place."""

    def __init__(
        self,
        engine: TorchEngine,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        first_step: int,
    ) -> None:
        self._engine, self._draws = engine, _Draws(engine, problem, dynamics, words)
        self._rates = _Rates(engine, dynamics, len(state.W))
        self.W, self.a = engine.tensor(state.W), engine.tensor(state.a)
        momentum = state.W_velocity is not None and state.a_velocity is not None
        self._V_W = engine.tensor(state.W_velocity) if momentum else torch.zeros_like(self.W)  # type: ignore[arg-type]
        self._V_a = engine.tensor(state.a_velocity) if momentum else torch.zeros_like(self.a)  # type: ignore[arg-type]
        self._diverged_at = torch.tensor(state.diverged_at, device=engine.device)
        self._current_step = torch.tensor(first_step, device=engine.device)

    def _gradients(self, W: Tensor, a: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        W, a = W.detach().requires_grad_(), a.detach().requires_grad_()
        loss, deciding = self._draws.loss((a[:, None, :] @ W)[:, 0], t)
        grad_W, grad_a = torch.autograd.grad(loss, (W, a))
        return grad_W, grad_a, deciding.detach()

    def direction(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of step t of the call in W and in a, and the deciding squared residual."""
        grad_W, grad_a, deciding = self._gradients(self.W, self.a, t)
        if self._rates.sharpness_aware:
            norm = (grad_W.square().sum(dim=(1, 2)) + grad_a.square().sum(dim=1)).sqrt()
            h = ratio(self._rates.rho, norm)
            ascended = self.W + h[:, None, None] * grad_W, self.a + h[:, None] * grad_a
            grad_W, grad_a, _ = self._gradients(*ascended, t)
        return grad_W, grad_a, deciding

    def step(self, t: int) -> None:
        """One step with the draws of step t of the call."""
        rates = self._rates
        grad_W, grad_a, deciding = self.direction(t)
        diverges = (self._diverged_at < 0) & ~(deciding < DIVERGED_ABOVE)
        self._diverged_at.copy_(torch.where(diverges, self._current_step, self._diverged_at))
        self._current_step += 1
        alive = self._diverged_at < 0
        for weights, V, gradient in ((self.W, self._V_W, grad_W), (self.a, self._V_a, grad_a)):
            per_replica = (-1, *(1,) * (weights.ndim - 1))
            momentum, decay, lr, moves = (
                rate.view(per_replica) for rate in (rates.momentum, rates.decay, rates.lr, alive)
            )
            new_V = momentum * V + gradient + decay * weights
            V.copy_(torch.where(moves, new_V, V))
            weights.copy_(torch.where(moves, weights - lr * new_V, weights))

    def replay_blocks(self) -> int:
        """Runs all whole blocks as replays of one captured block; returns the steps done."""
        draws, steps = self._draws, len(self._draws.noise)
        if steps < 2 * BLOCK:
            return 0
        all_draws = (draws.index, draws.noise, draws.chain)
        block_draws = [None if array is None else array[:BLOCK].clone() for array in all_draws]
        draws.index, draws.noise, draws.chain = block_draws[0], block_draws[1], block_draws[2]  # type: ignore[assignment]
        tensors = (self.W, self.a, self._V_W, self._V_a, self._diverged_at, self._current_step)
        before = [tensor.clone() for tensor in tensors]
        # An attribute, because a graph must not be freed while it runs.
        self._replay = _captured(self.step, self._engine.device)
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        blocks = steps // BLOCK
        for block in range(blocks):
            for part, array in zip(block_draws, all_draws, strict=True):
                if part is not None and array is not None:
                    part.copy_(array[block * BLOCK : (block + 1) * BLOCK])
            self._replay()
        draws.index, draws.noise, draws.chain = all_draws
        return blocks * BLOCK

    def store(self, state: State) -> None:
        """Writes the weights, the velocities and the steps of divergence into `state`."""
        state.W[:], state.a[:] = to_numpy(self.W), to_numpy(self.a)
        if state.W_velocity is not None and state.a_velocity is not None:
            state.W_velocity[:], state.a_velocity[:] = to_numpy(self._V_W), to_numpy(self._V_a)
        state.diverged_at[:] = self._diverged_at.cpu().numpy()


class _OscillationKernel(_DescentKernel):
    """The kernel "oscillation": the chains always advance, but act only while it is on."""

    def __init__(
        self,
        engine: TorchEngine,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        first_step: int,
    ) -> None:
        super().__init__(engine, state, problem, dynamics, words, first_step)
        assert state.chain is not None
        amplitude = np.full(len(words), dynamics.scalars()["amplitude"])
        chain = chain_states(state.chain, words, amplitude)
        state.chain[:] = chain[-1]
        if cast(Oscillation, dynamics).oscillating:
            self._draws.chain = engine.tensor(chain)

    def direction(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """As in `_DescentKernel`, but the second layer is set to its chains and is not trained."""
        chain = self._draws.chain
        if chain is None:
            return super().direction(t)
        self.a.copy_(chain[t])
        grad_W, grad_a, deciding = super().direction(t)
        return grad_W, torch.zeros_like(grad_a), deciding

    def store(self, state: State) -> None:
        """As in `_DescentKernel`, but the second layer becomes the last state of its chains."""
        super().store(state)
        if self._draws.chain is not None and state.chain is not None:
            state.a[:] = state.chain


KERNELS: dict[str, type[_DescentKernel]] = {
    "descent": _DescentKernel,
    "oscillation": _OscillationKernel,
}
"""The class that runs each `kernel` of a dynamics."""


def _captured(step: Callable[[int], None], device: torch.device) -> Callable[[], None]:
    """A function that runs steps 0 ... BLOCK - 1 on a CUDA device as one captured graph."""
    with torch.cuda.device(device):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(0)  # autograd and the allocator warm up outside the capture
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            for t in range(BLOCK):
                step(t)
    return graph.replay


def chain_states(start: FloatArray, words: Words, amplitude: FloatArray) -> FloatArray:
    """The chains of Oscillation at every step from `start` : (S, m), shape (T + 1, S, m).

    words : (S, T, ceil(m/64)), amplitude : (S,).
    """
    neurons = np.arange(start.shape[1])
    bits = words[:, :, neurons // 64] >> (neurons % 64).astype(np.uint64) & np.uint64(1)
    signs = amplitude[:, None, None] * np.where(bits == 1, 1.0, -1.0)
    states = np.zeros((words.shape[1] + 1, *start.shape))
    states[0] = start
    for t in range(words.shape[1]):
        states[t + 1] = np.where(states[t] == 0.0, signs[:, t], 0.0)
    return states


def _moves(W: Tensor, a: Tensor, new_W: Tensor, new_a: Tensor) -> tuple[FloatArray, FloatArray]:
    """v and |g| a of a step that changed a by -v and W by -a g^T (lnsim.ledger), (S, p) each."""
    length = ratio((new_W - W).square().sum(dim=(1, 2)).sqrt(), a.square().sum(dim=1).sqrt())
    return to_numpy(a - new_a), to_numpy(length[:, None] * a)
