"""`ElementwiseKernel` of the stand-in: the body is compiled by g++, as NVRTC would on a GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cupy._standin import counts, hosts_of

_FOLDER = Path(tempfile.gettempdir()) / "lbfgs_xp-kernels"
_TYPES = {"float32": "float", "float64": "double"}


class ElementwiseKernel:
    """One operation for each element; parameters are declared as "T x, float64 n, ..."."""

    def __init__(
        self, in_params: str, out_params: str, operation: str, name: str = "kernel",
        reduce_dims: bool = True, preamble: str = "", no_return: bool = False,
        return_tuple: bool = False, options: tuple = (), loop_prep: str = "", after_loop: str = "",
    ):
        self.inputs = [tuple(p.split()) for p in in_params.split(",")]
        self.outputs = [tuple(p.split()) for p in out_params.split(",")]
        self.operation, self.options = operation, options

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        if more:
            raise TypeError(f"the stand-in's kernels take no {sorted(more)}")
        declared = [*self.inputs, *self.outputs]
        if len(arguments) != len(declared):
            raise TypeError(f"Wrong number of arguments: {len(arguments)}; wanted {len(declared)}")
        hosts = [hosts_of(a) for a in arguments]
        dtypes = {a.dtype.name for a, (kind, _) in zip(hosts, declared, strict=True) if kind == "T"}
        if len(dtypes) != 1 or not dtypes <= _TYPES.keys():
            raise TypeError(f"Type is mismatched: T is {sorted(dtypes)}")
        (dtype,) = dtypes
        outs = hosts[len(self.inputs) :]
        given = []
        for host, (kind, name) in zip(hosts, declared, strict=True):
            if kind != "T" and np.asarray(host).dtype.name not in (kind, "int64"):
                raise TypeError(f"Type is mismatched: {name} is {np.asarray(host).dtype}, not {kind}")
            array = np.asarray(host, dtype=dtype if kind == "T" else kind)
            given.append(np.ascontiguousarray(np.broadcast_to(array, outs[0].shape)))
        fused = not any("fmad=false" in option for option in self.options)
        run = _compiled(tuple(declared), self.operation, _TYPES[dtype], fused)
        run(outs[0].size, *(array.ctypes.data for array in given))
        for out, array in zip(outs, given[len(self.inputs) :], strict=True):
            out[...] = array
        counts.launches += 1
        found = arguments[len(self.inputs) :]
        return found[0] if len(found) == 1 else tuple(found)


@functools.cache
def _compiled(declared: tuple, body: str, kind: str, fused: bool) -> Any:
    if shutil.which("g++") is None:
        raise RuntimeError("the stand-in's kernels need g++")
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
    contraction = "-ffp-contract=" + ("fast" if fused else "off")
    name = hashlib.sha256((text + contraction).encode()).hexdigest()[:20]
    _FOLDER.mkdir(exist_ok=True)
    library = _FOLDER / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "kernel.cpp"
            source.write_text(text)
            built = Path(folder) / "kernel.so"
            subprocess.run(
                ["g++", "-O2", "-shared", "-fPIC", contraction, str(source), "-o", str(built)],
                check=True, capture_output=True, text=True,
            )
            shutil.move(str(built), _FOLDER / f"{name}.{id(text)}")
            (_FOLDER / f"{name}.{id(text)}").rename(library)    # at once, for other processes
    run = ctypes.CDLL(str(library)).run
    run.restype, run.argtypes = None, [ctypes.c_longlong, *[ctypes.c_void_p] * len(declared)]
    return run
