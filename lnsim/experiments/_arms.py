"""The runs of an experiment, its arms, trained side by side and kept as one trajectory.

On the CPU as many arms run at a time as the cores allow, each on `threads` of them; on a GPU, and
under torchrun, they run one after the other.  Both give the same results: those of arms trained one
after the other, which end at the first arm that diverges.  The trajectory's state holds the
records, the network and the measurements at the end of every arm that has begun: a run that was
stopped resumes every arm where it stood, and a finished run can be extended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import NetworkEngine
from lnsim.base import threads as cpu_threads
from lnsim.base.checks import FloatArray
from lnsim.images.data import Images
from lnsim.run.loop import record_steps
from lnsim.run.machine import provenance
from lnsim.run.record import Ending, Status
from lnsim.run.resume import check_continues, check_not_diverged
from lnsim.simulation.trajectory import Trajectory

Records = dict[str, FloatArray]
Assemble = Callable[[Mapping[str, Records], Mapping[str, Records]], Mapping[str, NDArray[Any]]]

_PARTS = ("records", "state", "measured")


class Arms:
    """The arms of a run and their results so far.

    `recipes` maps the name of each arm to its Recipe of the engine; all have the same `steps` and
    `record_every`.  `assemble(records, measured)` makes the trajectory's arrays from the records of
    each arm, (records,) for each of `series` with NaN where it has not arrived, and from the
    measurements at the end of each arm that has got there.  The trajectory also has `step`, and in
    `images` the numbers of training and test images.  `config` and `device` are kept in it.
    """

    def __init__(
        self,
        engine: NetworkEngine,
        recipes: Mapping[str, Any],
        images: Images,
        series: Sequence[str],
        assemble: Assemble,
        config: Mapping[str, Any],
        device: str,
    ) -> None:
        self._engine, self._recipes = engine, dict(recipes)
        self._series, self._assemble = series, assemble
        self._config, self._device = dict(config), device
        self._images = images
        self._fingerprint = _fingerprint(images)
        first = next(iter(self._recipes.values()))
        self.steps = np.array(record_steps(first.steps, first.record_every))
        self._results: dict[str, Any] = {}
        self._measured: dict[str, Records] = {}
        self._wanted = 0  # number of leading arms that are to have a result
        self._failure: BaseException | None = None
        self._lock = RLock()

    def restore(self, earlier: Trajectory) -> None:
        """Takes over the results of `earlier`.  Raises ValueError if that is another run."""
        check_continues(earlier, self._config)
        check_not_diverged(earlier.status)
        if not np.array_equal(earlier.state.get("images", ()), self._fingerprint):
            raise ValueError("cannot resume: the earlier run had other data")
        for name in self._recipes:
            if f"{name}.status" in earlier.state:
                parts = {part: _below(earlier.state, f"{name}.{part}.") for part in _PARTS}
                status = Status(*json.loads(str(earlier.state[f"{name}.status"])))
                if status.code == Ending.DIVERGED:  # it diverges again when trained again
                    continue
                if measured := parts.pop("measured"):
                    self._measured[name] = measured
                self._results[name] = self._engine.Result(**parts, status=status)

    def train(
        self,
        start: Callable[[], Any],
        data: Any,
        execution: Any,
        *,
        measure: Callable[[Any], Records] | None = None,
        progress: bool | Callable[[int], object] | None = None,
        checkpoint: Callable[[Trajectory], object] | None = None,
        stop: Callable[[], bool] | None = None,
        threads: int = 1,
        **driver: Any,
    ) -> Trajectory:
        """Trains the arms that are not finished, each from a network made by `start`.

        `threads` is the number of threads of each arm.  `measure` is called with a trained network.
        `driver` goes to the engine's train.  Callbacks run in the thread of an arm, and `stop` in
        several threads at a time.
        """
        names = list(self._recipes)
        progress_of = self._progress_of(progress)
        self._wanted, self._failure = len(names), None

        def train(i: int) -> Status:
            name = names[i]
            if i >= self._wanted or name in self._measured:
                return Status(Ending.OK, int(self.steps[-1]))
            network = start()
            result = self._engine.train(
                network, data, self._recipes[name], execution, resume=self._results.get(name),
                progress=progress_of(name), checkpoint=self._arm_checkpoint(name, checkpoint),
                stop=lambda: i >= self._wanted or (stop is not None and stop()),
                each=self._fail, **driver,
            )  # fmt: skip
            trained = result.status.code == Ending.OK
            measured = measure(network) if trained and measure is not None else {}
            with self._lock:
                self._results[name] = result
                if measured:
                    self._measured[name] = measured
                if not trained:
                    self._wanted = min(self._wanted, i + 1)
            return result.status

        for i, status in enumerate(self._side_by_side(train, len(names), threads)):
            if status.code == Ending.DIVERGED:
                for later in names[i + 1 :]:
                    self._results.pop(later, None)
                    self._measured.pop(later, None)
            if status.code != Ending.OK:
                return self.trajectory(status)
        return self.trajectory(Status(Ending.OK, int(self.steps[-1])))

    def _side_by_side(
        self, train: Callable[[int], Status], count: int, threads: int
    ) -> list[Status]:
        """The status of each arm.  If one arm raises, the others raise at their next step."""
        if self._device != "cpu" or self._engine.group().size > 1:
            return [train(i) for i in range(count)]
        at_once = max(1, cpu_threads.number() // threads)

        def work(i: int) -> Status:
            self._fail()
            try:
                return train(i)
            except BaseException as error:
                self._failure = error
                raise

        with ThreadPoolExecutor(
            at_once, initializer=self._engine.set_num_threads, initargs=(threads,)
        ) as pool:
            try:
                futures = [pool.submit(work, i) for i in range(count)]
                return [future.result() for future in futures]
            except BaseException as error:  # a Ctrl-C is raised here, not in an arm
                self._failure = error
                raise

    def _fail(self) -> None:
        """Raises the error of another arm, if there is one."""
        if self._failure is not None:
            raise self._failure

    def trajectory(self, status: Status) -> Trajectory:
        """All records so far, and the state from which to resume."""
        state: dict[str, NDArray[Any]] = {"images": self._fingerprint}
        for name in filter(self._results.__contains__, self._recipes):
            result = self._results[name]
            state[f"{name}.status"] = np.array(json.dumps([result.status.code, result.status.step]))
            parts = (result.records, result.state, self._measured.get(name, {}))
            for part, arrays in zip(_PARTS, parts, strict=True):
                state |= {f"{name}.{part}.{key}": value for key, value in arrays.items()}
        records = {name: self._records(name) for name in self._recipes}
        counts = np.array([len(labels) for labels in self._images[1::2]])
        arrays = {
            "step": self.steps, "images": counts, **self._assemble(records, self._measured)
        }  # fmt: skip
        processes = self._engine.group().size
        about = {**provenance(self._config), "device": self._device, "processes": processes}
        return Trajectory(arrays, self._config, status, state, about)

    def _records(self, name: str) -> Records:
        """The series of arm `name` at the planned steps, NaN where it has no record."""
        records = {key: np.full(len(self.steps), np.nan) for key in self._series}
        recorded = self._results[name].records if name in self._results else {}
        if recorded:
            # The last step of an earlier, shorter run need not be a planned step.
            _, rows, recorded_rows = np.intersect1d(
                self.steps, recorded["step"], return_indices=True
            )
            for key, values in records.items():
                values[rows] = recorded[key][recorded_rows]
        return records

    def _arm_checkpoint(
        self, name: str, checkpoint: Callable[[Trajectory], object] | None
    ) -> Callable[[Any], object] | None:
        """A function that turns a checkpoint of one arm into a checkpoint of all arms."""
        if checkpoint is None:
            return None

        def keep(result: Any) -> None:
            with self._lock:
                self._results[name] = result
                checkpoint(self.trajectory(result.status))

        return keep

    def _progress_of(
        self, progress: bool | Callable[[int], object] | None
    ) -> Callable[[str], str | Callable[[int], object] | None]:
        """The progress argument of each arm: a bar with its name, or a count of all steps."""
        if progress is None or isinstance(progress, bool):
            return lambda name: name if progress else None
        report = progress
        done = {name: result.status.step for name, result in self._results.items()}

        def count(name: str, step: int) -> None:
            with self._lock:
                done[name] = step
                report(sum(done.values()))

        return lambda name: partial(count, name)


def _below(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays of `state` whose names begin with `prefix`, under names without it."""
    return {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}


def _fingerprint(images: Images) -> NDArray[np.uint8]:
    """SHA-256 of the images and their labels, (32,)."""
    digest = hashlib.sha256()
    for array in images:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
