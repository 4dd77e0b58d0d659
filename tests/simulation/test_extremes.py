"""Values at the ends of what a float or a machine holds: right answers, or one line."""

import contextlib
import math
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

import lnsim
from lnsim.cli.main import main
from lnsim.experiments import label_noise
from lnsim.sweeps import store
from lnsim.sweeps.sweep import sweep
from lnsim.theory import modes, paper

SMALL = {"samples": 20, "test_samples": 10, "dim": 4, "width": 20, "steps": 40, "record_every": 20}
ASSIGNED = [f"{key}={value}" for key, value in SMALL.items()]

pytestmark = [pytest.mark.small]
if numba.config.DISABLE_JIT:  # NumPy warns of what compiled loops do without a word: they diverge
    overflow = "ignore:overflow encountered in scalar multiply:RuntimeWarning"
    pytestmark.append(pytest.mark.filterwarnings(overflow))


def test_what_a_float_cannot_hold_is_infinite_or_0():
    assert paper.lazy_escape_bound(20, 1e-3, 1e-200) == math.inf
    assert paper.lazy_escape_bound(20, 5e-324, 5e-324) == math.inf
    assert paper.lazy_escape_bound(20, 1e-3, 1e200) == 0.0
    assert paper.decay_time(1e-3, 4.0) == pytest.approx(62_500)
    assert paper.decay_time(1e-300, 4.0) == paper.decay_time(1e-3, 0.0) == math.inf
    assert paper.decay_time(1e-3, 1e200) == 0.0
    assert paper.lemma_3(20, 4, 1e155).decrease == math.inf
    assert paper.lemma_4(1e-300) == paper.Lemma4(math.inf, 1e-150, 1e150)
    assert paper.alignment_time(5e-324, 2.0) == pytest.approx(744.44 / 2, rel=1e-5)
    assert paper.alignment_time_linearized(5e-324, 2.0) == math.inf
    assert paper.misalignment_order(5e-324) == pytest.approx(744.44 * math.sqrt(5e-324), rel=1e-5)
    assert (paper.decay_rates(np.eye(4), 1e-3, 1e200) == math.inf).all()
    third, fourth = paper.condition_1(np.eye(4), np.full(4, 1e200), 20, 1e-300)[2:4]
    assert third.threshold == math.inf and fourth.value == pytest.approx(2e200)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1.0, 1e200, 1e307])
def test_the_state_at_rest_grows_with_theta_star(scale):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 4))
    target, Sigma = rng.standard_normal(4), X.T @ X / 30
    expected = paper.stationary_norms(target, Sigma)
    assert paper.stationary_norms(scale * target, Sigma) == pytest.approx(
        [scale * norm for norm in expected], rel=1e-13
    )


@pytest.mark.parametrize(
    ("lr", "sigma", "theta", "reason"),
    [(5e-324, 4.0, 1.0, "lr is too small"), (1e-3, 1e155, 1.0, "sigma must have a finite square"),
     (1e-3, 4.0, 1e140, "theta_star is so large")],
)  # fmt: skip
def test_the_law_of_modes_says_why_it_has_no_curve(lr, sigma, theta, reason):
    problem, network = lnsim.gaussian_regression(20, 4, theta_norm=theta), lnsim.ntk_init(20, 4)
    with pytest.raises((ValueError, ArithmeticError), match=reason):
        modes.integrate_modes(
            problem.X, problem.theta_star, network.W, network.a, lr, sigma, [0.0, 100.0]
        )


@pytest.mark.parametrize(
    "assignment",
    ["sigma=1e155", "sigma=1e200", "sigma=1e-200", "sigma=5e-324", "lr=1e-300", "lr=5e-324",
     "theta_norm=1e140", "theta_norm=1e-200", "theta_norm=5e-324", "record_every=1e300"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["theory", "run"])
def test_a_value_that_a_run_takes_has_its_answer(command, assignment, tmp_path, capsys):
    where = [] if command == "theory" else ["label-noise", "--out", str(tmp_path / "run")]
    code = main([command, *where, "--set", *ASSIGNED, assignment])
    assert code in ((0,) if command == "theory" else (0, 3))
    said = capsys.readouterr()
    assert not re.search(r"\bnan\b", said.out) and "Errno" not in said.out + said.err
    if command == "run":
        assert (code == 3) == (assignment in ("sigma=1e155", "sigma=1e200", "theta_norm=1e140"))
        assert main(["theory", str(tmp_path / "run")]) == 0
        assert main(["plot", str(tmp_path / "run")]) == 0
        assert main(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    "assignment",
    ["steps=1e20", "steps=1e300", "steps=inf", "steps=nan", "steps=-1", "width=1e20", "dim=1e300",
     "samples=1e20", "test_samples=1e20", "batch_size=1e20", "theta_norm=1e200", "theta_norm=1e308",
     "momentum=1e300",
     "record_every=0", "lr=nan", "sigma=inf", "seed=1e20"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["theory", "run", "sweep"])
def test_a_value_that_none_takes_is_named_in_one_line(command, assignment, tmp_path, capsys):
    where = {
        "theory": ["theory"],
        "run": ["run", "label-noise", "--out", str(tmp_path / "out")],
        "sweep": ["sweep", "label-noise", "--grid", "weight_decay=0,1e-3", "--out",
                  str(tmp_path / "out")],
    }[command]  # fmt: skip
    assert main([*where, "--set", *ASSIGNED, assignment]) == 2
    said = capsys.readouterr().err
    key = assignment.split("=")[0]
    assert said.count("\n") == 1 and said.startswith(f"lnsim: {key} must be"), said
    assert "got" in said and len(said) < 200
    assert not (tmp_path / "out" / "trajectory.npz").exists()


def test_too_many_records_are_refused_before_anything_is_made(tmp_path, capsys):
    arguments = ["run", "label-noise", "--set", *ASSIGNED, "steps=1e12", "record_every=1"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "record_every must be at least 100,000 for steps=1,000" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["label-noise-periodic", "oscillation-periodic"])
def test_a_period_has_an_end(name, tmp_path, capsys):
    where = ["run", name, "--out", str(tmp_path / "run"), "--set", *ASSIGNED]
    assert main([*where, "period=1e300"]) == 2
    assert "period must be at most 9,007,199,254,740,992" in capsys.readouterr().err
    assert main([*where, "period=9007199254740992"]) == 0


def test_the_oscillation_at_a_tiny_lr(tmp_path, capsys):
    where = ["run", "oscillation", "--out", str(tmp_path), "--set", *ASSIGNED, "lr=1e-300"]
    assert main(where) == 0
    assert "(bound inf)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "values", "regimes"),
    [("sigma", [1.0, 1e200, 1e-200, 1e155], ["lazy", "lazy", "diverged", "diverged"]),
     ("lr", [1e-3, 1e-300, 1e300], ["lazy", "lazy", "diverged"]),
     ("theta_norm", [1.0, 1e140, 1e-200], ["lazy", "lazy", "diverged"])],
)  # fmt: skip
def test_a_sweep_keeps_every_point_as_what_it_is(key, values, regimes, tmp_path):
    def of(grid, out):
        with ThreadPoolExecutor(1) as executor:
            return sweep("label-noise", {key: grid}, out=out, base=SMALL, executor=executor)

    result = of(values, tmp_path / "all")
    assert result["regime"].tolist() == regimes
    alone = of(values[:1], tmp_path / "alone").rows[0]
    assert alone in result.rows  # with these beside it a point is the same, to the last bit
    for row in result.rows:
        assert all(v is None or isinstance(v, str) or math.isfinite(v) for v in row.values())


def test_a_sweep_refuses_what_its_file_cannot_hold(tmp_path):
    for base in ({"seed": 2**63}, {"record_every": 10**300}):
        with pytest.raises(ValueError, match="must be at most 9,223,372,036,854,775,807"):
            sweep("label-noise", {"sigma": [1.0]}, out=tmp_path / "s", base={**SMALL, **base})
    assert not (tmp_path / "s").exists()


@contextlib.contextmanager
def held(path):
    """The results file as another program holds it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(store, "BUSY", 0.02)
    monkeypatch.setattr(store, "BRIEF", 0.01)


def sweep_of_four(out, progress=None):
    with ThreadPoolExecutor(1) as executor:
        return sweep(
            "label-noise", {"sigma": [1.0, 2.0], "width": [5, 10]}, out=out, progress=progress,
            executor=executor, base={k: v for k, v in SMALL.items() if k != "width"},
        )  # fmt: skip


def test_points_wait_in_memory_while_another_holds_the_file(tmp_path, impatient):
    whole = sweep_of_four(tmp_path / "whole")
    with contextlib.ExitStack() as stack:
        arrivals = []

        def arrived(count):
            arrivals.append(count)
            if len(arrivals) == 1:
                stack.enter_context(held(tmp_path / "kept" / store.FILE))
            if sum(arrivals) == 4:
                stack.close()

        kept = sweep_of_four(tmp_path / "kept", arrived)
    assert len(arrivals) > 1 and kept.rows == whole.rows and kept.new == 4


def test_a_file_held_to_the_end_is_told_and_the_same_sweep_goes_on(
    tmp_path, impatient, monkeypatch, capsys
):
    path = tmp_path / store.FILE
    with contextlib.ExitStack() as stack:
        arrivals = []

        def arrived(count):
            arrivals.append(count)
            if len(arrivals) == 1:
                stack.enter_context(held(path))

        with pytest.raises(OSError, match=r"held by another program.* points are lost"):
            sweep_of_four(tmp_path, arrived)
        with pytest.raises(ValueError, match="held by another program"):
            lnsim.Sweep.load(tmp_path)
        assert main(["plot", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "held by another program" in said and said.count("\n") == 1
    again = sweep_of_four(tmp_path)
    assert again.new == 4 - arrivals[0] and len(again.rows) == 4


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    sweep_of_four(tmp_path)
    path = tmp_path / store.FILE
    with contextlib.closing(store.Writer(path)) as writer:
        writer._database.execute("PRAGMA max_page_count = 1")
        _, rows = store.read(path)
        many = [{**rows[0], "key": str(i)} for i in range(1000)]
        with pytest.raises(
            OSError, match=r"cannot write .*sweep\.sqlite: database or disk is full"
        ):
            writer.add(many)
    assert len(lnsim.Sweep.load(tmp_path).rows) == 4


def test_a_figure_over_extremes_is_drawn(tmp_path):
    config = label_noise.Config(**SMALL, sigma=1e-200)
    assert label_noise.run(config).plot() is not None
