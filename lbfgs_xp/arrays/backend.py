"""How to work with the arrays of one library, by default through the array API standard.

`Backend.of(array)` returns the backend of an array. Whatever a library does differently is in a
subclass, in the file named after the library: how its arrays reach the host, how a row of a buffer
is overwritten, how a function is differentiated or compiled. A library without such a file uses the
standard alone. Each of these files imports its library, so it is loaded only once the user has
arrays of that library.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import array_api_compat as compat
import array_api_compat.numpy as compat_numpy
import array_api_extra as xpx
import numpy as np

from lbfgs_xp.arrays.keyed import Keyed
from lbfgs_xp.checks import shown

Array = Any
Namespace = Any
# (u, v) and (w, z), vectors whose outer products are summed.
Pairs = Sequence[tuple[Array, Array]]

# Library -> the file with its backend, and the name of the class.
OWN_WAYS = {
    "numpy": ("numpy", "NumPyBackend"),
    "torch": ("torch", "TorchBackend"),
    "jax": ("jax", "JaxBackend"),
    "cupy": ("cupy", "CuPyBackend"),
    "array_api_strict": ("strict", "StrictBackend"),
}


def identity(value: Any) -> Any:
    """`value` itself."""
    return value


def is_array(value: object) -> bool:
    """Whether `value` is an array of a library that follows the standard."""
    return isinstance(value, np.ndarray) or compat.is_array_api_obj(value)


def namespace_of(array: Array) -> Namespace:
    """The namespace of an array, as standardised by array-api-compat."""
    # A shortcut for the most frequent type, because the general case tries every library.
    return compat_numpy if type(array) is np.ndarray else compat.array_namespace(array)


def library_of(array: Array) -> str:
    """The name of an array's library: "numpy", "torch", "jax", "cupy", "array_api_strict", ..."""
    return _name(namespace_of(array))


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, the same for all libraries."""
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def check_local(array: Array, what: str) -> None:
    """Refuse a tensor that is spread over processes (a DTensor of PyTorch): operations on it may
    return parts of sums."""
    if hasattr(array, "placements") and hasattr(array, "to_local"):
        raise TypeError(
            f"{what} is a DTensor, of which this process has a piece; wanted the piece, "
            f"{what}.to_local(), with distributed=lx.distributed.torch(sharded=True)"
        )


def copy_of(array: Array) -> Array:
    """A copy of an array of any library."""
    return _class(namespace_of(array)).copy(array)


def take(array: Array, indices: Array) -> Array:
    """The rows array[indices] of an array of any library; `indices` belongs to the same library."""
    return _class(namespace_of(array)).take(array, indices)


def device_context(array: Array) -> contextlib.AbstractContextManager[Any]:
    """`Backend.on_device` for the device of an array of any library."""
    return _class(namespace_of(array)).on_device(compat.device(array))


class KernelError(RuntimeError):
    """A kernel could not be compiled or launched. Whoever called it runs what it stands for, as
    written."""


def kernels_of(array: Array) -> Callable | None:
    """`Backend.kernels` for an array of any library."""
    return _class(namespace_of(array)).kernels(array)


def class_of(array: Array) -> type[Backend]:
    """The class of the backend of an array of any library."""
    return _class(namespace_of(array))


def compiled(array: Array, function: Callable) -> Callable:
    """`function` for arrays like this one, compiled if their library can."""
    return _class(namespace_of(array)).compile(function)


class Backend(Keyed):
    """One array library, one device, one real floating-point dtype.

    Attributes
    ----------
    name : str
        "numpy", "torch", "jax", "cupy", "array_api_strict" or the name of another library.
    xp : namespace
        The library's namespace, as standardised by array-api-compat.
    device, dtype
        Where the arrays live, and the dtype of their real and imaginary parts.
    creation_device
        The `device` argument for creation functions. On JAX it is None if new arrays should stay
        uncommitted, like the user's.
    complex : bool
        Whether the given array is complex.
    eps, largest : float
        The distance from 1 to the next number of the dtype; its largest number.
    noise : float
        The relative change of a value that rounding may hide.
    on_host : bool
        Whether the arrays are NumPy arrays.
    reads_are_free : bool
        Whether reading a number costs next to nothing: with NumPy, and with torch on the CPU, but
        not with JAX, even on the CPU.
    compiles, differentiates : bool
        Whether `jit` compiles; whether there is automatic differentiation.
    """

    on_host = False
    reads_are_free = False
    compiles = False
    differentiates = False

    def __init__(self, array: Array, what: str = "x0", traced: bool = False):
        """See `of`."""
        self.xp: Namespace = namespace_of(array)
        self.name = _name(self.xp)
        self.device = compat.device(array)
        self.creation_device = self.device
        self.complex, self.eps, self.largest = _limits(self.xp, array.dtype, what)
        self.noise = 16.0 * self.eps
        self.dtype = self.xp.real(array).dtype if self.complex else array.dtype

    @staticmethod
    def of(array: Array, what: str = "x0", traced: bool = False) -> Backend:
        """The backend of an array.

        what : the name of the array in errors.
        traced : whether to accept an array traced by JAX, which has neither values nor a device.
        """
        return _class(namespace_of(array))(array, what, traced)

    @functools.cached_property
    def mutable(self) -> bool:
        """Whether the elements of an array can be overwritten."""
        return compat.is_writeable_array(self.zeros((1,)))

    @functools.cached_property
    def index_dtype(self) -> Any:
        """The dtype of indices and counts."""
        return self.xp.__array_namespace_info__().default_dtypes(device=self.device)["indexing"]

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        return self.name, str(self.dtype), self.complex, str(self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        # Modules cannot be pickled, so the backend is rebuilt from an array.
        with self.current():
            return Backend.of, (self.zeros(()) + (0j if self.complex else 0.0),)

    def __repr__(self) -> str:
        return f"Backend({self.name}, {self.dtype}, {self.device})"

    @property
    def cache_size(self) -> int:
        """How many elements of an array to work on at a time: few enough to stay in the caches,
        many enough for the work to outweigh the call overhead."""
        return 2**22 if "cpu" in str(self.device).lower() else 2**28

    # --- devices -------------------------------------------------------------------------------

    def holds(self, array: Array) -> bool:
        """Whether an array of this library is on this device, or may be moved to it."""
        return self.device in (None, compat.device(array))

    @staticmethod
    def is_traced(value: Any) -> bool:
        """Whether a value has no number yet, because a function is being compiled."""
        return False

    @staticmethod
    def is_tracing(tree: Any) -> bool:
        """Whether nested arrays of any libraries belong to a function that is being compiled."""
        return False

    @staticmethod
    def at_once() -> contextlib.AbstractContextManager[Any]:
        """A context in which arrays with values keep them while a function is being compiled."""
        return contextlib.nullcontext()

    @staticmethod
    def keep_static(cls: type) -> None:
        """Let functions be compiled for each instance of a class within their arguments."""

    @staticmethod
    def keep_parts(cls: type, parts: tuple[str, ...], dropped: tuple[str, ...]) -> None:
        """Let compiled functions return instances of a class.

        parts : the attributes that hold arrays. The others are constants of the program, which can
            be compared; those that are `dropped` are None in what is returned.
        """

    @staticmethod
    def keep_node(cls: type, flatten: Callable, unflatten: Callable) -> None:
        """Let compiled functions take and return instances of a class.

        flatten : from an instance to nested arrays, and what is constant and can be compared.
        unflatten : its inverse, from the constants and the nested arrays.
        """

    @staticmethod
    def in_program(function: Callable, traceable: bool, like: Any, *numbers: Any) -> Any:
        """What a function of numbers returns, also for traced ones.

        traceable : whether it computes with traced numbers, too; if not, the host calls it.
        like : nested numbers of the structure and types that it returns.
        """
        return function(*numbers)

    @staticmethod
    def is_dense(array: Array) -> bool:
        """Whether all elements of an array of this library are in memory."""
        return True

    def check_device(self, array: Array, what: str, like: str = "x0") -> None:
        """Raise a clear error if an array of this library is on another device.

        what, like : the names, in the error, of the array and of an array on this device.
        """
        if not self.holds(array):
            raise ValueError(
                f"{what} is on device {compat.device(array)}; wanted {self.device}, like {like}"
            )

    def for_traced(self) -> Backend:
        """The same backend, for arrays inside a function that is being compiled, which have no
        device that could be checked."""
        return self

    def placed(self, array: Array, what: str) -> Array:
        """`array` on the device of new arrays, or the error of `check_device`."""
        self.check_device(array, what)
        return array

    @staticmethod
    def on_device(device: Any) -> contextlib.AbstractContextManager[Any]:
        """A context in which this device is current, for libraries that have a current device."""
        return contextlib.nullcontext()

    @staticmethod
    def where_nan_is_normal() -> contextlib.AbstractContextManager[Any]:
        """A context in which the library does not raise where a trial gives nan or infinity."""
        return contextlib.nullcontext()

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """`on_device` for this device."""
        return self.on_device(self.device)

    def thread_context(self) -> contextlib.AbstractContextManager[Any]:
        """A context that gives other threads the device of the caller."""
        return self.current()

    @staticmethod
    def from_table(
        function: Callable, traceable: bool, count: int, like: Any, index: Any
    ) -> Any:
        """What a function of an integer from 0 on returns, also for a traced one.

        It is then called at once for the first `count` integers, or until it raises an exception,
        which gives their numbers the bits that they have outside. For later ones see `in_program`.

        like : nested floats of the structure that it returns.
        """
        return function(index)

    # --- transfers between host and device -----------------------------------------------------

    @staticmethod
    def to_host(array: Array) -> np.ndarray:
        """A NumPy copy or view of `array`; all data reach the host through this method."""
        return np.asarray(array)

    def from_host(self, values: np.ndarray, dtype: Any = None) -> Array:
        """`values` as an array of this library on this device, by default in this dtype."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.asarray(values, dtype=dtype, device=self.creation_device)

    def constant(self, values: np.ndarray) -> Array:
        """`from_host` for numbers that are needed again: they are transferred once."""
        held = vars(self).setdefault("_constants", {})
        if id(values) not in held:
            held[id(values)] = values, self.from_host(values)
        return held[id(values)][1]

    def index_array(self, indices: np.ndarray) -> Array:
        """Indices on the host as an integer array of this library on this device."""
        return self.from_host(indices, self.index_dtype)

    def adopt(self, values: Any, what: str) -> Array:
        """`values` as an array of this library, device and dtype.

        values : numbers, lists, NumPy arrays, or arrays of this library and device.
        what : the name of the values in errors.
        """
        if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
            raise TypeError(f"{what} is a masked array; wanted a plain one, such as {what}.data")
        if isinstance(values, (np.ndarray, np.generic)) or not is_array(values):
            try:
                host = np.array(values)
            except ValueError as error:
                raise ValueError(f"{what} is a ragged list ({error}); wanted numbers") from None
            if host.dtype.kind not in "iuf":
                found = f"is {shown(values)}"
                if isinstance(values, np.ndarray):
                    found = f"has dtype {host.dtype}"
                raise TypeError(f"{what} {found}; wanted real numbers")
            return self.from_host(host)
        if (library := library_of(values)) != self.name:
            raise TypeError(
                f"{what} is an array of {library}; wanted an array of {self.name}, like x, or of "
                "NumPy"
            )
        values = self.placed(values, what)
        if not self.xp.isdtype(values.dtype, ("real floating", "integral")):
            raise TypeError(f"{what} has dtype {values.dtype}; wanted real numbers")
        return self.xp.astype(values, self.dtype, copy=False)

    def read(self, numbers: Sequence[Array]) -> list[float]:
        """Several 0-d arrays as floats, in one transfer if they are on a device."""
        if self.reads_are_free:
            return [float(number) for number in numbers]
        arrays = [number for number in numbers if is_array(number)]
        found = iter(self.to_host(self.join(arrays)).tolist() if arrays else ())
        return [next(found) if is_array(number) else float(number) for number in numbers]

    def read_many(self, numbers: Sequence[Any]) -> list[float]:
        """`read` for very many numbers on any device: it waits once, and compiles nothing that
        depends on their count."""
        if self.reads_are_free:
            return self.read(numbers)
        return self.read([compat.to_device(n, self.device) if is_array(n) else n for n in numbers])

    # --- new arrays ----------------------------------------------------------------------------

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        return self.xp.full(shape, value, dtype=self.dtype, device=self.creation_device)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return self.xp.zeros(shape, dtype=self.dtype, device=self.creation_device)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype=dtype, device=self.creation_device)

    @staticmethod
    def copy(array: Array) -> Array:
        """A copy of an array of this library, on any device."""
        return namespace_of(array).asarray(array, copy=True)

    def own(self, array: Array) -> Array:
        """`array`, copied if the user could change it in place."""
        return self.xp.asarray(array, copy=True) if self.mutable else array

    def detach(self, value: Any) -> Any:
        """`value`, detached from the graph of autograd."""
        return value

    def keep_freed_memory(self) -> None:
        """Make glibc keep the memory of arrays up to 32 MiB in the process, for all its threads.

        glibc adapts its limit to the largest block freed so far. Otherwise it returns the memory of
        large arrays to the system at once, and getting the pages back costs more than arithmetic.
        """
        if "cpu" in str(self.device).lower():
            np.empty(2**25 - 2**14, np.uint8)

    # --- rows ----------------------------------------------------------------------------------

    @staticmethod
    def take(array: Array, indices: Array) -> Array:
        """The rows array[indices] of an array of this library."""
        return namespace_of(array).take(array, indices, axis=0)

    def take_from_any(self, array: Array, indices: Array) -> Array:
        """`take` from an array of any library and device, with indices of this library."""
        if type(array) is not type(indices) or not self.holds(array):
            xp, host = namespace_of(array), self.to_host(indices)
            indices = host if isinstance(array, np.ndarray) else xp.asarray(
                host, device=compat.device(array)
            )
        return take(array, indices)

    def span(
        self, arrays: list[Array], indices: Array | None, start: int, count: int
    ) -> list[Array]:
        """The `count` rows from `start` on of each array, or those at these places of `indices`."""
        stop = start + count
        if indices is None:
            return [array[start:stop, ...] for array in arrays]
        chosen = indices[start:stop]
        return [self.take(array, chosen) for array in arrays]

    def join(self, parts: Sequence[Array]) -> Array:
        """The concatenation of 0-d and 1-d arrays on this device, in this dtype."""
        xp = self.xp
        flat = [
            xp.reshape(xp.astype(part, self.dtype, copy=False), (-1,)) for part in parts
        ]
        return xp.concat(flat)

    # --- buffers, overwritten in place if the library allows -----------------------------------

    def write_row(self, buffer: Array, index: int, row: Array) -> Array:
        """`buffer` (k, n) with row `index` overwritten."""
        return xpx.at(buffer, (index, ...)).set(row)

    def write_pair(self, buffer: Array, index: int, s: Array, new: Array, old: Array) -> Array:
        """`buffer` (2m, n) with row `index` overwritten by s, and row m + index by new - old, both
        rounded to its dtype."""
        other, y = index + buffer.shape[0] // 2, new - old
        s, y = (self.xp.astype(row, buffer.dtype, copy=False) for row in (s, y))
        return self.write_row(self.write_row(buffer, index, s), other, y)

    def write_rows(self, buffer: Array, index: Array, rows: Array, mask: Array) -> Array:
        """`buffer` (B, k, n) with buffer[b, index[b]] = rows[b] wherever mask[b]."""
        xp = self.xp
        places = xp.arange(buffer.shape[1], device=self.creation_device)
        here = (places[None, :] == index[:, None]) & mask[:, None]
        return xp.where(here[:, :, None], rows[:, None, :], buffer)

    def write_pairs(self, buffer: Array, index: Array, s: Array, y: Array, mask: Array) -> Array:
        """`buffer` (B, 2m, n) with buffer[b, index[b]] = s[b] and buffer[b, m + index[b]] = y[b]
        wherever mask[b]."""
        other = index + buffer.shape[1] // 2
        return self.write_rows(self.write_rows(buffer, index, s, mask), other, y, mask)

    def subtract_scaled(self, u: Array, factor: Any, v: Array) -> Array:
        """u - factor v, written over u if the library allows."""
        u -= v * factor
        return u

    def overwrite(self, array: Array, new: Array) -> Array:
        """`new`, written over `array` in place if the library allows."""
        if not self.mutable:
            return new
        self.detach(array)[...] = new
        return array

    # --- reductions; `Space` decides when they may be used -------------------------------------

    def sum(self, array: Array) -> Array:
        """The sum along the last axis."""
        return self.xp.sum(array, axis=-1)

    def max_abs(self, array: Array) -> Array:
        """The largest absolute element along the last axis; nan if any element is nan."""
        return self.xp.max(self.xp.abs(array), axis=-1)

    def are_finite(self, arrays: Sequence[Array]) -> bool:
        """Whether all elements of these arrays are finite; it waits for a device."""
        xp = self.xp
        return all(bool(xp.all(xp.isfinite(array))) for array in arrays)

    def changes(self, values: Iterable[Array], since: Array, count: int) -> Any:
        """By how much each of these values, of which there are `count` and each may overwrite the
        one before, exceeds `since`: as many arrays, or one with them along its first axis."""
        return [value - since for value in values]

    def dot(self, u: Array, v: Array) -> Array:
        """u . v for many problems: (..., n), (..., n) -> (...)."""
        return u @ v if u.ndim == v.ndim == 1 else self.xp.vecdot(u, v)

    def products(self, rows: Array, vector: Array) -> Array:
        """Each row times the vector, for many problems: (..., k, n), (..., n) -> (..., k)."""
        return (rows @ vector[..., None])[..., 0]

    def combine(self, coefficients: Array, rows: Array) -> Array:
        """Weighted sums of rows, for many problems: (..., k), (..., k, n) -> (..., n)."""
        return (coefficients[..., None, :] @ rows)[..., 0, :]

    def gram(self, rows: Array) -> Array:
        """A A^T for A (..., p, m). Elements below the diagonal may be left 0."""
        return rows @ self.xp.matrix_transpose(rows)

    def add_outer(self, factor: Array, matrix: Array, u: Array, v: Array) -> Array:
        """factor matrix + u v' + v u' for many problems, with symmetric matrices (B, n, n); see
        `own_matrices`."""
        product = u[..., :, None] * v[..., None, :]
        return factor[..., None, None] * matrix + (product + self.xp.matrix_transpose(product))

    def add_outer_to_one(self, factor: float, matrix: Array, u: Array, v: Array) -> Array:
        """`add_outer` for one matrix (n, n)."""
        if factor != 1.0:
            matrix = factor * matrix
        product = u[:, None] * v[None, :]
        return matrix + (product + self.xp.matrix_transpose(product))

    def add_products(self, factor: Array, matrix: Array, pairs: Pairs) -> Array:
        """factor matrix + u v' + w z' for many problems, with matrices (B, n, n) and two pairs
        (u, v), (w, z) of vectors (B, n); see `own_matrices`."""
        return factor[..., None, None] * matrix + _products(pairs)

    def add_products_to_one(
        self, factor: float, matrix: Array, pairs: Pairs, as_written: bool
    ) -> Array:
        """`add_products` for one matrix (n, n).

        as_written : whether every element must be rounded as in that expression.
        """
        return factor * matrix + _products(pairs)

    def own_matrices(self, matrix: Array) -> Array:
        """A copy of matrices (..., n, n) that the methods above may overwrite; the matrices
        themselves if they overwrite none."""
        return matrix

    # --- one array of any shape as a row of real numbers ---------------------------------------

    def real_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that `to_real` gives an array of this shape."""
        return (*shape, 2) if self.complex else shape

    def to_real(self, array: Array) -> Array:
        """A real array unchanged; a complex one (...) as its real and imaginary parts (..., 2)."""
        array, xp = self.detach(array), self.xp
        if not self._is_complex(array.dtype):
            return array
        return xp.stack([xp.real(array), xp.imag(array)], axis=-1)

    def from_real(self, array: Array, dtype: Any) -> Array:
        """The inverse of `to_real`, for an array of this dtype."""
        if not self._is_complex(dtype):
            return array
        re, im = (self.xp.astype(array[..., i], dtype) for i in (0, 1))
        return re + im * 1j

    def _is_complex(self, dtype: Any) -> bool:
        return self.complex and self.xp.isdtype(dtype, "complex floating")

    def vector(self, array: Array) -> Array:
        """All real numbers of an array, as a 1-d array."""
        return self.xp.reshape(self.to_real(array), (-1,))

    def pieces(self, vector: Array, sizes: Sequence[int]) -> Sequence[Array]:
        """The vector (..., n) as consecutive pieces of these sizes."""
        ends = itertools.accumulate(sizes)
        return [vector[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]

    # --- memory that arrays share --------------------------------------------------------------

    def memory_key(self, array: Array) -> Any:
        """A key that is the same for two arrays if they may share memory."""
        return id(array)

    def is_writable(self, array: Array) -> bool:
        """Whether each element has its own memory, which may be overwritten."""
        return True

    def flat_view(self, array: Array) -> np.ndarray:
        """`vector` for NumPy: a view of the same memory if `has_flat_view`, else a copy."""
        raise NotImplementedError

    def has_flat_view(self, array: Array) -> bool:
        """Whether NumPy can overwrite the array through `flat_view`."""
        return False

    def overlap(self, a: Array, b: Array) -> bool:
        """Whether two arrays may share elements."""
        if self.memory_key(a) != self.memory_key(b):
            return False
        if not (self.has_flat_view(a) and self.has_flat_view(b)):
            return True
        return np.may_share_memory(self.flat_view(a), self.flat_view(b))

    def mark_overwritten(self, array: Array) -> None:
        """Tell autograd that the array was overwritten through `flat_view`."""

    def dense(self, array: Array) -> Array:
        """`array`, made dense if the library has sparse ones of the same type."""
        return array

    def with_dense_gradient(self, array: Array) -> Array:
        """A part of a vector whose gradient, even if it is sparse, belongs to a dense one."""
        return array

    def requires_grad_like(self, array: Array, like: Array) -> Array:
        """`array`, which requires a gradient if `like` does."""
        return array

    # --- compiling and differentiating ---------------------------------------------------------

    @staticmethod
    def compile(function: Callable) -> Callable:
        """`function` of arrays, compiled if the library can."""
        return function

    def jit(
        self, function: Callable, *static: Any, donate: tuple[int, ...] = (), steps: int = 0
    ) -> Callable:
        """`function` with its first arguments `static`, compiled if the library can.

        A compiled function is reused in every later call with equal (hashable) static arguments,
        for as long as the functions of the user among them exist. (A dataclass lists its fields
        that hold functions of the user in `wrapped_functions`.)
        The arguments at the positions `donate` may be overwritten. `steps` is given for the steps
        of a solver, which are not part of another compiled function: how many numbers a vector has.
        """
        return functools.partial(function, *static) if static else function

    @staticmethod
    def is_compiled(fun: Callable) -> bool:
        """Whether the user has compiled `fun`, which declares it a pure function."""
        return False

    def while_loop(self, goes_on: Callable, step: Callable, carry: Any) -> Any:
        """`carry` after `carry = step(carry)` as long as `goes_on(carry)`, which is a mask; also
        inside a function that is being compiled."""
        while bool(self.to_host(goes_on(carry))):
            carry = step(carry)
        return carry

    @staticmethod
    def branch(mask: Array, function: Callable, old: Any) -> Any:
        """`function(mask)`, which equals `old` in the rows outside the mask; inside a function that
        is being compiled, `old` itself if the mask holds nowhere."""
        return function(mask)

    @staticmethod
    def alike(*arrays: Any) -> tuple:
        """The arrays with types that a loop can carry together."""
        return arrays

    @staticmethod
    def shared_axes(function: Callable, arguments: tuple, varying: Any) -> list[str]:
        """The axes of a mesh over which a function communicates although `varying` differs there,
        so that some processes may have ended while others wait for them."""
        return []

    @staticmethod
    def either(condition: Array, first: Callable, second: Callable) -> Any:
        """`first()` if the condition, a 0-d array, holds, else `second()`; also inside a function
        that is being compiled. Both have the same shapes and dtypes."""
        return first() if condition else second()

    @staticmethod
    def explained(function: Callable) -> Callable:
        """A compiled function of the user's loss, whose errors say that it has been compiled."""
        return function

    @staticmethod
    def fence(tree: Any) -> Any:
        """`tree`; inside a function that is being compiled, its arrays are computed as such, and
        not again for each of their uses."""
        return tree

    @staticmethod
    def kernels(array: Array) -> Callable | None:
        """What builds kernels for arrays like this one from C++ source; None if nothing does.

        It is a function of the inputs, outputs and body of a `lbfgs_xp.arrays.formula.Source`. A
        kernel takes its inputs, or its inputs and outputs, and returns its outputs, which all have
        the shape to which the inputs are broadcast. If it cannot run, it raises a `KernelError`
        before it has written anything.
        """
        return None

    def value_and_gradient(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        """(args, x) -> (value, gradient, aux) by automatic differentiation.

        `evaluate(fun, *static, args, x)` returns (value, aux). For a batch the value holds one
        number per row; since rows are independent, the gradient of the sum contains the gradient of
        each. If `fun` is compiled, so is the returned function, once for all calls.
        """
        raise NotImplementedError

    def value_and_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        """(leaves, batch) -> (value, gradients, aux), one gradient per leaf, by automatic
        differentiation.

        `evaluate(*static, leaves, batch)` returns (value, aux), the value as a 0-d array. The
        gradient of a complex leaf is df/d(re) + i df/d(im). The returned function is compiled if
        `compiled`.
        """
        raise NotImplementedError

    @staticmethod
    def outline(function: Callable, *arguments: Any) -> Any:
        """What a function that can be compiled would return, with shapes and dtypes instead of
        arrays."""
        raise NotImplementedError

    def hessian(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        """(args, x) -> the matrices (..., n, n), by differentiating twice.

        The arguments are as for `value_and_gradient`. Since the rows of a batch are independent,
        row i of each problem's matrix is the gradient of the sum, over all problems, of the i-th
        component of the gradient.
        """
        raise NotImplementedError

    def hessian_product(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        """(args, x) -> the function from vectors (..., n) to the Hessians times them.

        The arguments are as for `value_and_gradient`.
        """
        raise NotImplementedError

    def jacobian(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        """(args, x) -> the Jacobian (..., m, p), by forward-mode differentiation.

        `evaluate(*static, args, x)` maps vectors (..., p) to (..., m). Since the rows of a batch
        are independent, one direction serves all of them. The returned function is compiled if
        `compiled`.
        """
        raise NotImplementedError

    def jacobian_products(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        """(args, x) -> the products of the Jacobian (m, p) at one x (p,): functions from vectors
        (k, p) to J v, (k, m), and from vectors (k, m) to J^T u, (k, p).

        `evaluate(*static, args, x)` maps (p,) to (m,).
        """
        raise NotImplementedError

    def row_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        """(args, rows, x) -> the gradients (k, p) by x of k numbers.

        rows : arrays (k, ...), of which `evaluate(*static, args, rows, x)` takes one entry each,
            (...), and returns a 0-d array.
        """
        raise NotImplementedError

    # --- solutions as differentiable functions; see `lbfgs_xp.run.implicit` ---------------------

    @staticmethod
    def is_transformed() -> bool:
        """Whether functions are being transformed, so that results must be differentiable."""
        return False

    @staticmethod
    def may_vary(value: Any) -> bool:
        """Whether there may be derivatives with respect to an array."""
        return False

    @staticmethod
    def solution(
        find: Callable, functions: dict[str, Any], x0: Any, args: tuple, carried: tuple
    ) -> Any:
        """The result of `find`, as a differentiable function of arrays in args and of those that
        the functions hold.

        find : (functions, x0, args, *carried) -> a `lbfgs_xp.run.implicit.Found`.
        carried : like x0, without influence on the solution.
        """
        raise NotImplementedError

    @staticmethod
    def without_derivative(x: Array, part: Any) -> Any:
        """A part of a result beside the solution x. Where derivatives of x are traced, its own are
        nan, so that nothing takes it for a constant."""
        return part

    # --- linear algebra ------------------------------------------------------------------------

    def linalg(self, name: str, otherwise: str = "") -> Callable:
        """A function of the linear algebra extension of the standard.

        otherwise : what the error suggests instead if the library lacks the function.
        """
        found = getattr(getattr(self.xp, "linalg", None), name, None)
        if found is None:
            raise TypeError(
                f"{self.name} has no linalg.{name}; wanted arrays of a library with the linear "
                f"algebra extension of the array API standard{otherwise}"
            )
        return found

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """The eigenvalues, ascending, and the eigenvectors, as columns, of symmetric matrices."""
        eigh = self.linalg("eigh", ", or a method that needs no Hessian")
        eigenvalues, eigenvectors = eigh(matrix)
        return eigenvalues, eigenvectors

    def positive_solver(self, matrix: Array, shift: float) -> Callable[[Array], Array] | None:
        """b -> (A + shift I)^-1 b for a symmetric matrix A (n, n) and vectors (n,); None if that
        matrix is not positive definite to rounding."""
        linalg = self.xp.linalg
        eye = self.xp.eye(matrix.shape[0], dtype=self.dtype, device=self.creation_device)
        try:
            inverse = linalg.inv(linalg.cholesky(matrix + shift * eye))
        except np.linalg.LinAlgError:
            return None
        return lambda b: self.xp.matrix_transpose(inverse) @ (inverse @ b)

    # --- nested parameters ---------------------------------------------------------------------

    @staticmethod
    def flatten(tree: Any) -> tuple[list[Any], Any] | None:
        """The leaves of nested parameters and their structure by the library's own registry, if it
        has one and they hold arrays of the library; else None.

        A structure has `leaves_of(tree)`, which raises a ValueError for another structure;
        `unflatten`, `paths`, `is_leaf` and `num_leaves`, as in optree.
        """
        return None

    # --- what the command line shows -----------------------------------------------------------

    @staticmethod
    def samples(library: Any) -> list[tuple[str, Array]]:
        """One small array of floats on each device of `library`, with the device's name."""
        return [("cpu", library.asarray([1.0, 1.0]))]


def _products(pairs: Pairs) -> Array:
    """u v' + w z', (..., n, n)."""
    one, other = (u[..., :, None] * v[..., None, :] for u, v in pairs)
    return one + other


class InPlaceBackend(Backend):
    """A library whose arrays are indexed and overwritten in place as in NumPy."""

    mutable = True

    @staticmethod
    def take(array: Array, indices: Array) -> Array:
        return array[indices]

    def changes(self, values: Iterable[Array], since: Array, count: int) -> Array:
        found = self.empty((count, *since.shape), since.dtype)
        for k, value in enumerate(values):
            self.xp.subtract(value, since, out=found[k])
        return found

    def write_row(self, buffer: Array, index: int, row: Array) -> Array:
        buffer[index] = row
        return buffer

    def write_pair(self, buffer: Array, index: int, s: Array, new: Array, old: Array) -> Array:
        buffer[index] = s
        self.xp.subtract(new, old, out=buffer[index + buffer.shape[0] // 2])
        return buffer

    def write_rows(self, buffer: Array, index: Array, rows: Array, mask: Array) -> Array:
        xp = self.xp
        each = xp.arange(buffer.shape[0], device=self.creation_device)
        buffer[each, index] = xp.where(mask[:, None], rows, buffer[each, index])
        return buffer


def is_tracing(tree: Any) -> bool:
    """`Backend.is_tracing` of the libraries in use."""
    return any(cls.is_tracing(tree) for cls in classes_in_use())


@functools.cache
def _name(xp: Namespace) -> str:
    return xp.__name__.removeprefix("array_api_compat.").partition(".")[0]


@functools.cache
def _class(xp: Namespace) -> type[Backend]:
    return class_for(_name(xp))


@functools.cache
def class_for(library: str) -> type[Backend]:
    """The backend class of a library."""
    if library not in OWN_WAYS:
        return Backend
    file, name = OWN_WAYS[library]
    return getattr(importlib.import_module(f"lbfgs_xp.arrays.{file}"), name)


def classes_in_use() -> list[type[Backend]]:
    """The backend classes of the libraries that the user has imported."""
    return [class_for(library) for library in OWN_WAYS if library in sys.modules]


@functools.cache
def _limits(xp: Namespace, dtype: Any, what: str) -> tuple[bool, float, float]:
    """Whether the dtype is complex; eps and the largest number of its real part."""
    is_complex = xp.isdtype(dtype, "complex floating")
    if not is_complex and not xp.isdtype(dtype, "real floating"):
        hint = " (1.0 instead of 1)" if xp.isdtype(dtype, "integral") else ""
        raise TypeError(
            f"{what} has dtype {dtype}; wanted a real or complex floating-point dtype{hint}"
        )
    limits = xp.finfo(dtype)
    if limits.bits < 32:
        raise TypeError(
            f"{what} has dtype {dtype}; wanted one of at least 32 bits, such as float32"
        )
    return is_complex, float(limits.eps), float(limits.max)
