"""Archives of arrays: what is written is read back; what is damaged or hostile is refused."""

import io
import zipfile

import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lnsim.base import archive

ARRAYS = {
    "step": np.arange(6),
    "loss": np.linspace(1.0, 2.0, 12).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "status": np.array('["OK", 6]'),
    "none": np.zeros((0, 3)),
    "one": np.array(2.5),
}
NUMBERS = st.sampled_from(["f8", "f4", "i8", "u1", "bool", "U7"])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "good.npz"
    archive.write(path, ARRAYS)
    return path


def assert_same(read, written):
    assert read.keys() == written.keys()
    for name, value in written.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value, strict=True)


def test_reads_what_was_written(good):
    assert_same(archive.read(good), ARRAYS)
    with np.load(good, allow_pickle=False) as by_numpy:
        assert_same(dict(by_numpy), ARRAYS)


def test_names_that_numpy_takes_for_itself(tmp_path):
    arrays = {"file": np.arange(3), "allow_pickle": np.array(True)}
    archive.write(tmp_path / "names.npz", arrays)
    assert_same(archive.read(tmp_path / "names.npz"), arrays)


@given(value=arrays_of.arrays(NUMBERS.map(np.dtype), arrays_of.array_shapes(min_dims=0)))
@settings(max_examples=60, deadline=None)
def test_reads_any_array(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "any.npz"
    archive.write(path, {"value": value})
    assert_same(archive.read(path), {"value": value})


@given(
    flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), min_size=1, max_size=4),
    keep=st.floats(0.0, 2.0),
)
@settings(max_examples=300, deadline=None)
def test_a_damaged_archive_is_refused_or_reads_as_it_was(good, tmp_path_factory, flips, keep):
    content = bytearray(good.read_bytes())
    for place, change in flips:
        content[place % len(content)] ^= change
    path = tmp_path_factory.mktemp("damaged") / "damaged.npz"
    path.write_bytes(content[: max(1, int(keep * len(content)))])
    try:
        read = archive.read(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    for name in read.keys() & ARRAYS.keys():
        np.testing.assert_array_equal(read[name], ARRAYS[name], strict=True)


def member(header, body=b"", name="value.npy", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
        prefix = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        zipped.writestr(name, prefix + text + body)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip file"),
        (
            member("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}"),
            "needs 80000000000000 bytes and has 0",
        ),
        (
            member("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", b"12345678"),
            "needs -8 bytes and has 8",
        ),
        (
            member("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"1234"),
            "needs 8 bytes and has 4",
        ),
        (member("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"."), "Python objects"),
        (member("(" * 3000), "cannot read"),
        (member("{'descr': '<f8'"), "cannot read"),
    ],
)
def test_refuses_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        archive.read(path)


def test_names_are_never_paths(tmp_path):
    content = member(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", 8 * b"\x00", "../../outside.npy"
    )
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "traversal.npz").write_bytes(content)
    assert list(archive.read(inside / "traversal.npz")) == ["../../outside"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "traversal.npz"]


def test_reads_a_compressed_archive_of_someone_else(tmp_path):
    np.savez_compressed(tmp_path / "theirs.npz", **ARRAYS)
    assert_same(archive.read(tmp_path / "theirs.npz"), ARRAYS)
