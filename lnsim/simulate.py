"""The driver: reduce, then words -> engine.advance -> observe, record by record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim import _checks
from lnsim import backend as backends
from lnsim._checks import FloatArray
from lnsim.backend import State
from lnsim.dynamics import SGD
from lnsim.network import Network
from lnsim.observables import CLOUDS, PATHS, SCALARS, Frame, View
from lnsim.problem import Problem
from lnsim.reduction import Reduction, dense, rest_scale
from lnsim.reduction import reduce as reduce_both
from lnsim.streams import WordStream
from lnsim.trajectory import Status, Trajectory, provenance

WORDS_AT_ONCE = 1 << 17
"""Words held in memory at a time, over all replicas (1 MiB): small enough for the caches."""


WATCHED_ONLY = -1
"""In place of a record number: a step at which neurons are watched and nothing is recorded."""

RESUMED = ("last_step", "last_W", "last_a", "watched_step", "watched_moved")
"""What a recorder needs besides the records to go on."""

OBSERVED_AT_ONCE = 1 << 19
"""First-layer weights observed at a time (4 MiB): calls are shared, and the caches still serve."""


def simulate(
    problem: Problem,
    network: Network,
    dynamics: SGD,
    *,
    steps: int,
    record_every: int,
    seed: int = 0,
    replicas: int = 1,
    backend: str = "numba",
    reduce: bool = True,
    tracked: int = 8,
    progress: bool | Callable[[int], object] | None = None,
    config: dict[str, Any] | None = None,
    resume: Trajectory | None = None,
    checkpoint: Callable[[Trajectory], object] | None = None,
    checkpoint_every: float = 60.0,
    stop: Callable[[], bool] | None = None,
) -> Trajectory:
    """Trains `network` on `problem` by `dynamics` for `steps` steps.

    Records at 0, record_every, 2 record_every, ... and at the last step.  With `replicas` = S,
    replica c draws from the stream of key [seed, c], any scalar hyperparameter may be an array of
    length S, and arrays carry the leading axis S.  `reduce=False` trains the dense network.  The
    path of the first `tracked` neurons is recorded at every record.

    `progress`: True for a bar on a terminal, or a function called with the steps done.  `resume`:
    a trajectory of the same configuration that ended earlier; the result is bit for bit that of
    one uninterrupted run.  `checkpoint` is called with the trajectory so far, at a record, when
    `checkpoint_every` seconds have passed; `stop` is asked at every record.

    Raises ValueError or TypeError for bad input.  A run that diverges is a result: see its
    `status`.
    """
    steps = _checks.integer("steps", steps, 0)
    record_every = _checks.integer("record_every", record_every, 1)
    replicas = _checks.integer("replicas", replicas, 1)
    tracked = min(_checks.integer("tracked", tracked, 0), network.width)
    if network.dim != problem.dim:
        raise ValueError(
            f"W has {network.dim} columns but X has {problem.dim}: they must be the same"
        )
    for name in ("lr", "momentum", "weight_decay"):
        _checks.per_replica(name, getattr(dynamics, name), replicas)
    if dynamics.noise is not None:
        _checks.per_replica("sigma", dynamics.noise.sigma, replicas)
    if config is None:
        config = {
            "samples": problem.samples,
            "dim": problem.dim,
            "width": network.width,
            "dynamics": repr(dynamics),
            "steps": steps,
            "record_every": record_every,
            "seed": seed,
            "replicas": replicas,
            "backend": backend,
        }
    engine = backends.load(backend)
    reduction = (reduce_both if reduce else dense)(problem, network)
    draws = dynamics.draws(problem.samples)
    plan = record_steps(steps, record_every)
    recorder = _Recorder(Frame(problem, reduction), dynamics, plan, replicas, tracked)
    state, step = _start(reduction, dynamics, replicas), 0
    if resume is not None:
        step = recorder.restore(resume)
        _restore(state, resume)
    words = WordStream(seed, replicas, step * draws)
    chunk = max(1, WORDS_AT_ONCE // (replicas * draws))

    def result(code: str, at: int) -> Trajectory:
        return recorder.trajectory(state, Status(code, at), config)

    report, close = _progress(progress, steps, step)
    saved = time.monotonic()
    try:
        for target in recorder.events(step):
            while step < target and (state.diverged_at < 0).any():
                count = min(chunk, target - step)
                engine.advance(state, reduction.problem, dynamics, words.take(count * draws), step)
                step += count
                report(step)
            if (state.diverged_at >= 0).all():
                return result("DIVERGED", int(state.diverged_at.max()))
            if not recorder.observe(state, step):
                continue
            if step == steps:
                break
            if stop is not None and stop():
                return result("STOPPED", step)
            if checkpoint is not None and time.monotonic() - saved >= checkpoint_every:
                checkpoint(result("STOPPED", step))
                saved = time.monotonic()
    finally:
        close()
    return result("OK", step)


def record_steps(steps: int, record_every: int) -> list[int]:
    """0, record_every, 2 record_every, ..., and `steps` itself."""
    plan = list(range(0, steps + 1, record_every))
    return plan if plan[-1] == steps else [*plan, steps]


def cloud_records(count: int) -> list[int]:
    """The records, out of the first `count`, at which all neurons are kept: 0, 1, 2, 4, 5, 8, ...

    These are the integer parts of the powers of sqrt(2), so that the choice does not depend on
    how long the run goes on.
    """
    powers = {int(2 ** (k / 2)) for k in range(2 * count.bit_length())}
    return sorted(record for record in {0} | powers if record < count)


def watch_steps(steps: int) -> list[int]:
    """The steps at which neurons are watched for lazy escape: four an octave, whatever is recorded.

    So a time of escape does not depend on how often is recorded.
    """
    return sorted({int(2 ** (k / 4)) for k in range(4 * steps.bit_length())})


def _progress(
    progress: bool | Callable[[int], object] | None, steps: int, done: int
) -> tuple[Callable[[int], object], Callable[[], object]]:
    """A function to call with the steps done, and one to call at the end."""
    if callable(progress):
        return progress, lambda: None
    if not progress:
        return lambda step: None, lambda: None
    from tqdm.auto import tqdm

    # disable=None: silent where the output is no terminal.
    bar = tqdm(total=steps, initial=done, unit="step", unit_scale=True, disable=None)
    return lambda step: bar.update(step - bar.n), bar.close


def _start(reduction: Reduction, dynamics: SGD, replicas: int) -> State:
    W = np.repeat(reduction.W[None], replicas, axis=0)
    a = np.repeat(reduction.a[None], replicas, axis=0)
    heavy = bool(np.any(np.asarray(dynamics.momentum) > 0.0))
    return State(
        W,
        a,
        np.zeros_like(W) if heavy else None,
        np.zeros_like(a) if heavy else None,
        np.full(replicas, -1, dtype=np.int64),
    )


def _restore(state: State, earlier: Trajectory) -> None:
    """Puts the state of `earlier` in place of `state`, which must have the same form."""
    for name, value in vars(state).items():
        found = earlier.state.get(name)
        forms = [None if array is None else array.shape for array in (found, value)]
        if forms[0] != forms[1]:
            raise ValueError(f"cannot resume: the earlier run has another {name}")
        if value is not None:
            value[...] = found


class _Recorder:
    """Collects what is observed, and makes a trajectory of it.

    Every array has the replica axis in front; it is dropped at the end where there is one replica.
    A replica that has diverged keeps the NaN its rows were made of.  Networks wait until there are
    enough of them to observe at once.
    """

    def __init__(
        self, frame: Frame, dynamics: SGD, plan: list[int], replicas: int, tracked: int
    ) -> None:
        self._frame = frame
        self._dynamics = dynamics
        self._decays = frame.reduction.rest is not None and bool(np.any(dynamics.weight_decay))
        self._plan = plan
        self._replicas = replicas
        self._tracked = np.arange(tracked)
        self._block = max(1, OBSERVED_AT_ONCE // frame.trained_start.size)
        self._pending: list[tuple[int, int, int, FloatArray, FloatArray]] = []
        self.count = 0
        clouds = cloud_records(len(plan))
        self._cloud_of_record = {record: cloud for cloud, record in enumerate(clouds)}
        each = (replicas, len(plan))
        self._scalars = np.full((len(SCALARS), *each), np.nan)
        self._paths = np.full((len(PATHS), *each, tracked), np.nan)
        self._clouds = np.full((len(CLOUDS), replicas, len(clouds), frame.width), np.nan)
        self._watched = {t for t in watch_steps(plan[-1]) if t <= plan[-1]}
        self._escape = np.full((replicas, frame.width), -1.0)
        self._watched_step = np.zeros(replicas, dtype=np.int64)
        self._watched_moved = np.zeros((replicas, frame.width))
        # The last network recorded of every replica, reduced.
        self._last_step = np.zeros(replicas, dtype=np.int64)
        self._last_W = np.repeat(frame.reduction.W[None], replicas, axis=0)
        self._last_a = np.repeat(frame.reduction.a[None], replicas, axis=0)

    def events(self, step: int) -> Iterator[int]:
        """The steps from `step` on at which there is something to observe."""
        planned = set(self._plan[self.count :])
        for t in sorted(self._watched | planned):
            if t in planned or (t > step and (self._escape < 0).any()):
                yield t

    def observe(self, state: State, step: int) -> bool:
        """Takes down every replica that has not diverged; returns whether `step` is a record's."""
        record = self.count if step == self._plan[self.count] else WATCHED_ONLY
        self.count += record != WATCHED_ONLY
        for s in np.flatnonzero(state.diverged_at < 0).tolist():
            if record == WATCHED_ONLY and (self._escape[s] >= 0).all():
                continue
            W, a = state.W[s].copy(), state.a[s].copy()
            if record != WATCHED_ONLY:
                self._last_step[s], self._last_W[s], self._last_a[s] = step, W, a
            self._pending.append((s, record, step, W, a))
            if len(self._pending) == self._block:
                self._flush()
        return record != WATCHED_ONLY

    def _flush(self) -> None:
        """Computes what is asked of the networks that wait."""
        if not self._pending:
            return
        replica, record, step = (np.array([e[i] for e in self._pending]) for i in range(3))
        W, a = (np.stack([entry[i] for entry in self._pending]) for i in (3, 4))
        self._pending.clear()
        view = self._view(replica, step, W, a)
        for b, (s, i, t) in enumerate(zip(replica, record, step.tolist(), strict=True)):
            if t in self._watched:
                self._watch(s, t, view.displacements[b])
            if i in self._cloud_of_record:
                cloud = self._cloud_of_record[i]
                self._clouds[:, s, cloud] = [f(view)[b] for f in CLOUDS.values()]
        kept = record != WATCHED_ONLY
        at = replica[kept], record[kept]
        tracked = slice(self._tracked.size)
        self._scalars[:, *at] = [f(view)[kept] for f in SCALARS.values()]
        self._paths[:, *at] = [f(view)[kept, tracked] for f in PATHS.values()]

    def _watch(self, s: int, step: int, moved: FloatArray) -> None:
        """Notes when neurons left the lazy radius, interpolating since the last watch."""
        escape, radius = self._escape[s], self._frame.lazy_radius
        gone = (escape < 0) & (moved > radius)
        start, moved_before = self._watched_step[s], self._watched_moved[s, gone]
        share = (radius - moved_before) / (moved[gone] - moved_before)
        escape[gone] = start + (step - start) * share
        self._watched_step[s], self._watched_moved[s] = step, moved

    def _view(
        self, replica: NDArray[np.int64], step: NDArray[np.int64], W: FloatArray, a: FloatArray
    ) -> View:
        scale = np.ones(len(replica))
        if self._decays:
            pairs = zip(step.tolist(), replica.tolist(), strict=True)
            scale[:] = [rest_scale(self._dynamics, t, s) for t, s in pairs]
        return View(self._frame, W, a, scale)

    def _recorded(self) -> Iterator[tuple[str, FloatArray]]:
        """The name and the array, replicas and records in front, of all that is recorded."""
        yield from zip(SCALARS, self._scalars, strict=True)
        yield from zip(PATHS, self._paths, strict=True)

    def trajectory(self, state: State, status: Status, config: dict[str, Any]) -> Trajectory:
        """All that was recorded so far, with the last record as the last cloud."""
        self._flush()
        last = [
            self._view(np.array([s]), self._last_step[[s]], self._last_W[[s]], self._last_a[[s]])
            for s in range(self._replicas)
        ]
        steps = np.array(self._plan[: self.count])
        made = [i for i in self._cloud_of_record if i < self.count]
        cloud_step = steps[made]
        clouds = dict(zip(CLOUDS, self._clouds[:, :, : len(made)].copy(), strict=True))
        if cloud_step[-1] != steps[-1]:
            cloud_step = np.append(cloud_step, steps[-1])
            for name, f in CLOUDS.items():
                clouds[name] = np.append(clouds[name], np.stack([f(v) for v in last]), axis=1)
        weights = [
            self._frame.reduction.lift(v.reduced_W[0], v.reduced_a[0], v.scale[0]) for v in last
        ]
        arrays: dict[str, NDArray[Any]] = {
            **{name: value[:, : self.count].copy() for name, value in self._recorded()},
            **clouds,
            "final_W": np.stack([W for W, _ in weights]),
            "final_a": np.stack([a for _, a in weights]),
        }
        arrays["lazy_escape"] = self._escape.copy()
        if self._replicas == 1:
            arrays = {name: value[0] for name, value in arrays.items()}
        arrays["step"] = steps
        arrays["theta_star"] = self._frame.theta_star
        arrays["tracked_neurons"] = self._tracked
        arrays["cloud_step"] = cloud_step
        arrays["diverged_at"] = state.diverged_at.copy()
        kept = {name: value.copy() for name, value in vars(state).items() if value is not None}
        kept |= {name: getattr(self, f"_{name}").copy() for name in RESUMED}
        return Trajectory(arrays, config, status, kept, provenance(config))

    def restore(self, earlier: Trajectory) -> int:
        """Takes over the records of `earlier`; returns the step it ended at."""
        step, plan, found = earlier.status.step, self._plan, earlier.steps.tolist()
        if earlier.status.code == "DIVERGED":
            raise ValueError(f"cannot resume: the earlier run {earlier.status}")
        if step > plan[-1]:
            raise ValueError(f"cannot resume: the earlier run is at step {step}, past the end")
        # An earlier end may have been recorded where this run records nothing.
        kept = next((i for i, t in enumerate(found) if i >= len(plan) or t != plan[i]), len(found))
        if len(found) - kept > 1 or found[-1] > step:
            raise ValueError("cannot resume: the earlier run was recorded at other steps")
        if earlier["tracked_neurons"].size != self._tracked.size:
            raise ValueError("cannot resume: the earlier run tracked other neurons")

        def replicas_in_front(name: str) -> NDArray[Any]:
            return earlier[name] if self._replicas > 1 else earlier[name][None]

        self.count = kept
        for name, values in self._recorded():
            values[:, :kept] = replicas_in_front(name)[:, :kept]
        made = sum(1 for i in self._cloud_of_record if i < kept)
        for name, cloud in zip(CLOUDS, self._clouds, strict=True):
            cloud[:, :made] = replicas_in_front(name)[:, :made]
        self._escape[:] = replicas_in_front("lazy_escape")
        for name in RESUMED:
            getattr(self, f"_{name}")[...] = earlier.state[name]
        return step
