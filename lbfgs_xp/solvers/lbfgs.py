"""L-BFGS: limited-memory quasi-Newton steps with a line search."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.backend import Array, is_array
from lbfgs_xp.line_search import ACCEPTED, STUCK, LineSearch, MoreThuente, Search, rule_of
from lbfgs_xp.solvers import curvature
from lbfgs_xp.solvers.curvature import Pairs
from lbfgs_xp.solvers.inverse_hessian import InverseHessian
from lbfgs_xp.solvers.two_loop import two_loop
from lbfgs_xp.space import Space

# How many roundings of the value may hide which of two points is lower.
_NOISE = 16.0


class Lowest(NamedTuple):
    """The lowest trial of the search under way: what a search that gets stuck falls back on."""

    alpha: Any
    value: Any
    gradient: Array


class LBFGSState(NamedTuple):
    """Where a run stands. Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm : the current iterate; the norm is the largest component.
    step : the step length that led to it.
    direction, search : the line search under way.
    trial : x + alpha direction, where value and gradient are wanted next.
    seen : the value at the last trial.
    lowest : the lowest trial of this search.
    pairs : the curvature pairs.
    weights : square roots of the diagonal of the initial inverse Hessian, or None.
    decrement : the decrease that the last quasi-Newton step promised, -g . d / 2.
    accepted : whether the last evaluation ended an iteration.
    failed : whether not even steepest descent found a lower point.
    unbounded : whether the largest step the search allows still went down.
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
    lowest: Lowest
    pairs: Pairs
    weights: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS (Liu & Nocedal 1989; Nocedal & Wright, Algorithm 7.5).

    The direction is -H g, where H comes from the last `memory_size` pairs of steps and changes of
    the gradient by the compact form of Byrd, Nocedal & Schnabel (1994). Memory: 2 memory_size + 6
    vectors.

    Parameters
    ----------
    memory_size : int
        How many pairs are kept, at least 1.
    line_search : LineSearch or str
        A rule such as `lx.HagerZhang()`, or its name.
    initial_inverse_hessian : None, float, array of n or of the shape of x, or function
        H before any pair: the identity, a multiple of it, a positive diagonal, or a function that
        maps a vector (..., n) to another (which then goes through the two-loop recursion).
    scale_initial : bool
        Whether the newest pair rescales it by s . y / y . y (Nocedal & Wright, eq. 7.20). With
        True and no `initial_inverse_hessian` the first step is scaled as well: its length is that
        at which the linear model predicts a value of -|f|, at most max(1, largest |x|); and the
        first search ends at the first sufficient decrease that shows curvature, since all it is
        for is to find the scale.

    Raises
    ------
    ValueError, TypeError
        for values outside these ranges, naming what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> solver = lx.LBFGS(memory_size=5, line_search=lx.HagerZhang())
    >>> res = lx.minimize(lambda x: (x @ x, 2 * x), np.ones(3), jac=True, method=solver)
    >>> bool(np.allclose(res.x, 0.0))
    True
    """

    memory_size: int = 10
    line_search: LineSearch | str = MoreThuente()
    initial_inverse_hessian: Any = None
    scale_initial: bool = True

    supports_bounds = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LBFGS):
            return False
        mine, others = self.initial_inverse_hessian, other.initial_inverse_hessian
        # Two arrays are the same setting only if they are the same array.
        same = mine is others or (not is_array(mine) and not is_array(others) and mine == others)
        return same and hash(self) == hash(other)

    def __hash__(self) -> int:
        return hash((self.memory_size, self.line_search, self.scale_initial))

    def __post_init__(self) -> None:
        m = self.memory_size
        if isinstance(m, bool) or not isinstance(m, (int, np.integer)) or m < 1:
            raise ValueError(f"memory_size is {m!r}; wanted an integer of at least 1")
        object.__setattr__(self, "line_search", rule_of(self.line_search))
        if not isinstance(self.scale_initial, bool):
            raise TypeError(f"scale_initial is {self.scale_initial!r}; wanted True or False")
        given = self.initial_inverse_hessian
        if isinstance(given, (int, float)) and not (math.isfinite(given) and given > 0):
            raise ValueError(
                f"initial_inverse_hessian is {given!r}; wanted a positive number, an array of "
                "them, or a function"
            )

    # --- the contract of a solver --------------------------------------------------------------

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, pairs: Pairs | None = None
    ) -> LBFGSState:
        """The state at x, where value and gradient are known.

        `pairs` are those of an earlier run, to start from its curvature.
        """
        batch = tuple(x.shape[:-1])
        weights = self._weights(space, x)
        if pairs is None:
            pairs = curvature.empty(space, x.shape[-1], int(self.memory_size), batch)
            pairs = pairs._replace(gamma=space.scalars.full(self._gamma, pairs.gamma))
        value, norm = space.read(value, space.max_abs(gradient))
        no = space.scalars.full(False, value)
        with np.errstate(all="ignore"):  # trials that overflow are ordinary here
            weighted = _weighted(gradient, weights)
            with_gradient = space.fetch(space.dots(pairs.rows, (weighted,))[0])
            direction, search, pairs = self._aim(
                space, x, value, gradient, norm, pairs, weights, with_gradient,
                *space.read(space.dot(weighted, weighted)),
            )
            zero = space.scalars.full(0.0, value)
            return LBFGSState(
                x, value, gradient, norm, zero, direction, search,
                space.move(x, search.alpha, direction), value, Lowest(zero, value, gradient),
                pairs, weights, space.scalars.full(math.inf, value), no, no, no,
            )

    def step(
        self, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any = True
    ) -> LBFGSState:
        """The state after value and gradient at `state.trial` were seen.

        Problems of a batch outside the mask `active` stay as they are. The arrays of the old
        state's pairs may be overwritten: go on from the new one.
        """
        with np.errstate(all="ignore"):  # trials that overflow are ordinary here
            return self._step(space, state, value, gradient, active)

    def inverse_hessian(self, space: Space, state: LBFGSState) -> InverseHessian:
        """The inverse Hessian at the state's iterate, as an operator."""
        return InverseHessian(space, state.pairs, state.weights, self._function)

    def check_state(self, state: Any) -> None:
        """Refuses a state that is not one of a solver like this."""
        held = state.pairs.diagonal.shape[-1] if isinstance(state, LBFGSState) else 0
        if held != self.memory_size:
            what = f"{held} pairs" if held else f"a {type(state).__name__}"
            raise ValueError(
                f"state holds {what}; wanted that of LBFGS with memory_size={self.memory_size}"
            )

    # --- one evaluation ------------------------------------------------------------------------

    def _step(
        self, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any
    ) -> LBFGSState:
        fn = space.scalars
        rule: Any = self.line_search
        old, alpha, pairs = state.search, state.search.alpha, state.pairs
        offered = None
        if space.remote:
            phi, dphi, pairs, offered = self._offer(space, state, value, gradient)
        else:
            phi, dphi = space.read(value, space.dot(gradient, state.direction))
        search = fn.choose(active, rule.advance(old, phi, dphi), old)
        accepted = (search.status == ACCEPTED) & active
        if self._scales_first:
            lower = (search.best_phi < old.best_phi) & (search.best_alpha == alpha)
            bent = dphi - old.dphi0 > space.backend.eps * fn.abs(old.dphi0)
            accepted = accepted | (lower & bent & (pairs.count == 0) & active)
        if fn.every(accepted):
            # Most evaluations of one problem come this way.
            return self._go_on(
                space, state, search, state.trial, alpha, phi, phi, gradient, pairs, accepted,
                accepted, state.lowest, offered,
            )

        lower = (search.best_phi < old.best_phi) & (search.best_alpha == alpha) & active
        lowest = Lowest(
            fn.where(lower, alpha, state.lowest.alpha),
            fn.where(lower, phi, state.lowest.value),
            space.pick(lower, gradient, state.lowest.gradient),
        )
        stuck = (search.status == STUCK) & fn.logical_not(accepted) & active
        if fn.every(fn.logical_not(stuck)):
            return state._replace(
                search=search,
                trial=space.move(state.x, search.alpha, state.direction),
                seen=phi,
                lowest=lowest,
                pairs=pairs,
                accepted=accepted,
            )

        rescued = stuck & (search.best_phi < search.phi0)
        fallen_back = rescued & (lowest.alpha != alpha)
        end = fn.where(fallen_back, lowest.alpha, alpha)
        x = space.pick(fallen_back, space.move(state.x, end, state.direction), state.trial)
        return self._go_on(
            space, state, search, x, end, fn.where(fallen_back, lowest.value, phi), phi,
            space.pick(fallen_back, lowest.gradient, gradient), pairs, accepted | rescued,
            accepted | stuck, lowest, None if fn.every(fallen_back) else offered,
        )

    def _go_on(
        self, space: Space, state: LBFGSState, search: Search, x: Array, alpha: Any, value: Any,
        seen: Any, gradient: Array, pairs: Pairs, taken: Any, done: Any, lowest: Lowest,
        offered: Any,
    ) -> LBFGSState:
        """A new search: from x where it is `taken`, else from the old iterate without memory."""
        fn = space.scalars
        x = space.pick(taken, x, state.x)
        gradient = space.pick(taken, gradient, state.gradient)
        value = fn.where(taken, value, state.value)
        if offered is None:
            y = gradient - state.gradient
            pairs = self._write(space, state, pairs, alpha, y, taken)
            with_gradient, with_change = map(
                space.fetch, self._products(space, pairs, gradient, y, state.weights)
            )
            norm, squared = *space.read(space.max_abs(gradient)), 0.0
        else:
            with_gradient, with_change, norm, squared = offered
        norm = fn.where(taken, norm, state.gradient_norm)

        newton = done & (pairs.count > 0)
        decrement = fn.where(newton, -0.5 * search.dphi0, state.decrement)
        pairs = curvature.accept(
            space, pairs, with_change, alpha * search.dphi0, taken, self.scale_initial
        )
        reset = failed = done & fn.logical_not(taken)
        if not fn.every(taken):
            # At rounding level steepest descent would do no better.
            at_floor = decrement <= fn.abs(value) * (_NOISE * space.backend.eps)
            reset = reset & newton & fn.logical_not(at_floor)
            failed = failed & fn.logical_not(reset)
            pairs = curvature.forget(space, pairs, reset, self._gamma)
        direction, begun, pairs = self._aim(
            space, x, value, gradient, norm, pairs, state.weights, with_gradient, squared
        )
        turned = taken | reset
        search = fn.choose(turned, begun, search)
        direction = space.pick(turned, direction, state.direction)
        return LBFGSState(
            x,
            value,
            gradient,
            norm,
            fn.where(taken, alpha, state.step),
            direction,
            search,
            space.move(x, search.alpha, direction),
            seen,
            Lowest(
                fn.where(turned, 0.0, lowest.alpha),
                fn.where(turned, value, lowest.value),
                space.pick(turned, gradient, lowest.gradient),
            ),
            pairs,
            state.weights,
            decrement,
            taken,
            failed,
            taken & (alpha >= self.line_search.alpha_max),
        )

    def _offer(
        self, space: Space, state: LBFGSState, value: Any, gradient: Array
    ) -> tuple[float, float, Pairs, tuple]:
        """All numbers of an evaluation and of the iteration it may end, in one read.

        The trial's pair is written before it is known whether the trial will be accepted: a slot
        costs less than a second wait for the device.
        """
        y = gradient - state.gradient
        pairs = self._write(space, state, state.pairs, state.search.alpha, y, True)
        weighted = _weighted(gradient, state.weights)
        joined = space.backend.join(
            [
                value,
                space.dot(gradient, state.direction),
                space.max_abs(gradient),
                space.dot(weighted, weighted),
                *self._products(space, pairs, gradient, y, state.weights),
            ]
        )
        numbers = space.fetch(joined)
        phi, dphi, norm, squared = numbers[:4].tolist()
        with_gradient, with_change = numbers[4:].reshape(2, -1)
        return phi, dphi, pairs, (with_gradient, with_change, norm, squared)

    def _write(
        self, space: Space, state: LBFGSState, pairs: Pairs, alpha: Any, y: Array, mask: Any
    ) -> Pairs:
        s = space.scale(alpha, state.direction)
        if state.weights is not None:
            s, y = s / state.weights, y * state.weights
        return curvature.write(space, pairs, s, y, mask)

    def _products(
        self, space: Space, pairs: Pairs, gradient: Array, y: Array, weights: Any
    ) -> list[Array]:
        return curvature.products(
            space, pairs, _weighted(gradient, weights), _weighted(y, weights)
        )

    # --- the direction and the search along it -------------------------------------------------

    def _aim(
        self, space: Space, x: Array, value: Any, gradient: Array, norm: Any, pairs: Pairs,
        weights: Any, with_gradient: Array, squared: Any,
    ) -> tuple[Array, Search, Pairs]:
        """The direction from x, the search begun along it, and the pairs that made it."""
        fn = space.scalars
        bare = pairs.count == 0
        if fn.every(bare):
            direction, slope, alpha0 = self._descent(space, x, value, gradient, norm, weights)
        else:
            direction, slope = self._quasi_newton(
                space, gradient, pairs, weights, with_gradient, squared
            )
            alpha0 = space.scalars.full(1.0, value)
            uphill = fn.logical_not(slope < 0.0)
            astray = bare | uphill
            if not fn.every(fn.logical_not(astray)):
                pairs = curvature.forget(space, pairs, uphill, self._gamma)
                plain, plain_slope, first = self._descent(
                    space, x, value, gradient, norm, weights
                )
                direction = space.pick(astray, plain, direction)
                slope = fn.where(astray, plain_slope, slope)
                alpha0 = fn.where(astray, first, alpha0)
        noise = fn.abs(value) * (_NOISE * space.backend.eps)
        rule: Any = self.line_search
        return direction, rule.begin(value, slope, alpha0, noise), pairs

    def _quasi_newton(
        self, space: Space, gradient: Array, pairs: Pairs, weights: Any,
        with_gradient: Array, squared: Any,
    ) -> tuple[Array, Any]:
        """-H g and its slope."""
        function = self._function
        if function is not None:
            s, y = curvature.by_age(space, pairs)
            direction = -two_loop(gradient, s, y, function, dot=space.dot)
            return direction, space.read(space.dot(gradient, direction))[0]
        c = curvature.coefficients(space, pairs, with_gradient)
        direction = space.combine(space.send(c), pairs.rows) - space.scale(
            pairs.gamma, _weighted(gradient, weights)
        )
        direction = _weighted(direction, weights)
        if space.remote and weights is None:
            # From the numbers at hand: one more product would be one more wait.
            return direction, float(c @ with_gradient) - pairs.gamma * squared
        return direction, space.read(space.dot(gradient, direction))[0]

    def _descent(
        self, space: Space, x: Array, value: Any, gradient: Array, norm: Any, weights: Any
    ) -> tuple[Array, Any, Any]:
        """The first direction, its slope and the first step along it."""
        fn = space.scalars
        one = space.scalars.full(1.0, value)
        if not self._scales_first:
            function = self._function
            if function is not None:
                direction = -function(gradient)
            else:
                direction = -self._gamma * _weighted(_weighted(gradient, weights), weights)
            return direction, space.read(space.dot(gradient, direction))[0], one
        # Divided by its norm, so that no product overflows.
        unit = fn.where(norm > 0.0, fn.divide(-1.0, norm), -1.0)
        direction = space.scale(unit, gradient)
        slope, size = space.read(space.dot(gradient, direction), space.max_abs(x))
        to_zero = fn.divide(2.0 * fn.abs(value), fn.abs(slope))
        to_zero = fn.where((to_zero > 0.0) & fn.isfinite(to_zero), to_zero, fn.maximum(one, size))
        length = fn.where(size > 0.0, fn.minimum(to_zero, fn.maximum(one, size)), to_zero)
        return direction, slope, length

    # --- the initial inverse Hessian -----------------------------------------------------------

    @functools.cached_property
    def _scales_first(self) -> bool:
        return self.scale_initial and self.initial_inverse_hessian is None

    @functools.cached_property
    def _function(self) -> Callable | None:
        given = self.initial_inverse_hessian
        return given if callable(given) and not is_array(given) else None

    @functools.cached_property
    def _gamma(self) -> float:
        given = self.initial_inverse_hessian
        return float(given) if isinstance(given, (int, float)) else 1.0

    def _weights(self, space: Space, x: Array) -> Any:
        given = self.initial_inverse_hessian
        if given is None or isinstance(given, (int, float)) or self._function is not None:
            return None
        backend = space.backend
        # On the host: not every library rounds its square roots correctly.
        diagonal = backend.to_host(given) if is_array(given) else np.asarray(given, dtype=float)
        if diagonal.size != x.shape[-1] and diagonal.shape != x.shape:
            raise ValueError(
                f"initial_inverse_hessian has shape {diagonal.shape}; wanted one number for each "
                f"of the {x.shape[-1]} variables"
            )
        if not (np.all(np.isfinite(diagonal)) and np.all(diagonal > 0)):
            raise ValueError(
                "initial_inverse_hessian has entries that are not positive and finite; wanted the "
                "diagonal of a positive definite matrix"
            )
        if diagonal.shape != x.shape:
            diagonal = diagonal.reshape(-1)
        return backend.from_host(np.sqrt(diagonal))


def _weighted(vector: Array, weights: Any) -> Array:
    return vector if weights is None else vector * weights
