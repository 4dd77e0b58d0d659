"""The runs of an experiment, its arms, trained side by side and kept as one trajectory.

On the CPU as many arms run at a time as there are cores for, each on `threads` of them; on a GPU,
and under torchrun, one after the other.  Neither changes a number, nor what is kept, which is what
arms trained one after the other give: of those after one that diverged, nothing.  The trajectory's
state holds of every arm begun so far its records, its network, and what was measured at its end: a
run that was stopped goes on where its arms stood, and one that is over can be made longer.
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
    """What the arms gave so far.

    `recipes`: the engine's Recipe of each arm, by the arm's name; all have the same `steps` and
    `record_every`.  `assemble(records, measured)` makes the trajectory's arrays of
    what each arm gave: its records of every one of `series`, (records,), NaN from where it has not
    got to, and what was measured at its end, if it is there.  Beside them stand `step` and, as
    `images`, how many there are for training and for the test.  `config` and `device` are kept too.
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
        """Takes over what the arms of `earlier` gave.  Raises ValueError for another run's."""
        check_continues(earlier, self._config)
        check_not_diverged(earlier.status)
        if not np.array_equal(earlier.state.get("images", ()), self._fingerprint):
            raise ValueError("cannot resume: the earlier run had other data")
        for name in self._recipes:
            if f"{name}.status" in earlier.state:
                parts = {part: _below(earlier.state, f"{name}.{part}.") for part in _PARTS}
                status = Status(*json.loads(str(earlier.state[f"{name}.status"])))
                if status.code == Ending.DIVERGED:  # beside one that was stopped: it will once more
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
        """Trains what is left to train, each arm from a network that `start` makes.

        `threads` are those that the engine is held to.  `driver` goes to its train; `measure` is
        asked once an arm is trained.  All of these are called in the thread of an arm; `stop` by
        several at a time.
        """
        names = list(self._recipes)
        shown = self._shown(progress)
        self._wanted, self._failure = len(names), None

        def train(i: int) -> Status:
            name = names[i]
            if i >= self._wanted or name in self._measured:
                return Status(Ending.OK, int(self.steps[-1]))
            network = start()
            result = self._engine.train(
                network, data, self._recipes[name], execution, resume=self._results.get(name),
                progress=shown(name), checkpoint=self._keeping(name, checkpoint),
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
        """What `train` gives for each arm.  Where one fails, the others fail at their next step."""
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
            except BaseException as error:  # a Ctrl-C comes here, not there
                self._failure = error
                raise

    def _fail(self) -> None:
        """Raises what another arm has raised."""
        if self._failure is not None:
            raise self._failure

    def trajectory(self, status: Status) -> Trajectory:
        """All that was recorded so far, and the state to go on from."""
        state: dict[str, NDArray[Any]] = {"images": self._fingerprint}
        for name in filter(self._results.__contains__, self._recipes):
            result = self._results[name]
            state[f"{name}.status"] = np.array(json.dumps([result.status.code, result.status.step]))
            held = (result.records, result.state, self._measured.get(name, {}))
            for part, arrays in zip(_PARTS, held, strict=True):
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
        """The series of arm `name` at the planned steps, NaN where it has none."""
        records = {key: np.full(len(self.steps), np.nan) for key in self._series}
        recorded = self._results[name].records if name in self._results else {}
        if recorded:
            # Where an earlier, shorter run ended may be none of the planned steps.
            _, rows, recorded_rows = np.intersect1d(
                self.steps, recorded["step"], return_indices=True
            )
            for key, values in records.items():
                values[rows] = recorded[key][recorded_rows]
        return records

    def _keeping(
        self, name: str, checkpoint: Callable[[Trajectory], object] | None
    ) -> Callable[[Any], object] | None:
        """What makes a checkpoint of the arm's result so far a checkpoint of all arms."""
        if checkpoint is None:
            return None

        def keep(result: Any) -> None:
            with self._lock:
                self._results[name] = result
                checkpoint(self.trajectory(result.status))

        return keep

    def _shown(
        self, progress: bool | Callable[[int], object] | None
    ) -> Callable[[str], str | Callable[[int], object] | None]:
        """The progress of each arm, by its name: a bar so called, or the steps of all arms."""
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
    """What `state` holds under names that begin with `prefix`, by the rest of the name."""
    return {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}


def _fingerprint(images: Images) -> NDArray[np.uint8]:
    """SHA-256 of the images and their labels, (32,)."""
    digest = hashlib.sha256()
    for array in images:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
