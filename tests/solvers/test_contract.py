"""What every method must satisfy. An entry in `METHODS` gives a new solver these tests."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, get_args

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.first_order.base import FirstOrder
from lbfgs_xp.run.methods import METHODS
from lbfgs_xp.typing import MethodName
from tests.backends import Backend

SCALES = np.asarray([1.0, 4.0, 0.5, 2.0])
START = np.asarray([1.5, -0.5, 2.0, 0.25])
# Methods that take the Hessian.
BY_HESSIAN = "newton", "newton-cg", "trust-ncg"
STARTS = START + np.asarray([[0.0], [1.0], [-2.0]]) * np.asarray([1.0, 0.5, -1.0, 2.0])


class Bowl:
    """sum(a (x - 1)^2 / 2 + x^4 / 4) + sum(x)^2 / 2 with its derivatives: only additions and
    multiplications, so every library gives the same bits."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.scales = backend.asarray(SCALES)
        self.one = backend.asarray(np.eye(4))
        self.values: list[float] = []

    def fun(self, x: Any) -> tuple[Any, Any]:
        d, total, square = x - 1.0, lx.fixed_sum(x), x * x
        value = lx.fixed_sum(0.5 * (self.scales * (d * d)) + 0.25 * (square * square))
        value = value + 0.5 * (total * total)
        if x.ndim == 1:
            self.values.append(float(self.backend.to_numpy(value)))
        return value, self.scales * d + square * x + total[..., None]

    def hess(self, x: Any) -> Any:
        return (self.scales + 3.0 * (x * x))[..., None] * self.one + 1.0

    def run(self, method: str, x0: np.ndarray, **settings: Any) -> Any:
        settings.setdefault("hess", self.hess if method in BY_HESSIAN else None)
        settings.setdefault("maxiter", 25)
        return lx.minimize(
            self.fun, self.backend.asarray(x0), jac=True, method=method, batched=x0.ndim > 1,
            **settings,
        )


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bowl() -> Bowl:
    return Bowl(Backend.NUMPY)


def test_types_know_every_name() -> None:
    assert {*get_args(MethodName)} == {*METHODS, "auto"}


def test_settings_are_shown(method: str) -> None:
    made = METHODS[method]()
    names = [p.name for p in inspect.signature(type(made)).parameters.values()]
    assert names == [f for f in inspect.signature(type(made).__init__).parameters if f != "self"]
    assert not {"args", "settings"} & {*names}
    if method != "gradient_descent":    # which shows the line search that it has chosen
        assert repr(made) == f"{type(made).__name__}()"
    assert pickle.loads(pickle.dumps(made)) == made and hash(made) == hash(METHODS[method]())


def test_it_goes_down(method: str, bowl: Bowl) -> None:
    res = bowl.run(method, START, maxiter=3000)
    assert res.fun < bowl.values[0] and np.all(np.isfinite(res.x))
    if res.success:
        assert np.max(np.abs(bowl.fun(res.x)[1])) <= 1e-5


def test_the_best_point_is_returned(method: str, bowl: Bowl) -> None:
    res = bowl.run(method, START)
    assert res.fun == pytest.approx(min(bowl.values), rel=1e-14)
    value, gradient = bowl.fun(res.x)
    assert value == res.fun and np.array_equal(gradient, res.jac)


@pytest.mark.parametrize("library", [Backend.NUMPY, Backend.TORCH], ids=str)
def test_a_batch_equals_its_rows(method: str, library: Backend) -> None:
    bowl = Bowl(library)
    batch = bowl.run(method, STARTS, reproducible=True)
    for row, start in enumerate(STARTS):
        one = bowl.run(method, start, reproducible=True)
        assert library.to_numpy(batch.x[row, ...]).tobytes() == library.to_numpy(one.x).tobytes()
        for name in ("nit", "nfev", "status", "success"):
            assert getattr(one, name) == library.to_numpy(getattr(batch, name))[row], name


@pytest.mark.parametrize("library", [Backend.STRICT, Backend.TORCH, Backend.JAX], ids=str)
def test_the_same_bits_on_every_library(method: str, library: Backend, bowl: Bowl) -> None:
    there = Bowl(library).run(method, START, reproducible=True, maxiter=8)
    here = bowl.run(method, START, reproducible=True, maxiter=8)
    assert library.to_numpy(there.x).tobytes() == here.x.tobytes()
    assert (there.nit, there.nfev, there.status) == (here.nit, here.nfev, here.status)


@pytest.mark.parametrize("start", [START, STARTS], ids=["one", "batch"])
def test_going_on_equals_not_stopping(method: str, start: np.ndarray, bowl: Bowl) -> None:
    how: dict[str, Any] = {"gtol": 0.0, "reproducible": True}
    whole = bowl.run(method, start, maxiter=4, **how)
    first = bowl.run(method, start, maxiter=2, **how)
    second = bowl.run(method, first.x, maxiter=2, state=first.state, **how)
    assert np.all(first.nit == 2) and np.all(second.nit == 2) and np.all(whole.nit == 4)
    assert np.array_equal(second.x, whole.x) and np.array_equal(second.fun, whole.fun)


def test_budgets(method: str, bowl: Bowl) -> None:
    res = bowl.run(method, START, maxiter=3, gtol=0.0)
    assert (res.nit, res.status) == (3, Status.ITERATIONS)
    bowl.values.clear()
    res = bowl.run(method, START, maxfun=3, maxiter=None, gtol=0.0)
    assert res.status is Status.EVALUATIONS and res.nfev == len(bowl.values) == 3
    res = bowl.run(method, START, maxtime=0.0)
    assert (res.status, res.nit) == (Status.TIME, 0)
    batch = bowl.run(method, STARTS, maxiter=3, gtol=0.0)
    assert np.all(batch.nit == 3) and np.all(batch.status == int(Status.ITERATIONS))


def test_a_start_that_is_not_finite(method: str, bowl: Bowl) -> None:
    res = bowl.run(method, np.asarray([np.nan, 0.0, 0.0, 0.0]))
    assert (res.status, res.success, res.nfev) == (Status.NOT_FINITE, False, 1)
    batch = bowl.run(method, np.where(np.arange(3)[:, None] == 1, np.nan, STARTS))
    assert [status == Status.NOT_FINITE for status in batch.status] == [False, True, False]
    assert np.all(np.isfinite(batch.x[::2]))


def test_a_region_of_nan(method: str, bowl: Bowl) -> None:
    """Trials in it are rejected, and never returned."""

    def fun(x: np.ndarray) -> Any:
        value, gradient = bowl.fun(x)
        return (np.nan, gradient * np.nan) if x[0] < 0.9 else (value, gradient)

    hess = bowl.hess if method in BY_HESSIAN else None
    res = lx.minimize(fun, START, jac=True, method=method, hess=hess, maxiter=200)
    assert np.isfinite(res.fun) and res.fun <= bowl.values[0] and res.x[0] >= 0.9


def test_exceptions_carry_the_best_point(method: str, bowl: Bowl) -> None:
    def fun(x: np.ndarray) -> Any:
        if len(bowl.values) == 4:
            raise ZeroDivisionError
        return bowl.fun(x)

    hess = bowl.hess if method in BY_HESSIAN else None
    with pytest.raises(ZeroDivisionError) as caught:
        lx.minimize(fun, START, jac=True, method=method, hess=hess, gtol=0.0)
    assert caught.value.result.fun == min(bowl.values)  # type: ignore[attr-defined]


def test_an_interrupt_keeps_the_best_point(method: str, bowl: Bowl) -> None:
    def fun(x: np.ndarray) -> Any:
        if len(bowl.values) == 4:
            raise KeyboardInterrupt
        return bowl.fun(x)

    hess = bowl.hess if method in BY_HESSIAN else None
    res = lx.minimize(fun, START, jac=True, method=method, hess=hess, gtol=0.0)
    assert res.status is Status.INTERRUPTED and res.fun == min(bowl.values)


def test_a_callback_stops_it(method: str, bowl: Bowl) -> None:
    res = bowl.run(method, START, gtol=0.0, callback=lambda record: record.nit == 2)
    assert (res.status, res.nit) == (Status.CALLBACK, 2)


def test_bounds_are_kept_or_refused(method: str, bowl: Bowl) -> None:
    made = METHODS[method]()
    # Without a learning rate, gradient descent searches.
    first_order = isinstance(made, FirstOrder) and method != "gradient_descent"
    if not (first_order or getattr(made, "supports_bounds", False)):
        with pytest.raises(ValueError, match="bounds were passed"):
            bowl.run(method, START, bounds=(0.5, None))
        return
    seen: list[np.ndarray] = []

    def fun(x: np.ndarray) -> Any:
        seen.append(x.copy())
        return bowl.fun(x)

    res = lx.minimize(fun, START, jac=True, method=method, bounds=(0.5, None), maxiter=500)
    assert np.min(seen) >= 0.5 and (first_order or (res.success and np.any(res.x == 0.5)))
    assert np.array_equal(res.active, np.where(res.x == 0.5, -1, 0))
