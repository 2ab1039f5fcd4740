"""The residuals and their Jacobian, however they are given, as functions of vectors (B, p)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, is_array, take
from lbfgs_xp.arrays.rows import take_rows
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.fits.complex_data import is_complex, parts_of
from lbfgs_xp.fits.likelihoods import Likelihood
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.priors import Priors
from lbfgs_xp.run import differences
from lbfgs_xp.run.differences import Differences, Known

_PARTIAL = (
    "lbfgs_xp: called with only some of the rows of the batch; compact=False calls with all rows"
)

# Over this part of the length over which a function bends, its derivatives keep five digits.
_CLOSE = 1e-5
# A derivative along a direction counts if it exceeds what noise explains by this factor.
_NOISY = 4.0


@dataclasses.dataclass
class Calls:
    """The number of calls of the residuals, also for differences, and of evaluations of their
    Jacobian; and the most calls that are allowed."""

    nfev: int = 0
    njev: int = 0
    most: float = math.inf


class Residuals:
    """Residuals and Jacobian as functions that count their calls.

    Vectors are (B, p), residuals (B, m), Jacobians (B, m, p). For one problem they are (p,), (m,)
    and (m, p), or have a first axis of length 1.

    Parameters
    ----------
    fun, args, jac
        As in `lx.least_squares`.
    layout : Layout
        The map between the user's parameters and the vector.
    compiled : bool
        Whether JAX may compile fun.
    fresh : bool
        Whether jac returns a new array each time, stored column by column.
    data : None or (function, array)
        The function that fun is before it subtracts the data, and what the data subtract from it,
        (B, m): that function is differenced, because the difference may hide small changes.
    shared : collection of int
        Lengths that a 1-d array in args may have if all rows share it, besides the lengths of axes
        of x0 and, once known, of the residuals.
    whole : collection of int
        The places in args of what all rows share, whatever its shape.
    likelihood : None, or what makes residuals of what fun returns, which are then predictions.
    priors : None, or what adds further residuals.

    Attributes
    ----------
    calls : Calls
        The calls so far.
    bounds : None or (lower, upper), (B, p) each
        Between which differences call fun.
    differences : Differences
        What they know of fun.
    directions : None or (T, T^-1), (B, p, p) each
        Differences are taken along the columns of T; None: along each parameter.
    names : tuple of str
        The names of all parameters, if fun is a model.
    """

    in_chunks = False

    def __init__(
        self, fun: Callable, args: tuple, jac: Any, layout: Layout, compiled: bool,
        fresh: bool = False, data: Any = None, shared: Collection[int] = (),
        whole: Collection[int] = (), likelihood: Likelihood | None = None,
        priors: Priors | None = None,
    ):
        if not callable(fun):
            raise TypeError(f"residuals is a {type(fun).__name__}; wanted a function of x")
        if any(layout.complex):
            raise TypeError(f"{layout.name} is complex; wanted real numbers for least squares")
        self.layout, self.backend = layout, layout.backend
        self.fun, self.args = fun, args
        self.jac = chosen(jac, self.backend)
        self.compiled, self.fresh, self.data, self.whole = compiled, fresh, data, whole
        self.likelihood, self.priors = likelihood, priors
        # Points and what fun returned there: at the last call, and for the last Jacobian.
        self._latest: tuple[Any, Any] = None, None
        self._accepted: tuple[Any, Any] = None, None
        self.shared = {*shared, *(length for shape in layout.shapes for length in shape[1:])}
        self.calls = Calls()
        self.partial = False
        self._automatic: Callable | None = None
        evaluate: Any = self.backend.jit if compiled else functools.partial
        differs = isinstance(self.jac, str)
        self._evaluate = evaluate(evaluate_residuals, fun, layout, differs)
        self._evaluate_without_data = self._evaluate if data is None else (
            evaluate(evaluate_residuals, data[0], layout, differs)
        )
        self.bounds: Any = None
        # Exceptions that count as nan, once the residuals at the start are known.
        self.forgiven: tuple[type[Exception], ...] = ()
        self._count = 0
        self.directions: Any = None
        self.names: tuple[str, ...] = ()
        self.differences = Differences(
            self.backend, functools.partial(self._found, self._evaluate_without_data), least=0.0
        )
        if self.jac is None:
            self._automatic = self.backend.jacobian(
                compiled, evaluate_residuals, fun, layout, False
            )

    @property
    def derivatives(self) -> str:
        """Where the Jacobian comes from, as in `lx.CurveFit`."""
        if isinstance(self.jac, str):
            return self.jac
        return "automatic" if self.jac is None else "given"

    @property
    def calls_per_jacobian(self) -> int:
        """How often a Jacobian by finite differences calls fun; 0 for other Jacobians."""
        if not isinstance(self.jac, str):
            return 0
        central = self.jac == "3-point"
        calls = differences.calls_per_derivative(self.layout.size, central)
        # Forward differences also need what fun is before the data are subtracted.
        return calls + int(self.data is not None and not central)

    @property
    def accuracy(self) -> float:
        """The relative error of the Jacobian, apart from rounding."""
        if self.calls_per_jacobian == 0:
            return 0.0
        return differences.accuracy(self.backend.eps, self.jac == "3-point")

    def take(self, rows: np.ndarray, calls: Calls | None = None) -> Residuals:
        """The same for these rows only, of x0 and of the arguments that belong to the rows.

        calls : where its calls are counted; None: together with the calls for all rows.
        """
        (count,) = self.layout.batch
        indices = self.backend.index_array(rows)
        layout = self.layout.take(indices)
        args = tuple(
            arg if i in self.whole else take_rows(self.backend, arg, indices, count, self.shared)
            for i, arg in enumerate(self.args)
        )
        data = self.data
        if data is not None:
            data = data[0], take(data[1], indices)
        part = self._like(
            args, layout, data, self.likelihood and self.likelihood.take(indices),
            self.priors and self.priors.take(indices),
        )
        part.calls, part.partial = calls or self.calls, True
        noise = self.differences.known.noise
        if noise is not None:
            part.differences.known = Known(noise=take(noise, indices))
        if self.directions is not None:
            part.turn(tuple(take(matrix, indices) for matrix in self.directions))
        if self.bounds is not None:
            part.bounds = tuple(take(side, indices) for side in self.bounds)
        return part

    def take_at(self, x: Array, rows: np.ndarray) -> Residuals:
        """`take`, with what the differences know of these rows and what fun returned at x."""
        part, space = self.take(rows), Space(self.backend)
        part.differences.per_row = space.take(self.differences.per_row, rows)
        if (found := self._known_predictions(x)) is not None:
            self._accepted = x, found
            part._latest = space.take((x, found), rows)
        return part

    def again(self) -> Residuals:
        """The same for all rows, with calls of its own, and nothing known yet."""
        return self._like(self.args, self.layout, self.data, self.likelihood, self.priors)

    def _like(
        self, args: tuple, layout: Layout, data: Any, likelihood: Any, priors: Any
    ) -> Residuals:
        other = Residuals(
            self.fun, args, self.jac, layout, self.compiled, self.fresh, data, self.shared,
            self.whole, likelihood, priors,
        )
        other.names = self.names
        other.differences.step = self.differences.step
        other.differences.stretch = self.differences.stretch
        return other

    def __call__(self, x: Array) -> Array:
        """The residuals (B, m) at x (B, p)."""
        differenced = self.data is not None and isinstance(self.jac, str)
        found = self._without_data(x) if differenced else (
            self.backend.own(self._found(self._evaluate, x))
        )
        if differenced or self.likelihood is not None:
            self._latest = x, found
        if differenced:
            with np.errstate(all="ignore"):    # the data may be infinite
                found = found - self.layout.xp.reshape(self.data[1], found.shape)
        if self.likelihood is not None:
            shape = found.shape
            with np.errstate(all="ignore"):    # predictions may be outside the domain
                found = self.layout.xp.reshape(self.likelihood.residuals(found), shape)
        if self.priors is not None:
            found = self.layout.xp.concat([found, self.priors.residuals(self.layout, x)], axis=-1)
        return found

    def predictions(self, x: Array) -> Array:
        """What fun returns (B, m) at x (B, p) before the data are subtracted, for a likelihood or
        for differences; it is known at the last points."""
        found = self._known_predictions(x)
        if found is None:
            found = self._without_data(x)
        self._accepted = x, found
        return found

    def _known_predictions(self, x: Array) -> Array | None:
        """`predictions` without a call, if they are known for all problems."""
        (at, latest), (before, older) = self._latest, self._accepted
        if x is at:
            return latest
        if not self.backend.reads_are_free or at is None or x.shape != at.shape:
            return None
        # Some trials were rejected; there, x is where the last Jacobian was.
        xp = self.layout.xp
        rejected = xp.any(x != at, axis=-1, keepdims=True)
        if not bool(xp.any(rejected)):
            return latest
        known = before is not None and before.shape == x.shape
        if known and not bool(xp.any(rejected & (x != before))):
            return xp.where(rejected, older, latest)
        return None

    def check_rows(self, x: Array, residuals: Array) -> None:
        """Refuse residuals that are not what was said of them; see `ByProducts`."""

    @property
    def memory(self) -> tuple:
        """What is known of fun, and the calls so far, to be saved."""
        jac = self.jac if isinstance(self.jac, str) else None
        return (
            jac, self.directions, self.differences.memory, self._latest, self._accepted,
            (self.calls.nfev, self.calls.njev),
        )

    @memory.setter
    def memory(self, memory: tuple) -> None:
        jac, directions, known, self._latest, self._accepted, calls = memory
        self.jac = jac or self.jac
        if directions is not None:
            self.turn(directions)
        self.differences.memory = known
        self.calls.nfev, self.calls.njev = calls

    def forget(self) -> None:
        """Let go of what is only kept for the next Jacobian."""
        self._latest = self._accepted = None, None

    def _without_data(self, x: Array) -> Array:
        """What fun returns before the data are subtracted."""
        return self.backend.own(self._found(self._evaluate_without_data, x))

    def _found(self, evaluate: Callable, x: Array) -> Array:
        """What `evaluate` finds at x, which its next call may overwrite."""
        self.calls.nfev += 1
        try:
            found = evaluate(self.args, self._completed(x))
        except self.forgiven:
            return self.backend.full((*x.shape[:-1], self._count), math.nan)
        except Exception as error:
            if self.partial:
                error.add_note(_PARTIAL)
            raise
        backend = self.backend
        if not backend.on_host:
            backend.check_device(found, "what residuals returned")
            found = backend.detach(found)
        if found.ndim != x.ndim:
            found = backend.xp.reshape(found, (*x.shape[:-1], -1))
        count = found.shape[-1]
        if count != self._count:
            if self._count:
                # A single one would be broadcast.
                raise ValueError(
                    f"residuals returned length {count}, and {self._count} at the start; wanted "
                    "the same length at every x"
                )
            self._count = count
            self.shared.add(count)
        return found

    def columns(self, x: Array, residuals: Array) -> Array:
        """The columns of the Jacobian (B, p, m) at x (B, p), given the residuals there."""
        xp, transpose = self.layout.xp, self.layout.xp.matrix_transpose
        self.calls.njev += 1
        own = residuals
        if self.priors is not None:
            own = residuals[..., : residuals.shape[-1] - self.priors.count]
        slopes: Any = None
        if self.likelihood is not None:
            slopes = self.slopes_of_likelihood(x, residuals)[..., None, :]
            own = self.predictions(x)
        if isinstance(self.jac, str):
            columns = self._differenced(x, own)
        else:
            columns = transpose(self._given(x, own))
            if not self.fresh and self.jac is not None:
                columns = self.backend.own(columns)
        if slopes is not None:
            # A datum without a slope may have an infinite derivative of its prediction.
            columns = xp.where(slopes == 0.0, xp.zeros_like(columns), slopes * columns)
        if self.priors is not None:
            of_priors = transpose(self.priors.jacobian(self.layout, x))
            columns = xp.concat([columns, of_priors], axis=-1)
        return columns

    def slopes_of_likelihood(self, x: Array, residuals: Array) -> Array:
        """The derivatives of the residuals of the data by the predictions (B, m) at x (B, p), with
        a likelihood, given the residuals there."""
        assert self.likelihood is not None
        predictions = self.predictions(x)
        with np.errstate(all="ignore"):
            slopes = self.likelihood.slopes(predictions, residuals[..., : predictions.shape[-1]])
        return self.layout.xp.reshape(slopes, predictions.shape)

    def serves(self, x: Array) -> Any:
        """Where x is so close to the last differences that they have as many digits there, or five:
        a mask (B,). None: nowhere."""
        differences = self.differences
        if self.jac != "2-point" or self.directions is not None or not differences.are_measured:
            return None
        xp, lengths = self.layout.xp, differences.known.lengths
        if lengths is None or lengths.at.shape != x.shape:
            return None
        if x.ndim == 1:
            numbers = (v.tolist() for v in (x, lengths.at, differences.span, lengths.length))
            return all(
                abs(new - old) <= max(abs(step), _CLOSE * length)
                for new, old, step, length in zip(*numbers, strict=True)
            )
        reach = xp.maximum(xp.abs(differences.span), _CLOSE * lengths.length)
        return xp.all(xp.abs(x - lengths.at) <= reach, axis=-1)

    def jacobian(self, x: Array, residuals: Array) -> Array:
        """The Jacobian (B, m, p)."""
        return self.layout.xp.matrix_transpose(self.columns(x, residuals))

    def of_information(self, x: Array, residuals: Array) -> Array:
        """Factors for the rows of the Jacobian (B, m, p) at x (B, p) with which J^T J is the
        information, instead of an approximation to the second derivatives. Rows with negative
        factors are subtracted from it."""
        xp, likelihood = self.layout.xp, self.likelihood
        assert likelihood is not None
        predictions = self.predictions(x)
        residuals = xp.reshape(residuals, (*predictions.shape[:-1], -1))
        data = predictions.shape[-1]
        slopes = xp.abs(self.slopes_of_likelihood(x, residuals))
        information = xp.reshape(likelihood.information(predictions), predictions.shape)
        roots = xp.sign(information) * xp.sqrt(xp.abs(information))
        known = slopes > 0.0
        factors = roots / xp.where(known, slopes, xp.ones_like(slopes))
        factors = xp.where(known, factors, xp.zeros_like(factors))
        return xp.concat([factors, xp.ones_like(residuals[..., data:])], axis=-1)

    def _given(self, x: Array, values: Array) -> Array:
        """The Jacobian (B, m, p) of fun, given its values, automatically or by the user's function.
        """
        xp, layout = self.layout.xp, self.layout
        shape = (*values.shape, x.shape[-1])
        if self._automatic is not None:
            jacobian = self._automatic(self.args, self._completed(x))[..., : x.shape[-1]]
        else:
            try:
                jacobian = self.jac(layout.to_tree(self._to_user(x)), *self.args)
            except self.forgiven:
                return self.backend.full(shape, math.nan)
            if is_array(jacobian) and is_complex(jacobian) and jacobian.ndim > 1:
                jacobian = parts_of(jacobian, -2)
            wanted = (*layout.batch, values.shape[-1], layout.whole.size)
            jacobian = self.backend.detach(layout.check(jacobian, 0, "the Jacobian", wanted))
            if isinstance(layout, FreeLayout):
                jacobian = xp.matmul(
                    xp.reshape(jacobian, (*values.shape, -1)), layout.slopes(self._to_user(x))
                )
        return xp.reshape(jacobian, shape)

    def _differenced(self, x: Array, value: Array) -> Array:
        """The columns (B, p, m) of the Jacobian of fun by finite differences, given its values."""
        calls, central = self.calls, self.jac == "3-point"
        change = value if self.likelihood is None else value - self.likelihood.y
        variation = self.backend.max_abs(change)
        if self.data is not None:
            value = self.predictions(x)
        rest = value, variation, central, self.bounds, lambda more: calls.nfev + more <= calls.most
        if self.directions is not None:
            return self._along_directions(x, *rest)
        slopes = self._stacked(x, *rest)
        noise = self.differences.known.noise
        if noise is None:
            return slopes
        # A parameter that only moves the noise beside others that do more has no influence.
        xp = self.layout.xp
        quiet = self._is_noise(slopes, 1.0) & (noise > 0.0)[..., None]
        quiet = quiet & xp.logical_not(xp.all(quiet, axis=-1, keepdims=True))
        return xp.where(quiet[..., None], xp.zeros_like(slopes), slopes)

    def _is_noise(self, slopes: Array, factor: float) -> Array:
        """Which of the last differences are at most so many times what noise does, (B, p)."""
        xp = self.layout.xp
        return xp.max(xp.abs(slopes), axis=-1) <= factor * self.differences.errors

    def _stacked(self, x: Array, *rest: Any) -> Array:
        """The differences at x as one array, along the last axis but one."""
        xp, found = self.layout.xp, self.differences(x, *rest)
        if not is_array(found):
            return xp.stack(found, axis=-2)
        return found if found.ndim == 2 else xp.moveaxis(found, 0, -2)

    def turn(self, directions: Any) -> None:
        """Take differences along the columns of T, given (T, T^-1)."""
        self.directions = directions
        self.differences.known = Known(noise=self.differences.known.noise)
        self.differences.function = self._at_turned

    def _along_directions(self, x: Array, *rest: Any) -> Array:
        """The columns (B, p, m) from differences along `directions`; what noise explains is 0."""
        xp, (_, from_x) = self.layout.xp, self.directions
        # Only the size of the coordinates matters; in each of them, it is that of x.
        start = xp.matmul(from_x, x[..., None])[..., 0]
        size = xp.sqrt(xp.sum(start * start, axis=-1, keepdims=True))
        start = xp.broadcast_to(size, x.shape)
        self._origin = x, start
        slopes = self._stacked(start, *rest)
        slopes = xp.where(self._is_noise(slopes, _NOISY)[..., None], xp.zeros_like(slopes), slopes)
        return xp.matmul(xp.matrix_transpose(from_x), slopes)

    def _at_turned(self, y: Array) -> Array:
        """The residuals before the data are subtracted, at these coordinates along the columns."""
        (x, start), (to_x, _) = self._origin, self.directions
        moved = x + self.layout.xp.matmul(to_x, (y - start)[..., None])[..., 0]
        return self._found(self._evaluate_without_data, moved)

    def _completed(self, x: Array) -> Array:
        """What `evaluate_residuals` takes for the parameters x (B, p)."""
        return self.layout.completed(self._to_user(x))

    def _to_user(self, x: Array) -> Array:
        return x if self.layout.batched or x.ndim == 1 else x[0, ...]


def chosen(jac: Any, backend: Backend) -> Any:
    """`jac`, checked, with differences if the library has no automatic differentiation."""
    if jac is None:
        return None if backend.differentiates else "2-point"
    if callable(jac) or (isinstance(jac, str) and jac in differences.METHODS):
        return jac
    raise ValueError(
        f"jac is {jac!r}; wanted None (automatic differentiation, or differences if there is "
        'none), a function, "2-point" or "3-point"'
    )


def evaluate_residuals(
    fun: Callable, layout: Layout, differs: bool, args: tuple, x: Array
) -> Array:
    """The checked residuals (..., m) at the vector x (..., p).

    differs : whether finite differences of the residuals are taken.
    """
    out = fun(layout.to_tree(x), *args)
    if returned.is_like(out, x) and 0 not in out.shape:
        return out
    backend, batch = layout.backend, layout.batch
    wanted = f"an array {batch + ('m',)}".replace("'", "")
    returned.check_array("residuals", out, backend, wanted)
    shape = tuple(out.shape)
    # Not flattened, because a matrix usually comes from a subtraction that has broadcast.
    if len(shape) != len(batch) + 1 or shape[: len(batch)] != batch or 0 in shape:
        raise ValueError(f"residuals returned {returned.described(out)}; wanted {wanted}")
    if is_complex(out):
        out = parts_of(out)
    returned.check_real("residuals", out, backend)
    if differs:
        returned.check_precision("residuals", out, backend)
    return layout.xp.astype(out, backend.dtype, copy=False)
