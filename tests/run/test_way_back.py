"""No run by differences ends well above a value that it has seen, or at a saddle that shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

METHODS = ("lbfgs", "bfgs")
DIFFERENCES = ("2-point", "3-point")


def hill_far_away(x: Any) -> float:
    """0 at the start, up to rounding."""
    return float(-np.exp(-0.5 * (x[0] - 40.0) ** 2))


def plateau(x: Any) -> float:
    return 1.0 if abs(x[0]) < 5.0 else float(6.0 - abs(x[0]))


def ramps(x: Any) -> float:
    return float(max(-x[0], 0.0) + max(0.0, x[0] - 100.0) - 0.5 * max(0.0, x[0] - 50.0))


def whole_numbers(x: Any) -> float:
    return float((int(x[0]) - 3) ** 2 + (int(x[1]) + 4) ** 2)


def saddle(x: Any) -> float:
    return float(x[0] ** 2 - x[1] ** 2 + x[1] ** 4)


def turned_saddle(x: Any) -> float:
    return float(x[0] * x[1] + (x @ x) ** 2)


def top(x: Any) -> float:
    return float(np.cos(x[0]))


def top_beside_a_pole(x: Any) -> float:
    """A maximum at -1, a minimum at 1."""
    return float(1.0 / x[0] + x[0])


FUNCTIONS: dict[str, tuple[Any, list[float], dict[str, Any], float]] = {
    "hill far away": (hill_far_away, [0.0], {}, -1.0),
    "plateau": (plateau, [0.0], {"bounds": (-10.0, 10.0)}, -4.0),
    "ramps": (ramps, [1.0], {}, -25.0),
    "whole numbers": (whole_numbers, [10.0, 10.0], {}, 0.0),
    "saddle": (saddle, [1.0, 0.0], {}, -0.25),
    "saddle, given step": (saddle, [1.0, 0.0], {"diff_step": 1e-6}, -0.25),
    "turned saddle": (turned_saddle, [0.0, 0.0], {}, -0.0625),
    "top": (top, [0.0], {}, -1.0),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", DIFFERENCES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lower_value_that_was_seen_is_gone_back_to(name: str, jac: Any, method: str) -> None:
    fun, start, settings, lowest = FUNCTIONS[name]
    res = lx.minimize(fun, np.array(start), jac=jac, method=method, **settings)
    assert res.success
    assert abs(res.fun - lowest) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", DIFFERENCES)
def test_a_maximum_is_no_success(jac: Any, method: str) -> None:
    res = lx.minimize(top_beside_a_pole, np.array([1e-200]), jac=jac, method=method, maxfun=500)
    assert not res.success or abs(res.x[0] + 1.0) > 0.1


@pytest.mark.parametrize("name", ["hill far away", "plateau", "ramps", "saddle"])
def test_a_budget_that_ends_before_the_way_back_is_said(name: str) -> None:
    fun, start, settings, _ = FUNCTIONS[name]
    for maxfun in range(5, 130, 4):
        values: list[float] = []

        def noted(x: Any, values: list[float] = values) -> float:
            values.append(fun(x))
            return values[-1]

        res = lx.minimize(noted, np.array(start), jac="3-point", maxfun=maxfun, **settings)
        assert not res.success or min(values) >= res.fun - 1e-7


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7, 8, 9])
def test_a_single_low_point_is_not_gone_back_to(number: int) -> None:
    """The value is low at one point of the differences, and nowhere next to it."""
    points: list[Any] = []

    def smooth(x: Any) -> float:
        points.append(x.copy())
        return float(x @ x + 2.0)

    usual = lx.minimize(smooth, np.array([1.0, -2.0]), jac="3-point")
    spike = points[number]
    assert not (spike == usual.x).all()

    def spiked(x: Any) -> float:
        return float(x @ x + 2.0) - (1e-3 if (x == spike).all() else 0.0)

    res = lx.minimize(spiked, np.array([1.0, -2.0]), jac="3-point")
    assert res.success and res.fun >= 2.0 - 1e-9
    assert abs(res.fun - 2.0) <= 1e-3


@pytest.mark.parametrize("jac", DIFFERENCES)
def test_rows_go_back_one_by_one(jac: Any) -> None:
    centre = np.array([40.0, 0.5, 25.0, 0.0])

    def hills(x: Any, centre: Any) -> Any:
        return -np.exp(-0.5 * (x[:, 0] - centre) ** 2)

    start = np.zeros((4, 1))
    res = lx.minimize(hills, start, args=(centre,), jac=jac, batched=True)
    assert res.success.all()
    assert np.abs(res.x[:, 0] - centre).max() <= 1e-3
    for row, at in enumerate(centre):
        alone = lx.minimize(
            lambda x, at=at: float(-np.exp(-0.5 * (x[0] - at) ** 2)), start[row], jac=jac,
            method="bfgs",
        )
        assert alone.success and abs(alone.x[0] - at) <= 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", DIFFERENCES)
@pytest.mark.parametrize("unit", [1e8, 1e12, 1e15])
@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_a_variable_that_has_not_moved_is_looked_at(
    start: float, unit: float, jac: Any, method: str
) -> None:
    """Over the steps of differences the function does not respond to it."""
    units = np.array([unit, 1.0])
    res = lx.minimize(
        lambda x: float(np.sum((x / units - 1.0) ** 2)), np.array([start, 0.0]), jac=jac,
        method=method,
    )
    assert res.success and res.fun <= 1e-8


@pytest.mark.parametrize("batched", [False, True])
def test_every_library_goes_back(backend: Backend, batched: bool) -> None:
    xp = backend.xp

    def hills(x: Any) -> Any:
        return -xp.exp(-0.5 * xp.sum((x - 25.0) ** 2, axis=-1))

    start = backend.asarray(np.asarray([[0.0], [24.0]]) if batched else np.asarray([0.0]))
    res = lx.minimize(hills, start, jac="3-point", method="bfgs", batched=batched)
    assert np.asarray(backend.to_numpy(res.success) if batched else res.success).all()
    np.testing.assert_allclose(backend.to_numpy(res.x), 25.0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_run_goes_back_as_well(tmp_path: Any, method: str) -> None:
    """Also to what was seen before it was saved."""
    whole = lx.minimize(hill_far_away, np.array([0.0]), jac="3-point", method=method)
    for maxfun in (20, 90, 100, 120):
        part = lx.minimize(
            hill_far_away, np.array([0.0]), jac="3-point", method=method, maxfun=maxfun
        )
        assert part.status is lx.Status.EVALUATIONS
        lx.save(tmp_path / "state.npz", part.state)
        state = lx.load(tmp_path / "state.npz", like=np.array([0.0]))
        res = lx.minimize(hill_far_away, part.x, jac="3-point", method=method, state=state)
        assert res.success and abs(res.fun - whole.fun) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [9, 56])
def test_a_start_next_to_a_minimum_in_float32(seed: int, method: str) -> None:
    """The way that is promised is shorter than the rounding of x."""
    rng = np.random.default_rng(seed)
    n = 2 * int(rng.integers(1, 4))
    steep = np.float32(10.0 ** rng.uniform(0.0, 2.5))
    unit = np.float32(10.0 ** rng.uniform(-2.0, 2.0))

    def fun(x: Any) -> Any:
        a, b = (x / unit)[::2], (x / unit)[1::2]
        d, e = b - a * a, np.float32(1.0) - a
        gradient = np.stack([-4.0 * steep * d * a - 2.0 * e, 2.0 * steep * d], axis=-1).ravel()
        return np.sum(steep * d * d + e * e), (gradient / unit).astype(np.float32)

    start = np.full(n, unit)
    for _ in range(int(rng.integers(0, 3))):
        start = np.nextafter(start, np.float32(0.0))
    res = lx.minimize(fun, start, jac=True, method=method)
    assert res.success and res.fun <= 1e-12 * unit * unit
