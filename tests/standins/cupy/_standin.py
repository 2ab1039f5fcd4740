"""How the stand-in for CuPy works; see the package."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

API = json.loads((Path(__file__).parents[1] / "cupy_api.json").read_text())
DEVICES = 2
_SCALARS = (bool, int, float, complex, np.generic)
# Functions of dtypes and shapes, which look at no element.
_OF_SHAPES = {
    "result_type", "can_cast", "promote_types", "issubdtype", "shape", "ndim", "size",
    "broadcast_shapes", "isscalar", "iscomplexobj", "isrealobj",
}
# Views of the same memory, if the strides allow: nothing is launched, whatever device is current.
_VIEWS = {
    "reshape", "broadcast_to", "moveaxis", "swapaxes", "transpose", "expand_dims", "squeeze",
    "matrix_transpose", "ravel", "real", "view", "diagonal", "permute_dims", "atleast_1d",
}
# The host waits for the shape of the outcome. Functions of `linalg` do not wait: CuPy ignores the
# error codes of its solvers unless told otherwise.
_WAITS = {
    "nonzero", "flatnonzero", "argwhere", "unique", "unique_values", "unique_all", "unique_counts",
    "unique_inverse", "compress", "extract", "setdiff1d", "intersect1d", "union1d",
}


@dataclasses.dataclass
class Counts:
    """Transfers to the host, transfers to the device, and launches of kernels."""

    reads: int = 0
    uploads: int = 0
    launches: int = 0

    def clear(self) -> None:
        self.reads = self.uploads = self.launches = 0


counts = Counts()


# --- devices -----------------------------------------------------------------------------------


class _Thread(threading.local):
    """The current device of a thread, and those to return to; every thread starts on device 0."""

    def __init__(self) -> None:
        self.current = 0
        self.before: list[int] = []


_thread = _Thread()


def _make_current(device: int) -> None:
    if not 0 <= device < DEVICES:
        raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
    _thread.current = device


class Device:
    """A device by its number; it cannot be hashed, as in CuPy."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, device: Any = None):
        self.id = _thread.current if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        before = _thread.current
        _make_current(self.id)
        _thread.before.append(before)
        return self

    def __exit__(self, *args: Any) -> None:
        _thread.current = _thread.before.pop()

    def use(self) -> Device:
        _make_current(self.id)
        return self

    def synchronize(self) -> None:
        counts.reads += 1

    def __eq__(self, value: object) -> bool:
        return isinstance(value, Device) and self.id == value.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


# --- arrays ------------------------------------------------------------------------------------


class Flags:
    """In which order an array lies; not whether it may be written to."""

    def __init__(self, host: np.ndarray):
        self.c_contiguous, self.f_contiguous = host.flags.c_contiguous, host.flags.f_contiguous
        self.owndata, self.fnc, self.forc = host.flags.owndata, host.flags.fnc, host.flags.forc

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        return getattr(self, name.lower())


class ndarray:  # noqa: N801
    """An array on a device."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    base: ndarray | None
    _host: np.ndarray
    _device: int

    def __init__(self, *args: Any):
        raise TypeError("the stand-in makes arrays by functions only")

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    device = property(lambda self: Device(self._device))
    flags = property(lambda self: Flags(self._host))
    T = property(lambda self: _view(np.transpose, self))
    mT = property(lambda self: _view(np.matrix_transpose, self))  # noqa: N815
    real = property(lambda self: _view(np.real, self))

    @property
    def imag(self) -> ndarray:
        # There is no memory to view in a real array.
        kind = self.dtype.kind
        return _view(np.imag, self) if kind == "c" else _launch(np.zeros_like, self)

    @property
    def data(self) -> Any:
        """As far as it is needed: where the memory of the array and its views begins."""
        host = self._host
        while isinstance(host.base, np.ndarray):
            host = host.base
        return types.SimpleNamespace(mem=types.SimpleNamespace(ptr=host.ctypes.data))

    # --- to the host ---------------------------------------------------------------------------

    def get(
        self, stream: Any = None, order: Any = "C", out: Any = None, blocking: Any = True
    ) -> np.ndarray:
        counts.reads += self.size > 0
        return self._host.copy()

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous.")
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, format_spec: str) -> str:
        return format(self.get(), format_spec)

    # --- refused -------------------------------------------------------------------------------

    def __array__(self, dtype: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """CuPy's own ufunc of that name, so that a number of NumPy may stand on the left.

        CuPy runs `reduce` and its like, too; here they are refused, because the library has its own
        namespace for them.
        """
        if method != "__call__" or ufunc.__name__ not in API["cupy"]:
            raise TypeError(f"numpy.{ufunc.__name__} was called with an array of CuPy")
        return getattr(sys.modules["cupy"], ufunc.__name__)(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Refuse functions of NumPy, though CuPy runs its own instead of some: see above."""
        raise TypeError(f"numpy.{func.__name__} was called with an array of CuPy")

    # --- elements ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, slices: Any) -> ndarray:
        parts = slices if isinstance(slices, tuple) else (slices,)
        if all(p is None or p is Ellipsis or _is_slice(p) for p in parts):
            return made(self._host[slices], self)
        for part in parts:
            if isinstance(part, ndarray) and part.dtype.kind == "b":
                counts.reads += 1    # how many there are
            counts.uploads += isinstance(part, list)
        return _launch(lambda a, i: a[i], self, slices)

    def __setitem__(self, slices: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for assignment")
        counts.launches += 1
        hosts_of(self)[hosts_of(slices)] = hosts_of(value)

    # --- copies --------------------------------------------------------------------------------

    def copy(self, order: Any = "C") -> ndarray:
        """A copy on the current device."""
        counts.launches += 1
        return made(np.array(self._host, order=order))

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None,
        copy: Any = True,
    ) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        return _launch(np.ndarray.astype, self, dtype)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        with self.device:
            return self.copy()

    def __reduce__(self) -> Any:
        return array, (self.get(),)    # on the device that is current when it is loaded


def made(host: Any, base: ndarray | None = None) -> ndarray:
    """An array on the current device, or a view of `base`."""
    new = object.__new__(ndarray)
    new._host = np.asarray(host)
    new._device = _thread.current if base is None else base._device
    new.base = base
    return new


def _is_slice(part: Any) -> bool:
    return isinstance(part, (int, slice, np.integer)) and not isinstance(part, bool)


# --- operations --------------------------------------------------------------------------------


def hosts_of(value: Any) -> Any:
    """The arguments of an operation: arrays on the current device, and numbers."""
    if isinstance(value, ndarray):
        if value._device != _thread.current:
            raise ValueError(
                f"The device where the array resides ({value._device}) is different from the "
                f"current device ({_thread.current}). Peer access is unavailable between these "
                "devices."
            )
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (list, tuple)):
        return type(value)(map(hosts_of, value))
    return value


def _devices(value: Any) -> Any:
    """The outcome of an operation, as arrays of the current device, 0-d ones included."""
    if isinstance(value, (np.ndarray, np.generic)):
        return made(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_devices, value))
    return type(value)(map(_devices, value)) if isinstance(value, (list, tuple)) else value


def _launch(function: Callable, *args: Any, **more: Any) -> Any:
    """A function of NumPy as an operation on the current device."""
    counts.launches += 1
    out = more.pop("out", None)
    hosts = [hosts_of(a) for a in args]
    options = {name: hosts_of(value) for name, value in more.items() if value is not None}
    with np.errstate(all="ignore"):
        if out is None:
            return _devices(function(*hosts, **options))
        function(*hosts, out=hosts_of(out), **options)
    return out


def _view(function: Callable, array: ndarray, *args: Any, **more: Any) -> ndarray:
    """A view, on the device of the array; a copy, where that is needed, is an operation."""
    found = function(array._host, *args, **more)
    if np.may_share_memory(found, array._host):
        return array if found is array._host else made(found, array)
    return _launch(function, array, *args, **more)


def _of_shapes(function: Callable, *args: Any, **more: Any) -> Any:
    return function(*(a._host if isinstance(a, ndarray) else a for a in args), **more)


def _waits(function: Callable, *args: Any, **more: Any) -> Any:
    counts.reads += 1
    return _launch(function, *args, **more)


def _manner(name: str) -> Callable:
    """How a function or method of that name runs."""
    for names, run in ((_OF_SHAPES, _of_shapes), (_VIEWS, _view), (_WAITS, _waits)):
        if name in names:
            return run
    return _launch


# --- functions, ufuncs and methods, from the list ----------------------------------------------


def signature_of(parameters: list[list[Any]]) -> inspect.Signature:
    """The signature of a function, from its entry in the list."""
    kinds = list(inspect._ParameterKind)
    return inspect.Signature([
        inspect.Parameter(
            name, kinds[kind],
            default=None if optional and kind != inspect.Parameter.VAR_POSITIONAL
            else inspect.Parameter.empty,
        )
        for name, kind, optional in parameters
    ])


def _function(
    name: str, function: Callable, parameters: list[list[Any]], outs: int | None = None
) -> Callable:
    """A function of NumPy with the parameters of CuPy's.

    outs : for a ufunc, the place of `out` among the arguments.
    """
    signature, run = signature_of(parameters), _manner(name)

    def call(*args: Any, **more: Any) -> Any:
        signature.bind(*args, **more)
        if outs is not None and len(args) > outs:
            *args, more["out"] = args  # type: ignore[assignment]
        more.pop("blocking", None)
        return run(function, *args, **more)

    call.__name__, call.__signature__ = name, signature  # type: ignore[attr-defined]
    return call


def _fill(module: Any, names: dict[str, Any], source: Any, adapt: Callable) -> None:
    """Give a module all of `source` that is in the list."""
    for name, parameters in names.items():
        found = getattr(source, name, None)
        if name in vars(module) or found is None:
            continue
        if parameters is None and (isinstance(found, type) or not callable(found)):
            setattr(module, name, found)
        elif parameters is not None and not isinstance(found, type):
            outs = found.nin if isinstance(found, np.ufunc) else None
            setattr(module, name, _function(name, adapt(found), parameters, outs))


def _without_errors(function: Callable) -> Callable:
    """A function of `linalg` that gives nan for a matrix with which NumPy's raises an error."""
    if function not in (np.linalg.cholesky, np.linalg.inv, np.linalg.solve):
        return function

    def call(a: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        try:
            return function(a, *rest)
        except np.linalg.LinAlgError:
            if a.ndim == 2:
                return np.full_like(rest[0] if rest else a, np.nan)
            return np.stack([call(*each) for each in zip(a, *rest, strict=True)])

    return call


_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift",
    "rshift": "right_shift", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _binary(ufunc: np.ufunc, prefix: str) -> Callable:
    def operate(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, *_SCALARS)):
            if isinstance(other, np.ndarray):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
            return NotImplemented
        operands = (other, self) if prefix == "r" else (self, other)
        return _launch(ufunc, *operands, out=self if prefix == "i" else None)

    return operate


def _unary(ufunc: np.ufunc) -> Callable:
    return lambda self: _launch(ufunc, self)


def _fill_array() -> None:
    for short, name in _BINARY.items():
        for prefix in ("", "r", "i"):
            if f"__{prefix}{short}__" in API["cupy.ndarray"]:
                operate = _binary(getattr(np, name), prefix)
                setattr(ndarray, f"__{prefix}{short}__", operate)
    for short, name in _UNARY.items():
        setattr(ndarray, f"__{short}__", _unary(getattr(np, name)))
    for name, parameters in API["cupy.ndarray"].items():
        method = getattr(np.ndarray, name, None)
        if parameters and not name.startswith("_") and name not in vars(ndarray) and method:
            setattr(ndarray, name, _function(name, method, parameters))


# --- what is made by hand ----------------------------------------------------------------------


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: Any = False
) -> ndarray:
    if isinstance(a, ndarray):
        if a._device != _thread.current:
            counts.launches += 1
            return made(np.array(a._host, dtype=dtype))
        if copy or (dtype is not None and a.dtype != dtype):
            return _launch(lambda host: np.array(host, dtype=dtype), a)
        return a
    if _holds_arrays(a):
        return _launch(lambda hosts: np.array(hosts, dtype=dtype), a)
    host = np.array(a, dtype=dtype)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    counts.uploads += 1
    return made(host)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_arrays, value))
    return isinstance(value, ndarray)


def array(
    obj: Any, dtype: Any = None, copy: Any = True, order: Any = "K", subok: Any = False,
    ndmin: Any = 0, *, blocking: Any = False,
) -> ndarray:
    return asarray(obj, dtype, copy=copy)


def asnumpy(
    a: Any, stream: Any = None, order: Any = "C", out: Any = None, *, blocking: Any = True
) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def _cuda() -> Any:
    module: Any = types.ModuleType("cupy.cuda")
    module.Device = Device
    module.Stream = type("Stream", (), {})
    module.runtime = types.SimpleNamespace(
        getDeviceCount=lambda: DEVICES, getDevice=lambda: _thread.current, is_hip=False
    )
    sys.modules["cupy.cuda.device"] = module
    return module


def build(module: Any) -> None:
    """Fill the namespace of the module `cupy`."""
    vars(module).update(
        ndarray=ndarray, asarray=asarray, array=array, asnumpy=asnumpy, cuda=_cuda(),
        linalg=types.ModuleType("cupy.linalg"), fft=types.ModuleType("cupy.fft"),
        **{name: getattr(np, name) for name in ("newaxis", "inf", "nan", "pi", "e")},
    )
    _fill(module.linalg, API["cupy.linalg"], np.linalg, _without_errors)
    _fill(module, API["cupy"], np, lambda function: function)
    for name in ("cuda", "linalg", "fft"):
        sys.modules[f"cupy.{name}"] = getattr(module, name)
    _fill_array()
