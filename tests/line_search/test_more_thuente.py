"""MoreThuente takes the steps of dcsrch from MINPACK-2, as implemented in SciPy, bit for bit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from lbfgs_xp.line_search import MoreThuente, line_search

DCSRCH = pytest.importorskip("scipy.optimize._dcsrch").DCSRCH

Phi = Callable[[float], tuple[float, float]]
CONSTANTS = [(1e-3, 0.9, 0.1), (1e-4, 0.1, 1e-14), (1e-3, 1e-3, 1e-10), (0.1, 0.1, 1e-3)]


def random_function(rng: random.Random) -> Phi:
    """A quadratic, a quartic, a sum of logarithms or exponentials, or an oscillation that falls at
    0."""
    p, q, r = (math.exp(rng.uniform(-3, 3)) for _ in range(3))

    def quadratic(a: float) -> tuple[float, float]:
        return p * (a - q) * (a - q) + r, 2 * p * (a - q)

    def quartic(a: float) -> tuple[float, float]:
        t = a - q
        return p * t * t * t * t - r * t * t, 4 * p * t * t * t - 2 * r * t

    def log_sum(a: float) -> tuple[float, float]:
        return (
            math.log(1 + p * (a - q) * (a - q)) + 0.01 * r * a,
            2 * p * (a - q) / (1 + p * (a - q) * (a - q)) + 0.01 * r,
        )

    def softplus(a: float) -> tuple[float, float]:
        up, down = math.exp(min(p * (a - q), 300.0)), math.exp(-r * a)
        return math.log1p(up) + down, p * up / (1 + up) - r * down

    def oscillating(a: float) -> tuple[float, float]:
        return (
            0.1 * p * (a - q) * (a - q) + math.sin(r * a),
            0.2 * p * (a - q) + r * math.cos(r * a),
        )

    while True:
        function = rng.choice([quadratic, quartic, log_sum, softplus, oscillating])
        if function(0.0)[1] < 0:
            return function
        p, q, r = (math.exp(rng.uniform(-3, 3)) for _ in range(3))


def paper_function(number: int) -> Phi:
    """The six test functions of Moré & Thuente (1994), section 5."""

    def gamma(b: float) -> float:
        return math.sqrt(1 + b * b) - b

    def one(a: float, b: float = 2.0) -> tuple[float, float]:
        return -a / (a * a + b), (a * a - b) / ((a * a + b) * (a * a + b))

    def two(a: float, b: float = 0.004) -> tuple[float, float]:
        t = a + b
        return t**5 - 2 * t**4, 5 * t**4 - 8 * t**3

    def three(a: float, b: float = 0.01, k: float = 39.0) -> tuple[float, float]:
        if a <= 1 - b:
            base, slope = 1 - a, -1.0
        elif a >= 1 + b:
            base, slope = a - 1, 1.0
        else:
            base, slope = (a - 1) * (a - 1) / (2 * b) + b / 2, (a - 1) / b
        wave = k * math.pi / 2 * a
        scale = 2 * (1 - b) / (k * math.pi)
        return base + scale * math.sin(wave), slope + (1 - b) * math.cos(wave)

    def yanai(b1: float, b2: float) -> Phi:
        def function(a: float) -> tuple[float, float]:
            left = math.sqrt((1 - a) * (1 - a) + b2 * b2)
            right = math.sqrt(a * a + b1 * b1)
            value = gamma(b1) * left + gamma(b2) * right
            return value, gamma(b1) * (a - 1) / left + gamma(b2) * a / right

        return function

    return [one, two, three, yanai(0.001, 0.001), yanai(0.01, 0.001), yanai(0.001, 0.01)][number]


def walks(phi: Phi, alpha0: float, c1: float, c2: float, xtol: float, alpha_max: float = 1e10):
    """The trial steps of SciPy and ours, and whether each search accepted its last step."""
    theirs: list[float] = []

    def value(a: float) -> float:
        theirs.append(float(a))
        return phi(float(a))[0]

    search = DCSRCH(value, lambda a: phi(float(a))[1], c1, c2, xtol, 0.0, alpha_max)
    task = search(alpha0, *phi(0.0), maxiter=101)[3]
    # If no progress is possible, dcsrch evaluates its best point a second time and ends.
    if theirs[-1] in theirs[:-1]:
        theirs.pop()
    rule = MoreThuente(c1=c1, c2=c2, xtol=xtol, alpha_max=alpha_max, max_evaluations=100)
    ours = line_search(phi, rule, alpha0)
    return theirs, [trial[0] for trial in ours.trials], task[:4] == b"CONV", ours.success


@pytest.mark.parametrize("constants", CONSTANTS)
def test_same_walk_on_random_functions(constants):
    rng = random.Random(str(constants))
    longest = 0
    for _ in range(300):
        phi, alpha0 = random_function(rng), 10.0 ** rng.uniform(-3, 3)
        theirs, ours, converged, success = walks(phi, alpha0, *constants)
        assert ours == theirs
        assert success == converged
        longest = max(longest, len(ours))
    assert longest > 5


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("constants", [*CONSTANTS, (1e-3, 1e-1, 0.0)])
def test_same_walk_on_the_functions_of_the_paper(number, constants):
    for exponent in (-3, -2, -1, 0, 1, 2, 3):
        phi = paper_function(number)
        theirs, ours, converged, success = walks(phi, 10.0**exponent, *constants)
        assert ours == theirs
        assert success == converged


def test_same_walk_to_the_largest_step():
    theirs, ours, converged, success = walks(lambda a: (-a, -1.0), 1.0, 1e-3, 0.5, 0.1, 100.0)
    assert ours == theirs == [1.0, 5.0, 21.0, 85.0, 100.0]
    assert not converged and not success


def test_table_one_of_the_paper():
    """Function 1 with mu = 0.001, eta = 0.1: the numbers of evaluations in Table I."""
    counts = [
        line_search(paper_function(0), MoreThuente(c1=1e-3, c2=0.1, xtol=0.0), alpha0).evaluations
        for alpha0 in (1e-3, 1e-1, 1e1, 1e3)
    ]
    assert counts == [6, 3, 1, 4]
