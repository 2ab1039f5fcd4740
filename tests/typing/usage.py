"""What type checkers say of the public functions: run by `make types`, never imported.

Each line that ends in `type: ignore[...]` has to be an error, or the comment is one.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np

import lbfgs_xp as lx

lx.Adamm  # type: ignore[attr-defined]  # noqa: B018


def bowl(x: Any) -> tuple[float, Any]:
    return float(x @ x), 2.0 * x


x0 = np.ones(3)

# --- results: floats for one problem, arrays for a batch ----------------------------------------

res = lx.minimize(bowl, x0, jac=True)
assert_type(res, lx.Result)
assert_type(res.fun, float)
assert_type(res.nit, int)
assert_type(res.success, bool)
assert_type(res.status, lx.Status)
assert_type(res.message, str)
assert_type(res.phases, tuple[lx.Result, ...])
assert_type(res.state, lx.State | None)
if res.hess_inv is not None:
    assert_type(res.hess_inv.shape, tuple[int, ...])
lx.minimize(bowl, res.x, jac=True, state=res.state)
lx.minimize(bowl, res.x, jac=True, state=res)  # type: ignore[call-overload]

batch = lx.minimize(bowl, np.ones((5, 3)), jac=True, batched=True)
assert_type(batch, lx.BatchResult)
assert_type(batch.success.all(), Any)
assert_type(batch.message, list[str])


def either(batched: bool) -> None:
    assert_type(lx.minimize(bowl, x0, batched=batched), lx.Result | lx.BatchResult)


fit = lx.curve_fit(lambda t, a: a * t, x0, x0, [1.0])
assert_type(fit, lx.CurveFit)
assert_type(fit.chi2, float)
assert_type(lx.curve_fit(lambda t, a: a * t, x0, x0, [1.0], batched=True), lx.BatchCurveFit)
squares = lx.least_squares(lambda p: p, x0)
assert_type(squares.cost, float)
assert_type(lx.least_squares(lambda p: p, x0, batched=True), lx.BatchLeastSquaresResult)

trained = lx.train(lambda p, data: p @ p, x0, x0)
assert_type(trained.loss, float)


class Foreign:
    """A solver that derives from no class of this library."""

    def init(self, space: lx.Space, x: Any, value: Any, gradient: Any) -> Any: ...

    def step(self, space: lx.Space, state: Any, value: Any, gradient: Any, active: Any) -> Any: ...


lx.minimize(bowl, x0, method=Foreign())
lx.minimize(bowl, x0, method=[lx.Phase(Foreign(), lx.Limits(maxiter=3)), lx.Newton()])
lx.minimize(bowl, x0, method=Foreign)  # type: ignore[call-overload]
lx.train(lambda p, data: p @ p, x0, x0, method=lx.SGD)  # type: ignore[arg-type]

# --- words --------------------------------------------------------------------------------------

lx.minimize(bowl, x0, jac="3-point", method="bfgs")
lx.minimize(bowl, x0, method=lx.LBFGS(memory_size=5, line_search="hager_zhang"))
lx.minimize(bowl, x0, method=[lx.Adam(0.1).until(maxiter=10), "lbfgs"])
lx.minimize(bowl, x0, method=lx.LBFGS)  # type: ignore[call-overload]
lx.minimize(bowl, x0, method=[lx.Adam, lx.LBFGS()])  # type: ignore[list-item]
lx.minimize(bowl, x0, method=lx.MoreThuente())  # type: ignore[call-overload]
lx.minimize(bowl, x0, callback=lambda record: record.nit == 3)
lx.minimize(bowl, x0, callback=lambda record: record.nits == 3)  # type: ignore[attr-defined]
lx.minimize(bowl, x0, jac="4-point")  # type: ignore[call-overload]
lx.minimize(bowl, x0, method="lbgfs")  # type: ignore[arg-type]
lx.minimize(bowl, x0, max_iter=3)  # type: ignore[call-overload]
lx.minimize(bowl, x0, gtol="small")  # type: ignore[call-overload]
lx.LBFGS(line_search="wolf")  # type: ignore[arg-type]
lx.LBFGS(memory=5)  # type: ignore[call-arg]
lx.Newton(modify="shifted")  # type: ignore[arg-type]
lx.Adam(on_nonfinite="ignored")  # type: ignore[arg-type]
lx.curve_fit(lambda t, a: a * t, x0, x0, [1.0], loss="huber", jac="2-point")
lx.curve_fit(lambda t, a: a * t, x0, x0, [1.0], loss="hubber")  # type: ignore[call-overload]
lx.curve_fit(lambda t, a: a * t, x0, x0, [1.0], method="trf")  # type: ignore[call-overload]
lx.least_squares(lambda p: p, x0, loss="tukey")  # type: ignore[call-overload]
lx.train(lambda p, data: p @ p, x0, x0, method="adamx")  # type: ignore[arg-type]
lx.line_search(lambda a: (a, 1.0), "armijo")
lx.line_search(lambda a: (a, 1.0), "armiho")  # type: ignore[arg-type]
