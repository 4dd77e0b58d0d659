"""Archives of arrays (.npz): written in one piece, read without trust.

A reader unpickles nothing, uses no name in the archive as a path, allocates for an array only what
its header promises and the file holds, and notices a changed byte: every member of a zip file
carries a CRC-32 of its content.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lnsim.base import files

_MALFORMED = (
    OSError, ValueError, EOFError, KeyError, TypeError, OverflowError, RuntimeError, SyntaxError,
    MemoryError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""The exceptions that zipfile, zlib and NumPy's header reader raise for malformed bytes."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes an uncompressed archive atomically.  Raises OSError if `path` cannot be written."""

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, np.asanyarray(array), allow_pickle=False)

    files.write(path, fill)


def read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an archive, by name.  Raises ValueError for a damaged file or another kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _array(archive.read(info))
                for info in archive.infolist()
            }
    except _MALFORMED as error:
        raise ValueError(f"cannot read {path}: {error or type(error).__name__}") from error


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of all arrays with their names, dtypes, shapes and order, as hexadecimal digits."""
    total = hashlib.sha256()
    for name, array in arrays.items():
        total.update(f"{name} {array.dtype.str} {array.shape};".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _array(content: bytes) -> NDArray[Any]:
    """The array of one .npy member."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array is written in the unknown format {version}")
    shape, fortran_order, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects, which are not read")
    promised, held = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if min(shape, default=0) < 0 or promised != held:
        raise ValueError(f"an array of shape {shape} needs {promised} bytes and has {held}")
    flat = np.frombuffer(content, dtype, offset=file.tell()).copy()
    return flat.reshape(shape, order="F" if fortran_order else "C")
