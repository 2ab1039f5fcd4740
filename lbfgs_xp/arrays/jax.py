"""JAX: immutable arrays, committed to a device or not, and compiled functions.

JAX compiles a function once for arrays committed to a device and again for uncommitted ones, which
it may move. New arrays are therefore committed only if the user's are, so that each function is
compiled only once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, is_array


class JaxBackend(Backend):
    compiles = True
    differentiates = True
    mutable = False

    def __init__(self, array: Array, what: str = "x0", traced: bool = False):
        if _is_traced(array) and not traced:
            raise TypeError(
                f"{what} is traced (by jax.jit, grad or vmap); wanted an array with values: call "
                "lbfgs_xp outside compiled functions (its loops run in Python; it compiles what it "
                "can), and use batched=True instead of vmap"
            )
        super().__init__(array, what, traced)
        self._devices = None if _is_traced(array) else array.devices()
        if _is_free(array):
            self.creation_device = None

    # --- devices -------------------------------------------------------------------------------

    def holds(self, array: Array) -> bool:
        if self._devices is None or not _has_values(array):
            return super().holds(array)
        return not _is_committed(array) or array.devices() == self._devices

    def check_device(self, array: Array, what: str, like: str = "x0") -> None:
        if _is_traced(array):
            raise TypeError(
                f"{what} is traced (by jax.jit, grad or vmap), because the function closes over "
                "traced arrays; wanted arrays with values: call lbfgs_xp outside compiled functions"
            )
        super().check_device(array, what, like)

    def placed(self, array: Array, what: str) -> Array:
        self.check_device(array, what)
        return self._committed(array)

    def _committed(self, array: Array) -> Array:
        """`array`, committed to this device if new arrays are, because JAX moves uncommitted arrays
        to its default device."""
        if self.creation_device is None or _is_committed(array):
            return array
        return jax.device_put(array, self.creation_device)

    def thread_context(self) -> contextlib.AbstractContextManager[Any]:
        if self._devices is None or self.creation_device is not None or len(self._devices) > 1:
            return contextlib.nullcontext()
        return jax.default_device(*self._devices)

    def from_host(self, values: np.ndarray, dtype: Any = None) -> Array:
        # asarray with a device takes ten times as long.
        dtype = self.dtype if dtype is None else dtype
        return jax.device_put(values.astype(dtype), self.creation_device)

    def constant(self, values: np.ndarray) -> Array:
        # While a function is being compiled, an array is valid in that function only.
        return self.from_host(values)

    def read_many(self, numbers: Sequence[Any]) -> list[float]:
        for number in numbers:
            if is_array(number):
                number.copy_to_host_async()
        return [float(self.to_host(n)) if is_array(n) else float(n) for n in numbers]

    def own(self, array: Array) -> Array:
        return self._committed(array)

    # --- rows ----------------------------------------------------------------------------------

    def span(
        self, arrays: list[Array], indices: Array | None, start: int, stop: int
    ) -> list[Array]:
        return _span(arrays, indices, start, stop - start)

    def write_row(self, buffer: Array, index: int, row: Array) -> Array:
        return _jit(_write_row, 0, (0,))(buffer, index, row)

    def write_rows(self, buffer: Array, index: Array, rows: Array, mask: Array) -> Array:
        xp = self.xp
        each = xp.arange(buffer.shape[0], device=self.creation_device)
        return buffer.at[each, index].set(xp.where(mask[:, None], rows, buffer[each, index]))

    # --- compiling and differentiating ---------------------------------------------------------

    @staticmethod
    def compile(function: Callable) -> Callable:
        return _jit(function, 0, ())

    def jit(self, function: Callable, *static: Any, donate: tuple[int, ...] = ()) -> Callable:
        return super().jit(_jit(function, len(static), donate), *static)

    @staticmethod
    def is_compiled(fun: Callable) -> bool:
        return hasattr(fun, "lower") and hasattr(fun, "trace")

    def value_and_gradient(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return self._prepared(self.is_compiled(fun), _gradient, evaluate, fun, *static)

    def value_and_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        run = self._prepared(compiled, _gradients, len(static), evaluate, *static)
        return functools.partial(_explained, run) if compiled else run

    def hessian(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return self._prepared(self.is_compiled(fun), _hessian, evaluate, fun, *static)

    def jacobian(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return self._prepared(compiled, _jacobian, evaluate, *static)

    def _prepared(self, compiled: bool, function: Callable, *static: Any) -> Callable:
        return (self.jit if compiled else functools.partial)(function, *static)

    # --- what the command line shows -----------------------------------------------------------

    @staticmethod
    def samples(library: Any) -> list[tuple[str, Array]]:
        wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        one = jax.numpy.ones(2, dtype=jax.numpy.float64 if wide else jax.numpy.float32)
        devices = list(jax.local_devices(backend="cpu"))
        if jax.default_backend() != "cpu":
            devices += jax.local_devices()
        return [(f"{d.platform}:{d.id}", jax.device_put(one, d)) for d in devices]


def _is_traced(array: Array) -> bool:
    return isinstance(array, jax.core.Tracer)


def _has_values(array: Array) -> bool:
    return isinstance(array, jax.Array) and not _is_traced(array)


def _is_committed(array: Array) -> bool:
    """Whether an array is committed to its device; a traced array counts as committed."""
    return _is_traced(array) or getattr(array, "committed", getattr(array, "_committed", True))


def _is_free(array: Array) -> bool:
    """Whether JAX should choose the device of new arrays used with this one, because it is
    uncommitted and on the default device, or committed and spread over several devices."""
    if not _has_values(array):
        return False
    devices = array.devices()
    if _is_committed(array):
        return len(devices) > 1
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    return devices == {jax.local_devices()[0] if default is None else default}


@functools.lru_cache(maxsize=64)
def _jit(function: Callable, static: int, donate: tuple[int, ...]) -> Callable:
    return jax.jit(function, static_argnums=tuple(range(static)), donate_argnums=donate)


def _write_row(buffer: Array, index: Any, row: Array) -> Array:
    return buffer.at[index].set(row)


@functools.partial(jax.jit, static_argnums=3)
def _span(arrays: list[Array], indices: Array | None, start: int, count: int) -> list[Array]:
    if indices is None:
        return [jax.lax.dynamic_slice_in_dim(array, start, count) for array in arrays]
    chosen = jax.lax.dynamic_slice_in_dim(indices, start, count)
    return [jax.numpy.take(array, chosen, axis=0, mode="clip") for array in arrays]


def _gradient(evaluate: Callable, *arguments: Any) -> tuple[Array, Array, Any]:
    *rest, x = arguments

    def total(x: Array) -> tuple[Array, tuple[Array, Any]]:
        value, aux = evaluate(*rest, x)
        _check_array(value, "fun", "x")
        return value.sum(), (value, aux)

    (_, (value, aux)), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return value, gradient, aux


def _gradients(count: int, evaluate: Callable, *arguments: Any) -> tuple[Array, list[Array]]:
    static, (leaves, batch) = arguments[:count], arguments[count:]

    def value_of(leaves: list[Array]) -> Array:
        value = evaluate(*static, leaves, batch)
        _check_array(value, "loss", "params")
        return value

    value, gradients = jax.value_and_grad(value_of)(leaves)
    # JAX gives df/d(re) - i df/d(im).
    return value, [g.conj() if jax.numpy.iscomplexobj(g) else g for g in gradients]


def _check_array(value: Any, function: str, parameters: str) -> None:
    """Refuse a value that is a plain number and therefore has no gradient."""
    if not is_array(value):
        raise TypeError(
            f"{function} returned a {type(value).__name__}, which does not depend on {parameters}; "
            f"wanted an array computed from {parameters}, or jac= a function or True"
        )


def _explained(function: Callable, *arguments: Any) -> Any:
    """Call the compiled function; a TypeError gets a note about compiling."""
    try:
        return function(*arguments)
    except TypeError as error:
        error.add_note(
            "lbfgs_xp: jax.jit compiles the loss, which may then take only arrays and numbers and "
            "must not branch on their values; compile=False runs it without compiling"
        )
        raise


def _hessian(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x = arguments

    def total(x: Array) -> Array:
        return evaluate(*rest, x)[0].sum()

    def row(unit: Array) -> Array:
        return pull(jax.numpy.broadcast_to(unit, x.shape))[0]

    _, pull = jax.vjp(jax.grad(total), x)
    return jax.vmap(row, out_axes=-2)(jax.numpy.eye(x.shape[-1], dtype=x.dtype))


def _jacobian(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x = arguments
    _, push = jax.linearize(lambda x: evaluate(*rest, x), x)

    def column(unit: Array) -> Array:
        return push(jax.numpy.broadcast_to(unit, x.shape))

    return jax.vmap(column, out_axes=-1)(jax.numpy.eye(x.shape[-1], dtype=x.dtype))
