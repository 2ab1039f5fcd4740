"""Minimisers of polynomials through two points with known values and slopes."""

from __future__ import annotations

from lbfgs_xp.arrays.scalars import Scalar, Scalars
from lbfgs_xp.line_search.base import Point


def quadratic(fn: Scalars, a: Point, b: Point) -> Scalar:
    """The minimiser of the parabola with the values at `a` and `b` and the slope at `a`.

    Nocedal & Wright, eq. 3.57.
    """
    step = b.alpha - a.alpha
    chord = fn.divide(a.phi - b.phi, step) + a.dphi
    return a.alpha + fn.divide(a.dphi, chord) / 2.0 * step


def secant(fn: Scalars, a: Point, b: Point) -> Scalar:
    """Where the line through the slopes at `a` and `b` is zero, measured from `b`."""
    return b.alpha + fn.divide(b.dphi, b.dphi - a.dphi) * (a.alpha - b.alpha)


def cubic_terms(fn: Scalars, a: Point, b: Point) -> tuple[Scalar, Scalar]:
    """theta and gamma >= 0 of the cubic through both points; gamma = 0 if it has no minimiser.

    Moré & Thuente (1994), section 4. Scaled so that no square can overflow.
    """
    theta = fn.divide(3.0 * (a.phi - b.phi), b.alpha - a.alpha) + a.dphi + b.dphi
    scale = fn.maximum(fn.maximum(fn.abs(theta), fn.abs(a.dphi)), fn.abs(b.dphi))
    ratio = fn.divide(theta, scale)
    square = ratio * ratio - fn.divide(a.dphi, scale) * fn.divide(b.dphi, scale)
    return theta, scale * fn.sqrt(fn.maximum(square, 0.0))


def cubic_from(fn: Scalars, a: Point, b: Point, theta: Scalar, gamma: Scalar) -> Scalar:
    """The minimiser of the cubic with these terms, measured from `a`."""
    gamma = fn.where(b.alpha < a.alpha, -gamma, gamma)
    p = (gamma - a.dphi) + theta
    q = ((gamma - a.dphi) + gamma) + b.dphi
    return a.alpha + fn.divide(p, q) * (b.alpha - a.alpha)


def cubic(fn: Scalars, a: Point, b: Point) -> Scalar:
    """The minimiser of the cubic through both points. Nocedal & Wright, eq. 3.59.

    Not finite if there is none. It need not lie between the points.
    """
    return cubic_from(fn, a, b, *cubic_terms(fn, a, b))
