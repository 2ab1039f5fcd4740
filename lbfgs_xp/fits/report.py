"""The report of a fit: parameters with their errors, and how well the model describes the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, identity
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.covariance import deviations, inverse_of_squares
from lbfgs_xp.fits.data import are_correlated, in_units_of_data, in_units_of_sigma
from lbfgs_xp.fits.losses import ResidualLoss
from lbfgs_xp.fits.names import listed_order, names_of
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import (
    BatchCurveFit,
    CurveFit,
    LeastSquaresResult,
)
from lbfgs_xp.fits.settings import FitSettings


@np.errstate(all="ignore")
def report(
    found: LeastSquaresResult, objective: Residuals, box: Any, settings: FitSettings,
    absolute_sigma: bool, compact: bool,
) -> CurveFit:
    layout, (_, y, weights) = objective.layout, objective.args
    loss = settings.loss
    m, p = found.jac.shape[-2:]
    weighted, jacobian = found.fun, found.jac
    residuals = in_units_of_data(weights, -weighted, layout.backend)
    backend: Backend = layout.backend
    send: Callable = identity
    fetch: Callable = identity
    fixed = None if box is None else box[0] == box[1]
    if not layout.batched:
        # On the host, like the algebra of any small problem.
        send, fetch = backend.from_host, backend.to_host
        y, weighted, jacobian = fetch(y), fetch(weighted), fetch(jacobian)
        weights = None if weights is None else fetch(weights)
        fixed = None if fixed is None else fetch(fixed)
        backend = Backend.of(y)
    xp, space = backend.xp, Space(backend, batched=True)
    weighted, jacobian = xp.reshape(weighted, (-1, m)), xp.reshape(jacobian, (-1, m, p))
    jacobian = backend.jit(_seen, loss, space)(weighted, jacobian, fixed)
    covariance, loose = inverse_of_squares(settings.accuracy, space, jacobian)
    whole, free = layout.whole, xp.full_like(weighted[:, 0], p)
    if fixed is not None:
        loose = loose & xp.logical_not(fixed)
        free = free - space.sum(xp.astype(fixed, free.dtype))
    if isinstance(layout, FreeLayout):
        at = layout.xp.reshape(layout.to_vector(found.x, "x"), (-1, p))
        covariance, loose = _of_all(space, fetch(layout.slopes(at)), covariance, loose)
    of_fit = backend.jit(_statistics, loss, absolute_sigma, space)
    covariance, stderr, told = of_fit(weighted, y, weights, free, covariance, loose)

    order = listed_order(whole)
    if (order != np.arange(whole.size)).any():
        places = backend.index_array(order)
        covariance = xp.take(xp.take(covariance, places, axis=-1), places, axis=-2)

    def public(numbers: Array, kind: type = float) -> Any:
        return numbers if layout.batched else kind(backend.to_host(numbers)[0])

    def of_one(array: Array) -> Array:
        return send(array if layout.batched else array[0, ...])

    curve: Any = objective.fun
    kind: type[Any] = BatchCurveFit if layout.batched else CurveFit
    return kind(
        x=found.x,
        covariance=of_one(covariance),
        stderr=whole.to_tree(of_one(stderr)),
        chi2=public(told.chi2),
        reduced_chi2=public(told.reduced_chi2),
        r2=public(told.r2),
        n_data=public(told.n_data, int),
        n_free=public(told.n_free, int),
        log_likelihood=public(told.log_likelihood),
        absolute_sigma=absolute_sigma,
        names=names_of(curve.model, whole),
        residuals=residuals,
        nit=found.nit,
        nfev=found.nfev,
        njev=found.njev,
        derivatives=found.derivatives,
        success=found.success,
        status=found.status,
        message=found.message,
        _analysis=Analysis(objective, box, settings, compact),
    )


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


def _of_all(
    space: Space, slopes: Array, covariance: Array, loose: Array
) -> tuple[Array, Array]:
    """The covariance of all parameters, and which are loose, from those of the free ones and the
    derivatives (B, all, p) with respect to them."""
    xp = space.xp
    moved = xp.matmul(slopes, covariance)
    loose = xp.any((slopes != 0.0) & loose[:, None, :], axis=-1)
    return xp.matmul(moved, xp.matrix_transpose(slopes)), loose


class _Statistics(NamedTuple):
    """Numbers (B,) that describe a fit, as in `CurveFit`."""

    chi2: Array
    reduced_chi2: Array
    r2: Array
    n_data: Array
    n_free: Array
    log_likelihood: Array


def _statistics(
    loss: ResidualLoss, absolute_sigma: bool, space: Space, weighted: Array, y: Array,
    weights: Any, free: Array, covariance: Array, loose: Array,
) -> tuple[Array, Array, _Statistics]:
    """covariance, stderr and the rest, from residuals (B, m), (J^T J)^-1 and the number of free
    parameters (B,)."""
    xp, m = space.xp, weighted.shape[-1]
    chi2 = 2.0 * space.sum(loss.terms(xp, weighted))
    # Points with an infinite sigma are left out.
    used, log_weights = xp.full_like(free, m), xp.zeros_like(free)
    if weights is not None and are_correlated(weights, y):
        # The factor is triangular.
        one = xp.eye(m, dtype=xp.bool, device=space.backend.creation_device)
        diagonal = xp.max(xp.where(one, weights, xp.zeros_like(weights)), axis=-1)
        log_weights = space.sum(xp.log(diagonal)) + xp.zeros_like(free)
    elif weights is not None:
        known = xp.broadcast_to(weights > 0.0, y.shape)
        counted = xp.astype(known, free.dtype)
        used = used - (m - space.sum(xp.reshape(counted, (-1, m))))
        logs = xp.log(xp.where(known, weights, xp.ones_like(weights)))
        log_weights = space.sum(xp.reshape(logs, (-1, m)))
    over = used - free
    reduced = xp.where(over > 0.0, chi2 / over, xp.full_like(chi2, math.nan))
    if not absolute_sigma:
        unknown = xp.full_like(covariance, math.inf)
        known = (over > 0.0)[:, None, None]
        covariance = xp.where(known, covariance * reduced[:, None, None], unknown)
    stderr = deviations(space, covariance, loose)

    # The best constant, with the same weights.
    unit = xp.broadcast_to(in_units_of_sigma(weights, xp.ones_like(y)), y.shape)
    unit = xp.reshape(unit, (-1, m))
    data = xp.reshape(in_units_of_sigma(weights, y), (-1, m))
    level = space.dot(unit, data) / space.dot(unit, unit)
    rest = data - level[:, None] * unit
    r2 = 1.0 - space.dot(weighted, weighted) / space.dot(rest, rest)

    scale = xp.ones_like(chi2) if absolute_sigma else chi2 / used
    squares = chi2 if absolute_sigma else used
    twice = squares + used * xp.log(2.0 * math.pi * scale) - 2.0 * log_weights
    likelihood = -0.5 * twice if loss.is_linear else xp.full_like(twice, math.nan)
    return covariance, stderr, _Statistics(chi2, reduced, r2, used, free, likelihood)
