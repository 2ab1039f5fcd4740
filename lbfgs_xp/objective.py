"""fun and jac, of whatever form, as one function: vector -> (value, gradient, aux)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.backend import Array, described, is_array
from lbfgs_xp.tree import Layout, flatten, map_leaves

_WAYS_OUT = (
    "give jac= a function that returns the gradient; or jac=True, fun then returning "
    '(value, gradient); or jac="2-point" or "3-point" for finite differences; or an x0 of a '
    "library that differentiates (a tensor of PyTorch, an array of JAX)"
)


class Objective:
    """Evaluates value and gradient on vectors and counts the evaluations.

    Parameters
    ----------
    fun, args, jac, has_aux, pass_rows
        As in `lx.minimize`.
    layout : Layout
        Between the user's parameters and the vector.

    Attributes
    ----------
    layout : Layout
        That of the problems in the batch.
    nfev, nhev : int
        How often `fun` was called; how often the Hessian was formed.
    differs, forward : bool
        Whether the gradient is one of differences; and of forward ones. Set `forward` to False for
        central ones.
    """

    def __init__(
        self, fun: Callable, args: tuple, jac: Any, has_aux: bool, layout: Layout,
        pass_rows: bool = False,
    ):
        if not callable(fun):
            raise TypeError(f"fun is a {type(fun).__name__}; wanted a function of x")
        if not isinstance(args, tuple):
            args = (args,)
        if pass_rows and not layout.batch:
            raise ValueError("pass_rows is True for one problem; wanted it with batched=True")
        if layout.batch and not pass_rows:
            _warn_of_shared(args, layout)
        self.layout = self._whole = layout
        self._all_args = args
        self._pass_rows = pass_rows
        self.backend = layout.backend
        self.fun = fun
        self.args = args
        self.has_aux = has_aux
        self.nfev = self.nhev = 0
        self.jac: Any = None
        self.forward = self.differs = False
        if layout.batch:
            self.of_rows(None)
        self._evaluate = self._choose(jac)
        # Like the gradient, the values of a batch may be in a buffer that fun fills again.
        self.evaluate = self._kept if layout.batch else self._evaluate
        self._alone = -1
        if self.backend.is_numpy and layout.plain:
            self._alone = self._references_of_a_fresh_array()

    def calls_per_trial(self, forward: bool) -> int:
        """How often fun is called for a value and its gradient by forward, or central differences.
        """
        return 1 + (1 if forward else 2) * self.layout.size

    def __call__(self, x: Array) -> tuple[Any, Array, Any]:
        """(value, gradient, aux) at the vector x: (...), (..., n), anything."""
        return self.evaluate(x)

    def of_rows(self, here: Array | None) -> None:
        """From now on x holds the problems with these numbers, (k,); None: all of them."""
        count = self._whole.batch[0]
        self.layout = self._whole if here is None else self._whole.of_rows(here.shape[0])

        def belongs(leaf: Any) -> bool:
            return is_array(leaf) and tuple(leaf.shape[:1]) == (count,)

        def rows(arg: Any) -> Any:
            # What holds nothing of the rows stays the object that it is, for fun may write into it.
            if not any(map(belongs, flatten(arg)[0])):
                return arg
            return map_leaves(
                lambda leaf: self.backend.rows_of(leaf, here) if belongs(leaf) else leaf, arg
            )

        if self._pass_rows:
            numbers = self.backend.order(np.arange(count)) if here is None else here
            self.args = (numbers, *self._all_args)
        elif here is None:
            self.args = self._all_args
        else:
            self.args = tuple(map(rows, self._all_args))

    def _kept(self, x: Array) -> tuple[Any, Array, Any]:
        value, gradient, aux = self._evaluate(x)
        return self.backend.own(value), gradient, aux

    def hessian(self, hess: Callable | None) -> Callable[[Array], Array]:
        """The function from the vector x to its Hessian, symmetric matrices (..., n, n).

        hess : as in `lx.minimize`; None: automatic differentiation.
        """
        if any(self.layout.complex):
            raise TypeError(
                "x0 is complex; wanted real x0 for a method that needs the Hessian, which is that "
                "of real variables"
            )
        if hess is None and not self.backend.differentiates:
            raise ValueError(
                f"{self.backend.name} has no automatic differentiation: give hess= a function that "
                "returns the Hessian; or an x0 of a library that differentiates; or choose a "
                'method that needs no Hessian, such as "lbfgs"'
            )
        value = _first_and_aux if self._evaluate == self._both else _value_and_aux

        def evaluate(x: Array) -> Array:
            layout = self.layout
            shape = (*layout.batch, layout.size, layout.size)
            self.nhev += 1
            if hess is None:
                differentiated = self.backend.hessian(value, self.fun, self.has_aux, layout)
                matrix = differentiated(self.args, x)
            else:
                # A copy, for a function that is called once an iteration may well change it.
                matrix = hess(layout.to_tree(self.backend.own(x)), *self.args)
                matrix = self.backend.constant(layout.check(matrix, 0, "the Hessian", shape))
            return 0.5 * (matrix + layout.xp.matrix_transpose(matrix))

        return evaluate

    def _choose(self, jac: Any) -> Callable:
        if jac is True:
            return self._both
        if callable(jac):
            self.jac = jac
            return self._separate
        if isinstance(jac, str) and jac in ("2-point", "3-point"):
            self.differs, self.forward = True, jac == "2-point"
            return self._differences
        if jac is not None and jac is not False:
            raise ValueError(
                f"jac is {jac!r}; wanted None (automatic differentiation), True, a function, "
                '"2-point" or "3-point"'
            )
        if not self.backend.differentiates:
            raise ValueError(
                f"{self.backend.name} has no automatic differentiation: {_WAYS_OUT}"
            )
        return self._automatic

    # --- the four ways to a gradient -----------------------------------------------------------

    def _both(self, x: Array) -> tuple[Any, Array, Any]:
        self.nfev += 1
        out = self.fun(self.layout.to_tree(x), *self.args)
        try:
            value, gradient = out
        except (TypeError, ValueError):
            raise TypeError(
                f"fun returned {described(out)}; wanted, with jac=True, the pair "
                + ("((value, aux), gradient)" if self.has_aux else "(value, gradient)")
            ) from None
        del out  # or it would hold the gradient
        aux = None
        if self.has_aux:
            value, aux = _split(value)
        if self.layout.batch or not isinstance(value, float):
            value = self.backend.constant(_checked_value(value, self.layout))
        return value, self._gradient(gradient, x), aux

    def _separate(self, x: Array) -> tuple[Any, Array, Any]:
        value, aux = self._value(x)
        gradient = self.jac(self.layout.to_tree(x), *self.args)
        return value, self._gradient(gradient, x), aux

    def _automatic(self, x: Array) -> tuple[Any, Array, Any]:
        self.nfev += 1
        differentiated = self.backend.value_and_gradient(
            _value_and_aux, self.fun, self.has_aux, self.layout
        )
        value, gradient, aux = differentiated(self.args, x)
        gradient = self.backend.placed(gradient, "the gradient")
        return value, gradient, map_leaves(self.backend.constant, aux) if self.has_aux else None

    def _differences(self, x: Array) -> tuple[Any, Array, Any]:
        """Finite differences (Nocedal & Wright, section 8.1), a coordinate at a time."""
        xp, backend = self.layout.xp, self.backend
        value, aux = self._value(x)
        h = backend.eps ** (1 / 2 if self.forward else 1 / 3)
        steps = h * xp.where(xp.abs(x) > 1.0, xp.abs(x), xp.ones_like(x))
        places = xp.arange(self.layout.size, device=backend.placement)
        slopes = []
        for i in range(self.layout.size):
            here = places == i
            ahead = xp.where(here, x + steps, x)
            behind = x if self.forward else xp.where(here, x - steps, x)
            low = value if self.forward else self._value(behind)[0]
            high = self._value(ahead)[0]
            with np.errstate(all="ignore"):    # values that are not finite
                slopes.append((high - low) / (ahead[..., i] - behind[..., i]))
        slopes = [s if is_array(s) else backend.full((), s) for s in slopes]
        gradient = backend.placed(xp.stack(slopes, axis=-1), "the gradient")
        return value, xp.astype(gradient, backend.dtype, copy=False), aux

    # --- checks --------------------------------------------------------------------------------

    def _value(self, x: Array) -> tuple[Any, Any]:
        self.nfev += 1
        fun = self._precise if self.differs else self.fun
        value, aux = _value_and_aux(fun, self.has_aux, self.layout, self.args, x)
        return self.backend.constant(value), aux

    def _precise(self, x: Any, *args: Any) -> Any:
        """What fun returned, if its values are as precise as x."""
        out = self.fun(x, *args)
        value = out[0] if self.has_aux and isinstance(out, (tuple, list)) and out else out
        if isinstance(value, np.generic) or is_array(value):
            self.backend.check_precision(value, "fun")
        return out

    def _gradient(self, gradient: Any, x: Array) -> Array:
        """The user's gradient as a vector that nobody else can change later."""
        plain = self.layout.plain
        if not (
            plain
            and type(gradient) is type(x)
            and gradient.shape == x.shape
            and gradient.dtype == x.dtype
            and self.backend.holds(gradient)
        ):
            gradient = self.layout.to_vector(gradient, "the gradient")
        # A caller that fills one buffer again and again would change our past gradients. An array
        # that nobody else holds needs no copy.
        references = sys.getrefcount(gradient)
        if self._alone == 0:
            return references
        if references == self._alone and gradient.base is None:
            return gradient
        return self.backend.own(gradient)

    def _references_of_a_fresh_array(self) -> int:
        """How many references `_gradient` sees to an array that only the caller's result holds.

        Counted on the way that a real gradient takes, since interpreters differ.
        """
        fun, jac, self._alone = self.fun, self.jac, 0
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


def _warn_of_shared(args: tuple, layout: Layout) -> None:
    """Warns of what would be cut with the rows, and may have been meant for the variables."""
    (count,) = layout.batch
    if not any(count in shape[1:] for shape in layout.shapes):
        return
    for leaf in flatten(args)[0]:
        if is_array(leaf) and tuple(leaf.shape) == (count,):
            warnings.warn(
                f"args has an array of shape ({count},), and x0 has {count} rows and another axis "
                f"of {count}: it is taken as a number for each row, and goes with the rows. If all "
                "rows share it, hand over array[None]; else array[:, None] says so without this "
                "warning",
                stacklevel=5,
            )


def _value_and_aux(
    fun: Callable, has_aux: bool, layout: Layout, args: tuple, x: Array
) -> tuple[Any, Any]:
    """What fun says of the vector x, checked."""
    out = fun(layout.to_tree(x), *args)
    value, aux = _split(out) if has_aux else (out, None)
    return _checked_value(value, layout), aux


def _first_and_aux(
    fun: Callable, has_aux: bool, layout: Layout, args: tuple, x: Array
) -> tuple[Any, Any]:
    """`_value_and_aux` of a function that returns its gradient as well."""
    return _value_and_aux(_first, has_aux, layout, (fun, *args), x)


def _first(x: Any, fun: Callable, *args: Any) -> Any:
    return fun(x, *args)[0]


def _split(out: Any) -> tuple[Any, Any]:
    try:
        value, aux = out
    except (TypeError, ValueError):
        raise TypeError(
            f"fun returned {described(out)}; wanted, with has_aux=True, the pair (value, aux)"
        ) from None
    return value, aux


def _checked_value(value: Any, layout: Layout) -> Any:
    batch, backend = layout.batch, layout.backend
    if isinstance(value, tuple):
        raise TypeError(
            f"fun returned {described(value)}; wanted a value alone "
            "(jac=True or has_aux=True take a pair)"
        )
    if isinstance(value, (bool, int, float, np.floating, np.integer)) and not batch:
        return float(value)
    if not is_array(value):
        raise TypeError(
            f"fun returned {described(value)}; wanted "
            + (f"an array of shape {batch}" if batch else "a real number")
        )
    if (library := backend.name_of(value)) != backend.name:
        raise TypeError(
            f"fun returned an array of {library}; wanted one of {backend.name}, like x0"
        )
    shape = tuple(value.shape)
    if shape != batch:
        wanted = f"{batch}, one value for each row of x0" if batch else "a single number (0-d)"
        if not batch and len(shape) == 1 and all(each[:1] == shape for each in layout.shapes):
            wanted += ", or batched=True where each row of x0 is a problem of its own"
        raise ValueError(f"fun returned an array of shape {shape}; wanted {wanted}")
    if not layout.xp.isdtype(value.dtype, "real floating"):
        raise TypeError(f"fun returned dtype {value.dtype}; wanted a real floating-point dtype")
    return value


class GradientCheck(NamedTuple):
    """What `lx.check_gradient` found.

    error : float
        The largest |jac - differences|, divided by max(1, largest |differences|): where f or the
        units of x make all gradients small, compare `jac` with `differences` yourself.
    where : int
        Where, in the flattened x.
    jac, differences : arrays (n,)
        The gradient as given, and by central differences.
    """

    error: float
    where: int
    jac: Array
    differences: Array

    def __repr__(self) -> str:
        return f"GradientCheck(error={self.error:.2e}, where={self.where})"


def check_gradient(
    fun: Callable, x: Any, jac: Any = None, args: tuple = (), *, has_aux: bool = False
) -> GradientCheck:
    """Compares the gradient with central differences of the value.

    Parameters
    ----------
    fun, jac, args, has_aux
        As in `lx.minimize`.
    x : array or nested parameters
        Where to look. float64 tells most: errors of about 1e-10 are then rounding alone, while
        float32 sees no better than 1e-4.

    Returns
    -------
    GradientCheck
        `error` is relative; a right gradient gives a number near eps^(2/3).

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> check = lx.check_gradient(lambda x: np.sum(x**3), np.asarray([1.0, 2.0]), lambda x: 2 * x)
    >>> check.error > 0.1, check.where
    (True, 1)
    """
    layout = Layout(x, batched=False)
    vector = layout.to_vector(x, "x")
    _, given, _ = Objective(fun, args, jac, has_aux, layout)(vector)

    def value_only(x: Any, *args: Any) -> Any:
        out = fun(x, *args)
        value = out[0] if jac is True else out
        return value[0] if has_aux else value

    _, numeric, _ = Objective(value_only, args, "3-point", False, layout)(vector)
    difference = layout.backend.to_host(given - numeric)
    size = float(np.max(np.abs(layout.backend.to_host(numeric))))
    index = int(np.argmax(np.abs(difference)))
    return GradientCheck(abs(float(difference[index])) / max(1.0, size), index, given, numeric)
