"""Fits from several starts: all starts of all fits as one batch, of which the best are kept."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, flatten, leaf_name, paths
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.loop import run_fit
from lbfgs_xp.fits.names import listed_order
from lbfgs_xp.fits.parameters import FreeLayout
from lbfgs_xp.fits.predictions import stacked
from lbfgs_xp.fits.settings import FitPlan

# How many points a sampler is asked for: the power of 2 from this many for each parameter on.
_EACH = 8


@dataclasses.dataclass(frozen=True)
class Starts:
    """The fits from several starts; the first one is p0.

    Attributes
    ----------
    x : like p0, with an axis more
        Where the fits ended: leaves (S, ...), for a batch (B, S, ...).
    cost : array (S,), or (B, S)
        Half of what the fits minimise (chi2, or the deviance, with priors); nan or infinite for
        starts at which the model has no value.
    success, status : arrays (S,), or (B, S)
        As in `lx.LeastSquaresResult`, with the integers of `lx.Status`.
    best : int, or array (B,)
        Which start has led to the lowest cost: the fit goes on from there.
    """

    x: Any
    cost: Any
    success: Any
    status: Any
    best: Any


def starts_of(starts: Any, layout: Layout, bounds: Any) -> np.ndarray:
    """Starts (S, p), or (B, S, p), of the free parameters, on the host and in the order of the
    vector, from the argument of `lx.curve_fit`; or a clear error.

    layout : of the free parameters. bounds : None, or their bounds (B, p).
    """
    sampler, count = starts, None
    if isinstance(starts, tuple) and len(starts) == 2 and hasattr(starts[0], "random"):
        sampler, count = starts[0], checks.count("the number of starts", starts[1], 1)
    if hasattr(sampler, "random") and not is_array(sampler):
        return _sampled(sampler, count, layout, bounds)
    whole, free = layout.whole, _free(layout)
    if isinstance(starts, dict):
        return _of_leaves(starts, whole)[:, free]
    host = np.asarray(whole.backend.to_host(whole.backend.adopt(starts, "starts")), dtype=float)
    wanted = f"(S, {whole.size})"
    if whole.batched:
        wanted += f", or ({whole.batch[0]}, S, {whole.size})"
    rows = host.ndim == 3 and whole.batched and host.shape[0] == whole.batch[0]
    if not (host.ndim == 2 or rows) or host.shape[-1] != whole.size or 0 in host.shape:
        raise ValueError(
            f"starts is {checks.shown(starts)}, with shape {host.shape}; wanted {wanted}, starts "
            "of all parameters in the order of p0, or a sampler such as scipy.stats.qmc.Sobol(d)"
        )
    places = np.argsort(listed_order(whole))    # listed -> in the vector
    return host[..., places][..., free]


def _free(layout: Layout) -> np.ndarray:
    return layout.free if isinstance(layout, FreeLayout) else np.arange(layout.size)


def _of_leaves(starts: dict[str, Any], whole: Layout) -> np.ndarray:
    """Starts (S, p) from nested ones, whose leaves have a first axis S."""
    unbatched = [shape[len(whole.batch) :] for shape in whole.shapes]
    leaves, structure = flatten(_arrays(starts))
    if structure != whole.structure:
        here, all_of_p0 = (", ".join(paths(each)) for each in (structure, whole.structure))
        wanted = f"all of p0, {all_of_p0}, each with a first axis S"
        if not all_of_p0:
            wanted = f"an array (S, {whole.size}), like p0"
        raise ValueError(f"starts is a dict of {here}; wanted {wanted}")
    columns, count = [], None
    for i, (leaf, shape) in enumerate(zip(leaves, unbatched, strict=True)):
        name = leaf_name(whole.structure, i, "starts")
        host = np.asarray(whole.backend.to_host(whole.backend.adopt(leaf, name)), dtype=float)
        count = host.shape[0] if count is None and host.ndim else count
        if count is None or host.shape != (count, *shape):
            raise ValueError(
                f"{name} has shape {host.shape}; wanted a first axis S and then {shape}, as in p0"
            )
        columns.append(host.reshape(count, -1))
    return np.concatenate(columns, axis=-1)


def _arrays(tree: Any) -> Any:
    """Nested dicts with arrays for lists and numbers."""
    if isinstance(tree, dict):
        return {name: _arrays(part) for name, part in tree.items()}
    return tree if is_array(tree) else np.asarray(tree)


def _sampled(sampler: Any, count: int | None, layout: Layout, bounds: Any) -> np.ndarray:
    """Points of a sampler of the unit cube, such as those of scipy.stats.qmc, within the bounds."""
    p = layout.size
    names = layout.number_names("p0")
    if bounds is None:
        raise ValueError("starts is a sampler, and there are no bounds; wanted finite ones")
    low, high = (np.asarray(layout.backend.to_host(side), dtype=float) for side in bounds)
    open_ = ~(np.isfinite(low) & np.isfinite(high)).all(axis=0)
    if open_.any():
        raise ValueError(
            f"starts is a sampler, and {names[int(np.argmax(open_))]} has no finite bounds; wanted "
            "finite ones for all free parameters"
        )
    dimension = checks.integer(getattr(sampler, "d", None))
    if dimension is not None and dimension != p:
        raise ValueError(
            f"starts is a sampler of {dimension} dimensions; wanted {p}, the number of free "
            "parameters"
        )
    count = 2 ** math.ceil(math.log2(_EACH * p)) if count is None else count
    points = np.asarray(sampler.random(count), dtype=float)
    if points.shape != (count, p):
        raise ValueError(
            f"starts is a sampler whose points have shape {points.shape}; wanted {(count, p)}"
        )
    # A sampler counts the parameters in the order of p0.
    listed = [place for place in listed_order(layout.whole) if place in set(_free(layout))]
    column = {place: k for k, place in enumerate(listed)}
    points = points[:, [column[place] for place in _free(layout)]]
    if layout.batched:
        points = points[None, :, :]
        return low[:, None, :] + points * (high - low)[:, None, :]
    return low + points * (high - low)


def fit_starts(
    analysis: Analysis, starts: np.ndarray, plan: FitPlan
) -> tuple[Starts, Array, int]:
    """The fits from p0 and from other starts as one batch; where to go on from, as a vector of the
    layout; and the most calls that a group of them has taken."""
    layout, outer = analysis.layout, analysis.layout.backend
    own = np.asarray(outer.to_host(layout.start()), dtype=float).reshape(-1, layout.size)
    count = own.shape[0]
    many = np.broadcast_to(starts, (count, *starts.shape[-2:]))
    many = np.concatenate([own[:, None, :], many], axis=1)
    each = many.shape[1]
    # All fits for each start in turn.
    numbers = np.tile(np.arange(count), each)
    points = many.swapaxes(0, 1).reshape(numbers.size, -1)
    x = points.copy()
    cost, status = np.full(numbers.size, math.nan), np.zeros(numbers.size, dtype=np.int32)
    success, calls = np.zeros(numbers.size, dtype=bool), 0
    for group in analysis.groups(numbers):
        these = numbers[group]
        part = analysis.rows(these, analysis.backend.from_host(points[group])).residuals
        part.jac, part.calls.nfev = analysis.objective.jac, 0
        inside = plan._replace(
            scale=None if plan.scale is None else Space(outer).take(plan.scale, these),
            compact=analysis.may_shrink and outer is analysis.backend, callback=None, on_error=(),
            on_host=analysis.on_host,
        )
        found = analysis.call(run_fit, part, part.bounds, inside)
        x[group] = outer.to_host(part.layout.to_vector(found.x, "x"))
        cost[group] = outer.to_host(found.cost)
        status[group], success[group] = outer.to_host(found.status), outer.to_host(found.success)
        calls = max(calls, part.calls.nfev)
    ranked = np.where(np.isfinite(cost), cost, np.inf).reshape(each, count)
    best = np.argmin(ranked, axis=0)

    def told(array: np.ndarray, kind: Any = None) -> Array:
        rows = array.reshape(each, count).T
        return outer.from_host(rows if layout.batched else rows[0], kind)

    trees = x.reshape(each, count, -1)
    at = trees[best, np.arange(count)]
    # A start without a value stays where it is, so that the fit says what is wrong.
    report = Starts(
        stacked(analysis, trees.swapaxes(0, 1)), told(cost), told(success, outer.xp.bool),
        told(status, outer.xp.int32),
        outer.from_host(best, outer.xp.int32) if layout.batched else int(best[0]),
    )
    return report, outer.from_host(at if layout.batched else at[0]), calls
