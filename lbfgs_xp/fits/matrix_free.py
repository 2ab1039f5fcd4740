"""Steps of Levenberg-Marquardt from products with the Jacobian, for one problem of any size.

With J and r weighted as the loss wants them, and A = J / D in the scale D of the parameters, the
step z / D minimises |r + A z|^2 for |z| within the radius (More 1978).

`Dual` has z = -A^T (A A^T + mu I)^-1 r, for fewer residuals than parameters, or else
z = -(A^T A + mu I)^-1 A^T r: in both cases, Cholesky factors of the smaller matrix. The radius is
met by the damping mu, from Newton's method for 1 / |z| = 1 / radius between bounds (Nocedal &
Wright, algorithm 4.3; More & Sorensen 1983). Products square the singular values, so that those
below eps^0.5 of the largest are lost in rounding. Half the acceleration along the geodesic is added
to the step d = z / D: with r'' the second derivative of r along d, which takes one more evaluation,
it is the z for r'' instead of r, and it counts if it is at most three quarters of d, in half of its
length (Transtrum & Sethna 2012, Improvements to the Levenberg-Marquardt algorithm, section 2).

`Conjugate` follows the conjugate gradients for A^T A z = -A^T r, in the form that keeps r + A z
(CGLS: Bjorck 1996, section 7.4.1), until the gradient has fallen far enough (Eisenstat & Walker
1996, choice 2) or the path leaves the ball of the radius, and ends there (Steihaug 1983; Nocedal &
Wright, algorithm 7.2).

Vectors are those of the host, (p,) and (m,).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits.jacobian import Products
from lbfgs_xp.fits.linear_algebra import divisor, norm
from lbfgs_xp.fits.linear_model import reach_of
from lbfgs_xp.fits.settings import FitSettings

# A step fits the radius if its length is between these multiples of it.
_SHORT, _LONG = 0.75, 1.2
# The share of the step along which the second derivative is taken; the largest acceleration; the
# rounding errors that it must exceed.
_AHEAD, _BENT, _SEEN = 0.1, 0.75, 1e3
# The damping is expected to change with this power of the inverse length.
_POWER = 1.0
# How often the damping is refined, and multiplied by how much when rounding makes a matrix
# indefinite; and how many times larger than an estimate of the rounding it is at least.
_REFINED, _FIRMER, _ROUNDED = 12, 16.0, 4.0
# Conjugate gradients: the most iterations; the loosest and the tightest share to which the gradient
# falls; the factor of Eisenstat & Walker, and the share from which the last one counts.
_MOST, _LOOSEST, _TIGHTEST = 500, 0.5, 1e-8
_FORCING, _REMEMBERED = 0.9, 0.1
# To this share, where it is measured how much of the residuals could be removed.
_EXACT = 1e-3


class FreeModel(NamedTuple):
    """The linearised residuals r + A z near x, of which no array is kept but those of a solver.

    jacobian : J, with weighted rows.
    residuals, slope : r, weighted, and A^T r.
    weights : of the rows; None for 1.
    solver : what finds z within a radius.
    scale, norms, reach, optimality, share, finite, hard : as in `LinearModel`, but the share is 1
        unless the optimality is small enough for it to matter.
    """

    jacobian: Products
    residuals: Array
    slope: Array
    weights: Any
    solver: Any
    scale: Array
    norms: Array
    reach: float
    optimality: float
    share: float
    finite: bool
    hard: bool = False


class FreeSteps(lm.Steps):
    """Steps from products.

    kind : "dual" or "cg".
    residuals : x -> the residuals, called once for each step with kind="dual".
    """

    def __init__(
        self, settings: FitSettings, space: Space, kind: str, residuals: Callable[[Array], Array]
    ):
        super().__init__(settings, space)
        self.kind, self.residuals = kind, residuals
        # The norm of the last gradient, and to which share of it conjugate gradients went.
        self._forced: tuple[float, float] | None = None

    def aim(self, state: lm.LMState, box: Any, going: Any) -> lm.LMState:
        """The state with its next trial."""
        linear = state.linear
        before, radius = norm(self.space, linear.scale * state.step), float(state.radius)
        z, mu = linear.solver.within(radius, float(state.mu), float(before))
        step = (state.x + z / linear.scale) - state.x
        change = linear.jacobian.push(step)
        predicted = -self.space.dot(change, linear.residuals + 0.5 * change)
        if self.kind == "dual":
            step = step + self._bend(state, step, change, mu)
        trial = state.x + step
        return state._replace(mu=mu, step=trial - state.x, trial=trial, predicted=predicted)

    def _bend(self, state: lm.LMState, step: Array, change: Array, mu: float) -> Array:
        """Half the acceleration; 0 if it is too large, or hidden by rounding."""
        linear, space, nothing = state.linear, self.space, 0.0 * step
        there = self.residuals(state.x + _AHEAD * step)
        rise = there - state.residuals
        rise = rise if linear.weights is None else linear.weights * rise
        second = 2.0 / _AHEAD**2 * (rise - _AHEAD * change)
        size = norm(space, second)
        seen = _SEEN * space.backend.eps * norm(space, linear.residuals)
        if not (math.isfinite(size) and size > seen):
            return nothing
        z = linear.solver.answer(second, mu)
        if not norm(space, z) <= 0.5 * _BENT * norm(space, linear.scale * step):
            return nothing
        return 0.5 * z / linear.scale

    def linearize(
        self, x: Array, residuals: Array, columns: Products, box: Any, largest: Any
    ) -> tuple[FreeModel, bool]:
        """The linearised residuals, and True: that they are finite is in the model."""
        settings, space = self.settings, self.space
        jacobian, weighted, of_rows = columns, residuals, None
        if not settings.loss.is_linear:
            of_rows, of_residuals = settings.weights(space, residuals)
            jacobian, weighted = columns.weighted(of_rows), residuals * of_residuals
        if self.kind == "dual":
            jacobian.form()
        gradient, norms = jacobian.pull(weighted), jacobian.norms
        finite = bool(
            np.isfinite(gradient).all() and np.isfinite(norms).all() and np.isfinite(weighted).all()
        )
        scale = largest if settings.own_scale else (
            divisor(space, norms if largest is None else np.maximum(norms, largest))
        )
        whole = math.sqrt(2.0 * float(settings.loss.cost(space, residuals))) or 1.0
        slope = gradient / scale
        optimality = float(space.max_abs(gradient / divisor(space, norms))) / whole
        solver: Any = None
        part = whole
        if finite:
            solver = self._solver(jacobian, weighted, slope, scale)
            finite = solver is not None
        # Each column of J alone removes at most the optimality. Beyond gtol, nothing depends on
        # how much all of them can remove.
        if finite and optimality <= settings.gtol:
            part = max(solver.removable(), optimality * whole)
        return FreeModel(
            jacobian, weighted, slope, of_rows, solver, scale, norms, reach_of(space, norms, x),
            optimality, part / whole, finite,
        ), True

    def memory_at(self, linear: FreeModel) -> tuple:
        """What a fit needs to go on from this model, besides its scale, to be saved."""
        return self._forced, getattr(linear.solver, "share", None)

    def linearize_again(
        self, state: lm.LMState, columns: Products, scale: Array, memory: tuple
    ) -> FreeModel:
        """The linearised residuals of another fit that was here, from what it has saved."""
        linear, _ = self.linearize(state.x, state.residuals, columns, None, scale)
        self._forced, share = memory
        if share is not None:
            linear.solver.share = share
        return linear

    def _solver(
        self, jacobian: Products, residuals: Array, slope: Array, scale: Array
    ) -> Any:
        if self.kind == "dual":
            return Dual.of(jacobian, residuals, slope, scale)
        size = float(norm(self.space, slope))
        share = _LOOSEST
        if self._forced is not None and size > 0.0:
            before, last = self._forced
            share = _FORCING * (size / before) ** 2 if before > 0.0 else _LOOSEST
            if _FORCING * last * last > _REMEMBERED:
                share = max(share, _FORCING * last * last)
        share = min(max(share, _TIGHTEST), _LOOSEST)
        self._forced = size, share
        return Conjugate(jacobian, residuals, slope, scale, share)


@dataclasses.dataclass
class Dual:
    """Damped steps by Cholesky factors of A A^T or A^T A, whichever is smaller.

    matrix, right : the matrix and the right-hand side, in the user's library.
    least : the damping from which on the matrix is positive definite in spite of rounding.
    factored : the last factors, as a function that solves, and their damping.
    """

    jacobian: Products
    slope: Array
    scale: Array
    is_dual: bool
    matrix: Array
    right: Array
    least: float
    factored: tuple[Callable[[Array], Array], float] | None = None

    @classmethod
    def of(
        cls, jacobian: Products, residuals: Array, slope: Array, scale: Array
    ) -> Dual | None:
        """The steps; None if squares overflow."""
        backend = jacobian.backend
        matrix, is_dual = jacobian.gram(scale)
        # The trace is at least the norm, of which each sum of n products is wrong by some eps.
        trace = float(backend.to_host(backend.xp.linalg.trace(matrix)))
        if not math.isfinite(trace):
            return None
        rounding = _ROUNDED * math.sqrt(matrix.shape[0]) * backend.eps * trace
        right = jacobian.send(residuals if is_dual else slope)
        least = max(rounding, 4.0 / backend.largest)
        return cls(jacobian, slope, scale, is_dual, matrix, right, least)

    def removable(self) -> float:
        """The norm of the part of r that a step can remove."""
        solve, self.least = self._factored(self.least)
        return math.sqrt(max(-float(self.slope @ self._back(solve(self.right))), 0.0))

    def within(self, radius: float, mu: float, before: float) -> tuple[Array, float]:
        """z for this radius, and its damping; mu, before : that of the last step, which is 0 at the
        start, and the length of that step."""
        radius = max(radius, 4.0 / self.jacobian.backend.largest)
        low, high = self.least, math.sqrt(float(self.slope @ self.slope)) / radius
        # Where the damping matters, the length falls about like mu^-1/2 to mu^-1.
        mu = max(min(mu * (before / radius) ** _POWER, high), low) if mu > low else low
        for _ in range(_REFINED):
            solve, mu = self._factored(mu)
            found = solve(self.right)
            z = self._back(found)
            length = math.sqrt(float(z @ z))
            if length <= _LONG * radius and (length >= _SHORT * radius or mu <= low):
                break
            low, high = (max(low, mu), high) if length > radius else (low, min(high, mu))
            image = self.matrix @ found if self.is_dual else found
            bend = float(self.jacobian.backend.to_host(image @ solve(found)))
            mu = mu + length * length / bend * (length - radius) / radius if bend > 0.0 else 0.0
            if mu <= self.least and low <= self.least:
                mu = self.least
            elif not low < mu < high:
                mu = max(1e-3 * high, math.sqrt(low) * math.sqrt(high))
        return (z * (_LONG * radius / length) if length > _LONG * radius else z), mu

    def answer(self, residuals: Array, mu: float) -> Array:
        """z with this damping for other residuals, by the factors of the last step if it had it."""
        jacobian = self.jacobian
        right = residuals if self.is_dual else jacobian.pull(residuals) / self.scale
        return self._back(self._factored(mu)[0](jacobian.send(right)))

    def _factored(self, mu: float) -> tuple[Callable[[Array], Array], float]:
        """What solves with the matrix + mu I, and mu, or the next larger one that rounding allows.
        """
        if self.factored is not None and self.factored[1] == mu:
            return self.factored
        while True:
            solve = self.jacobian.backend.positive_solver(self.matrix, mu)
            if solve is not None:
                self.factored = solve, mu
                return self.factored
            mu *= _FIRMER

    def _back(self, vector: Array) -> Array:
        vector = self.jacobian.fetch(vector)
        return -self.jacobian.pull(vector) / self.scale if self.is_dual else -vector


@dataclasses.dataclass
class Conjugate:
    """Steps along the path of conjugate gradients.

    share : to which share of its norm the gradient is brought.
    """

    jacobian: Products
    residuals: Array
    slope: Array
    scale: Array
    share: float

    def removable(self) -> float:
        """The norm of the part of r that a step can remove."""
        return math.sqrt(self._path(math.inf, _EXACT)[1])

    def within(self, radius: float, *last: float) -> tuple[Array, float]:
        """z within this radius, and no damping; last : as for `Dual`."""
        return self._path(radius, self.share)[0], 0.0

    def _path(self, radius: float, share: float) -> tuple[Array, float]:
        """z, and by how much |r + A z|^2 is below |r|^2."""
        z, left, direction = 0.0 * self.slope, self.residuals, -self.slope
        squares = float(self.slope @ self.slope)
        goal, fallen = share * share * squares, 0.0
        for _ in range(min(_MOST, 2 * min(self.jacobian.shape))):
            if squares <= goal:
                break
            image = self.jacobian.push(direction / self.scale)
            curvature = float(image @ image)
            alpha = squares / curvature if curvature > 0.0 else math.inf
            to_end = _to_sphere(z, direction, radius)
            if not alpha < to_end:
                if math.isfinite(to_end):
                    z = z + to_end * direction
                    fallen += to_end * (2.0 * squares - to_end * curvature)
                break
            z, left = z + alpha * direction, left + alpha * image
            fallen += alpha * squares
            slope = self.jacobian.pull(left) / self.scale
            before, squares = squares, float(slope @ slope)
            direction = squares / before * direction - slope
        return z, max(fallen, 0.0)


def _to_sphere(z: Array, direction: Array, radius: float) -> float:
    """The largest t with |z + t d| at most the radius, for |z| within it."""
    if math.isinf(radius):
        return math.inf
    a, b = float(direction @ direction), float(z @ direction)
    c = radius * radius - float(z @ z)
    if a <= 0.0 or c <= 0.0:
        return 0.0
    root = math.sqrt(b * b + a * c)
    return c / (b + root) if b > 0.0 else (root - b) / a
