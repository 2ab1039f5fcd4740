"""`ElementwiseKernel` of the stand-in: g++ compiles the body, as NVRTC does on a GPU."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np

from cupy._standin import counts, hosts_of, made, ndarray
from tests.standins.compiler import library

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
    """The loop over the elements."""
    types = ["T" if each == "T" else _TYPES[each] for each, _ in declared]
    pointers = ", ".join(f"{t}* p_{name}" for t, (_, name) in zip(types, declared, strict=True))
    # As in CuPy, a parameter is the element itself.
    elements = " ".join(
        f"{t}& {name} = p_{name}[i];" for t, (_, name) in zip(types, declared, strict=True)
    )
    text = f"""
typedef {kind} T;
extern "C" void run(long long size, {pointers}) {{
  for (long long i = 0; i < size; ++i) {{ {elements} {body} }}
}}
"""
    # Unless told otherwise, a GPU fuses products and sums.
    options = ("-ffp-contract=fast", "-march=native") if fused else ("-ffp-contract=off",)
    run = library(text, options).run
    run.restype, run.argtypes = None, [ctypes.c_longlong, *[ctypes.c_void_p] * len(declared)]
    return run
