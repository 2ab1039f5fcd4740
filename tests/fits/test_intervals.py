"""Intervals, profiles and contours by profile likelihood."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import IntervalStatus
from lbfgs_xp.fits import free_ends
from lbfgs_xp.fits.distributions import deviations_of, rise_of
from tests.backends import Backend
from tests.fits import nist
from tests.fits.test_nist import SHORT

X = np.linspace(0.0, 4.0, 40)
TRUE = (2.5, 1.3, 0.5)
ONE = 0.6826894921370859


def decay(xp: Any = np) -> Any:
    return lambda x, a, k, c: a * xp.exp(-k * x) + c


def data(rows: int, seed: int = 0, noise: float = 0.2) -> np.ndarray:
    noises = noise * np.random.default_rng(seed).normal(size=(rows, 40))
    return decay()(X, *TRUE) + noises


def fit(y: Any, backend: Backend = Backend.NUMPY, **settings: Any) -> lx.CurveFit:
    settings = {"jac": None if backend.has_autodiff else "3-point", **settings}
    return lx.curve_fit(
        decay(backend.xp), backend.asarray(X), backend.asarray(y),
        settings.pop("p0", [1.0, 1.0, 1.0]), batched=np.ndim(y) == 2, **settings,
    )


def slowly(res: lx.CurveFit, level: float = ONE) -> lx.Intervals:
    """The intervals by the search that uses nothing but fits with one parameter held."""
    quick = free_ends.ends_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            free_ends, "ends_of", lambda *arguments: quick(*arguments)._replace(
                found=np.zeros(arguments[1].numbers.size, dtype=bool)
            )
        )
        return res.intervals(level)


def ends_of_the_rate(y: np.ndarray, rise: float) -> list[float]:
    """Where chi2 has risen, from least squares for the other parameters, which are linear."""
    optimize = pytest.importorskip("scipy.optimize")

    def chi2(k: float) -> float:
        columns = np.stack([np.exp(-k * X), np.ones(40)], axis=-1)
        return float(np.sum((y - columns @ np.linalg.lstsq(columns, y)[0]) ** 2))

    best = optimize.minimize_scalar(chi2, bracket=(1.0, 1.3), tol=1e-10)
    return [
        optimize.brentq(lambda k: chi2(k) - best.fun - rise, *sorted((best.x, end)), xtol=1e-12)
        for end in (0.1, 10.0)
    ]


@pytest.mark.parametrize("batched", [False, True])
def test_ends(backend: Backend, batched: bool) -> None:
    """Of a parameter for which chi2 is known, and those by the slow search for the others."""
    y = data(3)
    level = 0.9
    res = fit(y if batched else y[0], backend, sigma=0.2, absolute_sigma=True)
    low, high = found = res.intervals(level)
    low, high, x, stderr = (
        backend.to_numpy(each).reshape(-1, 3) for each in (low, high, res.x, res.stderr)
    )
    z2 = 1.6448536269514722**2
    for i in range(3 if batched else 1):
        wanted = ends_of_the_rate(y[i], 0.2**2 * z2)
        np.testing.assert_allclose([low[i, 1], high[i, 1]], wanted, atol=1e-3 * stderr[i, 1])
    assert backend.to_numpy(found.success).all() if batched else found.success
    assert found.better is None and found.level == level
    assert (x - low > stderr).all() and (high - x > stderr).all()
    other = fit(y if batched else y[0], sigma=0.2, absolute_sigma=True)
    for side, slow in zip((low, high), slowly(other, level), strict=True):
        np.testing.assert_allclose(side, slow.reshape(-1, 3), atol=1e-3 * stderr.min())


def test_a_line_has_the_intervals_of_its_standard_errors(backend: Backend) -> None:
    """Without absolute deviations, and by name."""
    y = 1.0 + 2.0 * X + np.sin(9.0 * X)
    res = lx.curve_fit(
        lambda x, slope, offset: offset + slope * x, backend.asarray(X), backend.asarray(y),
        {"slope": 1.0, "offset": 0.0}, jac=None if backend.has_autodiff else "3-point",
    )
    low, high = res.intervals(0.95)
    t = 2.024394163911970    # of Student's distribution with 38 degrees of freedom
    for name in ("slope", "offset"):
        x, error = (float(backend.to_numpy(tree[name])) for tree in (res.x, res.stderr))
        assert float(backend.to_numpy(low[name])) == pytest.approx(x - t * error, rel=1e-6)
        assert float(backend.to_numpy(high[name])) == pytest.approx(x + t * error, rel=1e-6)


@pytest.mark.parametrize("settings", [
    {"loss": "soft_l1", "f_scale": 0.3}, {"sigma": np.linspace(0.1, 0.4, 40)},
    {"sigma": 0.04 * np.exp(-np.abs(X[:, None] - X)), "absolute_sigma": True},
    {"bounds": ([0.0, 0.0, 0.0], 9.0)}, {"x_scale": [1.0, 2.0, 0.5]},
    {"sigma": np.where(X[3] == X, np.inf, 0.2)},
])
def test_both_searches_agree(settings: dict[str, Any]) -> None:
    res = fit(data(1)[0], **settings)
    found, slow = res.intervals(ONE), slowly(res)
    assert found.success and slow.success
    np.testing.assert_allclose(found.low, slow.low, atol=2e-4 * res.stderr.min())
    np.testing.assert_allclose(found.high, slow.high, atol=2e-4 * res.stderr.min())


def reference_set(name: str) -> tuple[Any, np.ndarray, np.ndarray, Any]:
    """Model, x, y and the second start of a set of NIST."""
    if name in nist.MODELS:
        reference = nist.read(name)
        return reference.model(np), reference.x, reference.y, reference.starts[1]
    y, x, model, starts, _, _ = SHORT[name]
    return model, np.asarray(x, dtype=float), np.asarray(y, dtype=float), starts[1]


SLOW = ("ENSO", "Lanczos1", "Lanczos3")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.thorough] if name in SLOW else [])
    for name in [*nist.MODELS, *SHORT]
])
def test_reference_sets(name: str) -> None:
    """At each end, chi2 with the other parameters fitted by SciPy has risen by the square of
    Student's t in units of the scatter."""
    optimize = pytest.importorskip("scipy.optimize")
    model, x, y, start = reference_set(name)
    with np.errstate(all="ignore"):
        res = lx.curve_fit(model, x, y, start)
        found = res.intervals(ONE)
    assert found.success
    rises = []
    for i in range(res.x.size):
        others = np.arange(res.x.size) != i
        for sign, ends in ((-1.0, found.low), (1.0, found.high)):
            assert sign * (ends[i] - res.x[i]) > 0.0
            # From where the covariance says, in units of the standard errors.
            point = res.x + sign * res.covariance[i] / res.stderr[i]
            point[i] = ends[i]

            def residuals(q: Any, point: Any = point, others: Any = others) -> Any:
                moved = point.copy()
                moved[others] += q * res.stderr[others]
                with np.errstate(all="ignore"):
                    return model(x, *moved) - y

            held = optimize.least_squares(
                residuals, np.zeros(others.sum()), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
            )
            rises.append((2.0 * held.cost - res.chi2) / res.reduced_chi2)
    # The residuals of Lanczos1 are rounding errors.
    wanted = rise_of(ONE, res.dof)
    np.testing.assert_allclose(rises, wanted, rtol=5e-2 if name == "Lanczos1" else 1e-3)


# --- bounds, and ends that are none --------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_bounds_end_an_interval(batched: bool) -> None:
    free = fit(data(1)[0])
    upper = free.x[0] + 0.5 * free.stderr[0]
    bounds = ([0.0, 0.0, free.x[2] - 0.1 * free.stderr[2]], [upper, np.inf, np.inf])
    y = data(1) if batched else data(1)[0]
    res = fit(y, bounds=bounds)
    found = res.intervals(ONE)
    row = (0,) if batched else ()
    high, low = found.high[row], found.low[row]
    assert np.all(found.success) and high[0] == upper and low[2] == bounds[0][2]
    assert found.high_status[row].tolist() == [IntervalStatus.BOUND, 0, 0]
    assert found.low_status[row].tolist() == [0, 0, IntervalStatus.BOUND]
    # The bounds of the others end the interval of k earlier.
    inside = fit(data(1)[0]).intervals(ONE)
    assert low[1] > inside.low[1] and high[1] <= inside.high[1] + 1e-3 * free.stderr[1]
    np.testing.assert_allclose(low[0], inside.low[0], atol=1e-3 * free.stderr[0])


def test_a_parameter_at_its_bound() -> None:
    """It has an upper end alone, and the others have their intervals."""
    y = decay()(X, 2.0, 1.0, -0.02) + 0.1 * np.sin(20.0 * X)
    res = fit(y, bounds=([0.0, 0.0, 0.0], np.inf))
    assert res.x[2] == 0.0
    found, slow = res.intervals(ONE), slowly(res)
    assert found.success and found.low[2] == 0.0
    assert found.low_status[2] == IntervalStatus.BOUND and found.high[2] > 0.0
    np.testing.assert_allclose(found.low, slow.low, atol=1e-3 * res.stderr.min())
    np.testing.assert_allclose(found.high, slow.high, atol=1e-3 * res.stderr.min())


def test_fixed_parameters() -> None:
    res = fit(data(1)[0], bounds=([0.0, 1.3, 0.0], [9.0, 1.3, 9.0]))
    found = res.intervals(ONE)
    assert found.success and found.low[1] == found.high[1] == 1.3
    assert found.low_status[1] == IntervalStatus.FIXED
    # The other two are linear.
    np.testing.assert_allclose(
        found.high - res.x, deviations_of(ONE, 38) * res.stderr, rtol=1e-6
    )


def test_no_end() -> None:
    """A decay that may be as fast as it likes."""
    x, y = np.asarray([0.0, 5.0, 10.0, 20.0]), np.asarray([1.0, 0.05, -0.03, 0.02])
    res = lx.curve_fit(
        lambda x, a, k: a * np.exp(-k * x), x, y, [1.0, 1.0], jac="3-point", sigma=0.1,
        absolute_sigma=True,
    )
    found = res.intervals(0.95)
    assert found.success and found.high[1] == np.inf and np.isfinite(found.low).all()
    assert found.high_status[1] == IntervalStatus.OPEN and "no end" in IntervalStatus.OPEN.message


def test_a_parameter_that_is_known_beyond_its_slope() -> None:
    """At a = 0, a^2 has no slope, and the standard error means nothing."""
    y = np.asarray([0.1, -0.1, 0.05, -0.05, 0.0])
    res = lx.curve_fit(
        lambda x, a: a * a * x, np.arange(1.0, 6.0), y, [1e-9], jac="3-point", sigma=1.0,
        absolute_sigma=True,
    )
    # 55 a^4 + 0.3 a^2 = 1
    wanted = np.sqrt((-0.3 + np.sqrt(0.09 + 220.0)) / 110.0)
    found = res.intervals(ONE)
    np.testing.assert_allclose([found.low, found.high], [[-wanted], [wanted]], rtol=1e-3)


def test_counts_of_nothing() -> None:
    """The mean ends at the edge of what it may be, where no standard error says how far the
    interval reaches: 2 m g = 1."""
    res = lx.curve_fit(
        lambda x, g: g + 0.0 * x, X, np.zeros(40), [1.0], likelihood="poisson", bounds=(0.0, None)
    )
    assert res.success and res.x[0] < 1e-6
    assert res.intervals(ONE).high[0] == pytest.approx(1.0 / 80.0, rel=1e-3)


def test_a_lower_minimum_is_said() -> None:
    x = np.linspace(0.0, 3.0, 12)
    y = np.sin(3.0 * x) + 0.1 * np.cos(30.0 * x)

    def wave(x: Any, a: Any) -> Any:
        return np.sin(a * x)

    start = np.asarray([[3.0], [9.0]])
    res = lx.curve_fit(wave, x, np.stack([y, y]), start, jac="3-point", batched=True)
    found = res.intervals(0.99)
    assert found.success.tolist() == [True, False]
    assert np.isfinite([found.low[0], found.high[0]]).all() and np.isnan(found.low[1]).all()
    assert found.low_status[1] == found.high_status[1] == IntervalStatus.LOWER
    assert found.better[0] == res.x[0]
    again = lx.curve_fit(wave, x, y, found.better[1], jac="3-point")
    assert again.chi2 < res.chi2[1] and again.x == pytest.approx(res.x[0], rel=1e-5)
    np.testing.assert_allclose(again.intervals(0.99).low, found.low[0], rtol=1e-4)


def test_fits_that_failed_have_none() -> None:
    y = data(3)
    y[1, 5] = np.nan
    res = fit(y)
    found = res.intervals()
    assert found.success.tolist() == [True, False, True]
    assert np.isnan(found.low[1]).all() and (found.low_status[1] == IntervalStatus.FAILED).all()
    assert np.isfinite(found.low[[0, 2]]).all()
    few = lx.curve_fit(lambda x, a, b: a + b * x, X[:2], X[:2] + 1.0, [1.0, 1.0], jac="3-point")
    assert not few.intervals().success and np.isnan(few.intervals().low).all()


# --- other ways to call the model ----------------------------------------------------------------


def test_models_that_do_not_broadcast() -> None:
    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        a, k, c = float(a), float(k), float(c)
        return np.asarray([a * np.exp(-k * each) + c for each in x])

    def jac(x: Any, a: Any, k: Any, c: Any) -> Any:
        e = np.exp(-float(k) * x)
        return np.stack([e, -a * x * e, np.ones_like(x)], axis=-1)

    y = data(1)[0]
    wanted = fit(y, sigma=0.2).intervals()
    for settings in ({"jac": "3-point"}, {"jac": jac}):
        res = lx.curve_fit(model, X, y, [1.0, 1.0, 1.0], sigma=0.2, **settings)
        for side, other in zip(res.intervals(), wanted, strict=True):
            np.testing.assert_allclose(side, other, atol=1e-4)


def test_models_that_hold_rows() -> None:
    offsets = np.arange(5.0)[:, None]
    y = data(5)

    def shifted(x: Any, a: Any, k: Any, c: Any) -> Any:
        return a * np.exp(-k * x) + c + offsets

    start = [1.0, 1.0, 1.0]
    res = lx.curve_fit(
        shifted, X, y + offsets, start, batched=True, jac="3-point", compact=False
    )
    wanted = fit(y)
    for search in (lx.CurveFit.intervals, slowly):
        for side, other in zip(search(res), wanted.intervals(), strict=True):
            np.testing.assert_allclose(side, other, atol=1e-4)
    np.testing.assert_allclose(
        res.profile("k", size=5).delta, wanted.profile("k", size=5).delta, rtol=1e-4, atol=1e-6
    )


def test_data_of_the_rows() -> None:
    offsets = np.arange(5.0)[:, None]
    y = data(5)
    res = lx.curve_fit(
        lambda x, a, k, c: decay()(x[0], a, k, c) + x[1], (X, offsets), y + offsets,
        [1.0, 1.0, 1.0], batched=True, jac="3-point",
    )
    for side, other in zip(res.intervals(), fit(y).intervals(), strict=True):
        np.testing.assert_allclose(side, other, atol=1e-4)


# --- profiles and contours -----------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_profile(backend: Backend, batched: bool) -> None:
    y = data(2)
    res = fit(y if batched else y[0], backend, sigma=0.2, absolute_sigma=True)
    low, high = (backend.to_numpy(side).reshape(-1, 3)[:, 1] for side in res.intervals(ONE))
    ends = np.stack([low, high], axis=-1)
    found = res.profile("k", backend.asarray(ends if batched else ends[0]))
    np.testing.assert_allclose(backend.to_numpy(found.delta), 1.0, atol=1e-3)
    assert found.name == "k" and tuple(found.x.shape) == ((2, 2, 3) if batched else (2, 3))
    np.testing.assert_array_equal(
        backend.to_numpy(found.x)[..., 1], backend.to_numpy(found.values)
    )


def test_profile_of_a_line_is_a_parabola() -> None:
    res = lx.curve_fit(lambda x, a, b: a + b * x, X, data(1)[0], [0.0, 0.0], jac="3-point")
    found = res.profile(0, size=7)
    np.testing.assert_allclose(found.delta, [9.0, 4.0, 1.0, 0.0, 1.0, 4.0, 9.0], atol=1e-8)
    np.testing.assert_allclose(found.values, res.x[0] + res.stderr[0] * np.arange(-3.0, 4.0))


def test_contour(backend: Backend) -> None:
    """The points of a line lie on its ellipse; of a batch, each row has its own."""
    y = np.stack([1.0 + X + np.sin(9.0 * X), 3.0 - X + np.cos(9.0 * X)])
    res = lx.curve_fit(
        lambda x, a, b: a + b * x, backend.asarray(X), backend.asarray(y), [0.0, 0.0],
        jac=None if backend.has_autodiff else "3-point", batched=True,
    )
    points = backend.to_numpy(res.contour("a", "b", 0.9, size=12))
    away = points - backend.to_numpy(res.x)[:, None, :]
    inverse = np.linalg.inv(backend.to_numpy(res.covariance))
    rise = np.sum((away @ inverse) * away, axis=-1)
    assert points.shape == (2, 12, 2)
    # Twice the quantile of F with 2 and 38 degrees of freedom.
    np.testing.assert_allclose(rise, 2.0 * 2.448093507, rtol=1e-3)


def test_contour_of_a_model_that_bends() -> None:
    res = fit(data(1)[0], sigma=0.2, absolute_sigma=True, bounds=(0.0, [2.75, 9.0, 9.0]))
    points = res.contour("k", "a", 0.6827, size=20)
    level = -2.0 * np.log(1.0 - 0.6827)
    assert np.isfinite(points).all() and points[:, 1].max() == 2.75
    for k, a in points[::3]:
        held = fit(
            data(1)[0], sigma=0.2, absolute_sigma=True, p0=[a, k, 0.5],
            bounds=([a, k, 0.0], [a, k, 9.0]),
        )
        rise = held.chi2 - res.chi2
        assert rise == pytest.approx(level, rel=2e-3) or (a == 2.75 and rise < level)


# --- errors --------------------------------------------------------------------------------------


def test_wrong_questions() -> None:
    res = fit(data(1)[0])
    for level in (0.0, 1.0, 68.0, "a"):
        with pytest.raises(ValueError, match="level is .*; wanted a number"):
            res.intervals(level)
    with pytest.raises(ValueError, match="parameter is 'q'; wanted one of 'a', 'k', 'c'"):
        res.profile("q")
    with pytest.raises(ValueError, match=r"values has shape \(2, 3\)"):
        res.profile("k", np.ones((2, 3)))
    with pytest.raises(ValueError, match="wanted two parameters"):
        res.contour("k", 1)


def test_a_model_that_raises() -> None:
    calls = []

    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        if calls:
            raise RuntimeError("no more")
        return decay()(x, a, k, c)

    res = lx.curve_fit(model, X, data(1)[0], [1.0, 1.0, 1.0], jac="3-point")
    calls.append(1)
    with pytest.raises(RuntimeError, match="no more"):
        res.intervals()


# --- many fits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dof", [1, 3])
def test_coverage_with_few_degrees_of_freedom(dof: int) -> None:
    """A scale that is estimated widens what holds the truth, for each row by its own number of
    data: every second one leaves two of them out."""
    m, rows, level = dof + 4, 1000, 0.9
    x, truth = np.linspace(-1.0, 2.0, m), np.asarray([1.0, -2.0])
    y = truth[0] + truth[1] * x + 0.3 * np.random.default_rng(2).normal(size=(rows, m))
    sigma = np.ones((rows, m))
    sigma[::2, 1:3] = np.inf
    res = lx.curve_fit(lambda x, a, b: a + b * x, x, y, truth, sigma=sigma, batched=True)
    assert res.dof.tolist() == [dof, dof + 2] * (rows // 2)
    low, high = res.intervals(level)
    below, above = res.band([0.7], level)
    border = res.contour("a", "b", level, size=8)
    away = np.stack([border[:, 0, :] - res.x, truth - res.x])
    rises = np.sum(np.matmul(away[..., None, :], np.linalg.inv(res.covariance))[..., 0, :] * away,
                   axis=-1)
    curve = truth[0] + 0.7 * truth[1]
    for inside in (
        (low[:, 0] < truth[0]) & (truth[0] < high[:, 0]),
        (low[:, 1] < truth[1]) & (truth[1] < high[:, 1]),
        (below[:, 0] < curve) & (curve < above[:, 0]),
        rises[1] < rises[0],
    ):
        # Three standard deviations of 500 trials
        for part in (inside[::2], inside[1::2]):
            assert abs(part.mean() - level) < 0.04


@functools.cache
def many(rows: int) -> tuple[lx.BatchCurveFit, lx.Intervals]:
    res = fit(data(rows, seed=5), sigma=0.2, absolute_sigma=True)
    return res, res.intervals(ONE)


def test_coverage_of_some() -> None:
    _, found = many(1500)
    inside = np.mean((found.low < TRUE) & (found.high > TRUE), axis=0)
    assert found.success.all() and (np.abs(inside - 0.6827) < 0.04).all()


@pytest.mark.thorough
def test_coverage() -> None:
    _, found = many(30_000)
    inside = np.mean((found.low < TRUE) & (found.high > TRUE), axis=0)
    assert found.success.all() and (np.abs(inside - 0.6827) < 0.01).all()


def test_like_minos() -> None:
    iminuit = pytest.importorskip("iminuit")
    res, found = many(1500)
    y = data(1500, seed=5)

    def chi2_of(i: int) -> Any:
        return lambda a, k, c: float(np.sum(((y[i] - decay()(X, a, k, c)) / 0.2) ** 2))

    for i in range(20):
        minuit = iminuit.Minuit(chi2_of(i), *res.x[i])
        minuit.errordef = 1.0
        minuit.strategy, minuit.tol = 2, 1e-4
        minuit.migrad()
        minuit.minos()
        for j, name in enumerate("akc"):
            error = minuit.merrors[name]
            for side, away in ((found.low, error.lower), (found.high, error.upper)):
                end = minuit.values[name] + away
                assert abs(side[i, j] - end) < 1e-3 * res.stderr[i, j]


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.TORCH], ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_ties(backend: Backend, batched: bool) -> None:
    """A tied parameter has the interval that it has as a parameter of its own."""
    xp = backend.xp
    y = backend.asarray(data(2) if batched else data(2)[0])
    res = lx.curve_fit(
        lambda x, a, k, c, area: a * xp.exp(-k * x) + c, backend.asarray(X), y,
        {"a": 1.0, "k": 1.0, "c": 0.5, "area": 0.0}, fixed="c",
        ties={"area": lambda p: p["a"] / p["k"]}, batched=batched,
    )
    other = lx.curve_fit(
        lambda x, area, k: area * k * xp.exp(-k * x) + 0.5, backend.asarray(X), y, [1.0, 1.0],
        batched=batched,
    )
    found = res.intervals()
    for side, wanted in zip(found, other.intervals(), strict=True):
        wanted = backend.to_numpy(wanted)
        for i, name in enumerate(("area", "k")):
            np.testing.assert_allclose(
                backend.to_numpy(side[name]), wanted[..., i], atol=1e-3 * wanted.std()
            )
        assert (backend.to_numpy(side["c"]) == 0.5).all()
    assert (backend.to_numpy(found.low_status["c"]) == IntervalStatus.FIXED).all()
    with pytest.raises(ValueError, match="'area', which is fixed or tied"):
        res.profile("area")


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.TORCH], ids=str)
@pytest.mark.parametrize("upper", [-0.5, 0.0, 0.4])
def test_a_tie_of_a_parameter_at_its_bound(backend: Backend, upper: float) -> None:
    """The other parameter of a sum goes on; `upper` is in standard errors from the best value."""
    slopes = np.stack([np.ones(40), X], axis=-1) / 0.1
    y = 1.0 + 2.0 * X + 0.1 * np.sin(20.0 * X)
    information = slopes.T @ slopes
    a, b = np.linalg.solve(information, slopes.T @ y / 0.1)
    edge = a + upper * np.sqrt(np.linalg.inv(information)[0, 0])
    res = lx.curve_fit(
        lambda x, a, b, both: a + b * x, backend.asarray(X), backend.asarray(y),
        {"a": 0.0, "b": 0.0, "both": 0.0}, sigma=0.1, absolute_sigma=True,
        ties={"both": lambda p: p["a"] + p["b"]}, bounds=(None, {"a": edge}),
    )
    found = res.intervals(ONE)
    rise = 1.0 - max(upper, 0.0) ** 2
    middle = b - information[0, 1] / information[1, 1] * (edge - a)
    wanted = edge + middle + np.sqrt(rise / information[1, 1])
    assert found.success and found.high_status["both"] == IntervalStatus.FOUND
    width = wanted - float(backend.to_numpy(res.x["both"]))
    assert float(backend.to_numpy(found.high["both"])) == pytest.approx(wanted, abs=2e-3 * width)
    assert found.high_status["a"] == IntervalStatus.BOUND


@pytest.mark.parametrize("batched", [False, True])
def test_counts(batched: bool) -> None:
    """The interval of a mean is where the deviance of a Poisson distribution has risen by 1; those
    of a decay agree with the slow search."""
    optimize = pytest.importorskip("scipy.optimize")
    counts = np.asarray([[3.0, 5.0, 1.0, 0.0, 4.0], [0.0, 1.0, 0.0, 0.0, 1.0]])
    res = lx.curve_fit(
        lambda x, mean: mean + 0.0 * x, np.arange(5.0), counts if batched else counts[0], [1.0],
        likelihood="poisson", batched=batched,
    )
    found = res.intervals(ONE)
    for i in range(2 if batched else 1):
        total = counts[i].sum()
        best = total / 5.0

        def rise(mean: float, total: float = total, best: float = best) -> float:
            return 2.0 * (5.0 * (mean - best) - total * np.log(mean / best)) - 1.0

        ends = [optimize.brentq(rise, 1e-6, best), optimize.brentq(rise, best, 50.0)]
        np.testing.assert_allclose([np.ravel(side)[i] for side in found], ends, rtol=1e-3)
    means = np.random.default_rng(0).poisson(decay()(X, 8.0, 1.3, 1.0), size=(2, 40)) * 1.0
    res = fit(means if batched else means[0], likelihood="poisson", bounds=(1e-3, 50.0))
    found, slow = res.intervals(0.95), slowly(res, 0.95)
    assert np.all(found.success) and np.all(slow.success)
    for side, other in zip(found, slow, strict=True):
        np.testing.assert_allclose((side - other) / res.stderr, 0.0, atol=1e-3)


def test_priors_belong_to_intervals() -> None:
    y = data(1)[0]
    res = fit(y, sigma=0.2, absolute_sigma=True, priors={"k": (1.2, 0.05)})
    found, slow = res.intervals(ONE), slowly(res)
    assert found.success and found.high[1] - found.low[1] < 0.1
    np.testing.assert_allclose(found.low, slow.low, atol=1e-3 * res.stderr.min())
    np.testing.assert_allclose(found.high, slow.high, atol=1e-3 * res.stderr.min())
    free = fit(y, sigma=0.2, absolute_sigma=True).intervals(ONE)
    assert (found.high - found.low < free.high - free.low).all()


def test_ends_are_not_behind_a_pole() -> None:
    """v x / (k + x) has a pole among the data where k is negative, and other valleys beyond."""
    rng = np.random.default_rng(4)
    t = np.linspace(0.1, 5.0, 30)
    y = 2.0 * t / (1.0 + t) + 0.6 * rng.normal(size=(60, 30))
    res = lx.curve_fit(
        lambda x, v, k: v * x / (k + x), t, y, [2.0, 1.0], batched=True, sigma=0.6,
        absolute_sigma=True,
    )
    found = res.intervals(0.9)
    usable = np.isfinite(found.low[:, 1]) & (res.x[:, 1] > -0.1)
    assert np.sum(usable) > 30 and (found.low[usable, 1] > -0.1).all()


# --- ends that are easily missed -----------------------------------------------------------------


def test_the_end_of_a_line_that_may_shrink_to_one_point() -> None:
    """chi2 rises smoothly towards 2.63 as the line becomes narrow and high; beside that valley lie
    others, which are higher."""
    x = np.linspace(-2.0, 2.0, 20)
    y = np.asarray([
        0.5578, -0.31, -0.1112, -0.254, 0.0157, 0.3887, 0.4823, 0.2848, 0.07, 0.3252, 0.7284,
        1.1562, 0.1861, 0.4973, 0.129, 0.1409, 0.5154, -0.0974, 0.5329, -0.3958,
    ])

    def lorentz(x: Any, a: Any, c: Any, g: Any) -> Any:
        return a / (1.0 + ((x - c) / g) ** 2)

    res = lx.curve_fit(lorentz, x, y, [1.0, 0.2, 0.3], sigma=0.3, absolute_sigma=True)
    assert res.intervals(0.8).high[0] == pytest.approx(2.2213, rel=1e-3)
    for level in (0.9, 0.95, 0.97):
        found = res.intervals(level)
        assert found.high[0] == np.inf and found.high_status[0] == IntervalStatus.OPEN
    # The smallest values over a fine grid of c and g.
    for a, rise in ((2.689, 1.8929), (5.0, 2.3026), (20.0, 2.5633), (100.0, 2.6236)):
        assert res.profile("a", [a]).delta[0] == pytest.approx(rise, abs=3e-3)


@pytest.mark.parametrize("level", [0.985, 0.99, 0.995])
def test_the_first_end_before_a_pole(level: float) -> None:
    """Where K is negative, beyond the poles, chi2 is lower again."""
    x = np.asarray([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    y = np.asarray([0.44880885, 1.17619499, 1.04601273, 2.82013133, 2.34804334, 2.59248297])
    res = lx.curve_fit(
        lambda x, v, K: v * x / (K + x), x, y, [5.0, 3.0], sigma=0.35, absolute_sigma=True
    )

    def rise(K: float) -> float:
        slope = x / (K + x)    # v is linear
        rest = y - slope * (slope @ y) / (slope @ slope)
        return rest @ rest / 0.35**2 - res.chi2

    found = res.intervals(level)
    assert (found.low_status == IntervalStatus.FOUND).all()
    assert rise(found.low[1]) == pytest.approx(rise_of(level), rel=1e-3)
    between = [rise(K) for K in np.linspace(found.low[1], res.x[1], 200)]
    assert (np.diff(between) < 0.0).all()


def test_errors_on_both_sides_in_a_batch() -> None:
    """Their kinks are no noise of the model: ends and fits are those of each row alone."""
    rng, x = np.random.default_rng(31), np.linspace(0.0, 4.0, 25)
    y = rng.poisson(decay()(x, rng.uniform(2.0, 9.0, 40)[:, None], 1.0, 0.5))[[38, 0]]
    settings: dict[str, Any] = {
        "sigma": (np.full(25, 1.0), np.full(25, 2.0)), "absolute_sigma": True,
    }
    bounds = ([0.0, 0.01, 1e-6], [50.0, 20.0, 20.0])
    res = lx.curve_fit(decay(), x, y, [3.0, 0.8, 0.3], batched=True, bounds=bounds, **settings)
    low, high = res.intervals(0.9)
    for i in range(2):
        one = lx.curve_fit(decay(), x, y[i], [3.0, 0.8, 0.3], bounds=bounds, **settings)
        for side, other in zip((low, high), one.intervals(0.9), strict=True):
            np.testing.assert_allclose(side[i], other, atol=1e-3 * one.stderr.min())
    k = low[0, 1]
    held = lx.curve_fit(
        decay(), x, y[0], [2.5, k, 0.9], bounds=([0.0, k, 1e-6], [50.0, k, 20.0]), **settings
    )
    assert held.chi2 - res.chi2[0] == pytest.approx(rise_of(0.9), rel=2e-3)


def test_the_domain_of_the_model_ends_an_interval() -> None:
    x = np.linspace(1.0, 3.0, 8)
    y = np.sqrt(x - 0.9) + 0.1 * np.cos(9.0 * x)
    with np.errstate(invalid="ignore"):
        res = lx.curve_fit(
            lambda x, b: np.sqrt(x - b), x, y, [0.5], sigma=0.5, absolute_sigma=True
        )
        found = res.intervals(0.95)
    assert found.high[0] == pytest.approx(1.0, abs=1e-3)
    assert found.high_status[0] == IntervalStatus.BOUND
    assert found.low_status[0] == IntervalStatus.FOUND


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "tie",
    [lambda p: p["a"] ** 2, lambda p: np.sin(30.0 * p["a"]), lambda p: np.cos(30.0 * p["a"]),
     lambda p: p["a"] * p["b"], lambda p: p["a"] ** 2 + (p["b"] - 0.3) ** 2],
    ids=["square", "sine", "cosine", "product", "squares"],
)
def test_a_tie_that_bends_within_the_region(tie: Any, batched: bool) -> None:
    """Its interval is that of its values over the region, here at points close together."""
    x = np.linspace(-2.0, 2.0, 25)
    y = -0.03 * x + 0.3 + 0.3 * np.random.default_rng(5).normal(size=(2, 25))
    res = lx.curve_fit(
        lambda x, a, b, q: a * x + b, x, y if batched else y[0], {"a": 0.3, "b": 0.1, "q": 0.0},
        sigma=0.3, absolute_sigma=True, ties={"q": tie}, batched=batched,
    )
    found = res.intervals(0.95)
    assert np.all(found.success)
    # a and b are independent.
    radius, angle = np.meshgrid(np.linspace(0.0, rise_of(0.95) ** 0.5, 400),
                                np.linspace(0.0, 2.0 * np.pi, 1000))
    for i in range(2 if batched else 1):
        x_, errors = ({n: np.ravel(tree[n])[i] for n in "ab"} for tree in (res.x, res.stderr))
        values = tie({
            "a": x_["a"] + radius * errors["a"] * np.cos(angle),
            "b": x_["b"] + radius * errors["b"] * np.sin(angle),
        })
        for ends, status, place in (
            (found.low, found.low_status, np.argmin(values)),
            (found.high, found.high_status, np.argmax(values)),
        ):
            wanted = values.flat[place]
            assert np.ravel(ends["q"])[i] == pytest.approx(wanted, abs=2e-3 * np.ptp(values))
            inside = radius.flat[place] < 0.99 * radius.max()
            kind = IntervalStatus.BOUND if inside else IntervalStatus.FOUND
            assert np.ravel(status["q"])[i] == kind
