"""Looks confirm that rounding has ended a run: value and gradient agree around the iterate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.run import agreement
from tests.backends import Backend

METHODS = ["lbfgs", "bfgs", "gradient_descent", "projected_gradient"]


def statuses(res: lx.Result) -> list[Status]:
    return [Status(int(code)) for code in np.atleast_1d(np.asarray(res.status))]


# --- one look -----------------------------------------------------------------------------------


def look(fun: Any, x: float, to: float) -> agreement.Look:
    here, there = np.asarray([x]), np.asarray([to])
    value, gradient = fun(here)
    state = SimpleNamespace(x=here, value=float(value), gradient=gradient)
    return agreement.look(Space(here), state, there, *fun(there))


def test_a_right_gradient_agrees_up_and_down() -> None:
    def fun(x: np.ndarray) -> Any:
        return np.sum(x**4), 4.0 * x**3

    down, up = look(fun, 1.0, 1.0 - 1e-8), look(fun, 1e-5, -1.1e-5)
    assert down.agrees and down.visible and down.lower
    assert up.agrees and not up.lower


@pytest.mark.parametrize("step", [1e-4, 1e-8, 1e-12])
def test_what_disagrees_does_so_over_any_step(step: float) -> None:
    def wrong(x: np.ndarray) -> Any:
        return np.sum(x), -np.ones_like(x)

    def kink(x: np.ndarray) -> Any:
        return np.sum(np.abs(x - 1.0)), np.sign(x - 1.0)

    def jump(x: np.ndarray) -> Any:
        return np.sum(x + (x < 1.0)), np.ones_like(x)

    def end(x: np.ndarray) -> Any:
        return (np.sum(x) if x[0] >= 1.0 else np.nan), np.ones_like(x)

    for found in (
        look(wrong, 1.0, 1.0 + step), look(kink, 1.0 + 0.1 * step, 1.0 - step),
        look(jump, 1.0, 1.0 - step), look(end, 1.0, 1.0 - step),
    ):
        assert found.visible and not found.agrees


def test_what_rounding_hides_is_not_visible() -> None:
    def fun(x: np.ndarray) -> Any:
        return 1e9 + np.sum(x * x), 2.0 * x

    found = look(fun, 1e-3, 0.9e-3)
    assert found.agrees and not found.visible and not found.lower


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lengths_go_down_to_the_rounding_of_x(dtype: Any) -> None:
    eps = float(np.finfo(dtype).eps)
    lengths = agreement.lengths_of(eps)
    assert lengths[0] == eps**0.5 and 8.0 * eps < lengths[-1] <= 32.0 * 8.0 * eps
    assert lengths == sorted(lengths, reverse=True)


def test_ahead_is_that_far_down_the_gradient(backend: Backend) -> None:
    x = backend.asarray([[3.0, 4.0], [0.0, 0.0]])
    gradient = backend.asarray([[1.0, -2.0], [1e-300, 0.0]])
    space = Space(x, batched=True)
    extent = space.read_one(space.max_abs(x)) + backend.asarray([0.0, 1e-2])
    point = agreement.ahead(lx.LBFGS(), space, x, gradient, extent, 1e-3)
    step = backend.to_numpy(point - x)
    np.testing.assert_allclose(step[0], [-2e-3, 4e-3], rtol=1e-9)
    # At 0 the distance is relative to where the run began.
    np.testing.assert_allclose(step[1], [-1e-3 * 1e-2 * np.finfo(np.float64).eps ** 0.25, 0.0])


# --- in a run -----------------------------------------------------------------------------------


class Counted:
    def __init__(self, fun: Any, at: int = 0, error: BaseException | None = None):
        self.fun, self.calls, self.at, self.error = fun, 0, at, error

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == self.at and self.error is not None:
            raise self.error
        return self.fun(*args)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [4, 6, 10])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_a_wrong_gradient_is_no_precision_floor(method: str, power: int, batched: bool) -> None:
    def fun(x: np.ndarray) -> Any:
        gradient = power * x ** (power - 1) - np.asarray([1.0, 0.0])
        return np.sum(x**power, axis=-1) + x[..., 0], gradient

    for start in (10.0, 1e2, 1e4, 1e6):
        x0 = np.full((2, 2) if batched else (2,), start)
        res = lx.minimize(
            fun, x0, jac=True, method=method, batched=batched, maxfun=5000, gtol=1e-8
        )
        assert set(statuses(res)) == {Status.LINE_SEARCH}


@pytest.mark.parametrize("lacks", ["a variable", "a term", "the right place"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("method", METHODS[:2])
def test_a_wrong_gradient_that_vanishes(method: str, batched: bool, lacks: str) -> None:
    """Along itself it agrees with the values; across it the value falls."""
    units = np.asarray([1.0, 1e3, 1e-4])

    def fun(x: np.ndarray) -> Any:
        u = x / units - np.asarray([1.0, -2.0, 0.5])
        gradient = (2.0 * u + np.cumsum(u, axis=-1)) / units
        value = np.sum(u**2, axis=-1) + 0.5 * np.sum(u * np.cumsum(u, axis=-1), axis=-1)
        if lacks == "a variable":
            gradient = gradient * np.asarray([1.0, 0.0, 1.0])
        elif lacks == "a term":
            value = value + 0.1 * np.sum(np.exp(u), axis=-1)
        else:
            gradient = gradient + 0.2 / units
        return value, gradient

    x0 = units * np.asarray([3.0, 1.0, 2.0])
    x0 = np.stack([x0, 0.5 * x0]) if batched else x0
    res = lx.minimize(fun, x0, jac=True, method=method, batched=batched)
    assert set(statuses(res)) == {Status.LINE_SEARCH}


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("method", METHODS[:2])
def test_nor_is_a_kink(method: str, batched: bool, offset: float) -> None:
    weights = np.asarray([1.8, 59.9])

    def fun(x: np.ndarray) -> Any:
        return np.abs(x) @ weights + offset, weights * np.sign(x)

    x0 = np.asarray([1.2, -1.9])
    res = lx.minimize(
        fun, np.stack([x0, x0]) if batched else x0, jac=True, method=method, batched=batched
    )
    assert np.all(np.asarray(res.fun) - offset > 1.0)
    assert set(statuses(res)) == {Status.LINE_SEARCH}


@pytest.mark.parametrize("method", METHODS)
def test_nor_is_the_end_of_the_domain(method: str) -> None:
    def fun(x: np.ndarray) -> Any:
        return np.sum(np.where(x > 0.5, x**2 + x, np.nan)), 2.0 * x + 1.0

    with np.errstate(invalid="ignore"):
        res = lx.minimize(fun, np.asarray([1e4, 4e3]), jac=True, method=method, maxfun=50_000)
    assert res.status is Status.LINE_SEARCH and np.min(res.x) < 0.5 + 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_where_a_look_is_lower_the_run_goes_on(method: str, batched: bool) -> None:
    """On the steep part rounding hides the predicted decrease, though the flat part is ahead."""
    for start in ([1e3, 1.0], [1e6, 1.0]):
        x0 = np.asarray([start, start] if batched else start)
        res = lx.minimize(
            steep, x0, jac=True, method=method, batched=batched, maxfun=5000, gtol=1e-8
        )
        assert np.all(res.success) and np.all(res.fun < 1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS[:2])
def test_the_floor_itself_is_confirmed(backend: Backend, method: str, dtype: str) -> None:
    matrix = backend.asarray(MATRIX, dtype=dtype)
    shift = backend.asarray(SHIFT, dtype=dtype)

    def fun(x: Any) -> Any:
        product = matrix @ x
        return backend.xp.sum(x * (0.5 * product - shift)) + 1000.0, product - shift

    calls = Counted(fun)
    start = backend.asarray(np.linspace(-1.0, 1.0, SIZE), dtype=dtype)
    res = lx.minimize(calls, start, jac=True, method=method, gtol=0.0)
    assert res.status is Status.PRECISION and res.nfev == calls.calls
    atol = 0.1 if dtype == "float32" else 1e-5
    np.testing.assert_allclose(
        backend.to_numpy(res.x), np.linalg.solve(MATRIX, SHIFT), atol=atol
    )


# With this many numbers, rounding never leaves a gradient of 0.
SIZE = 12
ROTATION = np.linalg.qr(np.random.default_rng(4).normal(size=(SIZE, SIZE)))[0]
MATRIX = (ROTATION * np.logspace(0.0, 3.0, SIZE)) @ ROTATION.T
SHIFT = np.random.default_rng(5).normal(size=SIZE)


def floor(x: np.ndarray) -> Any:
    product = np.sum(MATRIX * x[..., None, :], axis=-1)
    return np.sum(x * (0.5 * product - SHIFT), axis=-1) + 1000.0, product - SHIFT


def are_paid_for(run: Any, fun: Any, start: np.ndarray, jac: Any) -> None:
    """The looks with which this run ends at the precision floor count towards its budget."""
    whole = run(fun, start, jac=jac, gtol=0.0)
    assert whole.status is Status.PRECISION
    for maxfun in range(1, whole.nfev + 1):
        calls = Counted(fun)
        res = run(calls, start, jac=jac, gtol=0.0, maxfun=maxfun)
        assert res.nfev == calls.calls <= maxfun
        assert res.status is (Status.EVALUATIONS if maxfun < whole.nfev else Status.PRECISION)


def test_looks_are_paid_for() -> None:
    are_paid_for(lx.minimize, floor, np.zeros(SIZE), True)


def test_the_time_of_looks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """If time is up when the run claims to be at the precision floor, time has ended the run."""
    whole = lx.minimize(floor, np.zeros(SIZE), jac=True, gtol=0.0)
    clock, calls = 0.0, 0

    def fun(x: np.ndarray) -> Any:
        nonlocal clock, calls
        calls += 1
        clock = 0.0 if calls < whole.nfev - 1 else 100.0
        return floor(x)

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    res = lx.minimize(fun, np.zeros(SIZE), jac=True, gtol=0.0, maxtime=10.0)
    assert res.status is Status.TIME and res.nfev == whole.nfev - 1


def looks(monkeypatch: pytest.MonkeyPatch) -> list[agreement.Look]:
    """The looks of all later runs."""
    seen: list[agreement.Look] = []
    for name in ("look", "look_again"):
        look = getattr(agreement, name)

        def watched(*args: Any, look: Any = look) -> agreement.Look:
            seen.append(look(*args))
            return seen[-1]

        monkeypatch.setattr(agreement, name, watched)
    return seen


def test_shorter_looks_pass_by_third_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """x is so large that the first look ends far up the other side."""
    def fun(x: np.ndarray) -> Any:
        u = 1.54 * (x.astype(np.float64) - 10_000.3335)
        return np.float32(np.sum(np.cosh(u))), (1.54 * np.sinh(u)).astype(np.float32)

    seen = looks(monkeypatch)
    res = lx.minimize(fun, np.asarray([10_001.0], dtype=np.float32), jac=True, gtol=0.0)
    assert res.status is Status.PRECISION and abs(res.x[0] - 10_000.3335) < 2e-3
    # Along the gradient; and then across it, where the value falls to neither side.
    assert [look.agrees for look in seen] == [False, True, False, False]


def test_an_end_within_a_look_loses_nothing() -> None:
    start = np.zeros(SIZE)
    whole = lx.minimize(floor, start, jac=True, gtol=0.0)
    stopped = lx.minimize(
        Counted(floor, whole.nfev, KeyboardInterrupt()), start, jac=True, gtol=0.0
    )
    assert stopped.status is Status.INTERRUPTED and stopped.nfev == whole.nfev - 1
    assert stopped.fun == whole.fun
    with pytest.raises(ZeroDivisionError) as caught:
        lx.minimize(Counted(floor, whole.nfev, ZeroDivisionError()), start, jac=True, gtol=0.0)
    res = caught.value.result  # type: ignore[attr-defined]
    assert res.status is Status.RUNNING and res.fun == whole.fun


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_confirmed_like_single_runs(method: str) -> None:
    """Some rows end at a small gradient, some at the precision floor, some at a wrong gradient."""
    wrong = np.asarray([0.0, 0.0, 1.0, 0.0, 1.0])
    offset = np.asarray([0.0, 1e6, 0.0, 1e8, 1e3])

    def fun(x: np.ndarray, wrong: Any, offset: Any) -> Any:
        value, gradient = floor(x)
        sign = np.ones_like(x)
        sign[..., 0] = 1.0 - 2.0 * wrong
        return value + offset, gradient * sign

    starts = np.random.default_rng(1).normal(size=(5, SIZE)) * 10.0
    how: dict[str, Any] = {"jac": True, "method": method, "reproducible": True, "maxfun": 3000}
    batch = lx.minimize(fun, starts, (wrong, offset), batched=True, **how)
    for i, start in enumerate(starts):
        one = lx.minimize(fun, start, (wrong[i], offset[i]), **how)
        np.testing.assert_array_equal(batch.x[i], one.x)
        assert (batch.status[i], batch.nfev[i], batch.nit[i]) == (one.status, one.nfev, one.nit)
    assert set(batch.status[wrong > 0]) == {int(Status.LINE_SEARCH)}


def steep(x: np.ndarray) -> Any:
    """Flat after a steep part, where rounding hides the predicted decrease of a step."""
    return np.sum(x**8, axis=-1), 8.0 * x**7


def test_what_a_lower_look_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fun(x: np.ndarray) -> Any:
        calls.append(x.copy())
        value, gradient = steep(x)
        return (value, x.copy()), gradient

    def watched(*args: Any) -> agreement.Look:
        found = look_at(*args)
        if found.lower:
            lower.append(len(calls))
        return found

    calls: list[np.ndarray] = []
    lower: list[int] = []
    look_at, start = agreement.look, np.asarray([1e6, 1.0])
    monkeypatch.setattr(agreement, "look", watched)
    how: dict[str, Any] = {"jac": True, "has_aux": True, "method": "bfgs", "gtol": 1e-8}
    assert lx.minimize(fun, start, **how).success
    calls.clear()
    res = lx.minimize(fun, start, maxfun=lower[0], **how)
    assert res.status is Status.EVALUATIONS and len(calls) == lower[0]
    np.testing.assert_array_equal(res.x, calls[-1])
    np.testing.assert_array_equal(res.aux, calls[-1])


def test_looks_with_bounds_of_rows() -> None:
    """Each row stays within its own bounds after others have left, also when differences become
    central."""
    rng = np.random.default_rng(3)
    starts = rng.uniform(0.0, 1.0, size=(12, 2))
    starts[:5] = 1.0
    lower = np.where(np.arange(12)[:, None] % 2 == 0, -2.0, 0.25) * np.ones(2)

    def value(x: np.ndarray) -> Any:
        return 100.0 * (x[..., 1] - x[..., 0] ** 2) ** 2 + (1.0 - x[..., 0]) ** 2

    def fun(x: np.ndarray) -> Any:
        d = x[..., 1] - x[..., 0] ** 2
        slopes = [-400.0 * d * x[..., 0] - 2.0 * (1.0 - x[..., 0]), 200.0 * d]
        return value(x) + 1e3, np.stack(slopes, axis=-1)

    how: dict[str, Any] = {"method": "projected_gradient", "reproducible": True, "maxfun": 4000}
    for f, jac in ((value, "2-point"), (fun, True)):
        batch = lx.minimize(f, starts, jac=jac, batched=True, bounds=(lower, 3.0), **how)
        assert np.all(np.asarray(batch.x) >= lower)
        for i in range(12):
            one = lx.minimize(f, starts[i], jac=jac, bounds=(lower[i], 3.0), **how)
            np.testing.assert_array_equal(batch.x[i], one.x)
            assert (batch.status[i], batch.nfev[i]) == (one.status, one.nfev)


def test_the_last_phase_is_checked_like_the_first() -> None:
    """Next to 1e9, forward differences of this function are 0 everywhere."""
    def fun(x: np.ndarray) -> Any:
        return np.log1p((x[..., 0] - 1.0) ** 2) + 1e9

    res = lx.minimize(
        fun, np.asarray([3.0]), jac="2-point", method=[lx.LBFGS().until(maxfun=2), "lbfgs"]
    )
    assert res.success and abs(res.x[0] - 1.0) < 1e-2


def test_phases_go_on_from_a_confirmed_floor() -> None:
    res = lx.minimize(
        floor, np.zeros(SIZE), jac=True, gtol=0.0, method=[lx.LBFGS(), lx.BFGS()]
    )
    assert [phase.status for phase in res.phases] == [Status.PRECISION] * 2


# --- fits ---------------------------------------------------------------------------------------

T = np.linspace(0.05, 2.0, 30)


def noisy(offset: float, seed: int = 0) -> tuple[Any, Any, np.ndarray]:
    """Residuals with the rounding errors of the offset, their Jacobian, and a start."""
    truth = np.asarray([1.3, 0.8, 0.6])
    z = (T - truth[1]) / truth[2]
    data = truth[0] / (1.0 + z * z) + 0.01 * np.random.default_rng(seed).normal(size=30) + offset

    def residuals(p: np.ndarray) -> np.ndarray:
        z = (T - p[..., 1:2]) / p[..., 2:]
        return (p[..., :1] / (1.0 + z * z) + offset) - data

    def jacobian(p: np.ndarray) -> np.ndarray:
        z = (T - p[..., 1:2]) / p[..., 2:]
        q = 1.0 / (1.0 + z * z)
        slope = 2.0 * p[..., :1] * z * q * q / p[..., 2:]
        return np.stack([q, slope, slope * z], axis=-1)

    return residuals, jacobian, truth * 1.2


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "cauchy"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_the_floor_of_a_fit_is_confirmed(offset: float, loss: str) -> None:
    """Only the residual function knows how large its rounding errors are."""
    for seed in range(5):
        residuals, jacobian, start = noisy(offset, seed)
        calls = Counted(residuals)
        res = lx.least_squares(calls, start, jac=jacobian, gtol=0.0, loss=loss)
        assert res.status is Status.PRECISION and res.nfev == calls.calls
        np.testing.assert_allclose(res.x, [1.3, 0.8, 0.6], rtol=0.1)


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_wrong_jacobian_is_no_floor(offset: float, column: int) -> None:
    residuals, jacobian, start = noisy(offset)
    sign = np.where(np.arange(3) == column, -1.0, 1.0)
    res = lx.least_squares(residuals, start, jac=lambda p: jacobian(p) * sign)
    assert res.status is Status.LINE_SEARCH


def test_a_jacobian_that_vanishes_at_the_minimum() -> None:
    res = lx.least_squares(
        lambda p: np.log(p) ** 2, np.asarray([2.0]), jac=lambda p: np.diag(2.0 * np.log(p) / p)
    )
    assert res.success and res.x[0] == pytest.approx(1.0, abs=1e-6)


def test_looks_of_a_fit_are_paid_for() -> None:
    residuals, jacobian, start = noisy(1e3)
    are_paid_for(lx.least_squares, residuals, start, jacobian)


def test_an_end_within_a_look_of_a_fit_loses_nothing() -> None:
    residuals, jacobian, start = noisy(1e3)
    whole = lx.least_squares(residuals, start, jac=jacobian, gtol=0.0)
    res = lx.least_squares(
        Counted(residuals, whole.nfev, KeyboardInterrupt()), start, jac=jacobian, gtol=0.0
    )
    assert res.status is Status.INTERRUPTED
    assert res.nit == whole.nit and res.cost == whole.cost
    with pytest.raises(ZeroDivisionError) as caught:
        lx.least_squares(
            Counted(residuals, whole.nfev, ZeroDivisionError()), start, jac=jacobian, gtol=0.0
        )
    assert caught.value.result.cost == whole.cost  # type: ignore[attr-defined]


@pytest.mark.parametrize("compact", [False, True])
def test_rows_of_a_fit_are_confirmed_like_single_ones(compact: bool) -> None:
    residuals, jacobian, start = noisy(1e3)
    starts = start * np.linspace(0.9, 1.1, 7)[:, None]
    sign = np.ones((7, 3))
    sign[[1, 4], 0] = -1.0
    how: dict[str, Any] = {"gtol": 0.0, "jac": lambda p, sign: jacobian(p) * sign[..., None, :]}
    batch = lx.least_squares(
        lambda p, sign: residuals(p), starts, (sign,), batched=True, compact=compact, **how
    )
    for i in range(7):
        one = lx.least_squares(lambda p, sign: residuals(p), starts[i], (sign[i],), **how)
        assert batch.status[i] == one.status
        np.testing.assert_allclose(batch.x[i], one.x, rtol=1e-6)
    wanted = np.where(sign[:, 0] < 0.0, int(Status.LINE_SEARCH), int(Status.PRECISION))
    np.testing.assert_array_equal(batch.status, wanted)


@pytest.mark.parametrize(
    ("start", "jac"), [(0.0, "2-point"), (1e-30, "2-point"), (1e-10, "3-point")]
)
def test_lengths_learnt_next_to_a_singularity_are_measured_again(start: float, jac: str) -> None:
    """Over them, rounding hides all changes elsewhere, and every gradient looks like 0."""

    def fun(x):
        return -np.log(x[0] + 1e-300) + x[0] - np.log(x[1] + 2.0) + x[1] ** 2

    res = lx.minimize(fun, np.asarray([start, 1.0]), jac=jac, bounds=([0.0, -1.0], [4.0, 3.0]))
    assert res.success and np.allclose(res.x, [1.0, -1.0 + np.sqrt(1.5)], atol=1e-6)
    assert abs(res.fun - fun(np.asarray([1.0, -1.0 + np.sqrt(1.5)]))) < 1e-12


def test_lengths_are_measured_again_in_the_rows_that_need_it() -> None:
    def fun(x):
        return -np.log(x[:, 0] + 1e-300) + x[:, 0] + x[:, 1] ** 2

    starts = np.asarray([[0.0, 1.0], [0.5, 1.0], [1e-30, 2.0]])
    settings = dict(jac="2-point", bounds=(0.0, 4.0), reproducible=True)
    res = lx.minimize(fun, starts, batched=True, **settings)
    assert res.success.all() and np.allclose(res.x, [1.0, 0.0], atol=1e-6)
    for row, start in enumerate(starts):
        one = lx.minimize(lambda x: fun(x[None])[0], start, method="bfgs", **settings)
        assert (res.x[row] == one.x).all()
