"""How the stand-in for CuPy works; see the package."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

API = json.loads((Path(__file__).parents[1] / "cupy_api.json").read_text())
DEVICES = 2
_SCALARS = (bool, int, float, complex, np.generic)
# Functions that launch nothing: of dtypes and shapes, or views.
_NOT_LAUNCHED = {
    "result_type", "can_cast", "promote_types", "issubdtype", "shape", "ndim", "broadcast_shapes",
    "reshape", "broadcast_to", "moveaxis", "swapaxes", "transpose", "expand_dims", "squeeze",
    "matrix_transpose", "ravel",
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
_current = [0]


class Device:
    """A device by its number; it cannot be hashed, as in CuPy."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, device: Any = None):
        self.id = _current[-1] if device is None else int(getattr(device, "id", device))
        if not 0 <= self.id < DEVICES:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self) -> Device:
        _current.append(self.id)
        return self

    def __exit__(self, *error: Any) -> None:
        _current.pop()

    def use(self) -> None:
        _current[-1] = self.id

    def synchronize(self) -> None:
        counts.reads += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Flags:
    """In which order an array lies; not whether it may be written to."""

    def __init__(self, host: np.ndarray):
        self.c_contiguous, self.f_contiguous = host.flags.c_contiguous, host.flags.f_contiguous
        self.owndata, self.fnc, self.forc = host.flags.owndata, host.flags.fnc, host.flags.forc


class ndarray:  # noqa: N801
    """An array on a device."""

    __array_priority__ = 100
    _host: np.ndarray
    _device: int

    def __init__(self, *arguments: Any):
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
    T = property(lambda self: made(self._host.T, self))
    mT = property(lambda self: made(self._host.mT, self))  # noqa: N815
    real = property(lambda self: made(self._host.real, self))
    imag = property(lambda self: made(self._host.imag, self))

    @property
    def data(self) -> Any:
        """As far as it is needed: where the memory of the array and its views begins."""
        host = self._host
        while isinstance(host.base, np.ndarray):
            host = host.base
        return types.SimpleNamespace(mem=types.SimpleNamespace(ptr=host.ctypes.data))

    def get(
        self, stream: Any = None, order: Any = "C", out: Any = None, blocking: Any = True
    ) -> np.ndarray:
        counts.reads += 1
        return self._host.copy()

    def item(self) -> Any:
        counts.reads += 1
        return self._host.item()

    def tolist(self) -> Any:
        counts.reads += 1
        return self._host.tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __array__(self, *arguments: Any, **more: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
        # A number of NumPy may stand on the left; anything else of NumPy is refused.
        if method != "__call__" or not all(isinstance(i, (ndarray, *_SCALARS)) for i in inputs):
            raise TypeError(f"Unsupported type {[type(i) for i in inputs]}")
        return _launch(ufunc, *inputs)

    def __array_function__(self, function: Any, kinds: Any, args: Any, more: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with an array of CuPy")

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self.get())

    def __getitem__(self, index: Any) -> ndarray:
        if _is_view(index):
            return made(self._host[index], self)
        return _launch(lambda a, i: a[i], self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for assignment")
        counts.launches += 1
        hosts_of(self)[hosts_of(index)] = hosts_of(value)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def __reduce__(self) -> Any:
        return _unpickled, (self.get(), self._device)


def _unpickled(host: np.ndarray, device: int) -> ndarray:
    with Device(device):
        return asarray(host)


def made(host: Any, base: ndarray | None = None) -> ndarray:
    """An array on the current device, or a view of `base`."""
    new = object.__new__(ndarray)
    new._host = np.asarray(host)
    new._device = _current[-1] if base is None else base._device
    new.base = base
    return new


def _is_view(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        p is None or p is Ellipsis or isinstance(p, (int, slice, np.integer)) for p in parts
    )


def hosts_of(value: Any) -> Any:
    """The arguments of an operation: arrays on the current device, and numbers."""
    if isinstance(value, ndarray):
        if value._device != _current[-1]:
            raise ValueError(
                "The device where the array resides is different from the current device: "
                f"array device = {value._device} while current = {_current[-1]}"
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


def _launch(function: Callable, *arguments: Any, **more: Any) -> Any:
    counts.launches += 1
    out = more.pop("out", None)
    hosts = [hosts_of(a) for a in arguments]
    options = {name: hosts_of(value) for name, value in more.items() if value is not None}
    with np.errstate(all="ignore"):
        if out is None:
            return _devices(function(*hosts, **options))
        function(*hosts, out=hosts_of(out), **options)
    return out


# --- functions, ufuncs and methods, from the list ----------------------------------------------

_KINDS = {
    0: inspect.Parameter.POSITIONAL_ONLY,
    1: inspect.Parameter.POSITIONAL_OR_KEYWORD,
    2: inspect.Parameter.VAR_POSITIONAL,
    3: inspect.Parameter.KEYWORD_ONLY,
    4: inspect.Parameter.VAR_KEYWORD,
}


def signature_of(parameters: list[list[Any]]) -> inspect.Signature:
    """The signature of a function, from its entry in the list."""
    return inspect.Signature([
        inspect.Parameter(
            name, _KINDS[kind],
            default=None if optional and kind in (0, 1, 3) else inspect.Parameter.empty,
        )
        for name, kind, optional in parameters
    ])


def _function(name: str, function: Callable, parameters: list[list[Any]]) -> Callable:
    """A function of NumPy with the parameters of CuPy's."""
    signature = signature_of(parameters)

    def call(*arguments: Any, **more: Any) -> Any:
        signature.bind(*arguments, **more)
        return _launch(function, *arguments, **{k: v for k, v in more.items() if k != "blocking"})

    call.__name__, call.__signature__ = name, signature  # type: ignore[attr-defined]
    return _free(call) if name in _NOT_LAUNCHED else call


def _free(function: Callable) -> Callable:
    """A function that launches nothing."""

    @functools.wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        found = function(*arguments, **more)
        counts.launches -= 1
        return found

    return call


def _ufunc(name: str, function: np.ufunc) -> Callable:
    def call(*arguments: Any, out: Any = None, dtype: Any = None, casting: Any = None) -> Any:
        if len(arguments) > function.nin + function.nout:
            raise TypeError(f"{name} takes {function.nin} arrays")
        if len(arguments) > function.nin:
            *arguments, out = arguments  # type: ignore[assignment]
        return _launch(function, *arguments, out=out, dtype=dtype)

    call.__name__ = name
    return call


def _fill(module: Any, names: dict[str, Any], source: Any) -> None:
    for name, parameters in names.items():
        found = getattr(source, name, None)
        if name.startswith("_") or name in vars(module) or found is None:
            continue
        if isinstance(found, np.ufunc):
            setattr(module, name, _ufunc(name, found))
        elif isinstance(found, type) or not callable(found):
            setattr(module, name, found)
        elif parameters is not None:
            setattr(module, name, _function(name, found, parameters))


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


def _method(name: str, method: Callable) -> Callable:
    def call(self: ndarray, *arguments: Any, **more: Any) -> Any:
        found = _launch(method, self, *arguments, **more)
        if name in _NOT_LAUNCHED:
            counts.launches -= 1
            found.base = self
        return found

    return call


def _fill_array() -> None:
    for short, name in _BINARY.items():
        for prefix in ("", "r", "i"):
            if f"__{prefix}{short}__" in API["ndarray"]:
                operate = _binary(getattr(np, name), prefix)
                setattr(ndarray, f"__{prefix}{short}__", operate)
    for short, name in _UNARY.items():
        ufunc = getattr(np, name)
        setattr(ndarray, f"__{short}__", lambda self, ufunc=ufunc: _launch(ufunc, self))
    ndarray.__hash__ = None  # type: ignore[assignment]
    for name in API["ndarray"]:
        method = getattr(np.ndarray, name, None)
        if not name.startswith("_") and name not in vars(ndarray) and callable(method):
            setattr(ndarray, name, _method(name, method))


# --- what is made by hand ----------------------------------------------------------------------


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: Any = False
) -> ndarray:
    if isinstance(a, ndarray):
        if a._device != _current[-1]:
            counts.launches += 1
            return made(a._host.astype(a.dtype if dtype is None else dtype))
        if copy or (dtype is not None and a.dtype != dtype):
            return _launch(lambda host: np.array(host, dtype=dtype), a)
        return a
    if isinstance(a, (list, tuple)):
        a = [item.get() if isinstance(item, ndarray) else item for item in a]
    host = np.array(a, dtype=dtype)
    if host.dtype == object:
        raise ValueError(f"Unsupported dtype {host.dtype}")
    counts.uploads += 1
    return made(host)


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
        getDeviceCount=lambda: DEVICES, getDevice=lambda: _current[-1]
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
    _fill(module.linalg, API["linalg"], np.linalg)
    _fill(module, API["top"], np)
    for name in ("cuda", "linalg", "fft"):
        sys.modules[f"cupy.{name}"] = getattr(module, name)
    _fill_array()
