"""`ElementwiseKernel` of the stand-in: g++ compiles the body, as NVRTC does on a GPU."""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cupy._standin import counts, hosts_of, made, ndarray

COMPILER = shutil.which("g++")
# The C++ types of the kinds of parameters, apart from T.
_TYPES = {
    "float32": "float", "float64": "double", "bool": "bool", "int32": "int", "int64": "long long",
}
_REAL = ("float32", "float64")
# What Python numbers may be passed for a parameter that is not an array.
_NUMBERS = {"float64": (int, float), "int64": (int,), "bool": (bool,)}


class ElementwiseKernel:
    """One operation for each element; parameters are declared as "T x, float64 n, ..."."""

    def __init__(
        self, in_params: str, out_params: str, operation: str, name: str = "kernel",
        reduce_dims: bool = True, preamble: str = "", no_return: bool = False,
        return_tuple: bool = False, **kwargs: Any,
    ):
        self.inputs = [tuple(p.split()) for p in in_params.split(",")]
        self.outputs = [tuple(p.split()) for p in out_params.split(",")]
        self.operation, self.options = operation, kwargs.pop("options", ())
        if kwargs:
            raise TypeError(f"the stand-in's kernels take no {sorted(kwargs)}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Without outputs among the arguments, new arrays of the shape of all inputs together."""
        if kwargs:
            raise TypeError(f"the stand-in's kernels take no {sorted(kwargs)}")
        inputs, results = args[: len(self.inputs)], args[len(self.inputs) :]
        if len(inputs) != len(self.inputs) or len(results) not in (0, len(self.outputs)):
            raise TypeError(f"Wrong number of arguments: {len(args)}")
        declared = [*self.inputs, *self.outputs]
        real = self._real(args)
        shape = np.broadcast_shapes(*(np.shape(hosts_of(a)) for a in inputs))
        if not results:
            kinds = (real if kind == "T" else kind for kind, _ in self.outputs)
            results = tuple(made(np.empty(shape, kind)) for kind in kinds)
        if any(hosts_of(a).shape != shape for a in results):
            raise ValueError("Out shape is mismatched")
        given = []
        for arg, (kind, name) in zip((*inputs, *results), declared, strict=True):
            kind = real if kind == "T" else kind
            host = hosts_of(arg)
            is_array = isinstance(arg, ndarray)
            if is_array and host.dtype.name != kind or not (
                is_array or isinstance(host, (np.generic, *_NUMBERS.get(kind, ())))
            ):
                raise TypeError(f"Type is mismatched: {name} is {host!r}, not {kind}")
            array = np.asarray(host, dtype=kind)
            given.append(np.ascontiguousarray(np.broadcast_to(array, shape)))
        fused = not any("fmad=false" in option for option in self.options)
        run = compiled(tuple(declared), self.operation, _TYPES[real], fused)
        run(math.prod(shape), *(array.ctypes.data for array in given))
        for out, array in zip(map(hosts_of, results), given[len(self.inputs) :], strict=True):
            out[...] = array
        counts.launches += 1
        return results[0] if len(results) == 1 else tuple(results)

    def _real(self, args: Any) -> str:
        """The dtype that T stands for; float64 if there is no T."""
        declared = [*self.inputs, *self.outputs]
        dtypes = {
            hosts_of(a).dtype.name for a, (kind, _) in zip(args, declared, strict=False)
            if kind == "T"
        }
        if all(kind != "T" for kind, _ in declared):
            return "float64"
        if len(dtypes) != 1 or not dtypes <= set(_REAL):
            raise TypeError(f"Type is mismatched: T is {sorted(dtypes)}")
        return dtypes.pop()


@functools.cache
def compiled(declared: tuple, body: str, kind: str, fused: bool) -> Any:
    """The loop over the elements; it is kept for later runs."""
    if COMPILER is None:
        raise RuntimeError(
            "g++ was not found, with which the stand-in for CuPy compiles kernels; install it (on "
            "Debian and Ubuntu: apt-get install g++)"
        )
    types = ["T" if each == "T" else _TYPES[each] for each, _ in declared]
    pointers = ", ".join(f"{t}* p_{name}" for t, (_, name) in zip(types, declared, strict=True))
    # As in CuPy, a parameter is the element itself.
    elements = " ".join(
        f"{t}& {name} = p_{name}[i];" for t, (_, name) in zip(types, declared, strict=True)
    )
    text = f"""
// Not from <cmath>, which takes longer to read than all of this to compile.
static inline double sqrt(double x) {{ return __builtin_sqrt(x); }}
static inline float sqrt(float x) {{ return __builtin_sqrtf(x); }}
static inline double fabs(double x) {{ return __builtin_fabs(x); }}
static inline float fabs(float x) {{ return __builtin_fabsf(x); }}
typedef {kind} T;
extern "C" void run(long long size, {pointers}) {{
  for (long long i = 0; i < size; ++i) {{ {elements} {body} }}
}}
"""
    # Unless told otherwise, a GPU fuses products and sums.
    options = ["-ffp-contract=fast", "-march=native"] if fused else ["-ffp-contract=off"]
    name = hashlib.sha256("\n".join([text, *options]).encode()).hexdigest()[:20]
    library = _folder() / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            source, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text(text)
            command = [COMPILER, "-O2", "-shared", "-fPIC", *options, str(source), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ could not compile a kernel:\n{done.stderr}\n{text}")
            built.rename(library)    # in one step, because other processes may load it
    run = ctypes.CDLL(str(library)).run
    run.restype, run.argtypes = None, [ctypes.c_longlong, *[ctypes.c_void_p] * len(declared)]
    return run


def _folder() -> Path:
    """A folder for compiled kernels that only this user can write to."""
    folder = Path(tempfile.gettempdir()) / f"lbfgs_xp-kernels-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user")
    return folder
