"""What a fit keeps so that its result can call the model again, and the rows in which it does.

Most questions to a fit are answered by a batch of problems like it: with one parameter held, with
other data. Each row belongs to one of the fits.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, is_array, take
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, map_leaves
from lbfgs_xp.fits.complex_data import joined, parts_of
from lbfgs_xp.fits.data import Curve, Slopes, in_units_of_sigma
from lbfgs_xp.fits.names import listed_order, row_of
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.progress import QuestionLine
from lbfgs_xp.fits.residuals import Calls, Residuals
from lbfgs_xp.fits.settings import FitSettings

# Calls a function in the context of the caller of a method of the result, where warnings of NumPy
# are as the caller has set them.
_CALLER: contextvars.ContextVar[Any] = contextvars.ContextVar("_CALLER", default=None)
# The status line of the question that is being answered.
_LINE: contextvars.ContextVar[Any] = contextvars.ContextVar("_LINE", default=None)

# Rows are evaluated so many at a time that their Jacobians take this part of the caches.
_SHARE = 2
# The most elements of the Jacobians of fits whose algebra runs on the host.
_FEW = 2**14


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The model, the data and the settings of a fit: nothing that the user has not passed.

    objective : the residuals of all rows.
    box : None, or the bounds (B, p) each.
    compact : whether the model may be called with some of the rows.
    """

    objective: Residuals
    box: Any
    settings: FitSettings
    compact: bool

    @property
    def layout(self) -> Layout:
        return self.objective.layout

    @functools.cached_property
    def on_host(self) -> bool:
        """Whether the algebra runs on the host, where nothing waits or is compiled: that of one
        fit, or of a few."""
        if self.layout.backend.on_host or not self.layout.batched:
            return True
        elements = math.prod(self.objective.args[1].shape) * self.layout.size
        return not self.layout.backend.reads_are_free and elements <= _FEW

    @functools.cached_property
    def backend(self) -> Backend:
        """The backend of the algebra."""
        outer = self.layout.backend
        if outer.on_host or not self.on_host:
            return outer
        return Backend.of(outer.to_host(outer.zeros((1,))))

    @contextlib.contextmanager
    def asked(self, question: str = "", progress: bool = False) -> Iterator[None]:
        """A context for the algebra of an answer, whose numbers may overflow; with `progress`, a
        status line follows it."""
        line = QuestionLine(progress, question)
        tokens = _CALLER.set(contextvars.copy_context().run), _LINE.set(line)
        try:
            with line, self.layout.backend.current(), np.errstate(all="ignore"):
                yield
        finally:
            _CALLER.reset(tokens[0])
            _LINE.reset(tokens[1])

    def call(self, function: Callable, *arguments: Any) -> Any:
        """What a function that calls those of the user returns."""
        run, line = _CALLER.get(), self.line
        if line is not None:
            line.show(None)
        return function(*arguments) if run is None else run(function, *arguments)

    @property
    def line(self) -> QuestionLine | None:
        """The status line of the question that is being answered."""
        return _LINE.get()

    def send(self, array: Array) -> Array:
        """An array of the algebra for the user's functions."""
        return self.layout.backend.from_host(array) if self.on_host else array

    def fetch(self, array: Array) -> Array:
        """An array of the user's functions for the algebra."""
        return self.layout.backend.to_host(array) if self.on_host else array

    def vector(self, tree: Any) -> Array:
        """The free numbers of parameters like the result's x, (B, p), in the algebra."""
        layout = self.layout
        vector = layout.to_vector(tree, "x")
        return self.fetch(layout.xp.reshape(vector, (-1, layout.size)))

    def tree(self, vector: np.ndarray) -> Any:
        """All parameters, from free numbers (B, p) on the host."""
        layout = self.layout
        vector = layout.backend.from_host(vector)
        return layout.to_tree(vector if layout.batched else vector[0, ...])

    def at_bounds(self, x: Any) -> np.ndarray:
        """Which of all numbers, (B, all) in the order of `names`, are at a bound and not fixed."""
        here = np.asarray(self.backend.to_host(self.vector(x)))
        found = np.zeros((len(here), self.layout.whole.size), dtype=bool)
        if self.box is not None:
            low, high = (np.asarray(self.layout.backend.to_host(side)) for side in self.box)
            found[:, self.free] = ((here <= low) | (here >= high)) & (low < high)
        return found[:, self.order]

    def whole_tree(self, numbers: np.ndarray) -> Any:
        """Numbers (B, all) on the host in the structure of p0."""
        whole = self.layout.whole
        kind = whole.xp.int32 if numbers.dtype.kind == "i" else None
        array = whole.backend.from_host(numbers, kind)
        return whole.to_tree(array if whole.batched else array[0, ...])

    def whole_vector(self, tree: Any) -> np.ndarray:
        """All numbers of parameters like the result's x, (B, all), on the host."""
        whole = self.layout.whole
        return np.reshape(whole.backend.to_host(whole.to_vector(tree, "x")), (-1, whole.size))

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The place in the vector of all numbers of each, in the order of `CurveFit.names`."""
        return listed_order(self.layout.whole)

    @functools.cached_property
    def free(self) -> np.ndarray:
        """The places of the free numbers in the vector of all of them."""
        layout = self.layout
        return layout.free if isinstance(layout, FreeLayout) else np.arange(layout.size)

    @functools.cached_property
    def tied(self) -> np.ndarray:
        """The places of tied numbers in the vector of all of them."""
        ties = getattr(self.layout, "ties", ())
        return np.concatenate([np.zeros(0, int), *(tie.places for tie in ties)])

    # --- rows ----------------------------------------------------------------------------------

    def alone(self, fit: Any, number: Any) -> tuple[Any, Any]:
        """One fit of a batch as a batch of one, and what it keeps."""
        (count,) = self.layout.batch
        number = row_of("row", number, count)
        if not self.compact:
            raise ValueError(
                "the model holds data of all rows (compact=False); wanted one that may be called "
                "with a single one"
            )
        rows = np.asarray([number])
        places = self.layout.backend.index_array(rows)
        box = self.box and tuple(take(side, places) for side in self.box)
        one = dataclasses.replace(self, objective=self.objective.take(rows), box=box)
        parts: dict[str, Any] = {"message": [fit.message[number]], "_analysis": one}
        for field in dataclasses.fields(fit):
            if field.name not in ("names", *parts):
                parts[field.name] = map_leaves(
                    lambda leaf: take(leaf, places) if is_array(leaf) else leaf,
                    getattr(fit, field.name),
                )
        return dataclasses.replace(fit, **parts), one

    @property
    def may_shrink(self) -> bool:
        """Whether it is worth while to leave out rows that are done."""
        free = self.compact or not self.layout.batched
        return free and not self.layout.backend.compiles

    def groups(self, numbers: np.ndarray, wanted: Any = None) -> list[np.ndarray]:
        """The places of rows that may be evaluated together: as many as stay in the caches, or all
        fits once if the model must see all of them.

        numbers : (R,), the fit of each row; if the model must see all, these are repetitions of all
            fits.
        wanted : a mask (R,); the groups hold at least these rows.
        """
        rows = np.arange(numbers.size) if wanted is None else np.flatnonzero(wanted)
        if rows.size == 0:
            return []
        if self.layout.batched and not self.compact:
            count = self.layout.batch[0]
            return [np.arange(count) + count * k for k in np.unique(rows // count)]
        elements = self.objective.args[1].shape[-1] * self.layout.size
        most = max(self.layout.backend.cache_size // (_SHARE * elements), 256)
        return np.array_split(rows, -(-rows.size // most))

    def box_of(self, numbers: np.ndarray) -> Any:
        """None, or the bounds (R, p) of rows."""
        if self.box is None:
            return None
        places = self.layout.backend.index_array(numbers)
        return tuple(self.fetch(take(side, places)) for side in self.box)

    def rows(self, numbers: np.ndarray, start: Array, lengths: Any = None) -> Rows:
        """The residuals of rows, each of the fit with this number, from `start` (R, p).

        lengths : None, or over which lengths (R, p), on the host, they bend; differences measure
            those of rows in which some are not numbers above 0.
        """
        residuals, start = self._rows(numbers), self.send(start)
        residuals.layout = residuals.layout.starting_at(start)
        if self.box is not None:
            places = self.layout.backend.index_array(numbers)
            residuals.bounds = tuple(take(side, places) for side in self.box)
        if isinstance(residuals.jac, str):
            # Errors of forward differences are far below what an interval needs.
            residuals.jac = "2-point"
            if lengths is not None:
                residuals.differences.assume(start, self.layout.backend.from_host(lengths))
        return Rows(residuals, self)

    def _rows(self, numbers: np.ndarray) -> Residuals:
        objective = self.objective
        if not self.layout.batched:
            return self._repeated(numbers.size)
        return objective.take(numbers, Calls()) if self.compact else objective.again()

    def _repeated(self, count: int) -> Residuals:
        """One fit as a batch of `count` like it."""
        objective, layout, xp = self.objective, self.layout, self.layout.xp
        x, y, weights = objective.args
        many = xp.broadcast_to(y[None, ...], (count, *y.shape))
        jac: Any = objective.jac
        fun: Any = objective.fun
        form: Any = Together if self._broadcasts else OneByOne
        data = None
        if objective.data is not None:
            apart = form(dataclasses.replace(fun, predicts=True), layout)
            data = apart, _weighted(weights, many)
        return Residuals(
            form(fun, layout), (x, many, weights),
            form(jac, layout) if callable(jac) else jac,
            Layout(layout.backend.zeros((count, layout.size)), True), objective.compiled,
            data=data, shared=y.shape, whole=(0, 2),
            likelihood=objective.likelihood and objective.likelihood.repeated(count),
            priors=objective.priors and objective.priors.repeated(layout),
        )

    def replace_data(
        self, part: Residuals, numbers: np.ndarray, curves: Array, errors: Array
    ) -> None:
        """Give rows of these fits the data that the model predicts, and errors (R, m) in units of
        sigma.

        curves : (B, m), or (m,), what the model predicts for each fit.
        """
        (x, _, weights), backend, counts = part.args, self.layout.backend, None
        if self.layout.batched:
            curves = take(curves, backend.index_array(numbers))
        if weights is not None and weights.ndim == 2 and not self.layout.batched:
            solve, transposed = backend.linalg("solve"), backend.xp.matrix_transpose
            errors = transposed(solve(weights, transposed(errors)))
        elif weights is not None:
            counts = weights > 0.0
            errors = errors / backend.xp.where(counts, weights, backend.xp.ones_like(weights))
        y = curves + errors
        if counts is not None:
            y = backend.xp.where(counts, y, backend.xp.zeros_like(y))
        part.args = (x, y, weights)
        form = in_units_of_sigma if self.layout.batched else _weighted
        part.data = part.data[0], form(weights, y)

    def drawn(
        self, likelihood: Any, numbers: np.ndarray, curves: Array, rng: np.random.Generator,
        unit: np.ndarray,
    ) -> Any:
        """The likelihood of rows of these fits with data drawn at random; curves as above, but what
        is expected of the data; unit as in `Likelihood.drawn`."""
        if self.layout.batched:
            curves = take(curves, self.layout.backend.index_array(numbers))
        with np.errstate(all="ignore"):
            prediction = likelihood.prediction(curves + 0.0 * likelihood.y)
            return likelihood.drawn(rng, prediction, unit)

    @functools.cached_property
    def _broadcasts(self) -> bool:
        """Whether the model of one fit, and its Jacobian, take many parameters at once, each as an
        array (R, 1), and treat them as rows."""
        layout, (x, y, _), xp = self.layout, self.objective.args, self.layout.xp
        start = xp.reshape(layout.start(), (1, -1))
        shift = layout.backend.adopt(1.0 + 0.01 * np.arange(3.0), "the shift")
        # Parameters that are 0 would hide differences.
        start = xp.where(start == 0.0, xp.full_like(start, 0.01), start) * shift[:, None]
        functions: list[Any] = [self.objective.fun]
        if callable(self.objective.jac):
            functions.append(self.objective.jac)
        many = xp.broadcast_to(y[None, ...], (3, *y.shape))
        for function in functions:
            found = []
            for form in (Together, OneByOne):
                try:
                    with np.errstate(all="ignore"):
                        values = form(function, layout)(start, x, many, None)
                    found.append(np.asarray(layout.backend.to_host(values)))
                except Exception:
                    return False
            one, other = found
            if one.shape != other.shape:
                return False
            close = 64.0 * layout.backend.eps
            known = np.where(np.isfinite(other), other, 0.0)
            scale = float(np.max(np.abs(known), initial=0.0))
            if not np.allclose(one, other, rtol=close, atol=close * scale, equal_nan=True):
                return False
        return True

    def directions(self, rows: Rows, x: Array, places: np.ndarray, signs: np.ndarray) -> Array:
        """The derivatives (R, p) of one of all numbers for each row, which is tied, at free numbers
        (R, p), times a sign."""
        slopes = self.fetch(self._slopes_of_ties(rows, self.send(x)))
        xp, every = self.backend.xp, np.arange(slopes.shape[1])
        own = self.backend.from_host(every == places[:, None], self.backend.xp.bool)[..., None]
        chosen = xp.sum(xp.where(own, slopes, xp.zeros_like(slopes)), axis=1)
        return self.backend.from_host(signs)[:, None] * chosen

    def _slopes_of_ties(self, rows: Rows, x: Array) -> Array:
        layout: Any = rows.residuals.layout if self.layout.batched else self.layout
        if self.layout.batched:
            return layout.slopes(x)
        each = [layout.slopes(x[i : i + 1, ...]) for i in range(x.shape[0])]
        return layout.xp.concat(each, axis=0)

    # --- the model -----------------------------------------------------------------------------

    def jacobian(self, x: Any) -> Array:
        """The derivatives of the model (m, p), or (B, m, p), in the order of x."""
        slopes = self.slopes(x, *self.objective.args[:2])
        return joined(slopes, -2) if self.complex else slopes

    @functools.cached_property
    def size_of_data(self) -> np.ndarray:
        """The norm (B,) of the data of each fit in units of sigma; 0 for likelihoods, which are
        relative to the best predictions."""
        outer, data = self.layout.backend, self.objective.data
        if data is None:
            return np.zeros(self.layout.batch if self.layout.batched else (1,))
        data = np.asarray(outer.to_host(data[1]), dtype=np.float64)
        return np.sqrt(np.sum(data * data, axis=-1))

    @property
    def complex(self) -> bool:
        """Whether the data are complex; `Residuals` then hold their parts."""
        curve: Any = self.objective.fun
        return bool(curve.complex)

    def real(self, array: Array) -> Array:
        """What the user sees, like y, as the residuals hold it."""
        return parts_of(array) if self.complex else array

    def seen(self, array: Array) -> Array:
        """The reverse of `real`."""
        return joined(array) if self.complex else array

    def pulls(self, fit: Any) -> np.ndarray:
        """The residuals in units of their standard deviation, (B, m) on the host: of sigma, or of
        the deviation of the fit; with a likelihood, the roots of the deviance; nan for points that
        are left out."""
        outer, (_, y, weights) = self.layout.backend, self.objective.args
        with np.errstate(all="ignore"):
            likelihood = self.objective.likelihood
            if likelihood is None:
                rest = in_units_of_sigma(weights, self.real(fit.residuals))
            else:
                rest = -likelihood.residuals(likelihood.prediction(y - fit.residuals))
            rest = outer.to_host(rest)
            rest = np.reshape(rest, (-1, y.shape[-1])).astype(np.float64)
            if fit.absolute_sigma:
                return rest
            scale = outer.to_host(fit.reduced_chi2) if self.layout.batched else fit.reduced_chi2
            return rest / np.sqrt(np.reshape(scale, (-1, 1)))

    def slopes(self, x: Any, coordinates: Any, like: Array) -> Array:
        """The derivatives of the model by all parameters, also fixed and tied ones as if they were
        free, at other coordinates, where it returns an array like `like`, in the order of x."""
        objective, whole = self.objective, self.layout.whole
        model = Residuals(
            objective.fun, (coordinates, whole.xp.zeros_like(like), None), objective.jac, whole,
            objective.compiled, shared=tuple(like.shape[-1:]), whole=objective.whole,
        )
        vector = whole.xp.reshape(whole.to_vector(x, "x"), (-1, whole.size))
        jacobian = self.listed(model.jacobian(vector, model(vector)))
        return jacobian if whole.batched else jacobian[0, ...]

    def listed(self, array: Array) -> Array:
        """An array (..., all) whose last axis has the order of the vector, in the order of x."""
        if (self.order == np.arange(self.order.size)).all():
            return array
        xp = self.layout.xp
        return xp.take(array, self.layout.backend.index_array(self.order), axis=-1)


def _weighted(weights: Any, residuals: Array) -> Array:
    """Residuals (R, m) of one fit in units of its sigma."""
    if weights is None or weights.ndim == 1:
        return in_units_of_sigma(weights, residuals)
    return residuals @ weights.T


@dataclasses.dataclass(frozen=True)
class Rows:
    """Residuals (R, m) and Jacobians (R, m, p) of rows, as arrays of the algebra."""

    residuals: Residuals
    analysis: Analysis

    def part(self, rows: np.ndarray, numbers: np.ndarray, start: Array) -> Rows:
        """Some of the rows, of the fits with these numbers, from `start` (R, p): with what is known
        of their differences."""
        fewer, known = self.analysis.rows(numbers, start), self.residuals.differences.per_row
        outer = Space(self.analysis.layout.backend, batched=True)
        fewer.residuals.differences.per_row = outer.take(known, rows)
        return fewer

    def __call__(self, x: Array) -> Array:
        analysis = self.analysis
        return analysis.fetch(analysis.call(self.residuals, analysis.send(x)))

    def jacobian(self, x: Array, residuals: Array) -> Array:
        analysis, jacobian = self.analysis, self.residuals.jacobian
        return analysis.fetch(
            analysis.call(jacobian, *(analysis.send(array) for array in (x, residuals)))
        )


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """The residuals of one fit, or their Jacobian, for many vectors (R, p), called for each.

    function : of all parameters and the arguments of the residuals.
    layout : of the fit.
    """

    function: Curve | Slopes
    layout: Layout

    def __call__(self, vectors: Array, x: Any, y: Array, weights: Any) -> Array:
        layout, found = self.layout, []
        for i in range(vectors.shape[0]):
            tree = layout.to_tree(layout.completed(vectors[i, ...]))
            values = self.function(tree, x, y[i, ...], weights)
            found.append(_by_free(self, values, vectors[i, ...]))
        return layout.xp.stack(found, axis=0)


@dataclasses.dataclass(frozen=True)
class Together:
    """The same for a model that broadcasts: one call for all."""

    function: Curve | Slopes
    layout: Layout

    def __call__(self, vectors: Array, x: Any, y: Array, weights: Any) -> Array:
        layout, count = self.layout, vectors.shape[0]
        whole = vectors
        if isinstance(layout, FreeLayout):
            each = [layout.all_of(vectors[i, ...]) for i in range(count)]
            whole = layout.xp.stack(each, axis=0)
        tree = layout.whole.of_many(count).to_tree(whole)
        found = dataclasses.replace(self.function, batched=True)(tree, x, y, None)
        if isinstance(self.function, Curve):
            return _weighted(weights, found)
        if layout.whole is not layout:
            each = [_by_free(self, found[i, ...], vectors[i, ...]) for i in range(count)]
            found = layout.xp.stack(each, axis=0)
        if weights is None:
            return found
        return weights @ found if weights.ndim == 2 else weights[:, None] * found


def _by_free(form: OneByOne | Together, found: Array, vector: Array) -> Array:
    """What a function of all parameters returned: a Jacobian, by the free ones alone."""
    if isinstance(form.function, Slopes) and isinstance(form.layout, FreeLayout):
        return found @ form.layout.slopes(vector[None, ...])[0, ...]
    return found
