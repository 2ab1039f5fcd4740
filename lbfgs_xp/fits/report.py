"""The report of a fit: parameters with their errors, and how well the model describes the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, identity
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.answers import Answers
from lbfgs_xp.fits.complex_data import joined
from lbfgs_xp.fits.covariance import (
    deviations,
    difference_of_squares,
    root_of_inverse,
    scaled_root,
    square,
)
from lbfgs_xp.fits.curve_result import BatchCurveFit, CurveFit
from lbfgs_xp.fits.data import are_correlated, in_units_of_data, in_units_of_sigma
from lbfgs_xp.fits.likelihoods import Likelihood
from lbfgs_xp.fits.loop import MESSAGES, NO_RESPONSE
from lbfgs_xp.fits.losses import ResidualLoss
from lbfgs_xp.fits.names import listed_order, shortened
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import LeastSquaresResult
from lbfgs_xp.fits.settings import FitSettings
from lbfgs_xp.result import Status


@np.errstate(all="ignore")
def report(
    found: LeastSquaresResult, objective: Residuals, box: Any, settings: FitSettings,
    absolute_sigma: bool, compact: bool,
) -> CurveFit:
    layout, (_, y, weights) = objective.layout, objective.args
    loss, likelihood = settings.loss, objective.likelihood
    m, p = found.jac.shape[-2:]
    data = m - loss.priors
    weighted, jacobian, negative = found.fun, found.jac, None
    at: Any = None
    told: Any = None
    if likelihood is not None or isinstance(layout, FreeLayout):
        at = layout.xp.reshape(layout.to_vector(found.x, "x"), (-1, p))
    backend: Backend = layout.backend
    absolute = absolute_sigma or (likelihood is not None and likelihood.name != "gaussian")
    if likelihood is None:
        residuals = in_units_of_data(weights, -weighted[..., :data], backend)
    else:
        predictions = objective.predictions(at)
        residuals = y - layout.xp.reshape(likelihood.mean(predictions), y.shape)
        factors = objective.of_information(at, found.fun)
        jacobian = jacobian * layout.xp.reshape(factors, jacobian.shape[:-1])[..., None]
        negative = np.reshape(backend.to_host(factors < 0.0), (-1, m))
        told = _of_likelihood(
            likelihood, loss.of_data, absolute, Space(backend, batched=True), predictions
        )
    model: Any = objective.fun
    if model.complex:
        residuals = joined(residuals)
    send: Callable = identity
    fetch: Callable = identity
    fixed = None if box is None else box[0] == box[1]
    inside = backend.is_traced(weighted)
    one = not layout.batched and not inside
    if one and not isinstance(weighted, np.ndarray):
        # On the host, like the algebra of any small problem.
        send, fetch = backend.from_host, backend.to_host
        y, weighted, jacobian = fetch(y), fetch(weighted), fetch(jacobian)
        weights = None if weights is None else fetch(weights)
        fixed = None if fixed is None else fetch(fixed)
        backend = Backend.of(y)
    xp, space = backend.xp, Space(backend, batched=True)
    weighted, jacobian = xp.reshape(weighted, (-1, m)), xp.reshape(jacobian, (-1, m, p))
    jacobian = backend.jit(_seen, loss, space)(weighted, jacobian, fixed)
    if negative is not None and negative.any():
        jacobian = difference_of_squares(settings.accuracy, space, jacobian, negative)
    slopes = fetch(layout.slopes(at)) if isinstance(layout, FreeLayout) else None
    root, loose = root_of_inverse(settings.accuracy, space, jacobian, fixed, slopes)
    if slopes is not None:
        root = xp.matmul(root, xp.matrix_transpose(slopes))
    whole, free = layout.whole, xp.full_like(weighted[:, 0], p)
    if fixed is not None:
        free = free - space.sum(xp.astype(fixed, free.dtype))
    if told is not None:
        told = _Statistics(*map(fetch, told))._replace(n_free=free)
    if one:
        # Numbers from here on.
        space = Space(backend)
        weighted, root, loose, free = weighted[0], root[0], loose[0], float(free[0])
        told = told and _Statistics(*(number[0] for number in told))
    if likelihood is None:
        of_data = backend.jit(_statistics, loss.of_data, absolute, model.complex, space)
        told = of_data(weighted[..., :data], y, weights, free)
    told = told.with_priors(space, weighted[..., data:])
    root, covariance, stderr = backend.jit(_errors, absolute, space)(
        root, loose, told.reduced_chi2
    )
    order = listed_order(whole)
    if (order != np.arange(whole.size)).any():
        places = backend.index_array(order)
        root = xp.take(root, places, axis=-1)
        covariance = xp.take(xp.take(covariance, places, axis=-1), places, axis=-2)

    def public(numbers: Array, kind: type = float) -> Any:
        if inside:
            numbers = xp.astype(numbers, xp.int32) if kind is int else numbers
            return numbers if layout.batched else numbers[0]
        return kind(numbers) if one else numbers

    def of_one(array: Array) -> Array:
        return array[0, ...] if inside and not layout.batched else send(array)

    kind: type[Any] = BatchCurveFit if layout.batched else CurveFit
    return kind(
        x=found.x,
        covariance=of_one(covariance),
        stderr=whole.to_tree(of_one(stderr)),
        chi2=public(told.chi2),
        reduced_chi2=public(told.reduced_chi2),
        deviance=public(told.deviance),
        chi2_priors=public(told.chi2_priors),
        r2=public(told.r2),
        n_data=public(told.n_data, int),
        n_free=public(told.n_free, int),
        log_likelihood=public(told.log_likelihood),
        n_priors=loss.priors,
        absolute_sigma=absolute,
        names=objective.names,
        residuals=residuals,
        nit=found.nit,
        nfev=found.nfev if inside else objective.calls.nfev,
        njev=found.njev,
        derivatives=found.derivatives,
        success=found.success,
        status=found.status,
        message=_explained(found, objective, None if inside else backend.to_host(loose), order),
        _root=of_one(root),
        _analysis=None if inside else Answers(objective, box, settings, compact),
    )


def _explained(
    found: LeastSquaresResult, objective: Residuals, loose: np.ndarray | None, order: np.ndarray
) -> Any:
    """The message of the fit, with what a likelihood expects of the start and the parameters that
    the data do not determine.

    loose : a mask of these, (B, p), or (p,) of one fit, on the host; or None. order : see
        `listed_order`.
    """
    domain = objective.likelihood and objective.likelihood.domain
    if loose is None:
        return found.message
    loose = np.reshape(loose, (-1, len(order)))[:, order]
    if not domain and not loose.any():
        return found.message

    def explained(message: str, loose: np.ndarray) -> str:
        if message.startswith(MESSAGES[Status.NOT_FINITE]):
            wanted = domain and f"; the predictions at the start must be {domain}"
            return message + (wanted or "")
        names = [name for name, is_loose in zip(objective.names, loose, strict=True) if is_loose]
        if not names or NO_RESPONSE in message:
            return message
        return f"{message}; the data do not determine {shortened(names)}"

    if isinstance(found.message, list):
        return list(map(explained, found.message, loose))
    return explained(found.message, loose[0])


def _seen(
    loss: ResidualLoss, space: Space, weighted: Array, jacobian: Array, fixed: Any
) -> Array:
    """The Jacobian (B, m, p) with the weights that the loss gives to the residuals, and with zeros
    for fixed parameters."""
    xp = space.xp
    if not loss.is_linear:
        rows, _ = loss.weights(xp, weighted, space.backend.eps)
        jacobian = jacobian * rows[..., None]
    if fixed is not None:
        jacobian = xp.where(fixed[:, None, :], xp.zeros_like(jacobian), jacobian)
    return jacobian


class _Statistics(NamedTuple):
    """Numbers (B,) that describe a fit, as in `CurveFit`."""

    chi2: Array
    chi2_priors: Array
    reduced_chi2: Array
    deviance: Array
    r2: Array
    n_data: Array
    n_free: Array
    log_likelihood: Array

    def with_priors(self, space: Space, residuals: Array) -> _Statistics:
        """With the residuals (B, k) of priors, each of which counts like a datum."""
        chi2 = space.sum(residuals * residuals) if residuals.shape[-1] else self.chi2_priors
        over = self.n_data + residuals.shape[-1] - self.n_free
        reduced = (self.chi2 + chi2) / space.scalars.where(over > 0.0, over, math.nan * over)
        return self._replace(chi2_priors=chi2, reduced_chi2=reduced)


def _of_likelihood(
    likelihood: Likelihood, loss: ResidualLoss, absolute: bool, space: Space, predictions: Array
) -> _Statistics:
    xp = space.xp
    residuals = likelihood.residuals(predictions)
    residuals = xp.reshape(residuals, predictions.shape)
    squares, deviance = space.dot(residuals, residuals), 2.0 * loss.cost(space, residuals)
    nothing = xp.full_like(deviance, math.nan)
    y = xp.reshape(likelihood.y, predictions.shape)
    kept = xp.ones_like(y)
    if likelihood.kept is not None:
        kept = xp.reshape(likelihood.kept, predictions.shape)
    variance, chi2 = likelihood.variance(predictions), nothing
    if likelihood.name == "gaussian":
        chi2 = deviance
    elif variance is not None:
        known = (variance > 0.0) & (kept > 0.0)
        rest = xp.where(known, y - likelihood.mean(predictions), xp.zeros_like(y))
        chi2 = space.sum(rest * rest / xp.where(known, variance, xp.ones_like(variance)))
    r2, level = nothing, likelihood.best_constant()
    if level is not None:
        level = xp.reshape(level, (-1, 1)) + xp.zeros_like(predictions)
        of_constant = xp.reshape(likelihood.residuals(level), predictions.shape)
        r2 = 1.0 - squares / space.dot(of_constant, of_constant)
    saturated, count = space.backend.from_host(likelihood.saturated().reshape(-1)), space.sum(kept)
    # Of absolute deviations, or of the best multiple of relative ones.
    lost = deviance if absolute else count * (1.0 + xp.log(deviance / count))
    return _Statistics(
        chi2, xp.zeros_like(deviance), nothing, deviance, r2, count, nothing,
        saturated - 0.5 * lost if loss.is_linear else nothing,
    )


def _errors(
    absolute: bool, space: Space, root: Array, loose: Array, reduced: Array
) -> tuple[Array, Array, Array]:
    """The root of the covariance, in units of the scatter of the data unless it is absolute; the
    covariance; and the standard deviations."""
    if not absolute:
        root = scaled_root(space, root, reduced)
    return root, square(space, root), deviations(space, root, loose)


def _statistics(
    loss: ResidualLoss, absolute_sigma: bool, is_complex: bool, space: Space, weighted: Array,
    y: Array, weights: Any, free: Array,
) -> _Statistics:
    """The numbers of a fit with normal errors, from residuals (B, m) and the number of free
    parameters (B,), or (m,) and a number."""
    xp, m = space.xp, weighted.shape[-1]
    chi2 = 2.0 * space.sum(loss.terms(xp, weighted))
    # Points with an infinite sigma are left out.
    none = 0.0 * free
    used, log_weights = none + float(m), none
    if weights is not None and are_correlated(weights, y):
        # The factor is triangular.
        one = xp.eye(m, dtype=xp.bool, device=space.backend.creation_device)
        diagonal = xp.max(xp.where(one, weights, xp.zeros_like(weights)), axis=-1)
        log_weights = space.sum(xp.log(diagonal)) + none
    elif weights is not None:
        known = xp.broadcast_to(weights > 0.0, y.shape)
        counted = xp.astype(known, weighted.dtype)
        used = used - (m - space.sum(xp.reshape(counted, weighted.shape)))
        logs = xp.log(xp.where(known, weights, xp.ones_like(weights)))
        log_weights = space.sum(xp.reshape(logs, weighted.shape))
    # The best constant, with the same weights.
    rest = xp.reshape(in_units_of_sigma(weights, y), weighted.shape)
    units: list[Array] = []
    for constant in _constants(xp, y, is_complex):
        unit = xp.reshape(in_units_of_sigma(weights, constant), weighted.shape)
        for other in units:    # correlated parts
            unit = _without(space, other, unit)
        units.append(unit)
        rest = _without(space, unit, rest)
    r2 = 1.0 - space.dot(weighted, weighted) / space.dot(rest, rest)

    scale = none + 1.0 if absolute_sigma else chi2 / used
    squares = chi2 if absolute_sigma else used
    twice = squares + used * xp.log(2.0 * math.pi * scale) - 2.0 * log_weights
    likelihood = -0.5 * twice if loss.is_linear else none + math.nan
    return _Statistics(chi2, none, none, chi2, r2, used, free, likelihood)


def _constants(xp: Any, y: Array, is_complex: bool) -> list[Array]:
    """What a constant adds to data like y: for complex ones, to the parts of each kind."""
    one = xp.ones_like(y)
    if not is_complex:
        return [one]
    half, none = y.shape[-1] // 2, xp.zeros_like(y)
    parts = [one[..., :half], none[..., half:]]
    return [xp.concat(parts, axis=-1), xp.concat(parts[::-1], axis=-1)]


def _without(space: Space, direction: Array, vector: Array) -> Array:
    """Vectors (..., m) without what they have along a direction."""
    length = space.dot(direction, direction)
    length = space.scalars.where(length > 0.0, length, 1.0)
    return vector - (space.dot(direction, vector) / length)[..., None] * direction
