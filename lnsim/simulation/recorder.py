"""Takes down what is observed along a run, and makes a trajectory of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray, per_replica
from lnsim.base.threads import beside, in_blocks, number, one_thread
from lnsim.dynamics import Dynamics
from lnsim.models.base import Model
from lnsim.models.ledger import lemma_3_shares
from lnsim.run.machine import provenance
from lnsim.run.measures import NEEDS
from lnsim.run.quantities import Axis
from lnsim.run.record import Status
from lnsim.run.resume import records_kept
from lnsim.simulation.asked import Observable, ask
from lnsim.simulation.model_view import ModelFrame
from lnsim.simulation.observables import Frame, reduced_norm_squared
from lnsim.simulation.passages import Passages
from lnsim.simulation.replicas import Moving
from lnsim.simulation.snapshots import Snapshots, cloud_records, waypoint, waypoint_records
from lnsim.simulation.trajectory import Trajectory
from lnsim.simulation.watch_wide import watch_of

WAYPOINTS_HOLD = 16 << 20
"""Bytes up to which the states on the way are kept."""

OBSERVED_AT_ONCE = 1 << 19
"""First-layer weights observed at a time (4 MiB): calls are shared, and the caches still serve."""

TOGETHER = 2
"""Wide networks observed at a time: they share the reading of the weights at the start."""

WAITING = 1 << 18
"""Reduced weights of the networks that wait to be measured together, at most (2 MiB)."""

WAITING_BESIDE = 1 << 16
"""The same where they are measured beside training: little is left to measure at a run's end."""

SERIES = ("norm_squared", "cosine_mean")
"""The quantities that the times of the phases depend on."""

_NO_TWIN = np.empty((1, 0))


class Recorder:
    """Collects what is observed of the replicas, and makes a trajectory of it.

    Every array has the replica axis in front; it is dropped at the end where there is one replica.
    A replica that has diverged keeps the NaN its rows were made of.  Networks wait until there are
    enough of them to observe at once; where training leaves a core idle, they are observed there
    while it goes on.

    With `summary`, quantities other than SERIES are computed at the first and the last record
    alone, and the mean cosine at those that its times depend on (passages.py); elsewhere they are
    NaN.
    """

    def __init__(
        self,
        frame: Frame | ModelFrame,
        dynamics: Dynamics,
        moving: Moving,
        plan: list[int],
        tracked: int,
        clouds: bool,
        observables: Mapping[str, Observable],
        summary: bool = False,
    ) -> None:
        self._frame = frame
        self._dynamics = dynamics
        self._moving = moving
        self._decays = frame.shrinks and dynamics.decays
        self._plan = plan
        self._of_measures = {
            name: formula
            for name, formula in frame.formulas(needs=NEEDS).items()
            if name not in observables
        }
        self._tracked = np.arange(min(tracked, frame.units))
        self._block = TOGETHER if frame.wide else max(1, OBSERVED_AT_ONCE // frame.size)
        reduced = sum(array[0].size for array in self._weights)
        wait = summary or self._of_measures
        # With fewer replicas than threads, training leaves some of them idle.
        self._idle = 0 if frame.wide or len(moving) >= number() else number() - len(moving)
        most = WAITING_BESIDE if self._idle else WAITING
        self._most_waiting = max(self._block, most // reduced if wait else 1)
        self._pending: list[Snapshots] = []
        self._waiting = 0
        self._beside: list[Future[None]] = []
        self.count = 0
        records = sorted({*cloud_records(len(plan)), len(plan) - 1}) if clouds else []
        self._cloud_of_record = {record: cloud for cloud, record in enumerate(records)}
        each, units = (len(moving), len(plan)), frame.units
        self._of_networks = frame.formulas()
        if moving.twin is not None:
            self._of_networks |= frame.formulas(needs="linearized")
        self._of_tracked = frame.formulas(of_neurons=True)
        self._of_neurons = frame.formulas(Axis.CLOUD, of_neurons=True)
        self._of_neurons |= frame.formulas(Axis.CLOUD, of_neurons=True, needs=NEEDS)
        self._scalars = np.full((len(self._of_networks), *each), np.nan)
        self._measures = np.full((len(self._of_measures), *each), np.nan)
        # The records of all quantities, and what is computed at the others.
        self._full = np.full(len(plan), not summary)
        self._full[[0, -1]] = True
        self._passages: Passages | None = None
        arrays = dict(zip(self._of_networks, self._scalars, strict=True))
        self._on_the_way = [
            (arrays[name], self._of_networks[name]) for name in SERIES if name in arrays
        ]
        if summary and isinstance(frame, Frame):
            self._passages = Passages(frame, len(moving), arrays["cosine_mean"])
            self._on_the_way = [(arrays["norm_squared"], reduced_norm_squared)]
        self._paths = [
            np.full((*each, frame.path(name, self._tracked.size)), np.nan)
            for name in self._of_tracked
        ]
        self._clouds = [
            np.full((len(moving), len(records), frame.cloud(name)), np.nan)
            for name in self._of_neurons
        ]
        self._observables = observables
        self._observed = np.full((len(observables), *each), np.nan)
        ledger = 0 if moving.ledger is None else units
        self._ledger = np.full((2, *each, ledger), np.nan)
        self._lemma_3 = np.full((2, len(moving), len(records)), np.nan)
        self._watch = watch_of(frame, len(moving), plan[-1], self._scale, self._decays)
        # The last network recorded of every replica, reduced.
        self._last_step: NDArray[np.int64] = np.zeros(len(moving), dtype=np.int64)
        self._last = [array.copy() for array in self._weights]
        self._waypoint_records = set(waypoint_records(len(plan)) if clouds else ())
        self._waypoints: dict[str, NDArray[Any]] = {}

    @property
    def _weights(self) -> list[FloatArray]:
        """The networks' reduced weights, replicas in front."""
        return [getattr(self._moving.state, name) for name in self._moving.weights]

    def _scale(self, step: int, s: int) -> float:
        """What is left of the weights of replica s that are not trained."""
        return self._dynamics.rest_scale(step, s) if self._decays else 1.0

    def _resumed(self) -> dict[str, NDArray[Any]]:
        """What is needed besides the records to go on, by the name that a file has it under."""
        last = zip(self._moving.weights, self._last, strict=True)
        needed = {"last_step": self._last_step} | self._watch.arrays()
        return needed | self._frame.memory | {f"last_{name}": array for name, array in last}

    def events(self, step: int) -> Iterator[int]:
        """The steps from `step` on at which there is something to observe."""
        planned = set(self._plan[self.count :])
        for t in sorted(self._watch.steps | planned):
            if t in planned or (t > step and self._watch.any_inside):
                yield t

    def observe(self, step: int) -> bool:
        """Takes down every replica that has not diverged; returns whether `step` is a record's."""
        state, twin, ledger = self._moving.state, self._moving.twin, self._moving.ledger
        asked = state.diverged_at < 0
        if step in self._watch.steps:
            self._watch.look(step, self._weights, asked)
        record = self.count
        if step != self._plan[record]:
            return False
        self.count += 1
        replicas = np.flatnonzero(asked)
        weights = [array[replicas] for array in self._weights]
        self._last_step[replicas] = step
        for last, now in zip(self._last, weights, strict=True):
            last[replicas] = now
        if ledger is not None:
            for s in replicas.tolist():
                self._ledger[:, s, record] = ledger.of_neurons(s, step)
        if self._observables:
            for s in replicas.tolist():
                self._observed[:, s, record] = self._ask(self._network(s, step))
        alike = step == 0 and isinstance(self._frame, Frame) and ledger is None
        if alike:  # all replicas start as one network
            replicas, weights = replicas[:1], [array[:1] for array in weights]
        elif self._passages is not None and step > 0:
            scale = np.array([self._scale(step, s) for s in replicas.tolist()])
            with np.errstate(all="ignore"):  # as _compute
                self._passages.note(record, replicas, weights, scale)
        theta = np.full((len(replicas), 0), np.nan) if twin is None else twin.theta[replicas]
        times = np.full((2, len(replicas)), [[record], [step]])
        self._pending.append(Snapshots(replicas, times[0], times[1], theta, weights))
        self._waiting += len(replicas)
        if alike or self._waiting >= self._most_waiting:
            self._flush()
        if alike:
            self._finish()
            for array in (*self._scalars, *self._measures, *self._paths, *self._clouds):
                array[1:, :1] = array[:1, :1]
        if record in self._waypoint_records:
            self._keep_waypoint(record)
        return True

    def _keep_waypoint(self, record: int) -> None:
        """Keeps what is needed to go on from here, while there is room for it."""
        if self._frame.memory:
            self._finish()
        state = {f"{waypoint(record)}{name}": value for name, value in self._state().items()}
        held = sum(value.nbytes for value in (*self._waypoints.values(), *state.values()))
        if held <= WAYPOINTS_HOLD:
            self._waypoints |= state

    def _state(self) -> dict[str, NDArray[Any]]:
        """A copy of what is needed to go on, besides the records."""
        state = {name: value.copy() for name, value in self._moving.arrays().items()}
        return state | {name: value.copy() for name, value in self._resumed().items()}

    def _network(self, s: int, step: int) -> Model:
        """Replica s after `step` steps, lifted; read-only."""
        return self._frame.network([array[s] for array in self._weights], self._scale(step, s))

    def _ask(self, network: Model) -> list[float]:
        """What the user's observables say of a network."""
        return [ask(name, function, network) for name, function in self._observables.items()]

    def _flush(self) -> None:
        """Computes, or begins to, what is asked of the networks that wait."""
        if not self._idle or not self._pending:
            self._finish()
            return
        if self._frame.in_order:
            self._wait()
        for future in [future for future in self._beside if future.done()]:
            self._beside.remove(future)
            future.result()
        if len(self._beside) < self._idle:
            self._beside.append(beside(self._observe, self._taken()))
        else:
            with one_thread():
                self._observe(self._taken())

    def _finish(self) -> None:
        """Computes what is asked of all networks recorded so far."""
        if self._frame.in_order:
            self._wait()
        if self._pending:
            self._observe(self._taken())
        self._wait()

    def _wait(self) -> None:
        """Waits for what is computed beside training."""
        while self._beside:
            self._beside.pop().result()

    def _taken(self) -> Snapshots:
        """The networks that wait, which wait no more."""
        waiting = Snapshots.together(self._pending)
        self._pending.clear()
        self._waiting = 0
        return waiting

    def _observe(self, waiting: Snapshots) -> None:
        """Computes what is asked of these networks."""
        if self._frame.wide:  # the neurons are shared, not the networks
            self._compute(waiting, np.arange(len(waiting.replica)), self._keep, self._block)
        else:
            self._share(waiting, self._keep, self._block)
        if self._of_measures:
            if not self._frame.in_order:
                waiting = waiting.at(np.flatnonzero(self._full[waiting.record]))
            most, in_order = self._most_waiting, self._frame.in_order
            self._share(waiting, self._measure, most, in_order=in_order)

    def _share(
        self,
        waiting: Snapshots,
        keep: Callable[[Snapshots, Any], None],
        block: int,
        *,
        in_order: bool = False,
    ) -> None:
        """Observes the waiting networks on all threads.

        Each takes any part of them, or, `in_order`, all of some replicas.
        """
        of, numbers = waiting.replica, np.arange(len(waiting.replica))
        together = numbers[np.argsort(of, kind="stable")] if in_order else numbers
        ends = np.arange(1, numbers.size)
        if in_order:
            ends = np.flatnonzero(np.diff(np.sort(of))) + 1
        parts = np.split(together, ends)
        in_blocks(
            lambda some: self._compute(waiting, np.concatenate(parts[some]), keep, block),
            len(parts),
        )

    def _compute(
        self,
        waiting: Snapshots,
        numbers: NDArray[np.int64],
        keep: Callable[[Snapshots, Any], None],
        block: int,
    ) -> None:
        """Observes the waiting networks of these numbers, `block` of them at a time."""
        # What is about to diverge may overflow: it is no news, and the status will say so.
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, numbers.size, block):
                snapshots = waiting.at(numbers[first : first + block])
                keep(snapshots, self._view(snapshots))

    def _keep(self, snapshots: Snapshots, view: Any) -> None:
        """Writes the observables of these networks into the record arrays."""
        replica, record = snapshots.replica, snapshots.record
        full = np.flatnonzero(self._full[record])
        if full.size < record.size:
            for values, function in self._on_the_way:
                values[replica, record] = function(view)
            snapshots, view = snapshots.at(full), view.only(full)
            replica, record = snapshots.replica, snapshots.record
        if not full.size:
            return
        self._scalars[:, replica, record] = [f(view) for f in self._of_networks.values()]
        for path, function in zip(self._paths, self._of_tracked.values(), strict=True):
            path[replica, record] = function(view)[:, : path.shape[-1]]
        of_cloud = [b for b, i in enumerate(record.tolist()) if i in self._cloud_of_record]
        if of_cloud:
            at, cloud = replica[of_cloud], [self._cloud_of_record[i] for i in record[of_cloud]]
            shown = view.only(np.array(of_cloud))
            for array, function in zip(self._clouds, self._of_neurons.values(), strict=True):
                array[at, cloud] = function(shown)
            if self._moving.ledger is not None:
                for b, s, k in zip(of_cloud, at, cloud, strict=True):
                    weights = [array[b] for array in snapshots.weights]
                    self._lemma_3[:, s, k] = self._shares(s, *weights)

    def _measure(self, snapshots: Snapshots, view: Any) -> None:
        """Writes the measures of these networks into the record arrays."""
        measured = [formula(view) for formula in self._of_measures.values()]
        self._measures[:, snapshots.replica, snapshots.record] = measured

    def _shares(self, s: int, W: FloatArray, a: FloatArray) -> tuple[float, float]:
        """Lemma 3's probabilities at a network; of the neurons' parts that training moves."""
        assert isinstance(self._frame, Frame)
        noise, reduction = self._dynamics.label_noise, self._frame.reduction
        sigma = 0.0 if noise is None else float(per_replica("sigma", noise.sigma, s + 1)[s])
        full_a = a if reduction.Q is None else reduction.Q @ a
        problem = reduction.problem
        return lemma_3_shares(problem.X, problem.y, reduction.trained(W), full_a, sigma)

    def _view(self, snapshots: Snapshots) -> Any:
        """The networks, lifted as far as their formulas need it."""
        scale = np.ones(len(snapshots.replica))
        if self._decays:
            pairs = zip(snapshots.step.tolist(), snapshots.replica.tolist(), strict=True)
            scale[:] = [self._scale(t, s) for t, s in pairs]
        return self._frame.view(snapshots.weights, scale, snapshots.twin_theta, snapshots.replica)

    def _recorded(self) -> Iterator[tuple[str, FloatArray]]:
        """The name and the array, replicas and records in front, of all that is recorded."""
        yield from zip(self._of_networks, self._scalars, strict=True)
        yield from zip(self._of_measures, self._measures, strict=True)
        yield from zip(self._of_tracked, self._paths, strict=True)
        yield from zip(self._observables, self._observed, strict=True)
        if self._moving.ledger is not None:
            yield from zip(("ledger_removed", "ledger_restored"), self._ledger, strict=True)

    def _of_clouds(self) -> Iterator[tuple[str, FloatArray]]:
        """The name and the array, replicas and clouds in front, of what goes with the clouds."""
        yield from zip(self._of_neurons, self._clouds, strict=True)
        if self._moving.ledger is not None:
            yield from zip(("lemma_3_nonpositive", "lemma_3_decrease"), self._lemma_3, strict=True)

    def trajectory(self, status: Status, config: dict[str, Any]) -> Trajectory:
        """All that was recorded so far, with the last record as the last cloud."""
        self._finish()
        steps = np.array(self._plan[: self.count])
        clouds = [i for i in self._cloud_of_record if i < self.count]
        kept = np.asarray if self.count == len(self._plan) else np.array  # a copy if it goes on
        arrays: dict[str, NDArray[Any]] = {
            name: kept(value[:, : self.count]) for name, value in self._recorded()
        }
        if clouds:
            arrays |= {name: kept(value[:, : len(clouds)]) for name, value in self._of_clouds()}
            arrays |= self._last_networks(append=clouds[-1] != self.count - 1, arrays=arrays)
        if self._watch.escape.size:
            arrays["lazy_escape"] = self._watch.escape.copy()
        if len(self._moving) == 1:
            arrays = {name: value[0] for name, value in arrays.items()}
        arrays["step"] = steps
        if clouds and self._of_neurons:
            arrays["cloud_step"] = np.unique(np.append(steps[clouds], steps[-1]))
        arrays |= self._frame.constants()
        if self._of_neurons:
            arrays["tracked_neurons"] = self._tracked
        arrays["diverged_at"] = self._moving.state.diverged_at.copy()
        state = self._state() | self._waypoints
        about = provenance(config) | {"reduced": self._frame.sides}
        return Trajectory(arrays, config, status, state, about)

    def _last_networks(
        self, append: bool, arrays: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """The final weights; and, where `append`, the clouds with that of the last record."""
        finals: dict[str, NDArray[Any]] = {}
        clouds = [np.empty((len(self._moving), *value.shape[2:])) for _, value in self._of_clouds()]
        count = len(self._of_neurons)

        def final(s: int) -> dict[str, NDArray[Any]]:
            return self._frame.final([array[s] for array in self._last], self._scale_at_end(s))

        def some(part: slice) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # as _compute
                for s in range(part.start, part.stop):
                    if s > 0:
                        for name, value in final(s).items():
                            finals[name][s] = value
                    if not append:
                        continue
                    weights = [array[s] for array in self._last]
                    view = self._frame.view(
                        [array[None] for array in weights], np.array([self._scale_at_end(s)]),
                        _NO_TWIN, np.array([s]),
                    )  # fmt: skip
                    for cloud, function in zip(clouds, self._of_neurons.values(), strict=False):
                        cloud[s] = function(view)[0]
                    if self._moving.ledger is not None:
                        for cloud, share in zip(
                            clouds[count:], self._shares(s, *weights), strict=True
                        ):
                            cloud[s] = share

        with np.errstate(over="ignore", invalid="ignore"):
            first = final(0)
        for name, value in first.items():
            finals[name] = value[None]
            if len(self._moving) > 1:
                finals[name] = np.empty((len(self._moving), *value.shape))
                finals[name][0] = value
        in_blocks(some, len(self._moving))
        if append:
            for (name, _), cloud in zip(self._of_clouds(), clouds, strict=True):
                finals[name] = np.append(arrays[name], cloud[:, None], axis=1)
        return finals

    def _scale_at_end(self, s: int) -> float:
        return self._scale(int(self._last_step[s]), s)

    def restore(self, earlier: Trajectory, config: Mapping[str, Any]) -> int:
        """Takes over the records of `earlier`; returns the step it ended at."""
        records_taken = records_kept(earlier, config, self._plan)
        tracked = earlier.arrays.get("tracked_neurons", self._tracked)
        if tracked.size != self._tracked.size:
            raise ValueError("cannot resume: the earlier run tracked other neurons")
        for name in self._observables:
            if name not in earlier.arrays:
                raise ValueError(f"cannot resume: the earlier run has no observable {name!r}")

        def replicas_in_front(name: str) -> NDArray[Any]:
            return earlier[name] if len(self._moving) > 1 else earlier[name][None]

        self.count = records_taken
        clouds_taken = sum(1 for i in self._cloud_of_record if i < records_taken)
        for arrays, taken in ((self._recorded(), records_taken), (self._of_clouds(), clouds_taken)):
            for name, values in arrays:
                if name in earlier.arrays:  # a quantity that was added since stays NaN
                    values[:, :taken] = replicas_in_front(name)[:, :taken]
        self._watch.restore(earlier.state)
        of_watch = self._watch.arrays()
        for name, value in self._resumed().items():
            if name in of_watch or (name in self._frame.memory and name not in earlier.state):
                continue
            if earlier.state[name].shape != value.shape:
                raise ValueError(f"cannot resume: the earlier run has another {name}")
            value[...] = earlier.state[name]
        prefixes = tuple(waypoint(record) for record in waypoint_records(records_taken))
        states = earlier.state.items()
        self._waypoints = {name: value for name, value in states if name.startswith(prefixes)}
        return earlier.status.step
