"""`ElementwiseKernel` of the stand-in: g++ compiles the body, as NVRTC does on a GPU."""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cupy._standin import counts, hosts_of

COMPILER = shutil.which("g++")
_TYPES = {"float32": "float", "float64": "double"}


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
        if kwargs:
            raise TypeError(f"the stand-in's kernels take no {sorted(kwargs)}")
        declared = [*self.inputs, *self.outputs]
        if len(args) != len(declared):
            raise TypeError(f"Wrong number of arguments: {len(args)}; wanted {len(declared)}")
        hosts = [hosts_of(a) for a in args]
        dtypes = {a.dtype.name for a, (kind, _) in zip(hosts, declared, strict=True) if kind == "T"}
        if len(dtypes) != 1 or not dtypes <= _TYPES.keys():
            raise TypeError(f"Type is mismatched: T is {sorted(dtypes)}")
        (dtype,) = dtypes
        outs = hosts[len(self.inputs) :]
        given = []
        for host, (kind, name) in zip(hosts, declared, strict=True):
            found = np.asarray(host).dtype
            if kind != "T" and found.name not in (kind, "int64"):
                raise TypeError(f"Type is mismatched: {name} is {found}, not {kind}")
            array = np.asarray(host, dtype=dtype if kind == "T" else kind)
            given.append(np.ascontiguousarray(np.broadcast_to(array, outs[0].shape)))
        fused = not any("fmad=false" in option for option in self.options)
        run = _compiled(tuple(declared), self.operation, _TYPES[dtype], fused)
        run(outs[0].size, *(array.ctypes.data for array in given))
        for out, array in zip(outs, given[len(self.inputs) :], strict=True):
            out[...] = array
        counts.launches += 1
        results = args[len(self.inputs) :]
        return results[0] if len(results) == 1 else tuple(results)


@functools.cache
def _compiled(declared: tuple, body: str, kind: str, fused: bool) -> Any:
    """The loop over the elements; it is kept for later runs."""
    if COMPILER is None:
        raise RuntimeError(
            "g++ was not found, with which the stand-in for CuPy compiles kernels; install it (on "
            "Debian and Ubuntu: apt-get install g++)"
        )
    types = ["T" if each == "T" else "double" for each, _ in declared]
    pointers = ", ".join(f"{t}* p_{name}" for t, (_, name) in zip(types, declared, strict=True))
    # As in CuPy, a parameter is the element itself.
    elements = " ".join(
        f"{t}& {name} = p_{name}[i];" for t, (_, name) in zip(types, declared, strict=True)
    )
    text = f"""
#include <cmath>
using std::sqrt;
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
