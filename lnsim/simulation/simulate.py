"""The driver: reduce, then words -> engine.advance -> observe, record by record."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim import streams
from lnsim.backend import LinearEngine
from lnsim.base import checks, threads
from lnsim.base.progress import of_steps
from lnsim.dynamics import Dynamics, Schedule
from lnsim.dynamics.draws import Sizes, words_a_step
from lnsim.models.base import Model
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network
from lnsim.run import quantities
from lnsim.run.loop import drive, record_steps
from lnsim.run.measures import named
from lnsim.run.record import Status
from lnsim.simulation.asked import Observable, check_observables
from lnsim.simulation.engines import (
    check_general,
    check_reduced,
    check_trains_models,
    coordinates_of,
    engine_of,
    is_general,
    reduction_of,
)
from lnsim.simulation.model_replicas import ModelReplicas
from lnsim.simulation.model_view import ModelFrame
from lnsim.simulation.observables import Frame
from lnsim.simulation.recorder import Recorder
from lnsim.simulation.replicas import Moving, Replicas
from lnsim.simulation.trajectory import Trajectory
from lnsim.streams import WordStream


@threads.one_blas_thread()
def simulate(
    problem: Problem,
    network: Model,
    dynamics: Schedule,
    *,
    steps: int,
    record_every: int,
    seed: int | Sequence[int] = 0,
    replicas: int = 1,
    backend: str = "numba",
    reduce: bool | None = None,
    ledger: bool = False,
    linearized: bool = True,
    tracked: int = 8,
    clouds: bool = True,
    observables: Mapping[str, Observable] | None = None,
    measures: str | Sequence[str] = (),
    summary: bool = False,
    progress: bool | Callable[[int], object] | None = None,
    config: dict[str, Any] | None = None,
    resume: Trajectory | None = None,
    checkpoint: Callable[[Trajectory], object] | None = None,
    checkpoint_every: float = 60.0,
    stop: Callable[[], bool] | None = None,
) -> Trajectory:
    """Trains `network` on `problem` by `dynamics` for `steps` steps.

    `network` is a Network, Diagonal, DeepLinear or ReLUNetwork.

    Records at 0, record_every, 2 record_every, ... and at the last step.  With `replicas` = S,
    replica c draws from the stream of key [seed, c], any scalar hyperparameter may be an array of
    length S, and arrays carry the leading axis S.  With S seeds in place of one, replica c is bit
    for bit the single run of seed[c].  A replica that diverges is left behind; the others go on.

    `reduce=False` trains the dense network, None a reduced one where there is one; True asks for
    one.  `ledger` keeps the norm
    ledger of every neuron (ledger.py), `linearized` trains the linearised twin along (twin.py).
    The path of the first `tracked` neurons is kept at every record; `clouds`, all neurons at a few
    of them and the weights at the end, which are most of the memory of a large ensemble: S m
    (d + 1) numbers.
    `measures` are recorded besides the default ones, such as "sharpness" of a deep network (run/
    measures.py): names, "all", or "none" for not even those.
    `summary` records what the phases (run/phases.py) and the two ends of a run need, and NaN for
    the rest: all quantities at the first and the last record, the mean cosine around its times, and
    |W|_F^2 everywhere.  Such a run is neither stopped nor resumed.
    `observables`: functions of a Network that return a number, by the name under which it is kept
    at every record.  A CustomDynamics has neither a ledger nor a twin; nor have several outputs,
    other models, losses and noises than plain label noise, and other forms of SAM.

    `progress`: True for a bar on a terminal, or a function called with the steps done.  `resume`:
    a trajectory of the same configuration that ended earlier; the result is bit for bit that of
    one uninterrupted run.  `checkpoint` is called with the trajectory so far, at the first record,
    then at one when `checkpoint_every` seconds have passed; `stop` is asked at every record.

    Raises ValueError or TypeError for bad input.  A run that diverges is a result: see its
    `status`.
    """
    threads.check()
    for name, value, kind in (("problem", problem, Problem), ("network", network, Model)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    steps = checks.integer("steps", steps, 0, checks.MOST_STEPS)
    record_every = checks.integer("record_every", record_every, 1)
    replicas = checks.integer("replicas", replicas, 1)
    if isinstance(seed, Sequence | np.ndarray):
        seed = [streams.check_seed(each) for each in seed]
        replicas = len(seed) if replicas == 1 else replicas
    checks.integer("tracked", tracked, 0)
    if network.dim != problem.dim:
        name = next(iter(network.parameters))
        raise ValueError(
            f"{name} has {network.dim} columns but X has {problem.dim}: they must be the same"
        )
    base = _base(dynamics, replicas)
    general = is_general(dynamics, network, problem)
    recorded_of = quantities.of_kernel(network.kernel) if general else quantities.TWO_LAYER
    observables = check_observables(observables or {}, recorded_of)
    if not general and isinstance(network, Network):
        network = Network(network.W, base.start(network.a, seed))
    measures = named(measures)
    if config is None:
        config = {
            "samples": problem.samples,
            "dim": problem.dim,
            **({"width": network.width} if isinstance(network, Network) else {}),
            **(
                network.about() | {"shape": list(network.shape()), "loss": problem.loss}
                if general
                else {}
            ),
            "dynamics": _in_full(dynamics),
            "steps": steps,
            "record_every": record_every,
            "seed": seed,
            "replicas": replicas,
            "backend": backend,
            **({"measures": ",".join(measures)} if measures else {}),
        }
    if summary and not (resume is checkpoint is stop is None):
        raise ValueError("summary must be False for a run that is stopped, kept or resumed")
    plan = record_steps(steps, record_every)
    engine = engine_of(base, backend, ledger)
    frame: Frame | ModelFrame
    moving: Moving
    if general:
        check_general(dynamics, network, problem)
        check_trains_models(engine, backend)
        if ledger:
            raise ValueError("ledger is for the two-layer network with one output, squared loss")
        coordinates = coordinates_of(dynamics, network, problem, reduce)
        frame = ModelFrame(problem, coordinates, network, base, replicas, measures)
        sizes = Sizes(problem.samples, network.outputs, network.size, network.hidden)
        moving = ModelReplicas.start(coordinates, problem, base, sizes, replicas)
        trained, draws = problem, words_a_step(base, sizes)
    else:
        assert isinstance(network, Network)
        reduction = reduction_of(base, problem, network, steps, reduce is not False)
        linearized = linearized and base.has_twin
        moving = Replicas.start(reduction, base, replicas, linearized=linearized, ledger=ledger)
        frame = Frame(problem, reduction, measures, base.batch_size)
        check_reduced(reduce, frame.sides, network, base)
        trained, draws = reduction.problem, base.draws(problem.samples, network.width)
    recorder = Recorder(frame, base, moving, plan, tracked, clouds, observables, summary)
    step = 0
    if resume is not None:
        step = recorder.restore(resume, config)
        moving.restore(resume.state)
    stream = WordStream(seed, replicas, step * draws)
    run = _Run(engine, trained, dynamics, draws, stream, moving, recorder, config)
    with of_steps(progress, steps, step) as report:
        return drive(
            run, step, steps, report=report, stop=stop,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        )  # fmt: skip


@dataclass
class _Run:
    """A run, as `drive` sees it."""

    engine: LinearEngine
    problem: Problem
    dynamics: Schedule
    draws: int
    stream: WordStream
    moving: Moving
    recorder: Recorder
    config: dict[str, Any]
    diverged_at: int | None = None

    def events(self, step: int) -> Iterator[int]:
        """The records, and the steps at which neurons are watched."""
        return self.recorder.events(step)

    def advance(self, step: int, target: int) -> Iterator[int]:
        """Goes to `target` in as few calls of the engine as the words, the ledger and dynamics that
        change allow."""
        while step < target and not self.moving.all_diverged:
            now, until = self.dynamics.at(step)
            count = min(target, until) - step
            count = min(count, self.moving.room(now, self.draws, step))
            words = self.stream.take(count * self.draws, self.moving.drawing)
            words = words.reshape(len(self.moving), count, self.draws)
            factors = self.dynamics.factors(step, count)
            self.moving.train(self.engine, self.problem, now, words, step, factors)
            step += count
            yield step

    def observe(self, step: int) -> bool:
        """Takes down every replica that has not diverged; the run diverges with its last."""
        if self.moving.all_diverged:
            self.diverged_at = int(self.moving.state.diverged_at.max())
            return False
        return self.recorder.observe(step)

    def result(self, status: Status) -> Trajectory:
        """All that was recorded so far, and the state to go on from."""
        return self.recorder.trajectory(status, self.config)


def _in_full(dynamics: Schedule) -> str:
    """The dynamics with every number of every replica: what a run is resumed by."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return repr(dynamics)


def _base(dynamics: Schedule, replicas: int) -> Dynamics:
    """The dynamics of the first step, after checking its scalars against the replicas."""
    if not isinstance(dynamics, Schedule):
        raise TypeError(f"dynamics must be SGD, GD, SAM, ... of lnsim, got {dynamics!r}")
    dynamics.check_replicas(replicas)
    return dynamics.at(0)[0]
