"""Kernels for tensors of PyTorch on an NVIDIA GPU, from the C++ source of `arrays.formula.Kernel`.

PyTorch brings NVRTC, the compiler for such source, but has no public function for it that takes
this many arrays. So it is called here, as is the driver of the GPU; both have stable C interfaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

_THREADS = 128
_C = {
    torch.float32: "float", torch.float64: "double", torch.bool: "bool", torch.int32: "int",
    torch.int64: "long long",
}
_DTYPES = {
    "float64": torch.float64, "bool": torch.bool, "int32": torch.int32, "int64": torch.int64,
}
_NUMBERS = {"float64": "double", "int64": "long long"}


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
        # (form, index of the GPU) -> function
        self._functions: dict[Any, Any] = {}

    def __call__(self, *arrays: Any) -> Any:
        inputs, results = arrays[: len(self._inputs)], arrays[len(self._inputs) :]
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        device, shape = tensors[0].device, tensors[0].shape
        if any(each.shape != shape for each in tensors):
            shape = torch.broadcast_shapes(*(each.shape for each in tensors))
        real = self._real(arrays)
        size = math.prod(shape)
        words: list[int] = [size, *shape]
        form: list[bool | None] = []
        # Until the launch, because nothing else may hold these.
        kept: list[torch.Tensor] = []
        goals: list[torch.Tensor] = []
        for each, (kind, name) in zip(inputs, self._inputs, strict=True):
            if not isinstance(each, torch.Tensor):
                form.append(None)
                words.append(each if kind == "int64" else _bits(each))
                continue
            self._check(each, kind, name, real, device)
            if each.is_neg():
                each = each.resolve_neg()
                kept.append(each)
            flat = each.shape == shape and each.is_contiguous()
            form.append(flat)
            words.append(each.data_ptr())
            if not flat:
                words += each.expand(shape).stride()
        if not results:
            results = tuple(
                torch.empty(shape, dtype=_DTYPES.get(kind, real), device=device)
                for kind, _ in self._outputs
            )
        for each, (kind, name) in zip(results, self._outputs, strict=True):
            self._check(each, kind, name, real, device)
            if each.shape != shape:
                raise ValueError(f"{name} has shape {tuple(each.shape)}; wanted {tuple(shape)}")
            goal = each if each.is_contiguous() else torch.empty_like(
                each, memory_format=torch.contiguous_format
            )
            goals.append(goal)
            words.append(goal.data_ptr())
        if size:
            self._launch(device, _Form(real, len(shape), tuple(form)), size, words)
        for each, goal in zip(results, goals, strict=True):
            if goal is not each:
                each.copy_(goal)
        return results[0] if len(results) == 1 else results

    def _real(self, arrays: Sequence[Any]) -> Any:
        """The dtype that T stands for."""
        declared = [*self._inputs, *self._outputs]
        for each, (kind, name) in zip(arrays, declared, strict=False):
            if kind == "T":
                if each.dtype not in (torch.float32, torch.float64):
                    raise TypeError(f"{name} is {each.dtype}; wanted float32 or float64")
                return each.dtype
        return torch.float64

    @staticmethod
    def _check(tensor: Any, kind: str, name: str, real: Any, device: Any) -> None:
        wanted = _DTYPES.get(kind, real)
        if tensor.dtype != wanted or tensor.device != device:
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device}; wanted {wanted} on {device}"
            )

    def _launch(self, device: Any, form: _Form, size: int, words: Sequence[int]) -> None:
        with _context(device.index):
            key = form, device.index
            if key not in self._functions:
                self._functions[key] = _loaded(self.source(form), device.index)
            buffer = (ctypes.c_int64 * len(words))(*words)
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
            stream = torch.cuda.current_stream(device).cuda_stream
            _checked(_driver().cuLaunchKernel(
                self._functions[key], *(-(-size // _THREADS), 1, 1), *(_THREADS, 1, 1), 0,
                ctypes.c_void_p(stream), arguments, None,
            ))

    def source(self, form: _Form) -> str:
        """The source for arrays of this form; the launch passes one struct of 8-byte words."""
        fields = ["long long size"] + [f"long long n{d}" for d in range(form.ndim)]
        lines = []
        for (kind, name), flat in zip(self._inputs, form.inputs, strict=True):
            if flat is None:
                fields.append(f"{_NUMBERS[kind]} {name}")
                lines.append(f"const {_NUMBERS[kind]} {name} = a.{name};")
                continue
            c = _C[_DTYPES.get(kind, form.real)]
            fields.append(f"const {c}* {name}")
            place = "k"
            if not flat:
                fields += [f"long long {name}_{d}" for d in range(form.ndim)]
                place = " + ".join(f"k{d} * a.{name}_{d}" for d in range(form.ndim)) or "0"
            lines.append(f"const {c} {name} = a.{name}[{place}];")
        after = []
        for kind, name in self._outputs:
            c = _C[_DTYPES.get(kind, form.real)]
            fields.append(f"{c}* {name}")
            lines.append(f"{c} {name};")
            after.append(f"a.{name}[k] = {name};")
        places, rest = [], "k"
        if not all(flat is None or flat for flat in form.inputs):
            for d in reversed(range(form.ndim)):
                places.append(f"const long long k{d} = {rest} % a.n{d};" if d else
                              f"const long long k0 = {rest};")
                rest = f"({rest}) / a.n{d}"
        members = " ".join(f"{field};" for field in fields)
        return "\n".join([
            f"typedef {_C[form.real]} T;",
            f"struct Arguments {{ {members} }};",
            'extern "C" __global__ void run(const Arguments a) {',
            "const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
            "if (k >= a.size) return;",
            *places, *lines, self._body, *after, "}",
        ])


# --- compiling and launching -------------------------------------------------------------------


def kernels_on(device: Any) -> Callable | None:
    """What builds kernels for tensors on a GPU: see `Backend.kernels`."""
    return _kernel if _works(device.index) else None


@functools.cache
def _kernel(inputs: str, outputs: str, body: str) -> Kernel:
    return Kernel(inputs, outputs, body)


@functools.cache
def _works(index: int) -> bool:
    """Whether kernels can be built, and compute on this GPU what torch computes."""
    if torch.version.cuda is None:
        return False
    try:
        x = torch.arange(1.0, 300.0, dtype=torch.float64, device=f"cuda:{index}") / 3.0
        column, mask = x[:7, None], x[::2] > 20.0
        wanted = torch.where(mask, x[::2] * column + 0.1, -column)
        kernel = Kernel("T x, T y, bool m, float64 n", "T z", "z = m ? x * y + n : -y;")
        fine = torch.equal(kernel(x[::2], column, mask, 0.1), wanted)
        problem = "a test kernel gave other numbers than torch"
    except Exception as error:
        fine, problem = False, f"{type(error).__name__}: {error}"
    if not fine:
        warnings.warn(
            f"kernels cannot be used on cuda:{index} ({problem}); batches run operation by "
            "operation, which takes several times as long if they are small",
            RuntimeWarning, stacklevel=2,
        )
    return fine


@contextlib.contextmanager
def _context(index: int) -> Iterator[None]:
    """The context in which torch works on a GPU, made current in this thread."""
    driver = _driver()
    _checked(driver.cuCtxPushCurrent_v2(_primary_context(index)))
    try:
        yield
    finally:
        _checked(driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())))


@functools.cache
def _primary_context(index: int) -> ctypes.c_void_p:
    driver, device, context = _driver(), ctypes.c_int(), ctypes.c_void_p()
    _checked(driver.cuInit(0))
    _checked(driver.cuDeviceGet(ctypes.byref(device), index))
    _checked(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    return context


def _loaded(source: str, index: int) -> ctypes.c_void_p:
    """The compiled function, in the current context."""
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    major, minor = torch.cuda.get_device_capability(index)
    code = compiled(_nvrtc(), source, 10 * major + minor)
    _checked(driver.cuModuleLoadData(ctypes.byref(module), code))
    _checked(driver.cuModuleGetFunction(ctypes.byref(function), module, b"run"))
    return function


def compiled(nvrtc: Any, source: str, capability: int) -> bytes:
    """PTX for GPUs of this compute capability (90 for 9.0) or a later one."""
    count = ctypes.c_int()
    _compiles(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _compiles(nvrtc, nvrtc.nvrtcGetSupportedArchs(known))
    target = max(each for each in known if each <= capability)
    # Without fused multiply-add, so that products and sums round as on other libraries.
    options = [f"--gpu-architecture=compute_{target}".encode(), b"--fmad=false"]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _compiles(nvrtc, nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"lbfgs_xp.cu", 0, None, None
    ))
    try:
        status = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        if status:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC refused a kernel: {log.value.decode()}\n{source}")
        _compiles(nvrtc, nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _compiles(nvrtc, nvrtc.nvrtcGetPTX(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.value


def _compiles(nvrtc: Any, status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC failed with status {status}")


def _checked(status: int) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise RuntimeError(f"the CUDA driver failed: {(name.value or b'unknown').decode()}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """The NVRTC that came with torch."""
    major = str(torch.version.cuda).split(".")[0]
    name = f"nvrtc64_{major}0_0.dll" if os.name == "nt" else f"libnvrtc.so.{major}"
    folders = [Path(torch.__file__).parent / "lib"]
    if (nvidia := importlib.util.find_spec("nvidia")) is not None:
        for folder in nvidia.submodule_search_locations or ():
            folders += [Path(folder) / "cuda_nvrtc" / "lib", Path(folder) / f"cu{major}" / "lib"]
    found = [str(folder / name) for folder in folders if (folder / name).exists()]
    return ctypes.CDLL(found[0] if found else name)


def _bits(number: float) -> int:
    return struct.unpack("q", struct.pack("d", number))[0]
