"""Damaged and nonsensical files: each reader refuses them or reads what was written.

The long forms: python -m pytest -m slow tests/test_damaged_files.py
"""

import contextlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import SMALL, write_images

from lnsim.base import archive, files
from lnsim.base import config as configs
from lnsim.cli.main import main
from lnsim.experiments.label_noise import Config
from lnsim.images import data
from lnsim.simulation.trajectory import Trajectory
from lnsim.sweeps import store as sweep_store

# Every reader, given a sound file that was then changed: what it reads is what was written, or a
# ValueError in one line.


def read_run(path):
    run = Trajectory.load(path.parent, path.name)
    return run.arrays, run.state, run.config, run.status


READERS = {
    "trajectory": ("trajectory.npz", read_run),
    "checkpoint": ("checkpoint.npz", read_run),
    "images": ("images.npz", data.read),
    "sweep": (sweep_store.FILE, sweep_store.read),
}


def write_sound(folder):
    """Writes a file for every reader, and one of TOML."""
    small = ["--set", *SMALL, "steps=60", "record_every=20"]
    assert main(["run", "label-noise", "--out", str(folder / "run"), *small]) == 0
    for name in ("trajectory.npz", "checkpoint.npz"):
        shutil.copy(folder / "run" / "trajectory.npz", folder / name)
    shutil.copy(folder / "run" / "config.toml", folder)
    write_images(folder / "images.npz")
    columns = {"lr": "REAL", "status": "TEXT"}
    sweep_store.create(folder / sweep_store.FILE, columns, {"experiment": "sam", "swept": ["lr"]})
    with contextlib.closing(sweep_store.Writer(folder / sweep_store.FILE)) as writer:
        writer.add([{"key": str(i), "lr": i / 7, "status": "OK"} for i in range(20)])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_sound(folder)
    return folder


CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "double", "zero"]), st.integers(0), st.integers(1)),
    min_size=1,
    max_size=4,
)


def changed(content, changes):
    """The content with bytes flipped, parts cut out, put in twice, or set to zero."""
    content = bytearray(content)
    for kind, place, size in changes:
        at = place % (len(content) + 1)
        end = min(at + size % 4000, len(content))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 + size % 255
        elif kind == "cut":
            del content[at:end]
        elif kind == "double":
            content[at:at] = content[at:end]
        elif kind == "zero":
            content[at:end] = bytes(end - at)
    return bytes(content)


def fuzzed(examples, **strategies):
    """Runs a check at once, over so many examples."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]

    def run(check):
        bounded = settings(max_examples=examples, deadline=None, suppress_health_check=quiet)
        bounded(given(**strategies)(check))()

    return run


EXAMPLES = pytest.mark.parametrize(
    "examples", [40, pytest.param(5000, marks=pytest.mark.slow)], ids=["few", "many"]
)


@pytest.mark.small
@EXAMPLES
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_refused_or_reads_as_it_was(sound, tmp_path, reader, examples):
    name, read = READERS[reader]
    whole, wanted = (sound / name).read_bytes(), read(sound / name)

    @fuzzed(examples, changes=CHANGES)
    def check(changes):
        path = tmp_path / name
        path.write_bytes(changed(whole, changes))
        before = path.read_bytes()
        try:
            np.testing.assert_equal(read(path), wanted)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        assert path.read_bytes() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@pytest.mark.small
@EXAMPLES
def test_a_well_formed_archive_that_is_no_run_is_refused(tmp_path, examples):
    """The checksums are right, and what they are of is nonsense."""
    arrays = st.dictionaries(
        st.sampled_from(["step", "state_W", "norm_mean"]),
        st.sampled_from([np.arange(3), np.array(2.0), np.zeros((2, 2)), np.array("x")]),
    )
    abouts = st.fixed_dictionaries(
        {}, optional={"schema": st.just(2) | JSON, "config": st.just("a = 1") | JSON,
                      "status": st.just(["OK", 3]) | JSON},
    )  # fmt: skip

    @fuzzed(examples, arrays=arrays, about=abouts | JSON, honest=st.booleans())
    def check(arrays, about, honest):
        if isinstance(about, dict) and honest:
            about = {**about, "sha256": archive.digest(arrays)}
        path = tmp_path / "trajectory.npz"
        archive.write(path, {**arrays, "about": np.array(json.dumps(about))})
        try:
            run = Trajectory.load(tmp_path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert run.steps.ndim == 1 and str(run.status)


@pytest.mark.small
@EXAMPLES
def test_any_configuration_is_read_or_refused(sound, tmp_path, examples):
    whole = (sound / "config.toml").read_bytes()
    values = vars(Config())
    types_of = {key: type(value) for key, value in values.items()}
    path = tmp_path / "config.toml"

    @fuzzed(examples, changes=CHANGES | st.binary(max_size=200) | st.text(max_size=200))
    def check(changes):
        if isinstance(changes, list):
            path.write_bytes(changed(whole, changes))
        else:
            path.write_bytes(changes if isinstance(changes, bytes) else changes.encode())
        try:
            found = configs.read_toml(path)
        except ValueError as error:
            assert str(path) in str(error)
            return
        known = {key: found[key] for key in found.keys() & values.keys()}
        with contextlib.suppress(ValueError, TypeError):
            built = vars(configs.build(Config, known))
            assert {key: type(value) for key, value in built.items()} == types_of


@pytest.mark.small
def test_deeply_nested_files_are_refused(tmp_path):
    path = tmp_path / "deep"
    path.write_text("a = " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="is not valid TOML"):
        configs.read_toml(path)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="cannot read"):
        files.read_json(path)
