"""Finite differences: their steps follow the function from point to point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.run.differences import Differences

# Functions with a singularity at 0, with the place of their minimum.
SINGULAR: dict[str, tuple[Callable[[Any], Any], float]] = {
    "logarithm": (lambda x: x - np.log(x), 1.0),
    "entropy": (lambda x: x * np.log(x), float(np.exp(-1.0))),
    "pole": (lambda x: x + 1.0 / x, 1.0),
    "third pole": (lambda x: x + x**-3.0, 3.0**0.25),
    "root": (lambda x: x - np.sqrt(x), 0.25),
    "tenth power": (lambda x: x - 10.0 * x**0.1, 1.0),
}


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("kind", SINGULAR)
def test_starts_next_to_a_singularity(kind: str, jac: str) -> None:
    """The function bends over lengths there that say nothing of other places; and no noise does
    that."""
    part, place = SINGULAR[kind]
    wanted = np.asarray([place, 1.0, 1.0])

    @np.errstate(all="ignore")
    def fun(x: np.ndarray) -> float:
        return float(part(x[0]) + np.sum((x[1:] - 1.0) ** 2))

    starts = [1e-17, 1e-8, 1e-3]
    if kind in ("pole", "third pole"):
        # From closer by, all that comes later is small beside how far the value falls.
        starts = [1e-6, 1e-3]
    for start in starts:
        for variables, bounds in ((1, (0.0, None)), (3, None)):
            x0 = np.asarray([start, 2.0, 2.0])[:variables]
            res = lx.minimize(fun, x0, jac=jac, bounds=bounds)
            np.testing.assert_allclose(res.x, wanted[:variables], rtol=0.0, atol=1e-4)
            assert res.success and res.nfev < 1600


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_a_start_without_a_value(method: str, jac: str, value: float) -> None:
    res = lx.minimize(
        lambda x: x @ x if x[0] > 0.0 else value, np.array([-1.0, 1.0]), jac=jac, method=method
    )
    assert res.status is Status.NOT_FINITE


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_no_differences_where_there_is_no_value(jac: str) -> None:
    """A search goes back from there whatever the gradient."""
    outside = []

    def fun(x: np.ndarray) -> float:
        outside.append(bool(x[0] < 0.0))
        return float(1e4 * (x[0] - np.log(x[0]))) if x[0] > 0.0 else np.nan

    res = lx.minimize(fun, np.asarray([3.0]), jac=jac)
    assert res.success and abs(res.x[0] - 1.0) < 1e-6
    runs = "".join("x" if there else " " for there in outside).split()
    assert runs and max(map(len, runs)) <= 1


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("place, width", [(2459000.5, 0.01), (5e-7, 1e-9), (1.7e9, 60.0)])
def test_steps_know_the_rounding_of_x(place: float, width: float, jac: str) -> None:
    """A peak that is narrow beside where it is moves over a step by many times that rounding."""
    grid = np.linspace(-4.0, 4.0, 80)
    x = place + width * grid
    data = 2.0 * np.exp(-0.5 * (grid - 0.3) ** 2) + 0.5

    def fun(p: np.ndarray) -> float:
        height, at, size, base = p
        return float(np.sum((height * np.exp(-0.5 * ((x - at) / size) ** 2) + base - data) ** 2))

    res = lx.minimize(fun, np.asarray([1.0, place, 1.5 * width, 0.0]), jac=jac)
    scaled = res.x - np.asarray([0.0, place, 0.0, 0.0])
    np.testing.assert_allclose(
        scaled / np.asarray([1.0, width, width, 1.0]), [2.0, 0.3, 1.0, 0.5], atol=1e-5
    )
    assert res.success and res.nfev < 2500


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_a_function_in_steps_is_no_plain(size: float, jac: str) -> None:
    """From far away the run arrives on a step, where all differences are 0."""
    def fun(p: np.ndarray) -> float:
        value = (p[0] - 1.0) ** 2 + 2.0 * (p[1] + 2.0) ** 2 + (p[2] - 0.5) ** 2 + 0.1 * p[0] * p[1]
        return float(np.round(value / size) * size)

    centre = np.linalg.solve([[2.0, 0.1, 0.0], [0.1, 4.0, 0.0], [0.0, 0.0, 2.0]], [2.0, -8.0, 1.0])
    res = lx.minimize(fun, np.asarray([30.0, 10.0, -10.0]), jac=jac)
    assert res.status is Status.PRECISION and res.nfev < 600
    np.testing.assert_allclose(res.x, centre, atol=3.0 * size**0.5)


def test_forward_differences_end_no_run_in_float32() -> None:
    """Where they vanish, the function may fall along a valley."""
    res = lx.minimize(
        lambda p: np.float32(100.0) * (p[1] - p[0] ** 2) ** 2 + (1.0 - p[0]) ** 2,
        np.asarray([-1.2, 1.0], dtype=np.float32), jac="2-point",
    )
    assert res.success and res.fun < 1e-5


# --- steps that were given -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("start", [(-1.2, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-4, 1e-5])
def test_a_given_step_limits_what_is_reached(step: float, start: tuple, method: str) -> None:
    """The error of the differences moves their zero by about 400 of its squares."""

    def rosenbrock(x: np.ndarray) -> float:
        return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2

    for jac in ("2-point", "3-point"):
        res = lx.minimize(rosenbrock, np.array(start), jac=jac, diff_step=step, method=method)
        assert res.success, res.message
        assert np.abs(res.x - 1.0).max() < 500.0 * step**2 + 1e-6


@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3])
def test_a_given_step_is_no_excuse_at_a_kink(step: float) -> None:
    """Along the kink the function falls to (2, 2)."""

    def valley(x: np.ndarray) -> float:
        return abs(x[0] - x[1]) + 0.1 * (x[0] + x[1] - 4.0) ** 2

    res = lx.minimize(valley, np.array([-3.0, 1.3]), jac="3-point", diff_step=step)
    assert res.status == lx.Status.LINE_SEARCH or res.fun < 1e-6


# --- functions that change in steps, and rounding ------------------------------------------------


@pytest.mark.parametrize(("start", "size"), [
    ((-1.2, 1.0), 1e-2), ((3.0, -1.0), 1e-2), ((2.0, 2.0), 1e-5), ((0.0, 0.0), 1e-6),
])
def test_steps_on_which_points_lie_evenly(start: tuple, size: float) -> None:
    """Round numbers put the start at a jump, and points next to it evenly on the steps."""

    def smooth(x: np.ndarray) -> float:
        return (x[0] - 1.0) ** 2 + 3.0 * (x[1] + 0.5) ** 2 + 0.5 * x[0] * x[1]

    lowest = smooth(np.linalg.solve([[2.0, 0.5], [0.5, 6.0]], [2.0, -3.0]))
    for jac in ("2-point", "3-point"):
        res = lx.minimize(lambda x: np.floor(smooth(x) / size) * size, np.array(start), jac=jac)
        assert res.success and smooth(res.x) - lowest < 4.0 * size


@pytest.mark.parametrize(("centre", "width", "jac"), [
    (-4e6, 1.0, "3-point"), (5.8e14, 1e9, "2-point"),
])
def test_errors_of_differences_let_no_run_crawl(centre: float, width: float, jac: str) -> None:
    x = centre + width * np.linspace(-5.0, 5.0, 60)

    def line(p: np.ndarray) -> np.ndarray:
        return p[0] / (1.0 + ((x - p[1]) / p[2]) ** 2)

    y = line(np.array([3.0, centre + 0.4 * width, width]))
    start = np.array([1.0, centre - 0.3 * width, 1.4 * width])
    res = lx.minimize(lambda p: np.sum((line(p) - y) ** 2), start, jac=jac)
    assert res.success and res.fun < 1e-14 and res.nfev < 2000


@pytest.mark.parametrize("start", [(1e-16, 1.0, 1.0), (1e-16, 1.1, 0.9), (0.0, 0.5, 1.0)])
def test_steps_among_noise_return_from_exponentials(start: tuple) -> None:
    """The rate counts for nothing at first, so the step grows until the model is huge."""
    t = np.linspace(0.0, 5.0, 50)

    @np.errstate(over="ignore", invalid="ignore")
    def model(p: np.ndarray) -> np.ndarray:
        return p[0] * np.exp(-p[1] * t) + p[2]

    y = model(np.array([3.0, 0.7, 1.0])) + 0.02 * np.random.default_rng(5).normal(size=50)
    @np.errstate(over="ignore")
    def fun(p: np.ndarray) -> float:
        return np.sum((np.round(model(p), 3) - y) ** 2)

    res = lx.minimize(fun, np.array(start), jac="3-point")
    assert res.status is Status.PRECISION and res.nfev < 1500
    np.testing.assert_allclose(res.x, [3.0, 0.7, 1.0], atol=0.05)


# --- residuals of one small problem, whose differences are chosen on floats ----------------------

POINTS = np.linspace(0.0, 10.0, 50)


def oscillation(p: np.ndarray) -> np.ndarray:
    return p[..., :1] * np.exp(-p[..., 1:2] * POINTS) * np.cos(p[..., 2:] * POINTS)


def line(p: np.ndarray) -> np.ndarray:
    return p[..., :1] / (1.0 + ((POINTS - p[..., 1:2]) / p[..., 2:]) ** 2)


@np.errstate(all="ignore")
def root(p: np.ndarray) -> np.ndarray:
    return p[..., :1] * np.sqrt(p[..., 1:2] - 1e-3 * POINTS) + p[..., 2:]


@pytest.mark.parametrize(
    ("function", "start"),
    [
        (oscillation, [1.5, 0.2, 3.0]), (oscillation, [0.0, 0.0, 0.0]), (line, [2.0, 6562.8, 0.05]),
        (root, [1.0, 0.01, 0.0]), (root, [1.0, 0.01 + 1e-10, 0.0]),
    ],
)
def test_differences_on_floats_are_those_of_a_batch(function: Any, start: list[float]) -> None:
    """Along a way on which lengths are measured again, with ends of the domain on it."""
    backend, calls = Backend.of(np.ones(1)), [0, 0]

    def counted(p: np.ndarray) -> np.ndarray:
        calls[p.ndim - 1] += 1
        return function(p)

    one, many = (Differences(backend, counted, least=0.0) for _ in range(2))
    x, rng = np.asarray(start), np.random.default_rng(0)
    for step in range(20):
        value = function(x)
        variation = np.max(np.abs(value))
        found = one(x, value, variation, False)
        rows = many(x[None], value[None], np.asarray([variation]), False)
        np.testing.assert_array_equal(np.asarray(found), np.stack(rows, axis=-2)[0])
        np.testing.assert_array_equal(one.known.lengths.length, many.known.lengths.length[0])
        np.testing.assert_array_equal(one.span, many.span[0])
        assert one.known.lengths.count == many.known.lengths.count[0] and calls[0] == calls[1]
        x = x * (1.0 + 0.2 * rng.normal(size=3)) if step % 7 else x
