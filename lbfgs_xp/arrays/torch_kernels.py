"""Kernels for tensors of PyTorch on an NVIDIA GPU, from C++ (`arrays.formula.Source`)."""

from __future__ import annotations

import functools
import math
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lbfgs_xp.arrays import torch_cuda
from lbfgs_xp.arrays.backend import KernelError
from lbfgs_xp.arrays.formula import C_TYPES

_DTYPES = {
    "float64": torch.float64, "bool": torch.bool, "int32": torch.int32, "int64": torch.int64,
}


class _Form(NamedTuple):
    """What the source of a kernel depends on, apart from the formula.

    real : the dtype that T stands for.
    ndim : the number of dimensions of the outputs.
    inputs : for each input None if it is a number, and else whether its elements lie in the same
        order as those of the outputs.
    """

    real: Any
    ndim: int
    inputs: tuple[bool | None, ...]


class Kernel:
    """A kernel: see `Backend.kernels`."""

    def __init__(self, inputs: str, outputs: str, body: str):
        self._inputs = [tuple(each.split()) for each in inputs.split(", ")]
        self._outputs = [tuple(each.split()) for each in outputs.split(", ")]
        self._body = body
        # (form, GPU) -> function
        self._functions: dict[Any, Any] = {}

    def __call__(self, *arrays: Any) -> Any:
        # A tensor may be a view of its negative.
        inputs = [
            each.resolve_neg() if isinstance(each, torch.Tensor) else each
            for each in arrays[: len(self._inputs)]
        ]
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        device, shape, real = tensors[0].device, tensors[0].shape, self._real(arrays)
        if any(each.shape != shape for each in tensors):
            shape = torch.broadcast_shapes(*(each.shape for each in tensors))
        words: list[int] = [math.prod(shape), *shape]
        form: list[bool | None] = []
        for each, (kind, name) in zip(inputs, self._inputs, strict=True):
            if not isinstance(each, torch.Tensor):
                form.append(None)
                words.append(each if kind == "int64" else _bits(each))
                continue
            self._check(each, kind, name, real, device)
            flat = each.shape == shape and each.is_contiguous()
            form.append(flat)
            words.append(each.data_ptr())
            if not flat:
                words += each.expand(shape).stride()
        outputs = self._checked_outputs(arrays[len(self._inputs) :], shape, real, device)
        written = [
            each if each.is_contiguous() else torch.empty(shape, dtype=each.dtype, device=device)
            for each in outputs
        ]
        words += [each.data_ptr() for each in written]
        if words[0]:
            self._launch(device, _Form(real, len(shape), tuple(form)), words[0], words)
        for each, new in zip(outputs, written, strict=True):
            if new is not each:
                each.copy_(new)
        return outputs[0] if len(outputs) == 1 else outputs

    def _real(self, arrays: Sequence[Any]) -> Any:
        """The dtype that T stands for."""
        declared = [*self._inputs, *self._outputs]
        for each, (kind, name) in zip(arrays, declared, strict=False):
            if kind == "T":
                if each.dtype not in (torch.float32, torch.float64):
                    raise TypeError(f"{name} is {each.dtype}; wanted float32 or float64")
                return each.dtype
        return torch.float64

    def _checked_outputs(
        self, outputs: tuple[Any, ...], shape: tuple[int, ...], real: Any, device: Any
    ) -> tuple[Any, ...]:
        """The outputs; new ones if there are none."""
        if not outputs:
            return tuple(
                torch.empty(shape, dtype=_DTYPES.get(kind, real), device=device)
                for kind, _ in self._outputs
            )
        for each, (kind, name) in zip(outputs, self._outputs, strict=True):
            self._check(each, kind, name, real, device)
            if each.shape != shape:
                raise ValueError(f"{name} has shape {tuple(each.shape)}; wanted {tuple(shape)}")
        return outputs

    @staticmethod
    def _check(tensor: Any, kind: str, name: str, real: Any, device: Any) -> None:
        wanted = _DTYPES.get(kind, real)
        if tensor.dtype != wanted or tensor.device != device:
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device}; wanted {wanted} on {device}"
            )

    def _launch(self, device: Any, form: _Form, size: int, words: Sequence[int]) -> None:
        key = form, device
        try:
            if key not in self._functions:
                self._functions[key] = torch_cuda.load(self.source(form), device)
            torch_cuda.launch(self._functions[key], device, size, words)
        except Exception as error:
            _refuse(device, f"{type(error).__name__}: {error}")
            raise KernelError(f"a kernel could not run on {device}") from error

    def source(self, form: _Form) -> str:
        """The source for arrays of this form; the launch passes one struct of 8-byte words."""
        fields = ["long long size"] + [f"long long n{d}" for d in range(form.ndim)]
        lines = []
        for (kind, name), flat in zip(self._inputs, form.inputs, strict=True):
            if flat is None:
                fields.append(f"{C_TYPES[kind]} {name}")
                lines.append(f"const {C_TYPES[kind]} {name} = a.{name};")
                continue
            fields.append(f"const {C_TYPES[kind]}* {name}")
            place = "k"
            if not flat:
                fields += [f"long long {name}_{d}" for d in range(form.ndim)]
                place = " + ".join(f"k{d} * a.{name}_{d}" for d in range(form.ndim))
            lines.append(f"const {C_TYPES[kind]} {name} = a.{name}[{place}];")
        after = []
        for kind, name in self._outputs:
            fields.append(f"{C_TYPES[kind]}* {name}")
            lines.append(f"{C_TYPES[kind]} {name};")
            after.append(f"a.{name}[k] = {name};")
        places, rest = [], "k"
        if not all(flat is None or flat for flat in form.inputs):
            for d in reversed(range(form.ndim)):
                places.append(f"const long long k{d} = {rest} % a.n{d};" if d else
                              f"const long long k0 = {rest};")
                rest = f"({rest}) / a.n{d}"
        members = " ".join(f"{field};" for field in fields)
        return "\n".join([
            f"typedef {'float' if form.real == torch.float32 else 'double'} T;",
            f"struct Arguments {{ {members} }};",
            'extern "C" __global__ void run(const Arguments a) {',
            "const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
            "if (k >= a.size) return;",
            *places, *lines, self._body, *after, "}",
        ])


# --- whether there are kernels ------------------------------------------------------------------


_refused: set[torch.device] = set()


def kernels_on(device: torch.device) -> Callable | None:
    """What builds kernels for tensors on a GPU: see `Backend.kernels`."""
    return _kernel if _works(device) and device not in _refused else None


@functools.cache
def _kernel(inputs: str, outputs: str, body: str) -> Kernel:
    return Kernel(inputs, outputs, body)


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether kernels can be built, and compute on this GPU what torch computes."""
    if torch.version.cuda is None:
        return False
    try:
        x = torch.arange(1.0, 300.0, dtype=torch.float64, device=device) / 3.0
        column, mask = x[:7, None], x[::2] > 20.0
        wanted = torch.where(mask, x[::2] * column + 0.1, -column)
        kernel = Kernel("T x, T y, bool m, float64 n", "T z", "z = m ? x * y + n : -y;")
        if torch.equal(kernel(x[::2], column, mask, 0.1), wanted):
            return True
        problem = "a test kernel gave other numbers than torch"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    _refuse(device, problem)
    return False


def _refuse(device: torch.device, problem: str) -> None:
    """Use no more kernels on this GPU, and warn of that once."""
    if device not in _refused:
        _refused.add(device)
        warnings.warn(
            f"kernels cannot be used on {device} ({problem}); batches run operation by operation, "
            "which takes several times as long if they are small",
            RuntimeWarning, stacklevel=2,
        )


def _bits(number: float) -> int:
    return struct.unpack("q", struct.pack("d", number))[0]
