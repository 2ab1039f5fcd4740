"""The one file that names an array library.

Everything a library does in a way of its own is here: how its arrays reach the host, how a row of a
buffer is overwritten, how a function is differentiated or compiled. All other modules work on any
namespace of the Python array API standard. A library is imported only when the user already has.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat as compat
import array_api_extra as xpx
import numpy as np

Array = Any
Namespace = Any

_MODULES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax",
    "cupy": "cupy",
    "dask": "dask.array",
    "array_api_strict": "array_api_strict",
}


# Elements of an array that fits in the cache of one core.
_CACHED = 2**17
_PIECE = 2**14


def is_array(value: object) -> bool:
    """Whether `value` is an array of a library that follows the standard."""
    return compat.is_array_api_obj(value)


def is_true(outcome: Any) -> bool:
    """Whether a callback has returned True, or a truth value of an array library."""
    if is_array(outcome) and outcome.ndim == 0:
        return bool(outcome)
    return outcome is True


class Backend:
    """One array library, one device, one real floating-point dtype.

    Attributes
    ----------
    name : str
        "numpy", "torch", "jax", "cupy", "array_api_strict" or the name of another library.
    xp : namespace
        The library's namespace, made standard by array-api-compat.
    device, dtype
        Where the arrays live, and the dtype of their real and imaginary parts.
    complex : bool
        Whether the array that was given is complex.
    noise : float
        The relative change of a value that rounding may hide.
    reads_are_free : bool
        Whether reading a number costs next to nothing. On JAX it does not, even on the CPU.
    eps, largest : float
        The distance from 1 to the next number of the dtype; its largest number.
    mutable : bool
        Whether a row of an array can be overwritten in place.

    An array that JAX is tracing has neither values nor a device; it will do where `traced`.
    """

    def __init__(self, array: Array, traced: bool = False):
        if _is_traced(array) and not traced:
            raise TypeError(
                "x0 is traced (by jax.jit, grad or vmap); wanted an array with values: the loop "
                "of a minimisation runs in Python, so call it outside of compiled functions, and "
                "use batched=True in place of vmap"
            )
        self.xp: Namespace = compat.array_namespace(array)
        self.name = _library(self.xp)
        self.device = compat.device(array)
        self.complex, self.eps, self.largest = _limits(self.xp, array.dtype)
        # How much rounding alone may change a value, relative to it.
        self.noise = 16.0 * self.eps
        self.dtype = self.xp.real(array).dtype if self.complex else array.dtype
        self._key = (self.name, str(self.dtype), str(self.device))
        self.mutable = self.name not in ("jax", "dask")
        self.reads_are_free = self.name == "numpy" or (
            self.name == "torch" and array.device.type == "cpu"
        )

    @staticmethod
    def name_of(array: Array) -> str:
        """The name of the library of `array`."""
        return _library(compat.array_namespace(array))

    @staticmethod
    def device_of(array: Array) -> Any:
        return compat.device(array)

    def holds(self, array: Array) -> bool:
        """Whether an array of this library lies on this device."""
        return self.name == "numpy" or self.device in (None, compat.device(array))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backend) and self._key == other._key

    def __reduce__(self) -> tuple[Any, ...]:
        # Modules cannot be pickled; an array knows its own.
        return Backend, (self.zeros(()),)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Backend({self.name}, {self.dtype}, {self.device})"

    @property
    def compiles(self) -> bool:
        """Whether `jit` does anything."""
        return self.name == "jax"

    @property
    def is_numpy(self) -> bool:
        return self.name == "numpy"

    def max_abs(self, array: Array) -> Array:
        """The largest absolute element along the last axis; nan where there is one."""
        if self.name != "numpy":
            return self.xp.max(self.xp.abs(array), axis=-1)
        # Without the wrappers of np.max, and without a temporary that outgrows the cache.
        if array.size < _CACHED:
            return np.maximum.reduce(np.abs(array), axis=-1)
        low, high = np.minimum.reduce(array, axis=-1), np.maximum.reduce(array, axis=-1)
        return np.maximum(high, -low)

    # --- between the host and the device -------------------------------------------------------

    def to_host(self, array: Array) -> np.ndarray:
        """A NumPy copy or view of `array`: the only way by which data reach the host."""
        if self.name == "numpy":
            return np.asarray(array)
        if self.name == "torch":
            return array.detach().cpu().numpy()
        if self.name == "cupy":
            return array.get()
        if self.name == "array_api_strict":
            return np.asarray(array.to_device(self.xp.Device("CPU_DEVICE")))
        return np.asarray(array)

    def from_host(self, values: np.ndarray, dtype: Any = None) -> Array:
        """`values` as an array of this library on this device, of this dtype unless told."""
        dtype = self.dtype if dtype is None else dtype
        if self.name == "numpy":
            return np.asarray(values, dtype=dtype)
        if self.name == "jax":
            # asarray with a device takes ten times as long.
            return sys.modules["jax"].device_put(values.astype(dtype), self.device)
        return self.xp.asarray(values, dtype=dtype, device=self.device)

    def adopt(self, values: Any, what: str) -> Array:
        """Numbers, lists, NumPy arrays, or arrays of this library and device, in this dtype.

        Errors name them `what`.
        """
        if isinstance(values, (np.ndarray, np.generic)) or not is_array(values):
            try:
                host = np.array(values)
            except ValueError as error:
                raise ValueError(f"{what} is a ragged list ({error}); wanted numbers") from None
            if host.dtype.kind not in "iuf":
                raise TypeError(f"{what} is {values!r}; wanted real numbers")
            return self.from_host(host)
        if (library := self.name_of(values)) != self.name:
            raise TypeError(
                f"{what} is an array of {library}; wanted one of {self.name}, like x, or of NumPy"
            )
        if not self.holds(values):
            raise ValueError(
                f"{what} is on device {compat.device(values)}; wanted {self.device}, like x"
            )
        if not self.xp.isdtype(values.dtype, ("real floating", "integral")):
            raise TypeError(f"{what} has dtype {values.dtype}; wanted real numbers")
        return self.xp.astype(values, self.dtype, copy=False)

    def read(self, numbers: Sequence[Array]) -> list[float]:
        """Several 0-d arrays as floats: one transfer where the arrays live on a device."""
        if self.reads_are_free:
            return [float(number) for number in numbers]
        arrays = [number for number in numbers if is_array(number)]
        found = iter(self.to_host(self.join(arrays)).tolist() if arrays else ())
        return [next(found) if is_array(number) else float(number) for number in numbers]

    def join(self, parts: Sequence[Array]) -> Array:
        """0-d and 1-d arrays, end to end, in this dtype and on this device."""
        xp = self.xp
        flat = [
            xp.reshape(xp.astype(part, self.dtype, copy=False), (-1,)) for part in parts
        ]
        return xp.concat(flat)

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        return self.xp.full(shape, value, dtype=self.dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return self.xp.zeros(shape, dtype=self.dtype, device=self.device)

    # --- buffers -------------------------------------------------------------------------------

    def write_row(self, buffer: Array, index: int, row: Array) -> Array:
        """`buffer` (k, n) with row `index` overwritten, in place where the library allows."""
        if self.mutable:
            buffer[index, :] = row
            return buffer
        if self.name == "jax":
            return _jax_write_row()(buffer, index, row)
        return xpx.at(buffer, (index, ...)).set(row)

    def write_difference(self, buffer: Array, index: int, a: Array, b: Array) -> Array:
        """`buffer` (k, n) with row `index` overwritten by a - b."""
        if self.name != "numpy":
            return self.write_row(buffer, index, a - b)
        np.subtract(a, b, buffer[index])
        return buffer

    def subtract_scaled(self, u: Array, factor: Any, v: Array) -> Array:
        """u - factor v, in place of u where the library allows."""
        if self.name != "numpy" or u.size < _CACHED:
            u -= factor * v
            return u
        # In pieces, so that the product does not leave the cache.
        for i in range(0, u.shape[0], _PIECE):
            piece = u[i : i + _PIECE]
            np.subtract(piece, factor * v[i : i + _PIECE], out=piece)
        return u

    def write_rows(self, buffer: Array, index: Array, rows: Array, mask: Array) -> Array:
        """`buffer` (B, k, n) with buffer[b, index[b]] = rows[b] wherever mask[b]."""
        xp = self.xp
        if self.name in ("numpy", "torch", "cupy", "jax"):
            each = xp.arange(buffer.shape[0], device=self.device)
            kept = xp.where(mask[:, None], rows, buffer[each, index])
            if self.name == "jax":
                return buffer.at[each, index].set(kept)
            buffer[each, index] = kept
            return buffer
        places = xp.arange(buffer.shape[1], device=self.device)
        here = (places[None, :] == index[:, None]) & mask[:, None]
        return xp.where(here[:, :, None], rows[:, None, :], buffer)

    @staticmethod
    def copy(array: Array) -> Array:
        """A copy of an array of any library."""
        xp = compat.array_namespace(array)
        return array.clone() if compat.is_torch_namespace(xp) else xp.asarray(array, copy=True)

    def constant(self, value: Any) -> Any:
        """`value` without the record that autograd keeps of how it came about."""
        return value.detach() if self.name == "torch" and is_array(value) else value

    def own(self, array: Array) -> Array:
        """`array`, or a copy where someone else could change it in place."""
        if self.name == "numpy":
            return array.copy()
        if self.name == "torch":
            return array.detach().clone()
        return self.xp.asarray(array, copy=True) if self.mutable else array

    # --- compiling, differentiating ------------------------------------------------------------

    def jit(self, function: Callable, *static: Any, donate: int | None = None) -> Callable:
        """`function` with its first arguments `static`: compiled by JAX, elsewhere as it is.

        What is compiled once serves every later call with equal (hashable) static arguments. The
        argument at position `donate` may be overwritten.
        """
        if self.name == "jax":
            function = _jax_jit(function, len(static), donate)
        return functools.partial(function, *static) if static else function

    @property
    def differentiates(self) -> bool:
        return self.name in ("torch", "jax")

    def value_and_gradient(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        """(args, x) -> (value, gradient, aux) by automatic differentiation.

        `evaluate(fun, *static, args, x)` gives (value, aux). For a batch the value holds one number
        for each row; the rows being independent, the gradient of the sum holds the gradient of
        each. Where `fun` is compiled by JAX, so is the whole, once for all calls.
        """
        if self.name == "torch":
            return functools.partial(_torch_gradient, evaluate, fun, *static)
        if self.is_compiled(fun):
            return self.jit(_jax_gradient, evaluate, fun, *static)
        return functools.partial(_jax_gradient, evaluate, fun, *static)

    @staticmethod
    def is_compiled(fun: Callable) -> bool:
        """Whether `fun` is the outcome of jax.jit, and so a pure function by its author's word."""
        return hasattr(fun, "lower") and hasattr(fun, "trace")


@functools.cache
def _limits(xp: Namespace, dtype: Any) -> tuple[bool, float, float]:
    """Whether the dtype is complex; eps and the largest number of its parts."""
    is_complex = xp.isdtype(dtype, "complex floating")
    if not is_complex and not xp.isdtype(dtype, "real floating"):
        raise TypeError(f"x0 has dtype {dtype}; wanted a real or complex floating-point dtype")
    limits = xp.finfo(dtype)
    if limits.bits < 32:
        raise TypeError(f"x0 has dtype {dtype}; wanted one of at least 32 bits, such as float32")
    return is_complex, float(limits.eps), float(limits.max)


@functools.cache
def _library(xp: Namespace) -> str:
    if compat.is_numpy_namespace(xp):
        return "numpy"
    if compat.is_torch_namespace(xp):
        return "torch"
    if compat.is_jax_namespace(xp):
        return "jax"
    if compat.is_cupy_namespace(xp):
        return "cupy"
    if compat.is_dask_namespace(xp):
        return "dask"
    return xp.__name__.rsplit(".", maxsplit=1)[-1]


def _is_traced(array: Array) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


@functools.lru_cache(maxsize=64)
def _jax_jit(function: Callable, static: int, donate: int | None) -> Callable:
    jax = importlib.import_module("jax")
    donated = () if donate is None else (donate,)
    return jax.jit(function, static_argnums=tuple(range(static)), donate_argnums=donated)


@functools.cache
def _jax_write_row() -> Callable:
    jax = importlib.import_module("jax")
    return jax.jit(lambda buffer, index, row: buffer.at[index].set(row), donate_argnums=0)


def _torch_gradient(evaluate: Callable, *arguments: Any) -> tuple[Array, Array, Any]:
    torch = sys.modules["torch"]
    *rest, x = arguments
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "minimize was called under torch.inference_mode, which forbids autograd; wanted a call "
            "outside of it, or jac= a function or True"
        )
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value, aux = evaluate(*rest, x)
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            raise TypeError(
                f"fun returned a value ({type(value).__name__}) that does not depend on x through "
                "torch operations, so autograd finds no gradient; wanted a tensor made from x, or "
                "jac= a function or True"
            )
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient, aux


def _jax_gradient(evaluate: Callable, *arguments: Any) -> tuple[Array, Array, Any]:
    jax = importlib.import_module("jax")
    *rest, x = arguments

    def total(x: Array) -> tuple[Array, tuple[Array, Any]]:
        value, aux = evaluate(*rest, x)
        if not is_array(value):
            raise TypeError(
                f"fun returned a {type(value).__name__}, which does not depend on x; wanted an "
                "array made from x, or jac= a function or True"
            )
        return value.sum(), (value, aux)

    (_, (value, aux)), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return value, gradient, aux


# --- what is installed -------------------------------------------------------------------------


def installed() -> dict[str, str]:
    """The array libraries that can be imported, with their versions."""
    found = {}
    for name, module in _MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        distribution = module.split(".")[0]
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            # CuPy's wheels carry the CUDA version in their name.
            found[name] = getattr(sys.modules[distribution], "__version__", "unknown")
    return found


def samples(name: str) -> list[tuple[str, Array]]:
    """One small float array on each device of library `name`, with the device's name."""
    one = [1.0, 1.0]
    if name == "torch":
        torch = importlib.import_module("torch")
        places = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        return [(d, torch.asarray(one, dtype=torch.float64, device=d)) for d in places]
    if name == "jax":
        jax = importlib.import_module("jax")
        wide = jax.config.jax_enable_x64
        dtype = jax.numpy.float64 if wide else jax.numpy.float32
        devices = list(jax.local_devices(backend="cpu"))
        if jax.default_backend() != "cpu":
            devices += jax.local_devices()
        return [
            (
                f"{d.platform}:{d.id}",
                jax.device_put(jax.numpy.asarray(one, dtype=dtype), d),
            )
            for d in devices
        ]
    if name == "cupy":
        cupy = importlib.import_module("cupy")
        found = []
        for i in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(i):
                found.append((f"cuda:{i}", cupy.asarray(one)))
        return found
    xp = importlib.import_module(_MODULES[name])
    if name == "array_api_strict":
        return [
            (str(d), xp.asarray(one, dtype=xp.float64, device=xp.Device(d)))
            for d in ("CPU_DEVICE", "device1")
        ]
    return [("cpu", xp.asarray(one))]
