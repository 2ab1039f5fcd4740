"""A small convolutional network and its gradient, written once for arrays of any library.

    images -> convolution, tanh -> convolution, tanh -> ten scores

Its loss is the mean cross-entropy. A convolution is one matrix product: a table of indices gathers
the patches of each image as rows. In the backward pass another table gathers the contributions of
the patches to each pixel, which are then added up. So nothing is written in place, and NumPy and
CuPy, which do not differentiate, work as well as PyTorch and JAX.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from _common import Library, host

Array = Any
CLASSES = 10


class Tables(NamedTuple):
    """The indices that connect the pixels of a square image with the entries of its patches.

    gather : (patches * kernel^2,) the pixel of each entry of the patches.
    scatter : (overlap * pixels,) for each pixel an entry that contains it, then a second entry for
        each pixel, and so on. A pixel without a further entry has the number of entries, which is
        the index of none.
    side : the side length of the square of patches.
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
    """Two convolutions and a dense layer.

    lib : the array library.
    side : the side length of the square images: 28, or 8, for which the kernels are smaller.
    dtype : "float32" or "float64".
    channels : the number of output channels of each convolution.
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
        """Weights initialised after Glorot & Bengio (2010), the same for every library."""
        rng = np.random.default_rng(seed)
        area = self.kernel**2
        c, d = self.channels
        # Fan-in and fan-out of each layer.
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
        """Images (m, pixels) and their labels as one-hot rows."""
        return self.array(images), self.array(np.eye(CLASSES)[labels])

    # --- the forward pass ----------------------------------------------------------------------

    def _forwards(self, params: Any, images: Array) -> tuple[Array, list[Array], list[Array]]:
        """The scores, and for each layer its input rows and its output (m, pixels, c)."""
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
        """The scores of images: (m, pixels) -> (m, 10)."""
        return self._forwards(params, images)[0]

    # --- the backward pass ---------------------------------------------------------------------

    def _value_and_gradient(self, params: Any, batch: Any) -> tuple[Array, list[dict[str, Array]]]:
        xp = self.xp
        images, wanted = batch
        m = images.shape[0]
        scores, rows, outputs = self._forwards(params, images)
        scores = scores - xp.max(scores, axis=1, keepdims=True)    # so that exp does not overflow
        odds = xp.exp(scores)
        total = xp.sum(odds, axis=1, keepdims=True)
        value = xp.sum(xp.log(total) - xp.sum(wanted * scores, axis=1, keepdims=True)) / m

        delta = (odds / total - wanted) / m    # the derivative by the output of the current layer
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
        """Sum over the entries that contain each pixel: (m, entries, c) -> (m, pixels, c)."""
        xp, (m, _, c) = self.xp, patches.shape
        padded = xp.concat([patches, xp.zeros_like(patches[:, :1, :])], axis=1)
        taken = xp.take(padded, scatter, axis=1)
        added = xp.sum(xp.reshape(taken, (m, -1, self.tables[0].side ** 2 * c)), axis=1)
        return xp.reshape(added, (m, -1, c))


def accuracy(network: CNN, params: Any, images: Array, labels: np.ndarray) -> float:
    """The fraction of images whose highest score is at their label."""
    found = [
        host(network.xp.argmax(network.scores(params, images[i : i + 1000]), axis=1))
        for i in range(0, len(labels), 1000)
    ]
    return float(np.mean(np.concatenate(found) == labels))
