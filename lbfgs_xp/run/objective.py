"""fun and jac, in any of their forms, as one function: vector -> (value, gradient, aux)."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import array_api_compat as compat
import numpy as np

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, identity, is_array, library_of, take
from lbfgs_xp.arrays.rows import belongs_to_rows, take_rows
from lbfgs_xp.arrays.tree import Layout, flatten, map_leaves
from lbfgs_xp.run import differences
from lbfgs_xp.run.differences import Differences

_WAYS_OUT = (
    "give jac= a function that returns the gradient; or jac=True, with fun returning "
    '(value, gradient); or jac="2-point" or "3-point" for finite differences; or an x0 of a '
    "library that differentiates (a PyTorch tensor or a JAX array)"
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """fun and jac as a pure function (args, x) -> (value, gradient, aux), to be compiled.

    fun, jac, has_aux, layout : as in `Objective`; jac is None, True or a function.
    """

    # See `Backend.jit`.
    wrapped_functions = ("fun", "jac")

    fun: Callable
    jac: Any
    has_aux: bool
    layout: Layout

    def value_and_aux(self, args: tuple, x: Array) -> tuple[Any, Any]:
        """(args, x) -> (value, aux), if fun returns no gradient."""
        return _value_and_aux(self.fun, self.has_aux, self.layout.for_traced(), args, x)

    def __call__(self, args: tuple, x: Array) -> tuple[Any, Array, Any]:
        fun, jac, has_aux = self.fun, self.jac, self.has_aux
        layout = self.layout.for_traced()
        if jac is None:
            evaluate = layout.backend.value_and_gradient(_value_and_aux, fun, has_aux, layout)
            return evaluate(args, x)
        if jac is True:
            value, gradient, aux = _pair(fun, has_aux, layout, args, x)
            value = _checked_value(value, layout)
        else:
            value, aux = _value_and_aux(fun, has_aux, layout, args, x)
            gradient = jac(layout.to_tree(x), *args)
        return value, layout.gradient_vector(gradient), aux


class Objective:
    """Value and gradient as functions of a vector, with counts of the evaluations.

    Parameters
    ----------
    fun, args, jac, has_aux, pass_rows
        As in `lx.minimize`.
    layout : Layout
        Converts between the user's parameters and the vector.
    level : int
        How far up the caller of the public function is, for warnings.

    Attributes
    ----------
    layout : Layout
        The layout of the problems that are in the batch.
    nfev, nhev : int
        How often `fun` was called; how often the Hessian was formed.
    is_shared : bool
        Whether value and gradient come from many processes.
    passes_rows : bool
        Whether the functions take the indices of the rows.
    differs, forward : bool
        Whether the gradient comes from finite differences, and whether from forward ones. Set
        `forward` to False for central ones.
    watch : function
        Called with x and the value there for each value of finite differences.
    """

    def __init__(
        self, fun: Callable, args: tuple, jac: Any, has_aux: bool, layout: Layout,
        pass_rows: bool = False, level: int = 6,
    ):
        if not callable(fun):
            raise TypeError(f"fun is a {type(fun).__name__}; wanted a function of x")
        if not isinstance(args, tuple):
            args = (args,)
        if pass_rows and not layout.batch:
            raise ValueError("pass_rows is True for one problem; wanted it only with batched=True")
        self.layout = self._all = layout
        self._all_args = args
        self.passes_rows = pass_rows
        # Lengths that a 1-d array shared by all rows may have.
        self._shared = {length for shape in layout.shapes for length in shape[1:]}
        if layout.batch and not pass_rows:
            self._warn_of_shared(level)
        warn_of_foreign(layout.backend, args, level)
        self.backend = layout.backend
        self.fun = fun
        self.args = args
        self.has_aux = has_aux
        self.nfev = self.nhev = self.in_products = 0
        self.jac: Any = None
        self.forward = self.differs = False
        # The function that differentiates, and the layout for which it was made.
        self._differentiated: tuple[Any, Any] = (None, None)
        self._bounds: Any = None
        self._bounds_here: Any = None
        if layout.batch:
            self.restrict_to(None)
        self.differences = Differences(self.backend, self._value_alone, least=1.0)
        self.watch: Callable[[Array, Any], Any] = _ignore
        self._forgiven: tuple[type[Exception], ...] = ()
        self._evaluate = self._choose(jac)
        # Like the gradient, the values of a batch may be in a buffer that fun reuses.
        self.evaluate = self._with_own_value if layout.batch else self._evaluate
        self.is_shared = False
        self._together: Callable[[Callable], Callable] = identity
        self._unshared = -1
        if self.backend.on_host and layout.plain:
            self._unshared = self._references_of_a_fresh_array()

    def stay_within(self, lower: Any, upper: Any) -> None:
        """Take differences between these bounds only, numbers or arrays that broadcast to x."""
        xp, backend, shape = self.layout.xp, self.backend, self.layout.start().shape
        self._bounds = self._bounds_here = tuple(
            xp.broadcast_to(side if is_array(side) else backend.full((), side), shape)
            for side in (lower, upper)
        )

    def share(self, together: Callable[[Callable], Callable]) -> None:
        """Take value and gradient from many processes: `together` makes such an evaluation of that
        of this process."""
        if self.differs:
            raise ValueError(
                "jac asks for differences, whose steps would differ between the processes; wanted "
                "automatic differentiation, a function, or True"
            )
        self.is_shared, self._together = True, together
        self.evaluate = together(self.evaluate)

    def forgive(self, errors: tuple[type[Exception], ...]) -> None:
        """Let an exception of these classes count as nan from now on."""
        if errors:
            self._forgiven, self.evaluate = errors, self._together(self._evaluate_or_nan)

    @property
    def returns_both(self) -> bool:
        """Whether fun also returns its gradient."""
        return self._evaluate == self._both

    @property
    def bounds(self) -> Any:
        """None, or (lower, upper) as arrays like x, for the problems in the batch."""
        return self._bounds_here

    def calls_per_trial(self, forward: bool) -> int:
        """How often fun is called for a value and its gradient by finite differences."""
        return 1 + differences.calls_per_derivative(self.layout.size, central=not forward)

    def value(self, x: Array) -> Any:
        """The value at x alone."""
        if self.is_shared:
            return self.evaluate(x)[0]
        value, _ = self._value(x)
        return self.backend.own(value) if self.layout.batch else value

    def expect_noise(
        self, x: Array, value: Any, noise: Any, may_call: Callable[[int], bool]
    ) -> Array:
        """From now on take differences over steps that suit this noise, where it is above 0. Return
        how often each row has called fun to find them."""
        return self.differences.expect_noise(x, value, noise, self._bounds_here, may_call)

    def restrict_to(self, indices: Array | None) -> None:
        """Expect x to hold only the problems with these indices, (k,); None: all of them."""
        (count,) = self._all.batch
        self.layout = self._all if indices is None else self._all.of_rows(
            indices.shape[0], indices
        )
        self._bounds_here = self._bounds
        if self._bounds is not None and indices is not None:
            self._bounds_here = tuple(take(side, indices) for side in self._bounds)
        if self.passes_rows:
            numbers = self.backend.index_array(np.arange(count)) if indices is None else indices
            self.args = (numbers, *self._all_args)
        elif indices is None:
            self.args = self._all_args
        else:
            self.args = tuple(
                take_rows(self.backend, arg, indices, count, self._shared)
                for arg in self._all_args
            )

    def pure(self) -> Evaluation | None:
        """The evaluation for the problems in the batch as a pure function, if the user has compiled
        fun (and jac), which declares them pure."""
        functions = [self.fun] + ([self.jac] if callable(self.jac) else [])
        if self.differs or not all(map(self.backend.is_compiled, functions)):
            return None
        return self.evaluation()

    def evaluation(self) -> Evaluation:
        """The evaluation for the problems in the batch, without finite differences, as a function
        that is pure if the user's functions are."""
        jac = True if self.returns_both else self.jac
        return Evaluation(self.fun, jac, self.has_aux, self.layout)

    def hessian(self, hess: Callable | None) -> Callable[[Array], Array]:
        """The function from the vector x to the Hessian there, a symmetric matrix (..., n, n).

        hess : as in `lx.minimize`; None: automatic differentiation.
        """
        if any(self.layout.complex):
            raise TypeError(
                "x0 is complex; wanted real x0 for a method that needs the Hessian, which is "
                "defined for real variables only"
            )
        if hess is None and not self.backend.differentiates:
            raise ValueError(
                f"{self.backend.name} has no automatic differentiation: give hess= a function that "
                "returns the Hessian; or an x0 of a library that differentiates; or choose a "
                'method that needs no Hessian, such as "lbfgs"'
            )
        value = _first_and_aux if self.returns_both else _value_and_aux

        def evaluate(x: Array) -> Array:
            layout = self.layout
            shape = (*layout.batch, layout.size, layout.size)
            self.nhev += 1
            if hess is None:
                differentiated = self.backend.hessian(value, self.fun, self.has_aux, layout)
                matrix = differentiated(self.args, x)
            else:
                # A copy costs little once per iteration, and the function may change it.
                matrix = hess(layout.to_tree(self.backend.own(x)), *self.args)
                matrix = self.backend.detach(layout.check(matrix, 0, "the Hessian", shape))
                if layout.scale is not None:
                    matrix = matrix * layout.scale[..., None] * layout.scale[..., None, :]
            return 0.5 * (matrix + layout.xp.matrix_transpose(matrix))

        return evaluate

    def products(self, hessp: Callable | None) -> Callable[[Array, Array], Callable]:
        """The function from x and its gradient to that from a vector to the Hessian times it.

        hessp : as in `lx.minimize`; None: automatic differentiation if the gradient comes from it,
            else differences of gradients, whose calls of fun `in_products` counts until the next
            evaluation.
        """
        if hessp is not None:
            return functools.partial(self._given_products, hessp)
        if self._evaluate == self._automatic:
            return self._automatic_products
        return self._products_by_differences

    def _given_products(self, hessp: Callable, x: Array, gradient: Array) -> Callable:
        def product(vector: Array) -> Array:
            layout, own = self.layout, self.backend.own
            self.nhev += 1
            trees = layout.to_tree(own(x)), layout.to_tree(own(vector))
            found = layout.to_vector(hessp(*trees, *self.args), "the product")
            found = found if layout.scale is None else found * layout.scale
            return own(self.backend.detach(found))

        return product

    def _automatic_products(self, x: Array, gradient: Array) -> Callable:
        linear = self.backend.hessian_product(
            _value_and_aux, self.fun, self.has_aux, self.layout
        )(self.args, x)

        def product(vector: Array) -> Array:
            self.nhev += 1
            return linear(vector)

        return product

    def _products_by_differences(self, x: Array, gradient: Array) -> Callable:
        xp, backend = self.layout.xp, self.backend
        # Where gradients themselves are differences, these have fewer digits.
        share = backend.eps ** (0.25 if self.differs else 0.5)
        size = xp.maximum(backend.max_abs(x), xp.ones_like(x[..., 0]))

        def product(vector: Array) -> Array:
            self.nhev += 1
            longest = backend.max_abs(vector)
            one = xp.ones_like(longest)
            step = (share * size / xp.where(longest > 0.0, longest, one))[..., None]
            before = self.nfev
            _, ahead, _ = self.evaluate(x + step * vector)
            self.in_products += self.nfev - before
            # Not divided by step, because JAX rounds that as this product.
            return (ahead - gradient) * (1.0 / step)

        return product

    def _choose(self, jac: Any) -> Callable:
        differences.check_jac(jac)
        if jac is True:
            return self._both
        if callable(jac):
            self.jac = jac
            return self._separate
        if jac is not None:
            self.differs, self.forward = True, jac == "2-point"
            return self._differences
        if not self.backend.differentiates:
            raise ValueError(
                f"{self.backend.name} has no automatic differentiation: {_WAYS_OUT}"
            )
        return self._automatic

    def _with_own_value(self, x: Array) -> tuple[Any, Array, Any]:
        value, gradient, aux = self._evaluate(x)
        return self.backend.own(value), gradient, aux

    def _evaluate_or_nan(self, x: Array) -> tuple[Any, Array, Any]:
        try:
            return self._evaluate(x)
        except self._forgiven:
            return math.nan, self.layout.xp.full_like(x, math.nan), None

    # --- four ways to compute the gradient -----------------------------------------------------

    def _both(self, x: Array) -> tuple[Any, Array, Any]:
        self.nfev += 1
        value, gradient, aux = _pair(self.fun, self.has_aux, self.layout, self.args, x)
        if self.layout.batch or not isinstance(value, float):
            value = self.backend.detach(_checked_value(value, self.layout))
        return value, self._gradient(gradient, x), aux

    def _separate(self, x: Array) -> tuple[Any, Array, Any]:
        value, aux = self._value(x)
        gradient = self.jac(self.layout.to_tree(x), *self.args)
        return value, self._gradient(gradient, x), aux

    def _automatic(self, x: Array) -> tuple[Any, Array, Any]:
        self.nfev += 1
        layout, differentiated = self._differentiated
        if layout is not self.layout:
            layout = self.layout
            differentiated = self.backend.value_and_gradient(
                _value_and_aux, self.fun, self.has_aux, layout
            )
            self._differentiated = layout, differentiated
        value, gradient, aux = differentiated(self.args, x)
        gradient = self.backend.placed(gradient, "the gradient")
        return value, gradient, map_leaves(self.backend.detach, aux) if self.has_aux else None

    def _differences(self, x: Array) -> tuple[Any, Array, Any]:
        xp, backend = self.layout.xp, self.backend
        value, aux = self._value(x)
        if backend.reads_are_free and not np.any(np.isfinite(backend.to_host(value))):
            # A search goes back from here, whatever the gradient.
            return value, xp.full_like(x, math.nan), aux
        slopes = self.differences(x, value, None, not self.forward, self._bounds_here)
        gradient = backend.placed(xp.stack(slopes, axis=-1), "the gradient")
        return value, xp.astype(gradient, backend.dtype, copy=False), aux

    # --- what the user's functions returned ----------------------------------------------------

    def _value(self, x: Array) -> tuple[Any, Any]:
        self.nfev += 1
        fun = self._precise if self.differs else self.fun
        value, aux = _value_and_aux(fun, self.has_aux, self.layout, self.args, x)
        return self.backend.detach(value), aux

    def _value_alone(self, x: Array) -> Any:
        """The value for finite differences."""
        try:
            value = self._value(x)[0]
        except self._forgiven:
            return math.nan
        self.watch(x, value)
        return value

    def _precise(self, x: Any, *args: Any) -> Any:
        """What fun returned, checked to be as precise as x."""
        out = self.fun(x, *args)
        value = out[0] if self.has_aux and isinstance(out, (tuple, list)) and out else out
        if isinstance(value, np.generic) or is_array(value):
            returned.check_precision("fun", value, self.backend)
        return out

    def _gradient(self, gradient: Any, x: Array) -> Array:
        """The user's gradient as a vector that no one else can change later."""
        plain = self.layout.plain
        if not (
            plain
            and type(gradient) is type(x)
            and gradient.shape == x.shape
            and gradient.dtype == x.dtype
            and self.backend.holds(gradient)
            and self.backend.is_dense(gradient)
        ):
            gradient = self.layout.gradient_vector(gradient)
        # A function that reuses one buffer would change our earlier gradients. An array that no
        # one else holds needs no copy.
        references = sys.getrefcount(gradient)
        if self._unshared == 0:
            return references
        if references == self._unshared and gradient.base is None:
            return gradient
        return self.backend.own(gradient)

    def _references_of_a_fresh_array(self) -> int:
        """How many references `_gradient` sees to an array that only the user's result holds.

        Counted on the path that a real gradient takes, because interpreters differ.
        """
        fun, jac, self._unshared = self.fun, self.jac, 0
        like, batch = self.layout.leaves[0], self.layout.batch
        value = np.zeros(batch) if batch else 0.0
        value_and_aux = (value, None) if self.has_aux else value
        if self._evaluate == self._both:
            self.fun = lambda x, *args: (value_and_aux, np.empty_like(like))
        elif self._evaluate == self._separate:
            self.fun = lambda x, *args: value_and_aux
            self.jac = lambda x, *args: np.empty_like(like)
        else:
            return -1
        references = self._evaluate(like)[1]
        self.fun, self.jac, self.nfev = fun, jac, 0
        return references

    def _warn_of_shared(self, level: int) -> None:
        """Warn about arrays that all rows share but that may hold one number for each row."""
        (count,) = self._all.batch
        for leaf in flatten(self._all_args)[0]:
            if is_array(leaf) and leaf.ndim == 1 and belongs_to_rows(leaf, count) and not (
                belongs_to_rows(leaf, count, self._shared)
            ):
                warnings.warn(
                    f"args has an array of shape ({count},), and x0 has {count} rows and another "
                    f"axis of length {count}: all rows share the array. If it holds a number for "
                    "each row, pass array[:, None]. If it is shared, pass array[None] to silence "
                    "this warning",
                    stacklevel=level,
                )


def _ignore(x: Array, value: Any) -> None:
    """Do nothing."""


def _pair(
    fun: Callable, has_aux: bool, layout: Layout, args: tuple, x: Array
) -> tuple[Any, Any, Any]:
    """Value, gradient and aux, unchecked, of a function that also returns its gradient."""
    value, gradient = returned.pair(
        "fun", fun(layout.to_tree(x), *args), "jac=True",
        "((value, aux), gradient)" if has_aux else "(value, gradient)",
    )
    value, aux = _split(value) if has_aux else (value, None)
    return value, gradient, aux


def warn_of_foreign(backend: Backend, args: tuple, level: int) -> None:
    """Warn once about arrays that a function converts or moves in every call, which may take longer
    than all the rest.

    level : how far up the caller of the public function is.
    """
    for leaf in flatten(args)[0]:
        if not is_array(leaf) or leaf.ndim == 0 or isinstance(leaf, np.generic):
            continue
        if backend.is_traced(leaf):
            continue    # it lies on no device yet
        library = library_of(leaf)
        if library != backend.name:
            what, like = f"of {library}", f"of {backend.name}"
        elif not backend.holds(leaf):
            what, like = f"on {compat.device(leaf)}", f"on {backend.device}"
        else:
            continue
        warnings.warn(
            f"args has an array {what}, and x0 is {like}: converting it in every call takes time. "
            f"Pass an array {like}",
            stacklevel=level,
        )
        return


def _value_and_aux(
    fun: Callable, has_aux: bool, layout: Layout, args: tuple, x: Array
) -> tuple[Any, Any]:
    """What fun returned for the vector x, checked."""
    out = fun(layout.to_tree(x), *args)
    value, aux = _split(out) if has_aux else (out, None)
    return _checked_value(value, layout), aux


def _first_and_aux(
    fun: Callable, has_aux: bool, layout: Layout, args: tuple, x: Array
) -> tuple[Any, Any]:
    """`_value_and_aux` for a function that also returns its gradient."""
    return _value_and_aux(_first, has_aux, layout, (fun, *args), x)


def _first(x: Any, fun: Callable, *args: Any) -> Any:
    return fun(x, *args)[0]


def _split(out: Any) -> tuple[Any, Any]:
    return returned.pair("fun", out, "has_aux=True", "(value, aux)")


def _checked_value(value: Any, layout: Layout) -> Any:
    backend, pair_if = layout.backend, "jac=True or has_aux=True"
    if layout.batch:
        return returned.row_numbers("fun", value, backend, layout.batch, pair_if)
    hint = ""
    if getattr(value, "ndim", 0) == 1 and all(s[:1] == value.shape for s in layout.shapes):
        hint = ", or batched=True if each row of x0 is a separate problem"
    return returned.real_number("fun", value, backend, pair_if=pair_if, hint=hint)
