"""A small convolutional network and its gradient, written once for arrays of any library.

    images -> convolution, tanh -> convolution, tanh -> ten scores

Its loss is the mean cross-entropy. A convolution is one matrix product: the patches of each image
are gathered as rows, a table saying which pixel goes where. Backwards, what the patches say of a
pixel is gathered as well, by another table, and added up. So nothing is written in place, and
NumPy and CuPy, which do not differentiate, serve as well as PyTorch and JAX.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from _common import Library, host

Array = Any
CLASSES = 10


class Tables(NamedTuple):
    """Where the patches of a square image come from, and where they go back to.

    gather : (patches * kernel^2,) the pixel of each entry of the patches.
    scatter : (overlap * pixels,) an entry that each pixel is in, then another one of each, and so
        on; for a pixel that is in no other, the number of entries, which is none of them.
    side : that of the square of patches.
    """

    gather: Array
    scatter: Array
    side: int


def tables(lib: Library, side: int, kernel: int, stride: int) -> Tables:
    ends = np.arange(0, side - kernel + 1, stride)[:, None] + np.arange(kernel)
    pixels = ends[:, None, :, None] * side + ends[None, :, None, :]
    gather = pixels.ravel()
    entries = [np.flatnonzero(gather == pixel) for pixel in range(side * side)]
    scatter = np.full((max(map(len, entries)), side * side), gather.size)
    for pixel, found in enumerate(entries):
        scatter[: len(found), pixel] = found
    return Tables(lib.array(gather, "int64"), lib.array(scatter.ravel(), "int64"), len(ends))


class CNN:
    """Two convolutions and a layer that sees all of what comes out of them.

    lib : the array library.
    side : that of the square images: 28, or 8, for which the kernels are smaller.
    dtype : "float32" or "float64".
    channels : how many numbers of a pixel come out of either convolution.
    """

    def __init__(
        self, lib: Library, side: int, dtype: str, channels: tuple[int, int] = (8, 16)
    ):
        self.lib, self.xp, self.dtype, self.channels = lib, lib.xp, dtype, channels
        self.kernel, stride = (5, 2) if side >= 16 else (3, 1)
        first = tables(lib, side, self.kernel, stride)
        second = tables(lib, first.side, self.kernel, stride)
        self.tables = (first, second)
        self.value_and_gradient = lib.compiled(self._value_and_gradient)
        self.scores = lib.compiled(self._scores)

    def start(self, seed: int = 0) -> list[dict[str, Array]]:
        """Weights as Glorot & Bengio (2010) draw them, the same for every library."""
        rng = np.random.default_rng(seed)
        area = self.kernel**2
        c, d = self.channels
        # What goes into a number and how many it goes into, of each layer.
        fans = [
            (area, area * c),
            (area * c, area * d),
            (self.tables[-1].side ** 2 * d, CLASSES),
        ]
        layers = []
        for (into, out), width in zip(fans, (c, d, CLASSES), strict=True):
            weight = rng.normal(scale=math.sqrt(2.0 / (into + out)), size=(into, width))
            layers.append({"weight": weight, "bias": np.zeros(width)})
        return [{k: self.array(v) for k, v in layer.items()} for layer in layers]

    def array(self, values: Any) -> Array:
        return self.lib.array(values, self.dtype)

    def batch(self, images: np.ndarray, labels: np.ndarray) -> tuple[Array, Array]:
        """Images (m, pixels) and, for each, a row with 1 at its label, else 0."""
        return self.array(images), self.array(np.eye(CLASSES)[labels])

    # --- forwards ------------------------------------------------------------------------------

    def _forwards(self, params: Any, images: Array) -> tuple[Array, list[Array], list[Array]]:
        """The scores, and of each layer the rows that go in and what comes out (m, pixels, c)."""
        xp, m = self.xp, images.shape[0]
        h = images
        rows, outputs = [], []
        for table, layer in zip(self.tables, params[:-1], strict=True):
            weight, bias = layer["weight"], layer["bias"]
            patches = xp.take(h, table.gather, axis=1)
            rows.append(xp.reshape(patches, (-1, weight.shape[0])))
            h = xp.reshape(xp.tanh(rows[-1] @ weight + bias), (m, -1, weight.shape[1]))
            outputs.append(h)
        rows.append(xp.reshape(h, (m, -1)))
        return rows[-1] @ params[-1]["weight"] + params[-1]["bias"], rows, outputs

    def _scores(self, params: Any, images: Array) -> Array:
        """(m, pixels) -> (m, 10)"""
        return self._forwards(params, images)[0]

    # --- and back ------------------------------------------------------------------------------

    def _value_and_gradient(self, params: Any, batch: Any) -> tuple[Array, list[dict[str, Array]]]:
        xp = self.xp
        images, wanted = batch
        m = images.shape[0]
        scores, rows, outputs = self._forwards(params, images)
        scores = scores - xp.max(scores, axis=1, keepdims=True)    # or exp overflows
        odds = xp.exp(scores)
        total = xp.sum(odds, axis=1, keepdims=True)
        value = xp.sum(xp.log(total) - xp.sum(wanted * scores, axis=1, keepdims=True)) / m

        delta = (odds / total - wanted) / m    # the derivative by what leaves the layer in hand
        gradient = []
        for k in (2, 1, 0):
            gradient.append({"weight": rows[k].T @ delta, "bias": xp.sum(delta, axis=0)})
            if k == 0:
                break
            back = xp.reshape(delta @ params[k]["weight"].T, (m, -1, self.channels[k - 1]))
            if k < 2:
                back = self._scattered(back, self.tables[k].scatter)
            back = back * (1.0 - outputs[k - 1] * outputs[k - 1])
            delta = xp.reshape(back, (-1, back.shape[2]))
        return value, gradient[::-1]

    def _scattered(self, patches: Array, scatter: Array) -> Array:
        """(m, entries, c) -> (m, pixels, c), the sum over the entries that each pixel is in."""
        xp, (m, _, c) = self.xp, patches.shape
        padded = xp.concat([patches, xp.zeros_like(patches[:, :1, :])], axis=1)
        taken = xp.take(padded, scatter, axis=1)
        added = xp.sum(xp.reshape(taken, (m, -1, self.tables[0].side ** 2 * c)), axis=1)
        return xp.reshape(added, (m, -1, c))


def accuracy(network: CNN, params: Any, images: Array, labels: np.ndarray) -> float:
    """The share of images whose highest score is that of their label."""
    found = [
        host(network.xp.argmax(network.scores(params, images[i : i + 1000]), axis=1))
        for i in range(0, len(labels), 1000)
    ]
    return float(np.mean(np.concatenate(found) == labels))
