"""The torch engine of function-space linearisation: the same runs by autograd; its bad input."""

import hashlib
import http.server
import io
import pickle
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lnsim.experiments import linearization
from lnsim.images import data as images
from lnsim.images import erf_network

torch = pytest.importorskip("torch")

from lnsim_torch import erf_network as torch_network


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
    task = erf_network.Task(X, y, labels[0, 0], X_test, y[:2])
    layers = [(width, dim), (width,), (classes, width), (classes,)]
    network = erf_network.Network(*(rng.standard_normal(shape) for shape in layers))
    start = erf_network.reduce(task, network)

    def trained(chosen):
        state = erf_network.state_at_start(network, samples, len(chosen))
        torch_network.advance(state, start, labels[chosen], 0.1, dtype=dtype)
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
    with pytest.raises(ValueError, match="'cuda' is not available: torch finds 0 CUDA devices"):
        linearization.run(config_of(data, "float32"), backend="torch", device="cuda")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small CIFAR-10 archive on a web server of this machine, from which torchvision takes it."""
    datasets = pytest.importorskip("torchvision.datasets")
    rng = np.random.default_rng(0)
    files = {"batches.meta": {"label_names": [str(label) for label in range(10)]}}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = rng.integers(0, 256, (8, 3072), dtype=np.uint8)
        files[name] = {"data": pixels, "labels": rng.integers(0, 10, 8).tolist()}
    path = tmp_path / "web" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    sums = {}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            held = pickle.dumps(content)
            sums[name] = hashlib.md5(held).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(held)
            tar.addfile(info, io.BytesIO(held))
    listed = [[name, md5] for name, md5 in sums.items()]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        partial(http.server.SimpleHTTPRequestHandler, directory=path.parent),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "url": f"http://127.0.0.1:{server.server_port}/{path.name}",
        "tgz_md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "train_list": listed[1:6],
        "test_list": listed[6:],
        "meta": meta,
    }.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    yield path, files
    server.shutdown()
    server.server_close()


def test_cifar10_is_downloaded_once_and_checked(archive, tmp_path, capsys):
    path, files = archive
    here = str(tmp_path / "here")
    found = images.load("cifar10", here)
    assert "100%" in capsys.readouterr().err
    for pixels, labels, names in (
        (found.train_images, found.train_labels, [f"data_batch_{i}" for i in range(1, 6)]),
        (found.test_images, found.test_labels, ["test_batch"]),
    ):
        expected = np.concatenate([files[name]["data"] for name in names])
        by_channel = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
        np.testing.assert_array_equal(by_channel, expected)
        assert labels.tolist() == [label for name in names for label in files[name]["labels"]]

    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"CIFAR-10 cannot be loaded from .*elsewhere.*corrupted"):
        images.load("cifar10", str(tmp_path / "elsewhere"))
    path.unlink()  # it is there already, and need not be had again
    config = linearization.Config(
        data="cifar10", data_root=here, samples=8, test_samples=8, width=8, steps=2
    )
    assert linearization.run(config).status.code == "OK"
    for kept in Path(here).rglob("*.tar.gz"):
        kept.unlink()
    batch = Path(here, "cifar-10-batches-py", "data_batch_3")
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"cannot be loaded from .*404"):
        linearization.run(config)


def test_missing_torchvision_is_named(monkeypatch):
    for name in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lnsim_torch.data", raising=False)
    with pytest.raises(ValueError, match=r"torchvision: pip install 'lnsim\[torch\]'"):
        linearization.run(linearization.Config(data="cifar10"))
