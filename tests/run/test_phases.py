"""Phases: methods that run one after another, each with its own limits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.run.methods import METHODS
from tests.backends import Backend

START = np.asarray([-1.2, 1.0, -1.2, 1.0])
ADAM, LBFGS = lx.Adam(0.05), lx.LBFGS()


def rosenbrock(backend: Backend = Backend.NUMPY) -> Any:
    problem = lx.problems.rosenbrock(4, xp=backend.xp, device=backend.device, reproducible=True)
    return problem.value_and_gradient


def bowl(x: np.ndarray) -> tuple[float, np.ndarray]:
    return float(x @ x), 2.0 * x


def solve(method: Any, fun: Any = None, x0: Any = START, **how: Any) -> lx.Result:
    return lx.minimize(fun or rosenbrock(), x0, jac=True, method=method, **how)


def ends(res: lx.Result) -> list[str]:
    return [phase.status.name for phase in res.phases]


# --- one run of two methods is two runs --------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("batched", [False, True])
def test_equals_one_run_after_the_other(backend: Backend, batched: bool) -> None:
    starts = np.stack([START, 0.5 * START, np.ones(4)]) if batched else START
    x0, how = backend.asarray(starts), {"batched": batched, "reproducible": True, "gtol": 1e-8}
    fun = rosenbrock(backend)
    res = solve([ADAM.until(maxiter=30), LBFGS], fun, x0, **how)
    first = solve(ADAM, fun, x0, maxiter=30, **how)
    second = solve(LBFGS, fun, first.x, **how)

    def same(a: Any, b: Any) -> None:
        assert np.array_equal(*(backend.to_numpy(r) if batched else r for r in (a, b)))

    assert np.array_equal(backend.to_numpy(res.x), backend.to_numpy(second.x))
    assert np.array_equal(backend.to_numpy(res.jac), backend.to_numpy(second.jac))
    same(res.fun, second.fun)
    same(res.status, second.status)
    same(res.nit, first.nit + second.nit)
    same(res.nfev, first.nfev + second.nfev - 1)     # the start of the second is known
    one, two = res.phases
    assert np.array_equal(backend.to_numpy(one.x), backend.to_numpy(first.x))
    same(one.status, first.status)
    same(one.nfev, first.nfev)
    same(two.nit, second.nit)
    same(two.nfev, second.nfev - 1)


@pytest.mark.sampled
@pytest.mark.parametrize("reproducible", [False, True])
def test_rows_of_a_batch_equal_single_runs(backend: Backend, reproducible: bool) -> None:
    """Each row has its own budgets, including those of the whole run."""
    starts = np.stack([START, 0.3 * START, np.ones(4), [-0.5, 2.0, 1.5, 0.1]])
    how: dict = {"reproducible": reproducible, "maxiter": 50, "maxfun": 60, "gtol": 1e-5}
    method = [lx.GradientDescent().until(maxfun=17), ADAM.until(maxiter=12, gtol=1e-2), "lbfgs"]
    fun = rosenbrock(backend)
    together = solve(method, fun, backend.asarray(starts), batched=True, **how)
    for row, start in enumerate(starts):
        alone = solve(method, fun, backend.asarray(start), **how)
        assert len(alone.phases) == len(together.phases) == 3
        for a, b in zip([alone, *alone.phases], [together, *together.phases], strict=True):
            for name in ("nit", "nfev", "status"):
                assert int(backend.to_numpy(getattr(b, name))[row]) == getattr(a, name)
            found, wanted = backend.to_numpy(b.x)[row], backend.to_numpy(a.x)
            if reproducible:
                assert np.array_equal(found, wanted)
            else:
                np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_float32(backend: Backend) -> None:
    x0 = backend.asarray(START, "float32")
    res = solve([ADAM.until(maxiter=20), "lbfgs"], rosenbrock(backend), x0)
    assert res.x.dtype == x0.dtype
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=2e-2)


def test_nothing_is_evaluated_twice() -> None:
    points: list[tuple[float, ...]] = []

    def fun(x: np.ndarray) -> Any:
        points.append(tuple(x))
        return rosenbrock()(x)

    res = solve([ADAM.until(maxiter=10), LBFGS.until(maxiter=5), lx.SGD(1e-4)], fun, maxiter=30)
    assert len(set(points)) == len(points) == res.nfev == sum(p.nfev for p in res.phases)
    assert res.nit == 30 and [p.nit for p in res.phases] == [10, 5, 15]


# --- from one phase to the next ----------------------------------------------------------------


def test_the_best_point_is_handed_on() -> None:
    """Not the last one: Adam jumps about with such a learning rate."""
    wild, seen = lx.Adam(0.9), []
    solve(wild, bowl, np.ones(2), maxiter=8, gtol=0.0, callback=lambda r: seen.append(r.fun))
    first = min(seen)
    assert seen[-1] > first
    res = solve([wild.until(maxiter=8), lx.SGD(1e-3)], bowl, np.ones(2), maxiter=9, gtol=0.0)
    assert res.phases[0].fun == first
    np.testing.assert_allclose(res.fun, (1.0 - 2e-3) ** 2 * first)


def test_small_changes_of_one_phase_do_not_stop_the_next() -> None:
    """Adam ends because its steps are small, which says nothing about L-BFGS."""
    slow = lx.Adam(1e-9)
    for name, status in (("ftol", Status.VALUE), ("xtol", Status.STEP)):
        res = solve([slow.until(maxiter=100), LBFGS], **{name: 1e-6})
        assert res.phases[0].status is status and res.phases[0].nit < 10
        assert res.phases[1].nit > 10
        np.testing.assert_allclose(res.x, 1.0, atol=1e-3)
    res = solve([slow.until(maxiter=20), LBFGS])
    assert ends(res) == ["ITERATIONS", "GRADIENT"]


@pytest.mark.parametrize(
    "first", [lx.SGD(1e3), LBFGS.until(xtol=1e9), LBFGS.until(maxtime=0.0), LBFGS.until(maxfun=1)],
    ids=["DIVERGED", "STEP", "TIME", "EVALUATIONS"],
)
def test_ends_that_hand_on(first: Any, request: pytest.FixtureRequest) -> None:
    with np.errstate(all="ignore"):
        res = solve([first, LBFGS])
    assert ends(res) == [request.node.callspec.id, "GRADIENT"]
    assert res.status is Status.GRADIENT and res.success


def test_a_failed_line_search_hands_on() -> None:
    calls: list[int] = []

    def fun(x: np.ndarray) -> Any:
        calls.append(1)
        value, gradient = rosenbrock()(x)
        return value, (gradient if len(calls) > 40 else -gradient)

    res = solve([LBFGS, LBFGS], fun)
    assert ends(res)[0] == "LINE_SEARCH" and len(res.phases) == 2


def test_auxiliary_output_and_nested_parameters(backend: Backend) -> None:
    def fun(p: Any) -> Any:
        away = p["a"] - 3.0
        value = lx.fixed_sum(away * away)
        return (value, {"a": p["a"]}), {"a": 2.0 * away}

    x0 = {"a": backend.asarray([1.0, 2.0])}
    method = [lx.Adam(0.5).until(maxiter=7), LBFGS.until(maxiter=0)]
    res = solve(method, fun, x0, has_aux=True)
    assert np.array_equal(backend.to_numpy(res.aux["a"]), backend.to_numpy(res.x["a"]))
    assert res.nit == 7 and res.phases[1].nfev == 0
    assert np.array_equal(backend.to_numpy(res.x["a"]), backend.to_numpy(res.phases[0].x["a"]))


@pytest.mark.parametrize("batched", [False, True])
def test_a_constraint_that_only_the_second_phase_knows(backend: Backend, batched: bool) -> None:
    """The best point is projected for the second phase, and points outside no longer count."""
    starts = np.asarray([[0.1, 0.2], [3.0, 2.0]])
    x0 = backend.asarray(starts if batched else starts[1])
    asked: list[np.ndarray] = []

    def fun(x: Any) -> Any:
        asked.append(backend.to_numpy(x))
        away = x - 3.0
        return lx.fixed_sum(away * away), 2.0 * away

    method = [LBFGS, lx.ProjectedGradient(lx.projections.Simplex())]
    res = solve(method, fun, x0, batched=batched)
    free, bound = backend.to_numpy(res.phases[0].x), backend.to_numpy(res.x)
    np.testing.assert_allclose(free, np.full_like(free, 3.0))
    np.testing.assert_allclose(bound, np.full_like(bound, 0.5))
    assert np.all((backend.to_numpy(res.fun) if batched else res.fun) == 12.5)
    assert batched or len(asked) == res.nfev


def test_bounds_are_for_all_phases() -> None:
    box = lx.ProjectedGradient()
    res = solve([box.until(maxiter=5), box], bounds=(None, 0.8))
    assert res.success and ends(res)[0] == "ITERATIONS"
    np.testing.assert_allclose(res.x, solve(box, bounds=(None, 0.8)).x, atol=1e-6)
    res = solve([lx.Adam(0.1).until(maxiter=5), LBFGS], bounds=(None, 0.8))
    assert res.success and ends(res)[0] == "ITERATIONS"
    np.testing.assert_allclose(res.x, solve(box, bounds=(None, 0.8)).x, atol=1e-6)
    with pytest.raises(ValueError, match="Newton takes none; wanted bounds=None"):
        solve([box.until(maxiter=5), lx.Newton()], bounds=(None, 0.8))


def test_newton_after_lbfgs() -> None:
    problem = lx.problems.rosenbrock(2)

    def hess(x: np.ndarray) -> np.ndarray:
        return np.asarray(
            [[1200.0 * x[0] ** 2 - 400.0 * x[1] + 2.0, -400.0 * x[0]], [-400.0 * x[0], 200.0]]
        )

    res = solve(
        [LBFGS.until(maxiter=10), "newton"], problem.value_and_gradient, problem.x0, hess=hess
    )
    assert res.success and [p.nhev for p in res.phases] == [0, res.nhev] and res.nhev > 0
    assert res.hess_inv is None and res.phases[0].hess_inv is not None
    with pytest.raises(ValueError, match="hess was passed, but LBFGS and Adam need none"):
        solve([LBFGS, "adam"], hess=hess)
    calls: list[Any] = []
    with pytest.raises(ValueError, match="give hess="):
        solve([LBFGS, "newton"], lambda x: calls.append(x))
    assert not calls    # raised before the first phase


# --- budgets and tolerances --------------------------------------------------------------------


def test_budgets_are_those_of_the_whole_run() -> None:
    many = [ADAM.until(maxiter=20), LBFGS]
    res = solve(many, maxiter=25)
    assert res.status is Status.ITERATIONS and [p.nit for p in res.phases] == [20, 5]
    res = solve(many, maxfun=25)
    assert res.status is Status.EVALUATIONS and [p.nfev for p in res.phases] == [21, 4]
    res = solve(many, maxiter=10)
    assert ends(res) == ["ITERATIONS", "ITERATIONS"] and res.nit == 10
    res = solve([ADAM.until(maxfun=11), ADAM.until(maxiter=7, maxfun=100)])
    assert [p.nfev for p in res.phases] == [11, 7]
    res = solve(many, maxtime=0.0)
    assert ends(res) == ["TIME", "TIME"] and res.nfev == 1


def test_tolerances_of_the_run_and_of_a_phase() -> None:
    res = solve([LBFGS.until(gtol=1.0), LBFGS], gtol=1e-6)
    assert ends(res) == ["GRADIENT", "GRADIENT"]
    assert 1e-3 < res.phases[0].gradient_norm <= 1.0 and res.gradient_norm <= 1e-6
    # A gradient that is small enough for the next phase leaves it nothing to do, unless that phase
    # has a smaller tolerance.
    res = solve([LBFGS, ADAM, LBFGS.until(gtol=1e-12)], gtol=1e-6)
    assert [p.nfev > 0 for p in res.phases] == [True, False, True]
    assert res.gradient_norm <= 1e-12
    res = solve([LBFGS.until(ftol=1e-2), LBFGS], ftol=0.0)
    assert ends(res) == ["VALUE", "GRADIENT"]


@pytest.mark.parametrize("batched", [False, True])
def test_what_has_no_bound_ends_the_run(batched: bool) -> None:
    def fun(x: np.ndarray) -> Any:
        return (x**3).sum(-1), 3.0 * x * x

    x0 = -np.ones((2, 3)) if batched else -np.ones(3)
    res = solve([LBFGS, ADAM], fun, x0, batched=batched, maxfun=20_000)
    assert np.all(np.asarray(res.status) == Status.UNBOUNDED)
    assert np.all(np.asarray(res.phases[1].nit) == 0)


def test_a_start_that_is_not_finite() -> None:
    res = solve([ADAM.until(maxiter=5), LBFGS], lambda x: (np.nan, x))
    assert res.status is Status.NOT_FINITE and res.nit == 0 and res.nfev == 1


# --- ends from outside -------------------------------------------------------------------------


def test_the_callback_sees_one_run() -> None:
    records: list[lx.Record] = []
    method = [ADAM.until(maxiter=10), LBFGS]
    res = solve(method, callback=records.append, gtol=1e-8)
    assert [r.nit for r in records] == list(range(1, res.nit + 1))
    assert np.all(np.diff([r.nfev for r in records]) > 0) and records[-1].nfev == res.nfev

    res = solve(method, callback=lambda record: record.nit == 5)
    assert ends(res) == ["CALLBACK"] and res.status is Status.CALLBACK and res.nit == 5
    res = solve(method, callback=lambda record: record.nit == 15)
    assert ends(res) == ["ITERATIONS", "CALLBACK"] and res.nit == 15


def test_interrupts_and_errors_keep_what_there_is() -> None:
    def raising(error: type[BaseException]) -> Any:
        calls: list[int] = []

        def fun(x: np.ndarray) -> Any:
            calls.append(1)
            if len(calls) == 20:
                raise error
            return rosenbrock()(x)

        return fun

    method = [ADAM.until(maxiter=10), LBFGS]
    res = solve(method, raising(KeyboardInterrupt))
    assert ends(res) == ["ITERATIONS", "INTERRUPTED"] and res.nfev == 19
    assert res.fun < res.phases[0].fun
    with pytest.raises(ArithmeticError) as caught:
        solve(method, raising(ArithmeticError))
    kept = caught.value.result  # type: ignore[attr-defined]
    assert ends(kept) == ["ITERATIONS", "RUNNING"] and kept.fun == res.fun


# --- what counts as a method -------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_names(name: str) -> None:
    hess = {"hess": lambda x: 2.0 * np.eye(2)} if name == "newton" else {}
    res = solve(name, bowl, np.ones(2), maxiter=3, **hess)
    assert res.nit > 0 and res.fun < 2.0 and res.phases == ()


def test_every_method_has_phases() -> None:
    for method in (LBFGS, lx.Newton(), lx.ProjectedGradient(), lx.GradientDescent(), lx.SGD()):
        phase = method.until(maxiter=np.int64(3), maxfun=4.0, maxtime=5, gtol=0.1)
        assert phase.method is method
        assert phase.limits == lx.Limits(3, 4, 5.0, 0.1, None, None)
        assert hash(phase) == hash(lx.Phase(method, lx.Limits(3, 4, 5.0, 0.1)))
    assert solve(LBFGS.until(maxiter=4)).nit == 4
    assert solve(lx.Phase("lbfgs", lx.Limits(maxiter=4))).nit == 4
    assert solve(("adam",), maxiter=4).nit == 4
    assert lx.Limits(maxiter=float("inf")) == lx.Limits()


def test_going_on_with_the_last_method(backend: Backend) -> None:
    fun, x0 = rosenbrock(backend), backend.asarray(START)
    method = [ADAM.until(maxiter=10), LBFGS]
    whole = solve(method, fun, x0, maxiter=30, gtol=0.0)
    half = solve(method, fun, x0, maxiter=20, gtol=0.0)
    rest = solve(LBFGS, fun, half.x, maxiter=10, gtol=0.0, state=half.state)
    assert np.array_equal(backend.to_numpy(rest.x), backend.to_numpy(whole.x))
    with pytest.raises(ValueError, match="state was passed with 2 phases; wanted the single"):
        solve(method, fun, half.x, state=half.state)


@pytest.mark.parametrize(
    "method, error, words",
    [
        ([], ValueError, "method is []; wanted at least one method"),
        ([LBFGS, lx.Adam], TypeError, "wanted a name, an optimizer"),
        ([LBFGS, "lbgfs"], ValueError, "did you mean 'lbfgs'"),
        ([[LBFGS]], TypeError, "wanted one method"),
        (lambda: LBFGS.until(maxiter=-1), ValueError, "maxiter is -1; wanted an integer of at lea"),
        (lambda: LBFGS.until(maxfun=0), ValueError, "maxfun is 0; wanted an integer of at least 1"),
        (lambda: LBFGS.until(maxiter=2.5), ValueError, "maxiter is 2.5; wanted an integer"),
        (lambda: LBFGS.until(gtol="1"), ValueError, "gtol is '1'; wanted a number of at least 0"),
        (lambda: LBFGS.until(maxtime=-1), ValueError, "maxtime is -1; wanted a number of seconds"),
        (lambda: lx.Phase(LBFGS.until(maxiter=1)), TypeError, "wanted one method"),
        (lambda: lx.Phase(LBFGS, 100), TypeError, "limits is 100; wanted lx.Limits"),
    ],
)
def test_errors(method: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        solve(method() if callable(method) else method)


@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("interrupted", [False, True], ids=["callback", "Ctrl-C"])
def test_a_stop_where_a_phase_ends_is_a_stop(batched: bool, interrupted: bool) -> None:
    """The iteration that ends the first phase also ends the run: the second phase never runs."""
    problem = lx.problems.rosenbrock(6)
    x0 = np.stack([problem.x0, 0.9 * problem.x0]) if batched else problem.x0

    def fun(x: Any) -> Any:
        a, b = x[..., ::2], x[..., 1::2]
        t, u = b - a * a, 1.0 - a
        gradient = np.stack([-400.0 * a * t - 2.0 * u, 200.0 * t], axis=-1)
        return np.sum(100.0 * t * t + u * u, axis=-1), np.reshape(gradient, x.shape)

    def stop(record: lx.Record) -> bool:
        done = bool(np.all(np.asarray(record.gradient_norm) < 1.0))
        if done and interrupted:
            raise KeyboardInterrupt
        return done

    res = lx.minimize(
        fun, x0, jac=True, batched=batched, callback=stop,
        method=[lx.LBFGS().until(gtol=1.0), lx.BFGS()],
    )
    wanted = lx.Status.INTERRUPTED if interrupted else lx.Status.CALLBACK
    assert len(res.phases) == 1 and not np.any(res.success)
    assert np.all(np.asarray(res.status) == int(wanted))
