"""Random problems of many kinds whose lowest values are known, for `honesty.py`.

A problem is a smooth function of z, of order 1, in variables x = unit * z, as a user would pass it:
times a factor, next to a constant, in float32, with noise or with kinks. What a run has reached is
judged without the noise, in float64, by the smooth function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

Rng = np.random.Generator


class Smooth(NamedTuple):
    """A function of z with its gradient, a start, and its lowest value if that is known."""

    value: Callable[[Any], Any]
    gradient: Callable[[Any], Any]
    start: np.ndarray
    lowest: float | None = None


class Problem(NamedTuple):
    """A function of x as a user would write it, and the truth about it.

    fun, gradient : in the dtype of start, perhaps with noise.
    height : the value at x without noise, factor and constant.
    lowest : the lowest such value near x.
    blur : how far apart values at x may be through noise and rounding, in the same unit, and how
        far above the lowest value errors of the gradient leave a run.
    differentiable : whether the function is; where not, a run may find no lower point and say so.
    """

    fun: Callable[[Any], Any]
    gradient: Callable[[Any], Any]
    start: np.ndarray
    height: Callable[[Any], float]
    lowest: Callable[[Any], float]
    blur: Callable[[Any], float]
    differentiable: bool = True


# --- smooth functions of z -----------------------------------------------------------------------


def quadratic(rng: Rng, condition: float | None = None) -> Smooth:
    n = int(rng.integers(2, 9))
    power = rng.uniform(0.0, 6.0) if condition is None else np.log10(condition)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    h = (q * np.logspace(-power, 0.0, n)) @ q.T
    centre = rng.normal(size=n)

    def gradient(z: Any) -> Any:
        return h.astype(z.dtype) @ (z - centre.astype(z.dtype))

    return Smooth(
        lambda z: 0.5 * (z - centre.astype(z.dtype)) @ gradient(z), gradient,
        centre + rng.normal(size=n), 0.0,
    )


def rosenbrock(rng: Rng) -> Smooth:
    steep, pairs = 10.0 ** rng.uniform(0.0, 2.5), int(rng.integers(1, 4))

    def value(z: Any) -> Any:
        a, b = z[::2], z[1::2]
        return np.sum(steep * (b - a * a) ** 2 + (1.0 - a) ** 2)

    def gradient(z: Any) -> Any:
        a, b = z[::2], z[1::2]
        d = 2.0 * steep * (b - a * a)
        return np.stack([-2.0 * a * d - 2.0 * (1.0 - a), d], axis=-1).ravel()

    return Smooth(value, gradient, rng.uniform(-2.0, 2.0, size=2 * pairs), 0.0)


def quartic(rng: Rng) -> Smooth:
    n = int(rng.integers(2, 7))
    a, centre, weights = rng.normal(size=(n, n)), rng.normal(size=n), 10.0 ** rng.uniform(-1, 1, n)

    def inner(z: Any) -> Any:
        return a.astype(z.dtype) @ (z - centre.astype(z.dtype))

    def gradient(z: Any) -> Any:
        u, w = inner(z), weights.astype(z.dtype)
        return a.T.astype(z.dtype) @ (4.0 * w * u**3 + 0.02 * w * u)

    return Smooth(
        lambda z: np.sum(weights.astype(z.dtype) * (inner(z) ** 4 + 0.01 * inner(z) ** 2)),
        gradient, centre + rng.normal(size=n), 0.0,
    )


def regression(rng: Rng) -> Smooth:
    n = int(rng.integers(2, 7))
    a, b = rng.normal(size=(4 * n, n)), rng.normal(size=(4 * n, n))
    truth, error = rng.normal(size=n), 10.0 ** rng.uniform(-3.0, 0.0)
    y = a @ truth + 0.3 * np.sin(b @ truth) + error * rng.normal(size=4 * n)

    def residuals(z: Any) -> Any:
        u, v = a.astype(z.dtype), b.astype(z.dtype)
        return u @ z + 0.3 * np.sin(v @ z) - y.astype(z.dtype)

    def gradient(z: Any) -> Any:
        u, v = a.astype(z.dtype), b.astype(z.dtype)
        return 2.0 * (u + 0.3 * np.cos(v @ z)[:, None] * v).T @ residuals(z)

    return Smooth(
        lambda z: residuals(z) @ residuals(z), gradient, truth + 0.5 * rng.normal(size=n)
    )


def counts(rng: Rng) -> Smooth:
    """The likelihood of Poisson counts of very different size."""
    n = int(rng.integers(2, 6))
    a, truth = 0.5 * rng.normal(size=(6 * n, n)), rng.normal(size=n)
    a[:, 0] = 1.0
    exposure = 10.0 ** rng.uniform(0.0, 5.0)
    y = rng.poisson(exposure * np.exp(a @ truth)).astype(float)

    def value(z: Any) -> Any:
        u = a.astype(z.dtype) @ z
        return np.sum(exposure * np.exp(u) - y.astype(z.dtype) * u)

    def gradient(z: Any) -> Any:
        u = a.astype(z.dtype)
        return u.T @ (exposure * np.exp(u @ z) - y.astype(z.dtype))

    return Smooth(value, gradient, truth + 0.5 * rng.normal(size=n))


def classes(rng: Rng) -> Smooth:
    """Logistic regression with a small penalty."""
    n, m = int(rng.integers(2, 9)), 60
    a = rng.normal(size=(m, n))
    sign = np.where(rng.uniform(size=m) < 1.0 / (1.0 + np.exp(-a @ rng.normal(size=n))), 1.0, -1.0)
    a, ridge = a * sign[:, None], 10.0 ** rng.uniform(-3.0, 0.0)

    def gradient(z: Any) -> Any:
        u = a.astype(z.dtype)
        return ridge * z - u.T @ (1.0 / (1.0 + np.exp(u @ z))) / m

    return Smooth(
        lambda z: np.sum(np.logaddexp(0.0, -(a.astype(z.dtype) @ z))) / m + 0.5 * ridge * (z @ z),
        gradient, rng.normal(size=n),
    )


SMOOTH = (quadratic, rosenbrock, quartic, regression, counts, classes)


def _hessian(smooth: Smooth, z: np.ndarray) -> np.ndarray:
    step = 1e-5
    rows = [
        (smooth.gradient(z + step * e) - smooth.gradient(z - step * e)) / (2.0 * step)
        for e in np.eye(len(z))
    ]
    return 0.5 * (np.stack(rows) + np.stack(rows).T)


def _lowest(smooth: Smooth, z: np.ndarray) -> float:
    """The lowest value near z: the known one, or by Newton's method in a trust region."""
    if smooth.lowest is not None:
        return smooth.lowest
    try:
        res = scipy.optimize.minimize(
            smooth.value, z, jac=smooth.gradient, hess=lambda v: _hessian(smooth, v),
            method="trust-exact", options={"gtol": 1e-11, "maxiter": 500},
        )
        found = float(res.fun)
    except (ValueError, np.linalg.LinAlgError):
        found = np.inf
    return min(found, float(smooth.value(z)))


# --- what a user would pass ----------------------------------------------------------------------


class Settings(NamedTuple):
    """unit, factor, constant, dtype; and noise: a function from (x, value without it) to what is
    added, its standard deviation as a function of the value, and that of the gradient's errors in
    units of z."""

    unit: Any = 1.0
    factor: float = 1.0
    constant: float = 0.0
    dtype: Any = np.float64
    noise: Callable[[Any, float], float] | None = None
    spread: Callable[[float], float] = lambda value: 0.0
    errors: float = 0.0
    rng: Any = None


def problem(smooth: Smooth, s: Settings) -> Problem:
    kind = np.dtype(s.dtype).type
    unit = np.asarray(s.unit * np.ones(len(smooth.start)))
    start = (unit * smooth.start).astype(s.dtype)
    eps = float(np.finfo(s.dtype).eps)

    def fun(x: Any) -> Any:
        value = kind(s.factor) * smooth.value((x / unit).astype(s.dtype)) + kind(s.constant)
        return value if s.noise is None else kind(value + s.noise(x, float(value)))

    def gradient(x: Any) -> Any:
        g = smooth.gradient((x / unit).astype(s.dtype))
        if s.errors:
            g = g + s.errors * s.rng.normal(size=len(g))
        return (s.factor * g / unit).astype(s.dtype)

    def exact(x: Any) -> np.ndarray:
        return np.asarray(x, dtype=np.float64) / unit

    def blur(x: Any) -> float:
        value = s.factor * smooth.value(exact(x)) + s.constant
        spread = max(s.spread(value), eps * abs(value)) / abs(s.factor)
        if s.errors:
            values = np.linalg.eigvalsh(_hessian(smooth, exact(x)))
            spread += 0.5 * s.errors**2 / len(values) * np.sum(1.0 / np.maximum(values, 1e-12))
        return float(spread)

    return Problem(
        fun, gradient, start, lambda x: float(smooth.value(exact(x))),
        lambda x: _lowest(smooth, exact(x)), blur,
    )


def _fall(smooth: Smooth) -> float:
    """How far the function falls from its start."""
    return float(smooth.value(smooth.start)) - _lowest(smooth, smooth.start)


def _factor(rng: Rng) -> float:
    return float(10.0 ** rng.uniform(-6.0, 6.0))


def plain(rng: Rng, smooth: Smooth) -> Problem:
    return problem(smooth, Settings(factor=_factor(rng)))


def in_units(rng: Rng, smooth: Smooth) -> Problem:
    power = rng.choice([2, 4, 8])
    unit = 10.0 ** rng.choice([-power, 0, power], size=len(smooth.start))
    return problem(smooth, Settings(unit=unit, factor=_factor(rng)))


def beside_a_constant(rng: Rng, smooth: Smooth) -> Problem:
    constant = float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(1.0, 8.0)) * _fall(smooth)
    return problem(smooth, Settings(constant=constant))


def in_float32(rng: Rng, smooth: Smooth) -> Problem:
    unit = 10.0 ** rng.choice([-2, 0, 2], size=len(smooth.start))
    return problem(smooth, Settings(unit=unit, factor=_factor(rng), dtype=np.float32))


def _noise(rng: Rng, smooth: Smooth, unit: Any = 1.0) -> dict[str, Any]:
    """Noise of the value: random or repeatable, relative or absolute, or rounding to few digits."""
    size, factor = 10.0 ** rng.uniform(-9.0, -2.5), _factor(rng)
    far, near = 1e9 * rng.normal(size=(2, len(smooth.start)))
    base = size * factor * _fall(smooth)
    form = rng.choice(["random", "repeatable", "rounded", "float32"])
    relative = rng.uniform() < 0.5

    def spread(value: float) -> float:
        if form == "float32":
            return float(np.finfo(np.float32).eps) * abs(value)
        return size * abs(value) if relative else base

    def noise(x: Any, value: float) -> float:
        if form == "float32":
            return float(np.float32(value)) - value
        if form == "rounded":
            # Plateaus whose width does not change with the value.
            step = base if not relative else size * 2.0 ** np.floor(np.log2(abs(value) + 1e-300))
            return float(np.round(value / step) * step - value)
        error = rng.normal() if form == "random" else np.sqrt(2.0) * np.sin(
            far @ (x / unit) + 3.0 * np.sin(0.1 * (near @ (x / unit)))
        )
        return float(spread(value) * error)

    return {"factor": factor, "noise": noise, "spread": spread}


def with_noise(rng: Rng, smooth: Smooth) -> Problem:
    return problem(smooth, Settings(**_noise(rng, smooth)))


def with_noise_in_units(rng: Rng, smooth: Smooth) -> Problem:
    unit = 10.0 ** rng.choice([-4, 0, 4], size=len(smooth.start))
    return problem(smooth, Settings(unit=unit, **_noise(rng, smooth, unit)))


def _errors(rng: Rng, smooth: Smooth) -> dict[str, Any]:
    size = float(np.max(np.abs(smooth.gradient(smooth.start))))
    return {"errors": size * 10.0 ** rng.uniform(-8.0, -2.0), "rng": rng}


def with_errors_of_gradients(rng: Rng, smooth: Smooth) -> Problem:
    return problem(smooth, Settings(factor=_factor(rng), **_errors(rng, smooth)))


def with_both(rng: Rng, smooth: Smooth) -> Problem:
    return problem(smooth, Settings(**_noise(rng, smooth), **_errors(rng, smooth)))


def ill_conditioned(rng: Rng, smooth: Smooth) -> Problem:
    smooth = quadratic(rng, 10.0 ** rng.uniform(6.0, 10.0))
    constant = float(rng.choice([0.0, 1.0])) * 10.0 ** rng.uniform(0.0, 5.0)
    return problem(smooth, Settings(factor=_factor(rng), constant=constant))


def with_kinks(rng: Rng, smooth: Smooth) -> Problem:
    """A parabola and an absolute value in each variable, whose minimum is known, turned."""
    n = int(rng.integers(2, 6))
    a, weight = 10.0 ** rng.uniform(-1.0, 1.0, n), 10.0 ** rng.uniform(-2.0, 2.0, n)
    centre, corner = rng.normal(size=(2, n))
    q = np.linalg.qr(rng.normal(size=(n, n)))[0] if rng.uniform() < 0.5 else np.eye(n)
    gap = np.abs(centre - corner)
    free = weight < a * gap    # else the minimum is at the corner
    lowest = np.sum(np.where(free, weight * gap - 0.5 * weight**2 / a, 0.5 * a * gap**2))

    def value(z: Any) -> Any:
        u = q @ z
        return np.sum(0.5 * a * (u - centre) ** 2 + weight * np.abs(u - corner))

    def gradient(z: Any) -> Any:
        u = q @ z
        return q.T @ (a * (u - centre) + weight * np.sign(u - corner))

    kinks = Smooth(value, gradient, 2.0 * rng.normal(size=n), float(lowest))
    return problem(kinks, Settings(factor=_factor(rng)))._replace(differentiable=False)


KINDS: dict[str, Callable[[Rng, Smooth], Problem]] = {
    "plain": plain,
    "units to 10^±8": in_units,
    "beside a constant": beside_a_constant,
    "float32": in_float32,
    "condition to 10^10": ill_conditioned,
    "noise of the value": with_noise,
    "noise, mixed units": with_noise_in_units,
    "errors of the gradient": with_errors_of_gradients,
    "noise and errors": with_both,
    "kinks": with_kinks,
}
# Kinds for which differences say nothing new, because the gradient is what is wrong.
GIVEN_GRADIENTS = ("errors of the gradient", "noise and errors")
DERIVATIVES = ("given", "2-point", "3-point")


def of_kind(kind: str, count: int) -> Iterator[tuple[Problem, str]]:
    """So many problems, and how to take the derivatives of each."""
    for number in range(count):
        rng = np.random.default_rng([list(KINDS).index(kind), number])
        given = kind in GIVEN_GRADIENTS
        how = DERIVATIVES[0 if given else number // len(SMOOTH) % len(DERIVATIVES)]
        yield KINDS[kind](rng, SMOOTH[number % len(SMOOTH)](rng)), how
