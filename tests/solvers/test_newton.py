"""Newton's method, and where its Hessian comes from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.line_search import NAMES as RULES
from lbfgs_xp.run.objective import Objective
from tests.backends import CPU, Backend

PURE = lx.Newton(line_search=lx.Fixed(1.0), modify=None)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of (..., n) for any library, with its gradient and Hessian."""

    fun: Callable
    hess: Callable

    def __call__(self, x: Any) -> Any:
        return self.fun(x)

    def solve(self, x0: Any, method: Any = "newton", **settings: Any) -> lx.Result:
        return lx.minimize(self.fun, x0, jac=True, hess=self.hess, method=method, **settings)

    def path(self, backend: Backend, x0: Any, method: Any, **settings: Any) -> tuple[Any, Any]:
        """The result and all iterates (k, n), including the start."""
        seen = [backend.to_numpy(x0)]
        res = self.solve(
            x0, method, callback=lambda r: seen.append(backend.to_numpy(r.x)), **settings
        )
        return res, np.stack(seen)


def matrix(xp: Any, rows: list[list[Any]]) -> Any:
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def rosenbrock(backend: Backend) -> Case:
    xp = backend.xp

    def fun(x: Any) -> Any:
        a, b = x[..., 0], x[..., 1]
        t, u = b - a * a, 1.0 - a
        return 100.0 * (t * t) + u * u, xp.stack([-400.0 * (a * t) - 2.0 * u, 200.0 * t], axis=-1)

    def hess(x: Any) -> Any:
        a, b = x[..., 0], x[..., 1]
        one = xp.ones_like(a)
        return matrix(
            xp, [[1200.0 * (a * a) - 400.0 * b + 2.0 * one, -400.0 * a], [-400.0 * a, 200.0 * one]]
        )

    return Case(fun, hess)


def saddle(backend: Backend) -> Case:
    """x^2 - 2 y^2 + y^4: a saddle at 0, minima at (0, 1) and (0, -1)."""
    xp = backend.xp

    def fun(x: Any) -> Any:
        a, b = x[..., 0], x[..., 1]
        s = b * b
        return a * a - 2.0 * s + s * s, xp.stack([2.0 * a, 4.0 * (b * s) - 4.0 * b], axis=-1)

    def hess(x: Any) -> Any:
        a, b = x[..., 0], x[..., 1]
        zero = xp.zeros_like(a)
        return matrix(xp, [[zero + 2.0, zero], [zero, 12.0 * (b * b) - 4.0]])

    return Case(fun, hess)


def hyperbola(backend: Backend) -> Case:
    """sqrt(1 + x^2): a Newton step goes from x to -x^3."""
    xp = backend.xp

    def fun(x: Any) -> Any:
        root = xp.sqrt(1.0 + x * x)
        return root[..., 0], x / root

    return Case(fun, lambda x: ((1.0 + x * x) ** -1.5)[..., None])


def waves(backend: Backend) -> Case:
    """x cos(c x), c = 0.15 pi: a maximum near 1.83, a minimum near 7.27."""
    xp, c = backend.xp, 0.15 * math.pi

    def fun(x: Any) -> Any:
        return (x * xp.cos(c * x))[..., 0], xp.cos(c * x) - c * x * xp.sin(c * x)

    return Case(fun, lambda x: (-2.0 * c * xp.sin(c * x) - c * c * x * xp.cos(c * x))[..., None])


def quadratic(backend: Backend, H: np.ndarray, b: np.ndarray) -> Case:
    A, b = backend.asarray(H), backend.asarray(b)
    xp = backend.xp

    def fun(x: Any) -> Any:
        Ax = (A @ x[..., None])[..., 0]
        return xp.sum(0.5 * x * Ax - b * x, axis=-1), Ax - b

    return Case(fun, lambda x: A + xp.zeros_like(x)[..., None])


def symmetric(seed: int, eigenvalues: list[float]) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return q @ np.diag(eigenvalues) @ q.T


# --- known properties of the method ------------------------------------------------------------


@pytest.mark.parametrize("method", [lx.Newton(), lx.Newton(modify="shift"), PURE])
def test_one_step_to_the_minimum_of_a_quadratic(backend: Backend, method: lx.Newton) -> None:
    H, b = symmetric(0, [0.1, 3.0, 7.0, 40.0]), np.arange(1.0, 5.0)
    case = quadratic(backend, H, b)
    res = case.solve(backend.asarray(np.ones(4)), method, gtol=1e-9)
    assert (res.status, res.nit, res.nfev, res.nhev) == (Status.GRADIENT, 1, 2, 2)
    np.testing.assert_allclose(backend.to_numpy(res.x), np.linalg.solve(H, b), rtol=1e-10)


@pytest.mark.parametrize("modify", ["absolute", "shift", None])
def test_the_error_is_squared(backend: Backend, modify: str | None) -> None:
    """Nocedal & Wright, theorem 3.5."""
    case = rosenbrock(backend)
    res, x = case.path(
        backend, backend.asarray([-1.2, 1.0]), lx.Newton(modify=modify), gtol=1e-12
    )
    errors = np.max(np.abs(x - 1.0), axis=-1)
    assert res.success and errors[-1] < 1e-12
    last = [(a, b) for a, b in zip(errors, errors[1:], strict=False) if 1e-7 < a < 5e-3]
    assert len(last) >= 2
    for before, after in last:
        assert after < 100.0 * before**2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("modify", ["absolute", "shift", None])
def test_every_rule(rule: str, modify: str | None) -> None:
    case = rosenbrock(Backend.NUMPY)
    res = case.solve(np.asarray([-1.2, 1.0]), lx.Newton(line_search=rule, modify=modify))
    assert res.status is Status.GRADIENT and res.nit < 40
    np.testing.assert_allclose(res.x, 1.0, rtol=1e-7)


# --- damped, saddle, non-convex ----------------------------------------------------------------


def test_damped(backend: Backend) -> None:
    """From 1.5 the full step goes to -1.5^3, the half step to x (1 - x^2) / 2."""
    case, x0 = hyperbola(backend), backend.asarray([1.5])
    res, x = case.path(backend, x0, PURE, maxiter=4)
    np.testing.assert_allclose(x[1:4, 0], -x[:3, 0] ** 3, rtol=1e-10)
    assert not res.success and abs(x[3, 0]) > 1e4 and backend.to_numpy(res.x)[0] == 1.5

    damped = lx.Newton(line_search=lx.Fixed(0.5), modify=None)
    res, x = case.path(backend, x0, damped)
    np.testing.assert_allclose(x[1:, 0], 0.5 * x[:-1, 0] * (1.0 - x[:-1, 0] ** 2), rtol=1e-10)
    assert res.status is Status.GRADIENT and abs(float(res.x[0])) < 1e-7

    res = case.solve(x0)
    assert res.status is Status.GRADIENT and res.nit < 10


def test_saddle(backend: Backend) -> None:
    case, x0 = saddle(backend), backend.asarray([1.0, 0.1])
    res, x = case.path(backend, x0, PURE)
    np.testing.assert_allclose(x[-1], 0.0, atol=1e-8)
    # The function is lower next to the saddle, and the lowest point is the one returned.
    assert res.status is Status.HIGHER and not res.success and -1e-4 < res.fun < 0.0
    for method in (lx.Newton(), lx.Newton(modify="shift"), lx.Newton(modify=None)):
        res = case.solve(x0, method)
        assert res.status is Status.GRADIENT
        np.testing.assert_allclose(np.abs(backend.to_numpy(res.x)), [0.0, 1.0], atol=1e-7)


def test_a_pure_step_of_no_slope_is_taken() -> None:
    """At (1, 1), (x^2 - y^2) / 2 has no slope towards the saddle: g . d = 0."""
    case = quadratic(Backend.NUMPY, np.diag([1.0, -1.0]), np.zeros(2))
    _, x = case.path(Backend.NUMPY, np.ones(2), PURE, maxiter=1)
    np.testing.assert_allclose(x[1], 0.0, atol=1e-15)


def test_not_convex(backend: Backend) -> None:
    case, x0 = waves(backend), backend.asarray([3.0])
    res, x = case.path(backend, x0, PURE)
    assert x[-1, 0] == pytest.approx(1.8256845, abs=1e-6)  # a maximum
    assert res.status is Status.HIGHER and float(res.x[0]) == 3.0
    for method in (lx.Newton(), lx.Newton(modify="shift"), lx.Newton(modify=None)):
        res = case.solve(x0, method)
        assert res.status is Status.GRADIENT
        assert float(res.x[0]) == pytest.approx(7.2693881, abs=1e-6)


def test_higher_in_a_batch(backend: Backend) -> None:
    res = waves(backend).solve(backend.asarray([[3.0], [7.0]]), PURE, batched=True)
    assert list(backend.to_numpy(res.status)) == [Status.HIGHER, Status.GRADIENT]
    np.testing.assert_allclose(backend.to_numpy(res.x)[:, 0], [3.0, 7.2693881], atol=1e-6)


# --- the modifications, against dense oracles --------------------------------------------------

SPECTRA = [
    [1.0, 2.0, 3.0, 4.0],
    [-3.0, -0.5, 0.2, 5.0],
    [-5.0, -2.0, -1.0, -0.1],
    [0.0, 1.0, 2.0, 3.0],
    [-1e-9, 1.0, 2.0, 1e4],
]


def first_direction(backend: Backend, method: lx.Newton, H: np.ndarray, g: np.ndarray) -> Any:
    x = backend.asarray(np.zeros(H.shape[:-1]))
    space = lx.Space(x, batched=H.ndim > 2)
    value = backend.asarray(np.ones(len(H))) if H.ndim > 2 else 1.0
    state = method.init(
        space, x, value, backend.asarray(g), hessian=lambda x: backend.asarray(H)
    )
    return backend.to_numpy(state.direction)


@pytest.mark.parametrize("floor", [None, 1e-3])
@pytest.mark.parametrize("modify", ["absolute", "shift"])
def test_modified_hessians(backend: Backend, modify: str, floor: float | None) -> None:
    H = np.stack([symmetric(k, spectrum) for k, spectrum in enumerate(SPECTRA)])
    g = np.random.default_rng(9).normal(size=(len(H), 4))
    relative = np.finfo(float).eps ** (2 / 3) if floor is None else floor
    wanted = []
    for matrix_, gradient in zip(H, g, strict=True):
        if modify == "absolute":  # |H| by singular values, which for symmetric H are |l|
            u, singular, _ = np.linalg.svd(matrix_)
            singular = np.maximum(singular, relative * singular.max())
            wanted.append(-(u / singular) @ (u.T @ gradient))
        else:
            values = np.linalg.eigvalsh(matrix_)
            least = max(abs(values[0]), relative * np.max(np.abs(values)))
            shifted = matrix_ + (least - values[0]) * np.eye(4)
            wanted.append(np.linalg.solve(shifted, -gradient))
    method = lx.Newton(modify=modify, floor=floor)
    # The fourth is singular: its direction is only as accurate as its least eigenvalue.
    for k in (0, 1, 2, 4) if floor is None else (0, 1, 2, 3, 4):
        found = first_direction(backend, method, H[k], g[k])
        np.testing.assert_allclose(found, wanted[k], rtol=1e-4 if k == 4 else 1e-8)
    if floor is not None and not backend.is_jax:  # new shapes take seconds on JAX
        found = first_direction(backend, method, H, g)
        np.testing.assert_allclose(found, np.stack(wanted), rtol=1e-4)


@pytest.mark.parametrize("modify", ["absolute", "shift", None])
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_without_a_usable_hessian_steepest_descent(
    backend: Backend, bad: float, modify: str | None
) -> None:
    g = np.asarray([[1.0, -2.0], [3.0, 4.0]])
    H = np.asarray([np.full((2, 2), bad), np.diag([2.0, 4.0])])
    method = lx.Newton(modify=modify)
    np.testing.assert_array_equal(first_direction(backend, method, H[0], g[0]), -g[0])
    if backend.is_jax:
        return
    wanted = [-g[0], [-1.5, -1.0]]
    np.testing.assert_allclose(first_direction(backend, method, H, g), wanted, rtol=1e-14)


def test_uphill_without_modification_steepest_descent() -> None:
    g = np.asarray([1.0, 1.0])
    H = np.diag([1.0, -0.5])
    np.testing.assert_array_equal(
        first_direction(Backend.NUMPY, lx.Newton(modify=None), H, g), -g
    )
    np.testing.assert_allclose(first_direction(Backend.NUMPY, PURE, H, g), [-1.0, 2.0])


@pytest.mark.parametrize("batched", [False, True])
def test_a_search_that_leads_nowhere_is_followed_by_steepest_descent(batched: bool) -> None:
    """With a far too small Hessian, steps are too long for the search to shorten in its budget."""

    def fun(x: np.ndarray) -> Any:
        return np.sum(x**2, -1), 2.0 * x

    def hess(x: np.ndarray) -> Any:
        return 1e-9 * np.eye(2) + np.zeros((*x.shape, 1))

    x0 = np.ones((3, 2)) if batched else np.ones(2)
    method = lx.Newton(line_search=lx.Armijo(max_evaluations=2, shrink_max=0.2, shrink_min=0.2))
    res = lx.minimize(fun, x0, jac=True, hess=hess, method=method, batched=batched)
    assert np.all(res.success) and np.allclose(res.x, 0.0, atol=1e-7)


# --- a batch, and the same bits ----------------------------------------------------------------


@pytest.mark.parametrize("modify", ["absolute", "shift", None])
def test_rows_are_bitwise_single_runs(backend: Backend, modify: str | None) -> None:
    case = rosenbrock(backend)
    rng = np.random.default_rng(1)
    starts = backend.asarray(rng.normal(size=(3, 2)))
    settings: dict[str, Any] = {
        "method": lx.Newton(modify=modify), "reproducible": True, "gtol": 0.0,
        "maxiter": 5 if backend.is_jax else 15 if backend.is_strict else 60,
    }
    batch = case.solve(starts, batched=True, **settings)
    for i in range(3):
        alone = case.solve(starts[i, ...], **settings)
        assert backend.to_numpy(batch.x)[i].tobytes() == backend.to_numpy(alone.x).tobytes()
        for name in ("nit", "nfev", "status", "gradient_norm"):
            assert backend.to_numpy(getattr(batch, name))[i] == getattr(alone, name), name


def test_the_same_bits_on_every_library(backend: Backend) -> None:
    """The eigenvalues are computed by NumPy for every library."""
    ends = []
    for b in (Backend.NUMPY, backend):
        res = rosenbrock(b).solve(b.asarray([-1.2, 1.0]), reproducible=True, gtol=1e-12)
        ends.append((b.to_numpy(res.x).tobytes(), res.fun, res.nit, res.nfev))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows_agree_with_single_runs(backend: Backend, dtype: str) -> None:
    if backend.is_jax:
        pytest.skip("slow op by op; the test above has the same rows")
    case = rosenbrock(backend)
    starts = backend.asarray(np.random.default_rng(2).normal(size=(3, 2)), dtype)
    batch = case.solve(starts, batched=True)
    assert batch.x.dtype == backend.dtype(dtype)
    assert np.all(backend.to_numpy(batch.success))
    atol = 1e-7 if dtype == "float64" else 1e-2
    for i in range(3):
        alone = case.solve(starts[i, ...])
        assert alone.success
        np.testing.assert_allclose(
            backend.to_numpy(batch.x)[i], backend.to_numpy(alone.x), atol=atol
        )
        assert backend.to_numpy(batch.status)[i] == alone.status
        assert abs(int(backend.to_numpy(batch.nfev)[i]) - alone.nfev) <= 2


# --- where the Hessian comes from --------------------------------------------------------------

DIFFERENTIATE = [b for b in CPU if b.has_autodiff]


@pytest.mark.parametrize("form", ["fun", "both", "aux", "jac", "compiled"])
@pytest.mark.parametrize("backend_", DIFFERENTIATE, ids=str)
def test_by_automatic_differentiation(backend_: Backend, form: str) -> None:
    case = rosenbrock(backend_)
    x = backend_.asarray(np.random.default_rng(3).normal(size=(4, 2)))

    def fun(x: Any) -> Any:
        value, gradient = case.fun(x)
        return {"both": (value, gradient), "aux": ((value, x), gradient)}.get(form, value)

    if form == "compiled":
        if not backend_.is_jax:
            pytest.skip("JAX alone compiles")
        import jax

        fun = jax.jit(fun)
    jac: Any = {"both": True, "aux": True, "jac": lambda x: case.fun(x)[1]}.get(form)
    for point, batched in ((x, True), (x[0], False)):
        layout = Layout(point, batched)
        objective = Objective(fun, (), jac, form == "aux", layout)
        found = objective.hessian(None)(point)
        np.testing.assert_allclose(
            backend_.to_numpy(found), backend_.to_numpy(case.hess(point)), rtol=1e-12, atol=1e-12
        )
        assert objective.nhev == 1 and objective.nfev == 0


@pytest.mark.parametrize("backend_", DIFFERENTIATE, ids=str)
def test_automatic_from_start_to_end(backend_: Backend) -> None:
    case = rosenbrock(backend_)
    x0 = backend_.asarray([-1.2, 1.0])
    res = lx.minimize(lambda x: case.fun(x)[0], x0, method="newton")
    given = case.solve(x0)
    assert res.success and (res.nit, res.nhev) == (given.nit, given.nhev)
    np.testing.assert_allclose(backend_.to_numpy(res.x), 1.0, rtol=1e-7)


@pytest.mark.parametrize("backend_", DIFFERENTIATE, ids=str)
@pytest.mark.parametrize("power", [1, 3])
def test_linear_and_separate_variables(backend_: Backend, power: int) -> None:
    x = backend_.asarray([1.0, 2.0])
    weights = backend_.asarray([3.0, 5.0])
    if backend_.is_torch:
        weights.requires_grad_(True)  # another variable that the user differentiates by
    objective = Objective(lambda x: (weights * x**power).sum(), (), None, False, Layout(x, False))
    found = backend_.to_numpy(objective.hessian(None)(x))
    wanted = [0.0, 0.0] if power == 1 else [6.0 * 3.0 * 1.0, 6.0 * 5.0 * 2.0]
    np.testing.assert_allclose(found, np.diag(wanted))


@pytest.mark.parametrize("backend_", DIFFERENTIATE, ids=str)
def test_nested_parameters_by_automatic_differentiation(backend_: Backend) -> None:
    x0 = {"a": backend_.asarray([[0.5, -1.0]]), "b": backend_.asarray(2.0)}

    def fun(p: Any, shift: float) -> Any:
        return (p["a"] * p["a"]).sum() + (p["a"].sum() + p["b"] - shift) ** 2

    res = lx.minimize(fun, x0, (3.0,), method="newton", gtol=1e-9)
    assert res.success and res.nit == 1
    assert float(res.x["b"]) == pytest.approx(3.0) and res.x["a"].shape == (1, 2)


def test_nested_parameters_and_further_arguments(backend: Backend) -> None:
    """The matrix is over all numbers, flattened in order: a[0, 0], a[0, 1], b."""
    xp = backend.xp
    x0 = {"a": backend.asarray([[0.5, -1.0]]), "b": backend.asarray([2.0])}
    H = backend.asarray([[2.0, 0.0, 0.5], [0.0, 4.0, 0.0], [0.5, 0.0, 1.0]])

    def fun(p: Any, shift: float) -> Any:
        v = xp.concat([p["a"][0, :], p["b"]]) - shift
        g = H @ v
        return 0.5 * xp.sum(v * g), {"a": g[None, :2], "b": g[2:]}

    def hess(p: Any, shift: float) -> Any:
        assert set(p) == {"a", "b"} and shift == 1.5
        return H

    res = lx.minimize(fun, x0, (1.5,), jac=True, hess=hess, method="newton", gtol=1e-10)
    assert res.status is Status.GRADIENT and res.nit == 1
    np.testing.assert_allclose(backend.to_numpy(res.x["a"]), 1.5)


def test_only_at_iterates() -> None:
    case, seen = rosenbrock(Backend.NUMPY), []

    def hess(x: np.ndarray) -> Any:
        seen.append(x.copy())
        return case.hess(x)

    x0 = np.asarray([-1.2, 1.0])
    res, x = Case(case.fun, hess).path(Backend.NUMPY, x0, "newton")
    assert res.nfev > res.nit + 1  # some searches took more than one trial
    assert np.array_equal(seen, x) and res.nhev == len(seen) == res.nit + 1
    assert "nhev" in repr(res) and "nhev" not in repr(lx.minimize(case.fun, x0, jac=True))


def test_a_loop_of_your_own(backend: Backend) -> None:
    case, x0 = rosenbrock(backend), backend.asarray([-1.2, 1.0])
    space, solver = lx.Space(x0), lx.Newton()
    state = solver.init(space, x0, *case(x0), hessian=case.hess)
    while state.gradient_norm > 1e-9:
        assert not state.failed
        state = solver.step(space, state, *case(state.trial), hessian=case.hess)
    np.testing.assert_allclose(backend.to_numpy(state.x), 1.0, rtol=1e-9)


# --- errors ------------------------------------------------------------------------------------


def test_no_hessian(backend: Backend) -> None:
    case = rosenbrock(backend)
    if backend.has_autodiff:
        assert lx.minimize(case.fun, backend.asarray([2.0, 2.0]), jac=True, method="newton").success
        return
    with pytest.raises(ValueError, match="no automatic differentiation: give hess= a function"):
        lx.minimize(case.fun, backend.asarray([2.0, 2.0]), jac=True, method="newton")


@pytest.mark.parametrize("batched", [False, True])
def test_wrong_hessians(backend: Backend, batched: bool) -> None:
    case = rosenbrock(backend)
    x0 = backend.asarray([[2.0, 2.0]] * 3 if batched else [2.0, 2.0])
    wanted = r"\(3, 2, 2\)" if batched else r"\(2, 2\)"

    def run(hess: Any) -> None:
        lx.minimize(case.fun, x0, jac=True, hess=hess, method="newton", batched=batched)

    with pytest.raises(ValueError, match=rf"the Hessian has shape \(.*\); wanted {wanted}$"):
        run(lambda x: x)
    with pytest.raises(TypeError, match="the Hessian (is of type NoneType|has dtype object)"):
        run(lambda x: None)
    with pytest.raises(TypeError, match="the Hessian is complex; wanted .*float64, like x0"):
        run(lambda x: backend.xp.astype(case.hess(x), backend.dtype("complex128")))
    if not backend.is_numpy:
        other = r"the Hessian is an array of numpy; wanted an array of "
        with pytest.raises(TypeError, match=other):
            run(lambda x: np.zeros((3, 2, 2)))
    with pytest.raises(TypeError, match="hess is a ndarray; wanted a function of x, or None"):
        run(np.eye(2))


def test_a_hessian_nobody_asked_for() -> None:
    case = rosenbrock(Backend.NUMPY)
    with pytest.raises(ValueError, match="hess was passed, but LBFGS needs none; wanted hess=None"):
        case.solve(np.ones(2), "lbfgs")


def test_complex_x(backend: Backend) -> None:
    x0 = backend.asarray(np.asarray([1.0 + 1.0j]), None)
    with pytest.raises(TypeError, match="x0 is complex; wanted real x0 for a method that needs"):
        lx.minimize(lambda x: (1.0, x), x0, jac=True, hess=lambda x: x, method="newton")


def test_errors_of_the_hessian_go_through() -> None:
    def hess(x: np.ndarray) -> Any:
        if x[0] > 0.0:
            raise RuntimeError("not here")
        return np.eye(2)

    with pytest.raises(RuntimeError, match="not here") as caught:
        lx.minimize(
            rosenbrock(Backend.NUMPY).fun, np.asarray([-1.2, 1.0]), jac=True, hess=hess,
            method="newton",
        )
    result: Any = caught.value
    assert result.result.fun <= 24.2


def test_no_linear_algebra() -> None:
    da = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match="dask has no linalg.eigh; wanted arrays of a library with"):
        lx.minimize(
            lambda x: (da.sum(x * x), 2.0 * x), da.ones(2), jac=True, hess=lambda x: da.eye(2),
            method="newton",
        )


def test_settings() -> None:
    with pytest.raises(ValueError, match="modify is 'lu'; wanted 'absolute', 'shift' or None"):
        lx.Newton(modify="lu")
    for bad in (-1.0, 1.0, math.nan, True, "1"):
        words = "floor is .*; wanted a number of at least 0 and below 1, or None"
        with pytest.raises(ValueError, match=words):
            lx.Newton(floor=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="line_search is 'x'; "):
        lx.Newton(line_search="x")
    with pytest.raises(TypeError, match="Newton was given no Hessian; wanted hessian="):
        x = np.ones(2)
        lx.Newton().init(lx.Space(x), x, 1.0, x)
    case = rosenbrock(Backend.NUMPY)
    first = lx.minimize(case.fun, np.ones(2) * 3.0, jac=True, maxiter=2)
    with pytest.raises(ValueError, match="of another method; wanted the state of Newton"):
        case.solve(first.x, state=first.state)


@pytest.mark.sampled
@pytest.mark.parametrize("method", ["newton", "gradient_descent"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_goes_on_as_if_it_had_not_stopped(
    backend: Backend, method: str, batched: bool
) -> None:
    case = rosenbrock(backend)
    x0 = backend.xp.asarray([[-1.2, 1.0], [0.5, -0.3]], dtype=backend.xp.float64)
    x0 = backend.asarray(backend.to_numpy(x0 if batched else x0[0, :]))
    how: dict[str, Any] = {"jac": True, "method": method, "batched": batched, "gtol": 1e-14}
    if method == "newton":
        how["hess"] = case.hess
    first = lx.minimize(case.fun, x0, maxiter=4, **how)
    second = lx.minimize(case.fun, first.x, maxiter=3, state=first.state, **how)
    whole = lx.minimize(case.fun, x0, maxiter=7, **how)
    np.testing.assert_array_equal(backend.to_numpy(second.x), backend.to_numpy(whole.x))


def test_without_gradients_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x0 = torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        res = lx.minimize(lambda x: ((x - 3.0) ** 2).sum(), x0, method="newton")
    assert res.success and torch.allclose(res.x, 3.0 * torch.ones_like(x0))
