"""The torch engine of function-space linearisation: the same runs by autograd; its bad input."""

import sys
import types

import numpy as np
import pytest

from lnsim import function_space
from lnsim.experiments import linearization

torch = pytest.importorskip("torch")
two_layer = pytest.importorskip("lnsim_torch.two_layer")


@pytest.fixture
def data(tmp_path):
    """The path of an .npz file of small images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 30), ("test", 20)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{name}_labels"] = rng.integers(0, 10, count)
    np.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


def config_of(data, dtype):
    return linearization.Config(
        data=data, samples=20, test_samples=10, width=96, lr=0.01, steps=2000, dtype=dtype
    )


def agree(data, dtype, tolerance, device):
    config = config_of(data, dtype)
    by_hand = linearization.run(config)
    by_autograd = linearization.run(config, backend="torch", device=device)
    assert by_hand["clean_train_loss"][-1] < 0.5 * by_hand["clean_train_loss"][0]
    for name in linearization.SERIES:
        np.testing.assert_allclose(by_autograd[name], by_hand[name], rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
def test_both_backends_agree_over_the_whole_run(data, dtype, tolerance):
    agree(data, dtype, tolerance, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
def test_both_backends_agree_on_a_gpu(data, dtype, tolerance):
    agree(data, dtype, tolerance, "cuda")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stopped_run_goes_on_to_the_same_bits(data, dtype):
    config = config_of(data, dtype)
    threads = torch.get_num_threads()
    whole = linearization.run(config, backend="torch")
    half = linearization.run(config, backend="torch", stop=lambda: True)
    again = linearization.run(config, backend="torch", resume=half)
    for name, value in (*whole.arrays.items(), *whole.state.items()):
        found = again.arrays[name] if name in again.arrays else again.state[name]
        np.testing.assert_array_equal(found, value, err_msg=name)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_is_the_same_alone_and_among_others(dtype):
    rng = np.random.default_rng(0)
    runs, steps, samples, width, classes, dim = 20, 5, 12, 64, 3, 6
    X, X_test = rng.standard_normal((samples, dim)), rng.standard_normal((2, dim))
    labels = rng.integers(0, classes, (runs, steps, samples))
    y = np.eye(classes)[labels[0, 0]]
    task = function_space.Task(X, y, labels[0, 0], X_test, y[:2])
    layers = [(width, dim), (width,), (classes, width), (classes,)]
    network = function_space.Network(*(rng.standard_normal(shape) for shape in layers))
    start = function_space.reduce(task, network)

    def trained(chosen):
        state = function_space.state_at_start(network, samples, len(chosen))
        two_layer.advance(state, start, labels[chosen], 0.1, dtype=dtype)
        return state

    together = vars(trained(list(range(runs))))
    for run in (0, 7, runs - 1):
        for name, alone in vars(trained([run])).items():
            np.testing.assert_array_equal(together[name][run], alone[0], err_msg=name)


@pytest.mark.parametrize("device", ["tpu-of-mine", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(data, device):
    with pytest.raises(ValueError, match="device"):
        linearization.run(config_of(data, "float32"), backend="torch", device=device)


def test_cuda_where_there_is_none(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="'cuda' is not there: torch finds 0 CUDA devices"):
        linearization.run(config_of(data, "float32"), backend="torch", device="cuda")


@pytest.fixture
def torchvision(monkeypatch):
    """A torchvision that has the data set as it is, without the download."""

    class CIFAR10:
        def __init__(self, root, train, download):
            if root == "spoilt":
                raise RuntimeError("File not found or corrupted.")
            assert download
            rng = np.random.default_rng(int(train))
            self.data = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
            self.targets = rng.integers(0, 10, 40).tolist()

    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    datasets.CIFAR10 = CIFAR10
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    monkeypatch.delitem(sys.modules, "lnsim_torch.data", raising=False)
    yield
    sys.modules.pop("lnsim_torch.data", None)


def test_cifar10_comes_through_torchvision(torchvision):
    config = linearization.Config(
        data="cifar10", data_root="here", samples=8, test_samples=8, width=8, steps=2
    )
    assert linearization.run(config).status.code == "OK"
    with pytest.raises(ValueError, match=r"CIFAR-10 cannot be had below 'spoilt': .*corrupted"):
        linearization.run(linearization.Config(data="cifar10", data_root="spoilt"))


def test_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "lnsim_torch.data", raising=False)
    with pytest.raises(ValueError, match=r"torchvision: pip install 'lnsim\[torch\]'"):
        linearization.run(linearization.Config(data="cifar10"))
