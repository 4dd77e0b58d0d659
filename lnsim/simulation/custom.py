"""A user's own rule: its training loop, and a test whether it may be reduced.

A rule may be trained in the reduced coordinates of reduction.py if and only if it commutes with the
lift from them: with M = [W | a] = lift(R), a step of the full network must be the lift of a step of
the small one,

    step(lift(R), X) = lift(step(R, X V)),     lift(R) = Q R [V^T, 1] + [rest, 0].

Any rule that multiplies M from the right by a matrix that depends on the data and on M^T M alone
does; one that treats entries one by one, counts neurons or shrinks the rest does not.  The test
takes STEPS steps of the rule, full and reduced, from the given network and from random networks of
other scales, with a random rotation between Q and R.  A few states are evidence, not proof: run a
rule that behaves differently elsewhere, for example beyond a threshold, with reduce=False.

The difference is measured relative to the distance that the weights moved, so that a small learning
rate hides nothing, with an allowance for the rounding of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim.backend import LinearEngine, ModelState, Segment, State
from lnsim.base.checks import DIVERGED_ABOVE, FloatArray, Noting, per_replica
from lnsim.base.threads import in_blocks
from lnsim.dynamics import FULL_BATCH, CustomDynamics, Dynamics
from lnsim.models.problem import Problem
from lnsim.models.reduction import Reduction, dense
from lnsim.models.reduction import reduce as reduce_both
from lnsim.models.twin import Twin
from lnsim.models.two_layer import Network

STEPS = 3
SCALES = (1.0, 0.1, 10.0)
"""Scales of the random networks' entries, relative to those of the given network."""

TOLERANCE = 1e-6
ROUNDING = 1e8 * np.finfo(np.float64).eps
"""Share of the weights added to the distance moved: TOLERANCE times it is a hundred roundings."""

Weights = tuple[FloatArray, ...]
"""W and a, then the two arrays of memory if the rule has memory."""


def reduction_by_trial(
    rule: CustomDynamics, problem: Problem, network: Network, steps: int, reduce: bool
) -> Reduction:
    """The first reduction that `rule` commutes with, or the dense network if there is none.

    Tries both sides, then the hidden side, then the inputs.  Raises TypeError or ValueError if the
    rule returns wrong types or shapes, or different values at a second call.
    """
    _check_returns(rule, problem, network)
    if reduce:
        for way in (_both, _hidden, _inputs):
            if departure(rule, problem, network, steps, way) <= TOLERANCE:
                return way(problem, network)
    return dense(problem, network)


def departure(
    rule: CustomDynamics,
    problem: Problem,
    network: Network,
    steps: int,
    way: Callable[[Problem, Network], Reduction],
) -> float:
    """The largest distance between reduced and full network, relative to the distance moved.

    `steps` is the length of the run: the rule is called with no later step.  Infinite if every
    trial overflowed.
    """
    rng = np.random.default_rng(0)
    trials = [network] + [_like(network, scale, rng) for scale in SCALES]
    firsts = (0, 0, steps // 2, max(0, steps - STEPS))
    departures = [
        _departure_from(rule, problem, start, way(problem, start), first, steps, rng)
        for start, first in zip(trials, firsts, strict=True)
    ]
    return max((value for value in departures if np.isfinite(value)), default=np.inf)


def _departure_from(
    rule: CustomDynamics,
    problem: Problem,
    network: Network,
    reduction: Reduction,
    first: int,
    steps: int,
    rng: np.random.Generator,
) -> float:
    """`departure` for one initial network."""
    if reduction.Q is not None:
        turn, _ = np.linalg.qr(rng.standard_normal((reduction.a.size, reduction.a.size)))
        reduction = replace(
            reduction, Q=reduction.Q @ turn, W=turn.T @ reduction.W, a=turn.T @ reduction.a
        )
    full = _with_memory(rule, network.W, network.a)
    small = _with_memory(rule, reduction.W, reduction.a)
    with np.errstate(all="ignore"):
        for t in range(first, first + STEPS):
            index, y = _batch(rule, problem, rng)
            step = min(t, max(0, steps - 1))
            full = _call(rule, full, problem.X[index], y, step)
            small = _call(rule, small, reduction.problem.X[index], y, step)
        lifted = _stacked(*reduction.lift(small[0], small[1], 1.0))
        start, end = _stacked(network.W, network.a), _stacked(full[0], full[1])
        distance = np.linalg.norm(end - start) + ROUNDING * np.linalg.norm(start)
        return float(np.linalg.norm(end - lifted) / distance)


def _both(problem: Problem, network: Network) -> Reduction:
    return reduce_both(problem, network)


def _inputs(problem: Problem, network: Network) -> Reduction:
    return reduce_both(problem, network, hidden=False)


def _hidden(problem: Problem, network: Network) -> Reduction:
    return reduce_both(problem, network, inputs=False)


def _stacked(W: FloatArray, a: FloatArray) -> FloatArray:
    """M = [W | a]."""
    return np.column_stack([W, a])


def _like(network: Network, scale: float, rng: np.random.Generator) -> Network:
    """A Gaussian network of the same shape, its entries `scale` times as large."""
    size = scale * (float(np.sqrt(np.mean(_stacked(network.W, network.a) ** 2))) or 1.0)
    W, a = rng.standard_normal(network.W.shape), rng.standard_normal(network.a.shape)
    return Network(size * W, size * a)


def _batch(
    rule: CustomDynamics, problem: Problem, rng: np.random.Generator
) -> tuple[NDArray[np.int64], FloatArray]:
    """The samples of a step and their labels, with Gaussian noise of the rule's sigma."""
    index = np.arange(problem.samples)
    if rule.batch_size != FULL_BATCH:
        index = rng.integers(problem.samples, size=rule.batch_size)
    sigma = 0.0 if rule.label_noise is None else float(np.max(rule.label_noise.sigma))
    return index, problem.y[index] + sigma * rng.standard_normal(index.size)


def _with_memory(rule: CustomDynamics, W: FloatArray, a: FloatArray) -> Weights:
    if rule.memory == 0:
        return W, a
    return W, a, np.zeros((rule.memory, *W.shape)), np.zeros((rule.memory, *a.shape))


def _call(rule: CustomDynamics, weights: Weights, X: FloatArray, y: FloatArray, t: int) -> Weights:
    """One step on copies, as a rule may work in place.  Its errors get a note of the arguments."""
    W, a, *memory = (array.copy() for array in weights)
    arrays = zip(("W", "a", "X", "y", "V_W", "V_a"), (W, a, X, y, *memory), strict=False)
    given = ", ".join(f"{name} {array.shape}" for name, array in arrays)
    with Noting(f"raised by the rule's own step, given {given} and t = {t}"):
        result: Weights = rule.step(W, a, X.copy(), y.copy(), t, *memory)
    return result


def _check_returns(rule: CustomDynamics, problem: Problem, network: Network) -> None:
    """Refuses a rule whose results differ in type or shape from its arguments, or between calls."""
    weights = _with_memory(rule, network.W, network.a)
    index, y = _batch(rule, problem, np.random.default_rng(0))
    first, second = (_call(rule, weights, problem.X[index], y, 0) for _ in range(2))
    names = ("W", "a", "V_W", "V_a")[: len(weights)]
    if not isinstance(first, tuple) or len(first) != len(names):
        raise TypeError(f"step must return ({', '.join(names)}), got {type(first).__name__}")
    for name, like, value, again in zip(names, weights, first, second, strict=True):
        if not isinstance(value, np.ndarray) or value.dtype != np.float64:
            kind = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"step must return {name} as a float64 array, got {kind}")
        if value.shape != like.shape:
            raise ValueError(f"step must return {name} of shape {like.shape}, got {value.shape}")
        if not np.array_equal(value, again, equal_nan=True):
            raise ValueError(
                f"step must depend on its arguments alone: {name} differs at a second call"
            )


class CustomEngine:
    """Implements lnsim.backend.LinearEngine for CustomDynamics, in NumPy.

    A rule that Numba has compiled (@numba.njit) is called from a compiled loop, replicas shared
    among threads; any other from Python, one replica after another.
    """

    def __init__(self, engine: LinearEngine) -> None:
        self.gradient = engine.gradient

    def train(self, state: ModelState, segment: Segment) -> None:
        """See LinearEngine.train: step(*parameters, X, y, t) returns the parameters."""
        with np.errstate(over="ignore", invalid="ignore"):
            for s in np.flatnonzero(state.diverged_at < 0).tolist():
                _walk_model(state, s, segment)

    def advance(
        self,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: NDArray[np.uint64],
        first_step: int,
        rows: FloatArray | None = None,
        twin: Twin | None = None,
    ) -> None:
        """See LinearEngine.advance; there is neither a ledger nor a twin."""
        assert rows is None and twin is None
        rule = cast(CustomDynamics, dynamics)
        index, labels = _draws(problem, rule, words)
        compiled = hasattr(rule.step, "py_func")
        if compiled:
            # Imported here, as Numba takes most of a second to import.
            from lnsim.simulation.custom_loop import walk
        else:
            walk = _walk

        def work(block: slice) -> None:
            for s in going[block].tolist():
                diverged_at = walk(
                    rule.step, state.W[s], state.a[s], _memory(state, s), problem.X, problem.y,
                    None if index is None else index[s], labels[s], first_step,
                )  # fmt: skip
                if diverged_at >= 0:
                    state.diverged_at[s] = first_step + diverged_at

        going = np.flatnonzero(state.diverged_at < 0)
        if compiled:
            in_blocks(work, going.size)
        else:
            # A replica that diverges may overflow; its status reports the divergence.
            with np.errstate(over="ignore", invalid="ignore"):
                work(slice(None))


def _draws(
    problem: Problem, rule: CustomDynamics, words: NDArray[np.uint64]
) -> tuple[NDArray[np.int64] | None, FloatArray]:
    """The samples (S, T, B), or None for all samples, and their labels, noise included."""
    index = None
    labels = np.broadcast_to(problem.y, (*words.shape[:2], problem.samples))
    if rule.batch_size != FULL_BATCH:
        index = streams.sample_index(words, problem.samples)
        labels = problem.y[index]
    if rule.label_noise is not None:
        sigma = per_replica("sigma", rule.label_noise.sigma, len(words))
        labels = labels + sigma[:, None, None] * streams.unit_noise(words, rule.label_noise.law)
    return index, labels


def _memory(state: State, s: int) -> Weights:
    """The buffers of the rule's memory in replica s."""
    if state.W_velocity is None or state.a_velocity is None:
        return ()
    return state.W_velocity[s], state.a_velocity[s]


def _walk(step, W, a, memory, X, y, index, labels, first_step):  # type: ignore[no-untyped-def]
    """Trains one replica in place; returns the step of the call at which it diverged, or -1.

    index : (T, B), or None for all samples; labels : (T, B) or (T, n).  Divergence is detected as
    in the built-in dynamics.  A step that returns NaN or infinity is undone: the next residual
    reveals it.
    """
    previous = weights = (W, a, *memory)
    diverged_at, x, targets = -1, X, y
    for t in range(len(labels)):
        if index is not None:
            x, targets = X.take(index[t], axis=0), labels[t]
        residual = x @ (weights[1] @ weights[0]) - targets
        # The sum of squares is the fastest check, and at least as large as their mean or maximum.
        if not residual @ residual < DIVERGED_ABOVE and _diverged(residual, index is None):
            diverged_at = t
            break
        W_t, a_t, *memory_t = (array.copy() for array in weights)
        previous, weights = weights, step(W_t, a_t, x, labels[t], first_step + t, *memory_t)
    if not (np.isfinite(weights[0]).all() and np.isfinite(weights[1]).all()):
        weights = previous
        diverged_at = (len(labels) if diverged_at < 0 else diverged_at) - 1
    for array, value in zip((W, a, *memory), weights, strict=True):
        array[:] = value
    return diverged_at


def _diverged(residual: FloatArray, mean: bool) -> bool:
    squares = residual**2
    return not float(squares.mean() if mean else squares.max()) < DIVERGED_ABOVE


def _walk_model(state: ModelState, s: int, segment: Segment) -> None:
    """Trains replica s in place, and detects divergence like the kernels for any model."""
    rule, model, draws = cast(CustomDynamics, segment.dynamics), segment.model, segment.draws
    parameters = list(model.from_flat(state.theta[s].copy()).parameters.values())
    targets = draws.targets[s % len(draws.targets)]
    for t in range(segment.steps):
        y = targets[t % len(targets)]
        x = segment.X if draws.index is None else segment.X[draws.index[s, t]]
        f = model.with_parameters(parameters).predict(x)
        squares = np.square(f - y if segment.loss == "squared" else f).sum(axis=1)
        if not float(squares.max()) < DIVERGED_ABOVE:
            state.diverged_at[s] = segment.first_step + t
            break
        labels = y[:, 0] if model.scalar else y
        parameters = _stepped(rule, parameters, x, labels, segment.first_step + t)
    state.theta[s] = np.concatenate([array.ravel() for array in parameters])


def _stepped(
    rule: CustomDynamics, arrays: list[FloatArray], x: FloatArray, y: FloatArray, t: int
) -> list[FloatArray]:
    """The parameters after a step of the rule.

    Raises TypeError or ValueError if the step returns another number of arrays, dtype or shape.
    """
    given = ", ".join(str(array.shape) for array in arrays)
    with Noting(f"raised by the rule's own step, given parameters {given} and t = {t}"):
        result = rule.step(*(array.copy() for array in arrays), x.copy(), y.copy(), t)
    stepped = result if isinstance(result, tuple) else (result,)
    if len(stepped) != len(arrays):
        raise TypeError(f"step must return {len(arrays)} arrays, got {len(stepped)}")
    for before, after in zip(arrays, stepped, strict=True):
        if not isinstance(after, np.ndarray) or after.dtype != np.float64:
            raise TypeError(f"step must return float64 arrays, got {type(after).__name__}")
        if after.shape != before.shape:
            raise ValueError(f"step must return shape {before.shape}, got {after.shape}")
    return list(stepped)
