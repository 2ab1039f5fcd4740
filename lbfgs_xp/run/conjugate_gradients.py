"""Conjugate gradients for many linear systems at once, as one loop that can be compiled.

Preconditioned, as in Nocedal & Wright, Numerical Optimization, 2nd edition, Algorithm 5.3. The
Rayleigh quotients p . A p / p . M^-1 p of the search directions lie between the extreme eigenvalues
of M A, so a quotient that is not positive, or that rounding could have produced from the largest
one, shows a matrix that is not positive definite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space

# The residual, in units of eps and of the right-hand side, at which a system counts as solved.
_SOLVED = 16.0
# The largest residual of the solution itself. Where rounding has passed for curvature, the solution
# is so large that its residual is not small.
_LEFT = 1e-3
# How many iterations a system may take per variable, and at least. In exact arithmetic it is one.
_MOST, _LEAST = 4, 50


class _Solving(NamedTuple):
    """Vectors (..., n) and scalars (...) of the systems A x = b.

    residual : b - A x.
    p, inverse_p : the search direction, and M^-1 p.
    size : r . M r for the residual r.
    largest : the largest Rayleigh quotient so far.
    open, sound : which systems are not solved yet, and which have met no bad quotient.
    """

    x: Array
    residual: Array
    p: Array
    inverse_p: Array
    size: Array
    largest: Array
    open: Array
    sound: Array
    count: Any


def solve(
    space: Space, product: Callable[[Array], Array], precondition: Callable[[Array], Array],
    b: Array,
) -> tuple[Array, Array]:
    """x with A x = b, and a mask (...) of the systems that were solved, with A positive definite
    as far as the solution shows.

    product : v -> A v, (..., n) -> (..., n), A symmetric.
    precondition : v -> M v, with M an approximation of A^-1, symmetric positive definite.
    """
    xp, backend = space.xp, space.backend
    eps, most = backend.eps, max(_LEAST, _MOST * b.shape[-1])
    # In units of its largest component, so that no square overflows or underflows.
    unit = space.max_abs(b)
    unit = xp.where(unit > 0.0, unit, xp.ones_like(unit))[..., None]
    b = b / unit
    first = precondition(b)
    whole = space.dot(b, first)
    goal = (_SOLVED * eps) ** 2 * whole

    def goes_on(now: _Solving) -> Array:
        return xp.any(now.open & now.sound) & (now.count < most)

    def step(now: _Solving) -> _Solving:
        image = product(now.p)
        curvature = space.dot(now.p, image)
        extent = space.dot(now.p, now.inverse_p)
        quotient = curvature / extent
        largest = xp.maximum(now.largest, quotient)
        sound = now.sound & (~now.open | (quotient > backend.noise * largest))
        going = now.open & sound
        alpha = xp.where(going, now.size / curvature, xp.zeros_like(curvature))[..., None]
        residual = now.residual - alpha * image
        conditioned = precondition(residual)
        size = space.dot(residual, conditioned)
        beta = xp.where(going, size / now.size, xp.zeros_like(size))[..., None]

        def moved(new: Array, old: Array) -> Array:
            return xp.where(going[..., None], new, old)

        return _Solving(
            moved(now.x + alpha * now.p, now.x),
            moved(residual, now.residual),
            moved(conditioned + beta * now.p, now.p),
            moved(residual + beta * now.inverse_p, now.inverse_p),
            xp.where(going, size, now.size),
            xp.where(now.open, largest, now.largest),
            now.open & ~(going & (size <= goal)),
            sound,
            now.count + 1,
        )

    start = _Solving(
        xp.zeros_like(b), b, first, b, whole, xp.zeros_like(whole), whole != 0.0, whole >= 0.0, 0
    )
    end = backend.while_loop(goes_on, step, start)
    left = b - product(end.x)
    small = space.dot(left, precondition(left)) <= _LEFT * _LEFT * whole
    return end.x * unit, end.sound & ~end.open & small
