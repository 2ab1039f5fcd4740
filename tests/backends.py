"""The array libraries that the tests run on, one enum.

`python tests/backends.py` lists them with what is missing; with `--gpu` its exit status is 3
where no library sees a GPU.
"""

from __future__ import annotations

import enum
import functools
import importlib
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@functools.cache
def missing_cupy() -> str | None:
    """Why CuPy cannot run here, with a GPU; the tests then use its stand-in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several installations, or of an old driver
        try:
            found = importlib.import_module("cupy").cuda.runtime.getDeviceCount() > 0
            missing = None if found else "no GPU"
        except ImportError:
            missing = "the library is not installed"
        except Exception as error:  # its own errors for "no driver" and "no device"
            missing = f"no GPU ({type(error).__name__})"
    if missing:
        for name in [n for n in sys.modules if n.partition(".")[0] == "cupy"]:
            del sys.modules[name]
        sys.path.insert(0, str(Path(__file__).parent / "standins"))
    return missing


class Backend(enum.Enum):
    """An array library together with a device and, for NumPy, a flag."""

    NUMPY = "numpy"
    NUMPY_READONLY = "numpy-readonly"  # arrays that refuse to be written to
    STRICT = "strict"
    STRICT_DEVICE = "strict-device"  # a device from which nothing reaches the host silently
    TORCH = "torch"
    JAX = "jax"
    CUPY = "cupy"
    TORCH_CUDA = "torch-cuda"
    JAX_CUDA = "jax-cuda"

    @property
    def is_gpu(self) -> bool:
        if self is Backend.CUPY:
            return missing_cupy() is None
        return self in (Backend.TORCH_CUDA, Backend.JAX_CUDA)

    @property
    def is_numpy(self) -> bool:
        return self in (Backend.NUMPY, Backend.NUMPY_READONLY)

    @property
    def is_strict(self) -> bool:
        return self in (Backend.STRICT, Backend.STRICT_DEVICE)

    @property
    def is_torch(self) -> bool:
        return self in (Backend.TORCH, Backend.TORCH_CUDA)

    @property
    def is_jax(self) -> bool:
        return self in (Backend.JAX, Backend.JAX_CUDA)

    @property
    def has_autodiff(self) -> bool:
        return self.is_torch or self.is_jax

    @functools.cached_property
    def missing(self) -> str | None:
        """Why this backend cannot run here; None where it can.

        The CPU libraries belong to the test extra: without one of them its tests fail.
        """
        if self is Backend.CUPY:
            if missing_cupy() is None or shutil.which("g++"):
                return None
            return "cupy: no GPU, and its stand-in needs g++, which is not installed"
        if not self.is_gpu:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the driver; the tests will show what works
                if self is Backend.TORCH_CUDA:
                    found = importlib.import_module("torch").cuda.is_available()
                else:
                    found = bool(importlib.import_module("jax").devices("gpu"))
        except ImportError:
            return f"{self.value}: the library is not installed"
        except Exception as error:  # each library has its own error for "no device"
            return f"{self.value}: no GPU ({type(error).__name__})"
        return None if found else f"{self.value}: no GPU"

    @functools.cached_property
    def xp(self) -> Any:
        """The namespace, as the library's arrays report it through array-api-compat."""
        name = {
            "numpy": "array_api_compat.numpy",
            "numpy-readonly": "array_api_compat.numpy",
            "strict": "array_api_strict",
            "strict-device": "array_api_strict",
            "torch": "array_api_compat.torch",
            "torch-cuda": "array_api_compat.torch",
            "jax": "jax.numpy",
            "jax-cuda": "jax.numpy",
            "cupy": "array_api_compat.cupy",
        }[self.value]
        return importlib.import_module(name)

    @functools.cached_property
    def device(self) -> Any:
        """The device of this backend's arrays, as the library spells it."""
        match self:
            case Backend.NUMPY | Backend.NUMPY_READONLY:
                return "cpu"
            case Backend.STRICT:
                return self.xp.Device("CPU_DEVICE")
            case Backend.STRICT_DEVICE:
                return self.xp.Device("device1")
            case Backend.TORCH:
                return importlib.import_module("torch").device("cpu")
            case Backend.TORCH_CUDA:
                return importlib.import_module("torch").device("cuda", 0)
            case Backend.JAX:
                return importlib.import_module("jax").devices("cpu")[0]
            case Backend.JAX_CUDA:
                return importlib.import_module("jax").devices("gpu")[0]
            case Backend.CUPY:
                return importlib.import_module("cupy").cuda.Device(0)

    def dtype(self, name: Any) -> Any:
        """The dtype object of that name ("float32"); dtype objects pass through."""
        return getattr(self.xp, name) if isinstance(name, str) else name

    def asarray(self, values: Any, dtype: Any = "float64") -> Any:
        """This backend's array of these numbers (a list, a scalar or a NumPy array).

        dtype=None keeps that of a NumPy array.
        """
        host = np.array(values)  # a copy: the test's own numbers are never shared
        if dtype is None:
            dtype = host.dtype.name
        array = self.xp.asarray(host, dtype=self.dtype(dtype), device=self.device)
        if self is Backend.NUMPY_READONLY:
            array.flags.writeable = False
        return array

    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy on the host, as NumPy's array."""
        if self.is_strict:
            array = array.to_device(self.xp.Device("CPU_DEVICE"))
        elif self.is_torch:
            array = array.detach().cpu().resolve_conj().numpy()
        elif self is Backend.CUPY:
            array = array.get()
        return np.array(array)

    def __str__(self) -> str:
        return self.value


def or_skip(backend: Backend) -> Backend:
    """The backend; skips the test, with the reason, if it cannot run."""
    if backend.missing:
        pytest.skip(backend.missing)
    return backend


def parameters(backends: Any = Backend) -> list[Any]:
    """The backends as parameters of tests; those on a GPU carry the marker `gpu`."""
    return [
        pytest.param(b, id=b.value, marks=[pytest.mark.gpu] if b.is_gpu else []) for b in backends
    ]


def watch_reads(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all that `backend` reads from the device from now on, as it goes."""
    from lbfgs_xp.arrays.backend import Backend as Library

    seen: list[tuple[int, ...]] = []
    own = type(Library.of(backend.asarray([1.0])))
    to_host = own.to_host

    def counted(array: Any) -> Any:
        seen.append(tuple(array.shape))
        return to_host(array)

    monkeypatch.setattr(own, "to_host", staticmethod(counted))
    return seen


CPU = [backend for backend in Backend if not backend.is_gpu]
GPU = [backend for backend in Backend if backend.is_gpu]


def main() -> int:
    for backend in GPU if "--gpu" in sys.argv[1:] else Backend:
        print(f"{backend!s:15}", backend.missing or "found")
    return 3 if "--gpu" in sys.argv[1:] and all(b.missing for b in GPU) else 0


if __name__ == "__main__":
    sys.exit(main())
