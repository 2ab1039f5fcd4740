"""Searches within bounds: a straight line up to its first trial, which bends where bounds stop it.

A direction is clipped so that its first trial lies within the bounds. Up to there the path is
straight, so a line search sees a smooth function. Beyond, variables stop at their bounds. No trial
lies outside. Where no bound stops a variable, all numbers are those of a search without bounds.

A search with an L1 penalty is one within the bounds of an orthant, which each iterate chooses anew
(`orthant`).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Self

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.projections import Box
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.orthant import L1, Orthant

# A bound holds a variable near it if a step along the gradient leads this many times further.
_FAR_BEYOND = 0.1
# Clipping has spoilt a direction that keeps less than this share of its slope.
_KEPT = 0.1
# Up to its first bound, a direction is useful if it keeps more than this share of its length.
_USEFUL = 0.01


class Path(NamedTuple):
    """What bounds do to the search from an iterate.

    lower, upper : arrays that broadcast to x (for a batch, of its shape); None for a side without
        bounds.
    free : a mask of the variables (..., n) that no bound holds, nor draws to itself; for one
        problem, None if there are only such.
    reach : the first alpha, up to which the path is straight.
    pull : the gradient of the penalty along the path (see `Orthant`); None without a penalty.
    """

    lower: Any
    upper: Any
    free: Any
    reach: Any
    pull: Any = None


class TakesBounds(Solver):
    """A solver that keeps the variables between bounds, and compares gradients.

    box : the bounds; None without any.
    l1 : the penalty, for solvers that take one; None without any.
    gradient_error : of each component of a gradient; see `anchor`.
    """

    box: Box | None = None
    l1: L1 | None = None
    gradient_error: float = 0.0

    supports_bounds = True

    @property
    def projects(self) -> bool:  # type: ignore[override]
        return self.box is not None or self.l1 is not None

    def with_bounds(self, box: Any) -> Self:
        """The same solver, restricted to a box."""
        return self._with(box=box)

    def with_l1(self, l1: L1 | None) -> Self:
        """The same solver, for a function with this penalty."""
        return self._with(l1=l1)

    def with_gradient_error(self, error: float) -> Self:
        return self._with(gradient_error=error)

    def _with(self, **settings: Any) -> Self:
        solver = copy.copy(self)
        vars(solver).pop("_key", None)
        for name, value in settings.items():
            object.__setattr__(solver, name, value)    # the dataclass is frozen
        return solver

    def of_rows(self, space: Space, count: int, rows: Array) -> Self:
        """The same solver for those of `count` problems that have these indices."""
        own: dict[str, Any] = {}
        for name in ("box", "l1"):
            setting = getattr(self, name)
            if setting is not None and (part := setting.of_rows(space, count, rows)) is not setting:
                own[name] = part
        return self._with(**own) if own else self

    def limits(self, space: Space, x: Array, gradient: Array) -> Any:
        """The box or, with a penalty, the orthant of a search from x; None for none."""
        return self.box if self.l1 is None else self.l1.orthant(space, self.box, x, gradient)

    def around(self, space: Space, x: Array, gradient: Array) -> tuple[Solver, Any]:
        if self.l1 is None:
            return self, None
        orthant = self.l1.orthant(space, self.box, x, gradient)
        return self._with(box=orthant, l1=None), orthant.pull

    def penalised(self, space: Space, x: Array, value: Any) -> Any:
        return value if self.l1 is None else value + self.l1.value(space, x)

    def project(self, space: Space, x: Array) -> Array:
        """The nearest point within the bounds to each vector x (..., n)."""
        return x if self.box is None else self.box.nearest(space, x)

    def reduced(self, space: Space, x: Array, gradient: Array, vector: Array) -> Array:
        """The vector, 0 for the variables that bounds hold at x, where this is the gradient."""
        if not self.projects:
            return vector
        limits = self.limits(space, x, gradient)
        whole = penalised_gradient(limits, gradient)
        return reduced(space, free_variables(space, limits, x, whole), vector)

    def optimality(self, space: Space, x: Array, gradient: Array) -> Array:
        """The largest component of the projected gradient (More & Toraldo 1991): of the gradient
        or, with a penalty, of the pseudo-gradient, without the components of variables that a bound
        holds."""
        if not self.projects:
            return space.max_abs(gradient)
        return optimality(space, self.limits(space, x, gradient), x, gradient)


def optimality(space: Space, limits: Any, x: Array, gradient: Array) -> Array:
    """The largest component of the projected gradient at x, where this is the gradient of fun.

    limits : a box, or the orthant of a search from x.
    """
    whole = penalised_gradient(limits, gradient)
    return space.max_abs(reduced(space, free_variables(space, limits, x, whole), whole))


def penalised_gradient(there: Any, gradient: Array) -> Array:
    """The gradient of all that is minimised, given that of fun.

    there : a path or an orthant; None or a box, without a penalty.
    """
    pull = getattr(there, "pull", None)
    return gradient if pull is None else gradient + pull


def path_at(space: Space, box: Any, x: Array, free: Any) -> Path:
    """The path from x within a box or an orthant, without its reach."""
    lower, upper = box.sides(space, x)
    pull = box.pull if isinstance(box, Orthant) else None
    if not space.batched:
        return Path(lower, upper, free, 0.0, pull)
    # Rows that leave a batch take their bounds with them.
    spread = space.xp.broadcast_to
    return Path(
        None if lower is None else spread(lower, x.shape),
        None if upper is None else spread(upper, x.shape),
        space.xp.ones_like(x, dtype=space.xp.bool) if free is None else free,
        space.small_zeros(x.shape[:-1]),
        pull,
    )


def free_variables(
    space: Space, box: Any, x: Array, gradient: Array, reach: Any = None
) -> Any:
    """The mask of variables that no bound holds; None if none is held, as far as that can be seen
    without waiting for a device.

    A bound holds a variable that is at the bound, if the value falls only beyond it.

    box : a box or an orthant, with the gradient of all that is minimised there.

    reach : an estimate of the inverse Hessian, a number for each problem or for each variable. A
        variable is then also held if a step along the gradient in its units would lead far beyond
        the bound (Bertsekas 1982): it goes straight there. Otherwise the step for the others would
        count on its moving on, and only short steps would go down.
    """
    lower, upper = box.sides(space, x)
    free = ~(lower == upper) if isinstance(box, Orthant) else None
    for side, sign in ((lower, 1.0), (upper, -1.0)):
        if side is None:
            continue
        if reach is None:
            held = x <= side if sign > 0.0 else x >= side
            if _none(space, held):
                continue
        else:
            held = sign * (x - side) <= (sign * _FAR_BEYOND) * (reach * gradient)
        held = held & ((gradient > 0.0) if sign > 0.0 else (gradient < 0.0))
        if _none(space, held):
            continue
        free = ~held if free is None else free & ~held
    return free


def _none(space: Space, mask: Array) -> bool:
    """Whether the mask (..., n) holds nowhere; always False if checking would wait for a device or
    for other processes."""
    if space.remote or space.sharded or (space.batched and not space.backend.on_host):
        return False
    return not bool(space.backend.to_host(space.xp.any(mask)))


def within(space: Space, path: Path, x: Array) -> Array:
    """The nearest point within the bounds."""
    xp = space.xp
    if path.lower is not None:
        x = xp.maximum(x, path.lower)
    return x if path.upper is None else xp.minimum(x, path.upper)


def fitted(
    space: Space, path: Path, x: Array, gradient: Array, direction: Array, first: Any
) -> Array:
    """The direction, shortened where its first trial would pass a bound, with the held variables on
    the way to the bounds that hold them, which they reach at that trial."""
    return _clipped(space, path, x, _onto_bounds(space, path, x, gradient, direction, first), first)


def shortened(
    space: Space, path: Path, x: Array, gradient: Array, direction: Array, slope: Any, gamma: Any,
    mask: Any = True, first: Any = 1.0,
) -> tuple[Array, Any]:
    """A quasi-Newton direction, `fitted`, and its slope. Where that spoils it, and `mask` holds, it
    ends at the first bound instead (Morales & Nocedal 2011) or, where that is too near, is a
    projected step along the gradient. Both always go down.

    slope : of the direction.
    gamma : the inverse Hessian, roughly, for that step.
    first : the first step length.
    """
    fn = space.scalars
    first = fn.full(first, path.reach)
    short = fitted(space, path, x, gradient, direction, first)
    if short is direction:
        return direction, slope
    kept = space.read_one(space.dot(gradient, short))
    spoilt = mask & fn.logical_not((kept < _KEPT * now(slope)) & (kept < 0.0))
    if space.none(spoilt):
        return short, kept
    share, cut = _to_first_bound(space, path, x, direction, first)
    useful = share > _USEFUL
    other = space.pick(useful, cut, space.scale(-gamma, gradient))
    other = fitted(space, path, x, gradient, other, first)
    short = space.pick(spoilt, other, short)
    return short, space.read_one(space.dot(gradient, short))


def _to_first_bound(
    space: Space, path: Path, x: Array, direction: Array, first: Any
) -> tuple[Any, Array]:
    """The share of the direction whose first trial reaches the first bound of a free variable, and
    that part of the direction."""
    xp, fn = space.xp, space.scalars
    there = space.move(x, first, direction)
    inside = within(space, path, there)
    stops = there != inside
    if path.free is not None:
        stops = stops & path.free
    beyond = xp.where(stops, (there - x) / (inside - x), xp.zeros_like(x))
    most = space.read_one(space.max_abs(beyond))
    share = fn.divide(1.0, fn.maximum(most, 1.0))
    return share, space.scale(share, direction)


def _onto_bounds(
    space: Space, path: Path, x: Array, gradient: Array, direction: Array, first: Any
) -> Array:
    """The direction, with the held variables on the way beyond their bounds."""
    xp, free = space.xp, path.free
    if free is None:
        return direction
    side = x
    if path.lower is not None:
        side = xp.where(gradient > 0.0, path.lower, side)
    if path.upper is not None:
        side = xp.where(gradient < 0.0, path.upper, side)
    # Further than to the bound, so that the first trial is clipped to it.
    way = space.scale(space.scalars.divide(2.0, first), side - x)
    return xp.where(free, direction, way)


def trial(space: Space, path: Path | None, x: Array, alpha: Any, direction: Array) -> Array:
    """The trial at alpha."""
    there = space.move(x, alpha, direction)
    return there if path is None else within(space, path, there)


def differ(space: Space, free: Array, other: Array) -> Any:
    """For each problem, whether two masks of free variables differ."""
    if not space.batched:
        return not space.equal(free, other)
    return space.fetch_mask(space.xp.any(free != other, axis=-1))


def reduced(space: Space, free: Any, vector: Array) -> Array:
    """The vector, 0 where a bound holds the variable."""
    return vector if free is None else space.xp.where(free, vector, space.xp.zeros_like(vector))


def along(
    space: Space, path: Path, x: Array, reached: Array, alpha: Any, direction: Array
) -> Array:
    """How the trial, which reached this point, moves with alpha: along the direction, but without
    the variables that have stopped."""
    straight = alpha <= path.reach
    if not space.batched and straight:
        return direction
    moving = space.move(x, alpha, direction) == reached
    if space.batched:
        moving = moving | space.send(straight)[..., None]
    return space.xp.where(moving, direction, space.xp.zeros_like(direction))


def step(
    space: Space, x: Array, new: Array, alpha: Any, direction: Array
) -> Array:
    """The step from x to the new iterate at alpha."""
    straight = space.move(x, alpha, direction) == new
    s = space.scale(alpha, direction)
    if _none(space, ~straight):
        return s
    return space.xp.where(straight, s, new - x)


def _clipped(space: Space, path: Path, x: Array, direction: Array, first: Any) -> Array:
    """The direction, shortened where its first trial would pass a bound."""
    xp, eps = space.xp, space.backend.eps
    there = space.move(x, first, direction)
    inside = within(space, path, there)
    stops = there != inside
    if _none(space, stops):
        return direction
    # Longer by a rounding error, so that the trial lies on the bound.
    room = inside - x
    beyond = xp.sign(room) * ((4.0 * eps) * (xp.abs(inside) + xp.abs(x)))
    short = space.scale(space.scalars.divide(1.0, first), room + beyond)
    return xp.where(stops, short, direction)
