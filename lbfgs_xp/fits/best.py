"""What a search for ends of intervals knows of a fit: its best point, errors, lowest costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.fits.analysis import Analysis

# A cost that is lower than that of the fit by this share of the rise to the limit is another
# minimum; by less than this multiple of eps of the cost, it is rounding.
_LOWER_BY, _ROUNDED = 1e-2, 1e3
# How far fits with a parameter held may be from their minimum, in standard errors; chi2 is then
# above it by the square of this.
_CLOSE = 1e-4


class Best(NamedTuple):
    """A fit and its surroundings, on the host: the free numbers, in the order of the vector.

    x, stderr : (B, p); stderr is 0 where bounds are equal.
    covariance : (B, p, p).
    cost, scale : (B,), half of what the fit has minimised (chi2, or the deviance, with priors), and
        the chi2 by which a rise is measured: 1 with absolute deviations, otherwise reduced_chi2.
    dof : (B,), the degrees of freedom from which the scale was estimated; inf if it was not.
    usable : (B,), whether the fit has succeeded and has a scale.
    noise : (B,), by how much a cost may be lower because of rounding.
    low, high : (B, p), the bounds.
    gtol : of fits with a parameter held.
    """

    x: np.ndarray
    stderr: np.ndarray
    covariance: np.ndarray
    cost: np.ndarray
    scale: np.ndarray
    dof: np.ndarray
    usable: np.ndarray
    noise: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gtol: float

    @classmethod
    def of(cls, fit: Any, analysis: Analysis) -> Best:
        def on_host(value: Any) -> np.ndarray:
            batched = analysis.layout.batched
            return np.asarray(
                analysis.layout.backend.to_host(value) if batched else [value]
            )

        backend, free = analysis.layout.backend, analysis.free
        x = np.array(analysis.backend.to_host(analysis.vector(fit.x)), dtype=np.float64)
        stderr = analysis.whole_vector(fit.stderr)[:, free].astype(np.float64)
        root = np.asarray(backend.to_host(fit._root), dtype=np.float64)
        root = root.reshape(-1, *root.shape[-2:])[..., np.argsort(analysis.order)[free]]
        covariance = root.swapaxes(-1, -2) @ root
        chi2 = (on_host(fit.deviance) + on_host(fit.chi2_priors)).astype(np.float64)
        scale = np.ones_like(chi2) if fit.absolute_sigma else on_host(fit.reduced_chi2)
        low, high = np.full_like(x, -np.inf), np.full_like(x, np.inf)
        if analysis.box is not None:
            low, high = (
                np.asarray(analysis.layout.backend.to_host(side), dtype=np.float64)
                for side in analysis.box
            )
        usable = on_host(fit.success).astype(bool) & np.isfinite(scale)
        # What rounding of the data, and of predictions of their size, does to chi2.
        eps = _ROUNDED * analysis.layout.backend.eps
        away = np.sqrt(chi2) + eps * analysis.size_of_data
        noise = eps * chi2 + (away * away - chi2)
        scale = scale.astype(np.float64)
        dof = fit._dof_of_scale.reshape(-1)
        gtol = max(analysis.settings.gtol, _CLOSE / math.sqrt(float(np.max(on_host(fit.n_data)))))
        return cls(x, stderr, covariance, 0.5 * chi2, scale, dof, usable, noise, low, high, gtol)

    def conditional_stderr(self) -> np.ndarray:
        """The standard errors (B, p) that parameters would have if the others were known: over
        these, the residuals change about as much as they scatter. nan where there is no telling."""
        unit, nothing = self.stderr, np.full_like(self.stderr, np.nan)
        with np.errstate(all="ignore"):
            correlation = self.covariance / unit[:, :, None] / unit[:, None, :]
            known = np.isfinite(correlation).all(axis=(1, 2))[:, None]
            correlation = np.where(known[..., None], correlation, np.eye(unit.shape[-1]))
            try:
                precision = np.linalg.inv(correlation)
            except np.linalg.LinAlgError:
                return nothing
            found = unit / np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
        return np.where(known, found, nothing)


class Sides(NamedTuple):
    """Ends to be looked for, R of them, on the host.

    numbers, places, signs : (R,), the fit, the parameter, and the side, -1 or 1.
    """

    numbers: np.ndarray
    places: np.ndarray
    signs: np.ndarray

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int):
            return tuple.__getitem__(self, rows)
        return Sides(*(array[rows] for array in tuple(self)))


def both_sides(places: np.ndarray, count: int) -> Sides:
    """Both ends of these parameters, first the lower ones: for each in turn, those of all fits."""
    signs = np.repeat([-1.0, 1.0], places.size)
    return Sides(
        np.tile(np.arange(count), signs.size), np.repeat(np.tile(places, 2), count),
        np.repeat(signs, count),
    )


class Found(NamedTuple):
    """Ends (R,), what they are, all parameters there (R, p); and for each fit the lowest cost seen
    (B,) and its point (B, p)."""

    values: np.ndarray
    status: np.ndarray
    x: np.ndarray
    lowest: np.ndarray
    where: np.ndarray
    rises: np.ndarray


class Base(NamedTuple):
    """Where to look for ends from, if not from the best point.

    held : the parameter that keeps its value.
    x, delta : (R, p) and (R,), the best points with that value, and how far chi2 has risen there.
    """

    held: int
    x: np.ndarray
    delta: np.ndarray


def is_lower(best: Best, lowest: np.ndarray, rises: np.ndarray) -> np.ndarray:
    """A mask (B,) of the fits with a lower cost elsewhere."""
    return best.usable & (lowest < best.cost - _LOWER_BY * rises - best.noise)


def note(
    lowest: np.ndarray, where: np.ndarray, numbers: np.ndarray, costs: np.ndarray, x: np.ndarray
) -> None:
    """Keep the lowest cost of each fit, and its point."""
    order = np.argsort(-costs, kind="stable")
    order = order[costs[order] < lowest[numbers[order]]]
    # The last one of each fit is the lowest.
    lowest[numbers[order]], where[numbers[order]] = costs[order], x[order]


def tangent_of(best: Best, sides: Sides, held: int | None = None) -> np.ndarray:
    """How all parameters move, (R, p), with one that moves by a standard error; if another one is
    held, by the error that is then left."""
    numbers, places, signs = tuple(sides)
    columns = best.covariance[numbers, :, places]
    unit = best.stderr[numbers, places]
    if held is not None:
        # The covariance under the condition that this parameter has its value.
        other = best.covariance[numbers, :, held]
        columns = columns - other * (columns[:, held] / other[:, held])[:, None]
        unit = np.sqrt(columns[np.arange(numbers.size), places])
    with np.errstate(all="ignore"):
        tangent = signs[:, None] * columns / unit[:, None]
    return np.where(np.isfinite(tangent), tangent, 0.0)
