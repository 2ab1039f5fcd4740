"""`clip_norm` and `clip_value` of the methods with a line search."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.solvers.clipping import Clipped
from lbfgs_xp.solvers.two_loop import two_loop
from tests.backends import Backend

LIMITS = [{"clip_norm": 9.0}, {"clip_value": 6.0}, {"clip_norm": 12.0, "clip_value": 7.0}]
METHODS: list[Any] = [
    lx.LBFGS, lx.BFGS, lx.SSBFGS, lx.SSBroyden, lx.Newton, lx.NewtonCG,
    lambda **limits: lx.GradientDescent(line_search="bisection", **limits),
]
STARTS = np.asarray([[2.0, -1.0, 3.0, 0.5], [0.2, 0.1, 0.4, 0.3], [-4.0, 1.0, -3.0, 2.0]])
SCALES = np.asarray([1.0, 4.0, 0.5, 2.0])


class Bowl:
    """sum(a (x - 1)^2 / 2 + x^4 / 4) + sum(x)^2 / 2, with the same bits on every library."""

    def __init__(self, backend: Backend = Backend.NUMPY):
        self.backend = backend
        self.scales, self.one = backend.asarray(SCALES), backend.asarray(np.eye(4))

    def fun(self, x: Any) -> tuple[Any, Any]:
        d, total, square = x - 1.0, lx.fixed_sum(x), x * x
        value = lx.fixed_sum(0.5 * (self.scales * (d * d)) + 0.25 * (square * square))
        return value + 0.5 * (total * total), self.scales * d + square * x + total[..., None]

    def hess(self, x: Any) -> Any:
        return (self.scales + 3.0 * (x * x))[..., None] * self.one + 1.0

    def run(self, method: Any, x0: np.ndarray, **settings: Any) -> Any:
        if type(method).__name__.startswith("Newton"):
            settings["hess"] = self.hess
        return lx.minimize(
            self.fun, self.backend.asarray(x0), jac=True, method=method, batched=x0.ndim > 1,
            **settings,
        )


def clipped(g: np.ndarray, clip_norm: float = np.inf, clip_value: float = np.inf) -> np.ndarray:
    return np.clip(g * min(1.0, clip_norm / np.linalg.norm(g)), -clip_value, clip_value)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_iterates_are_those_of_the_definition(backend: Backend, limits: dict) -> None:
    bowl, x, pairs, wanted = Bowl(), STARTS[0], [], []
    f, g = bowl.fun(x)
    for _ in range(16):
        c = clipped(g, **limits)
        gamma = 0.1
        S, Y = (np.asarray([pair[i] for pair in pairs]).reshape(-1, 4) for i in (0, 1))
        d = -two_loop(c, S, Y, gamma)
        if not d @ g < 0.0:
            d = -two_loop(g, S, Y, gamma) * np.max(np.abs(c)) / np.max(np.abs(g))
        new = x + 0.5 * d
        _, after = bowl.fun(new)
        if all(np.array_equal(each, clipped(each, **limits)) for each in (g, after)):
            pairs = [*pairs[-4:], (new - x, after - g)]
        x, g = new, after
        wanted.append(x)
    assert len(pairs) >= 3
    solver = lx.LBFGS(
        5, lx.Fixed(), initial_inverse_hessian=0.1, scale_initial=False, learning_rate=0.5,
        **limits,
    )
    seen: list[np.ndarray] = []
    Bowl(backend).run(
        solver, STARTS[0], maxiter=16, callback=lambda r: seen.append(backend.to_numpy(r.x))
    )
    np.testing.assert_allclose(seen, wanted, rtol=1e-12)


@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
@pytest.mark.parametrize("make", METHODS, ids=lambda make: getattr(make, "__name__", ""))
def test_a_batch_equals_its_rows(make: Any, limits: dict) -> None:
    bowl, method = Bowl(), make(**limits)
    batch = bowl.run(method, STARTS, reproducible=True)
    assert np.all(batch.success)
    for row, start in enumerate(STARTS):
        one = bowl.run(method, start, reproducible=True)
        assert np.array_equal(batch.x[row], one.x) and batch.nfev[row] == one.nfev


@pytest.mark.parametrize("library", [Backend.STRICT, Backend.TORCH, Backend.JAX], ids=str)
@pytest.mark.parametrize("make", [lx.LBFGS, lx.SSBroyden])
def test_the_same_bits_on_every_library(make: Any, library: Backend) -> None:
    method = make(**LIMITS[2])
    here = Bowl().run(method, STARTS[0], reproducible=True)
    there = Bowl(library).run(method, STARTS[0], reproducible=True)
    assert library.to_numpy(there.x).tobytes() == here.x.tobytes() and there.nfev == here.nfev


@pytest.mark.parametrize("make", METHODS, ids=lambda make: getattr(make, "__name__", ""))
def test_limits_out_of_reach_change_nothing(make: Any) -> None:
    bowl = Bowl()
    free, limited = (
        bowl.run(method, STARTS[2]) for method in (make(), make(clip_norm=1e6, clip_value=1e6))
    )
    assert np.array_equal(free.x, limited.x) and free.nfev == limited.nfev


@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_bounds_and_penalties(limits: dict) -> None:
    bowl, bounds = Bowl(), (0.1, np.asarray([5.0, 0.3, 5.0, 5.0]))
    for make in (lx.LBFGS, lx.BFGS):
        free, limited = (
            bowl.run(make(**more), STARTS[0], bounds=bounds) for more in ({}, limits)
        )
        assert limited.success
        np.testing.assert_allclose(limited.x, free.x, atol=1e-6)
    free, limited = (bowl.run(lx.LBFGS(**more), STARTS[0], l1=0.5) for more in ({}, limits))
    assert limited.success
    np.testing.assert_allclose(limited.x, free.x, atol=1e-6)


def wall(x: np.ndarray) -> tuple[float, np.ndarray]:
    """A bowl and 1 / x_0, whose gradient is -1e8 at x_0 = 1e-4."""
    if x[0] <= 0.0:
        return np.inf, np.full(x.shape, np.nan)
    scales = np.arange(1.0, len(x) + 1.0)
    gradient = scales * (x - 1.0)
    gradient[0] -= 1.0 / x[0] ** 2
    return 0.5 * float(scales @ (x - 1.0) ** 2) + 1.0 / x[0], gradient


@pytest.mark.parametrize(("make", "share"), [(lx.LBFGS, 0.8), (lx.BFGS, 0.25), (lx.SSBFGS, 0.7)])
def test_one_large_gradient_spoils_no_memory(make: Any, share: float) -> None:
    x0 = np.zeros(20)
    x0[0] = 1e-4
    free, *limited = (
        lx.minimize(wall, x0, jac=True, method=make(**limits))
        for limits in ({}, {"clip_norm": 100.0}, {"clip_value": 100.0})
    )
    for res in limited:
        assert res.success and res.nfev < share * free.nfev
        np.testing.assert_allclose(res.x, free.x, atol=1e-5)


@pytest.mark.parametrize("limits", [{"clip_norm": 1e-12}, {"clip_value": 1e-6}], ids=str)
@pytest.mark.parametrize("make", METHODS[:3])
def test_limits_that_are_too_small_end_no_run(make: Any, limits: dict) -> None:
    res = Bowl().run(make(**limits), STARTS[0], maxiter=3000)
    assert not res.success or np.max(np.abs(res.jac)) < 1e-5


def test_the_norm_of_a_gradient_whose_squares_overflow() -> None:
    g = np.asarray([3e200, 4e200])
    found = lx.LBFGS(clip_norm=10.0).clipped(lx.Space(g), g, 4e200)
    assert found is not None
    np.testing.assert_allclose(found.gradient, [6.0, 8.0], rtol=1e-14)
    assert found.factor == pytest.approx(2e-200) and found.norm == pytest.approx(8.0)


def test_where_the_clipped_gradient_leads_up() -> None:
    g, H = np.asarray([100.0, -1.0]), np.asarray([[1.0, 0.9], [0.9, 1.0]])
    c, factor = np.asarray([0.5, -1.0]), 0.01
    assert -(H @ c) @ g > 0.0
    space = lx.Space(g)
    found, slope = lx.LBFGS(clip_value=1.0).aimed(
        space, Clipped(c, 1.0, factor), g, -H @ g, float(-(H @ g) @ g), lambda v: -H @ v
    )
    np.testing.assert_allclose(found, -factor * (H @ g))
    assert slope == pytest.approx(found @ g) and slope < 0.0


@pytest.mark.thorough
def test_compiled_functions_and_programs() -> None:
    jax = pytest.importorskip("jax")
    scales = jax.numpy.asarray(SCALES)
    fun = jax.jit(lambda x: (0.5 * scales * (x - 1.0) ** 2 + 0.25 * x**4).sum(-1))
    x0, method = jax.numpy.asarray(STARTS[0]), lx.LBFGS(clip_norm=5.0, clip_value=2.0)
    res = lx.minimize(fun, x0, method=method)
    inside = jax.jit(lambda x: lx.minimize(fun, x, method=method).x)(x0)
    free = lx.minimize(fun, x0)
    assert res.success
    for found in (res.x, inside):
        np.testing.assert_allclose(found, free.x, atol=1e-6)


@pytest.mark.parametrize("rule", [None, "strong_wolfe"])
def test_the_optimizer_for_torch(rule: Any) -> None:
    torch = pytest.importorskip("torch")
    from lbfgs_xp.torch import LBFGS

    bowl = Bowl(Backend.TORCH)
    x = torch.tensor(STARTS[0], requires_grad=True)
    opt = LBFGS([x], lr=0.1, line_search_fn=rule, clip_value=6.0)
    seen: list[np.ndarray] = []

    def closure() -> Any:
        opt.zero_grad()
        seen.append(x.detach().numpy().copy())
        value, _ = bowl.fun(x)
        value.backward()
        return value

    opt.step(closure)
    c = clipped(Bowl().fun(STARTS[0])[1], clip_value=6.0)
    np.testing.assert_allclose(seen[1], STARTS[0] - 0.1 * c / np.sum(np.abs(c)), rtol=1e-12)
    for _ in range(20):
        opt.step(closure)
    assert float(bowl.fun(x.detach())[1].abs().max()) < 1e-4
    assert opt.state_dict()["param_groups"][0]["clip_value"] == 6.0
    # The state of torch has no limits: these stay.
    opt.load_state_dict(torch.optim.LBFGS([x]).state_dict())
    assert opt.param_groups[0]["clip_value"] == 6.0


@pytest.mark.parametrize("make", METHODS, ids=lambda make: getattr(make, "__name__", ""))
def test_limits_out_of_range(make: Any) -> None:
    for name in ("clip_norm", "clip_value"):
        with pytest.raises(ValueError, match=f"{name} is 0; wanted"):
            make(**{name: 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(clip_norm=1) == make(clip_norm=1.0)
