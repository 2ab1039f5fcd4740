"""SciPy as the oracle: the same minima, with no more evaluations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems
from lbfgs_xp.line_search import NAMES

optimize = pytest.importorskip("scipy.optimize")

GTOL = 1e-6
# name -> the problem, and whether its minimum value is unique
SET: dict[str, tuple[problems.Problem, bool]] = {
    "rosenbrock-2": (problems.rosenbrock(2), True),
    "rosenbrock-10": (problems.rosenbrock(10), True),
    "rosenbrock-100": (problems.rosenbrock(100), True),
    "chained-10": (problems.chained_rosenbrock(10), False),
    "chained-100": (problems.chained_rosenbrock(100), False),
    "beale": (problems.beale(), True),
    "himmelblau": (problems.himmelblau(), True),
    "quadratic": (problems.quadratic(), True),
    "logistic": (problems.logistic_regression(), True),
    "mlp": (problems.mlp_regression(4, samples=16), False),
    "decay": (problems.exponential_decay(), True),
    "decay-noise": (problems.exponential_decay(noise=0.05), True),
}
WOLFE = [name for name in NAMES if name not in ("fixed", "armijo", "more_thuente")]


def by_scipy(p: problems.Problem, memory_size: int = 10) -> Any:
    return optimize.minimize(
        p.value_and_gradient, p.x0, jac=True, method="L-BFGS-B",
        options={
            "maxcor": memory_size, "ftol": 0.0, "gtol": GTOL, "maxiter": 15_000, "maxfun": 100_000
        },
    )


def by_us(p: problems.Problem, rule: str = "more_thuente") -> lx.Result:
    return lx.minimize(
        p.value_and_gradient, p.x0, jac=True, gtol=GTOL, method=lx.LBFGS(line_search=rule)
    )


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return {name: by_scipy(p) for name, (p, _) in SET.items()}


def agree(name: str, ours: lx.Result, theirs: Any) -> None:
    assert ours.status is lx.Status.GRADIENT
    assert ours.gradient_norm <= GTOL
    p, unique = SET[name]
    if unique:
        assert ours.fun == pytest.approx(theirs.fun, rel=1e-8, abs=1e-8)
    if p.minimum is not None and unique:
        assert ours.fun == pytest.approx(p.minimum, abs=1e-8)
    # The value that the function really has there.
    value, gradient = p.value_and_gradient(ours.x)
    assert ours.fun == float(value)
    assert np.max(np.abs(gradient)) == ours.gradient_norm


@pytest.mark.parametrize("name", SET)
def test_the_same_minimum(name: str, theirs: dict[str, Any]) -> None:
    agree(name, by_us(SET[name][0]), theirs[name])


def table(rule: str, theirs: dict[str, Any]) -> tuple[int, int]:
    """Print the evaluations for each problem; return the totals, ours and SciPy's."""
    print(f"\n{rule:16} {'ours':>6} {'SciPy':>6}")
    ours = {name: by_us(p, rule) for name, (p, _) in SET.items()}
    for name in SET:
        print(f"{name:16} {ours[name].nfev:6} {theirs[name].nfev:6}  {ours[name].status.name}")
    totals = sum(r.nfev for r in ours.values()), sum(r.nfev for r in theirs.values())
    print(f"{'all':16} {totals[0]:6} {totals[1]:6}  factor {totals[0] / totals[1]:.2f}")
    return totals


def test_no_more_evaluations(theirs: dict[str, Any]) -> None:
    ours, scipys = table("more_thuente", theirs)
    assert ours <= 1.1 * scipys


@pytest.mark.parametrize("rule", WOLFE)
def test_other_rules_reach_it_too(rule: str, theirs: dict[str, Any]) -> None:
    table(rule, theirs)
    for name, (p, _) in SET.items():
        agree(name, by_us(p, rule), theirs[name])


def test_hess_inv_is_near_the_inverse() -> None:
    """The inverse has norm 1; with the pairs of the whole run it is nearer than SciPy's."""
    p = SET["quadratic"][0]
    identity = np.eye(p.n)
    A = np.stack([p.gradient(identity[i]) - p.gradient(0 * identity[i]) for i in range(p.n)])
    true = np.linalg.inv(A)
    ours = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, gtol=GTOL, method=lx.LBFGS(memory_size=40)
    ).hess_inv.todense()
    error = np.linalg.norm(ours - true)
    assert error <= 0.2
    assert error <= np.linalg.norm(by_scipy(p, 40).hess_inv.todense() - true)


def test_start_that_is_a_batch_of_scipy_runs() -> None:
    """Himmelblau's four minima: every row ends in one of them, like SciPy's runs."""
    p = problems.himmelblau()
    starts = p.starts(50, scale=3.0)
    res = lx.minimize(p.value_and_gradient, starts, jac=True, batched=True, gtol=GTOL)
    assert np.all(res.status == lx.Status.GRADIENT)
    scipys = sum(
        optimize.minimize(
            p.value_and_gradient, x, jac=True, method="L-BFGS-B",
            options={"maxcor": 10, "ftol": 0.0, "gtol": GTOL},
        ).nfev
        for x in starts
    )
    print(f"evaluations of 50 starts: ours {res.nfev.sum()}, SciPy's {scipys}")
    assert res.nfev.sum() <= 1.1 * scipys
    np.testing.assert_allclose(res.fun, 0.0, atol=1e-10)
