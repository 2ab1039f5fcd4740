"""CPU tensors of torch that count as remote: every transfer and every operation is noted.

Within `remote()` the library treats tensors as it does those on a GPU, and a dispatch mode sees
what torch does: numbers that are read back (`item`, `bool`, `.cpu()`), arrays that are sent
(`torch.asarray` of host data), shapes that depend on data, and operations, each of which would be
a launch. Kernels are compiled by g++ instead of NVRTC; all else about them is as on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lbfgs_xp.arrays.torch import TorchBackend
from lbfgs_xp.arrays.torch_kernels import Kernel
from tests.standins.compiler import COMPILER, library

# Operations that wait for the device, because the host needs a number or a shape.
_WAITS = {
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique",
    "aten._unique2",
}
# Operations that launch nothing: views, and what only concerns Python.
_FREE = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.slice", "aten.select",
    "aten.unsqueeze", "aten.squeeze", "aten.expand", "aten.permute", "aten.transpose", "aten.t",
    "aten.detach", "aten.alias", "aten.view_as_real", "aten.as_strided", "aten.unbind",
    "aten.split", "aten.lift_fresh", "aten.is_same_size", "aten.numpy_T", "prim.device",
    "aten.empty", "aten.is_neg",
}


@dataclasses.dataclass
class Counts:
    """Transfers to the host, transfers to the device, and operations."""

    reads: int = 0
    uploads: int = 0
    launches: int = 0
    names: list[str] = dataclasses.field(default_factory=list)


class _Kernel(Kernel):
    """A kernel whose CUDA source g++ compiles, and whose threads run one after the other."""

    launched: Callable[[], None]

    def _launch(self, device: Any, form: Any, size: int, words: Sequence[int]) -> None:
        text = f"""
struct Place {{ unsigned int x; }};
static thread_local Place blockIdx, blockDim, threadIdx;
#define __global__
{self.source(form)}
extern "C" void launch(const Arguments* a, int blocks, int threads) {{
  blockDim.x = threads;
  for (int i = 0; i < blocks * threads; ++i) {{
    blockIdx.x = i / threads; threadIdx.x = i % threads; run(*a);
  }}
}}
"""
        launch = library(text, ("-ffp-contract=off",)).launch
        launch.restype, launch.argtypes = None, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        launch((ctypes.c_int64 * len(words))(*words), -(-size // 32), 32)
        type(self).launched()


class _Watch(TorchDispatchMode):
    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if name in _WAITS or (name == "aten.index" and any(
            isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in args[1]
        )):
            self.counts.reads += 1
        if name not in _FREE:
            self.counts.launches += 1
            self.counts.names.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def remote() -> Iterator[Counts]:
    """Within it, CPU tensors are remote; the counts go on while it lasts."""
    counts = Counts()
    to_host, from_host = TorchBackend.to_host, TorchBackend.from_host
    asarray = torch.asarray

    def read(array: Any) -> np.ndarray:
        counts.reads += 1
        return to_host(array)

    def sent(values: Any, *args: Any, **more: Any) -> Any:
        if not isinstance(values, torch.Tensor):
            counts.uploads += 1
        return asarray(values, *args, **more)

    def launched() -> None:
        counts.launches += 1
        counts.names.append("kernel")

    _Kernel.launched = staticmethod(launched)
    build = _Kernel if COMPILER else None
    never = property(lambda self: False, lambda self, value: None)
    with (
        mock.patch.object(TorchBackend, "reads_are_free", never),
        mock.patch.object(TorchBackend, "to_host", staticmethod(read)),
        mock.patch.object(TorchBackend, "kernels", staticmethod(lambda array: build)),
        mock.patch("torch.asarray", sent), mock.patch("torch.tensor", sent),
        _Watch(counts),
    ):
        yield counts
    assert TorchBackend.from_host is from_host
