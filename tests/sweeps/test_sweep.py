"""Sweeps: grids, points and their summaries, workers, and the one call that joins them."""

import dataclasses
import functools
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lnsim
from lnsim.cli.main import main
from lnsim.experiments import label_noise, oscillation, sam
from lnsim.run import experiment as experiments
from lnsim.run import quantities
from lnsim.sweeps import dispatch as sweep_workers
from lnsim.sweeps import grid as sweep_grid
from lnsim.sweeps import points as sweep_points
from lnsim.sweeps.power_law import power_law

BASE = {"samples": 12, "test_samples": 20, "dim": 3, "width": 20, "steps": 200, "record_every": 20}
GRID = {"sigma": "0:4:3", "lr": "1e-3,0.08,100"}


def tiny(out, grid=GRID, *, threads=1, base=BASE, experiment="label-noise", **options):
    """A sweep in a thread of this process."""
    with ThreadPoolExecutor(threads) as executor:
        options = {"executor": executor, "seeds": 2, **options}
        return lnsim.sweep(experiment, grid, out=out, base=base, **options)


@pytest.mark.small
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("sigma=0:8:5", [0.0, 2.0, 4.0, 6.0, 8.0]),
        ("sigma=3:1:3", [3.0, 2.0, 1.0]),
        ("lr=1e-4:1e-2:3:log", [1e-4, 1e-3, 1e-2]),
        ("lr=0.1:0.7:7", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("sigma=1,4,2.5", [1.0, 4.0, 2.5]),
        ("sigma=2", [2.0]),
        ("width=50:1600:6:log", [50, 100, 200, 400, 800, 1600]),
        ("law=rademacher,gaussian", ["rademacher", "gaussian"]),
        ("ledger=true,false", [True, False]),
    ],
)
def test_a_grid_is_read(text, values):
    key, words = sweep_grid.parse_axis(text)
    found = sweep_grid.axes(label_noise.Config, {key: words})[key]
    assert found == values
    assert [type(v) for v in found] == [type(v) for v in values]


@pytest.mark.small
@given(
    ends=st.lists(st.floats(1e-8, 1e8), min_size=2, max_size=2, unique=True),
    count=st.integers(2, 40),
    log=st.booleans(),
)
def test_a_range_has_its_ends_and_values_as_they_are_printed(ends, count, log):
    text = f"{ends[0]!r}:{ends[1]!r}:{count}{':log' * log}"
    try:
        found = sweep_grid.axes(label_noise.Config, {"lr": text})["lr"]
    except ValueError as error:  # ends that 12 digits hardly tell apart
        assert "twice" in str(error) and math.isclose(*ends, rel_tol=1e-9)
        return
    assert [found[0], found[-1]] == ends and len(found) == count
    assert all(float(f"{value:.12g}") == value for value in found[1:-1])
    expected = (np.geomspace if log else np.linspace)(*ends, count)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.small
@pytest.mark.parametrize(
    ("grid", "error", "says"),
    [
        ({}, ValueError, "a grid of at least one key"),
        ({"sgima": "0:1:2"}, ValueError, "did you mean 'sigma'?"),
        ({"sigma": "0:1"}, ValueError, "sigma: expected FIRST:LAST:COUNT"),
        ({"sigma": "0:1:1"}, ValueError, "COUNT at least 2"),
        ({"sigma": "0:1:2.5"}, ValueError, "expected FIRST:LAST:COUNT"),
        ({"sigma": "0:inf:3"}, ValueError, "expected FIRST:LAST:COUNT"),
        ({"sigma": "0:1:3:lin"}, ValueError, "expected FIRST:LAST:COUNT"),
        ({"sigma": "0:1:3:log"}, ValueError, "the ends of a log range must be above 0"),
        ({"sigma": "0:1:99999999"}, ValueError, "at most 10000000 values"),
        ({"sigma": ""}, TypeError, "sigma must be of type float, got ''"),
        ({"sigma": "1,two"}, TypeError, "sigma must be of type float, got 'two'"),
        ({"sigma": "1,1.0"}, ValueError, "sigma has the value 1.0 twice"),
        ({"width": "1:3:5"}, ValueError, "width has the value"),
        ({"law": "1:3:5"}, TypeError, "law must be of type str"),
        ({"sigma": []}, ValueError, "sigma has no values"),
        ({"sigma": [None]}, TypeError, "sigma must be of type float, got None"),
        ({"seed": "0:3:4"}, ValueError, "how many seeds"),
        ({"width": "1:2000:2000", "lr": "1e-3:1:2000", "dim": "1,2,3"}, ValueError, "10000000"),
        ({"lr": "0,1e-3"}, ValueError, "lr must be finite and above 0, got 0.0"),
        ({"sigma": "0,-1"}, ValueError, "sigma must be finite and at least 0, got -1.0"),
        ({"momentum": [0.5, 1.0]}, ValueError, "momentum must be below 1"),
        ({"width": [0, 5]}, ValueError, "width must be at least 1, got 0"),
        ({"law": "gaussian,cauchy"}, ValueError, "law must be one of"),
        ({"dim": "3,4"}, ValueError, "dim is swept and set to 3: give either"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(tmp_path, grid, error, says):
    base = {key: value for key, value in BASE.items() if key not in grid or key == "dim"}
    base = base if grid.keys() != {"width", "lr", "dim"} else {"steps": 0}
    with pytest.raises(error) as caught:
        tiny(tmp_path / "deep" / "out", grid, base=base)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "deep").exists()


@pytest.mark.small
def test_other_bad_input_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    for options, error, says in (
        ({"experiment": "linearization"}, ValueError, "'linearization' cannot be swept"),
        ({"experiment": "label-nois"}, ValueError, "did you mean 'label-noise'?"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1"),
        ({"backend": "abacus"}, ValueError, "backend 'abacus' is not installed"),
        ({"base": {"seed": -1}}, ValueError, "seed must be at least 0"),
        ({"base": {"sgima": 1}}, ValueError, "did you mean 'sigma'?"),
        ({"executor": "threads"}, TypeError, "executor must be a concurrent.futures.Executor"),
        ({"scheduler": "local"}, ValueError, "an executor or a scheduler, not both"),
    ):
        with pytest.raises(error, match=says):
            tiny(out, **options)
        assert not out.exists(), options


@pytest.mark.small
def test_points_are_complete_and_defaults_follow_swept_keys():
    swept = sweep_grid.axes(oscillation.Config, {"lr": [1e-4, 16e-4], "width": [5, 6]})
    points = sweep_grid.points(oscillation.Config, {"dim": 2.0, "seed": 3}, swept, 2)
    assert [(p.seed, p.lr, p.width) for p in points] == [
        (seed, lr, width) for seed in (3, 4) for lr in (1e-4, 16e-4) for width in (5, 6)
    ]
    assert all(p.dim == 2 and isinstance(p.dim, int) for p in points)
    assert {(p.lr, round(p.amplitude, 12)) for p in points} == {(1e-4, 0.1), (16e-4, 0.2)}


def test_a_point_is_the_run_alone_bit_for_bit(tmp_path):
    """Against runs with the twin, as the command line makes them."""
    sweep = tiny(tmp_path)
    assert len(sweep.rows) == 18 and set(sweep["regime"]) == {"lazy", "rich", "diverged"}
    names = {field.name for field in dataclasses.fields(label_noise.Config)}
    last = quantities.names(quantities.TWO_LAYER)
    for row in sweep.rows:
        config = label_noise.Config(**{k: v for k, v in row.items() if k in names})
        run = label_noise.run(config)
        assert row["status"] == run.status.code
        if row["status"] == "DIVERGED":
            assert row["diverged_at"] == run.status.step
            assert all(row[name] is None for name in (*sweep_points.TIMES, *last))
            continue
        assert [row[name] for name in last] == [float(run[name][-1]) for name in last]
        phases = run.phases()
        for name in sweep_points.TIMES:
            value = float(getattr(phases, name))
            assert row[name] == (None if math.isnan(value) else value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("label-noise", [{"momentum": m, "weight_decay": w} for m in (0, 0.5) for w in (0, 0.1)]),
        ("label-noise", [{"batch_size": 3, "lr": lr} for lr in (0.1, 0.2, 9)]),
        ("label-noise-periodic", [{"period": 50, "lr": lr} for lr in (0.02, 100)]),
        ("sam", [{"rho": rho, "sigma": s} for rho in (0, 0.1, 1) for s in (0, 2)]),
    ],
    ids=["momentum", "batches", "periodic", "sam"],
)
def test_a_chunk_of_mixed_points_is_the_points_alone(name, changes):
    cls = experiments.load(name).Config
    configs = [cls(**{**BASE, "lr": 0.02, **change}) for change in changes]
    together = sweep_points.run_points(name, configs)
    assert together == [sweep_points.run_points(name, [config])[0] for config in configs]


def test_every_executor_and_chunk_gives_the_same_bits(tmp_path, monkeypatch):
    whole = tiny(tmp_path / "a")
    assert (
        lnsim.sweep("label-noise", GRID, seeds=2, out=tmp_path / "b", base=BASE).rows == whole.rows
    )
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    assert tiny(tmp_path / "c").rows == whole.rows


@pytest.mark.small
@given(
    count=st.integers(1, 60), seeds=st.integers(1, 3), workers=st.integers(1, 8),
    steps=st.integers(0, 10**9),
)  # fmt: skip
def test_chunks_hold_every_point_once_and_agree_in_all_but_scalars(count, seeds, workers, steps):
    lrs = np.linspace(1e-3, 1e-2, count).tolist()
    points = sweep_grid.points(sam.Config, {"steps": steps}, {"lr": lrs, "width": [4, 5]}, seeds)
    chunks = sweep_workers.chunks(points, workers)
    assert sorted(repr(p) for chunk in chunks for p in chunk) == sorted(map(repr, points))
    for chunk in chunks:
        assert len({sweep_points.shared(point) for point in chunk}) == 1
        assert len(chunk) == 1 or len(chunk) <= -(-len(points) // (2 * workers))
        assert len(chunk) == 1 or len(chunk) * sweep_workers.seconds(chunk[0]) <= 4.0


@pytest.mark.small
def test_a_summary_of_an_ensemble_is_that_of_each_replica():
    problem = lnsim.gaussian_regression(12, 3, seed=0, test_samples=20)
    network = lnsim.ntk_init(20, 3, seed=0)
    lr = np.array([0.08, 100.0, 0.07])
    run = lnsim.simulate(
        problem, network, lnsim.SGD(lr, lnsim.LabelNoise(4.0)), steps=200, record_every=20,
        replicas=3,
    )  # fmt: skip
    rows = sweep_points.summarize(run)
    assert [row["status"] for row in rows] == ["OK", "DIVERGED", "OK"]
    assert rows[1]["diverged_at"] == run["diverged_at"][1] and rows[1]["norm_mean"] is None
    for s in (0, 2):
        assert rows[s]["norm_mean"] == run["norm_mean"][s, -1]
        assert rows[s]["first_escape"] == run.phases().first_escape[s]
    norms = run.summary()["first_and_last"]["norm_mean"]
    assert norms == [run["norm_mean"][:, 0].tolist(), [rows[s]["norm_mean"] for s in range(3)]]


@pytest.mark.small
def test_the_regimes():
    def regime(module, name, **changes):
        config = module.Config(**{**BASE, **changes})
        return sweep_points.run_points(name, [config])[0]["regime"]

    assert regime(label_noise, "label-noise", sigma=0.0, lr=1e-4) == "lazy"
    assert regime(label_noise, "label-noise", sigma=4.0, lr=0.08) == "rich"
    assert regime(label_noise, "label-noise", lr=100.0) == "diverged"
    assert regime(sam, "sam", rho=1.0, lr=1e-2, steps=2000) == "collapsed"


@pytest.mark.small
def test_the_decay_time_of_an_exponential_is_its_time_constant():
    run = label_noise.run(label_noise.Config(**BASE))
    for tau, found in ((37.0, 37.0), (198.0, 198.0), (201.0, math.nan)):
        falling = dataclasses.replace(
            run, arrays={**run.arrays, "norm_squared": 5.0 * np.exp(-run.steps / tau)}
        )
        np.testing.assert_allclose(sweep_points.decay_time(falling), found, rtol=1e-12)


@pytest.mark.small
def test_predictions_are_there_where_the_statements_cover_the_setting():
    def predicted(experiment="label-noise", **changes):
        config = experiments.load(experiment).Config(**{**BASE, **changes})
        return sweep_points.predictions(experiment, [config])[0]

    row = predicted(width=100, lr=1e-3, sigma=2.0)
    assert row["predicted_last_escape"] == pytest.approx(
        384 * math.sqrt(math.log(100)) / (2.0**2 * 1e-6 * 10)
    )
    assert row["predicted_decay_time"] == pytest.approx(1 / (1e-3 * 2.0) ** 2)
    assert None not in row.values()
    assert predicted("sam", rho=0.0, sigma=2.0, width=100, lr=1e-3) == row
    for name, changes in (
        ("label-noise", {"momentum": 0.5}), ("label-noise", {"weight_decay": 0.1}),
        ("label-noise", {"batch_size": 2}), ("label-noise", {"law": "gaussian"}),
        ("label-noise", {"lr": 1.5}), ("sam", {"rho": 0.1}), ("label-noise-periodic", {}),
        ("oscillation", {}),
    ):  # fmt: skip
        assert set(predicted(name, **changes).values()) == {None}, (name, changes)
    silent = predicted(sigma=0.0)
    assert silent.pop("predicted_instability") > 0 and set(silent.values()) == {None}
    assert predicted(width=1)["predicted_last_escape"] is None


def test_the_law_of_modes_foretells_the_decay_time(tmp_path):
    base = {"width": 300, "steps": 100_000, "record_every": 500, "test_samples": 10, "sigma": 8.0}
    (row,) = tiny(tmp_path, {"lr": [5e-4]}, base=base, seeds=1).rows
    predicted = sweep_points.decay_time_by_modes("label-noise", row)
    assert row["decay_time"] == pytest.approx(predicted, rel=0.03)
    assert math.isnan(sweep_points.decay_time_by_modes("label-noise", {**row, "sigma": 0.0}))


def test_the_grid_and_the_seeds_can_grow_and_nothing_runs_twice(tmp_path):
    seen = []
    first = tiny(tmp_path, {"sigma": [1.0, 2.0]}, progress=seen.append)
    assert (first.new, sum(seen)) == (4, 4)
    file = tmp_path / "sweep.sqlite"
    before = file.read_bytes()
    again = tiny(tmp_path, {"sigma": [1.0, 2.0]})
    assert again.new == again.missing == 0 and file.read_bytes() == before
    more = tiny(tmp_path, {"sigma": [2.0, 3.0]}, seeds=3)
    assert more.new == 4 and len(more.rows) == 8
    assert [(row["sigma"], row["seed"]) for row in more.rows] == [
        (1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1), (2.0, 2), (3.0, 0), (3.0, 1), (3.0, 2),
    ]  # fmt: skip
    assert [row for row in more.rows if row in first.rows] == first.rows


def test_a_folder_of_another_sweep_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "out"
    tiny(out, {"sigma": [1.0, 2.0]}, seeds=1)
    before = (out / "sweep.sqlite").read_bytes()
    for grid, options, says in (
        ({"sigma": [1.0]}, {"base": {**BASE, "width": 21}}, "width = 20, not 21"),
        ({"sigma": [1.0]}, {"experiment": "sam"}, "is of experiment 'label-noise', not 'sam'"),
        ({"sigma": [1.0], "lr": [1e-3]}, {}, "sweeps sigma, not lr, sigma"),
        ({"lr": [1e-3]}, {}, "sweeps sigma, not lr"),
    ):
        with pytest.raises(ValueError, match=says):
            tiny(out, grid, **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ValueError, match="not empty and holds no sweep"):
        tiny(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    assert (out / "sweep.sqlite").read_bytes() == before


def test_a_stopped_sweep_keeps_what_arrived_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    arrived = []
    stopped = tiny(tmp_path / "a", progress=arrived.append, stop=lambda: sum(arrived) >= 5)
    assert 5 <= stopped.new == len(stopped.rows) < 18 and stopped.missing == 18 - stopped.new
    rest = tiny(tmp_path / "a")
    assert rest.new == stopped.missing and rest.missing == 0
    assert rest.rows == tiny(tmp_path / "b").rows


class Failing(Executor):
    """Does what it is given at once, and from the third task on raises."""

    def __init__(self, error):
        self.error, self.count = error, 0

    def submit(self, function, *arguments):
        self.count += 1
        with ThreadPoolExecutor(1) as executor:
            if self.count < 3:
                return executor.submit(function, *arguments)
            return executor.submit(self.fail)

    def fail(self):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no such thing"), MemoryError("too wide")])
def test_what_a_task_raises_ends_the_sweep_and_loses_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    monkeypatch.setattr(sweep_workers, "cores", lambda: 1)
    with pytest.raises(type(error), match=str(error)):
        tiny(tmp_path, executor=Failing(error))
    assert len(lnsim.Sweep.load(tmp_path).rows) == 2


def killed(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def ended(chunk):
    os.kill(os.getpid(), signal.SIGTERM)


def killed_sending(chunk):
    """Dies as a process does that is killed once half of what it found is in the pipe."""
    frame = sys._getframe()
    while "pipe" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["pipe"].fileno(), (1000).to_bytes(4, "big") + b"half")
    killed(chunk)


def dies(how, marker, chunk):
    """A task: the chunk that holds 3 takes its process along, always or while there is no file."""
    if 3 in chunk and not (marker and pathlib.Path(marker).exists()):
        if marker:
            pathlib.Path(marker).touch()
        how(chunk)
    return [10 * x for x in chunk]


@pytest.mark.parametrize("how", [killed, ended, killed_sending])
@pytest.mark.parametrize("always", [True, False])
def test_a_process_that_dies_costs_its_chunk_alone(tmp_path, always, how):
    task = functools.partial(dies, how, "" if always else str(tmp_path / "died"))
    chunks = [[2 * i, 2 * i + 1] for i in range(6)]
    with sweep_workers.crew(None, None) as workers:
        dispatch = sweep_workers.Dispatch(workers, task)
        found = {
            tuple(chunk): result
            for arrived in dispatch.results(chunks, lambda: False)
            for chunk, result in arrived
        }
    assert dispatch.lost == ([[2, 3]] if always else [])
    kept = [chunk for chunk in chunks if chunk not in dispatch.lost]
    assert found == {tuple(chunk): [10 * x for x in chunk] for chunk in kept}


def large(chunk):
    """More than fits into a pipe, so that processes are killed as they send."""
    return [bytes(30_000_000)]


def test_a_stop_while_processes_send_ends_and_leaves_none(capfd):
    seen = []
    with sweep_workers.crew(None, None) as workers:
        dispatch = sweep_workers.Dispatch(workers, large)
        for some in dispatch.results([[i] for i in range(1000)], lambda: len(seen) > 3):
            seen.extend(some)
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def mask_of_each(folder, count, chunk):
    """A task: the signals blocked, once `count` processes are at it."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.01)
    return [signal.pthread_sigmask(signal.SIG_BLOCK, [])]


def test_every_process_leaves_ctrl_c_to_its_parent_from_its_first_moment(tmp_path):
    with sweep_workers.crew(None, None) as workers:
        task = functools.partial(mask_of_each, tmp_path, workers.size)
        dispatch = sweep_workers.Dispatch(workers, task)
        chunks = [[i] for i in range(workers.size)]
        found = [mask for some in dispatch.results(chunks, lambda: False) for _, (mask,) in some]
    assert len(found) == workers.size
    assert all(signal.SIGINT in mask and signal.SIGTERM not in mask for mask in found)


MANY = {"width": list(range(10, 34))}
LONG = {**{key: value for key, value in BASE.items() if key != "width"}, "steps": 6_000}
TO_MANY = ["sweep", "label-noise", "--grid", f"width={','.join(map(str, MANY['width']))}",
           "--set", *(f"{key}={value}" for key, value in LONG.items())]  # fmt: skip


def workers_of(number):
    """The processes of a sweep's pool, once they have been started."""
    children = psutil.Process(number).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("whom", ["the group", "the parent", "a worker"])
def test_sigterm_loses_nothing_and_leaves_nobody(tmp_path, whom):
    command = [sys.executable, "-m", "lnsim", *TO_MANY, "--out", str(tmp_path / "a")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    while not has_points(tmp_path / "a"):
        assert process.poll() is None
        time.sleep(0.01)
    workers = workers_of(process.pid)
    if whom == "the group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if whom == "the parent" else workers[0].pid, signal.SIGTERM)
    said = process.communicate()[0]
    assert workers and not any(map(is_alive, workers))
    assert "Traceback" not in said
    kept = len(lnsim.Sweep.load(tmp_path / "a").rows)
    if whom == "a worker":
        assert process.returncode == 0 and kept == len(MANY["width"])
    else:
        assert process.returncode == 143 and 0 < kept < len(MANY["width"])
        left = len(MANY["width"]) - kept
        assert said == f"stopped with {left} points to go; the same command goes on\n"
    again = tiny(tmp_path / "a", MANY, base=LONG, seeds=1)
    assert again.new == len(MANY["width"]) - kept
    assert again.rows == tiny(tmp_path / "b", MANY, base=LONG, seeds=1).rows


def has_points(folder):
    try:
        return bool(lnsim.Sweep.load(folder).rows)
    except ValueError:
        return False


def test_an_executor_that_breaks_is_reported_in_one_line(tmp_path, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    with pytest.raises(ChildProcessError, match="a worker died, and with it the executor"):
        tiny(tmp_path, executor=Failing(BrokenProcessPool("gone")))


def test_a_worker_killed_under_dask_costs_nothing(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    whole = tiny(tmp_path / "a", seeds=4)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        killed = []

        def kill_one(count):
            if not killed:
                address, pid = next(iter(client.run(os.getpid).items()))
                os.kill(pid, signal.SIGKILL)
                killed.append(address)

        found = lnsim.sweep(
            "label-noise", GRID, out=tmp_path / "b", base=BASE, seeds=4, progress=kill_one,
            scheduler=cluster.scheduler_address,
        )  # fmt: skip
        assert killed
    assert found.new == 36 and found.rows == whole.rows


def test_dask_that_is_missing_or_silent_is_one_line(tmp_path, monkeypatch, capsys):
    from lnsim.sweeps import dask_cluster

    command = ["sweep", "label-noise", "--grid", "sigma=1,2", "--out", str(tmp_path / "a"),
               "--scheduler", "tcp://127.0.0.1:9", "--set", "steps=0", "width=5"]  # fmt: skip
    if "distributed" in sys.modules or _has_distributed():
        monkeypatch.setattr(dask_cluster, "TIMEOUT", 0.5)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in error
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "pip install 'lnsim[dask]'" in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def _has_distributed():
    from importlib.util import find_spec

    return find_spec("distributed") is not None


@pytest.mark.small
def test_the_power_law_of_exact_and_of_noisy_data():
    x = np.geomspace(0.1, 50.0, 9)
    exact = power_law(x, 3.0 * x**-2.0)
    assert exact.exponent == pytest.approx(-2.0) and exact.factor == pytest.approx(3.0)
    assert exact.high - exact.low < 1e-12 and not exact.bends
    np.testing.assert_allclose(exact(x), 3.0 * x**-2.0)
    from scipy import stats

    y = 3.0 * x**-2.0 * np.exp(0.1 * np.random.default_rng(0).standard_normal(9))
    law, other = power_law(x, y), stats.linregress(np.log(x), np.log(y))
    reach = stats.t.ppf(0.975, 7) * other.stderr
    np.testing.assert_allclose(
        [law.exponent, law.low, law.high, law.factor],
        [other.slope, other.slope - reach, other.slope + reach, np.exp(other.intercept)],
    )


@pytest.mark.small
def test_the_interval_of_the_exponent_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    x = np.repeat(np.geomspace(1.0, 10.0, 5), 3)
    laws = [power_law(x, x**1.5 * np.exp(rng.standard_normal(15))) for _ in range(2000)]
    covered = np.mean([law.low <= 1.5 <= law.high for law in laws])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))
    bends = np.mean([law.bends for law in laws])
    assert bends == pytest.approx(0.05, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


@pytest.mark.small
def test_points_that_bend_are_told_from_points_that_scatter():
    x = np.repeat(np.geomspace(1.0, 100.0, 6), 4)
    noise = np.exp(0.1 * np.random.default_rng(2).standard_normal(x.size))
    assert power_law(x, (x**-2.0 + 3e-4) * noise).bends
    assert power_law([1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 9.0]).bends is False
    assert not power_law([1.0, 1.0, 4.0, 4.0], [1.0, 2.0, 4.0, 9.0]).bends


@pytest.mark.small
@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([1.0, 2.0], [1.0, 2.0], "3 points"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "3 points of different x"),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], "x must be finite and above 0"),
        ([1.0, 2.0, 3.0], [1.0, -2.0, 3.0], "y must be finite and above 0"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "y must have shape"),
    ],
)
def test_a_power_law_refuses_what_it_cannot_fit(x, y, says):
    with pytest.raises(ValueError, match=says):
        power_law(x, y)


def test_the_command_line_sweeps_says_so_and_does_nothing_twice(tmp_path, capsys):
    command = ["sweep", "label-noise", "--out", str(tmp_path / "out"), "--seeds", "2",
               "--grid", "sigma=0,4", "lr=1e-3:1e-2:2:log", "--set",
               *(f"{key}={value}" for key, value in BASE.items())]  # fmt: skip
    assert main(command) == 0
    assert "points        8, 8 of them run now" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 of them run now: nothing to do" in capsys.readouterr().out
    for more, says in (
        (["--grid", "sigma=3"], "sigma has two grids"),
        (["--set", "width=9"], "width = 20, not 9"),
        (["--set", "sigma=1"], "sigma is swept and set to 1"),
        (["--grid", "dim"], "expected KEY=VALUES, got 'dim'"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


@pytest.mark.small
def test_importing_lnsim_brings_in_nothing_that_sweeps_need():
    code = """
import sys, lnsim, lnsim.cli.main
heavy = {"sqlite3", "distributed", "matplotlib", "multiprocessing", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
