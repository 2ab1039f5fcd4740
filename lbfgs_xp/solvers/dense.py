"""Quasi-Newton methods with a dense inverse Hessian: what `BFGS` and its relatives share.

A method chooses the numbers of its update, `scaling`; the rest is here: the first step, bounds,
resuming, and the update itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, copy_of, is_array
from lbfgs_xp.arrays.pending import Pending, now
from lbfgs_xp.arrays.scalars import Scalars, named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import flag, setting
from lbfgs_xp.line_search import LineSearch, MoreThuente
from lbfgs_xp.projections import Box
from lbfgs_xp.solvers.anchor import Anchor, begun, moved, shows_curvature
from lbfgs_xp.solvers.bounded import (
    TakesBounds,
    differ,
    fitted,
    free_variables,
    path_at,
    reduced,
    shortened,
    step,
)
from lbfgs_xp.solvers.clipping import Clipped
from lbfgs_xp.solvers.descent import Aim, Descent, DescentState, Iterate
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.initial import UNSCALED
from lbfgs_xp.solvers.inverse_hessian import DenseInverseHessian
from lbfgs_xp.typing import LineSearchName

_WANTED = (
    "None, a positive number, an array (n,) of positive numbers (the diagonal), or a symmetric "
    "positive definite array (n, n)"
)

# From this length on, the next step is tried with its full length again.
_NEARLY_FULL = 0.9
# (fn, b, h) -> (1 / tau, phi) with b = s.Bs / s.y, B the inverse of H, and h = y.Hy / s.y; phi is
# None if it is always 1.
Scaling = Callable[[Scalars, Any, Any], tuple[Any, Any]]


class Curvature(NamedTuple):
    """What a step s, from the anchor if there is one, shows of the function.

    s, v, product : s, H y and H g (..., n), with y the change of the gradient and g the gradient at
        the end of the step.
    curvature, bend, along : s . y, y . H y and g . H y.
    ahead, straight, size : s . g; 1 if s is the step of one search, which no bound has bent, else
        0; and y . y. None without bounds and without an anchor.
    squared : s . s; None without an anchor.
    """

    s: Array
    v: Array
    product: Array
    curvature: Any
    bend: Any
    along: Any
    ahead: Any = None
    straight: Any = None
    size: Any = None
    squared: Any = None


class Estimate(NamedTuple):
    """What has been learned about the inverse Hessian.

    matrix : H, (..., n, n); 0 in the rows and columns of variables that a bound holds.
    product : H g, (..., n), with the gradient of the current iterate.
    bare : whether H is still the initial one.
    unit : the size of each variable, whose square is the diagonal of the initial H; or None.
    whole : whether the search is along -H g, which no bound has shortened; None without bounds.
    gamma : s . y / y . y of the last step; None without bounds.
    anchor : where the next step begins; None if each is one of a search.
    """

    matrix: Array
    product: Array
    bare: Any
    unit: Any = None
    whole: Any = None
    gamma: Any = None
    anchor: Anchor | None = None


@dataclasses.dataclass(frozen=True)
class DenseQuasiNewton(TakesBounds, Descent):
    """The direction -H g, with a dense H that each step updates.

    With s the step, y the change of the gradient, tau and phi from `scaling`, and

        v = s / s.y - Hy / y.Hy,

    the update is (Broyden's family, self-scaled as by Oren & Luenberger 1974)

        H <- (H - Hy (Hy)' / y.Hy + phi y.Hy v v') / tau + s s' / s.y.
    """

    line_search: LineSearch | LineSearchName = MoreThuente()
    initial_inverse_hessian: Any = None
    scale_initial: bool = True
    box: Box | None = dataclasses.field(init=False, repr=False, default=None)
    gradient_error: float = dataclasses.field(init=False, repr=False, default=0.0)

    # Whether the first trial of a search follows the length of the last step.
    follows_steps = False

    def __post_init__(self) -> None:
        super().__post_init__()
        setting(self, "scale_initial", flag)
        _ = self._given  # checks the input

    @abstractmethod
    def scaling(self, n: int) -> Scaling | None:
        """The function that chooses tau and phi for n variables, which can be hashed; None: both
        are 1 (BFGS)."""

    @functools.cached_property
    def probes(self) -> bool:  # type: ignore[override]
        return self.scale_initial and self.initial_inverse_hessian is None

    @functools.cached_property
    def _given(self) -> np.ndarray:
        """`initial_inverse_hessian` on the host, in float64: (), (n,) or (n, n)."""
        given = self.initial_inverse_hessian
        if given is None:
            return np.ones(())
        if is_array(given):
            given = Backend.of(given, "initial_inverse_hessian").to_host(given)
        elif isinstance(given, (bool, str)) or not isinstance(given, (numbers.Real, list, tuple)):
            raise TypeError(f"initial_inverse_hessian is {given!r}; wanted {_WANTED}")
        host = np.asarray(given, dtype=np.float64)
        if host.ndim < 2:
            fine = bool(np.all(np.isfinite(host) & (host > 0.0)))
        else:
            fine = _is_definite(host)
        if not fine:
            shown = given if host.ndim == 0 else f"an array of shape {host.shape}"
            raise ValueError(f"initial_inverse_hessian is {shown}; wanted {_WANTED}")
        return host

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array,
        learned: Estimate | None = None, noise: Any = 0.0, unit: Array | None = None, **more: Any,
    ) -> DescentState:
        """The state at x, a vector (..., n), with value and gradient there.

        `learned` is the estimate of an earlier run, to start from; `unit` the size of each
        variable, for a start without one.
        """
        gamma: Any = None
        if learned is None:
            bare = space.scalars.full(True, space.read_one(space.max_abs(gradient)))
            matrix = self._initial(space, x.shape, unit)
        else:
            matrix, _, bare, unit, _, gamma, _ = learned
        if self.box is not None or learned is not None:
            if gamma is None:
                gamma = space.scalars.full(1.0, space.read_one(space.max_abs(gradient)))
            matrix, _ = self._restricted(space, matrix, x, gradient, bare, gamma)
            gamma = gamma if self.box is not None else None
        product, anchor = space.products(matrix, gradient), begun(self.gradient_error, x, gradient)
        return super().init(
            space, x, value, gradient, noise=noise,
            learned=Estimate(matrix, product, bare, unit, None, gamma, anchor), **more,
        )

    def measure(
        self, space: Space, state: DescentState, alpha: Any, x: Array, gradient: Array
    ) -> Curvature:
        matrix, anchor = state.learned.matrix, state.learned.anchor
        s, y = space.scale(alpha, state.direction), gradient - state.gradient
        straight: Any = None
        if anchor is not None:
            unbent = space.move(state.x, alpha, state.direction)
            straight = (anchor.x == state.x) & (x == unbent)
            s, y = x - anchor.x, gradient - anchor.gradient
        elif state.path is not None:
            unbent, s = s, step(space, state.x, x, alpha, state.direction)
            straight = s == unbent
        v, product = space.products(matrix, y), space.products(matrix, gradient)
        numbers = [space.dot(s, y), space.dot(y, v), space.dot(v, gradient)]
        if straight is not None:
            straight = space.xp.astype(space.xp.all(straight, axis=-1), s.dtype)
            numbers += [space.dot(s, gradient), straight, space.dot(y, y)]
        if anchor is not None:
            numbers.append(space.dot(s, s))
        return Curvature(s, v, product, *space.later(*numbers))

    def learn(
        self, space: Space, state: DescentState, point: Iterate, slope: Any, taken: Any,
        kept: Any, measured: Curvature,
    ) -> Estimate:
        """Update H in one pass: by H + s w' + w s' if phi is 1 (Nocedal & Wright, eq. 6.17), else
        by the sum of two squares."""
        if space.none(taken):
            return state.learned
        matrix, _, bare, unit, whole, gamma, anchor = state.learned
        s, v, product, *numbers = measured
        *numbers, ahead, straight, size, squared = map(now, numbers)
        if anchor is not None:
            shows = shows_curvature(space.scalars, self.gradient_error, numbers[0], squared)
            # After a clipped gradient, the next step begins at the iterate, too.
            leaves = taken & (shows | space.scalars.logical_not(kept))
            anchor = moved(space, anchor, leaves, point.x, point.gradient)
            kept = kept & shows
        u = space.scalars.fused(
            _update, self.scaling(s.shape[-1]), self.scale_initial, space.backend.eps, *numbers,
            point.step, state.search.dphi0, slope, kept, bare, ahead, straight, whole,
        )
        # Everything that contains H is multiplied.
        v, product = space.scale(u.factor, v), space.scale(u.factor, product)
        if isinstance(u.change, _Pair):
            rho, share, of_w, of_s = u.change
            w = space.scale(share, s) - space.scale(rho, v)
            w = space.pick(u.good, w, space.xp.zeros_like(w))
            matrix = space.add_outer(u.factor, matrix, s, w)
            product = product + (space.scale(of_s, s) + space.scale(of_w, w))
        else:
            pairs = []
            for of_s, of_v, sign, of_w in u.change:
                w = space.scale(of_s, s) + space.scale(of_v, v)
                w = space.pick(u.good, w, space.xp.zeros_like(w))
                pairs.append((w, space.scale(sign, w)))
                product = product + space.scale(of_w, w)
            matrix = space.add_products(u.factor, matrix, *pairs)
        if self.box is not None:
            fn = space.scalars
            gamma = fn.where(u.good & (size > 0.0), fn.divide(numbers[0], size), gamma)
            matrix, changed = self._restricted(
                space, matrix, point.x, point.gradient, u.bare, gamma
            )
            if not space.none(changed):
                product = space.pick(changed, space.products(matrix, point.gradient), product)
        return Estimate(matrix, product, u.bare, unit, whole, gamma, anchor)

    def _restricted(
        self, space: Space, matrix: Array, x: Array, gradient: Array, bare: Any, gamma: Any
    ) -> tuple[Array, Any]:
        """H of the variables that no bound holds, and the mask of problems where it has changed.

        A variable is taken out by minimising over it: H - h h' / h_i, with h its column, is the
        inverse of the Hessian without its row. One that comes back has no curvature yet, and gets
        the diagonal element gamma.
        """
        xp, fn = space.xp, space.scalars
        known = xp.linalg.diagonal(matrix) != 0.0    # held variables have 0
        free = None
        if self.box is not None:
            reach = space.spread(fn.where(bare, 0.0, gamma))
            free = free_variables(space, self.box, x, gradient, reach)
        if free is None:
            free = xp.ones_like(known)
        changed = differ(space, known, free)
        if (not space.batched or space.small_on_host) and not np.any(changed):
            return matrix, changed
        fresh = xp.zeros_like(x) + space.spread(gamma)
        if space.batched and space.small_on_host:
            rows = np.flatnonzero(changed)
            part = _without_held(space, *space.take((matrix, known, free, fresh), rows))
            return space.own_matrices(space.put(rows, part, matrix)), changed
        return space.own_matrices(_without_held(space, matrix, known, free, fresh)), changed

    def aim(
        self, space: Space, point: Iterate, secant: Any, steepest: Any,
        turned: Any = True, learned: Estimate | None = None, **more: Any,
    ) -> Aim:
        assert learned is not None
        fn, (x, value, gradient, norm, before) = space.scalars, point
        box, free = self.box, None
        path, inner, one = None, gradient, fn.full(1.0, value)
        if box is not None:
            free = space.xp.linalg.diagonal(learned.matrix) != 0.0
            path, inner = path_at(space, box, x, free), reduced(space, free, gradient)
        clip = self.clipped(space, inner, norm)
        direction, slope = self._descent(space, learned, gradient, clip, free)
        if path is not None:
            straight = direction
            direction, slope = shortened(
                space, path, x, gradient, straight, slope, learned.gamma
            )
            whole = fn.logical_not(differ(space, direction, straight))
            if learned.whole is not None:
                # Searches that continue keep their direction.
                whole = fn.where(turned & fn.full(True, value), whole, learned.whole)
            learned = learned._replace(whole=whole)
        # If it is not a descent direction, it is dropped together with what was learned. (At a
        # gradient of 0 there is no descent, and nothing is wrong.) A pending slope ends the search
        # at its first trial, after which `steepest` holds.
        pending = isinstance(slope, Pending)
        wrong, bare = fn.fused(
            _dropped, steepest, None if pending else slope, norm, learned.bare, turned
        )
        if not space.none(wrong):
            start = self._initial(space, x.shape, learned.unit)
            if box is not None:
                start, _ = self._restricted(space, start, x, gradient, one == one, one)
            plain = space.products(start, gradient)
            learned = Estimate(
                space.pick_rows(wrong, start, learned.matrix) if space.batched else start,
                space.pick(wrong, plain, learned.product), bare, *learned[3:],
            )
            if box is not None:
                free = space.xp.linalg.diagonal(learned.matrix) != 0.0
                path, inner = path_at(space, box, x, free), reduced(space, free, gradient)
                clip = self.clipped(space, inner, norm)
            direction, slope = self._descent(space, learned, gradient, clip, free)
            if path is not None:
                direction, slope = shortened(
                    space, path, x, gradient, direction, slope, learned.gamma
                )
        plain_slope: Any = None
        length: Any = None
        if self.probes and not space.none(learned.bare):
            plain, plain_slope, length = first_step(
                space, UNSCALED, learned.unit, x, value, inner, norm, before == 0.0, clip
            )
            if path is not None:
                plain = fitted(space, path, x, gradient, plain, length)
                (plain_slope,) = space.read(space.dot(gradient, plain))
            direction = space.pick(learned.bare, plain, direction)
        slope, first, share = fn.fused(
            _aimed, value, learned.bare, slope, plain_slope, length,
            before if self.follows_steps else None,
        )
        if clip is not None:
            share = fn.where(clip.factor < 1.0, math.inf, share)
        return Aim(direction, slope, first, share, learned.bare, learned)

    def _descent(
        self, space: Space, learned: Estimate, gradient: Array, clip: Clipped | None, free: Any
    ) -> tuple[Array, Any]:
        """-H g for the free variables, with g clipped, and its slope."""
        direction = reduced(space, free, -learned.product)
        (slope,) = space.later(space.dot(gradient, direction))

        def descent(vector: Array) -> Array:
            return reduced(space, free, -space.products(learned.matrix, vector))

        return self.aimed(space, clip, gradient, direction, slope, descent)

    @property
    def rescales(self) -> bool:  # type: ignore[override]
        """Whether a run may restart in other units: if none were given."""
        return self.probes

    def in_units(self, space: Space, state: DescentState) -> DescentState:
        """The same state, with units."""
        if state.learned.unit is not None:
            return state
        return state._replace(
            learned=state.learned._replace(unit=space.xp.ones_like(state.x))
        )

    def inverse_hessian(self, space: Space, state: DescentState) -> DenseInverseHessian:
        """The inverse Hessian at the state's iterate, as an operator."""
        return DenseInverseHessian(space, state.learned.matrix)

    def learned(self, space: Space, state: DescentState) -> Estimate:
        """A copy of the state's estimate, for another run to start from."""
        return self.resume(state).learned

    def resume(self, state: DescentState) -> DescentState:
        """The same state, with its own copy of the matrix, to overwrite."""
        matrix = copy_of(state.learned.matrix)
        return state._replace(learned=state.learned._replace(matrix=matrix))

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a solver like this."""
        if not isinstance(getattr(state, "learned", None), Estimate):
            raise ValueError(f"state holds a {type(state).__name__} without an inverse Hessian; "
                             f"wanted the state of {type(self).__name__}")

    def _initial(self, space: Space, shape: tuple[int, ...], unit: Array | None = None) -> Array:
        """H before any step, (..., n, n), for x of this shape."""
        given, n = self._given, shape[-1]
        if given.ndim and given.shape[0] != n:
            raise ValueError(
                f"initial_inverse_hessian has shape {given.shape}; wanted ({n},) or ({n}, {n}), "
                f"for {n} variables"
            )
        backend, xp = space.backend, space.xp
        matrix = xp.eye(n, dtype=backend.dtype, device=backend.creation_device)
        if given.ndim == 2:
            matrix = backend.constant(given)
        elif given.ndim == 1:
            matrix = matrix * backend.constant(given)
        elif given != 1.0:
            matrix = matrix * float(given)
        matrix = space.xp.broadcast_to(matrix, (*shape, n))
        if unit is not None:
            matrix = matrix * (unit * unit)[..., None]
        return space.own_matrices(matrix)


class _Pair(NamedTuple):
    """H changes by s w' + w s' with w = share s - rho H y, and H g by of_s s + of_w w."""

    rho: Any
    share: Any
    of_w: Any
    of_s: Any


class _Square(NamedTuple):
    """H changes by sign w w' with w = of_s s + of_v H y, and H g by of_w w."""

    of_s: Any
    of_v: Any
    sign: Any
    of_w: Any


class _Update(NamedTuple):
    """The numbers of an update of H.

    good : whether the step shows usable curvature.
    factor : 1 / tau, by which H is multiplied first.
    change : of the product.
    bare : whether H is still the initial one.
    """

    good: Any
    factor: Any
    change: _Pair | tuple[_Square, _Square]
    bare: Any


def _update(
    fn: Scalars, scaling: Scaling | None, scale_initial: bool, eps: float, curvature: Any,
    bend: Any, along: Any, alpha: Any, before: Any, slope: Any, kept: Any, bare: Any, ahead: Any,
    straight: Any, whole: Any,
) -> _Update:
    """curvature, bend, along, ahead, straight : see `Curvature`. before, slope : at both ends of
    the step alpha. whole : see `Estimate`."""
    # The same test as in L-BFGS: relative to s . g, so free of the units of x and f.
    rho = fn.divide(1.0, curvature)
    good = kept & (curvature > -eps * (alpha * before))
    good = good & (rho < math.inf) & (bend > 0.0) & (bend < math.inf)
    factor = one = fn.full(1.0, curvature)
    phi: Any = None
    if scaling is not None:
        # s . Bs / s . y, with B s = -alpha g; a step that bounds have bent says nothing of it.
        known = good
        if straight is not None:
            known = known & (straight > 0.0) & (True if whole is None else whole)
        excess = fn.divide(-alpha * alpha * before, curvature)
        factor, phi = scaling(fn, excess, rho * bend)
        factor = fn.where(known, factor, one)
    if scale_initial:
        factor = fn.where(good & bare, fn.divide(curvature, bend), factor)
    ahead = alpha * slope if straight is None else fn.where(straight > 0.0, alpha * slope, ahead)
    bend, along = factor * bend, factor * along
    change: Any
    if phi is None:
        share = 0.5 * (rho + rho * (rho * bend))
        of_s = fn.where(good, share * ahead - rho * along, 0.0)
        change = named(_Pair, (rho, share, ahead, of_s))
    else:
        if scale_initial:
            known = known & fn.logical_not(bare)
        phi = fn.where(known, phi, one)
        change = _squares(fn, good, rho, bend, phi, ahead, along)
    return named(_Update, (good, factor, change, bare & fn.logical_not(good)))


def _squares(
    fn: Scalars, good: Any, rho: Any, bend: Any, phi: Any, ahead: Any, along: Any
) -> tuple[_Square, _Square]:
    """The change of H, once it is multiplied, as two squares.

    In terms of s / sqrt(s.y) and Hy / sqrt(y.Hy) it is the matrix [[1 + phi h, -phi r], [-phi r,
    phi - 1]] with h = y.Hy / s.y and r = sqrt(h). Eliminating with the larger of its diagonal
    elements, which is at least 1, keeps all numbers of the order of the matrix.
    """
    zero = fn.full(0.0, phi)
    h = rho * bend
    root, unit_s, unit_v = fn.sqrt(h), fn.sqrt(rho), fn.sqrt(fn.divide(1.0, bend))
    by_s = phi >= 0.0
    pivot = fn.where(by_s, 1.0 + phi * h, 1.0 - phi)
    # Minus the determinant.
    rest = fn.divide(1.0 + phi * (h - 1.0), pivot)
    size, left = fn.sqrt(pivot), fn.sqrt(fn.abs(rest))
    mixed = fn.divide(phi * root, size)
    sign = fn.where(by_s, zero + 1.0, zero - 1.0)
    first = fn.where(by_s, size, mixed) * unit_s, fn.where(by_s, -mixed, size) * unit_v, sign
    second = (
        fn.where(by_s, zero, left) * unit_s, fn.where(by_s, left, zero) * unit_v,
        -sign * fn.sign(rest),
    )

    def square(of_s: Any, of_v: Any, sign: Any) -> _Square:
        of_w = sign * (of_s * ahead + of_v * along)
        return named(_Square, (of_s, of_v, *(fn.where(good, each, zero) for each in (sign, of_w))))

    return square(*first), square(*second)


def _dropped(
    fn: Scalars, steepest: Any, slope: Any, norm: Any, bare: Any, turned: Any
) -> tuple[Any, Any]:
    """Where H becomes the initial one again, and where it is that then.

    slope : of the direction; None if it is pending.
    """
    wrong = steepest
    if slope is not None:
        wrong = wrong | (fn.logical_not(slope < 0.0) & (norm > 0.0))
    wrong = wrong & fn.logical_not(bare) & turned
    return wrong, bare | wrong


def _aimed(
    fn: Scalars, value: Any, bare: Any, slope: Any, plain_slope: Any, length: Any, before: Any
) -> tuple[Any, Any, Any]:
    """The slope, the first step and the share of an `Aim`.

    plain_slope, length : of the first direction, which is taken where H is `bare`; or None.
    before : the length of the last step, 0 without one; None if full steps are tried first.
    """
    first = one = fn.full(1.0, value)
    if before is not None:
        # The square root comes back to 1 in a few steps.
        short = (before > 0.0) & (before < _NEARLY_FULL)
        first = fn.where(short, fn.maximum(fn.sqrt(before), 0.1 * one), one)
    share = fn.where(bare, math.inf, fn.full(0.5, value))
    if length is None:
        return slope, first, share
    return fn.where(bare, plain_slope, slope), fn.where(bare, length, first), share


def _is_definite(matrix: np.ndarray) -> bool:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        return False
    if not np.all(np.isfinite(matrix)) or not np.allclose(matrix, matrix.T, rtol=1e-6, atol=0.0):
        return False
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _without_held(
    space: Space, matrix: Array, known: Array, free: Array, fresh: Array
) -> Array:
    """H (..., n, n) of the known variables, as one of the free variables.

    fresh : the diagonal elements (..., n) of those that are not known.
    """
    xp, n = space.xp, known.shape[-1]
    leaving, columns = known & ~free, list(range(n))
    if not space.batched or space.small_on_host:
        left = np.asarray(space.backend.to_host(leaving)).reshape(-1, n)
        columns = [int(i) for i in np.flatnonzero(left.any(axis=0))]
    for i in columns:
        column, pivot = matrix[..., :, i], matrix[..., i, i][..., None]
        leaves = leaving[..., i][..., None] & (pivot != 0.0)
        share = xp.where(
            leaves, column / xp.where(leaves, pivot, xp.ones_like(pivot)), xp.zeros_like(column)
        )
        matrix = matrix - share[..., :, None] * column[..., None, :]
    both = free[..., :, None] & free[..., None, :]
    matrix = xp.where(both, matrix, xp.zeros_like(matrix))
    places = xp.arange(n, device=space.backend.creation_device)
    own = (places[:, None] == places) & (free & ~known)[..., None]
    return xp.where(own, xp.zeros_like(matrix) + fresh[..., None], matrix)
