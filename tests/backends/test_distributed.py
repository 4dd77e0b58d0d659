"""Data-parallel training: two processes on the CPU, joined by gloo, are one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lnsim_torch import distributed

PROGRAM = """
import sys
from dataclasses import replace

import numpy as np
import torch
from lnsim.images.data import Images
from lnsim_torch import networks
from lnsim_torch.distributed import group, joined
from lnsim_torch.samples import place
from lnsim_torch.training import Recipe, train
from lnsim_torch.training.evaluation import evaluate

torch.set_num_threads(1)
rng = np.random.default_rng(0)
pixels, labels = rng.integers(0, 256, (24, 16, 16, 3), np.uint8), rng.integers(0, 4, 24)
images = Images(pixels[:15], labels[:15], pixels[15:], labels[15:])
recipe = Recipe(steps=6, record_every=2, lr=0.1, batch_size=7, rho=0.05, momentum=0.5, tau=0.3,
                sigma=0.1, augment=True)
with joined("cpu") as device:
    data = place(images, device, classes=4)
    network = networks.resnet18(width=2, classes=4).double()
    kept, seen, asked = [], [], []
    result = train(network, data, recipe, progress=seen.append, checkpoint=kept.append,
                   checkpoint_every=0)
    loss, accuracy = evaluate(network, data.test, "squared")
    assert type(network[1]) is torch.nn.BatchNorm2d

    def stop():
        asked.append(True)
        return group().rank == group().size - 1 and len(asked) == 2  # one process decides for all

    # Each process perturbs by its own share; one process, by micro-batches as large as a share.
    # The last batch of an epoch, of three samples, leaves the second process none.
    alone = group().size == 1
    recipe = replace(recipe, batch_size=12)

    def trained(last_layer, **changes):
        network = torch.nn.Sequential(networks.resnet18(width=2, classes=4), last_layer).double()
        return train(network, data, replace(recipe, **changes)).state

    own = trained(torch.nn.Dropout(0.3), perturbation="batch" if alone else "process",
                  micro_batch=6 if alone else 0)
    own.pop("processes", None)
    states = {
        "own": own,
        "halves": trained(torch.nn.Identity(), micro_batch=6),
        "thirds": trained(torch.nn.Identity(), micro_batch=4),
        "whole": trained(torch.nn.Identity()),
        "raw": trained(torch.nn.Identity(), normalized=False),
    }
    of_all = {f"{form}.{name}": value for form, state in states.items()
              for name, value in state.items()}

    full = train(networks.wide_resnet(1, classes=4), data, replace(recipe, batch_size=0), stop=stop)
    np.savez(f"{sys.argv[1]}/{group().rank}.npz", **{**result.state, **result.records, **of_all},
             loss=loss, accuracy=accuracy, seen=seen, checkpoints=len(kept),
             stopped=full.status.step, full=full.records["train_loss"])
"""
FORMS = ("own", "halves", "thirds", "whole", "raw")
OF_THE_LEADER = ("seen", "checkpoints")


def run(folder, size):
    """What each of `size` processes saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(size):
        environment = dict(os.environ)
        if size > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
        processes.append(subprocess.Popen([sys.executable, "-c", PROGRAM, folder], env=environment))
    try:
        assert [process.wait(timeout=300) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return [dict(np.load(Path(folder) / f"{rank}.npz")) for rank in range(size)]


def test_two_processes_give_what_one_gives(tmp_path):
    """With batch norm, and a last batch of one sample that leaves the second process none."""
    (alone,) = run(tmp_path, 1)
    leader, second = run(tmp_path, 2)
    assert alone["seen"].tolist() == leader["seen"].tolist() == [1, 2, 3, 4, 5, 6]
    assert leader["checkpoints"] == 3 and second["checkpoints"] == 0 and second["seen"].size == 0
    assert alone["stopped"] == 2
    for name in alone.keys() - set(OF_THE_LEADER):
        np.testing.assert_array_equal(leader[name], second[name], err_msg=name)
        tolerance = 1e-5 if name == "full" else 1e-8
        np.testing.assert_allclose(
            leader[name], alone[name], rtol=tolerance, atol=1e-10, err_msg=name
        )
    assert not np.allclose(alone["train_loss"], alone["train_loss"][0])
    # How the batch is divided, and the statistics that batch norm has, make a difference.
    weights = {form: alone[f"{form}.network.0.0.weight"] for form in FORMS}
    for i, form in enumerate(FORMS):
        for other in FORMS[:i]:
            assert abs(weights[form] - weights[other]).max() > 1e-6, (form, other)


def test_one_process_alone_is_left_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined("cpu") as device:
        assert device == "cpu" and distributed.group() == (0, 1)


def test_devices_that_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    for device, says in (
        ("cuda", r"device 'cuda:\d+' is not available"),
        ("cuda:1", "device must be cpu or cuda under torchrun, got 'cuda:1'"),
    ):
        with pytest.raises(ValueError, match=says), distributed.joined(device):
            pass
