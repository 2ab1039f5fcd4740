"""The residuals and their Jacobian, of whatever form, as functions of vectors (B, p)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.backend import Array, described, is_array
from lbfgs_xp.tree import Layout, map_leaves, unflatten

# Ways to a Jacobian by differences, and the calls of fun for each parameter.
_DIFFERENCES = {"2-point": 1, "3-point": 2}
_WAYS_OUT = (
    "give jac= a function that returns the Jacobian (m, p); or "
    'jac="3-point" (or "2-point") for finite differences; or x0 of a library that differentiates'
)
_PARTIAL = (
    "lbfgs_xp: called with some of the rows of the batch alone; compact=False calls with all"
)


@dataclasses.dataclass
class Calls:
    """How often the residuals were called, for differences too; and their Jacobian was formed."""

    nfev: int = 0
    njev: int = 0


class Residuals:
    """Evaluates residuals and Jacobian, and counts the evaluations.

    One problem is the batch of size 1 here: vectors are (B, p), residuals (B, m), Jacobians
    (B, m, p).

    Parameters
    ----------
    fun, args, jac
        As in `lx.least_squares`.
    layout : Layout
        Between the user's parameters and the vector.
    compiled : bool
        Whether JAX may compile fun.
    fresh : bool
        Whether jac returns a new array each time, one that lies column after column.

    Attributes
    ----------
    calls : Calls
        What was called so far.
    calls_per_jacobian : int
        How often a Jacobian by differences calls fun; else 0.
    """

    def __init__(
        self, fun: Callable, args: tuple, jac: Any, layout: Layout, compiled: bool,
        fresh: bool = False,
    ):
        if not callable(fun):
            raise TypeError(f"residuals is a {type(fun).__name__}; wanted a function of x")
        if any(layout.complex):
            raise TypeError("x0 is complex; wanted real x0 for least squares")
        self.layout, self.backend = layout, layout.backend
        self.fun, self.args, self.jac = fun, args, jac
        self.compiled, self.fresh = compiled, fresh
        self.calls = Calls()
        self.partial = False
        self._automatic: Callable | None = None
        evaluate: Any = self.backend.jit if compiled else functools.partial
        self._evaluate = evaluate(_evaluate, fun, layout, isinstance(jac, str))
        self.calls_per_jacobian = 0
        if callable(jac):
            return
        if isinstance(jac, str) and jac in _DIFFERENCES:
            self.calls_per_jacobian = _DIFFERENCES[jac] * layout.size
            return
        if jac is not None:
            raise ValueError(
                f"jac is {jac!r}; wanted None (automatic differentiation), a function, "
                '"2-point" or "3-point"'
            )
        if not self.backend.differentiates:
            raise ValueError(
                f"{self.backend.name} has no automatic differentiation: {_WAYS_OUT}"
            )
        self._automatic = self.backend.jacobian(compiled, _evaluate, fun, layout, False)

    def take(self, rows: np.ndarray, calls: Calls | None = None) -> Residuals:
        """The same for these rows alone: of x0, and of each array among the arguments whose first
        of two or more axes counts the rows.

        calls : where its calls are counted; None: with those of all rows.
        """
        (size,) = self.layout.batch
        order = self.backend.order(rows)

        def chosen(leaf: Any) -> Any:
            if not is_array(leaf) or leaf.ndim < 2 or leaf.shape[0] != size:
                return leaf
            return self.backend.rows_of(leaf, order)

        leaves = [self.backend.take(leaf, order) for leaf in self.layout.leaves]
        layout = Layout(unflatten(self.layout.structure, leaves), True)
        args = map_leaves(chosen, self.args)
        part = Residuals(self.fun, args, self.jac, layout, self.compiled, self.fresh)
        part.calls, part.partial = calls or self.calls, True
        return part

    def __call__(self, x: Array) -> Array:
        """The residuals (B, m) at x (B, p)."""
        self.calls.nfev += 1
        try:
            found = self._evaluate(self.args, self._to_user(x))
        except Exception as error:
            if self.partial:
                error.add_note(_PARTIAL)
            raise
        self.backend.check_place(found, "what residuals returned")
        found = self.backend.own(self.backend.constant(found))
        return self.layout.xp.reshape(found, (x.shape[0], -1))

    def columns(self, x: Array, residuals: Array) -> Array:
        """The columns of the Jacobian (B, p, m) at x (B, p), where the residuals are known."""
        columns = self.layout.xp.matrix_transpose(self.jacobian(x, residuals))
        return columns if self.fresh else self.backend.own(columns)

    def jacobian(self, x: Array, residuals: Array) -> Array:
        """The Jacobian (B, m, p), which may be an array of the user's."""
        self.calls.njev += 1
        xp, layout = self.layout.xp, self.layout
        shape = (*residuals.shape, x.shape[-1])
        if self._automatic is not None:
            jacobian = self._automatic(self.args, self._to_user(x))
        elif callable(self.jac):
            jacobian = self.jac(layout.to_tree(self._to_user(x)), *self.args)
            wanted = shape if layout.batched else shape[1:]
            jacobian = self.backend.constant(layout.check(jacobian, 0, "the Jacobian", wanted))
        else:
            jacobian = self._differences(x, residuals, self.jac == "3-point")
        return xp.reshape(jacobian, shape)

    def _differences(self, x: Array, residuals: Array, central: bool) -> Array:
        """Finite differences (Nocedal & Wright, section 8.1), a parameter at a time.

        Steps are relative to each parameter, however small it is: those of a fit may be of very
        different sizes.
        """
        xp = self.layout.xp
        size = xp.abs(x)
        h = self.backend.eps ** (1 / 3 if central else 1 / 2)
        steps = h * xp.where(size > 0.0, size, xp.ones_like(x))
        places = xp.arange(x.shape[-1], device=self.backend.placement)
        columns = []
        for i in range(x.shape[-1]):
            here = places == i
            ahead = xp.where(here, x + steps, x)
            behind = xp.where(here, x - steps, x) if central else x
            high, low = self(ahead), self(behind) if central else residuals
            with np.errstate(all="ignore"):    # values that are not finite
                columns.append((high - low) / (ahead - behind)[:, i, None])
        return xp.stack(columns, axis=-1)

    def _to_user(self, x: Array) -> Array:
        return x if self.layout.batched else x[0, ...]


def _evaluate(
    fun: Callable, layout: Layout, differs: bool, args: tuple, x: Array
) -> Array:
    """What fun says of the vector x (..., p), checked: (..., m).

    differs : whether the residuals are told apart by differences.
    """
    out = fun(layout.to_tree(x), *args)
    backend, batch = layout.backend, layout.batch
    wanted = f"an array {batch + ('m',)}".replace("'", "")
    if not is_array(out):
        raise TypeError(f"residuals returned {described(out)}; wanted {wanted}")
    if (library := backend.name_of(out)) != backend.name:
        raise TypeError(
            f"residuals returned an array of {library}; wanted one of {backend.name}, like x0"
        )
    shape = tuple(out.shape)
    if len(shape) <= len(batch) or shape[: len(batch)] != batch or 0 in shape:
        raise ValueError(f"residuals returned {described(out)}; wanted {wanted}")
    if not layout.xp.isdtype(out.dtype, "real floating"):
        raise TypeError(
            f"residuals returned dtype {out.dtype}; wanted a real floating-point dtype"
        )
    if differs:
        backend.check_precision(out, "residuals")
    out = layout.xp.astype(out, backend.dtype, copy=False)
    return layout.xp.reshape(out, (*batch, -1))
