"""Fits of more data than a Jacobian should hold: chunk by chunk, of which only sums are kept.

Levenberg-Marquardt needs J^T J, J^T r and |r|^2 at an iterate, and at a trial by how much |r|^2
falls. So the residuals r are represented by the norms of their chunks, rho, whose squares are
compared chunk by chunk, and the Jacobian by a matrix C with C^T C = J^T J and C^T rho = J^T r: to
the loop, they are residuals and columns like any others.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.covariance import deviations, root_of_inverse, scaled_root, square
from lbfgs_xp.fits.curve_result import CurveFit
from lbfgs_xp.fits.linear_algebra import safe_pivot
from lbfgs_xp.fits.names import listed_order
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.residuals import Calls, Residuals
from lbfgs_xp.fits.result import LeastSquaresResult
from lbfgs_xp.fits.settings import FitSettings
from lbfgs_xp.run.differences import Differences, Known

# The most numbers in a Jacobian of a fit that is not in chunks, unless a device holds more.
_MOST = 2**24
# Data so few are never too many.
_FEW = 2**12
# The share of the cache for each of the arrays that a model makes.
_ARRAYS = 2
_WANTED = (
    'one fit of normal errors without priors (batched=False, method="lm", loss="linear", '
    'likelihood="gaussian")'
)

Source = Callable[[], Iterator[tuple[Any, Any, Any]]]


def source_of(
    x: Any, y: Any, sigma: Any, parameters: Callable[[], int], chunk_size: Any, can: bool
) -> Source | None:
    """The chunks (x, y, sigma) of data, as a function that begins anew; None to fit them at once.

    parameters : returns about how many there are. can : whether the other arguments allow chunks.
    """
    size = checks.optional(checks.count)("chunk_size", chunk_size, 1)
    if callable(x) and y is None:
        if not can:
            raise ValueError(f"x is a function, which returns chunks of data; wanted {_WANTED}")
        if size is not None or sigma is not None:
            raise ValueError(
                "sigma or chunk_size was passed with a function x, which returns chunks of data; "
                "wanted tuples (x, y, sigma) from that function"
            )
        return functools.partial(_checked, x)
    if size is None and not (can and is_array(y) and y.ndim == 1):
        return None
    if not can:
        raise ValueError(f"chunk_size is {size}; wanted {_WANTED}")
    if not (is_array(y) and y.ndim == 1):
        raise TypeError("chunk_size was passed for data that are no array; wanted an array y (m,)")
    (count,) = y.shape
    if size is None and count <= _FEW:
        return None
    # Integers of NumPy become floats later.
    whole = isinstance(y, np.ndarray) and y.dtype.kind in "iu"
    backend = Backend.of(np.zeros(1) if whole else y, "y")
    if size is None:
        if count * (p := parameters()) <= max(_MOST, backend.cache_size):
            return None
        size = max(backend.cache_size // (_ARRAYS * p), 1)
    if sigma is not None and not (is_array(sigma) and tuple(sigma.shape) == (count,)):
        if chunk_size is None:
            return None
        raise ValueError(f"sigma was passed with chunk_size; wanted deviations ({count},), like y")
    return functools.partial(_slices, x, y, sigma, size)


def _slices(x: Any, y: Any, sigma: Any, size: int) -> Iterator[tuple[Any, Any, Any]]:
    count = y.shape[0]
    for start in range(0, count, size):
        yield tuple(_part(array, count, start, start + size) for array in (x, y, sigma))


def _part(tree: Any, count: int, start: int, stop: int) -> Any:
    """The part of the arrays whose last axis has this length, which may be mapped to files."""
    if isinstance(tree, dict):
        return {key: _part(leaf, count, start, stop) for key, leaf in tree.items()}
    if type(tree) is tuple:
        return tuple(_part(leaf, count, start, stop) for leaf in tree)
    if not is_array(tree) or tuple(tree.shape[-1:]) != (count,):
        return tree
    part = tree[..., start:stop]
    return np.asarray(part) if isinstance(part, np.ndarray) else part


def _checked(function: Callable) -> Iterator[tuple[Any, Any, Any]]:
    size = 0
    for chunk in function():
        if not isinstance(chunk, tuple) or len(chunk) not in (2, 3):
            what = f"a tuple of {len(chunk)}" if isinstance(chunk, tuple) else checks.shown(chunk)
            raise TypeError(f"a chunk of data is {what}; wanted (x, y) or (x, y, sigma)")
        if size not in (0, len(chunk)):
            raise ValueError(
                "some chunks of data are (x, y) and others (x, y, sigma); wanted all of one kind"
            )
        size = len(chunk)
        yield (*chunk, None)[:3]
    if not size:
        raise ValueError(
            "x() returned no chunks; wanted a function that returns a new iterator in each call"
        )


@dataclasses.dataclass
class _Totals:
    """Sums over the data: their number, the logarithms of the weights; and, for complex data of
    each part, the squared weights, the weighted mean of y and its squared deviations."""

    count: int = 0
    log_weights: float = 0.0
    weight: Any = 0.0
    mean: Any = 0.0
    squares: Any = 0.0

    def add(self, y: np.ndarray, weights: Any, parts: int) -> None:
        """Add a chunk (Chan, Golub & LeVeque 1979, updating formulae for variances)."""
        y, count = np.reshape(y.astype(np.float64), (parts, -1)), y.size
        if weights is None:
            weight, mean = np.full(parts, float(y.shape[-1])), y.mean(axis=-1)
            squares = np.square(y - mean[:, None]).sum(axis=-1)
        else:
            used = np.broadcast_to(weights, y.size).astype(np.float64)
            count = int(np.count_nonzero(used))
            self.log_weights += float(np.log(used[used > 0.0]).sum())
            each = np.reshape(used * used, (parts, -1))
            weight = each.sum(axis=-1)
            mean = (each * y).sum(axis=-1) / np.where(weight > 0.0, weight, 1.0)
            squares = (each * np.square(y - mean[:, None])).sum(axis=-1)
        both, apart = self.weight + weight, mean - self.mean
        share = weight / np.where(both > 0.0, both, 1.0)
        self.squares += squares + apart * apart * self.weight * share
        self.mean += apart * share
        self.count, self.weight = self.count + count, both


class Chunks:
    """The residuals of data in chunks and their Jacobian, for `run_fit`.

    Parameters
    ----------
    source : a function that returns an iterator over chunks, the same ones each time.
    of_chunk : makes `Residuals` of a chunk.
    """

    in_chunks = True
    priors = likelihood = data = None
    whole = ()

    def __init__(self, source: Source, of_chunk: Callable[..., Residuals]):
        self.source, self.of_chunk = source, of_chunk
        head = of_chunk(*next(iter(source())))
        self.layout, self.backend, self.jac = head.layout, head.backend, head.jac
        self.fun, self.compiled = head.fun, head.compiled
        self.names, self.derivatives = head.names, head.derivatives
        self.accuracy = head.accuracy
        # The residuals at the point itself are calculated again.
        self.calls_per_jacobian = 1 + head.calls_per_jacobian
        self.calls, self.bounds, self.forgiven = Calls(), None, ()
        self.differences = Differences(head.backend, head, least=0.0)
        self.totals: _Totals | None = None
        self._known: dict[int, Any] = {}

    def again(self, start: Array) -> Chunks:
        """The same for another fit from this point, (p,), with calls of its own."""
        other = copy.copy(self)
        other.layout = self.layout.starting_at(start)
        other.calls, other.bounds, other.forgiven, other._known = Calls(), None, (), {}
        return other

    def _parts(self) -> Iterator[Residuals]:
        most = 0
        for number, chunk in enumerate(self.source()):
            part = self.of_chunk(*chunk)
            part.bounds, part.forgiven = self.bounds, self.forgiven
            part.differences.step = self.differences.step
            part.differences.known = self._known.get(number, Known())
            yield part
            self._known[number] = part.differences.known
            most = max(most, part.calls.nfev)
            # Its function refers to the part, which would stay in memory.
            del part.differences
        self.calls.nfev += most

    def __call__(self, x: Array) -> Array:
        """The norms of the residuals of all chunks, at least p + 1 of them."""
        totals, squares = _Totals(), []
        for part in self._parts():
            residuals = part(x)
            squares.append(self._read(residuals @ residuals))
            if self.totals is None:
                _, y, weights = part.args
                weights = None if weights is None else self.backend.to_host(weights)
                curve: Any = part.fun
                totals.add(self.backend.to_host(y), weights, 2 if curve.complex else 1)
        self.totals = self.totals or totals
        norms = np.zeros(max(len(squares), self.layout.size + 1))
        norms[: len(squares)] = np.sqrt(squares)
        return self.backend.from_host(norms)

    @property
    def memory(self) -> tuple:
        """What is known of the chunks, and the calls so far, to be saved."""
        return dict(self._known), (self.calls.nfev, self.calls.njev)

    @memory.setter
    def memory(self, memory: tuple) -> None:
        known, calls = memory
        self._known = dict(known)
        self.calls.nfev, self.calls.njev = calls

    def forget(self) -> None:
        """Let go of what is only kept for the next Jacobian: nothing."""

    def columns(self, x: Array, residuals: Array) -> Array:
        """The columns (p, k) of a matrix that is to `residuals`, (k,), as J is to r."""
        self.calls.njev += 1
        gram = self._gram(x)
        rho = self.backend.to_host(residuals).astype(np.float64)
        if not np.isfinite(gram).all():
            return self.backend.full((self.layout.size, rho.size), math.nan)
        factor = _factor(gram, safe_pivot(Space(self.backend)))
        if factor is None:
            factor = self._by_qr(x)
        factor = np.concat([factor, np.zeros((rho.size - factor.shape[0], factor.shape[1]))])
        # A reflection maps the last column to rho, which has the same norm.
        across = factor[:, -1] - rho
        length = across @ across
        found = factor[:, :-1]
        if length > 0.0:
            found = found - np.outer(across, (2.0 / length) * (across @ found))
        return self.backend.from_host(np.ascontiguousarray(found.T))

    def together(self, x: Array, ahead: Array) -> tuple[Array, Array, Array, Array]:
        """Residuals (k,) and columns (p, k) at two points, in the same coordinates."""
        p, gram = self.layout.size, np.zeros((2 * self.layout.size + 2,) * 2)
        for part in self._parts():
            here, there = self._joint(part, x), self._joint(part, ahead)
            gram += self._squares(self.layout.xp.concat([here, there - here]))
        scale = np.sqrt(gram.diagonal())
        unit = np.where(scale > 0.0, scale, 1.0)
        values, vectors = np.linalg.eigh(np.nan_to_num(gram / unit / unit[:, None]))
        rows = (vectors * np.sqrt(np.maximum(values, 0.0))) * scale[:, None]
        rows[p + 1 :] += rows[: p + 1]
        first, second = map(self.backend.from_host, (rows[: p + 1], rows[p + 1 :]))
        return first[p, ...], first[:p, ...], second[p, ...], second[:p, ...]

    def _gram(self, x: Array) -> np.ndarray:
        """[J, r]^T [J, r] at x."""
        gram = np.zeros((self.layout.size + 1,) * 2)
        for part in self._parts():
            gram += self._squares(self._joint(part, x))
        return gram

    def _by_qr(self, x: Array) -> np.ndarray:
        """R of [J, r] = Q R at x, which keeps the digits that squares lose."""
        found = np.zeros((0, self.layout.size + 1))
        for part in self._parts():
            rows = self.backend.to_host(self._joint(part, x)).T
            found = np.asarray(
                np.linalg.qr(np.concat([found, rows.astype(np.float64)]), mode="r")
            )
        return found

    def _joint(self, part: Residuals, x: Array) -> Array:
        residuals = part(x)
        return self.layout.xp.concat([part.columns(x, residuals), residuals[None, :]])

    def _squares(self, rows: Array) -> np.ndarray:
        return self.backend.to_host(rows @ self.layout.xp.matrix_transpose(rows)).astype(np.float64)

    def _read(self, number: Array) -> float:
        return float(self.backend.to_host(number))


def _factor(gram: np.ndarray, least: float) -> np.ndarray | None:
    """R with R^T R = gram; None if columns, apart from the last one, are nearly dependent."""
    scale = np.sqrt(gram.diagonal())
    unit = np.where(scale > 0.0, scale, 1.0)
    try:
        R = np.linalg.cholesky(gram / unit / unit[:, None] + 0.0, upper=True)
    except np.linalg.LinAlgError:
        return None
    return None if R.diagonal().min() < least else R * unit


@np.errstate(all="ignore")
def report_of_chunks(
    found: LeastSquaresResult, objective: Chunks, box: Any, settings: FitSettings,
    absolute_sigma: bool,
) -> CurveFit:
    """`report` from sums."""
    layout, totals = objective.layout, objective.totals
    assert totals is not None
    backend, whole = layout.backend, layout.whole
    jacobian = backend.to_host(found.jac).astype(np.float64)
    host = Space(jacobian, batched=True)
    fixed = np.zeros(layout.size, dtype=bool)
    if box is not None:
        fixed = np.reshape(backend.to_host(box[0] == box[1]), (-1,))
    slopes: Any = None
    if isinstance(layout, FreeLayout):
        slopes = backend.to_host(layout.slopes(layout.to_vector(found.x, "x")))[None]
    root, loose = root_of_inverse(
        settings.accuracy, host, np.where(fixed, 0.0, jacobian)[None], fixed[None], slopes
    )
    if slopes is not None:
        root = root @ slopes.swapaxes(-1, -2)
    chi2, free = 2.0 * found.cost, layout.size - int(fixed.sum())
    over = totals.count - free
    reduced = chi2 / over if over > 0 else math.nan
    if not absolute_sigma:
        root = scaled_root(host, root, np.asarray([reduced]))
    stderr = deviations(host, root, loose)[0]
    root = root[..., listed_order(whole)]
    squares = float(totals.squares.sum())
    scale = 1.0 if absolute_sigma else chi2 / totals.count
    twice = chi2 if absolute_sigma else totals.count
    twice = twice + totals.count * np.log(2.0 * math.pi * scale) - 2.0 * totals.log_weights
    return CurveFit(
        x=found.x,
        covariance=backend.from_host(square(host, root)[0]),
        stderr=whole.to_tree(backend.from_host(stderr)),
        chi2=chi2,
        reduced_chi2=reduced,
        deviance=chi2,
        chi2_priors=0.0,
        r2=1.0 - chi2 / squares if squares > 0.0 else math.nan,
        residuals=None,
        n_data=totals.count,
        n_free=free,
        log_likelihood=float(-0.5 * twice),
        n_priors=0,
        absolute_sigma=absolute_sigma,
        names=objective.names,
        nit=found.nit,
        nfev=found.nfev,
        njev=found.njev,
        derivatives=found.derivatives,
        success=found.success,
        status=found.status,
        message=found.message,
        _root=backend.from_host(root[0]),
    )
