"""The state of an L-BFGS run."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.line_search import LineSearch, Search
from lbfgs_xp.solvers.anchor import Anchor
from lbfgs_xp.solvers.bounded import Path
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.search import FAR


class Pace(NamedTuple):
    """The state of a learning rate: the iterations so far, and what its schedule remembers."""

    iteration: int
    memory: Any


class LBFGSState(NamedTuple):
    """The state of a run. Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm : the current iterate; the norm is the largest component.
    step : the step length that led to it.
    direction, search : the current line search.
    trial : x + alpha direction, the point to evaluate next.
    seen : the value at the last trial.
    lowest : the lowest trial of this search; for one problem, None before there is any.
    pairs : the curvature pairs.
    with_gradient : W g of the current iterate (see `curvature`), or None. For a batch, only if
        `curvature.remembers` it.
    squared : g . g, if `curvature.products` computed it with them; None without them.
    weights : square roots of the diagonal of the initial inverse Hessian, or None.
    pace : the state of the learning rate, for one problem; None if the rate is always 1.
    decrement : the decrease predicted for the last quasi-Newton step, -g . d / 2.
    accepted : whether the last evaluation ended an iteration. (This and the following describe the
        last evaluation; they are False for problems that took no part in it.)
    failed : whether not even steepest descent found a lower point.
    unbounded : whether the largest step that the search allows, along a direction of norm 1 or
        more, still went down and met no positive curvature.
    noise : how far apart two values may be through noise that was measured, or 0.
    path : what bounds do to the search; None without bounds. With bounds, `gradient_norm`, the
        algebra of the pairs, `with_gradient` and `squared` are those of the free variables.
    anchor : where the next pair begins; None if each pair is one step.
    """

    x: Array
    value: Any
    gradient: Array
    gradient_norm: Any
    step: Any
    direction: Array
    search: Search
    trial: Array
    seen: Any
    lowest: Any
    pairs: Pairs
    with_gradient: Any
    squared: Any
    weights: Any
    pace: Pace | None
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any
    noise: Any
    path: Path | None
    anchor: Anchor | None = None


def endless(rule: LineSearch, probes: bool, alpha: Any) -> Any:
    """Whether a first step was so long that a function that fell all the way is unbounded.

    probes : whether the first search only has to find the scale.
    """
    if not probes or rule.alpha_max < FAR:
        return alpha < 0.0
    return alpha >= rule.alpha_max
