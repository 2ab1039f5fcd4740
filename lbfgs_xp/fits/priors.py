"""Priors of parameters, as further residuals of a fit.

A normal prior with a mean and a standard deviation is the residual (p - mean) / sd; a covariance
makes the residuals L^-1 (p - mean), with its Cholesky factor L. No robust loss applies to them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, is_array, take
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.fits.covariance import inverse_factor
from lbfgs_xp.fits.names import listed_order, places_of
from lbfgs_xp.fits.parameters import FreeLayout, all_of, derivatives, slopes_of


class Priors:
    """The priors of a fit, as functions of its free parameters x (B, p).

    count : how many residuals they are.
    """

    count: int

    def residuals(self, layout: Layout, x: Array) -> Array:
        """The residuals (B, count)."""
        raise NotImplementedError

    def jacobian(self, layout: Layout, x: Array) -> Array:
        """Their derivatives (B, count, p)."""
        raise NotImplementedError

    def check_box(self, layout: Layout, box: Any) -> None:
        """Refuse a prior of parameters that cannot change in one of the fits, where it would count
        as a datum; box : None, or the bounds (B, p)."""

    def take(self, indices: Array) -> Priors:
        """The same for these rows of a batch."""
        return self

    def repeated(self, layout: Layout) -> Priors:
        """The same for batches of vectors (R, p) of this single fit, whose layout is `layout`."""
        return Repeated(self, layout)


class Repeated(Priors):
    """The priors of a single fit for many vectors (R, p)."""

    def __init__(self, priors: Priors, layout: Layout):
        self.priors, self.layout, self.count = priors, layout, priors.count

    def residuals(self, layout: Layout, x: Array) -> Array:
        return self._each(self.priors.residuals, x)

    def jacobian(self, layout: Layout, x: Array) -> Array:
        return self._each(self.priors.jacobian, x)

    def _each(self, function: Callable[[Layout, Array], Array], x: Array) -> Array:
        rows = [function(self.layout, x[i : i + 1, ...]) for i in range(x.shape[0])]
        return self.layout.xp.concat(rows, axis=0)


class Shifted(Priors):
    """Priors whose residuals are shifted, (B, count): as if their means were drawn at random."""

    def __init__(self, priors: Priors, shift: Array):
        self.priors, self.shift, self.count = priors, shift, priors.count

    def residuals(self, layout: Layout, x: Array) -> Array:
        return self.priors.residuals(layout, x) + self.shift

    def jacobian(self, layout: Layout, x: Array) -> Array:
        return self.priors.jacobian(layout, x)

    def take(self, indices: Array) -> Shifted:
        return Shifted(self.priors.take(indices), take(self.shift, indices))


class Normal(Priors):
    """Normal priors of the numbers at some places of the vector of all parameters.

    parts : the places of each key of the argument `priors`.
    mean : (q,), or (B, q).
    factor : (q, q), or (B, q, q), the inverse Cholesky factor of the covariance.
    """

    def __init__(self, parts: dict[Any, np.ndarray], mean: Array, factor: Array):
        self.parts, self.mean, self.factor = parts, mean, factor
        self.places = np.concatenate([*parts.values()])
        self.count = self.places.size

    def check_box(self, layout: Layout, box: Any) -> None:
        held = np.ones((*layout.batch, layout.whole.size), dtype=bool)
        if isinstance(layout, FreeLayout):
            held[..., [place for tie in layout.ties for place in tie.places]] = False
        free = layout.free if isinstance(layout, FreeLayout) else np.arange(layout.size)
        equal: Any = False
        if box is not None:
            low, high = map(layout.backend.to_host, box)
            equal = low == high if layout.batched else (low == high)[0]
        held[..., free] = equal
        for key, places in self.parts.items():
            if held[..., places].all(axis=-1).any():
                raise ValueError(
                    f"priors[{key!r}] is of parameters alone that are fixed, or whose bounds are "
                    "equal, and says nothing; wanted a prior of one that is free or tied"
                )

    def residuals(self, layout: Layout, x: Array) -> Array:
        xp, places = layout.xp, layout.backend.index_array(self.places)
        away = xp.take(all_of(layout, x), places, axis=-1) - self.mean
        return xp.matmul(self.factor, away[..., None])[..., 0]

    def jacobian(self, layout: Layout, x: Array) -> Array:
        xp, places = layout.xp, layout.backend.index_array(self.places)
        return xp.matmul(self.factor, xp.take(slopes_of(layout, x), places, axis=-2))

    def take(self, indices: Array) -> Normal:
        part = copy.copy(self)
        if self.mean.ndim == 2:
            part.mean, part.factor = take(self.mean, indices), take(self.factor, indices)
        return part


class Function(Priors):
    """Priors by a function of the parameters, whose values (k,), or (B, k), are the residuals."""

    def __init__(self, function: Callable[[Any], Any], layout: Layout):
        self.function, self.count = function, 0
        first = self.residuals(layout, layout.xp.reshape(layout.start(), (-1, layout.size)))
        self.count = int(first.shape[-1])

    def residuals(self, layout: Layout, x: Array) -> Array:
        single = not layout.batched
        tree = layout.to_tree(x[0, ...] if single and x.ndim == 2 else x)
        found, backend, xp = self.function(tree), layout.backend, layout.xp
        wanted = "an array (B, k)" if layout.batched else "an array (k,)"
        batch = tuple(x.shape[:-1]) if layout.batched else ()
        if not is_array(found):
            found = backend.adopt(found, "what priors returned")
        shape = tuple(found.shape)
        if len(shape) != len(batch) + 1 or shape[:-1] != batch or 0 in shape:
            raise ValueError(f"priors returned an array of shape {shape}; wanted {wanted}")
        found = xp.astype(found, backend.dtype, copy=False)
        return xp.reshape(found, (*x.shape[:-1], -1))

    def jacobian(self, layout: Layout, x: Array) -> Array:
        return derivatives(layout, lambda x: self.residuals(layout, x), x)


def priors_of(priors: Any, layout: Layout, names: tuple[str, ...]) -> Priors | None:
    """The priors of a fit, from the argument of `lx.curve_fit`, or a clear error.

    layout : of the free parameters.
    names : as from `names_of`.
    """
    if priors is None or (isinstance(priors, dict) and not priors):
        return None
    if callable(priors):
        return Function(priors, layout)
    if not isinstance(priors, dict):
        raise TypeError(
            f"priors is {checks.shown(priors)}; wanted a dict, such as {{'k': (mean, sd)}}, or a "
            "function of the parameters"
        )
    whole, order = layout.whole, listed_order(layout.whole)
    batch = layout.batch
    parts: dict[Any, np.ndarray] = {}
    means, factors = [], []
    for key, value in priors.items():
        keys = key if isinstance(key, tuple) else (key,)
        if not keys:
            raise ValueError("priors has the key (); wanted a tuple of names")
        places = np.concatenate([order[places_of(names, each, "priors names")] for each in keys])
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(
                f"priors[{key!r}] is {checks.shown(value)}; wanted the pair (mean, standard "
                "deviation), or for a tuple of names (means, covariance)"
            )
        mean, spread = (
            np.asarray(whole.backend.to_host(whole.backend.adopt(each, f"priors[{key!r}]")),
                       dtype=np.float64)
            for each in value
        )
        q = places.size
        rows = _rows(mean, (*batch, q), key, batch)
        if not np.isfinite(rows).all():
            raise ValueError(f"priors[{key!r}] has the mean {checks.shown(mean)}; wanted numbers")
        means.append(rows)
        correlated = isinstance(key, tuple)
        factors.append(
            _of_covariance(spread, q, key, batch) if correlated
            else _of_deviations(_rows(spread, (*batch, q), key, batch), key)
        )
        parts[key] = places
    places = np.concatenate([*parts.values()])
    if np.unique(places).size < places.size:
        raise ValueError("priors names a parameter twice; wanted one prior for each")
    factor = np.zeros((*batch, places.size, places.size))
    start = 0
    for each in factors:
        stop = start + each.shape[-1]
        factor[..., start:stop, start:stop] = each
        start = stop
    backend = whole.backend
    return Normal(
        parts, backend.from_host(np.concatenate(means, axis=-1)), backend.from_host(factor)
    )


def _rows(
    values: np.ndarray, shape: tuple[int, ...], key: Any, batch: tuple[int, ...]
) -> np.ndarray:
    """Numbers for all fits: of one parameter (B,) or one for all; of several (B, q) or (q,)."""
    if batch and values.ndim == 1 and shape[-1] == 1 and values.shape == batch:
        values = values[:, None]
    flat = values
    if values.ndim > len(shape):    # a parameter that is a matrix
        flat = values.reshape(*values.shape[: len(batch)], -1)
    try:
        return np.broadcast_to(flat, shape)
    except ValueError:
        raise ValueError(
            f"priors[{key!r}] has an array of shape {values.shape}; wanted one that broadcasts to "
            f"{shape}"
        ) from None


def _of_deviations(deviations: np.ndarray, key: Any) -> np.ndarray:
    """The diagonal matrices 1 / sd."""
    right = (deviations > 0.0) & np.isfinite(deviations)
    if not right.all():
        wrong = deviations[~right].ravel()[0]
        raise ValueError(
            f"priors[{key!r}] has the standard deviation {wrong:g}; wanted finite numbers above 0 "
            "(fixed= for a parameter that is known, no prior for one that is not)"
        )
    return (1.0 / deviations)[..., None] * np.eye(deviations.shape[-1])


def _of_covariance(
    covariance: np.ndarray, q: int, key: Any, batch: tuple[int, ...]
) -> np.ndarray:
    """The inverse Cholesky factors."""
    try:
        if covariance.shape[-2:] != (q, q):
            raise ValueError
        covariance = np.broadcast_to(covariance, (*batch, q, q))
    except ValueError:
        raise ValueError(
            f"priors[{key!r}] has an array of shape {covariance.shape}; wanted the means ({q},) "
            f"and a covariance ({q}, {q})"
        ) from None
    return inverse_factor(covariance, f"priors[{key!r}] has")
