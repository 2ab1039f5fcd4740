"""NVRTC and the driver of NVIDIA GPUs, called through their C interfaces in PyTorch's contexts.

PyTorch brings NVRTC, the compiler for kernels in C++, but has no public function for it that takes
as many arrays as `lbfgs_xp.arrays.torch_kernels` has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

_THREADS = 128


def load(source: str, device: torch.device) -> ctypes.c_void_p:
    """The function `run` of this source, compiled for a GPU and loaded there for good."""
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    major, minor = torch.cuda.get_device_capability(device)
    code = compiled(_nvrtc(), source, 10 * major + minor)
    with _context(device):
        _checked(driver.cuModuleLoadData(ctypes.byref(module), code))
        _checked(driver.cuModuleGetFunction(ctypes.byref(function), module, b"run"))
    return function


def launch(
    function: ctypes.c_void_p, device: torch.device, size: int, words: Sequence[int]
) -> None:
    """Launch `size` threads or a few more on PyTorch's current stream.

    words : the only argument of the function, a struct of 8-byte integers, which the driver copies.
    """
    buffer = (ctypes.c_int64 * len(words))(*words)
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    with _context(device):
        _checked(_driver().cuLaunchKernel(
            function, *(-(-size // _THREADS), 1, 1), *(_THREADS, 1, 1), 0, stream, arguments, None
        ))


@contextlib.contextmanager
def _context(device: torch.device) -> Iterator[None]:
    """The context in which PyTorch works on a GPU, made current in this thread."""
    driver = _driver()
    _checked(driver.cuCtxPushCurrent_v2(_primary_context(device.index)))
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


def _checked(status: int) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise RuntimeError(f"the CUDA driver failed: {(name.value or b'unknown').decode()}")


def compiled(nvrtc: Any, source: str, capability: int) -> bytes:
    """The code for GPUs of this compute capability (90 for 9.0).

    It is a binary, which every driver loads; or, if this NVRTC is older than the GPU, PTX for the
    latest capability that it knows, which the driver compiles.
    """
    known = _architectures(nvrtc)
    binary = capability in known
    target = max(each for each in known if each <= capability)
    options = [
        f"--gpu-architecture={'sm' if binary else 'compute'}_{target}".encode(),
        # Without fused multiply-add, so that products and sums round as on other libraries.
        b"--fmad=false",
    ]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _compiles(nvrtc.nvrtcCreateProgram(
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
        kind = "CUBIN" if binary else "PTX"
        _compiles(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _compiles(getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


def _architectures(nvrtc: Any) -> list[int]:
    """The compute capabilities that NVRTC knows."""
    count = ctypes.c_int()
    _compiles(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _compiles(nvrtc.nvrtcGetSupportedArchs(known))
    return list(known)


def _compiles(status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC failed with status {status}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """The NVRTC that came with PyTorch."""
    major = str(torch.version.cuda).split(".")[0]
    name = f"nvrtc64_{major}0_0.dll" if os.name == "nt" else f"libnvrtc.so.{major}"
    folders = [Path(torch.__file__).parent / "lib"]
    if (nvidia := importlib.util.find_spec("nvidia")) is not None:
        for folder in nvidia.submodule_search_locations or ():
            folders += [Path(folder) / "cuda_nvrtc" / "lib", Path(folder) / f"cu{major}" / "lib"]
    found = [str(folder / name) for folder in folders if (folder / name).exists()]
    return ctypes.CDLL(found[0] if found else name)
