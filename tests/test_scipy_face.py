"""lbfgs_xp.scipy, compared with SciPy's own L-BFGS-B."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

from lbfgs_xp import problems

optimize = pytest.importorskip("scipy.optimize")

from lbfgs_xp.scipy import lbfgs, projected_gradient  # noqa: E402

OURS = {"lbfgs": lbfgs, "projected_gradient": projected_gradient}
SET = {
    "rosenbrock": problems.rosenbrock(10),
    "beale": problems.beale(),
    "himmelblau": problems.himmelblau(),
    "quadratic": problems.quadratic(),
    "decay": problems.exponential_decay(noise=0.05),
}
ROSENBROCK = problems.rosenbrock(4)


def solve(method: Any = lbfgs, fun: Any = None, x0: Any = None, **how: Any) -> Any:
    fun = ROSENBROCK.value_and_gradient if fun is None else fun
    how.setdefault("jac", True)
    return optimize.minimize(fun, ROSENBROCK.x0 if x0 is None else x0, method=method, **how)


def bowl(x: np.ndarray, center: float = 3.0) -> tuple[float, np.ndarray]:
    return float(np.sum((x - center) ** 2)), 2.0 * (x - center)


# --- the same as SciPy -------------------------------------------------------------------------


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("name", SET)
def test_the_minima_of_scipy(name: str, method: str) -> None:
    p, options = SET[name], {"gtol": 1e-6, "ftol": 0.0}
    ours = solve(OURS[method], p.value_and_gradient, p.x0, options=options)
    theirs = solve("L-BFGS-B", p.value_and_gradient, p.x0, options=options)
    assert ours.success and ours.status == theirs.status == 0
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-4)
    assert ours.fun == pytest.approx(theirs.fun, abs=1e-9)
    missing = {"hess_inv"} if method == "projected_gradient" else set()
    assert set(ours) == set(theirs) - missing
    for field in set(ours) - {"hess_inv", "success"}:
        assert np.shape(ours[field]) == np.shape(theirs[field])
    assert np.array_equal(ours.jac, p.gradient(ours.x)) and ours.fun == p.fun(ours.x)
    assert ours.nfev == ours.njev >= ours.nit > 0


def test_defaults_take_no_more_evaluations() -> None:
    ours = [solve(lbfgs, p.value_and_gradient, p.x0).nfev for p in SET.values()]
    theirs = [solve("L-BFGS-B", p.value_and_gradient, p.x0).nfev for p in SET.values()]
    print(f"evaluations: ours {ours}, SciPy's {theirs}")
    assert sum(ours) <= 1.2 * sum(theirs)


@pytest.mark.parametrize("method", OURS.values(), ids=OURS)
def test_gradients_in_every_form(method: Any) -> None:
    def value(x: np.ndarray, center: float) -> float:
        return bowl(x, center)[0]

    def gradient(x: np.ndarray, center: float) -> np.ndarray:
        return bowl(x, center)[1]

    for fun, jac in ((bowl, True), (value, gradient), (value, None), (value, False)):
        res = solve(method, fun, np.zeros(3), jac=jac, args=(2.0,))
        assert res.success
        np.testing.assert_allclose(res.x, 2.0, atol=1e-6)
    assert solve(method, value, np.zeros(3), jac=None, args=2.0).success    # not a tuple


def test_differences_are_scipys() -> None:
    calls: list[np.ndarray] = []

    def value(x: np.ndarray) -> float:
        calls.append(x)
        return float(ROSENBROCK.fun(x))

    res = solve(lbfgs, value, jac=None)
    assert res.nfev == len(calls) == 5 * res.njev
    theirs = optimize.approx_fprime(res.x, ROSENBROCK.fun, 1e-8)
    assert np.array_equal(res.jac, theirs)
    wide = solve(lbfgs, value, jac=None, options={"eps": 1e-3})
    assert np.array_equal(wide.jac, optimize.approx_fprime(wide.x, ROSENBROCK.fun, 1e-3))


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_a_step_of_differences_for_each_variable(kind: Any) -> None:
    steps = np.asarray([1e-3, 1e-5, 1e-7, 1e-8])
    res = solve(lbfgs, ROSENBROCK.fun, jac=None, options={"eps": kind(steps)})
    assert np.array_equal(res.jac, optimize.approx_fprime(res.x, ROSENBROCK.fun, steps))


@pytest.mark.parametrize("eps", [[1e-8] * 3, "small", None, [None, 1e-8], 0.0, -1e-8, [1e-8, 0.0]])
def test_bad_steps_of_differences(eps: Any) -> None:
    with pytest.raises(ValueError, match="^eps is .*; wanted a number above 0, or 2 of them"):
        solve(lbfgs, lambda x: x @ x, np.ones(2), jac=None, options={"eps": eps})


def test_what_fun_may_return_and_do() -> None:
    assert solve(lbfgs, lambda x: (np.asarray([x @ x]), 2.0 * x), np.ones(2)).success
    res = solve(lbfgs, lambda x: x[0] ** 2, 2.0, jac=lambda x: 2.0 * x[0])
    assert res.success and res.x.shape == (1,)
    assert solve(lbfgs, bowl, [1, 2]).x.dtype == np.float64
    assert solve(lbfgs, bowl, np.ones(2, np.float32)).x.dtype == np.float64

    def overwrites(x: np.ndarray) -> Any:
        value = bowl(x)
        x[:] = 0.0
        return value

    np.testing.assert_allclose(solve(lbfgs, overwrites, np.zeros(2)).x, 3.0)


@pytest.mark.parametrize("value", [None, "text", 1j, np.ones(2), (1.0, 2.0)], ids=str)
@pytest.mark.parametrize("jac", [None, lambda x: x], ids=["differences", "jac"])
def test_values_that_are_no_numbers_are_refused(value: Any, jac: Any) -> None:
    with pytest.raises(TypeError, match="fun returned an? .*; wanted a real number"):
        solve(lbfgs, lambda x: value, np.ones(2), jac=jac)


def test_it_serves_scipys_global_methods() -> None:
    p = problems.himmelblau()
    res = optimize.basinhopping(
        p.value_and_gradient, p.x0, niter=3, rng=0,
        minimizer_kwargs={"method": lbfgs, "jac": True},
    )
    assert res.fun < 1e-8


# --- how a run ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"maxiter": 3}, {"maxfun": 4}])
def test_budgets(options: dict[str, int]) -> None:
    ours, theirs = solve(options=options), solve("L-BFGS-B", options=options)
    assert ours.status == theirs.status == 1 and not ours.success and not theirs.success
    assert next(iter(options)) in ours.message
    assert ours.nit <= 3 and ours.nfev <= theirs.nfev


def test_budgets_count_differences() -> None:
    value = ROSENBROCK.fun
    res = solve(lbfgs, value, jac=None, options={"maxfun": 50})
    assert res.status == 1 and res.nfev == 50
    assert solve(lbfgs, value, jac=None, options={"maxfun": 1}).nfev == 5


def test_tolerances() -> None:
    strict = solve(options={"gtol": 1e-9, "ftol": 0.0})
    loose = solve(options={"gtol": 1e-2, "ftol": 0.0})
    assert np.max(np.abs(strict.jac)) <= 1e-9 and loose.nit < strict.nit
    assert solve(tol=1e-2).nit < strict.nit
    assert solve(tol=1e-2, options={"gtol": 1e-9, "ftol": 0.0}).nit == strict.nit
    settled = solve(options={"ftol": 0.9, "gtol": 0.0})
    assert settled.success and "ftol" in settled.message


def test_other_ends() -> None:
    res = solve(lbfgs, lambda x: (np.nan, x), np.ones(2))
    assert res.status == 2 and not res.success and "not finite" in res.message


# --- callback ----------------------------------------------------------------------------------


def test_both_signatures_of_the_callback() -> None:
    points: list[np.ndarray] = []
    results: list[Any] = []

    def by_name(intermediate_result: Any) -> None:
        results.append(intermediate_result)

    def overwrites(xk: np.ndarray) -> None:
        points.append(xk.copy())
        xk[:] = np.nan

    first = solve(callback=overwrites)
    second = solve(callback=by_name)
    assert len(points) == len(results) == first.nit == second.nit
    assert all(np.array_equal(p, r.x) for p, r in zip(points, results, strict=True))
    assert all(isinstance(r, optimize.OptimizeResult) for r in results)
    assert all(r.fun == ROSENBROCK.fun(r.x) for r in results)
    assert np.array_equal(first.x, solve(callback=[].append).x)
    assert solve(callback=lambda x: True).success    # SciPy ignores the return value


def test_stop_iteration_ends_the_run() -> None:
    calls: list[Any] = []

    def halt(x: Any) -> None:
        calls.append(x)
        if len(calls) == 3:
            raise StopIteration

    ours = solve(callback=halt)
    assert ours.nit == len(calls) == 3 and not ours.success and "callback" in ours.message
    calls.clear()
    assert solve("L-BFGS-B", callback=halt).status == ours.status

    with pytest.raises(KeyError):
        solve(callback=lambda x: {}["missing"])


# --- bounds, constraints, options --------------------------------------------------------------


@pytest.mark.parametrize("method", [lbfgs, projected_gradient])
@pytest.mark.parametrize("differences", [False, True])
def test_bounds(differences: bool, method: Any) -> None:
    lower, upper = np.asarray([-np.inf, 1.5, -2.0, 0.5]), np.asarray([0.8, 3.0, -2.0, np.inf])
    pairs = [(None, 0.8), (1.5, 3.0), (-2.0, -2.0), (0.5, None)]
    fun, jac = (ROSENBROCK.fun, None) if differences else (ROSENBROCK.value_and_gradient, True)
    seen: list[np.ndarray] = []

    def watched(x: np.ndarray) -> Any:
        seen.append(x)
        return fun(x)

    options = {"gtol": 1e-5, "ftol": 1e-14}
    for bounds in (optimize.Bounds(lower, upper), pairs):
        how = {"jac": jac, "bounds": bounds, "options": options}
        ours = solve(method, watched, **how)
        assert ours.success
        np.testing.assert_allclose(ours.x, solve("L-BFGS-B", fun, **how).x, atol=2e-5)
        assert np.all((seen >= lower) & (seen <= upper))
    even = solve(method, bounds=optimize.Bounds(-1.0, 0.5))    # the same for all
    assert even.success and np.max(even.x) == 0.5


def test_narrow_bounds_leave_room_for_differences() -> None:
    seen: list[np.ndarray] = []

    def value(x: np.ndarray) -> float:
        seen.append(x)
        return float(x @ x)

    width = 1e-9    # less than the step of the finite differences
    res = solve(projected_gradient, value, [1.0], jac=None, bounds=[(1.0, 1.0 + width)])
    assert res.x == [1.0] and np.all((np.asarray(seen) >= 1.0) & (np.asarray(seen) <= 1.0 + width))
    np.testing.assert_allclose(res.jac, 2.0, rtol=1e-5)
    res = solve(projected_gradient, value, [1.0], jac=None, bounds=[(1.0, 1.0)])
    assert res.success and res.x == [1.0] and res.nfev == 1


def test_bounds_that_do_not_fit_and_constraints() -> None:
    with pytest.raises(ValueError, match=r"bounds is \[\(0, 1\)\]; wanted .* or 4 pairs"):
        solve(projected_gradient, bounds=[(0, 1)])
    with pytest.raises(ValueError, match="the lower bound"):
        solve(projected_gradient, bounds=optimize.Bounds([0.0, 0.0], [1.0, 1.0]))
    assert solve(bounds=[(None, None)] * 4).success
    assert solve(bounds=optimize.Bounds()).success
    for constraints in ({"type": "eq", "fun": np.sum}, optimize.LinearConstraint(np.eye(4), 0, 1)):
        for method in OURS.values():
            with pytest.raises(ValueError, match="takes none; wanted constraints=.., or lx.augm"):
                solve(method, constraints=constraints)


def test_options() -> None:
    with pytest.warns(optimize.OptimizeWarning, match="Unknown solver options: maxcorr") as seen:
        solve(options={"maxcorr": 5})
    assert seen[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="hess is not used"):
        solve(hess=lambda x: np.eye(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert solve(options={"maxcor": 3}).nit != solve(options={"maxcor": 10}).nit
    with pytest.raises(ValueError, match="memory_size is 0"):
        solve(options={"maxcor": 0})


def test_disp(capsys: pytest.CaptureFixture[str]) -> None:
    solve()
    assert capsys.readouterr().out == ""
    res = solve(options={"disp": True})
    assert f"{res.nit} iterations, {res.nfev} evaluations" in capsys.readouterr().out


def test_hess_inv_is_an_operator() -> None:
    p = SET["quadratic"]
    operator = solve(lbfgs, p.value_and_gradient, p.x0, options={"maxcor": 30}).hess_inv
    dense = operator.todense()
    assert isinstance(operator, optimize.LbfgsInvHessProduct.__mro__[1])
    v = np.arange(1.0, p.n + 1.0)
    np.testing.assert_allclose(operator @ v, dense @ v)
    np.testing.assert_allclose(operator.dot(v[:, None]), dense @ v[:, None])
    np.testing.assert_allclose(operator.T @ v, dense.T @ v)
    np.testing.assert_allclose(operator @ np.eye(p.n), dense)


def test_results_can_be_pickled() -> None:
    res = solve()
    again = pickle.loads(pickle.dumps(res))
    v = np.arange(4.0)
    np.testing.assert_array_equal(again.hess_inv @ v, res.hess_inv @ v)
    np.testing.assert_array_equal(again.hess_inv.todense(), res.hess_inv.todense())
