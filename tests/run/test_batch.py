"""Many problems at once: each row is a separate run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.line_search import NAMES as RULES
from lbfgs_xp.result import FLAT
from lbfgs_xp.run.restarts import Restarts
from tests.backends import CPU, Backend

NAN, INF = math.nan, math.inf
B = 4
# Shared by many tests, so that JAX compiles once for all of them.
SETTINGS: dict[str, Any] = {"gtol": 1e-7, "maxfun": 80}


def make(name: str, backend: Backend, dtype: str = "float64", **more: Any) -> problems.Problem:
    return problems.ALL[name](
        xp=backend.xp, device=backend.device, dtype=backend.dtype(dtype), **more
    )


def run(p: problems.Problem, x0: Any, batched: bool = True, **settings: Any) -> lx.Result:
    settings = {"method": "lbfgs", **settings}
    return lx.minimize(p.value_and_gradient, x0, jac=True, batched=batched, **settings)


def host(backend: Backend, value: Any) -> np.ndarray:
    return backend.to_numpy(value)


def same_rows(
    backend: Backend, p: problems.Problem, x0: Any, *, bitwise: bool, **settings: Any
) -> lx.Result:
    """Solve the batch and each row alone, and compare the results."""
    batch = run(p, x0, **settings)
    x, fun, jac = (host(backend, a) for a in (batch.x, batch.fun, batch.jac))
    counts = {
        name: host(backend, getattr(batch, name))
        for name in ("nit", "nfev", "status", "success", "gradient_norm")
    }
    assert len(batch.message) == len(x)
    for i in range(len(x)):
        alone = run(p, x0[i, ...], batched=False, **settings)
        assert batch.message[i] == Status(int(counts["status"][i])).message
        if bitwise:
            assert x[i].tobytes() == host(backend, alone.x).tobytes()
            assert jac[i].tobytes() == host(backend, alone.jac).tobytes()
            assert float(fun[i]) == alone.fun
            for name, values in counts.items():
                assert values[i] == getattr(alone, name), name
        else:
            assert counts["status"][i] == alone.status
            for name in ("nit", "nfev"):
                assert abs(int(counts[name][i]) - getattr(alone, name)) <= 2, name
            scale = max(1.0, float(np.max(np.abs(x[i]))))
            np.testing.assert_allclose(x[i], host(backend, alone.x), rtol=0, atol=1e-5 * scale)
            assert abs(float(fun[i]) - alone.fun) <= 1e-8 * max(1.0, abs(alone.fun))
    return batch


# --- each row equals its single run ------------------------------------------------------------

# With a fixed order JAX runs operation by operation: fewer and shorter cases.
CASES = [
    ("rosenbrock", {}, "float64"),
    ("rosenbrock", {}, "float32"),
    ("beale", {}, "float64"),
    ("mlp_regression", {"hidden": 3, "samples": 8, "activation": "softsign"}, "float64"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("backend_", "name", "arguments", "dtype"),
    [(b, *case) for b in CPU for case in (CASES[:3] if b.is_jax else CASES)],
)
def test_rows_are_bitwise_single_runs(
    backend_: Backend, name: str, arguments: dict[str, Any], dtype: str
) -> None:
    p = make(name, backend_, dtype, reproducible=True, **arguments)
    maxiter = 6 if backend_.is_jax else 40
    same_rows(
        backend_, p, p.starts(B, scale=0.5), bitwise=True, reproducible=True, maxiter=maxiter
    )


@pytest.mark.sampled
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend_", [Backend.NUMPY, Backend.TORCH, Backend.STRICT], ids=str)
def test_rows_are_bitwise_single_runs_for_each_rule(backend_: Backend, rule: str) -> None:
    """To the very end: rounding errors, stuck searches, dropped memories."""
    p = make("rosenbrock", backend_, reproducible=True)
    same_rows(
        backend_, p, p.starts(B, scale=1.0), bitwise=True, reproducible=True, gtol=0.0,
        maxiter=60, method=lx.LBFGS(line_search=rule),
    )


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_bitwise_single_runs_on_jax(rule: str) -> None:
    p = make("rosenbrock", Backend.JAX, reproducible=True)
    same_rows(
        Backend.JAX, p, p.starts(2, scale=1.0), bitwise=True, reproducible=True, maxiter=6,
        method=lx.LBFGS(memory_size=3, line_search=rule),
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["himmelblau", "quadratic", "beale", "chained_rosenbrock"])
def test_rows_are_bitwise_single_runs_to_the_floor(name: str, dtype: str) -> None:
    p = make(name, Backend.NUMPY, dtype, reproducible=True)
    for rule in RULES:
        same_rows(
            Backend.NUMPY, p, p.starts(4, scale=1.0), bitwise=True, reproducible=True, gtol=0.0,
            maxfun=90, method=lx.LBFGS(memory_size=4, line_search=rule),
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_initial": False},
        {"initial_inverse_hessian": 0.01},
        {"initial_inverse_hessian": np.asarray([0.01, 0.02])},
        {"initial_inverse_hessian": lambda v: 0.01 * v},
        {"memory_size": 1},
        {"memory_size": 7},
    ],
    ids=["unscaled", "scalar", "diagonal", "callable", "one", "seven"],
)
def test_rows_are_bitwise_single_runs_for_each_setting(settings: dict[str, Any]) -> None:
    p = make("rosenbrock", Backend.NUMPY, reproducible=True)
    same_rows(
        Backend.NUMPY, p, p.starts(B), bitwise=True, reproducible=True, gtol=0.0, maxiter=80,
        method=lx.LBFGS(**settings),
    )


@pytest.mark.parametrize("tolerances", [{"ftol": 1e-4}, {"xtol": 1e-4}, {"gtol": 1e-2}], ids=str)
def test_rows_are_bitwise_single_runs_for_each_tolerance(tolerances: dict[str, float]) -> None:
    p = make("himmelblau", Backend.NUMPY, reproducible=True)
    settings = {"gtol": 0.0, **tolerances}
    same_rows(
        Backend.NUMPY, p, p.starts(8, scale=2.0), bitwise=True, reproducible=True, **settings
    )


@pytest.mark.parametrize("name", ["rosenbrock", "logistic_regression"])
def test_rows_are_single_runs_in_default_mode(backend: Backend, name: str) -> None:
    if name != "rosenbrock" and backend is Backend.JAX:
        pytest.skip("compiled anew for each size: one is enough")
    p = make(name, backend)
    batch = same_rows(backend, p, p.starts(B), bitwise=False, **SETTINGS)
    assert np.all(host(backend, batch.success))


@pytest.mark.parametrize("rule", [r for r in RULES if r != "fixed"])
@pytest.mark.parametrize("backend_", [Backend.NUMPY, Backend.TORCH], ids=str)
def test_rows_are_single_runs_for_each_rule(backend_: Backend, rule: str) -> None:
    p = make("rosenbrock", backend_)
    batch = same_rows(
        backend_, p, p.starts(B), bitwise=False, gtol=1e-7, method=lx.LBFGS(line_search=rule)
    )
    assert np.all(host(backend_, batch.status) == Status.GRADIENT)


# --- what a batch returns ----------------------------------------------------------------------


def test_fields_are_arrays_of_the_library(backend: Backend) -> None:
    p = make("rosenbrock", backend)
    x0 = p.starts(B)
    res = run(p, x0, **SETTINGS)
    assert type(res.x) is type(x0) and tuple(res.x.shape) == (B, 2)
    for name in ("fun", "gradient_norm", "nit", "nfev", "success", "status"):
        field = getattr(res, name)
        assert type(field) is type(x0), name
        assert tuple(field.shape) == (B,), name
        assert field.device == x0.device, name
    assert res.x.dtype == res.jac.dtype == res.fun.dtype == res.gradient_norm.dtype == x0.dtype
    xp = backend.xp
    assert xp.isdtype(res.success.dtype, "bool")
    for counts in (res.nit, res.nfev, res.status):
        assert xp.isdtype(counts.dtype, "integral")
    assert np.all(host(backend, res.status) == Status.GRADIENT)
    assert res.message == [Status.GRADIENT.message] * B
    value, gradient = p.value_and_gradient(res.x)
    np.testing.assert_allclose(host(backend, res.fun), host(backend, value), atol=1e-20)
    np.testing.assert_allclose(host(backend, res.jac), host(backend, gradient), atol=1e-12)
    norm = np.max(np.abs(host(backend, res.jac)), axis=-1)
    np.testing.assert_array_equal(host(backend, res.gradient_norm), norm)
    again = run(p, x0, **SETTINGS)
    for name in ("x", "fun", "jac", "nfev"):
        first, second = (host(backend, getattr(r, name)) for r in (res, again))
        assert first.tobytes() == second.tobytes()


def lines(res: Any) -> dict[str, str]:
    """What is printed for each field."""
    return dict(line.lstrip().split(": ", 1) for line in repr(res).splitlines() if ": " in line)


def bowls(backend: Backend, x0: Any, **settings: Any) -> lx.Result:
    sum_ = backend.xp.sum
    return lx.minimize(
        lambda x: (sum_(x * x, axis=-1), 2.0 * x), backend.asarray(x0), jac=True, batched=True,
        maxiter=0, **settings,
    )


def test_what_is_printed(backend: Backend) -> None:
    res = bowls(backend, [[0.0], [1.0], [3.0], [NAN]])
    shown = lines(res)
    assert shown["success"] == "1 of 4"
    assert shown["status"] == "ITERATIONS 2, GRADIENT 1, NOT_FINITE 1"
    assert shown["fun"] == "min 0, median 1, max 9, nan 1"
    assert shown["gradient_norm"] == "min 0, median 2, max 6, nan 1"
    assert shown["nit"] == "min 0, median 0, max 0"
    assert shown["message"] == f"2 x {Status.ITERATIONS.message}"
    assert f"1 x {Status.NOT_FINITE.message}" in repr(res)


def test_what_is_printed_of_one_row_and_of_many(backend: Backend) -> None:
    shown = lines(bowls(backend, [[1.5, 0.0]]))
    assert shown["success"] == "0 of 1" and shown["status"] == "ITERATIONS 1"
    assert shown["fun"] == "min 2.25, median 2.25, max 2.25"
    shown = lines(bowls(backend, [[NAN, 0.0]]))
    assert shown["fun"] == "nan 1" and shown["status"] == "NOT_FINITE 1"
    many = bowls(backend, np.arange(12345.0)[:, None] + 1.0)
    shown = lines(many)
    assert shown["success"] == "0 of 12345" and "array of shape (12345, 1)" in shown["x"]
    assert shown["gradient_norm"] == "min 2, median 12346, max 24690"
    assert len(repr(many)) < 1000


def test_what_is_printed_of_nested_parameters() -> None:
    x0 = {"a": np.ones((500, 2)), "b": np.ones(500)}
    res = lx.minimize(
        lambda x: (np.sum(x["a"] ** 2, axis=-1) + x["b"] ** 2, {k: 2.0 * x[k] for k in x}), x0,
        jac=True, batched=True,
    )
    shown = "{'a': float64 array of shape (500, 2), 'b': float64 array of shape (500,)}"
    assert lines(res)["x"] == lines(res)["jac"] == shown


def test_batch_of_one(backend: Backend) -> None:
    p = make("rosenbrock", backend)
    same_rows(backend, p, p.starts(1), bitwise=False, reproducible=backend.is_jax, gtol=1e-3)


def test_x0_is_left_alone(backend: Backend) -> None:
    p = make("rosenbrock", backend)
    x0 = backend.asarray(host(backend, p.starts(3)))
    before = host(backend, x0).tobytes()
    for maxiter in (0, 2):
        run(p, x0, maxiter=maxiter, reproducible=backend.is_jax)
        assert host(backend, x0).tobytes() == before


# --- rows that are done, budgets, the best point -----------------------------------------------


@pytest.mark.parametrize("backend_", [b for b in CPU if not b.is_jax], ids=str)
def test_rows_that_are_done_do_not_change(backend_: Backend) -> None:
    p = make("himmelblau", backend_)
    starts = host(backend_, p.starts(5, scale=1.0))
    starts[0] = [3.0, 2.0]  # the minimum itself
    records: list[lx.Record] = []
    res = run(p, backend_.asarray(starts), gtol=1e-6, callback=records.append)
    nit = host(backend_, res.nit)
    assert nit[0] == 0 and len(set(nit.tolist())) > 1
    for i in range(5):
        after = [r for r in records if host(backend_, r.nit)[i] == nit[i]]
        for record in after:
            for name in ("x", "fun", "gradient_norm", "step", "nit", "nfev"):
                first, now = (host(backend_, getattr(r, name))[i] for r in (after[0], record))
                assert first.tobytes() == now.tobytes(), name
        if after:
            assert host(backend_, after[-1].nfev)[i] == host(backend_, res.nfev)[i]
    np.testing.assert_array_equal(host(backend_, res.x)[0], [3.0, 2.0])
    assert host(backend_, res.nfev)[0] == 1


@pytest.mark.parametrize("rule", RULES)
def test_budgets_hold_for_each_row(rule: str) -> None:
    p = make("rosenbrock", Backend.NUMPY)
    starts = p.starts(6, scale=1.0)
    starts[2] = 1.0
    calls = 0

    def fun(x: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        return p.value_and_gradient(x)

    solver = lx.LBFGS(line_search=rule)
    for maxfun in (1, 2, 5, 9):
        calls = 0
        res = lx.minimize(
            fun, starts, jac=True, batched=True, maxfun=maxfun, gtol=1e-9, method=solver
        )
        assert calls <= maxfun
        assert np.all(res.nfev <= maxfun) and res.nfev[2] == 1
        spent = res.status == Status.EVALUATIONS
        assert np.all(res.nfev[spent] == maxfun) and not spent[2]
        assert np.any(spent)
    for maxiter in (0, 1, 4):
        res = lx.minimize(
            fun, starts, jac=True, batched=True, maxiter=maxiter, gtol=1e-9, method=solver
        )
        assert np.all(res.nit <= maxiter) and res.nit[2] == 0
        spent = res.status == Status.ITERATIONS
        assert np.all(res.nit[spent] == maxiter) and not spent[2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reproducible", [False, True])
def test_best_point_of_each_row(rule: str, reproducible: bool) -> None:
    p = make("rosenbrock", Backend.NUMPY)
    starts = p.starts(5, scale=1.0)
    for maxfun in (1, 2, 3, 6, 12, 25):
        seen: list[tuple[np.ndarray, np.ndarray]] = []

        def fun(x: np.ndarray, seen: Any = seen) -> Any:
            value, gradient = p.value_and_gradient(x)
            seen.append((x.copy(), value.copy()))
            return value, gradient

        res = lx.minimize(
            fun, starts, jac=True, batched=True, maxfun=maxfun, gtol=0.0,
            reproducible=reproducible, method=lx.LBFGS(line_search=rule),
        )
        values = np.stack([v for _, v in seen])
        best = np.min(np.where(np.isfinite(values), values, INF), axis=0)
        # A row that is done may still be evaluated, but only at points that it will not adopt.
        for i in range(5):
            assert res.fun[i] <= best[i] * (1 + 4e-16)
            assert any(x[i].tobytes() == res.x[i].tobytes() for x, _ in seen)


def test_interrupt_and_callback_end_what_still_runs() -> None:
    p = make("rosenbrock", Backend.NUMPY)
    starts = p.starts(3)
    starts[1] = 1.0
    # With a tolerance that was given, no end waits to be confirmed.
    res = run(
        p, starts, gtol=1e-9, callback=lambda record: bool(np.all(record.nit[[0, 2]] >= 3))
    )
    assert list(res.status) == [Status.CALLBACK, Status.GRADIENT, Status.CALLBACK]

    def fun(x: np.ndarray) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise error
        return p.value_and_gradient(x)

    error: BaseException = KeyboardInterrupt()
    count = 0
    res = lx.minimize(fun, starts, jac=True, batched=True, method="lbfgs", gtol=1e-9)
    assert list(res.status) == [Status.INTERRUPTED, Status.GRADIENT, Status.INTERRUPTED]
    error, count = ZeroDivisionError(), 0
    with pytest.raises(ZeroDivisionError) as caught:
        lx.minimize(fun, starts, jac=True, batched=True, method="lbfgs", gtol=1e-9)
    np.testing.assert_array_equal(caught.value.result.x, res.x)  # type: ignore[attr-defined]


# --- one bad row -------------------------------------------------------------------------------


def spoiled(backend: Backend, p: problems.Problem, kind: str, row: int) -> Callable:
    """The problem's function of x and the rows, spoiled in one row."""
    xp = backend.xp
    starts = backend.asarray(host(backend, STARTS(p)))

    def fun(x: Any, rows: Any) -> Any:
        value, gradient = p.value_and_gradient(x)
        bad = rows == row
        if kind == "nan":
            other, slope = xp.full_like(value, NAN), gradient * NAN
        elif kind == "inf":
            other, slope = xp.full_like(value, INF), gradient
        elif kind == "unbounded":
            other, slope = xp.sum(x, axis=-1), xp.ones_like(x)
        elif kind == "wrong sign":
            other, slope = value, -gradient
        elif kind == "nan trials":
            start = xp.all(x == xp.take(starts, rows, axis=0), axis=-1)
            none = xp.full_like(value, NAN)
            other = xp.where(start, value, none)
            slope = xp.where(start[:, None], gradient, gradient * NAN)
        return xp.where(bad, other, value), xp.where(bad[:, None], slope, gradient)

    return fun


def STARTS(p: problems.Problem) -> Any:  # noqa: N802
    return p.starts(B, seed=3)


WANTED = {
    "nan": Status.NOT_FINITE,
    "inf": Status.NOT_FINITE,
    "unbounded": Status.UNBOUNDED,
    "wrong sign": Status.LINE_SEARCH,
    "nan trials": Status.LINE_SEARCH,
}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", WANTED)
def test_one_bad_row_harms_no_other(backend: Backend, kind: str) -> None:
    reproducible = backend in (Backend.NUMPY_READONLY, Backend.STRICT)
    p = make("rosenbrock", backend, reproducible=reproducible)
    x0 = STARTS(p)
    settings = {"reproducible": reproducible, **SETTINGS}
    clean = run(p, x0, **settings)
    row = 1
    res = lx.minimize(
        spoiled(backend, p, kind, row), x0, jac=True, batched=True, pass_rows=True,
        method="lbfgs", **settings,
    )
    status = host(backend, res.status)
    assert status[row] == WANTED[kind], Status(int(status[row])).name
    assert not host(backend, res.success)[row]
    others = [i for i in range(B) if i != row]
    for name in ("x", "fun", "jac", "nit", "nfev", "status"):
        found, wanted = host(backend, getattr(res, name)), host(backend, getattr(clean, name))
        if backend.is_jax or name in ("x", "fun", "jac"):
            tolerance = 0.0 if reproducible else 1e-6
            if name in ("nit", "nfev"):
                continue
            np.testing.assert_allclose(found[others], wanted[others], rtol=0, atol=tolerance)
        else:
            np.testing.assert_array_equal(found[others], wanted[others])
    if kind in ("wrong sign", "nan trials", "nan", "inf"):
        np.testing.assert_array_equal(host(backend, res.x)[row], host(backend, x0)[row])


def test_start_of_nan_in_one_row() -> None:
    p = make("rosenbrock", Backend.NUMPY)
    x0 = p.starts(3)
    clean = run(p, x0)
    x0[0] = NAN
    res = run(p, x0)
    assert list(res.status) == [Status.NOT_FINITE, Status.GRADIENT, Status.GRADIENT]
    np.testing.assert_array_equal(res.x[1:], clean.x[1:])
    assert np.all(np.isnan(res.x[0]))


@pytest.mark.parametrize("kind", ["nan", "unbounded", "start"])
def test_going_on_with_one_bad_row(kind: str) -> None:
    """For the good rows, 30 iterations followed by 30 are the same as 60."""
    p = problems.chained_rosenbrock(8)
    x0 = STARTS(p)
    fun = p.value_and_gradient
    if kind == "start":
        x0[1] = NAN
    else:
        fun = spoiled(Backend.NUMPY, p, kind, 1)
    settings: dict[str, Any] = {
        "jac": True, "batched": True, "gtol": 0.0, "method": "lbfgs", "pass_rows": kind != "start",
    }
    whole = lx.minimize(fun, x0, maxiter=60, **settings)
    half = lx.minimize(fun, x0, maxiter=30, **settings)
    rest = lx.minimize(fun, half.x, maxiter=30, state=half.state, **settings)
    others = [0, 2, 3]
    assert rest.x[others].tobytes() == whole.x[others].tobytes()
    assert list(rest.nit[others]) == [30, 30, 30]


# --- shapes, structures, forms of the gradient -------------------------------------------------


def test_matrices_as_rows(backend: Backend) -> None:
    xp = backend.xp
    target = backend.asarray(np.arange(24.0).reshape(4, 2, 3))

    def fun(x: Any) -> Any:
        assert tuple(x.shape) == (4, 2, 3)
        d = x - target
        return xp.sum(xp.sum(d * d, axis=-1), axis=-1), 2.0 * d

    x0 = backend.asarray(np.zeros((4, 2, 3)))
    how: dict[str, Any] = {"batched": True, "reproducible": backend.is_jax, "gtol": 1e-8}
    res = lx.minimize(fun, x0, jac=True, method="lbfgs", **how)
    assert tuple(res.x.shape) == tuple(res.jac.shape) == (4, 2, 3)
    assert np.all(host(backend, res.success))
    np.testing.assert_allclose(host(backend, res.x), host(backend, target), atol=1e-6)
    assert res.hess_inv.shape == (4, 6, 6)


def test_numbers_as_rows(backend: Backend) -> None:
    """x0 of shape (B,): B problems of one variable."""
    targets = backend.asarray([1.0, -2.0, 30.0])
    res = lx.minimize(
        lambda x: ((x - targets) ** 2, 2.0 * (x - targets)), backend.asarray(np.zeros(3)),
        jac=True, batched=True, method="lbfgs", reproducible=backend.is_jax,
    )
    assert tuple(res.x.shape) == (3,)
    np.testing.assert_allclose(host(backend, res.x), host(backend, targets), atol=1e-6)


def test_dict_of_arrays(backend: Backend) -> None:
    xp = backend.xp

    def value(t: Any) -> Any:
        return xp.sum((t["w"] - 2.0) ** 2, axis=-1) + (t["b"] + 1.0) ** 2

    def gradient(t: Any) -> Any:
        return {"w": 2.0 * (t["w"] - 2.0), "b": 2.0 * (t["b"] + 1.0)}

    x0 = {"w": backend.asarray(np.zeros((3, 2))), "b": backend.asarray(np.zeros(3))}
    for jac in [gradient, "3-point", *([None] if backend.has_autodiff else [])]:
        res = lx.minimize(
            value, x0, jac=jac, batched=True, method="lbfgs", gtol=1e-6, reproducible=backend.is_jax
        )
        assert np.all(host(backend, res.success))
        assert set(res.x) == {"w", "b"} and tuple(res.x["b"].shape) == (3,)
        np.testing.assert_allclose(host(backend, res.x["w"]), 2.0, atol=1e-6)
        np.testing.assert_allclose(host(backend, res.x["b"]), -1.0, atol=1e-6)


def test_complex_rows(backend: Backend) -> None:
    xp = backend.xp
    targets = backend.asarray([[1.0 + 1.0j, 2.0], [3.0j, -1.0]], "complex128")

    def fun(z: Any) -> Any:
        d = z - targets
        return xp.sum(xp.real(d) ** 2 + xp.imag(d) ** 2, axis=-1), 2.0 * d

    z0 = backend.asarray(np.zeros((2, 2)), "complex128")
    res = lx.minimize(fun, z0, jac=True, batched=True, method="lbfgs", reproducible=backend.is_jax)
    assert res.x.dtype == z0.dtype and np.all(host(backend, res.success))
    np.testing.assert_allclose(host(backend, res.x), host(backend, targets), atol=1e-6)


def test_autodiff(backend: Backend) -> None:
    if not backend.has_autodiff:
        pytest.skip(f"{backend} has no automatic differentiation")
    p = make("rosenbrock", backend)
    x0 = p.starts(B)
    res = lx.minimize(p.fun, x0, batched=True, method="lbfgs", **SETTINGS)
    given = run(p, x0, **SETTINGS)
    assert np.all(host(backend, res.status) == Status.GRADIENT)
    np.testing.assert_allclose(host(backend, res.x), host(backend, given.x), atol=1e-5)
    if backend.is_torch:
        assert not res.x.requires_grad and not res.fun.requires_grad


@pytest.mark.parametrize("backend_", [b for b in CPU if not b.is_jax], ids=str)
def test_aux_of_each_row(backend_: Backend) -> None:
    xp = backend_.xp
    p = make("rosenbrock", backend_)

    def fun(x: Any) -> Any:
        value, gradient = p.value_and_gradient(x)
        return (value, {"x": x * 1.0, "value": value * 2.0}), gradient

    for maxfun in (1, 2, 4, 9, None):
        res = lx.minimize(
            fun, p.starts(3, scale=1.0), jac=True, batched=True, method="lbfgs", has_aux=True,
            maxfun=maxfun,
        )
        np.testing.assert_array_equal(host(backend_, res.aux["x"]), host(backend_, res.x))
        np.testing.assert_array_equal(
            host(backend_, res.aux["value"]), 2.0 * host(backend_, res.fun)
        )
    assert type(res.aux["x"]) is type(xp.zeros(1, device=backend_.device))


def test_buffers_are_reused() -> None:
    """fun reuses the same two arrays for its results."""
    p = problems.chained_rosenbrock(6)
    x0 = STARTS(p)
    f, g = np.empty(B), np.empty((B, 6))

    def fun(x: np.ndarray) -> Any:
        k = len(x)
        f[:k], g[:k] = p.value_and_gradient(x)
        return f[:k], g[:k]

    for reproducible in (False, True):
        settings: dict[str, Any] = {"gtol": 1e-8, "reproducible": reproducible}
        res = lx.minimize(fun, x0, jac=True, batched=True, method="lbfgs", **settings)
        wanted = run(p, x0, **settings)
        for name in ("x", "fun", "jac", "nit", "nfev", "status"):
            np.testing.assert_array_equal(getattr(res, name), getattr(wanted, name))
        kept = res.fun.copy(), res.jac.copy()
        f[:], g[:] = NAN, NAN
        np.testing.assert_array_equal(res.fun, kept[0])
        np.testing.assert_array_equal(res.jac, kept[1])


def test_torch_buffers_are_reused() -> None:
    p = make("chained_rosenbrock", Backend.TORCH, n=6)
    x0 = STARTS(p)
    f, g = x0[:, 0].clone(), x0.clone()

    def fun(x: Any) -> Any:
        value, gradient = p.value_and_gradient(x)
        k = len(x)
        f[:k].copy_(value)
        g[:k].copy_(gradient)
        return f[:k], g[:k]

    res = lx.minimize(fun, x0, jac=True, batched=True, method="lbfgs", gtol=1e-8)
    wanted = run(p, x0, gtol=1e-8)
    for name in ("x", "fun", "jac", "nit", "nfev", "status"):
        found = getattr(res, name), getattr(wanted, name)
        np.testing.assert_array_equal(*(host(Backend.TORCH, a) for a in found))


def test_many_rows_at_once() -> None:
    p = problems.himmelblau()
    res = run(p, p.starts(2000, scale=3.0), gtol=1e-6)
    assert np.mean(res.success) == 1.0
    assert np.max(res.gradient_norm) <= 1e-6


# --- data of the rows --------------------------------------------------------------------------


def quartic(x: np.ndarray, target: np.ndarray) -> Any:
    d = x - target
    return (d**4 + d**2).sum(-1), 4.0 * d**3 + 2.0 * d


# Distant rows take longer than near ones, so that rows leave again and again.
TARGETS = 10.0 ** np.linspace(-3.0, 2.0, 20)[:, None] * np.asarray([1.0, -2.0, 3.0])


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "gradient_descent", "adam"])
@pytest.mark.parametrize("backend_", [Backend.NUMPY, Backend.TORCH], ids=str)
def test_batches_larger_than_a_piece(backend_: Backend, method: str) -> None:
    """Large arrays are processed in pieces."""
    size, few = 30_011, 50
    p = make("rosenbrock", backend_, n=6)
    x0 = np.random.default_rng(0).uniform(-2.0, 2.0, size=(size, 6))
    settings = {"method": method, "maxiter": 6}
    res = run(p, backend_.asarray(x0), **settings)
    part = run(p, backend_.asarray(x0[-few:]), **settings)
    x, alone = host(backend_, res.x), host(backend_, part.x)
    assert x.shape == x0.shape
    np.testing.assert_allclose(x[-few:], alone, rtol=1e-9, atol=1e-9)


def test_args_without_rows_stay_the_objects_they_are() -> None:
    log: list[int] = []
    counts = {"calls": 0}

    def fun(x: np.ndarray, target: np.ndarray, log: list[int], counts: dict[str, int]) -> Any:
        log.append(len(x))
        counts["calls"] += 1
        return quartic(x, target)

    x0 = np.zeros_like(TARGETS)
    # By a tolerance of one's own, because the look before a run ends sees all rows.
    res = lx.minimize(fun, x0, (TARGETS, log, counts), jac=True, batched=True, gtol=1e-6)
    assert res.success.all()
    assert log[-1] < len(x0) == log[0]
    assert counts["calls"] == len(log) == max(res.nfev)


def test_aux_that_only_happens_to_be_as_long_as_the_batch() -> None:
    table = np.arange(20.0)
    for method in ("bfgs", "lbfgs"):

        def fun(x: np.ndarray, target: np.ndarray) -> Any:
            value, gradient = quartic(x, target)
            return (value, {"of rows": x + 1.0, "table": table}), gradient

        res = lx.minimize(
            fun, np.zeros_like(TARGETS), (TARGETS,), jac=True, batched=True, has_aux=True,
            method=method,
        )
        np.testing.assert_array_equal(res.aux["of rows"], res.x + 1.0)
        np.testing.assert_array_equal(res.aux["table"], table)


def test_aux_of_another_structure_is_refused() -> None:
    def fun(x: np.ndarray, target: np.ndarray) -> Any:
        value, gradient = quartic(x, target)
        return (value, list(value)), gradient

    with pytest.raises(ValueError, match="aux of the structure") as error:
        lx.minimize(
            fun, np.zeros_like(TARGETS), (TARGETS,), jac=True, batched=True, has_aux=True
        )
    assert error.value.result.x.shape == TARGETS.shape    # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [True, False], ids=["none first", "array first"])
def test_aux_of_none_and_of_arrays_is_refused(first: bool) -> None:
    calls = 0

    def fun(x: np.ndarray, target: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        value, gradient = quartic(x, target)
        return (value, {"of rows": None if (calls == 1) == first else value}), gradient

    with pytest.raises(ValueError, match="^fun returned aux with None instead of an array"):
        lx.minimize(
            fun, np.zeros_like(TARGETS), (TARGETS,), jac=True, batched=True, has_aux=True
        )


def test_an_interrupt_between_point_and_aux_parts_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    def fun(x: np.ndarray, target: np.ndarray) -> Any:
        value, gradient = quartic(x, target)
        return (value, x + 1.0), gradient

    plain, calls = lx.Space.merge, 0

    def merge(self: Any, mask: Any, new: Any, old: Any) -> Any:
        nonlocal calls
        calls += type(new) is tuple    # the leaves of aux that have an entry for each row
        if calls == 5:
            raise KeyboardInterrupt
        return plain(self, mask, new, old)

    monkeypatch.setattr(lx.Space, "merge", merge)
    res = lx.minimize(
        fun, np.zeros_like(TARGETS), (TARGETS,), jac=True, batched=True, has_aux=True
    )
    assert calls == 5 and Status.INTERRUPTED in res.status
    np.testing.assert_array_equal(res.aux, res.x + 1.0)


def test_differences_in_float32_that_set_out_again(backend: Backend) -> None:
    """A batch that sets out from its best point again, on libraries whose scalars are arrays."""
    p = problems.himmelblau(xp=backend.xp, dtype="float32", device=backend.device)
    res = lx.minimize(
        p.fun, p.starts(40, scale=0.5, seed=3), jac="2-point", batched=True, maxiter=30
    )
    assert np.all(backend.to_numpy(res.fun) < 1e-2)


def test_a_row_that_need_not_restart_ends_while_another_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    from_best = Restarts.from_best

    def of_two_kinds(restarts: Restarts) -> bool:
        run = restarts.run
        if seen:
            return from_best(restarts)
        # Looks have found lower points for both, but for the first one by what does not matter,
        # once again.
        (_, p, best), fn = run.standing, run.space.scalars
        restarts.departures = np.asarray([3, 0])
        restarts.departed = best.value + np.asarray([1e-30, 1.0])
        run.note(p._replace(status=fn.full(int(Status.HIGHER), p.status)))
        resumes = from_best(restarts)
        seen.append((run.standing.progress.status.copy(), restarts.departures))
        return resumes

    monkeypatch.setattr(Restarts, "from_best", of_two_kinds)
    res = lx.minimize(
        lambda x: (np.sum(x**2, axis=-1) + 1.0, 2.0 * x), np.ones((2, 3)), jac=True, batched=True
    )
    (status, departures), = seen
    # The other one has restarted from its minimum, which is yet to be confirmed.
    assert status.tolist() == [int(Status.PRECISION), FLAT]
    assert departures.tolist() == [3, 1]
    assert list(res.status) == [Status.PRECISION, Status.GRADIENT]
