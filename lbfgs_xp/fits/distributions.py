"""The distributions that turn differences of chi2 into probabilities, without SciPy."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

# The series and the continued fraction end once a term changes this share of the sum.
_SETTLED = 1e-16
_MOST_TERMS = 1_000_000
# Newton's method for a quantile of Student's t: its steps, and a change after which the next one
# would be rounding; and from how many degrees of freedom on the asymptotic series has all digits.
_MOST_STEPS, _LAST, _MANY = 100, 1e-9, 1000.0


def rise_of(level: float, dof: Any = math.inf, parameters: int = 1) -> np.ndarray:
    """How far chi2, in units of its scale, rises on the border of a region that holds 1 or 2
    parameters with the probability `level`: the quantile of chi2; where the scale is an estimate
    with `dof` degrees of freedom, `parameters` times that of F (Seber & Wild 1989, Nonlinear
    Regression, 5.2). nan if dof < 1.
    """
    if parameters == 1:
        return deviations_of(level, dof) ** 2
    dof, logs = np.asarray(dof, dtype=float), math.log1p(-level)
    with np.errstate(all="ignore"):
        rise = np.where(np.isinf(dof), -2.0 * logs, dof * np.expm1(-2.0 * logs / dof))
    return np.where(dof >= 1.0, rise, np.nan)


def deviations_of(level: float, dof: Any = math.inf) -> np.ndarray:
    """Within how many standard deviations of its mean a normal number lies with this probability;
    where the deviation is an estimate with `dof` degrees of freedom, by Student's t. nan if
    dof < 1.
    """
    sizes, places = np.unique(np.asarray(dof, dtype=float), return_inverse=True)
    found = np.asarray([_t_quantile(level, size) for size in sizes.ravel()])
    return found[places].reshape(np.shape(dof))


def _t_quantile(level: float, dof: float) -> float:
    """The t with the probability `level` between -t and t."""
    z = -statistics.NormalDist().inv_cdf(0.5 * (1.0 - level))
    if not dof >= 1.0:
        return math.nan
    if dof >= _MANY:
        # Abramowitz & Stegun (26.7.5)
        z2 = z * z
        terms = (
            1.0, (z2 + 1.0) / 4.0, ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0,
            (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0,
            ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) / 92160.0,
        )
        return z * sum(term / dof**k for k, term in enumerate(terms))
    # The logarithm of a tail or of the middle is a concave function of that of t: whatever Newton's
    # method does in its first step, it then converges from one side.
    far, t = level > 0.5, z
    wanted = 1.0 - level if far else level
    logs = math.lgamma(0.5 * dof + 0.5) - math.lgamma(0.5 * dof) - 0.5 * math.log(math.pi * dof)
    for _ in range(_MOST_STEPS):
        middle, tail = _t_probabilities(t, dof)
        found = tail if far else middle
        density = 2.0 * math.exp(logs - 0.5 * (dof + 1.0) * math.log1p(t * t / dof))
        change = math.log(wanted / found) * found / (t * density)
        t *= math.exp(-change if far else change)
        if abs(change) <= _LAST:
            break
    return t


def _t_probabilities(t: float, dof: float) -> tuple[float, float]:
    """The probabilities of Student's t between -t and t, and outside."""
    a, x = 0.5 * dof, dof / (dof + t * t)
    if x < (a + 1.0) / (a + 2.5):
        tail = _beta(x, t * t / (dof + t * t), a, 0.5)
        return 1.0 - tail, tail
    middle = _beta(t * t / (dof + t * t), x, 0.5, a)
    return middle, 1.0 - middle


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), given 1 - x, by Lentz's continued
    fraction (Press et al., Numerical Recipes, 6.4), for x < (a + 1) / (a + b + 2)."""
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log(rest)) / a
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    h = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d, c = 1.0 / (1.0 + numerator * d), 1.0 + numerator / c
            h *= c * d
        if abs(c * d - 1.0) <= 4.0 * _SETTLED:
            break
    return front * h


@np.errstate(all="ignore")    # what is too small or too large is meant to be 0 or 1
def chi2_above(chi2: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """The probability that chi2 with `dof` degrees of freedom is larger than this; nan if dof < 1.

    It is the regularised incomplete gamma function Q(dof / 2, chi2 / 2): by its series below
    dof / 2 + 1, by Lentz's continued fraction above (Press et al., Numerical Recipes, 6.2).
    """
    chi2, dof = np.broadcast_arrays(np.asarray(chi2, dtype=float), np.asarray(dof, dtype=float))
    found = np.full(chi2.shape, np.nan)
    known = (dof >= 1.0) & (chi2 >= 0.0)
    found[known & np.isposinf(chi2)] = 0.0
    x, a = 0.5 * chi2, 0.5 * dof
    finite = known & np.isfinite(chi2)
    low, high = finite & (x < a + 1.0), finite & (x >= a + 1.0)
    found[low] = 1.0 - _series(x[low], a[low])
    found[high] = _fraction(x[high], a[high])
    return found


def _front(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """x^a exp(-x) / Gamma(a)"""
    sizes, places = np.unique(a, return_inverse=True)
    logs = np.asarray([math.lgamma(size) for size in sizes])[places]
    return np.exp(a * np.log(x) - x - logs)


def _series(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """P(a, x)"""
    term = 1.0 / a
    total, below = term.copy(), a.copy()
    for _ in range(_MOST_TERMS):
        below += 1.0
        term *= x / below
        total += term
        if (term <= _SETTLED * total).all():
            break
    return total * _front(x, a)


def _fraction(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Q(a, x)"""
    tiny = 1e-300
    b = x + 1.0 - a
    c, d = np.full_like(x, 1.0 / tiny), 1.0 / b
    h = d.copy()
    for i in range(1, _MOST_TERMS):
        numerator = i * (a - i)
        b += 2.0
        d, c = numerator * d + b, b + numerator / c
        d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
        c = np.where(np.abs(c) < tiny, tiny, c)
        change = c * d
        h *= change
        if (np.abs(change - 1.0) <= 4.0 * _SETTLED).all():
            break
    return h * _front(x, a)
