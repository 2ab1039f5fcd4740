"""CuPy: arrays on a GPU, and kernels from C++ source.

CuPy makes new arrays, also copies, on the current device of the thread. Arrays of another device
are refused, or read slowly through peer access. So everything runs with the device of the arrays
current.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from lbfgs_xp.arrays.backend import Array, InPlaceBackend, namespace_of


class CuPyBackend(InPlaceBackend):
    @staticmethod
    def on_device(device: Any) -> contextlib.AbstractContextManager[Any]:
        return cupy.cuda.Device(device)

    @staticmethod
    def to_host(array: Array) -> np.ndarray:
        return array.get()

    @staticmethod
    def copy(array: Array) -> Array:
        with array.device:
            return array.copy("K")

    def own(self, array: Array) -> Array:
        return self.copy(array)

    @staticmethod
    def take(array: Array, indices: Array) -> Array:
        return namespace_of(array).take(array, indices, axis=0)

    def memory_key(self, array: Array) -> Any:
        return array.data.mem.ptr

    @staticmethod
    def kernels(array: Array) -> Callable | None:
        # The compiler for AMD GPUs does not know the option below.
        return None if cupy.cuda.runtime.is_hip else _elementwise

    @staticmethod
    def samples(library: Any) -> list[tuple[str, Array]]:
        found = []
        for i in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(i):
                found.append((f"cuda:{i}", cupy.asarray([1.0, 1.0])))
        return found


@functools.cache
def _elementwise(inputs: str, outputs: str, body: str) -> Callable:
    # Without fused multiply-add, so that products and sums round as on other libraries.
    return cupy.ElementwiseKernel(inputs, outputs, body, "lbfgs_xp", options=("--fmad=false",))
