"""The borders of the region of parameters whose cost is at most a limit: the ends of intervals.

The end of the interval of a parameter theta_j by profile likelihood (MINOS: James & Roos 1975) is
where theta_j is largest, or smallest, among all parameters whose cost is at most
limit = minimum + rise. Around an iterate, the cost is

    lowest + (step - newton)^T A (step - newton) / 2,    A = J^T J, newton = -A^-1 g,

and among the points where this is at most the limit, theta_j is largest at

    step = newton + sqrt(2 (limit - lowest) / (A^-1)_jj) A^-1 e_j.

If a step is 0, the cost is the limit and its gradient is along e_j, whatever the quality of the
approximation: the point is an end of the interval. So the parameter and all others are solved for
at once, without fits in between (Venzon & Moolgavkar 1988, with the Hessian of Gauss-Newton). All
ends are rows of one batch. Where the iteration does not settle, `end_search` looks for the end by
fits with the parameter fixed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.analysis import Analysis, Rows
from lbfgs_xp.fits.covariance import root_of_inverse
from lbfgs_xp.fits.linear_algebra import transposed_product
from lbfgs_xp.fits.linear_model import frozen_at_bounds
from lbfgs_xp.fits.losses import ResidualLoss

# The most steps; and the longest one, in units of the distance between the best point and the end.
_MOST, _LONGEST = 15, 0.7
# A step is small if what it and all later ones may change is at most this share of that distance,
# at most this multiple of the root of eps.
_SMALL, _ROUNDED = 3e-4, 16.0
# The slowest decrease of the steps from one to the next that counts as one.
_SLOWEST = 0.99
# A trial that rises this many times as far as the limit was too far, and comes back by this factor.
_TOO_FAR, _BACK = 30.0, 0.25
# An end that is this many times as far from the best point as the covariance says, or as close, is
# left to the slower search.
_SURPRISING = 5.0
# Where between the best point and an end the cost is looked at, and how many times as far as the
# limit it may have risen there: behind a pole or a barrier there may be another region.
_BETWEEN, _HIGH = (0.5, 0.8, 0.93), 1.5
# One look is enough if the first step was shorter than this: cost and slopes at the start of the
# search are then as expected there.
_EXPECTED = 0.1
# By how much of a gradient a bound may seem to hold a parameter against its will.
_SLACK = 1e-2


class Targets(NamedTuple):
    """Which ends are looked for: R of them.

    numbers : (R,), on the host: the fit to which each belongs, in groups that hold each of them.
    best : (R, p), the best point of that fit.
    directions : (R, p), e_j or -e_j.
    held : None, or (R, p), a mask of the parameters that keep their value in `starts`.
    starts : (R, p), where the end should be by the covariance, or by the opposite end.
    cost, rise : (R,), the cost at the best point, and how far it rises to the limit.
    tie : None; or, if the ends are those of tied parameters, their places among all and the signs,
        (R,) each, on the host. The directions are then their slopes, which change from point to
        point.
    """

    numbers: np.ndarray
    best: Array
    directions: Array
    held: Any
    starts: Array
    cost: Array
    rise: Array
    tie: tuple[np.ndarray, np.ndarray] | None = None

    def take(self, space: Space, rows: np.ndarray) -> Targets:
        """The same for some of the rows."""
        tie = None if self.tie is None else (self.tie[0][rows], self.tie[1][rows])
        best, directions, held, starts, cost, rise = space.take(self[1:7], rows)
        return Targets(self.numbers[rows], best, directions, held, starts, cost, rise, tie)


class Ends(NamedTuple):
    """What was found, of R targets on the host.

    x : (R, p); the ends, where they were found.
    found, pressed : masks (R,): whether the end was found; and whether a bound comes before it, at
        which x then is.
    expected : a mask (R,): whether the end is about where the covariance says.
    lowest, where : the lowest cost seen, (R,), and its point, (R, p).
    """

    x: np.ndarray
    found: np.ndarray
    pressed: np.ndarray
    expected: np.ndarray
    lowest: np.ndarray
    where: np.ndarray


def ends_of(
    analysis: Analysis, targets: Targets, lengths: np.ndarray, paired: bool = True
) -> Ends:
    """Look for the ends of intervals.

    lengths : (B, p), over which the residuals of the fits bend, on the host; nan: not known.
    paired : whether the second half of the targets are the opposite ends of the first half.
    """
    near = np.ones(targets.numbers.size, bool)
    if not paired:
        return _in_groups(analysis, targets, lengths, near)
    backend, space = analysis.backend, Space(analysis.backend, batched=True)
    half, rest = np.split(np.arange(near.size), 2)
    one, other = targets.take(space, half), targets.take(space, rest)
    found = _in_groups(analysis, one, lengths, near[half])
    # What is even in the distance from the best point moves both ends alike.
    known = (found.found & ~found.pressed)[:, None]
    moved = np.where(known, found.x - backend.to_host(one.starts), 0.0)
    other = other._replace(starts=other.starts + backend.from_host(moved))
    return _joined([found, _in_groups(analysis, other, lengths, found.expected)])


def _in_groups(
    analysis: Analysis, targets: Targets, lengths: np.ndarray, near: np.ndarray
) -> Ends:
    """near : a mask (R,) of the targets that may be where they are expected."""
    space = Space(analysis.backend, batched=True)
    return _joined([
        _of_group(analysis, targets.take(space, group), lengths, near[group])
        for group in analysis.groups(targets.numbers)
    ])


def _joined(parts: list[Ends]) -> Ends:
    return Ends(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _of_group(
    analysis: Analysis, targets: Targets, lengths: np.ndarray, near: np.ndarray
) -> Ends:
    backend = analysis.backend
    space, xp, to_host = Space(backend, batched=True), backend.xp, backend.to_host
    loss, accuracy = analysis.settings.loss, analysis.settings.accuracy
    weighted = backend.jit(_weighted, loss, space)
    toward = backend.jit(_toward, space)
    size = targets.numbers.size
    tolerance = max(_SMALL, _ROUNDED * backend.eps**0.5)

    ends = Ends(
        np.array(to_host(targets.starts)), np.zeros(size, bool), np.zeros(size, bool),
        np.zeros(size, bool), np.array(to_host(targets.cost)), np.array(to_host(targets.best)),
    )
    alive = np.arange(size)
    box = analysis.box_of(targets.numbers)
    x, before = _inside(xp, targets.starts, box), targets.best
    objective = analysis.rows(targets.numbers, x, lengths[targets.numbers])
    whole = targets, objective
    last = np.ones(size)    # the length of the step to the start
    for number in range(_MOST):
        residuals = objective(x)
        jacobian = objective.jacobian(x, residuals)
        if targets.tie is not None:
            targets = targets._replace(directions=analysis.directions(objective, x, *targets.tie))
        numbers = targets[2:7]
        bounded = box is not None and targets.tie is not None
        jacobian, g, cost, pressed = weighted(
            residuals, jacobian, x, None if bounded else box, *numbers
        )
        if bounded:
            step, length, pressed = _within(
                space, toward, accuracy, jacobian, g, cost, x, box, targets
            )
        else:
            root, _loose = root_of_inverse(accuracy, space, jacobian)
            step, length = toward(root, g, cost, pressed, *numbers)
        costs, distances, at_bound = to_host(cost), to_host(length), to_host(pressed)

        old, rise = to_host(targets.cost), to_host(targets.rise)
        far = ~np.isfinite(costs) | (costs - old > _TOO_FAR * rise) | ~np.isfinite(distances)
        lower = ~far & (costs < ends.lowest[alive])
        if lower.any():
            ends.lowest[alive[lower]] = costs[lower]
            ends.where[alive[lower]] = to_host(x)[lower]
        if number == 0:
            expected = near & ~far & ~at_bound & (distances < _EXPECTED)
            ends = ends._replace(expected=expected)
        # What is still to come, if each step is shorter than the one before by the same factor.
        ratio = np.minimum(distances / last, _SLOWEST)
        small = ~far & (distances * ratio / (1.0 - ratio) <= tolerance)
        factor = backend.from_host(
            np.where(far, 0.0, np.minimum(1.0, _LONGEST / np.maximum(distances, 1e-300)))
        )
        new = _inside(xp, x + factor[:, None] * step, box)
        if far.any():
            back = before + _BACK * (x - before)
            new = space.pick(backend.from_host(far, xp.bool), back, new)
        if small.any():
            rows = alive[small]
            ends.x[rows], ends.found[rows] = to_host(new)[small], True
            ends.pressed[rows] = at_bound[small]
        if small.all():
            break
        keep_before = far if far.any() else None
        before = x if keep_before is None else space.pick(
            backend.from_host(far, xp.bool), before, x
        )
        last, x = np.where(far, 1.0, distances), new
        if not (analysis.may_shrink and small.any()):
            # Rows that are done stay, but what they do no longer counts.
            last = np.where(ends.found[alive], np.inf, last)
            continue
        stay = np.flatnonzero(~small)
        alive, last = alive[stay], last[stay]
        (x, before), targets = space.take((x, before), stay), targets.take(space, stay)
        box = analysis.box_of(targets.numbers)
        objective = objective.part(stay, targets.numbers, x)
    targets, objective = whole
    ends = _credible(ends, targets, to_host)
    return ends._replace(found=_connected(analysis, targets, objective, ends))


def _connected(
    analysis: Analysis, targets: Targets, objective: Rows, ends: Ends
) -> np.ndarray:
    """The ends that were found and to which the cost stays low on the way from the best point, a
    mask (R,)."""
    backend, space = analysis.backend, Space(analysis.backend, batched=True)
    low = left = ends.found
    for share in _BETWEEN:
        if not left.any():
            break
        rows = np.flatnonzero(left) if analysis.may_shrink else np.arange(left.size)
        best, cost, rise = targets.best, targets.cost, targets.rise
        if rows.size < left.size:
            best, cost, rise = space.take((best, cost, rise), rows)
            objective = analysis.rows(targets.numbers[rows], best)
        end = backend.from_host(np.where(left[rows, None], ends.x[rows], 0.0))
        residuals = objective(best + share * (end - best))
        risen = analysis.settings.loss.cost(space, residuals) - cost
        high = np.zeros(left.size, bool)
        high[rows] = ~np.asarray(backend.to_host(risen <= _HIGH * rise))
        low = low & ~(left & high)
        left = low & ~ends.expected
    return low


def _credible(ends: Ends, targets: Targets, to_host: Any) -> Ends:
    """The ends without those that the covariance makes surprising, which may belong to another
    branch of the border."""
    directions, best, start = map(to_host, (targets.directions, targets.best, targets.starts))
    moved = np.sum(directions * (ends.x - best), axis=-1)
    expected = np.sum(directions * (start - best), axis=-1)
    with np.errstate(all="ignore"):
        ratio = moved / expected
    usual = (ratio < _SURPRISING) & (ratio > 1.0 / _SURPRISING) | ends.pressed
    # A tied parameter may have no slope at the best point.
    usual = usual | ~directions.any(axis=-1)
    if targets.held is not None:
        usual = usual | to_host(targets.held).any(axis=-1)
    return ends._replace(found=ends.found & usual & np.isfinite(ends.x).all(axis=-1))


def _inside(xp: Any, x: Array, box: Any) -> Array:
    return x if box is None else xp.minimum(xp.maximum(x, box[0]), box[1])


def _weighted(
    loss: ResidualLoss, space: Space, residuals: Array, jacobian: Array, x: Array, box: Any,
    directions: Array, held: Any, starts: Array, cost: Array, rise: Array,
) -> tuple[Array, Array, Array, Array]:
    """The Jacobian with the weights of the loss and without parameters that are held, the gradient
    of the cost, the cost, and a mask of targets that are at their bound below the limit."""
    xp = space.xp
    value = loss.cost(space, residuals)
    if not loss.is_linear:
        rows, others = loss.weights(xp, residuals, space.backend.eps)
        jacobian, residuals = jacobian * rows[..., None], residuals * others
    gradient = transposed_product(space, jacobian, residuals)
    pressed = xp.zeros_like(value, dtype=xp.bool)
    frozen = held
    if box is not None:
        if held is None:
            frozen = xp.zeros_like(x, dtype=xp.bool)
        target = directions != 0.0
        at_end = ((x >= box[1]) & (directions > 0.0)) | ((x <= box[0]) & (directions < 0.0))
        pressed = xp.any(at_end, axis=-1) & (value - cost <= rise)
        free = frozen_at_bounds(space, x, gradient, box) & xp.logical_not(target)
        fixed = box[0] == box[1]
        frozen = frozen | free | fixed | (target & pressed[:, None])
    if frozen is not None:
        jacobian = xp.where(frozen[:, None, :], xp.zeros_like(jacobian), jacobian)
        gradient = xp.where(frozen, xp.zeros_like(gradient), gradient)
    return jacobian, gradient, value, pressed


def _toward(
    space: Space, root: Array, gradient: Array, value: Array, pressed: Array,
    directions: Array, held: Any, starts: Array, cost: Array, rise: Array,
) -> tuple[Array, Array]:
    """The step towards the end, and its length in units of the distance to the best point.

    root : R with R^T R = (J^T J)^-1.
    """
    xp = space.xp
    slope, along = space.products(root, gradient), space.products(root, directions)
    fall, spread = space.dot(slope, slope), space.dot(along, along)
    newton, along = -space.combine(slope, root), space.combine(along, root)
    room = cost + rise - (value - 0.5 * fall)
    goes = xp.logical_not(pressed) & (spread > 0.0) & (room > 0.0)
    room = xp.where(goes, room, xp.zeros_like(room))
    out = xp.sqrt(2.0 * room / xp.where(goes, spread, xp.ones_like(spread)))
    out = out[:, None] * along
    squares = fall - 2.0 * space.dot(gradient, out) + 2.0 * room
    floor = xp.zeros_like(squares)
    length = xp.sqrt(xp.maximum(squares, floor) / (2.0 * rise))
    # A parameter to which nothing responds has no end.
    lost = xp.logical_not(pressed) & xp.logical_not(spread > 0.0)
    return newton + out, xp.where(lost, xp.full_like(length, np.nan), length)


def _within(
    space: Space, toward: Any, accuracy: float, jacobian: Array, gradient: Array, value: Array,
    x: Array, box: Any, targets: Targets,
) -> tuple[Array, Array, Array]:
    """`_toward` for ties of several parameters, any of which a bound may hold: the step, its length
    and which targets are pressed.

    The length is nan, unless the parameters at their bounds are those of the conditions of Karush,
    Kuhn and Tucker for the largest value of the tie (Nocedal & Wright 2006, theorem 12.1).
    """
    xp, (low, high) = space.xp, box
    zero = xp.zeros_like(x)
    frozen, below = low == high, value - targets.cost <= targets.rise
    places = space.backend.adopt(np.arange(float(x.shape[-1])), "the places")
    for _ in range(x.shape[-1] + 1):
        directions = xp.where(frozen, zero, targets.directions)
        moving = xp.any(directions != 0.0, axis=-1)
        pressed = below & xp.logical_not(moving)
        seen = xp.where(frozen[:, None, :], xp.zeros_like(jacobian), jacobian)
        root, _ = root_of_inverse(accuracy, space, seen)
        free = xp.where(frozen, zero, gradient)
        step, length = toward(root, free, value, pressed, directions, None, *targets[4:7])
        out = ((x >= high) & (step > 0.0)) | ((x <= low) & (step < 0.0))
        if not space.any(out):
            break
        # One after another, because the next step may turn the others back.
        spread = xp.sqrt(xp.sum(seen * seen, axis=-2))
        excess = xp.where(out, xp.abs(step) * spread, zero - 1.0)
        first = xp.astype(xp.argmax(excess, axis=-1), places.dtype)[:, None] == places
        frozen = frozen | (out & first)
    # The gradient at the end; it is `pull` times the direction for parameters that are free.
    ahead = gradient + transposed_product(space, jacobian, space.products(jacobian, step))
    square = space.dot(directions, directions)
    pull = space.dot(ahead, directions) / xp.where(square > 0.0, square, xp.ones_like(square))
    outward = pull[:, None] * targets.directions - ahead
    slack = -_SLACK * xp.abs(ahead)
    outward = xp.where(pressed[:, None], targets.directions, outward)
    slack = xp.where(pressed[:, None], zero, slack)
    upper, lower = x >= high, x <= low
    kept = (upper & (outward >= slack)) | (lower & (-outward >= slack)) | (low == high)
    right = xp.all(kept | xp.logical_not(frozen), axis=-1)
    return step, xp.where(right, length, xp.full_like(length, np.nan)), pressed
