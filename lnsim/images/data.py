"""Labelled images, read from an .npz file or from CIFAR-10, and checked when read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lnsim.base import archive, plugins

CLASSES = 10
HOW_TO_GET = (
    "give --set data=FILE.npz with arrays train_images, train_labels, test_images, test_labels,"
    " or --set data=cifar10 to download CIFAR-10"
)


class Images(NamedTuple):
    """A training and a test set.

    Images : (N, ...) of any real type, of one shape past the first axis; labels : (N,) int64.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]


def load(data: str, root: str = "data") -> Images:
    """The images of `data`: the path of an .npz file, or "cifar10", stored in the folder `root`.

    Raises ValueError if `data` is missing, malformed, or cannot be downloaded.
    """
    if not data:
        raise ValueError(f"no data: {HOW_TO_GET}")
    if data != "cifar10":
        return read(Path(data))
    reader = plugins.load(
        "lnsim_torch.data", "data=cifar10", extra="torch", instead=", or give an .npz file"
    )
    return checked(*reader.cifar10(root), source="CIFAR-10")


def read(path: Path) -> Images:
    """The four arrays of an .npz file.  Raises ValueError if one is missing."""
    if not path.is_file():
        raise ValueError(f"data {str(path)!r} is no file: {HOW_TO_GET}")
    arrays = archive.read(path)
    missing = [name for name in Images._fields if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it has {', '.join(arrays) or 'none'}")
    return checked(*(arrays[name] for name in Images._fields), source=str(path))


def checked(
    train_images: ArrayLike,
    train_labels: ArrayLike,
    test_images: ArrayLike,
    test_labels: ArrayLike,
    *,
    source: str,
    classes: int = CLASSES,
) -> Images:
    """The four arrays, or lists, as `Images` in the machine's byte order.

    Raises ValueError, naming the `source`, if they are not images of `classes` classes.
    """
    sets = (train_images, train_labels, test_images, test_labels)
    arrays = [_native(name, a, source) for name, a in zip(Images._fields, sets, strict=True)]
    train, labels, test, labels_test = arrays
    _check_set("train", train, labels, source, classes)
    _check_set("test", test, labels_test, source, classes)
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"train_images and test_images of {source} differ in shape past the first axis:"
            f" {train.shape[1:]} and {test.shape[1:]}"
        )
    return Images(train, labels.astype(np.int64), test, labels_test.astype(np.int64))


def _native(name: str, values: ArrayLike, source: str) -> NDArray[Any]:
    """`values` as an array of a type that every backend has."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} of {source} is no array: {error}") from error
    dtype = array.dtype.newbyteorder("=")
    return array.astype(np.float64 if dtype == np.longdouble else dtype, copy=False)


def _check_set(
    part: str, images: NDArray[Any], labels: NDArray[Any], source: str, classes: int
) -> None:
    """Raises ValueError if one set of images is malformed."""
    name, labels_name = f"{part}_images", f"{part}_labels"
    if images.dtype.kind not in "uif":
        raise ValueError(f"{name} of {source} must hold numbers, got dtype {images.dtype}")
    if images.ndim < 2 or 0 in images.shape:
        raise ValueError(
            f"{name} of {source} must be (N, height, width, channels) or (N, pixels),"
            f" got shape {images.shape}"
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise ValueError(f"{name} of {source} must be finite")
    if labels.dtype.kind not in "ui":
        raise ValueError(f"{labels_name} of {source} must be integers, got dtype {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_name} of {source} must have shape {images.shape[:1]}, one label per image,"
            f" got {labels.shape}"
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise ValueError(
            f"{labels_name} of {source} must be in 0 ... {classes - 1}, got {labels[outside][0]}"
        )
