"""lbfgs_xp.scipy, compared with SciPy's own methods and fits."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbfgs_xp import problems

optimize = pytest.importorskip("scipy.optimize")

from lbfgs_xp.scipy import (  # noqa: E402
    bfgs,
    curve_fit,
    lbfgs,
    least_squares,
    minimize,
    newton,
    newton_cg,
    projected_gradient,
    ssbfgs,
    ssbroyden,
)

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
    assert set(ours) == set(theirs) - missing | {"reason"}
    for field in set(ours) - {"hess_inv", "success", "reason"}:
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
    message = "fun returned an? .*; wanted a single real number: The user-provided"
    with pytest.raises(ValueError, match=message):
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
    assert next(iter(options)) in ours.reason and ours.message == theirs.message
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
    assert settled.success and "ftol" in settled.reason


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
    assert ours.nit == len(calls) == 3 and not ours.success
    assert ours.message == "`callback` raised `StopIteration`."
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
    assert res.message == "All independent variables were fixed by bounds."
    assert np.isnan(res.jac)    # differences cannot know it


def test_bounds_that_do_not_fit_and_constraints() -> None:
    with pytest.raises(ValueError, match=r"bounds is \[\(0, 1\)\]; wanted .* or 4 pairs"):
        solve(projected_gradient, bounds=[(0, 1)])
    with pytest.raises(ValueError, match="the lower bound"):
        solve(projected_gradient, bounds=optimize.Bounds([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="the bounds of variable 1 are 2.0 and 1.0; wanted"):
        solve(projected_gradient, bounds=[(0, 1), (2, 1), (0, 1), (0, 1)])
    assert solve(bounds=[(None, None)] * 4).success
    assert solve(constraints=None).success
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
    with pytest.raises(ValueError, match="maxcor is 0"):
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


# --- bfgs, newton, minimize --------------------------------------------------------------------


def rosen(x: np.ndarray) -> Any:
    return optimize.rosen(x)


@pytest.mark.parametrize("name", ["rosenbrock", "beale", "himmelblau"])
def test_bfgs_and_newton_find_the_minima_of_scipy(name: str) -> None:
    p = SET[name]
    for ours, theirs in (
        (bfgs, "BFGS"), (ssbfgs, "BFGS"), (ssbroyden, "BFGS"), (newton, "Newton-CG"),
        (newton_cg, "Newton-CG"),
    ):
        a = solve(ours, p.value_and_gradient, p.x0)
        b = solve(theirs, p.value_and_gradient, p.x0)
        assert a.success and a.status == b.status == 0 and a.message == b.message
        np.testing.assert_allclose(a.x, b.x, atol=1e-3)
        assert set(a) == set(b) | {"reason"}
    assert solve(bfgs, p.value_and_gradient, p.x0).hess_inv.shape == (p.n, p.n)


def test_options_of_bfgs_and_newton() -> None:
    start, how = np.asarray([1.3, 0.7, 0.8]), {"jac": optimize.rosen_der}
    for ours in (bfgs, ssbroyden, newton, newton_cg):
        res = solve(ours, rosen, start, options={"return_all": True, "maxiter": 4}, **how)
        assert res.status == 1 and res.nit == 4 and len(res.allvecs) == 5
        assert np.array_equal(res.allvecs[0], start)
        assert "Maximum number of iterations" in res.message
        with pytest.warns(optimize.OptimizeWarning, match="Maximum number"):
            solve(ours, rosen, start, options={"disp": True, "maxiter": 2}, **how)
    loose, tight = (solve(bfgs, rosen, start, options={"c2": c2}, **how) for c2 in (0.9, 1e-2))
    assert tight.nit < loose.nit
    scaled = solve(bfgs, rosen, start, options={"hess_inv0": 0.01 * np.eye(3)}, **how)
    assert scaled.success
    with pytest.raises(ValueError, match="'hess_inv0' matrix isn't positive definite"):
        solve(bfgs, rosen, start, options={"hess_inv0": -np.eye(3)}, **how)


@pytest.mark.parametrize("newton", [newton, newton_cg])
def test_every_form_of_the_hessian(newton: Any) -> None:
    start, how = np.asarray([-1.2, 1.0, 0.5]), {"jac": optimize.rosen_der}

    def product(x: np.ndarray, p: np.ndarray) -> np.ndarray:
        return optimize.rosen_hess(x) @ p

    calls = [
        solve(newton, rosen, start, hess=hess, **how)
        for hess in (optimize.rosen_hess, None, "2-point", "3-point", "cs")
    ]
    calls.append(solve(newton, rosen, start, hessp=product, **how))
    for res in calls:
        assert res.success and res.nhev > 0
        np.testing.assert_allclose(res.x, 1.0, atol=1e-5)
    assert calls[1].njev > calls[0].njev    # with the gradients for the differences
    for bad in ("newton", np.eye(3), optimize.BFGS()):
        with pytest.raises(ValueError, match="(?s)hess is .*; wanted a function"):
            solve(newton, rosen, start, hess=bad, **how)
    with pytest.raises(ValueError, match="jac is not given"):
        solve(newton, rosen, start, jac=None)
    with pytest.raises(ValueError, match=r"hess returned an array of shape \(2, 2\)"):
        solve(newton, rosen, start, hess=lambda x: np.eye(2), **how)


@pytest.mark.parametrize("jac", [None, "2-point", "3-point", "cs"])
def test_minimize_takes_all_differences_of_scipy(jac: Any) -> None:
    seen: list[Any] = []

    def fun(x: np.ndarray) -> Any:
        seen.append(x.dtype)
        return np.sum((x - 3.0) ** 2 * (1.0 + x * x))

    for method in ("lbfgs", "bfgs", lbfgs):
        seen.clear()
        res = minimize(fun, np.zeros(2), method=method, jac=jac)
        assert res.success and res.nfev == len(seen)
        assert (res.njev is None) == (jac in ("2-point", "3-point"))
        assert (np.dtype(complex) in seen) == (jac == "cs")
        np.testing.assert_allclose(res.x, 3.0, atol=1e-4)


def test_complex_steps_need_an_analytic_function() -> None:
    with pytest.raises(ValueError, match="fun returned a float for complex x; wanted a complex"):
        minimize(lambda x: float(np.abs(x[0]) ** 2), np.ones(1), jac="cs")
    with pytest.raises(ValueError, match="differences is '4-point'; wanted None or one of '2-p"):
        minimize(rosen, np.ones(2), jac="4-point")
    with pytest.raises(ValueError, match="method is 'BFGS'; wanted one of .*: 'bfgs'"):
        minimize(rosen, np.ones(2), method="BFGS")


def test_budgets_that_scipy_takes() -> None:
    for options in ({"maxfun": np.inf}, {"maxiter": np.inf}, {"maxiter": 100.1}, {"maxfun": None}):
        assert solve(options=options).success
    assert solve(options={"maxiter": -1}).status == 1
    for bad in ("many", np.nan, 1j):
        with pytest.raises(ValueError, match="maxiter is .*; wanted a number or None"):
            solve(options={"maxiter": bad})


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4,)])
def test_gradients_of_any_shape(shape: tuple[int, ...]) -> None:
    res = solve(fun=rosen, jac=lambda x: np.reshape(optimize.rosen_der(x), shape))
    assert res.success and res.jac.shape == (4,)
    assert solve(fun=rosen, jac=lambda x: optimize.rosen_der(x).tolist()).success


@pytest.mark.parametrize("call, message", [
    (lambda: solve(callback=3), "callback is 3; wanted a function or None"),
    (lambda: solve(projected_gradient, bounds=3), "bounds is 3; wanted scipy.optimize.Bounds"),
    (lambda: solve(lbfgs, 3, jac=None), "fun is a int; wanted a function"),
    (lambda: solve(x0=np.ones(2) * 1j), "x0 is complex; wanted real numbers"),
])
def test_wrong_calls(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# --- fits --------------------------------------------------------------------------------------

X = np.linspace(0.0, 4.0, 30)
Y = 3.0 * np.exp(-0.5 * X) + 0.05 * np.cos(40.0 * X)


def decay(x: Any, a: float, k: float) -> Any:
    return a * np.exp(-k * x)


def residuals(p: np.ndarray) -> Any:
    return decay(X, *p) - Y


def slopes(p: np.ndarray) -> np.ndarray:
    return np.stack([np.exp(-p[1] * X), -p[0] * X * np.exp(-p[1] * X)], axis=1)


@pytest.mark.parametrize("jac", ["2-point", "3-point", "cs", slopes])
@pytest.mark.parametrize("loss", ["linear", "soft_l1", "huber", "cauchy", "arctan"])
def test_least_squares_agrees_with_scipy(loss: str, jac: Any) -> None:
    how = {"jac": jac, "loss": loss, "f_scale": 0.03, "bounds": ([0.0, 0.0], [2.9, 9.0])}
    how |= {"ftol": 1e-14, "xtol": 1e-12}
    ours = least_squares(residuals, [1.0, 1.0], **how)
    theirs = optimize.least_squares(residuals, [1.0, 1.0], **how)
    assert ours.success and set(ours) - {"reason", "nit"} == set(theirs) - {"nit"}
    assert ours.cost <= theirs.cost * (1.0 + 1e-6)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-3)
    np.testing.assert_array_equal(ours.active_mask, theirs.active_mask)
    assert ours.jac.shape == theirs.jac.shape and ours.grad.shape == theirs.grad.shape
    np.testing.assert_array_equal(ours.fun, residuals(ours.x))
    here = optimize.least_squares(residuals, ours.x, max_nfev=1, **how | {"bounds": (-9.0, 9.0)})
    np.testing.assert_allclose(ours.jac, here.jac, rtol=1e-4, atol=2e-8)
    np.testing.assert_allclose(ours.grad, here.grad, rtol=1e-3, atol=1e-6)


def test_the_callback_of_least_squares() -> None:
    points: list[Any] = []

    def named(intermediate_result: Any) -> bool:
        points.append(intermediate_result)
        return len(points) == 2

    res = least_squares(residuals, [1.0, 1.0], callback=named)
    assert res.status == -2 and not res.success and "StopIteration" in res.message
    assert points[-1].nit == 2 and points[-1].cost == res.cost
    assert np.array_equal(points[-1].x, res.x) and np.array_equal(points[-1].fun, res.fun)
    plain: list[Any] = []
    assert least_squares(residuals, [1.0, 1.0], callback=lambda x: plain.append(x)).success
    assert np.array_equal(plain[0], points[0].x) and len(plain) > 2

    def halt(x: Any) -> None:
        raise StopIteration

    assert least_squares(residuals, [1.0, 1.0], callback=halt).nit == 1


def test_least_squares_in_single_precision() -> None:
    """The steps of the differences suit what fun returns."""
    def single(p: np.ndarray) -> Any:
        return residuals(p).astype(np.float32)

    wanted = least_squares(residuals, [1.0, 1.0]).x
    for jac in ("2-point", "3-point"):
        res = least_squares(single, [1.0, 1.0], jac=jac)
        np.testing.assert_allclose(res.x, wanted, rtol=3e-3)


def test_forms_of_residuals_and_jacobians() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    wanted = least_squares(residuals, [1.0, 1.0], slopes).x
    for jac in (
        lambda p: sparse.csr_array(slopes(p)),
        lambda p: sparse.linalg.aslinearoperator(slopes(p)),
        lambda p: slopes(p).tolist(),
    ):
        np.testing.assert_array_equal(least_squares(residuals, [1.0, 1.0], jac).x, wanted)
    one = least_squares(lambda x, a, b=0.0: x - a - b, 0.0, args=(2.0,), kwargs={"b": 1.0})
    assert one.success and np.allclose(one.x, 3.0) and one.fun.shape == (1,)
    listed = least_squares(lambda p: residuals(p).tolist(), (1.0, 1.0))
    np.testing.assert_allclose(listed.x, wanted, rtol=1e-6)


def test_budgets_and_tolerances_of_least_squares() -> None:
    res = least_squares(residuals, [1.0, 1.0], slopes, max_nfev=1)
    assert res.status == 0 and not res.success and res.nfev == 1
    for name in ("ftol", "xtol", "gtol"):
        only = dict.fromkeys(("ftol", "xtol", "gtol")) | {name: 1e-6}
        assert least_squares(residuals, [1.0, 1.0], **only).success
    for loose in ({"xtol": 0.5}, {"ftol": 0.5}):
        tight = {"ftol": 0.0, "xtol": 0.0, "gtol": 0.0} | loose
        assert least_squares(residuals, [1.0, 1.0], **tight).status == (3 if "xtol" in loose else 2)


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), ([0.0, 0.0], [2.9, 9.0])])
@pytest.mark.parametrize("sigma", [None, 0.1, np.linspace(0.1, 0.2, 30), 0.01 * np.eye(30)])
def test_curve_fit_agrees_with_scipy(sigma: Any, bounds: Any) -> None:
    how = {"sigma": sigma, "bounds": bounds}
    if np.ndim(sigma) == 0 and sigma is not None:
        how["sigma"] = np.full(30, sigma)
    for absolute in (False, True):
        ours = curve_fit(decay, X, Y, absolute_sigma=absolute, **how)
        theirs = optimize.curve_fit(decay, X, Y, absolute_sigma=absolute, **how)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
        if bounds[0] == -np.inf:
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3)


def test_what_curve_fit_takes() -> None:
    wanted = curve_fit(decay, X, Y)[0]
    holes = Y.copy()
    holes[3] = np.nan
    found = curve_fit(decay, X, holes, nan_policy="omit")
    theirs = optimize.curve_fit(decay, X, holes, nan_policy="omit")
    np.testing.assert_allclose(found[0], theirs[0], rtol=1e-4)
    for policy in (None, "raise"):
        with pytest.raises(ValueError, match="nan"):
            curve_fit(decay, X, holes, nan_policy=policy)
    full = curve_fit(decay, X.tolist(), Y.tolist(), [1.0, 1.0], full_output=True, maxfev=500)
    np.testing.assert_allclose(full[0], wanted)
    np.testing.assert_allclose(full[2]["fvec"], residuals(full[0]), atol=1e-12)
    with pytest.raises(RuntimeError, match="Optimal parameters not found"):
        curve_fit(decay, X, Y, maxfev=2)
    with pytest.warns(optimize.OptimizeWarning, match="Covariance of the parameters could not"):
        popt, pcov = curve_fit(lambda x, a, b: a + 0.0 * b + 0.0 * x, X, Y)
    assert np.all(np.isinf(pcov)) and popt[0] == pytest.approx(Y.mean())
    coordinates = np.stack([X, X * X])
    plane = curve_fit(lambda c, a, b: a * c[0] + b * c[1], coordinates, 2.0 * X - X * X)[0]
    np.testing.assert_allclose(plane, [2.0, -1.0], rtol=1e-6)


@pytest.mark.parametrize("call, message", [
    (lambda: least_squares(3, [1.0]), "fun is a int; wanted a function"),
    (lambda: least_squares(residuals, [1.0, 1.0], "auto"), "jac is 'auto'; wanted one of"),
    (lambda: least_squares(residuals, [1.0, 1.0], bounds=3), "bounds is 3; wanted the pair"),
    (lambda: least_squares(residuals, [1.0, 1.0], bounds=(0.0, [1.0] * 3)), "the upper bound is"),
    (lambda: least_squares(residuals, [1.0, 1.0], bounds=(2.0, 3.0)), r"x0\[0\] is 1.0; wanted"),
    (lambda: least_squares(residuals, [1.0, 1.0], method="LM"), "method is 'LM'; wanted one of"),
    (lambda: least_squares(residuals, [1.0, 1.0], loss=np.sum), "loss is <.*; wanted one of"),
    (lambda: least_squares(residuals, [1.0, 1.0], x_scale="auto"), "x_scale is 'auto'; wanted"),
    (lambda: least_squares(residuals, [1.0, 1.0], x_scale=-1.0), "x_scale is -1.0; wanted"),
    (lambda: least_squares(residuals, [1.0, 1.0], callback=3), "callback is 3; wanted"),
    (lambda: least_squares(residuals, [1.0, 1.0], verbose=7), "verbose is 7; wanted one of"),
    (lambda: least_squares(residuals, [1.0, 1.0], max_nfev=0), "max_nfev is 0; wanted"),
    (lambda: least_squares(residuals, [[1.0, 1.0]]), r"x0 has shape \(1, 2\); wanted"),
    (lambda: least_squares(residuals, [1j, 1.0]), "x0 is complex; wanted real"),
    (lambda: least_squares(lambda p: np.eye(2), [1.0, 1.0]), r"fun returned an array of shape"),
    (lambda: least_squares(lambda p: "text", [1.0, 1.0]), "fun returned a str; wanted numbers"),
    (lambda: least_squares(lambda p: p * np.nan, [1.0, 1.0]), "fun or jac at x0 is not finite"),
    (lambda: least_squares(residuals, [1.0, 1.0], lambda p: np.eye(2)), "jac returned an array"),
    (lambda: least_squares(residuals, [1.0, 1.0], ftol=None, xtol=None, gtol=None), "all None"),
    (lambda: least_squares(residuals, [1.0, 1.0], method="lm", loss="huber"), 'method is "lm"'),
    (lambda: least_squares(lambda p: np.abs(p), [1.0, 1.0], "cs"), "for complex x; wanted complex"),
    (lambda: curve_fit(3, X, Y), "f is a int; wanted a function"),
    (lambda: curve_fit(lambda x, *p: x, X, Y), "p0 is None, and f names no parameters"),
    (lambda: curve_fit(decay, X, Y, method="LM"), "method is 'LM'; wanted one of"),
    (lambda: curve_fit(decay, X, Y, bounds=(0.0, 9.0), method="lm"), 'method is "lm"'),
    (lambda: curve_fit(decay, X, Y, [9.0, 1.0], bounds=(0.0, 5.0)), r"p0\[0\] is 9.0; wanted"),
    (lambda: curve_fit(decay, X[:1], Y[:1]), "f has 2 parameters; wanted at most as many as data"),
    (lambda: curve_fit(decay, X, []), "ydata is empty"),
    (lambda: curve_fit(decay, X, Y, sigma=np.ones(3)), "sigma has shape"),
    (lambda: curve_fit(decay, X, Y, nan_policy="propagate"), "nan_policy is 'propagate'; wanted"),
    (lambda: curve_fit(decay, X, Y, args=(1,)), "curve_fit got an unknown argument 'args'"),
])
def test_wrong_calls_of_the_fits(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# --- docs/scipy.md lists what differs ----------------------------------------------------------


def differs_in_the_point() -> None:
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    how = {"options": {"maxfun": 3}}
    res = solve(lbfgs, lambda x: (next(values, 2.0), np.ones(1)), np.zeros(1), **how)
    assert res.fun == 1.0


def differs_in_the_iterates() -> None:
    assert solve().nfev != solve("L-BFGS-B").nfev or solve().nit != solve("L-BFGS-B").nit


def differs_in_maxfun() -> None:
    ours, theirs = (solve(m, ROSENBROCK.fun, jac=None, options={"maxfun": 12})
                    for m in (lbfgs, "L-BFGS-B"))
    assert ours.nfev <= 12 < theirs.nfev


def differs_in_ftol() -> None:
    def flat(x: np.ndarray) -> Any:
        return 1e-12 * (x @ x), 2e-12 * x

    how = {"options": {"gtol": 0.0, "ftol": 1e-6}}
    ours, theirs = (solve(m, flat, np.ones(1), **how) for m in (lbfgs, "L-BFGS-B"))
    assert ours.fun < 1e-6 * theirs.fun


def differs_in_constraints() -> None:
    with pytest.warns(RuntimeWarning, match="cannot handle constraints"):
        solve("L-BFGS-B", constraints={"type": "eq", "fun": np.sum})
    with pytest.raises(ValueError, match="constraints were passed"):
        solve(constraints={"type": "eq", "fun": np.sum})
    with pytest.raises(ValueError, match="bounds were passed to newton"):
        solve(newton, bounds=[(0, 1)] * 4)


def differs_in_interrupts() -> None:
    def interrupted(x: np.ndarray) -> Any:
        if seen:
            raise KeyboardInterrupt
        seen.append(x)
        return bowl(x)

    seen: list[Any] = []
    res = solve(lbfgs, interrupted, np.zeros(2))
    assert not res.success and np.array_equal(res.x, np.zeros(2))


def differs_in_hess_inv() -> None:
    ours, theirs = solve(options={"maxiter": 1}).hess_inv, solve("L-BFGS-B").hess_inv
    assert not hasattr(ours, "sk") and hasattr(theirs, "sk")


def differs_in_strategies() -> None:
    with pytest.raises(ValueError, match="hess is .*; wanted a function"):
        solve(newton, hess=optimize.BFGS())


def differs_in_workers() -> None:
    with pytest.warns(optimize.OptimizeWarning, match="Unknown solver options: workers"):
        solve(options={"workers": 2})


def differs_in_the_algorithm() -> None:
    results = [least_squares(residuals, [1.0, 1.0], method=m).x for m in ("lm", "trf", "dogbox")]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert least_squares(lambda p: p[:1] - 1.0, [0.0, 0.0], method="lm").success


def differs_in_sparsity() -> None:
    with pytest.warns(RuntimeWarning, match="jac_sparsity has no effect"):
        least_squares(residuals, [1.0, 1.0], jac_sparsity=np.ones((30, 2)))


def differs_in_gtol() -> None:
    scaled = [
        least_squares(lambda p, c=c: c * residuals(p), [1.0, 1.0], slopes and "3-point", gtol=1e-3)
        for c in (1.0, 1e6)
    ]
    assert scaled[0].nit == scaled[1].nit


def differs_in_nfev() -> None:
    res = least_squares(residuals, [1.0, 1.0])
    assert res.nfev > 3 * res.njev - 2 > optimize.least_squares(residuals, [1.0, 1.0]).nfev


def differs_in_differences() -> None:
    def five(x: np.ndarray) -> np.ndarray:
        return x**2 + 5.0

    ours, theirs = least_squares(five, 2.0), optimize.least_squares(five, 2.0)
    assert ours.success and theirs.success and ours.nfev != theirs.nfev


def differs_in_losses() -> None:
    with pytest.raises(ValueError, match="loss is <"):
        least_squares(residuals, [1.0, 1.0], loss=lambda z: np.stack([z, z * 0 + 1, z * 0]))


def differs_in_x_scale() -> None:
    default, own, jac, other = (
        least_squares(residuals, [1.0, 1.0], x_scale=s) for s in (None, 1.0, "jac", [9.0, 0.1])
    )
    assert np.array_equal(default.x, jac.x) and default.nfev == jac.nfev
    assert len({own.cost, jac.cost, other.cost}) > 1
    np.testing.assert_allclose(other.x, jac.x, rtol=1e-4)


def differs_in_equal_bounds() -> None:
    res = least_squares(residuals, [3.0, 1.0], bounds=([3.0, 0.0], [3.0, 9.0]))
    assert res.success and res.x[0] == 3.0


def differs_in_pcov() -> None:
    with pytest.warns(optimize.OptimizeWarning, match="Covariance"):
        _, pcov = curve_fit(lambda x, a, b: a + b + 0.0 * x, X, Y, method="trf")
    assert np.all(np.isinf(pcov))


LISTED = {
    "Best point.": differs_in_the_point,
    "Other iterates.": differs_in_the_iterates,
    "maxfun": differs_in_maxfun,
    "ftol": differs_in_ftol,
    "Constraints": differs_in_constraints,
    "Ctrl-C": differs_in_interrupts,
    "hess_inv": differs_in_hess_inv,
    "No update strategies.": differs_in_strategies,
    "workers": differs_in_workers,
    "One algorithm.": differs_in_the_algorithm,
    "Dense Jacobian.": differs_in_sparsity,
    "gtol": differs_in_gtol,
    "nfev": differs_in_nfev,
    "Own differences.": differs_in_differences,
    "loss": differs_in_losses,
    "x_scale": differs_in_x_scale,
    "Equal bounds": differs_in_equal_bounds,
    "pcov": differs_in_pcov,
}


def test_the_list_of_differences_is_complete() -> None:
    page = Path(__file__).parents[1] / "docs" / "scipy.md"
    listed = re.findall(r"^- \*\*(.*?)\*\*", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == list(LISTED)


@pytest.mark.parametrize("name", LISTED)
def test_differences_are_as_listed(name: str) -> None:
    LISTED[name]()
