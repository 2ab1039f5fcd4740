"""Predictions and functions of the parameters with errors, and parameters at random: as the
covariance says, or from fits of data like those of the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.best import Best
from lbfgs_xp.fits.covariance import safe_norms
from lbfgs_xp.fits.data import are_correlated, coordinates, in_units_of_sigma
from lbfgs_xp.fits.distributions import deviations_of
from lbfgs_xp.fits.loop import run_fit
from lbfgs_xp.fits.parameters import derivatives, slopes_of
from lbfgs_xp.fits.priors import Shifted
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.result import Status

# Directions whose influence on the data is this small, relative to the largest, are not determined:
# that is what forward differences show of them.
_UNKNOWN = 1e-5
_DONE = tuple(int(status) for status in Status if status.success)


def predict(fit: Any, analysis: Analysis, x: Any) -> Array:
    """See `CurveFit.predict`."""
    curve: Any = analysis.objective.fun
    backend = analysis.layout.backend
    at = analysis.objective.args[0] if x is None else coordinates(x, backend)
    found = analysis.call(curve.predicted, fit.x, at)
    returned.check_array("model", found, backend, "an array", like="y")
    return backend.detach(found)


def band(fit: Any, analysis: Analysis, x: Any, level: float, sigma: Any) -> tuple[Array, Array]:
    """See `CurveFit.band`."""
    level = checks.number("level", level, above=0.0, below=1.0)
    z = deviations_of(level, fit._dof_of_scale)
    z = np.where(np.isnan(z), 1.0, z)    # the covariance is infinite
    layout, backend = analysis.layout.whole, analysis.layout.backend
    middle = predict(fit, analysis, x)
    at = analysis.objective.args[0] if x is None else coordinates(x, backend)
    if middle.ndim != 1 + len(layout.batch):
        raise ValueError(
            f"the model returns an array of shape {tuple(middle.shape)} at this x; wanted one "
            f"{'(B, k)' if layout.batched else '(k,)'}, like y"
        )
    slopes = analysis.call(analysis.slopes, fit.x, at, analysis.real(middle))
    errors = _errors(fit, analysis, slopes)
    if sigma is not None:
        noise = _deviations(fit, analysis, sigma, errors)
        both = layout.xp.stack([errors, noise], axis=-2)
        errors = safe_norms(Space(backend, batched=True), both)
    away = analysis.seen(backend.from_host(z[..., None]) * errors)
    return middle - away, middle + away


def _deviations(fit: Any, analysis: Analysis, sigma: Any, like: Array) -> Array:
    """The standard deviations of new data, from the argument `sigma`."""
    backend = analysis.layout.backend
    if analysis.objective.likelihood is not None or analysis.complex:
        raise ValueError(
            f"sigma is {checks.shown(sigma)}; wanted None, because the data are complex or do not "
            "have normal errors"
        )
    given, sigma = sigma, backend.adopt(sigma, "sigma")
    if not backend.xp.all(sigma >= 0.0):
        raise ValueError(f"sigma is {checks.shown(given)}; wanted numbers of at least 0")
    try:
        sigma = backend.xp.broadcast_to(sigma, tuple(like.shape))
    except (ValueError, RuntimeError):
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; wanted one that broadcasts to "
            f"{tuple(like.shape)}"
        ) from None
    if fit.absolute_sigma:
        return sigma
    _, (reduced,) = fit._told("reduced_chi2")
    # Without degrees of freedom, nothing is known of the scatter.
    scale = np.sqrt(np.where(np.isnan(reduced), math.inf, reduced))
    return sigma * backend.from_host(scale[..., None])


def _errors(fit: Any, analysis: Analysis, slopes: Array) -> Array:
    """The standard deviations (..., k) of numbers with slopes (..., k, all), in the order of x;
    infinite for those that the data do not determine."""
    xp, root = analysis.layout.xp, fit._root
    # Of a parameter without influence, an infinite variance does no harm.
    used = xp.any(slopes != 0.0, axis=-2)
    root = xp.where(used[..., None, :], root, xp.zeros_like(root))
    space = Space(analysis.layout.backend, batched=True)
    errors = safe_norms(space, xp.matmul(root, xp.matrix_transpose(slopes)))
    unknown = xp.any(slopes != 0.0, axis=-1) & xp.any(xp.isinf(root), axis=(-2, -1))[..., None]
    errors = xp.where(unknown, xp.full_like(errors, math.inf), errors)
    lost = _lost(fit, analysis, slopes)
    if lost.any():
        mask = analysis.layout.backend.from_host(lost, xp.bool)
        errors = xp.where(mask, xp.full_like(errors, math.inf), errors)
    return errors


def _lost(fit: Any, analysis: Analysis, slopes: Array) -> np.ndarray:
    """Which numbers change along directions of the parameters that the data do not determine, a
    mask (..., k) on the host."""
    backend, layout = analysis.backend, analysis.layout
    loose = np.isinf(analysis.whole_vector(fit.stderr)[:, analysis.free]).any(axis=-1)
    if not loose.any():
        return np.zeros(tuple(slopes.shape[:-1]), dtype=bool)
    best = Best.of(fit, analysis)
    slopes = np.asarray(layout.backend.to_host(slopes), dtype=np.float64)
    x = layout.xp.reshape(layout.to_vector(fit.x, "x"), best.x.shape)
    count = best.x.shape[0]
    by_free = np.asarray(layout.backend.to_host(slopes_of(layout, x)))[:, analysis.order, :]
    change = np.matmul(slopes.reshape(count, -1, slopes.shape[-1]), by_free)
    fixed = best.low == best.high
    numbers, rest = np.arange(count), np.zeros(change.shape)
    for group in analysis.groups(numbers, loose):
        start = backend.from_host(best.x[group])
        rows = analysis.rows(group, start)
        jacobian = np.asarray(backend.to_host(rows.jacobian(start, rows(start))))
        jacobian = np.where(fixed[group, None, :] | ~np.isfinite(jacobian), 0.0, jacobian)
        lengths = np.sqrt(np.square(jacobian).sum(axis=-2, keepdims=True))
        lengths = np.where(lengths > 0.0, lengths, 1.0)
        _, values, known = np.linalg.svd(jacobian / lengths, full_matrices=False)
        known = known * (values > _UNKNOWN * values[:, :1])[..., None]
        here = np.where(fixed[group, None, :], 0.0, change[group] / lengths)
        away = here - np.matmul(np.matmul(here, known.swapaxes(-1, -2)), known)
        size = np.sqrt(np.square(here).sum(axis=-1, keepdims=True))
        rest[group] = np.abs(away) / np.where(size > 0.0, size, 1.0)
    lost = (rest > _UNKNOWN).any(axis=-1) & loose[:, None]
    return lost.reshape(slopes.shape[:-1])


def propagate(fit: Any, analysis: Analysis, function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """See `CurveFit.propagate`."""
    if not callable(function):
        raise TypeError(f"function is {checks.shown(function)}; wanted a function of parameters")
    whole, backend, xp = analysis.layout.whole, analysis.layout.backend, analysis.layout.xp

    def values(vector: Array) -> Array:
        """(B, p) -> (B, t)"""
        rows = vector if whole.batched or vector.ndim == 1 else vector[0, ...]
        if whole.plain:
            tree: Any = tuple(rows[..., i] for i in range(whole.size))
        else:
            tree = whole.to_tree(rows)
        found = function(tree)
        if not is_array(found):
            found = backend.adopt(found, "what function returned")
        shapes.append(tuple(found.shape))
        batch = whole.batch if whole.batched else ()
        if tuple(found.shape[: len(batch)]) != batch:
            raise ValueError(
                f"function returned {returned.described(found)}; wanted an array whose first axis "
                f"has length {batch[0]}, a number for each fit"
            )
        return xp.reshape(found, (*batch, -1) if batch else (*vector.shape[:-1], -1))

    shapes: list[tuple[int, ...]] = []
    at = xp.reshape(whole.to_vector(fit.x, "x"), (-1, whole.size))
    found = analysis.call(values, at)
    shape = shapes[0]
    slopes = analysis.listed(analysis.call(derivatives, whole, values, at))
    slopes = slopes if whole.batched else slopes[0, ...]
    errors = xp.reshape(_errors(fit, analysis, slopes), shape)
    found = xp.reshape(backend.detach(found), shape)
    if shape == () and not whole.batched:
        return float(backend.to_host(found)), float(backend.to_host(errors))
    return found, errors


def sample(fit: Any, analysis: Analysis, size: int, seed: Any) -> Any:
    """See `CurveFit.sample`."""
    size = checks.count("size", size, 1)
    rng = np.random.default_rng(seed)
    best = Best.of(fit, analysis)
    count, p = best.x.shape
    # By the correlation, so that the units of the parameters do not matter.
    known = np.isfinite(best.stderr) & (best.stderr > 0.0)
    unit = np.where(known, best.stderr, 1.0)
    correlation = best.covariance / unit[:, :, None] / unit[:, None, :]
    correlation = np.where(known[:, :, None] & known[:, None, :], correlation, 0.0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    numbers = rng.normal(size=(size, count, p)).swapaxes(0, 1)
    away = np.matmul(numbers, root.swapaxes(1, 2)) * unit[:, None, :]
    lost = ~np.isfinite(best.stderr)
    away = np.where(lost[:, None, :], np.nan, away)
    return stacked(analysis, best.x[:, None, :] + away)


def stacked(analysis: Analysis, x: np.ndarray) -> Any:
    """Parameters like p0 with an axis more, from free numbers (B, n, p) on the host."""
    layout = analysis.layout
    trees = [analysis.tree(x[:, k, :]) for k in range(x.shape[1])]
    axis = 1 if layout.batched else 0
    return map_leaves(lambda *leaves: layout.xp.stack(leaves, axis=axis), *trees)


def bootstrap(fit: Any, analysis: Analysis, size: int, seed: Any) -> Any:
    """See `CurveFit.bootstrap`."""
    size = checks.count("size", size, 1)
    rng = np.random.default_rng(seed)
    best = Best.of(fit, analysis)
    (count, p), objective, outer = best.x.shape, analysis.objective, analysis.layout.backend
    _, y, weights = objective.args
    # The residuals in units of sigma, and those of points that count, as a pool for each fit.
    residuals = analysis.real(fit.residuals)
    rest = in_units_of_sigma(weights, residuals)
    rest = np.reshape(outer.to_host(rest), (count, -1)).astype(np.float64)
    m = rest.shape[-1]
    if weights is None or are_correlated(weights, y):
        used = np.ones((count, m), dtype=bool)
    else:
        used = np.reshape(outer.to_host(outer.xp.broadcast_to(weights, y.shape)), (count, m)) > 0.0
    order = np.argsort(~used, axis=-1, kind="stable")
    pool, numbers_in_pool = np.take_along_axis(rest, order, axis=-1), used.sum(axis=-1)
    middle = np.sum(np.where(used, rest, 0.0), axis=-1) / numbers_in_pool
    free = np.sum(best.low < best.high, axis=-1) - _known_before(fit, analysis, best)
    over = np.maximum(numbers_in_pool - free, 1.0)
    pool = (pool - middle[:, None]) * np.sqrt(numbers_in_pool / over)[:, None]

    numbers = np.tile(np.arange(count), size)
    x = np.full((numbers.size, p), np.nan)
    settings = analysis.settings._replace(own_scale=False)
    for group in analysis.groups(numbers):
        these = numbers[group]
        places = np.floor(rng.random((these.size, m)) * numbers_in_pool[these, None]).astype(int)
        errors = outer.from_host(np.take_along_axis(pool[these], places, axis=-1))
        part = analysis.rows(these, analysis.backend.from_host(best.x[these])).residuals
        part.jac = objective.jac if isinstance(part.jac, str) else part.jac
        if objective.likelihood is None:
            analysis.replace_data(part, these, y - residuals, errors)
        else:
            unit = np.sqrt(best.scale[these])[:, None]
            part.likelihood = analysis.drawn(part.likelihood, these, y - residuals, rng, unit)
        if part.priors is not None:
            shift = rng.normal(size=(these.size, part.priors.count))
            part.priors = Shifted(part.priors, outer.from_host(shift))
        found = analysis.call(run_fit, part, part.bounds, FitPlan(
            settings, None, 2**31 - 1, math.inf, on_host=analysis.on_host,
            compact=analysis.may_shrink and outer is analysis.backend,
        ))
        good = np.isin(outer.to_host(found.status), _DONE) & best.usable[these]
        vector = np.asarray(outer.to_host(part.layout.to_vector(found.x, "x")))
        x[group] = np.where(good[:, None], vector, np.nan)
    return stacked(analysis, x.reshape(size, count, p).swapaxes(0, 1))


def _known_before(fit: Any, analysis: Analysis, best: Best) -> np.ndarray | float:
    """How many parameters of each fit the priors determine instead of the data, (B,): the trace of
    their share of the information."""
    layout, priors = analysis.layout, analysis.objective.priors
    if priors is None:
        return 0.0
    x = layout.xp.reshape(layout.to_vector(fit.x, "x"), best.x.shape)
    slopes = analysis.call(priors.jacobian, layout, x)
    slopes = np.asarray(layout.backend.to_host(slopes), dtype=np.float64)
    return np.sum(np.matmul(slopes, best.covariance) * slopes, axis=(-2, -1))
