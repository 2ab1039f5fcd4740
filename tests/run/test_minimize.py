"""The loop: why it stops, what it returns, what it is given, and how a run is resumed."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import types
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.line_search import NAMES as RULES
from tests.backends import CPU, Backend

NAN, INF = math.nan, math.inf


def bowl(x: np.ndarray) -> tuple[Any, np.ndarray]:
    """|x - (1, 2, ...)|^2 and its gradient."""
    d = x - np.arange(1.0, x.shape[-1] + 1.0)
    return np.sum(d * d), 2.0 * d


ROSENBROCK = problems.rosenbrock(2)


def rosenbrock(x: np.ndarray) -> tuple[Any, np.ndarray]:
    return ROSENBROCK.value_and_gradient(x)


class Recorder:
    """A function that records the points and values of all its calls."""

    def __init__(self, fun: Any):
        self.fun = fun
        self.points: list[np.ndarray] = []
        self.values: list[float] = []

    def __call__(self, x: np.ndarray) -> Any:
        out = self.fun(x)
        self.points.append(np.array(x))
        self.values.append(float(out[0]))
        return out

    @property
    def best(self) -> float:
        return min((v for v in self.values if math.isfinite(v)), default=NAN)

    def holds(self, res: lx.Result) -> None:
        """Check that the result is a point that was seen, and the best one up to rounding."""
        assert res.fun <= self.best + 4e-16 * abs(self.best)
        places = [i for i, p in enumerate(self.points) if p.tobytes() == res.x.tobytes()]
        assert places, "res.x was never evaluated"
        assert res.fun in [self.values[i] for i in places]
        value, gradient = self.fun(res.x)
        assert res.fun == float(value)
        np.testing.assert_array_equal(res.jac, gradient)
        assert res.gradient_norm == np.max(np.abs(gradient))


def with_rule(name: str, **more: Any) -> dict[str, Any]:
    return {"method": lx.LBFGS(line_search=name, **more), "jac": True}


# --- why it stops ------------------------------------------------------------------------------


def stops(res: lx.Result, status: Status) -> None:
    assert res.status is status
    assert res.success is status.success
    assert res.message == status.message and str(status) == f"{status}" == status.name
    assert status.name in repr(res) and status.message in repr(res)


def test_gradient_is_small() -> None:
    res = lx.minimize(bowl, np.zeros(3), jac=True, gtol=1e-6)
    stops(res, Status.GRADIENT)
    assert res.gradient_norm <= 1e-6
    np.testing.assert_allclose(res.x, [1.0, 2.0, 3.0], atol=1e-6)


def test_gradient_is_small_at_the_start() -> None:
    calls = Recorder(bowl)
    res = lx.minimize(calls, np.asarray([1.0, 2.0]), jac=True)
    stops(res, Status.GRADIENT)
    # Two looks across confirm a gradient of exactly 0.
    assert (res.nit, res.nfev, len(calls.values)) == (0, 3, 3)
    given = lx.minimize(calls, np.asarray([1.0, 2.0]), jac=True, gtol=0.0)
    stops(given, Status.GRADIENT)
    assert (given.nit, given.nfev) == (0, 1)


def test_value_has_settled() -> None:
    p = problems.logistic_regression()
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, gtol=0.0, ftol=1e-3)
    stops(res, Status.VALUE)
    full = lx.minimize(p.value_and_gradient, p.x0, jac=True, gtol=0.0)
    assert res.nfev < full.nfev
    assert res.fun == pytest.approx(full.fun, rel=1e-2)


def test_step_has_settled() -> None:
    res = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, gtol=0.0, xtol=1e-4)
    stops(res, Status.STEP)
    np.testing.assert_allclose(res.x, 1.0, atol=1e-2)


def test_precision_floor() -> None:
    # A minimum of 1 hides everything below 1e-16, and the gradient is never exactly 0.
    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = rosenbrock(x)
        return value + 1.0, gradient + 1e-300

    res = lx.minimize(fun, ROSENBROCK.x0, jac=True, gtol=0.0)
    stops(res, Status.PRECISION)
    np.testing.assert_allclose(res.x, 1.0, atol=1e-6)


@pytest.mark.parametrize("maxiter", [0, 1, 7])
def test_budget_of_iterations(maxiter: int) -> None:
    calls = Recorder(rosenbrock)
    res = lx.minimize(calls, ROSENBROCK.x0, jac=True, maxiter=maxiter)
    stops(res, Status.ITERATIONS)
    assert res.nit == maxiter
    assert res.nfev == len(calls.values)
    calls.holds(res)


@pytest.mark.parametrize("rule", RULES)
def test_budget_of_evaluations(rule: str) -> None:
    for maxfun in range(1, 16):
        calls = Recorder(rosenbrock)
        res = lx.minimize(calls, ROSENBROCK.x0, maxfun=maxfun, gtol=0.0, **with_rule(rule))
        assert res.nfev == len(calls.values) == maxfun
        calls.holds(res)
        stops(res, Status.EVALUATIONS)


def test_budget_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        nonlocal now
        now += 0.02
        return rosenbrock(x)

    calls = Recorder(fun)
    res = lx.minimize(calls, ROSENBROCK.x0, jac=True, maxtime=0.1)
    stops(res, Status.TIME)
    assert 5 <= res.nfev == len(calls.values) <= 6
    calls.holds(res)
    stops(lx.minimize(bowl, np.zeros(2), jac=True, maxtime=0), Status.TIME)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "fixed"])
def test_wrong_sign_of_the_gradient(rule: str) -> None:
    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = bowl(x)
        return value, -gradient

    calls = Recorder(fun)
    res = lx.minimize(calls, np.zeros(2), **with_rule(rule))
    stops(res, Status.LINE_SEARCH)
    assert "check_gradient" in res.message
    np.testing.assert_array_equal(res.x, 0.0)
    calls.holds(res)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_start_is_not_finite(where: str, value: float) -> None:
    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        f, g = bowl(x)
        return (value, g) if where == "value" else (f, np.where(g == g[0], value, g))

    x0 = np.zeros(3)
    res = lx.minimize(fun, x0, jac=True)
    stops(res, Status.NOT_FINITE)
    assert (res.nit, res.nfev) == (0, 1)
    np.testing.assert_array_equal(res.x, x0)


def test_start_of_nan() -> None:
    res = lx.minimize(bowl, np.asarray([NAN, 0.0]), jac=True)
    stops(res, Status.NOT_FINITE)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "fixed"])
@pytest.mark.parametrize("slope", [1.0, 1e-8, 1e8])
def test_linear_function_is_unbounded(rule: str, slope: float) -> None:
    res = lx.minimize(lambda x: (slope * np.sum(x), np.full_like(x, slope)), np.zeros(3),
                      gtol=0.0, maxfun=20_000, **with_rule(rule))
    stops(res, Status.UNBOUNDED)
    assert res.nfev < 1000


def test_cubic_is_unbounded() -> None:
    res = lx.minimize(lambda x: (np.sum(x**3), 3 * x**2), -np.ones(2), jac=True, maxfun=20_000)
    stops(res, Status.UNBOUNDED)


def test_callback_stops() -> None:
    res = lx.minimize(
        rosenbrock, ROSENBROCK.x0, jac=True, callback=lambda record: record.nit == 3
    )
    stops(res, Status.CALLBACK)
    assert res.nit == 3


@pytest.mark.parametrize("outcome", [True, np.True_, np.asarray(True), 1, "stop", [0.0]])
def test_a_callback_stops_with_any_true_value(outcome: Any) -> None:
    res = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, callback=lambda record: outcome)
    stops(res, Status.CALLBACK)


@pytest.mark.parametrize("outcome", [None, False, np.False_, np.asarray(0), 0, ""])
def test_a_callback_goes_on_with_any_other(outcome: Any) -> None:
    res = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, callback=lambda record: outcome)
    stops(res, Status.GRADIENT)


def test_a_callback_that_returns_an_array() -> None:
    with pytest.raises(TypeError, match=r"callback returned an array of shape \(2,\); wanted a tr"):
        lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, callback=lambda record: record.x)


def failing_at(count: int, error: BaseException, fun: Any = rosenbrock) -> Recorder:
    def wrapped(x: np.ndarray) -> Any:
        if len(calls.values) == count - 1:
            raise error
        return fun(x)

    calls = Recorder(wrapped)
    return calls


@pytest.mark.parametrize("count", [2, 3, 9])
def test_interrupted(count: int) -> None:
    calls = failing_at(count, KeyboardInterrupt())
    res = lx.minimize(calls, ROSENBROCK.x0, jac=True)
    stops(res, Status.INTERRUPTED)
    assert len(calls.values) == count - 1
    calls.fun = rosenbrock
    calls.holds(res)


def test_interrupted_in_the_callback() -> None:
    def callback(record: lx.Record) -> None:
        if record.nit == 4:
            raise KeyboardInterrupt

    res = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, callback=callback)
    stops(res, Status.INTERRUPTED)
    assert res.nit == 4


def test_interrupted_before_the_first_value() -> None:
    with pytest.raises(KeyboardInterrupt):
        lx.minimize(failing_at(1, KeyboardInterrupt()), ROSENBROCK.x0, jac=True)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_exception_carries_the_best_point(count: int) -> None:
    calls = failing_at(count, ZeroDivisionError("mine"))
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        lx.minimize(calls, ROSENBROCK.x0, jac=True)
    calls.fun = rosenbrock
    calls.holds(caught.value.result)  # type: ignore[attr-defined]
    assert any("best point" in note for note in caught.value.__notes__)


def test_an_exception_of_a_run_within_a_run() -> None:
    """It carries the point of the outer run, and the user's own notes stay."""
    error = ZeroDivisionError()
    error.add_note("my note on the attribute `result`")

    def outer(x: np.ndarray) -> Any:
        if x[0] != 1.0:
            lx.minimize(failing_at(2, error), ROSENBROCK.x0, jac=True)
        return x @ x, 2.0 * x

    with pytest.raises(ZeroDivisionError) as caught:
        lx.minimize(outer, np.ones(3), jac=True)
    assert caught.value.result.fun == 3.0  # type: ignore[attr-defined]
    mine, ours = caught.value.__notes__
    assert mine == "my note on the attribute `result`" and ours.endswith("with value 3.0")


def test_exception_at_the_start_goes_through() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        lx.minimize(failing_at(1, ZeroDivisionError()), ROSENBROCK.x0, jac=True)
    assert not hasattr(caught.value, "result")


def test_exception_in_the_callback_carries_the_best_point() -> None:
    def callback(record: lx.Record) -> None:
        if record.nit == 5:
            raise RuntimeError("full disk")

    calls = Recorder(rosenbrock)
    with pytest.raises(RuntimeError, match="full disk") as caught:
        lx.minimize(calls, ROSENBROCK.x0, jac=True, callback=callback)
    calls.holds(caught.value.result)  # type: ignore[attr-defined]


def test_exception_that_takes_no_attributes_goes_through() -> None:
    @dataclasses.dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    with pytest.raises(FrozenError):
        lx.minimize(failing_at(3, FrozenError(4)), ROSENBROCK.x0, jac=True)


# --- the best point ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "name", ["rosenbrock", "beale", "himmelblau", "mlp_regression", "rastrigin"]
)
def test_best_point_at_every_budget(name: str, rule: str) -> None:
    p = problems.ALL[name]()
    for maxfun in (1, 2, 3, 5, 8, 13, 21, 34):
        calls = Recorder(p.value_and_gradient)
        res = lx.minimize(calls, p.x0, maxfun=maxfun, gtol=0.0, **with_rule(rule))
        calls.holds(res)


def walled(limit: float, hole: float) -> Any:
    """Rosenbrock's function without a value beyond a wall and in a disc."""

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = rosenbrock(x)
        if x[1] > limit or np.sum((x - 0.3) ** 2) < hole**2:
            return NAN, np.full_like(x, NAN)
        return value, gradient

    return fun


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("limit", "hole"), [(1.5, 0.0), (1.2, 0.15), (1.0, 0.3)])
def test_best_point_near_nan(rule: str, limit: float, hole: float) -> None:
    calls = Recorder(walled(limit, hole))
    res = lx.minimize(calls, ROSENBROCK.x0, maxfun=400, gtol=1e-6, **with_rule(rule))
    calls.holds(res)
    assert math.isfinite(res.fun)
    if rule != "fixed" and hole == 0.0:
        stops(res, Status.GRADIENT)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("rule", RULES)
def test_only_the_start_is_finite(rule: str, bad: float) -> None:
    """A trial that is not finite never counts as settled, whatever the tolerances."""
    x0 = np.zeros(3)

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = bowl(x)
        return (value, gradient) if np.all(x == 0.0) else (bad, gradient * NAN)

    calls = Recorder(fun)
    res = lx.minimize(
        calls, x0, ftol=1e3, xtol=1e3, gtol=1e-6, maxfun=500, **with_rule(rule)
    )
    assert res.success is False
    np.testing.assert_array_equal(res.x, x0)
    assert res.fun == 14.0
    assert math.isfinite(res.gradient_norm)


@pytest.mark.parametrize("rule", RULES)
def test_only_the_start_is_finite_and_is_not_zero(rule: str) -> None:
    """Steps too short to change x find the value of the start again: not settled either."""
    x0 = np.asarray([3.0, -4.0, 7.0])

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = bowl(x)
        return (value, gradient) if np.all(x == x0) else (NAN, gradient * NAN)

    res = lx.minimize(fun, x0, ftol=1e3, xtol=1e3, maxfun=500, **with_rule(rule))
    assert res.success is False
    np.testing.assert_array_equal(res.x, x0)


def test_value_without_a_gradient_is_not_taken() -> None:
    """A finite, low value whose gradient is NaN is not a point to return as a success."""

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = bowl(x)
        return value, gradient if np.all(x == 0.0) else gradient * NAN

    res = lx.minimize(fun, np.zeros(2), jac=True, ftol=1e3, xtol=1e3, maxfun=200)
    assert res.success is False


# --- auxiliary output, callbacks ---------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_aux_is_that_of_the_best_point(rule: str) -> None:
    def fun(x: np.ndarray) -> Any:
        value, gradient = rosenbrock(x)
        return (value, {"at": x.copy(), "note": f"{float(value)!r}"}), gradient

    for maxfun in (1, 2, 3, 4, 7, 20, 200):
        res = lx.minimize(fun, ROSENBROCK.x0, has_aux=True, maxfun=maxfun, **with_rule(rule))
        np.testing.assert_array_equal(res.aux["at"], res.x)
        assert res.aux["note"] == repr(res.fun)


@pytest.mark.parametrize("method", ["lbfgs", "adam", [lx.Adam(0.1).until(maxiter=3), lx.LBFGS()]])
def test_aux_that_is_none_at_first(backend: Backend, method: Any) -> None:
    calls = 0

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return backend.xp.sum((x - 1.0) ** 2), None if calls == 1 else x * 2.0

    how: dict[str, Any] = {"jac": lambda x: 2.0 * (x - 1.0), "has_aux": True, "method": method}
    x0 = backend.asarray([0.0, 3.0])
    assert lx.minimize(fun, x0, maxfun=1, **how).aux is None
    calls = 0
    res = lx.minimize(fun, x0, maxiter=20, **how)
    x, aux = backend.to_numpy(res.x), backend.to_numpy(res.aux)
    assert calls > 1 and np.array_equal(aux, 2.0 * x)


def test_aux_with_each_form_of_the_gradient(backend: Backend) -> None:
    xp = backend.xp
    one = backend.asarray([1.0, 2.0])

    def fun(x: Any) -> Any:
        return xp.sum((x - one) ** 2), xp.sum(x)

    forms: list[Any] = [lambda x: 2.0 * (x - one), "3-point"]
    for jac in forms + [None] * backend.has_autodiff:
        res = lx.minimize(fun, backend.asarray([0.0, 0.0]), jac=jac, has_aux=True)
        assert res.success
        if backend.is_torch:
            assert not res.aux.requires_grad  # like the value, which is no longer differentiated
        assert float(res.aux) == pytest.approx(3.0, abs=1e-5)
    assert lx.minimize(lambda x: fun(x)[0], one, jac=forms[0]).aux is None


def test_record(backend: Backend) -> None:
    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float64")
    records: list[lx.Record] = []
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, callback=records.append, gtol=1e-8)
    assert [r.nit for r in records] == list(range(1, res.nit + 1))
    assert all(a.nfev < b.nfev for a, b in zip(records, records[1:], strict=False))
    assert records[-1].nfev == res.nfev
    before = p.x0
    for record in records:
        assert record._fields == ("x", "fun", "gradient_norm", "step", "nit", "nfev")
        for number in (record.fun, record.gradient_norm, record.step):
            assert type(number) is float
        assert type(record.nit) is type(record.nfev) is int
        assert type(record.x) is type(p.x0) and record.x.device == p.x0.device
        value, gradient = p.value_and_gradient(record.x)
        assert record.fun == pytest.approx(float(value), rel=1e-12, abs=1e-300)
        norm = np.max(np.abs(backend.to_numpy(gradient)))
        assert record.gradient_norm == pytest.approx(norm, rel=1e-12)
        assert record.step > 0.0
        assert not np.array_equal(backend.to_numpy(record.x), backend.to_numpy(before))
        before = record.x


def test_records_are_not_overwritten() -> None:
    """A callback may keep the records it is given."""
    kept: list[tuple[np.ndarray, bytes]] = []
    lx.minimize(
        rosenbrock, ROSENBROCK.x0, jac=True,
        callback=lambda record: kept.append((record.x, record.x.tobytes())),
    )
    assert all(x.tobytes() == then for x, then in kept)


def test_progress_shows_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    res = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, progress=True)
    assert res.success
    assert "iteration" in capsys.readouterr().out


def test_progress_in_a_notebook_needs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    res = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, progress=True)
    assert f"iteration {res.nit}" in shown[-1]


# --- parameters of all kinds -------------------------------------------------------------------


@dataclasses.dataclass
class Line:
    slope: Any
    offset: Any


def nested(kind: str, a: Any, b: Any) -> Any:
    return {
        "dict": {"a": a, "b": b},
        "list": [a, b],
        "tuple": (a, b),
        "dataclass": Line(a, b),
        "deep": {"z": [a], "y": (Line(b, b * 1.0), {})},
    }[kind]


def leaves_of(kind: str, tree: Any) -> tuple[Any, Any]:
    if kind == "dict":
        return tree["a"], tree["b"]
    if kind == "dataclass":
        return tree.slope, tree.offset
    if kind == "deep":
        return tree["z"][0], tree["y"][0].slope
    return tree[0], tree[1]


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["dict", "list", "tuple", "dataclass", "deep"])
def test_nested_parameters(backend: Backend, kind: str) -> None:
    xp = backend.xp
    wanted = backend.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def fun(tree: Any) -> Any:
        a, b = leaves_of(kind, tree)
        assert tuple(a.shape) == (2, 3) and tuple(b.shape) == ()
        value = xp.sum((a - wanted) ** 2) + (b + 7.0) ** 2
        if kind == "deep":
            value = value + (tree["y"][0].offset - 1.0) ** 2
        return value

    def gradient(tree: Any) -> Any:
        a, b = leaves_of(kind, tree)
        out = nested(kind, 2.0 * (a - wanted), 2.0 * (b + 7.0))
        if kind == "deep":
            out["y"][0].offset = 2.0 * (tree["y"][0].offset - 1.0)
        return out

    x0 = nested(kind, backend.asarray(np.zeros((2, 3))), backend.asarray(0.0))
    for jac in [gradient, "2-point", *([None] if backend.has_autodiff else [])]:
        res = lx.minimize(fun, x0, jac=jac, gtol=1e-5)
        assert res.success
        assert type(res.x) is type(x0) and type(res.jac) is type(x0)
        a, b = leaves_of(kind, res.x)
        assert type(a) is type(wanted) and a.dtype == wanted.dtype and a.device == wanted.device
        assert tuple(a.shape) == (2, 3) and tuple(b.shape) == ()
        np.testing.assert_allclose(backend.to_numpy(a), backend.to_numpy(wanted), atol=1e-4)
        assert float(b) == pytest.approx(-7.0, abs=1e-4)
        assert tuple(leaves_of(kind, res.jac)[0].shape) == (2, 3)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 4), (2, 1, 3)])
def test_shapes(backend: Backend, shape: tuple[int, ...]) -> None:
    xp = backend.xp
    x0 = backend.asarray(np.zeros(shape))

    def fun(x: Any) -> tuple[Any, Any]:
        assert tuple(x.shape) == shape
        return xp.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)

    res = lx.minimize(fun, x0, jac=True)
    assert res.status is Status.GRADIENT
    for array in (res.x, res.jac):
        assert tuple(array.shape) == shape
        assert array.dtype == x0.dtype and array.device == x0.device
    np.testing.assert_allclose(backend.to_numpy(res.x), 3.0, atol=1e-7)
    size = max(1, math.prod(shape))
    assert tuple(res.hess_inv.shape) == (size, size)


def test_numbers_and_lists_become_numpy_arrays() -> None:
    res = lx.minimize(lambda x: ((x - 3.0) ** 2, 2.0 * (x - 3.0)), 1.0, jac=True)
    assert isinstance(res.x, np.ndarray) and res.x.shape == ()
    assert float(res.x) == pytest.approx(3.0)
    res = lx.minimize(bowl, [0.0, 0.0], jac=True)
    np.testing.assert_allclose(res.x, [1.0, 2.0])
    res = lx.minimize(bowl, np.float64(0.5) * np.ones(1), jac=True)
    np.testing.assert_allclose(res.x, [1.0])


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["complex128", "complex64"])
@pytest.mark.parametrize("form", ["both", "separate", "3-point", "autodiff"])
def test_complex_least_squares(backend: Backend, form: str, dtype: str) -> None:
    """|A z - b|^2 with the gradient 2 A^H (A z - b), which is df/d(re) + i df/d(im)."""
    if form == "autodiff" and not backend.has_autodiff:
        pytest.skip(f"{backend} has no automatic differentiation")
    xp = backend.xp
    rng = np.random.default_rng(3)
    A = rng.normal(size=(6, 3)) + 1j * rng.normal(size=(6, 3))
    b = rng.normal(size=6) + 1j * rng.normal(size=6)
    rows, right = backend.asarray(A, dtype), backend.asarray(b, dtype)
    back = backend.asarray(np.conj(A.T), dtype)

    def value(z: Any) -> Any:
        r = rows @ z - right
        return xp.sum(xp.real(r) ** 2 + xp.imag(r) ** 2)

    def gradient(z: Any) -> Any:
        return 2.0 * (back @ (rows @ z - right))

    fun: Any = (lambda z: (value(z), gradient(z))) if form == "both" else value
    jac = {"both": True, "separate": gradient, "3-point": "3-point", "autodiff": None}[form]
    z0 = backend.asarray(np.ones(3), dtype)
    res = lx.minimize(fun, z0, jac=jac, gtol=1e-6 if dtype == "complex128" else 1e-3)
    assert res.success
    assert type(res.x) is type(z0) and res.x.dtype == z0.dtype and res.x.device == z0.device
    assert res.jac.dtype == z0.dtype
    wanted = np.linalg.lstsq(A, b, rcond=None)[0]
    atol = 1e-5 if dtype == "complex128" else 2e-2 if form == "3-point" else 1e-3
    np.testing.assert_allclose(backend.to_numpy(res.x), wanted, atol=atol)
    residual = A @ wanted - b
    assert res.fun == pytest.approx(float(np.vdot(residual, residual).real), rel=1e-4)


def test_complex_and_real_leaves_together(backend: Backend) -> None:
    xp = backend.xp

    def fun(tree: Any) -> Any:
        z, t = tree["z"], tree["t"]
        dz, dt = z - (1.0 + 2.0j), t - 3.0
        value = xp.sum(xp.real(dz) ** 2 + xp.imag(dz) ** 2) + xp.sum(dt * dt)
        return value, {"z": 2.0 * dz, "t": 2.0 * dt}

    x0 = {"z": backend.asarray(np.zeros(2), "complex128"), "t": backend.asarray(np.zeros(3))}
    res = lx.minimize(fun, x0, jac=True)
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x["z"]), 1.0 + 2.0j, atol=1e-7)
    np.testing.assert_allclose(backend.to_numpy(res.x["t"]), 3.0, atol=1e-7)


# --- float32 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reproducible", [False, True])
def test_float32_rosenbrock(backend: Backend, reproducible: bool) -> None:
    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float32")
    for gtol in (None, 0.0):
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, gtol=gtol, reproducible=reproducible
        )
        assert res.status in (Status.GRADIENT, Status.PRECISION)
        assert res.x.dtype == p.x0.dtype and res.jac.dtype == p.x0.dtype
        np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=2e-2)


@pytest.mark.parametrize("gtol", [None, 1e-6, 0.0])
@pytest.mark.parametrize("offset", [1e2, 1e4, -1e6])
def test_float32_differences_drown(backend: Backend, offset: float, gtol: float | None) -> None:
    """A quadratic with an offset: near the minimum the values are all the same."""
    xp = backend.xp
    weights = backend.asarray(np.geomspace(0.1, 10.0, 12), "float32")

    def fun(x: Any) -> tuple[Any, Any]:
        return xp.sum(weights * x * x) + offset, 2.0 * weights * x

    x0 = backend.asarray(np.linspace(-1.0, 2.0, 12), "float32")
    res = lx.minimize(fun, x0, jac=True, gtol=gtol)
    assert res.success
    assert res.status in (Status.GRADIENT, Status.PRECISION)
    assert res.nfev < 200
    # The slopes are more accurate, and lead far below where the values alone would.
    if offset == 1e2:
        assert res.gradient_norm < 1e-2


@pytest.mark.parametrize("name", ["quadratic", "logistic_regression", "exponential_decay"])
@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("fixed", "armijo")])
def test_float32_ends_well(name: str, rule: str) -> None:
    p = problems.ALL[name](dtype="float32")
    res = lx.minimize(p.value_and_gradient, p.x0, gtol=0.0, **with_rule(rule))
    assert res.status in (Status.GRADIENT, Status.PRECISION)
    assert res.gradient_norm < 1e-2
    assert res.nfev < 1000


# --- ownership of arrays -----------------------------------------------------------------------


def test_x0_is_left_alone(backend: Backend) -> None:
    p = problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    x0 = backend.asarray(backend.to_numpy(p.x0))
    before = backend.to_numpy(x0).tobytes()
    for maxiter in (0, 1, None):
        res = lx.minimize(p.value_and_gradient, x0, jac=True, maxiter=maxiter)
        assert backend.to_numpy(x0).tobytes() == before
        assert res.x is not x0 or backend.is_jax  # JAX arrays cannot change
        assert type(res.x) is type(x0)
        assert res.x.dtype == x0.dtype and res.x.device == x0.device
        assert type(res.fun) is float and type(res.nit) is int and type(res.nfev) is int
        assert type(res.success) is bool


@pytest.mark.parametrize("maxiter", [0, 3])
def test_result_shares_nothing_with_x0(maxiter: int) -> None:
    import torch

    x0 = np.asarray([-1.2, 1.0])
    res = lx.minimize(rosenbrock, x0, jac=True, maxiter=maxiter)
    assert not np.shares_memory(res.x, x0)
    tree = {"a": np.asarray([-1.2]), "b": np.asarray(1.0)}

    def fun(t: Any) -> Any:
        value, g = rosenbrock(np.asarray([t["a"][0], t["b"]]))
        return value, {"a": g[:1], "b": g[1]}

    res = lx.minimize(fun, tree, jac=True, maxiter=maxiter)
    assert not np.shares_memory(res.x["a"], tree["a"])
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    p = problems.rosenbrock(2, xp=torch)
    res = lx.minimize(p.value_and_gradient, start, jac=True, maxiter=maxiter)
    assert res.x.data_ptr() != start.data_ptr()


def test_gradient_that_is_x_itself(backend: Backend) -> None:
    xp = backend.xp
    res = lx.minimize(
        lambda x: (0.5 * xp.sum(x * x), x), backend.asarray([3.0, -1.0]), jac=True
    )
    assert res.status is Status.GRADIENT
    np.testing.assert_allclose(backend.to_numpy(res.x), 0.0, atol=1e-7)


@pytest.mark.parametrize("nested_x0", [False, True])
def test_gradient_buffer_is_reused(nested_x0: bool) -> None:
    """fun reuses the same arrays for gradient and value."""
    p = problems.chained_rosenbrock(6)
    g, f = np.empty(6), np.empty(())

    def fun(x: Any) -> Any:
        f[...], g[:] = p.value_and_gradient(x[0] if nested_x0 else x)
        return f, [g] if nested_x0 else g

    def settings() -> dict[str, Any]:
        return {"jac": True, "gtol": 1e-8}

    res = lx.minimize(fun, [p.x0] if nested_x0 else p.x0, **settings())
    wanted = lx.minimize(p.value_and_gradient, p.x0, **settings())
    assert res.status is Status.GRADIENT
    assert (res.nit, res.nfev, res.fun) == (wanted.nit, wanted.nfev, wanted.fun)
    g[:], f[...] = NAN, NAN
    np.testing.assert_array_equal(res.jac[0] if nested_x0 else res.jac, wanted.jac)


def test_torch_gradient_buffer_is_reused() -> None:
    import torch

    p = problems.chained_rosenbrock(6, xp=torch)
    buffer = torch.empty(6, dtype=torch.float64)

    def fun(x: Any) -> Any:
        value, gradient = p.value_and_gradient(x)
        buffer.copy_(gradient)
        return value, buffer

    res = lx.minimize(fun, p.x0, jac=True, gtol=1e-8)
    wanted = lx.minimize(p.value_and_gradient, p.x0, jac=True, gtol=1e-8)
    assert (res.nit, res.nfev, res.fun) == (wanted.nit, wanted.nfev, wanted.fun)


def test_torch_parameters_that_require_a_gradient() -> None:
    import torch

    p = problems.rosenbrock(2, xp=torch)
    x0 = p.x0.clone().requires_grad_(True)
    for jac in (None, p.gradient):
        res = lx.minimize(p.fun, x0, jac=jac)
        assert res.success
        assert not res.x.requires_grad and not res.jac.requires_grad
        assert x0.grad is None


# --- forms of the gradient ---------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("form", ["both", "separate", "autodiff", "2-point", "3-point"])
def test_forms_of_the_gradient(backend: Backend, form: str) -> None:
    if form == "autodiff" and not backend.has_autodiff:
        pytest.skip(f"{backend} has no automatic differentiation")
    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float64")
    count = 0

    def counted(x: Any) -> Any:
        nonlocal count
        count += 1
        return p.value_and_gradient(x) if form == "both" else p.fun(x)

    jac: Any = {"both": True, "separate": p.gradient, "autodiff": None}.get(form, form)
    res = lx.minimize(counted, p.x0, jac=jac, gtol=1e-5)
    assert res.success
    assert res.nfev == count
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=1e-3)
    assert type(res.x) is type(p.x0) and res.x.dtype == p.x0.dtype
    assert res.x.device == p.x0.device


def test_args_reach_fun_and_jac(backend: Backend) -> None:
    xp = backend.xp
    c = backend.asarray([1.0, -2.0])

    def fun(x: Any, c: Any, k: float) -> Any:
        return k * xp.sum((x - c) ** 2)

    def jac(x: Any, c: Any, k: float) -> Any:
        return 2.0 * k * (x - c)

    x0 = backend.asarray([0.0, 0.0])
    for form in (jac, "3-point"):
        res = lx.minimize(fun, x0, (c, 3.0), jac=form)
        np.testing.assert_allclose(backend.to_numpy(res.x), backend.to_numpy(c), atol=1e-6)


def test_finite_differences_converge_like_the_gradient() -> None:
    p = problems.rosenbrock(4)
    exact = lx.minimize(p.fun, p.x0, jac=p.gradient, gtol=1e-4)
    for jac, each in (("2-point", 5), ("3-point", 9)):
        res = lx.minimize(p.fun, p.x0, jac=jac, gtol=1e-4)
        assert res.success
        # Five values at the end show that the function is smooth, and one more, on the opposite
        # side, where a difference has met a lower value.
        assert (res.nfev - 5) % each in (0, 1)
        assert res.nfev / each <= 1.5 * exact.nfev


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_forward_differences_give_way_to_central_ones(method: str) -> None:
    """Near a minimum the error of forward differences exceeds the gradient: searches with them
    fail, or continue for thousands of evaluations."""
    p = problems.quadratic(6, spectrum=np.logspace(0.0, 3.0, 6))
    starts = np.random.default_rng(0).normal(size=(10, 6))
    most = 1000
    for x0 in starts:
        res = lx.minimize(p.fun, x0, jac="2-point", method=method)
        assert res.status is Status.GRADIENT and res.nfev < most
        np.testing.assert_allclose(res.x, p.x_min, atol=1e-5)
        for maxfun in range(300, 400, 9):
            part = lx.minimize(p.fun, x0, jac="2-point", method=method, maxfun=maxfun)
            assert part.nfev <= maxfun
    batch = lx.minimize(p.fun, starts, jac="2-point", method=method, batched=True)
    assert np.all(batch.status == Status.GRADIENT) and np.max(batch.nfev) < most
    np.testing.assert_allclose(batch.x, np.broadcast_to(p.x_min, starts.shape), atol=1e-5)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_what_differences_cannot_tell_is_no_failure(method: str, jac: str) -> None:
    """Such searches are ended by the error of the differences, not by the function, and soon."""
    a = np.linspace(0.5, 2.0, 100)

    def fun(x: np.ndarray, a: np.ndarray) -> Any:
        return (a[:, 0] - x[:, 0]) ** 2 + 100.0 * (x[:, 1] - x[:, 0] ** 2) ** 2

    res = lx.minimize(
        fun, np.full((100, 2), -1.0), (a[:, None],), jac=jac, method=method, batched=True
    )
    assert res.success.all() and np.max(res.nfev) <= 420
    np.testing.assert_allclose(res.x[:, 0], a, atol=1e-4)


def test_going_on_with_central_differences() -> None:
    p = problems.quadratic(6, spectrum=np.logspace(0.0, 3.0, 6))
    x0 = np.random.default_rng(0).normal(size=6)
    for count in (10, 30, 40, 44):
        whole = lx.minimize(p.fun, x0, jac="2-point", maxiter=count + 4)
        part = lx.minimize(p.fun, x0, jac="2-point", maxiter=count)
        rest = lx.minimize(p.fun, part.x, jac="2-point", maxiter=4, state=part.state)
        np.testing.assert_array_equal(rest.x, whole.x)


@pytest.mark.parametrize("batched", [False, True])
def test_central_differences_at_the_end_of_the_domain(batched: bool) -> None:
    """They would reach points where the function has no value, and go to one side there."""
    def fun(x: np.ndarray) -> Any:
        return np.where(np.all(x >= 0.0, axis=-1), np.sum(x, axis=-1), np.nan)[()]

    x0 = np.asarray([[1.0], [2.0]]) if batched else np.asarray([1.0])
    res = lx.minimize(fun, x0, jac="2-point", batched=batched)
    assert np.all(res.status == Status.LINE_SEARCH)
    np.testing.assert_allclose(res.jac, np.ones(x0.shape), rtol=1e-15)
    np.testing.assert_allclose(res.gradient_norm, 1.0, rtol=1e-15)
    assert np.all(res.x >= 0.0)


def test_central_differences_of_one_row_are_not_those_of_others() -> None:
    p = problems.quadratic(6, spectrum=np.logspace(0.0, 3.0, 6))
    x0 = np.stack([np.zeros(6) + p.x_min, np.random.default_rng(0).normal(size=6)])
    sizes = []

    def fun(x: np.ndarray) -> Any:
        sizes.append(len(x))
        return p.fun(x)

    res = lx.minimize(fun, x0, jac="2-point", batched=True)
    assert res.success.all() and sum(sizes) <= 1.1 * np.sum(res.nfev)


def test_central_differences_come_with_the_best_point_and_its_aux() -> None:
    p = problems.rosenbrock(10)
    counts: list[int] = []

    def fun(x: np.ndarray) -> Any:
        counts.append(len(counts))
        return p.fun(x), x.copy()

    res = lx.minimize(fun, p.x0, jac="2-point", has_aux=True)
    assert res.success and res.nfev == len(counts)
    np.testing.assert_array_equal(res.aux, res.x)
    np.testing.assert_allclose(res.jac, p.gradient(res.x), atol=1e-6)


def test_float32_finite_differences() -> None:
    p = problems.quadratic(n=3, spectrum=[1.0, 2.0, 4.0], dtype="float32")
    for jac, gtol in (("2-point", 2e-2), ("3-point", 1e-2)):
        res = lx.minimize(p.fun, p.x0, jac=jac, gtol=gtol)
        assert res.success
        np.testing.assert_allclose(res.x, p.x_min, atol=2e-2)


@pytest.mark.parametrize("maxfun", [1, 3, 4, 10, 50])
def test_maxfun_counts_the_evaluations_of_differences(maxfun: int) -> None:
    """A gradient by finite differences is not begun if the budget does not cover all of it."""
    calls = 0

    def fun(x: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        return ROSENBROCK.fun(x)

    res = lx.minimize(fun, ROSENBROCK.x0, jac="2-point", maxfun=maxfun)
    assert res.nfev == calls <= max(maxfun, 3)


# --- resuming ----------------------------------------------------------------------------------


def same_run(backend: Backend, a: lx.Result, b: lx.Result) -> None:
    """Check for the same bits at the best point and at the last iterate."""
    for of in (
        lambda r: r.x, lambda r: r.jac, lambda r: r.state.solver_state.x,
        lambda r: r.state.solver_state.gradient, lambda r: r.state.solver_state.trial,
        lambda r: r.hess_inv.todense(),
    ):
        assert backend.to_numpy(of(a)).tobytes() == backend.to_numpy(of(b)).tobytes()


# A batch is slow on JAX and array_api_strict: one mode and one device of each are enough.
TWICE = [(b, False, r) for b in CPU for r in (False, True)]
TWICE += [(b, True, False) for b in CPU if b is not Backend.STRICT]
TWICE += [(b, True, True) for b in (Backend.NUMPY, Backend.TORCH)]


@pytest.mark.sampled
@pytest.mark.parametrize(("backend_", "batched", "reproducible"), TWICE)
def test_thirty_and_thirty_are_sixty(backend_: Backend, batched: bool, reproducible: bool) -> None:
    p = problems.chained_rosenbrock(
        12, xp=backend_.xp, device=backend_.device, dtype="float64", reproducible=reproducible
    )
    x0 = p.starts(3) if batched else p.x0
    run: dict[str, Any] = {
        "jac": True, "batched": batched, "reproducible": reproducible, "gtol": 0.0
    }
    half = lx.minimize(p.value_and_gradient, x0, maxiter=30, **run)
    whole = lx.minimize(p.value_and_gradient, x0, maxiter=60, **run)
    for _ in range(2):  # a state may be used twice
        rest = lx.minimize(p.value_and_gradient, half.x, maxiter=30, state=half.state, **run)
        same_run(backend_, rest, whole)
        wanted = np.full(3, 30) if batched else 30
        nit = backend_.to_numpy(rest.nit) if batched else rest.nit
        np.testing.assert_array_equal(nit, wanted)


@pytest.mark.parametrize("maxfun", range(1, 30))
def test_going_on_within_a_search(maxfun: int) -> None:
    p = problems.rosenbrock(2)
    run: dict[str, Any] = {"jac": True, "gtol": 1e-8}
    half = lx.minimize(p.value_and_gradient, p.x0, maxfun=maxfun, **run)
    rest = lx.minimize(p.value_and_gradient, half.x, state=half.state, **run)
    whole = lx.minimize(p.value_and_gradient, p.x0, **run)
    same_run(Backend.NUMPY, rest, whole)
    # The iterate is evaluated once more.
    assert half.nfev + rest.nfev == whole.nfev + 1


@pytest.mark.parametrize("backend_", CPU, ids=str)
def test_warm_start_elsewhere(backend_: Backend) -> None:
    p = problems.quadratic(xp=backend_.xp, device=backend_.device, dtype="float64")
    solver = lx.LBFGS(memory_size=20)
    run: dict[str, Any] = {"jac": True, "method": solver, "gtol": 1e-6}
    first = lx.minimize(p.value_and_gradient, p.x0, **run)
    x0 = p.x0 + 5.0
    cold = lx.minimize(p.value_and_gradient, x0, **run)
    warm = [lx.minimize(p.value_and_gradient, x0, state=first.state, **run) for _ in range(2)]
    assert warm[0].success and cold.success
    assert warm[0].nfev < cold.nfev
    np.testing.assert_allclose(
        backend_.to_numpy(warm[0].x), backend_.to_numpy(p.x_min), atol=1e-5
    )
    same_run(backend_, *warm)


def test_warm_start_with_another_function() -> None:
    first = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True)
    res = lx.minimize(bowl, np.asarray([-1.2, 1.0]), jac=True, state=first.state)
    stops(res, Status.GRADIENT)
    np.testing.assert_allclose(res.x, [1.0, 2.0], atol=1e-6)
    # Even from the very point at which the other run ended.
    res = lx.minimize(bowl, first.x, jac=True, state=first.state)
    stops(res, Status.GRADIENT)
    np.testing.assert_allclose(res.x, [1.0, 2.0], atol=1e-6)


def test_state_survives_the_runs_it_starts() -> None:
    p = problems.chained_rosenbrock(8)
    half = lx.minimize(p.value_and_gradient, p.x0, jac=True, maxiter=20)
    before = half.hess_inv.todense().tobytes(), half.x.tobytes()
    lx.minimize(p.value_and_gradient, half.x, jac=True, state=half.state)
    lx.minimize(p.value_and_gradient, half.x + 1.0, jac=True, state=half.state)
    assert (half.hess_inv.todense().tobytes(), half.x.tobytes()) == before


@pytest.mark.parametrize("x0", [np.zeros(3), np.zeros(2, np.float32)], ids=["size", "dtype"])
def test_state_of_other_variables_is_refused(x0: np.ndarray) -> None:
    state = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, maxiter=3).state
    with pytest.raises(ValueError, match="state belongs to other variables.*wanted"):
        lx.minimize(bowl, x0, jac=True, state=state)


def test_state_of_another_library_is_refused() -> None:
    jax = pytest.importorskip("jax")
    state = lx.minimize(bowl, np.zeros(3, np.float32), jac=True, maxiter=3).state
    wanted = r"variables: numpy, float32, \(3,\); wanted jax, float32, \(3,\), like x0"
    with pytest.raises(ValueError, match=wanted):
        lx.minimize(bowl, jax.numpy.zeros(3, "float32"), jac=True, state=state)


def test_state_of_another_memory_size_is_refused() -> None:
    state = lx.minimize(rosenbrock, ROSENBROCK.x0, jac=True, maxiter=3).state
    with pytest.raises(ValueError, match="10 pairs; wanted .*memory_size=4"):
        lx.minimize(
            rosenbrock, ROSENBROCK.x0, jac=True, state=state, method=lx.LBFGS(memory_size=4)
        )


def test_state_of_a_batch_is_refused_by_one_problem() -> None:
    p = problems.rosenbrock(2)
    state = lx.minimize(p.value_and_gradient, p.starts(3), jac=True, batched=True).state
    with pytest.raises(ValueError, match="state belongs to other variables: .*3, 2.*; wanted"):
        lx.minimize(p.value_and_gradient, p.x0, jac=True, state=state)
    with pytest.raises(ValueError, match="state belongs to other variables: .*3, 2.*; wanted"):
        # The same numbers, as one problem of 6 variables in a 2-d array.
        lx.minimize(bowl, np.zeros((3, 2)), jac=True, state=state)


@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_the_result_is_the_users_own(batched: bool) -> None:
    """Changing x and the gradient of a result in place does not change its state."""
    problem = lx.problems.rosenbrock(4)
    x0 = np.stack([problem.x0] * 3) if batched else problem.x0

    def fun(x: Any) -> Any:
        a, b = x[..., ::2], x[..., 1::2]
        t, u = b - a * a, 1.0 - a
        gradient = np.stack([-400.0 * a * t - 2.0 * u, 200.0 * t], axis=-1)
        return np.sum(100.0 * t * t + u * u, axis=-1), np.reshape(gradient, x.shape)

    how: dict[str, Any] = {"jac": True, "batched": batched}
    first = lx.minimize(fun, x0, maxiter=5, **how)
    start = first.x.copy()
    wanted = lx.minimize(fun, start, maxiter=5, state=first.state, **how)
    x = first.x
    x += 0.5
    first.jac[...] = 1.0
    again = lx.minimize(fun, start, maxiter=5, state=first.state, **how)
    np.testing.assert_array_equal(again.x, wanted.x)
    # A run from the changed x starts at that x.
    moved = lx.minimize(fun, x, maxiter=0, state=first.state, **how)
    np.testing.assert_array_equal(moved.fun, fun(x)[0])
