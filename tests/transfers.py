"""Counts of what crosses the bus: numbers read, arrays sent, operations launched.

Without a GPU the stand-ins of `tests/standins` count. On a GPU, CuPy is counted where the library
reads and sends, and torch by its own report of calls that wait for the device.

For JAX, `jax.transfer_guard` is of no use here: on the CPU it does not see reads at all, and
elsewhere it refuses every number that a compiled function takes as an argument, even a step size.
So reads are counted, both in `to_host` and by `float`, `bool` and `int` of an array.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tests.backends import Backend

COUNTED = (Backend.TORCH, Backend.CUPY, Backend.JAX, Backend.TORCH_CUDA, Backend.JAX_CUDA)


@dataclasses.dataclass
class Crossed:
    """reads, uploads, launches : how often; uploads and launches are None where nothing counts
    them."""

    reads: int = 0
    uploads: int | None = None
    launches: int | None = None


@contextlib.contextmanager
def counting(backend: Backend) -> Iterator[Crossed]:
    """Within it, what `backend` reads, sends and launches; the counts are complete at its end."""
    crossed = Crossed()
    if backend is Backend.TORCH:
        from tests.standins.remote_torch import remote

        with remote() as counts:
            yield crossed
        crossed.reads, crossed.uploads = counts.reads, counts.uploads
        crossed.launches = counts.launches
    elif backend is Backend.TORCH_CUDA:
        with _torch_waits() as seen:
            yield crossed
        crossed.reads = len(seen)
    elif backend is Backend.CUPY and not backend.is_gpu:
        counts = importlib.import_module("cupy").counts
        counts.clear()
        yield crossed
        crossed.reads, crossed.uploads = counts.reads, counts.uploads
        crossed.launches = counts.launches
    elif backend.is_jax:
        with _library_transfers(backend, crossed), _jax_numbers(crossed):
            yield crossed
        crossed.uploads = None  # numbers are arguments of compiled functions as well
    else:
        with _library_transfers(backend, crossed):
            yield crossed


@contextlib.contextmanager
def _torch_waits() -> Iterator[list[Any]]:
    """The calls that waited for the GPU, as torch reports them; an upload that waits is one too."""
    cuda = importlib.import_module("torch").cuda
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def _library_transfers(backend: Backend, crossed: Crossed) -> Iterator[None]:
    """Count the calls of the backend's `to_host` and `from_host`."""
    from lbfgs_xp.arrays.backend import Backend as Library

    own = type(Library.of(backend.asarray([1.0])))
    to_host, from_host = own.to_host, own.from_host
    crossed.uploads = 0

    def read(array: Any) -> Any:
        crossed.reads += 1
        return to_host(array)

    def send(self: Library, *arguments: Any) -> Any:
        crossed.uploads = (crossed.uploads or 0) + 1
        return from_host(self, *arguments)

    reading = mock.patch.object(own, "to_host", staticmethod(read))
    with reading, mock.patch.object(own, "from_host", send):
        yield


@contextlib.contextmanager
def _jax_numbers(crossed: Crossed) -> Iterator[None]:
    """Count the numbers that JAX reads outside `to_host`; one that it has kept is free.

    `read_many` starts all of its transfers before it waits, so it counts once.
    """
    from lbfgs_xp.arrays.jax import JaxBackend

    array = importlib.import_module("jax._src.array").ArrayImpl
    value, read_many = array._value, JaxBackend.read_many

    def read(self: Any) -> Any:
        crossed.reads += self._npy_value is None
        return value.fget(self)

    def read_together(self: Any, numbers: Any) -> Any:
        before = crossed.reads
        found = read_many(self, numbers)
        crossed.reads = min(crossed.reads, before + 1)
        return found

    with (
        mock.patch.object(array, "_value", property(read)),
        mock.patch.object(JaxBackend, "read_many", read_together),
    ):
        yield
