"""Handwritten digits: MNIST from files, or the small digits that come with scikit-learn."""

from __future__ import annotations

import gzip
import math
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

NAMES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)
BYTES = 8    # the code of unsigned bytes in idx files


class Digits(NamedTuple):
    """Images (m, pixels), from 0 for white to 1 for black; labels (m,)."""

    images: np.ndarray
    labels: np.ndarray


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file of unsigned bytes, gzipped if its name ends in .gz."""
    content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
    # Two zeros, the type code, the number of axes; the length of each axis; then the numbers.
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != BYTES:
        raise ValueError(
            f"{path} begins with {content[:4].hex(' ') or 'nothing'}; wanted an idx file of "
            f"unsigned bytes, which begins with 00 00 {BYTES:02x}"
        )
    begin = 4 + 4 * content[3]
    if len(content) < begin:
        raise ValueError(f"{path} ends within its header; wanted {content[3]} lengths of 4 bytes")
    shape = struct.unpack(f">{content[3]}I", content[4:begin])
    if len(content) != begin + math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - begin} numbers; wanted {math.prod(shape)}, "
            f"because its shape is {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def mnist(folder: Path) -> tuple[Digits, Digits]:
    """The training set and the test set of MNIST."""
    arrays = []
    for name in NAMES:
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not found:
            sys.exit(f"--data {folder}: wanted a folder with {name} or {name}.gz")
        arrays.append(read_idx(found[0]))
    x, y, x_test, y_test = arrays
    return _scaled(x, y, 255.0), _scaled(x_test, y_test, 255.0)


def small() -> tuple[Digits, Digits]:
    """1797 digits of 8 by 8 pixels: a training set, and a test set of one fifth of them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit(
            "without --data the digits come from scikit-learn, which is not installed: "
            "pip install scikit-learn, or pass --data FOLDER with the files of MNIST"
        )
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return tuple(_scaled(bunch.images[rows], bunch.target[rows], 16.0) for rows in (train, test))


def digits(folder: Path | None) -> tuple[Digits, Digits]:
    """The training set and the test set: MNIST from the folder, or without one the small digits."""
    return small() if folder is None else mnist(folder)


def _scaled(images: np.ndarray, labels: np.ndarray, largest: float) -> Digits:
    if images.ndim != 3 or len(images) != len(labels):
        raise ValueError(
            f"images have shape {images.shape} and labels {labels.shape}; wanted (m, side, side) "
            "and (m,)"
        )
    shades = (images / np.float32(largest)).astype(np.float32)
    return Digits(shades.reshape(len(images), -1), labels)
