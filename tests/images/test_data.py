"""Problems, networks, files: what they are, and what they refuse."""

import numpy as np
import pytest

import lnsim
from lnsim.base import files

pytestmark = pytest.mark.small


def test_gaussian_regression_is_interpolated_and_of_the_asked_norm():
    problem = lnsim.gaussian_regression(30, 6, seed=2, theta_norm=0.5)
    np.testing.assert_allclose(problem.X @ problem.theta_star, problem.y)
    np.testing.assert_allclose(problem.X_test @ problem.theta_star, problem.y_test)
    assert np.linalg.norm(problem.theta_star) == pytest.approx(0.5)
    plain = lnsim.gaussian_regression(30, 6, seed=2)
    np.testing.assert_array_equal(plain.X, problem.X)
    assert not np.array_equal(plain.X, lnsim.gaussian_regression(30, 6, seed=3).X)


def test_ntk_initialisation_has_the_stated_variances():
    network = lnsim.ntk_init(4000, 50, seed=1)
    assert network.W.var() == pytest.approx(1 / 50, rel=0.02)
    assert network.a.var() == pytest.approx(1 / 4000, rel=0.1)


def test_a_problem_of_ones_own():
    X = np.arange(12.0).reshape(4, 3)
    problem = lnsim.Problem(X, X @ [1.0, 0.0, 2.0])
    np.testing.assert_allclose(problem.X @ problem.theta_star, problem.y)
    run = lnsim.simulate(problem, lnsim.ntk_init(5, 3), lnsim.SGD(1e-4), steps=3, record_every=1)
    assert np.isnan(run["test_loss"]).all() and np.isfinite(run["train_loss"]).all()


X, y = np.ones((3, 2)), np.ones(3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lnsim.Problem(X, np.ones(4)), "y must have shape"),
        (lambda: lnsim.Problem(np.ones(3), y), "X must have 2 axes"),
        (lambda: lnsim.Problem(np.ones((0, 2)), np.ones(0)), "X must not be empty"),
        (lambda: lnsim.Problem(X * np.nan, y), "X must be finite"),
        (lambda: lnsim.Problem(X, y * np.inf), "y must be finite"),
        (lambda: lnsim.Problem(X, y, np.ones(3)), "theta_star must have shape"),
        (lambda: lnsim.Problem(X, y, X_test=X), "must be given together"),
        (lambda: lnsim.Problem(X, y, X_test=np.ones((3, 5)), y_test=y), "X_test must have shape"),
        (lambda: lnsim.Network(X, np.ones(2)), "a must have shape"),
        (lambda: lnsim.Network(X * np.nan, np.ones(3)), "W must be finite"),
        (lambda: lnsim.Network(X, np.ones(3) * np.inf), "a must be finite"),
        (lambda: lnsim.gaussian_regression(3, 2, theta_norm=-1.0), "theta_norm must be"),
        (lambda: lnsim.SGD(-1e-3), "lr must be"),
        (lambda: lnsim.SGD(1e-3, batch_size=-1), "batch_size must be at least 0"),
        (lambda: lnsim.SGD(1e-3, momentum=1.0), "momentum must be below 1"),
        (lambda: lnsim.SGD(1e-3, weight_decay=-1.0), "weight_decay must be"),
        (lambda: lnsim.LabelNoise(-1.0), "sigma must be"),
        (lambda: lnsim.LabelNoise(1.0, "cauchy"), "law must be one of"),
    ],
)
def test_bad_values_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: lnsim.Problem("x", y),
        lambda: lnsim.SGD("fast"),
        lambda: lnsim.SGD(1e-3, noise=4.0),
        lambda: lnsim.SGD(1e-3, batch_size=2.0),
        lambda: lnsim.ntk_init(True, 2),
    ],
)
def test_wrong_types_are_named(make):
    with pytest.raises(TypeError, match="must be"):
        make()


def test_simulate_refuses_what_does_not_fit():
    problem, network = lnsim.Problem(X, y), lnsim.ntk_init(4, 2)
    for more, says in (
        ({"steps": -1}, "steps"),
        ({"record_every": 0}, "record_every"),
        ({"replicas": 0}, "replicas"),
        ({"seed": -1}, "seed"),
        ({"backend": "abacus"}, "abacus"),
    ):
        with pytest.raises(ValueError, match=says):
            lnsim.simulate(
                problem, network, lnsim.SGD(1e-3), **({"steps": 1, "record_every": 1} | more)
            )
    with pytest.raises(ValueError, match="lr has 2 values for 3 replicas"):
        lnsim.simulate(
            problem, network, lnsim.SGD(np.array([1.0, 2.0])), steps=1, record_every=1, replicas=3
        )
    with pytest.raises(ValueError, match="W has 3 columns but X has 2"):
        lnsim.simulate(problem, lnsim.ntk_init(4, 3), lnsim.SGD(1e-3), steps=1, record_every=1)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_a_broken_trajectory_is_refused(tmp_path, content):
    (tmp_path / "config.toml").write_text("steps = 1\n", encoding="utf-8")
    (tmp_path / "trajectory.npz").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read"):
        lnsim.Trajectory.load(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path):
    (tmp_path / "config.toml").write_text("steps = 1\n", encoding="utf-8")
    np.savez(tmp_path / "trajectory.npz", evil=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="cannot read"):
        lnsim.Trajectory.load(tmp_path)
