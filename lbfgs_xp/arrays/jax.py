"""JAX: immutable arrays, committed to a device or not, and compiled functions.

JAX compiles a function once for arrays committed to a device and again for uncommitted ones, which
it may move. New arrays are therefore committed only if the user's are, so that each function is
compiled only once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lbfgs_xp.arrays import jax_implicit, jax_mesh
from lbfgs_xp.arrays.backend import Array, Backend, Pairs, is_array
from lbfgs_xp.arrays.jax_implicit import Hoisted
from lbfgs_xp.arrays.jax_mesh import is_traced
from lbfgs_xp.arrays.keyed import Keyed
from lbfgs_xp.elementary import counted


class JaxBackend(Backend):
    compiles = True
    differentiates = True
    mutable = False

    def __init__(self, array: Array, what: str = "x0", traced: bool = False):
        if is_traced(array) and not traced:
            raise TypeError(
                f"{what} is traced (by jax.jit, grad or vmap); wanted an array with values: of "
                "lbfgs_xp, only minimize, least_squares, curve_fit and the optimizers run inside "
                "compiled functions"
            )
        _refuse_key(array, what)
        super().__init__(array, what, traced)
        self._accepts_traced = traced
        self._devices = None if is_traced(array) else array.devices()
        self._platform = next(iter(self._devices)).platform if self._devices else ""
        if _is_free(array):
            self.creation_device = None

    def adopt(self, values: Any, what: str) -> Array:
        if isinstance(values, jax.Array):
            _refuse_key(values, what)
        return super().adopt(values, what)

    # --- within compiled functions of the user -------------------------------------------------

    is_traced = staticmethod(is_traced)

    @staticmethod
    def is_tracing(tree: Any) -> bool:
        with warnings.catch_warnings():
            # A generator is refused later.
            warnings.simplefilter("ignore", DeprecationWarning)
            leaves = jax.tree.leaves(tree)
        if any(map(is_traced, leaves)):
            return True
        # Even of arrays with values, a function that is being compiled makes traced ones.
        return any(map(_has_values, leaves)) and is_traced(_zeros((), np.float32))

    @staticmethod
    def at_once() -> contextlib.AbstractContextManager[Any]:
        return jax.ensure_compile_time_eval()

    @staticmethod
    @functools.cache
    def keep_static(cls: type) -> None:
        jax.tree_util.register_static(cls)

    @staticmethod
    @functools.cache
    def keep_parts(cls: type, parts: tuple[str, ...], dropped: tuple[str, ...]) -> None:
        def is_derived(name: str) -> bool:
            return isinstance(getattr(cls, name, None), functools.cached_property)

        def flatten(node: Any) -> tuple[list[Any], tuple]:
            rest = {
                name: value for name, value in vars(node).items()
                if name not in parts and not is_derived(name)
            }
            rest.update(dict.fromkeys(dropped))
            return [getattr(node, name) for name in parts], tuple(sorted(rest.items()))

        def unflatten(rest: tuple, held: Any) -> Any:
            node: Any = object.__new__(cls)
            vars(node).update(rest, **dict(zip(parts, held, strict=True)))
            return node

        JaxBackend.keep_node(cls, flatten, unflatten)

    @staticmethod
    @functools.cache
    def keep_node(cls: type, flatten: Callable, unflatten: Callable) -> None:
        jax.tree_util.register_pytree_node(cls, flatten, unflatten)

    @staticmethod
    def in_program(function: Callable, traceable: bool, like: Any, *numbers: Any) -> Any:
        # Numbers of 32 bits would be combined in float32 where the default is float64.
        numbers = jax.tree.map(_widened, numbers)
        if traceable:
            return _in_types_of(like, function(*numbers))
        return _on_host(function, like, *numbers)

    @staticmethod
    def from_table(
        function: Callable, traceable: bool, count: int, like: Any, index: Any
    ) -> Any:
        if not is_traced(index):
            return function(index)
        index = _widened(index)
        if traceable and any(map(is_traced, jax.tree.leaves(function(0)))):
            # It computes with JAX, so it has no other bits outside.
            return _in_types_of(like, function(index))
        rows: list[list[Any]] = []
        with jax.ensure_compile_time_eval(), contextlib.suppress(Exception):
            # An error counts only if the program gets there; the host then raises it.
            while len(rows) < count:
                rows.append(jax.tree.leaves(function(len(rows))))
        table = np.asarray(rows, dtype=jax.dtypes.result_type(float))
        row = jax.lax.dynamic_index_in_dim(jax.numpy.asarray(table), index, keepdims=False)
        numbers, structure = jax.tree.flatten(like)
        known = jax.tree.unflatten(structure, [row[i] for i in range(len(numbers))])
        beyond = jax.numpy.asarray(index >= len(rows))
        if traceable and len(rows) == count:
            later = _in_types_of(like, function(index))
            return jax.tree.map(lambda new, old: jax.numpy.where(beyond, new, old), later, known)

        def computed(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            new = jax.numpy.asarray(False), _on_host(function, like, index)
            return jax.tree.map(_like, new, carry)

        # A loop, because `vmap` turns a branch into the computation of both sides.
        start = jax_mesh.varying((beyond, known))
        return jax.lax.while_loop(lambda carry: carry[0], computed, start)[1]

    # --- devices -------------------------------------------------------------------------------

    def holds(self, array: Array) -> bool:
        if self._devices is None or not _has_values(array):
            return super().holds(array)
        return not _is_committed(array) or array.devices() == self._devices

    def check_device(self, array: Array, what: str, like: str = "x0") -> None:
        if is_traced(array):
            if self._accepts_traced:
                return
            raise TypeError(
                f"{what} is traced (by jax.jit, grad or vmap), because the function closes over "
                "traced arrays; wanted them as args, or arrays with values"
            )
        super().check_device(array, what, like)

    def for_traced(self) -> JaxBackend:
        # Not by copy.copy, which makes an array.
        backend = object.__new__(JaxBackend)
        vars(backend).update(vars(self), _accepts_traced=True)
        return backend

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

    @staticmethod
    @contextlib.contextmanager
    def where_nan_is_normal() -> Iterator[None]:
        # jax_debug_nans would end a run at the first trial that is too far.
        with contextlib.ExitStack() as stack:
            for name in ("jax_debug_nans", "jax_debug_infs"):
                if getattr(jax.config, name):
                    stack.callback(jax.config.update, name, True)
                    jax.config.update(name, False)
            yield

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
        # JAX would compile everything once more for a weak dtype, which jnp.full(n, 0.5) has.
        return self._committed(_strong(array) if array.weak_type else array)

    # --- several operations as one, because a call from Python takes longer than they do ---------

    def zeros(self, shape: tuple[int, ...]) -> Array:
        if self.creation_device is not None:
            return super().zeros(shape)
        return _zeros(shape, self.dtype)

    def join(self, parts: Sequence[Array]) -> Array:
        return _joined(tuple(parts), self.dtype)

    def max_abs(self, array: Array) -> Array:
        return _max_abs(array)

    # --- rows ----------------------------------------------------------------------------------

    def span(
        self, arrays: list[Array], indices: Array | None, start: int, count: int
    ) -> list[Array]:
        return _span(arrays, indices, start, count)

    def write_row(self, buffer: Array, index: int, row: Array) -> Array:
        return _jit(_write_row, 0, (0,))(buffer, index, row)

    def write_pairs(self, buffer: Array, index: Array, s: Array, y: Array, mask: Array) -> Array:
        xp, (count, rows, n) = self.xp, buffer.shape
        if count == 1:
            for place, row in ((index[0], s), (index[0] + rows // 2, y)):
                before = jax.lax.dynamic_index_in_dim(buffer, place, axis=1)
                row = xp.where(mask[0], row[:, None, :], before)
                # Fenced, so that it is in place, and not repeated for each use.
                buffer = self.fence(
                    jax.lax.dynamic_update_index_in_dim(buffer, row, place, axis=1)
                )
            return buffer
        halves, each = xp.reshape(buffer, (count, 2, rows // 2, n)), xp.arange(count)
        # Where the mask does not hold, past the end, where nothing is written.
        index = xp.where(mask, index, rows // 2)
        halves = halves.at[each, :, index].set(
            xp.stack([s, y], axis=1), mode="drop", unique_indices=True
        )
        return xp.reshape(halves, buffer.shape)

    def add_products_to_one(
        self, factor: float, matrix: Array, pairs: Pairs, as_written: bool
    ) -> Array:
        if as_written or is_traced(matrix):
            return super().add_products_to_one(factor, matrix, pairs, as_written)
        return _add_products(matrix, factor, pairs)

    def own_matrices(self, matrix: Array) -> Array:
        # `_add_products` donates it.
        return matrix if matrix.ndim > 2 or is_traced(matrix) else self.copy(matrix)

    # --- compiling and differentiating ---------------------------------------------------------

    @staticmethod
    def compile(function: Callable) -> Callable:
        return _jit(function, 0, ())

    def jit(
        self, function: Callable, *static: Any, donate: tuple[int, ...] = (), steps: int = 0
    ) -> Callable:
        options = _options_for(steps <= _FEW) if steps and self._platform == "cpu" else ()
        compiled = _compiled_with_its_functions(function, static, donate, options)
        if compiled is not None:
            return compiled
        return super().jit(_jit(function, len(static), donate, options), *static)

    def while_loop(self, goes_on: Callable, step: Callable, carry: Any) -> Any:
        def same_types(carry: Any) -> Any:
            # Python's numbers may have changed a dtype, or made it a weak one.
            return jax.tree.map(_like, step(carry), carry)

        start = jax_mesh.varying(jax.tree.map(_strong, carry))
        return jax.lax.while_loop(goes_on, same_types, start)

    @staticmethod
    def branch(mask: Array, function: Callable, old: Any) -> Any:
        if not is_traced(mask):
            return function(mask)
        # In the branch of a single row, the mask holds.
        inside = jax.numpy.ones_like(mask) if mask.size == 1 else mask

        def same_types() -> Any:
            return jax.tree.map(_like, function(inside), old)

        old, _ = jax_mesh.varying((jax.tree.map(_strong, old), mask))
        return jax.lax.cond(mask.any(), same_types, lambda: old)

    @staticmethod
    def alike(*arrays: Any) -> tuple:
        return jax_mesh.varying(arrays)

    @staticmethod
    def shared_axes(function: Callable, arguments: tuple, varying: Any) -> list[str]:
        if not (mesh := jax_mesh.manual_axes()):
            return []
        axes = jax_mesh.axes_of(varying) if jax_mesh.knows_axes(mesh) else mesh
        program = jax.make_jaxpr(function)(*arguments)
        return sorted(map(str, axes & jax_mesh.communicating(program.jaxpr)))

    @staticmethod
    def either(condition: Array, first: Callable, second: Callable) -> Any:
        return jax.lax.cond(condition, first, second)

    @staticmethod
    def explained(function: Callable) -> Callable:
        return functools.partial(_explained, function)

    @staticmethod
    def fence(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        traced = [i for i, leaf in enumerate(leaves) if is_traced(leaf)]
        if traced:
            for i, leaf in zip(
                traced, jax.lax.optimization_barrier([leaves[i] for i in traced]), strict=True
            ):
                leaves[i] = leaf
        return jax.tree.unflatten(structure, leaves)

    @staticmethod
    def is_compiled(fun: Callable) -> bool:
        if isinstance(fun, Hoisted):
            return fun.is_compiled
        return isinstance(fun, _Compiled) or (hasattr(fun, "lower") and hasattr(fun, "trace"))

    def value_and_gradient(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return self._prepared(self.is_compiled(fun), _gradient, evaluate, fun, *static)

    def value_and_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        run = self._prepared(compiled, _gradients, len(static), evaluate, *static)
        return self.explained(run) if compiled else run

    @staticmethod
    def outline(function: Callable, *arguments: Any) -> Any:
        return jax.eval_shape(function, *arguments)

    def hessian(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        return self._prepared(self.is_compiled(fun), _hessian, evaluate, fun, *static)

    def hessian_product(self, evaluate: Callable, fun: Callable, *static: Any) -> Callable:
        product = self._prepared(self.is_compiled(fun), _hessian_product, evaluate, fun, *static)
        return lambda args, x: functools.partial(product, args, x)

    def jacobian(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return self._prepared(compiled, _jacobian, evaluate, *static)

    def jacobian_products(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        push = self._prepared(compiled, _pushed, evaluate, *static)
        pull = self._prepared(compiled, _pulled, evaluate, *static)
        return lambda args, x: (
            functools.partial(push, args, x), functools.partial(pull, args, x)
        )

    def row_gradients(self, compiled: bool, evaluate: Callable, *static: Any) -> Callable:
        return self._prepared(compiled, _row_gradients, evaluate, *static)

    def positive_solver(self, matrix: Array, shift: float) -> Callable[[Array], Array] | None:
        factor = _cholesky(matrix, shift)
        if not np.isfinite(self.to_host(factor[0, 0] + factor[-1, -1])):
            return None
        return functools.partial(_solved, factor)

    def _prepared(self, compiled: bool, function: Callable, *static: Any) -> Callable:
        return (self.jit if compiled else functools.partial)(function, *static)

    is_transformed = staticmethod(jax_implicit.is_transformed)
    may_vary = staticmethod(is_traced)

    @staticmethod
    def solution(
        find: Callable, functions: dict[str, Any], x0: Any, args: tuple, carried: tuple
    ) -> Any:
        compiled = {name for name, each in functions.items() if JaxBackend.is_compiled(each)}
        return jax_implicit.solution(find, functions, compiled, x0, args, carried)

    @staticmethod
    def without_derivative(x: Array, part: Any) -> Any:
        if not is_traced(x) or not jax.dtypes.issubdtype(jax.numpy.result_type(part), np.inexact):
            return part
        return jax_implicit.without_derivative(jax.numpy.asarray(part), x)

    # --- nested parameters ---------------------------------------------------------------------

    @staticmethod
    def flatten(tree: Any) -> tuple[list[Any], Any] | None:
        with warnings.catch_warnings():
            # A generator is refused later.
            warnings.simplefilter("ignore", DeprecationWarning)
            leaves, structure = jax.tree_util.tree_flatten(tree)
        # JAX knows only dataclasses that are registered with it.
        if any(map(dataclasses.is_dataclass, leaves)):
            return None
        if not any(isinstance(leaf, jax.Array) for leaf in leaves):
            return None
        return leaves, _Structure(structure)

    # --- what the command line shows -----------------------------------------------------------

    @staticmethod
    def samples(library: Any) -> list[tuple[str, Array]]:
        wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        one = jax.numpy.ones(2, dtype=jax.numpy.float64 if wide else jax.numpy.float32)
        devices = list(jax.local_devices(backend="cpu"))
        if jax.default_backend() != "cpu":
            devices += jax.local_devices()
        return [(f"{d.platform}:{d.id}", jax.device_put(one, d)) for d in devices]


def _strong(number: Any, dtype: Any = None) -> Array:
    """An array with a dtype that does not give way to others."""
    dtype = jax.dtypes.result_type(number) if dtype is None else dtype
    return jax.numpy.asarray(number, dtype=dtype)


def _like(new: Any, old: Array) -> Array:
    return jax_mesh.over(_strong(new, old.dtype), jax_mesh.axes_of(old))


def _has_values(array: Array) -> bool:
    return isinstance(array, jax.Array) and not is_traced(array)


def _is_committed(array: Array) -> bool:
    """Whether an array is committed to its device; a traced array counts as committed."""
    return is_traced(array) or getattr(array, "committed", getattr(array, "_committed", True))


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


# How a CPU compiles steps, which consist of hundreds of operations on a few numbers each. The
# compiler would remove fences before it decides what is computed together, and repeat the scalar
# algebra for each of its results. The older code generator takes a third of the time, and its code
# is as fast unless vectors have more numbers than this.
_FENCED = ("xla_disable_hlo_passes", "cse_barrier_expander")
_QUICK = ("xla_cpu_use_fusion_emitters", False)
_FEW = 4096


@functools.cache
def _options_for(few: bool) -> tuple:
    """The options for steps with vectors of few numbers, as far as JAX accepts them."""
    return tuple(filter(_is_accepted, (_FENCED, _QUICK) if few else (_FENCED,)))


def _is_accepted(option: tuple[str, Any]) -> bool:
    try:
        jax.jit(_fenced_loop, compiler_options=dict([option])).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _fenced_loop() -> Array:
    """A loop with a fence, which cannot be compiled if loops of its size are to be one kernel."""
    return jax.lax.while_loop(
        lambda x: x[0] < 1.0, lambda x: jax.lax.optimization_barrier(x + 1.0), jax.numpy.zeros(500)
    )


@functools.lru_cache(maxsize=64)
def _jit(
    function: Callable, static: int, donate: tuple[int, ...], options: tuple = ()
) -> Callable:
    return jax.jit(
        function, static_argnums=tuple(range(static)), donate_argnums=donate,
        compiler_options=dict(options),
    )


class _Structure(Keyed):
    """The structure of parameters by JAX's registry; see `Backend.flatten`."""

    def __init__(self, definition: Any):
        self._key = self._definition = definition

    def __repr__(self) -> str:
        return repr(self._definition)

    @property
    def num_leaves(self) -> int:
        return self._definition.num_leaves

    def is_leaf(self) -> bool:
        return False

    def leaves_of(self, tree: Any) -> list[Any]:
        return self._definition.flatten_up_to(tree)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        return jax.tree_util.tree_unflatten(self._definition, leaves)

    def paths(self) -> list[tuple[Any, ...]]:
        numbered = self.unflatten(range(self.num_leaves))
        found, _ = jax.tree_util.tree_flatten_with_path(numbered)
        return [tuple(map(_name_of_key, path)) for path, _ in found]


def _name_of_key(key: Any) -> Any:
    names = (getattr(key, name, None) for name in ("key", "idx", "name"))
    return next((name for name in names if name is not None), key)


# --- compiled functions that call functions of the user ----------------------------------------
#
# The caches of JAX keep static arguments, and what is compiled keeps the arrays that a function
# holds. So that both go with the function of the user, what is compiled refers to it weakly.


class _Weak:
    """A function of the user, by its identity, which does not keep it alive."""

    __slots__ = ("_identity", "_reference")

    def __init__(self, function: Callable):
        self._reference: Callable[[], Any]
        self._identity: tuple[int, Any]
        if inspect.ismethod(function):
            self._reference = weakref.WeakMethod(function)
            self._identity = id(function.__self__), function.__func__
        else:
            self._reference = weakref.ref(function)
            self._identity = id(function), None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._reference()(*arguments, **named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Weak) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


class _Compiled:
    """A compiled function whose arguments need not all be arrays.

    Arguments that JAX cannot trace, such as strings, are constants of what is compiled. So are
    Python's numbers once tracing them has failed, because the user's function is itself compiled
    with static arguments, or branches on them.
    """

    def __init__(
        self, function: Callable, static: tuple, donate: tuple[int, ...], options: tuple
    ):
        def call(constants: _Constants, moving: list[Array], given: dict[int, Any]) -> Any:
            arguments = [*static, *constants.joined_with(moving)]
            for place, argument in given.items():
                arguments[place] = argument
            return function(*arguments)

        # One function for each, because JAX forgets what it has compiled when the function goes.
        self._run = jax.jit(
            call, static_argnums=0, donate_argnums=2, compiler_options=dict(options)
        )
        # Among the arguments that are not static.
        self._donate = {place - len(static): place for place in donate}
        self._numbers_are_constant = False

    def __call__(self, *arguments: Any) -> Any:
        given = {place: arguments[i] for i, place in self._donate.items()}
        rest = [None if i in self._donate else each for i, each in enumerate(arguments)]
        leaves, structure = jax.tree_util.tree_flatten(rest)
        try:
            return self._run(*_split(leaves, structure, self._numbers_are_constant), given)
        except (TypeError, ValueError) as error:
            # Whether a function has static arguments cannot be asked.
            about_tracing = isinstance(error, jax.errors.JAXTypeError) or "static" in str(error)
            if not about_tracing or self._numbers_are_constant or not any(map(_is_number, leaves)):
                raise
            try:
                out = self._run(*_split(leaves, structure, True), given)
            except Exception:
                raise error from None
        self._numbers_are_constant = True
        return out


@dataclasses.dataclass(frozen=True)
class _Constants:
    """The leaves of arguments that are constants, with their types, because 1 == True; None in
    place of the others."""

    structure: Any
    values: tuple

    def joined_with(self, moving: list[Array]) -> Any:
        rest = iter(moving)
        leaves = [next(rest) if pair is None else pair[1] for pair in self.values]
        return jax.tree_util.tree_unflatten(self.structure, leaves)


def _split(leaves: list[Any], structure: Any, numbers: bool) -> tuple[_Constants, list[Any]]:
    """The constants among the leaves of arguments, and the other leaves."""
    values = tuple(
        None if _is_traceable(leaf) and not (numbers and _is_number(leaf)) else (type(leaf), leaf)
        for leaf in leaves
    )
    moving = [leaf for leaf, pair in zip(leaves, values, strict=True) if pair is None]
    return _Constants(structure, values), moving


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic)


def _is_traceable(leaf: Any) -> bool:
    """Whether JAX can trace a leaf; also True if it has no hash, so that JAX refuses it."""
    if is_array(leaf) or isinstance(leaf, np.generic) or _is_number(leaf):
        return True
    try:
        hash(leaf)
    except TypeError:
        return True
    return hasattr(leaf, "__jax_array__")


# What is compiled for functions of the user that are alive.
_COMPILED: dict[Any, _Compiled] = {}


def _compiled_with_its_functions(
    function: Callable, static: tuple, donate: tuple[int, ...], options: tuple
) -> _Compiled | None:
    """`function` with its static arguments, compiled for as long as the functions of the user among
    them exist; None if there is none, or one that cannot be referred to weakly."""
    owners: list[Any] = []
    try:
        function, *static_here = (_weakened(each, owners) for each in (function, *static))
        finalizers = [weakref.ref(owner) for owner in owners]
    except TypeError:
        return None
    if not finalizers:
        return None
    key = (function, *static_here, donate, options)
    found = _COMPILED.get(key)
    if found is None:
        found = _COMPILED[key] = _Compiled(
            function, tuple(static_here), donate, options
        )
        for owner in owners:
            weakref.finalize(owner, _COMPILED.pop, key, None).atexit = False
    return found


def _weakened(static: Any, owners: list[Any]) -> Any:
    """A static argument that refers to functions of the user weakly; adds what owns them to
    `owners`."""
    if names := getattr(type(static), "wrapped_functions", ()):
        weak = {name: _weakened(getattr(static, name), owners) for name in names}
        return dataclasses.replace(static, **weak)
    if not _is_of_user(static):
        return static
    owners.append(static.__self__ if inspect.ismethod(static) else static)
    return _Weak(static)


def _is_of_user(static: Any) -> bool:
    """Whether a static argument is a function that may go, and not one of this package."""
    if not callable(static) or isinstance(static, (type, _Weak)):
        return False
    if isinstance(static, (_Compiled, Hoisted)) or inspect.ismethod(static):
        return True
    if isinstance(static, types.FunctionType):
        return not (_is_here(static) and static.__closure__ is None)
    return not (isinstance(static, Keyed) or _is_here(type(static)))


def _is_here(defined: Any) -> bool:
    """Whether a function or class is one of this package; those without a module are not."""
    return (defined.__module__ or "").startswith("lbfgs_xp.")


def _widened(number: Any) -> Any:
    """A traced number in the default type of its kind."""
    if not is_traced(number):
        return number
    if jax.numpy.issubdtype(number.dtype, jax.numpy.integer):
        return counted(number)
    return jax.numpy.asarray(number, jax.dtypes.result_type(float))


def _in_types_of(like: Any, numbers: Any) -> Any:
    """Nested numbers as arrays of the types of the numbers in `like`."""
    return jax.tree.map(
        lambda number, new: jax.numpy.asarray(new, _number_type(number)), like, numbers
    )


def _number_type(number: Any) -> Any:
    """The default type of a number of Python, or of a traced one, which is a float."""
    return jax.dtypes.result_type(float if is_traced(number) else type(number))


def _on_host(function: Callable, like: Any, *numbers: Any) -> Any:
    shapes = jax.tree.map(lambda number: jax.ShapeDtypeStruct((), _number_type(number)), like)

    def on_host(*given: Any) -> Any:
        found = function(*jax.tree.map(lambda array: array.item(), given))
        return jax.tree.map(lambda number, s: np.asarray(number, s.dtype), found, shapes)

    return jax.pure_callback(on_host, shapes, *numbers, vmap_method="sequential")


_zeros = jax.jit(jax.numpy.zeros, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts: tuple[Array, ...], dtype: Any) -> Array:
    return jax.numpy.concatenate([part.astype(dtype).reshape(-1) for part in parts])


@jax.jit
def _max_abs(array: Array) -> Array:
    return jax.numpy.max(jax.numpy.abs(array), axis=-1)


@functools.partial(jax.jit, donate_argnums=0)
def _add_products(matrix: Array, factor: Any, pairs: Pairs) -> Array:
    """factor matrix + u v' + w z', as one operation on the memory of the matrix."""
    (u, v), (w, z) = pairs
    return factor * matrix + (u[:, None] * v + w[:, None] * z)


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


def _gradients(
    count: int, evaluate: Callable, *arguments: Any
) -> tuple[Array, list[Array], Any]:
    static, (leaves, batch) = arguments[:count], arguments[count:]

    def value_of(leaves: list[Array]) -> tuple[Array, Any]:
        value, aux = evaluate(*static, leaves, batch)
        _check_array(value, "loss", "params")
        return value, aux

    (value, aux), gradients = jax.value_and_grad(value_of, has_aux=True)(leaves)
    # JAX gives df/d(re) - i df/d(im).
    return value, [g.conj() if jax.numpy.iscomplexobj(g) else g for g in gradients], aux


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


def _hessian_product(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x, vector = arguments

    def total(x: Array) -> Array:
        return evaluate(*rest, x)[0].sum()

    return jax.jvp(jax.grad(total), (x,), (vector,))[1]


def _jacobian(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x = arguments
    _, push = jax.linearize(lambda x: evaluate(*rest, x), x)

    def column(unit: Array) -> Array:
        return push(jax.numpy.broadcast_to(unit, x.shape))

    return jax.vmap(column, out_axes=-1)(jax.numpy.eye(x.shape[-1], dtype=x.dtype))


def _pushed(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x, vectors = arguments

    def push(vector: Array) -> Array:
        return jax.jvp(lambda x: evaluate(*rest, x), (x,), (vector,))[1]

    return push(vectors) if vectors.ndim == 1 else jax.vmap(push)(vectors)


def _pulled(evaluate: Callable, *arguments: Any) -> Array:
    *rest, x, vectors = arguments
    _, pull = jax.vjp(lambda x: evaluate(*rest, x), x)
    return pull(vectors)[0] if vectors.ndim == 1 else jax.vmap(lambda u: pull(u)[0])(vectors)


def _row_gradients(evaluate: Callable, *arguments: Any) -> Array:
    *rest, rows, x = arguments

    def gradient(row: list[Array]) -> Array:
        return jax.grad(lambda x: evaluate(*rest, row, x))(x)

    return jax.vmap(gradient)(rows)


@jax.jit
def _cholesky(matrix: Array, shift: float) -> Array:
    places = jax.numpy.arange(matrix.shape[0])
    return jax.lax.linalg.cholesky(
        matrix.at[places, places].add(shift), symmetrize_input=False
    )


@jax.jit
def _solved(factor: Array, b: Array) -> Array:
    return jax.scipy.linalg.cho_solve((factor, True), b)


def _refuse_key(array: Any, what: str) -> None:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{what} is a PRNG key; wanted an array of numbers, and the key as an argument or a "
            "constant of the function"
        )
