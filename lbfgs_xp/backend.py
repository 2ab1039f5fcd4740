"""The one file that names an array library.

Everything a library does in a way of its own is here: how its arrays reach the host, how a row of a
buffer is overwritten, how a function is differentiated or compiled. All other modules work on any
namespace of the Python array API standard. A library is imported only when the user already has.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat as compat
import array_api_compat.numpy as compat_numpy
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
# Numbers of a row below which NumPy's loops run along many rows rather than along each.
NARROW = 32


def is_array(value: object) -> bool:
    """Whether `value` is an array of a library that follows the standard."""
    return isinstance(value, np.ndarray) or compat.is_array_api_obj(value)


def described(out: object) -> str:
    """What a user's function has returned, for a message."""
    if is_array(out):
        return f"an array of shape {tuple(out.shape)}"  # type: ignore[attr-defined]
    if isinstance(out, tuple):
        return f"a tuple of {len(out)}"
    return f"a {type(out).__name__}"


def check_like(name: str, out: Any, like: Array) -> None:
    """Refuses what the user's function of this name has returned if it is not an array of the shape
    and dtype of its argument `like`."""
    if is_array(out) and (out.shape, out.dtype) == (like.shape, like.dtype):
        return
    what = f"{out.dtype} {tuple(out.shape)}" if is_array(out) else repr(out)
    raise ValueError(
        f"{name} returned {what}; wanted {like.dtype} {tuple(like.shape)}, like its argument"
    )


def is_true(outcome: Any) -> bool:
    """Whether a callback has returned True, or a truth value of an array library."""
    if is_array(outcome) and outcome.ndim == 0:
        return bool(outcome)
    return outcome is True


def compiled(array: Array, function: Callable) -> Callable:
    """`function` of arrays like this one: compiled by JAX, elsewhere as it is."""
    return _jax_jit(function, 0, ()) if compat.is_jax_array(array) else function


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
    placement
        The device as creation functions are to be told. None for arrays of JAX that lie on its
        default device without being bound to it: new ones shall be as free, for all functions,
        those of the user too, are compiled once more for bound ones. None as well for arrays that
        are spread over several devices, to which JAX brings what is not bound.
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

    def __init__(self, array: Array, what: str = "x0", traced: bool = False):
        if _is_traced(array) and not traced:
            raise TypeError(
                f"{what} is traced (by jax.jit, grad or vmap); wanted an array with values: call "
                "lbfgs_xp outside of compiled functions (its loops run in Python; what can be "
                "compiled, it compiles itself), and use batched=True in place of vmap"
            )
        self.xp: Namespace = _namespace(array)
        self.name = _library(self.xp)
        self.device = compat.device(array)
        self._devices = array.devices() if _is_of_jax(array) else None
        self.placement = None if _is_free(array) else self.device
        self.complex, self.eps, self.largest = _limits(self.xp, array.dtype, what)
        # How much rounding alone may change a value, relative to it.
        self.noise = 16.0 * self.eps
        self.dtype = self.xp.real(array).dtype if self.complex else array.dtype
        self.mutable = self.name not in ("jax", "dask")
        self.reads_are_free = self.name == "numpy" or (
            self.name == "torch" and array.device.type == "cpu"
        )

    @staticmethod
    def name_of(array: Array) -> str:
        """The name of the library of `array`."""
        return _library(_namespace(array))

    def holds(self, array: Array) -> bool:
        """Whether an array of this library lies on this device, or is free to be brought here."""
        if self._devices is not None and _is_of_jax(array):
            return not _is_bound(array) or array.devices() == self._devices
        return self.name == "numpy" or self.device in (None, compat.device(array))

    def check_place(self, array: Array, what: str, like: str = "x0") -> None:
        """A clear error where an array of this library, `what`, lies on another device.

        `like` is what the error names as the one that lies on this device.
        """
        if _is_traced(array):
            raise TypeError(
                f"{what} is traced (by jax.jit, grad or vmap) through what the function closes "
                "over; wanted arrays with values: call lbfgs_xp outside of compiled functions"
            )
        if not self.holds(array):
            raise ValueError(
                f"{what} is on device {compat.device(array)}; wanted {self.device}, like {like}"
            )

    def check_precision(self, value: Any, function: str) -> None:
        """A clear error where `function` returned fewer digits than finite differences need."""
        xp = np if isinstance(value, np.generic) else self.xp
        if xp.isdtype(value.dtype, "real floating") and xp.finfo(value.dtype).eps > self.eps:
            raise TypeError(
                f"{function} returned {value.dtype}; wanted {self.dtype}, like x0: finite "
                f"differences of steps for {self.dtype} drown in the rounding of {value.dtype}"
            )

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        return self.name, str(self.dtype), self.complex, str(self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backend) and self._key == other._key

    def __reduce__(self) -> tuple[Any, ...]:
        # Modules cannot be pickled; an array knows its own.
        return Backend, (self.zeros(()) + (0j if self.complex else 0.0),)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Backend({self.name}, {self.dtype}, {self.device})"

    @property
    def compiles(self) -> bool:
        """Whether `jit` does anything."""
        return self.name == "jax"

    @property
    def near(self) -> int:
        """Numbers of an array that is worked on piece by piece: few enough to stay in the caches,
        many enough that calls cost little beside the work."""
        if self.name == "numpy":
            return 2**20
        on_cpu = self.reads_are_free or "cpu" in str(self.device).lower()
        return 2**22 if on_cpu else 2**28

    @property
    def is_numpy(self) -> bool:
        return self.name == "numpy"

    def max_abs(self, array: Array) -> Array:
        """The largest absolute element along the last axis; nan where there is one."""
        if self.is_numpy and _is_narrow(array.shape):
            return np.maximum.reduce(np.asfortranarray(np.abs(array)), axis=-1)
        if self.name != "numpy" or array.ndim != 1:
            return self.xp.max(self.xp.abs(array), axis=-1)
        # No temporary, and arguments come faster than values. Both are the place of a nan.
        high, low = abs(array[array.argmax()]), abs(array[array.argmin()])
        return low if low > high else high

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
            return sys.modules["jax"].device_put(values.astype(dtype), self.placement)
        return self.xp.asarray(values, dtype=dtype, device=self.placement)

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
        values = self.placed(values, what)
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

    def read_many(self, numbers: Sequence[Any]) -> list[float]:
        """`read` of very many numbers, of any device: one wait, and nothing compiled for their
        count."""
        if self.reads_are_free:
            return self.read(numbers)
        if not self.compiles:
            return self.read(
                [compat.to_device(n, self.device) if is_array(n) else n for n in numbers]
            )
        for number in numbers:
            if is_array(number):
                number.copy_to_host_async()
        return [float(self.to_host(n)) if is_array(n) else float(n) for n in numbers]

    def join(self, parts: Sequence[Array]) -> Array:
        """0-d and 1-d arrays, end to end, in this dtype and on this device."""
        xp = self.xp
        flat = [
            xp.reshape(xp.astype(part, self.dtype, copy=False), (-1,)) for part in parts
        ]
        return xp.concat(flat)

    def rows(
        self, arrays: list[Array], order: Array | None, start: int, stop: int
    ) -> list[Array]:
        """Of each array the rows order[start:stop], or, without an order, [start:stop]."""
        if self.name == "jax":
            return _jax_rows()(arrays, order, start, stop - start)
        if order is None:
            return [array[start:stop, ...] for array in arrays]
        chosen = order[start:stop]
        if self.name == "torch":
            return [array[chosen] for array in arrays]
        return [self.xp.take(array, chosen, axis=0) for array in arrays]

    @staticmethod
    def take(array: Array, order: Array) -> Array:
        """The rows array[order] of an array of any library; `order` is of the same."""
        if isinstance(array, np.ndarray):
            if array.ndim > 1 and array.flags.f_contiguous:
                return array.T.take(order, axis=-1).T
            return array.take(order, axis=0)
        xp = _namespace(array)
        return array[order] if compat.is_torch_namespace(xp) else xp.take(array, order, axis=0)

    def rows_of(self, array: Array, order: Array) -> Array:
        """`take` from an array of any library, by numbers of this one."""
        if type(array) is not type(order) or not self.holds(array):
            xp, host = _namespace(array), self.to_host(order)
            order = host if isinstance(array, np.ndarray) else xp.asarray(
                host, device=compat.device(array)
            )
        return self.take(array, order)

    def order(self, indices: np.ndarray) -> Array:
        """Indices of the host as an integer array of this library on this device."""
        return self.from_host(indices, self.xp.asarray(0).dtype)

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        return self.xp.full(shape, value, dtype=self.dtype, device=self.placement)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        if self.name == "numpy":
            return np.zeros(shape, self.dtype)
        return self.xp.zeros(shape, dtype=self.dtype, device=self.placement)

    def keep_memory(self) -> None:
        """Makes glibc keep the memory of arrays up to 32 MiB in the process, for all its threads.

        It learns from the largest block that was freed. Otherwise it gives large arrays back to the
        system as soon as they are dropped, and fetching the pages again costs more than arithmetic.
        """
        if self.name == "numpy":
            np.empty(2**25 - 2**14, np.uint8)

    # --- buffers -------------------------------------------------------------------------------

    def write_row(self, buffer: Array, index: int, row: Array) -> Array:
        """`buffer` (k, n) with row `index` overwritten, in place where the library allows."""
        if self.mutable:
            buffer[index, :] = row
            return buffer
        if self.name == "jax":
            return _jax_jit(_jax_write_row, 0, (0,))(buffer, index, row)
        return xpx.at(buffer, (index, ...)).set(row)

    def write_pair(self, buffer: Array, index: int, s: Array, new: Array, old: Array) -> Array:
        """`buffer` (2m, n) with row `index` overwritten by s, row m + index by new - old."""
        other = index + buffer.shape[0] // 2
        if self.name not in ("numpy", "torch"):
            return self.write_row(self.write_row(buffer, index, s), other, new - old)
        buffer[index] = s
        self.xp.subtract(new, old, out=buffer[other])
        return buffer

    def subtract_scaled(self, u: Array, factor: Any, v: Array) -> Array:
        """u - factor v, in place of u where the library allows."""
        if self.name != "numpy" or u.ndim > 1 or u.size < _CACHED:
            u -= v * factor
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
            each = xp.arange(buffer.shape[0], device=self.placement)
            kept = xp.where(mask[:, None], rows, buffer[each, index])
            if self.name == "jax":
                return buffer.at[each, index].set(kept)
            buffer[each, index] = kept
            return buffer
        places = xp.arange(buffer.shape[1], device=self.placement)
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
        """`array`, or a copy where someone else could change it in place.

        The copy of many short rows of NumPy is in Fortran's order: an operation then runs along all
        of them, not along each.
        """
        if self.name == "numpy":
            return array.copy("F" if _is_narrow(array.shape) else "C")
        if self.name == "torch":
            torch = sys.modules["torch"]
            return array.detach().clone(memory_format=torch.contiguous_format)
        return self.xp.asarray(array, copy=True) if self.mutable else self._bound(array)

    def placed(self, array: Array, what: str) -> Array:
        """`array` where new ones are, or the error of `check_place`."""
        self.check_place(array, what)
        return self._bound(array)

    def _bound(self, array: Array) -> Array:
        """`array`, bound to this device where new ones are. JAX takes what is not bound to its
        default device, wherever it lies."""
        if self.name != "jax" or self.placement is None or _is_bound(array):
            return array
        return sys.modules["jax"].device_put(array, self.placement)

    def at_home(self) -> contextlib.AbstractContextManager[Any]:
        """A context for threads, to which JAX does not hand on its default device."""
        if self._devices is None or self.placement is not None or len(self._devices) > 1:
            return contextlib.nullcontext()
        return sys.modules["jax"].default_device(*self._devices)

    def memory(self, array: Array) -> Any:
        """What two arrays have in common if they may lie in the same memory."""
        if self.name == "numpy":
            while isinstance(array.base, np.ndarray):
                array = array.base
        elif self.name == "torch" and array.layout is sys.modules["torch"].strided:
            return array.untyped_storage().data_ptr()
        elif self.name == "cupy":
            return array.data.mem.ptr
        return id(array)

    # --- one array, whatever its shape, as real numbers in a row -------------------------------

    @property
    def shares_memory(self) -> bool:
        """Whether NumPy can work on the very memory of an array."""
        return self.reads_are_free

    def real_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `to_real` of an array of this shape."""
        return (*shape, 2) if self.complex else shape

    def to_real(self, array: Array) -> Array:
        """A real array as it is; a complex one (...) as its parts (..., 2)."""
        array, xp = self.constant(array), self.xp
        if not self._is_complex(array.dtype):
            return array
        return xp.stack([xp.real(array), xp.imag(array)], axis=-1)

    def from_real(self, array: Array, dtype: Any) -> Array:
        """The other way, to an array of this dtype."""
        if not self._is_complex(dtype):
            return array
        re, im = (self.xp.astype(array[..., i], dtype) for i in (0, 1))
        return re + im * 1j

    def _is_complex(self, dtype: Any) -> bool:
        return self.complex and self.xp.isdtype(dtype, "complex floating")

    def vector(self, array: Array) -> Array:
        """All its real numbers, in one row."""
        return self.xp.reshape(self.to_real(array), (-1,))

    def flat_view(self, array: Array) -> np.ndarray:
        """`vector` for NumPy: of the same memory where that is contiguous, else a copy."""
        if self.name == "torch":
            torch = sys.modules["torch"]
            if array.layout is not torch.strided:
                raise TypeError(f"an array has the layout {array.layout}; wanted a dense one")
            array = array.detach()
            if array.is_complex():
                array = torch.view_as_real(array.resolve_conj())
            return array.resolve_neg().numpy().reshape(-1)
        array = array.reshape(-1)
        return array.view(self.dtype) if array.dtype.kind == "c" else array

    def writable(self, array: Array) -> bool:
        """Whether each element has memory of its own, that may be overwritten."""
        if self.name == "torch":
            return all(s != 0 or n < 2 for s, n in zip(array.stride(), array.shape, strict=True))
        return self.name != "numpy" or (isinstance(array, np.ndarray) and array.flags.writeable)

    def overlap(self, a: Array, b: Array) -> bool:
        """Whether two arrays may share elements."""
        if self.memory(a) != self.memory(b):
            return False
        if not (self.shares_memory and self.overwritable(a) and self.overwritable(b)):
            return True
        return np.may_share_memory(self.flat_view(a), self.flat_view(b))

    def touched(self, array: Array) -> None:
        """Tells autograd that the memory of an array was written past it."""
        if self.name == "torch":
            array.detach().reshape(-1)[:0].zero_()

    def overwritable(self, array: Array) -> bool:
        """Whether `flat_view` leads to the memory of the array."""
        if self.name == "torch":
            return array.is_contiguous() and not (array.is_conj() or array.is_neg())
        return array.flags.c_contiguous and array.flags.writeable

    def overwrite(self, array: Array, new: Array) -> Array:
        """`new`, written over `array` in place where the library allows."""
        if not self.mutable:
            return new
        self.constant(array)[...] = new
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype=dtype, device=self.placement)

    @staticmethod
    def tracked(array: Array, like: Array) -> Array:
        """`array`, recorded by autograd where `like` is."""
        if getattr(like, "requires_grad", False) and not array.requires_grad:
            array.requires_grad_(True)
        return array

    # --- compiling, differentiating ------------------------------------------------------------

    def jit(self, function: Callable, *static: Any, donate: tuple[int, ...] = ()) -> Callable:
        """`function` with its first arguments `static`: compiled by JAX, elsewhere as it is.

        What is compiled once serves every later call with equal (hashable) static arguments. The
        arguments at the positions `donate` may be overwritten.
        """
        if self.name == "jax":
            function = _jax_jit(function, len(static), donate)
        return functools.partial(function, *static) if static else function

    @property
    def fuses(self) -> bool:
        """Whether `elementwise` is there: a kernel of a text in C++."""
        return self.name == "cupy"

    def elementwise(self, inputs: str, outputs: str, body: str) -> Callable:
        """The kernel that computes `body` for each element of its arrays."""
        return _cupy_elementwise(inputs, outputs, body)

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

    def value_and_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        """(leaves, batch) -> (value, gradients), one for each leaf, by automatic differentiation.

        `evaluate(*static, leaves, batch)` gives the value, a 0-d array. For complex leaves the
        gradients are df/d(re) + i df/d(im). JAX compiles the whole where `compiled`.
        """
        if self.name == "torch":
            return functools.partial(_torch_gradients, evaluate, *static)
        if compiled:
            return functools.partial(
                _jax_compiled, self.jit(_jax_gradients, len(static), evaluate, *static)
            )
        return functools.partial(_jax_gradients, len(static), evaluate, *static)

    def hessian(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        """(args, x) -> the matrices (..., n, n), by differentiating twice.

        The arguments are those of `value_and_gradient`. Rows of a batch being independent, row i of
        each problem's matrix is the gradient of the sum of the i-th components of all gradients.
        """
        if self.name == "torch":
            return functools.partial(_torch_hessian, evaluate, fun, *static)
        if self.is_compiled(fun):
            return self.jit(_jax_hessian, evaluate, fun, *static)
        return functools.partial(_jax_hessian, evaluate, fun, *static)

    def jacobian(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        """(args, x) -> the Jacobian (..., m, p), by forward differentiation.

        `evaluate(*static, args, x)` maps vectors (..., p) to (..., m). Rows of a batch being
        independent, one direction serves all of them. JAX compiles the whole where `compiled`.
        """
        if self.name == "torch":
            return functools.partial(_torch_jacobian, evaluate, *static)
        if compiled:
            return self.jit(_jax_jacobian, evaluate, *static)
        return functools.partial(_jax_jacobian, evaluate, *static)

    def linalg(self, name: str, otherwise: str = "") -> Callable:
        """A function of the linear algebra extension of the standard; or an error that says what
        will do `otherwise`."""
        found = getattr(getattr(self.xp, "linalg", None), name, None)
        if found is None:
            raise TypeError(
                f"{self.name} has no linalg.{name}; wanted arrays of a library with the linear "
                f"algebra extension of the array API standard{otherwise}"
            )
        return found

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """Eigenvalues in ascending order and eigenvectors, as columns, of symmetric matrices."""
        eigh = self.linalg("eigh", ", or a method that needs no Hessian")
        eigenvalues, eigenvectors = eigh(matrix)
        return eigenvalues, eigenvectors

    @staticmethod
    def is_compiled(fun: Callable) -> bool:
        """Whether `fun` is the outcome of jax.jit, and so a pure function by its author's word."""
        return hasattr(fun, "lower") and hasattr(fun, "trace")


def _is_narrow(shape: tuple[int, ...]) -> bool:
    """Whether these are many short rows."""
    return len(shape) == 2 and shape[1] < NARROW and shape[1] < shape[0]


def _namespace(array: Array) -> Namespace:
    # For the most frequent type without a look at every library there is.
    return compat_numpy if type(array) is np.ndarray else compat.array_namespace(array)


@functools.cache
def _limits(xp: Namespace, dtype: Any, what: str) -> tuple[bool, float, float]:
    """Whether the dtype is complex; eps and the largest number of its parts."""
    is_complex = xp.isdtype(dtype, "complex floating")
    if not is_complex and not xp.isdtype(dtype, "real floating"):
        hint = " (1.0 in place of 1)" if xp.isdtype(dtype, "integral") else ""
        raise TypeError(
            f"{what} has dtype {dtype}; wanted a real or complex floating-point dtype{hint}"
        )
    limits = xp.finfo(dtype)
    if limits.bits < 32:
        raise TypeError(
            f"{what} has dtype {dtype}; wanted one of at least 32 bits, such as float32"
        )
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


def _is_of_jax(array: Array) -> bool:
    """Whether it is an array of JAX with values."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.Array) and not _is_traced(array)


def _is_bound(array: Array) -> bool:
    """Whether an array of JAX is bound to where it lies. What JAX is tracing lies nowhere."""
    return _is_traced(array) or getattr(array, "committed", getattr(array, "_committed", True))


def _is_free(array: Array) -> bool:
    """Whether JAX should choose where new arrays beside this one lie: it lies on the default device
    and may be moved to where others are, or it is spread over several devices."""
    if not _is_of_jax(array):
        return False
    jax, devices = sys.modules["jax"], array.devices()
    if _is_bound(array):
        return len(devices) > 1
    default = jax.config.jax_default_device
    if default is None:
        default = jax.local_devices()[0]
    return devices == {default}


@functools.lru_cache(maxsize=64)
def _jax_jit(function: Callable, static: int, donate: tuple[int, ...]) -> Callable:
    jax = importlib.import_module("jax")
    return jax.jit(function, static_argnums=tuple(range(static)), donate_argnums=donate)


def _jax_write_row(buffer: Array, index: Any, row: Array) -> Array:
    return buffer.at[index].set(row)


@functools.cache
def _jax_rows() -> Callable:
    jax = importlib.import_module("jax")

    def rows(arrays: list[Array], order: Array | None, start: int, count: int) -> list[Array]:
        if order is None:
            return [jax.lax.dynamic_slice_in_dim(array, start, count) for array in arrays]
        chosen = jax.lax.dynamic_slice_in_dim(order, start, count)
        return [jax.numpy.take(array, chosen, axis=0, mode="clip") for array in arrays]

    return jax.jit(rows, static_argnums=3)


def _torch_gradient(evaluate: Callable, *arguments: Any) -> tuple[Array, Array, Any]:
    _, value, gradient, aux = _torch_record(evaluate, *arguments)
    return value.detach(), gradient, aux


def _torch_hessian(evaluate: Callable, *arguments: Any) -> Array:
    torch = sys.modules["torch"]
    x, _, gradient, _ = _torch_record(evaluate, *arguments, twice=True)
    # A linear function has no second derivative to trace.
    if not gradient.requires_grad:
        return torch.diag_embed(torch.zeros_like(gradient))
    # The caller may be under no_grad.
    with torch.enable_grad():
        rows = [
            torch.autograd.grad(
                gradient[..., i].sum(), x, retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )[0]
            for i in range(x.shape[-1])
        ]
    return torch.stack(rows, dim=-2)


@functools.cache
def _cupy_elementwise(inputs: str, outputs: str, body: str) -> Callable:
    cupy = importlib.import_module("cupy")
    # Products and sums are not contracted, so that each rounds as it does elsewhere.
    return cupy.ElementwiseKernel(inputs, outputs, body, "lbfgs_xp", options=("--fmad=false",))


def _torch_record(
    evaluate: Callable, *arguments: Any, twice: bool = False
) -> tuple[Array, Array, Array, Any]:
    """x, value, gradient and aux; the gradient can be differentiated once more if `twice`."""
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
        (gradient,) = torch.autograd.grad(
            value.sum(), x, create_graph=twice, allow_unused=True
        )
    if gradient is None:
        raise TypeError(
            "fun returned a value that does not depend on x, though on other tensors that require "
            "a gradient; wanted a tensor made from x"
        )
    return x, value, gradient, aux


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


def _torch_gradients(evaluate: Callable, *arguments: Any) -> tuple[Array, list[Array]]:
    torch = sys.modules["torch"]
    *static, leaves, batch = arguments
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "train was called under torch.inference_mode, which forbids autograd; wanted a call "
            "outside of it, or jac= a function or True"
        )
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_(True) for leaf in leaves]
        value = evaluate(*static, leaves, batch)
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            raise TypeError(
                f"loss returned a value ({type(value).__name__}) that does not depend on params "
                "through torch operations, so autograd finds no gradient; wanted a tensor made "
                "from params, or jac= a function or True"
            )
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise TypeError(
            "loss uses none of params, so there is nothing to train: a module has parameters of "
            "its own; wanted torch.func.functional_call(module, params, ...) in the loss, with the "
            "names of module.named_parameters()"
        )
    # A parameter that the loss does not use has gradient 0.
    return value.detach(), [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


def _jax_gradients(count: int, evaluate: Callable, *arguments: Any) -> tuple[Array, list[Array]]:
    jax = importlib.import_module("jax")
    static, (leaves, batch) = arguments[:count], arguments[count:]

    def value_of(leaves: list[Array]) -> Array:
        value = evaluate(*static, leaves, batch)
        if not is_array(value):
            raise TypeError(
                f"loss returned a {type(value).__name__}, which does not depend on params; wanted "
                "an array made from params, or jac= a function or True"
            )
        return value

    value, gradients = jax.value_and_grad(value_of)(leaves)
    # JAX gives df/d(re) - i df/d(im).
    return value, [g.conj() if jax.numpy.iscomplexobj(g) else g for g in gradients]


def _jax_compiled(function: Callable, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except TypeError as error:
        error.add_note(
            "lbfgs_xp: jax.jit compiles the loss, which then takes arrays and numbers alone and "
            "has no branches on their values; compile=False runs it as it is"
        )
        raise


def _jax_hessian(evaluate: Callable, *arguments: Any) -> Array:
    jax = importlib.import_module("jax")
    *rest, x = arguments

    def total(x: Array) -> Array:
        return evaluate(*rest, x)[0].sum()

    def row(unit: Array) -> Array:
        return pull(jax.numpy.broadcast_to(unit, x.shape))[0]

    _, pull = jax.vjp(jax.grad(total), x)
    return jax.vmap(row, out_axes=-2)(jax.numpy.eye(x.shape[-1], dtype=x.dtype))


def _torch_jacobian(evaluate: Callable, *arguments: Any) -> Array:
    torch = sys.modules["torch"]
    *rest, x = arguments
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a fit was called under torch.inference_mode, which forbids autograd; wanted a call "
            'outside of it, or jac= a function, "2-point" or "3-point"'
        )
    x = x.detach()

    def column(unit: Array) -> Array:
        value, slope = torch.func.jvp(lambda x: evaluate(*rest, x), (x,), (unit.expand_as(x),))
        return slope

    with _FORWARD:
        _torch_forward()
        return torch.func.vmap(column, out_dims=-1)(torch.eye(x.shape[-1]).to(x)).detach()


# What torch keeps of forward differentiation is that of all threads together.
_FORWARD = threading.RLock()


@functools.cache
def _torch_forward() -> None:
    """What forward differentiation imports when first used, without the warnings of that."""
    torch = sys.modules["torch"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.ones(()),), (torch.ones(()),))


def _jax_jacobian(evaluate: Callable, *arguments: Any) -> Array:
    jax = importlib.import_module("jax")
    *rest, x = arguments
    _, push = jax.linearize(lambda x: evaluate(*rest, x), x)

    def column(unit: Array) -> Array:
        return push(jax.numpy.broadcast_to(unit, x.shape))

    return jax.vmap(column, out_axes=-1)(jax.numpy.eye(x.shape[-1], dtype=x.dtype))


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
