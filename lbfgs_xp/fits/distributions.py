"""The distributions that turn differences of chi2 into probabilities, without SciPy."""

from __future__ import annotations

import math
import statistics

import numpy as np

# The series and the continued fraction end once a term changes this share of the sum.
_SETTLED = 1e-16
_MOST_TERMS = 1_000_000


def rise_of(level: float, parameters: int = 1) -> float:
    """How far chi2 rises on the border of a region that holds the parameters with the probability
    `level`: the quantile of chi2 with 1 or 2 degrees of freedom."""
    if parameters == 2:
        return -2.0 * math.log1p(-level)
    return deviations_of(level) ** 2


def deviations_of(level: float) -> float:
    """Within how many standard deviations of its mean a normal number lies with this probability.
    """
    return -statistics.NormalDist().inv_cdf(0.5 * (1.0 - level))


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
