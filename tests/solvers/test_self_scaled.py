"""SSBFGS and SSBroyden: their formulas, and what they do beyond what every method must."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems
from lbfgs_xp.arrays.scalars import of
from lbfgs_xp.line_search import ACCEPTED, SEARCHING
from lbfgs_xp.solvers.dense import DenseQuasiNewton, _squares
from lbfgs_xp.solvers.self_scaled import _root
from tests.backends import Backend

B, N = 3, 6
SOLVERS = [lx.SSBFGS, lx.SSBroyden]


def updated(H: np.ndarray, s: np.ndarray, y: np.ndarray, tau: float, phi: float) -> np.ndarray:
    """Broyden's family as printed."""
    Hy, sy = H @ y, s @ y
    v = s / sy - Hy / (y @ Hy)
    H = (H - np.outer(Hy, Hy) / (y @ Hy) + phi * (y @ Hy) * np.outer(v, v)) / tau
    return H + np.outer(s, s) / sy


def chosen(kind: type, H: np.ndarray, s: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """tau and phi as printed: Al-Baali 1998; Urban, Stefanou & Pons 2025."""
    b = s @ np.linalg.solve(H, s) / (s @ y)
    if kind is lx.SSBFGS:
        return min(1.0, 1.0 / b), 1.0
    h = y @ H @ y / (s @ y)
    a = b * h - 1.0
    c = np.sqrt(a / (a + 1.0))
    low = min(1.0, h * (1.0 - c))
    theta = max((low - 1.0) / a, min(1.0 / low, (1.0 - b) / b))
    sigma = 1.0 + a * theta
    phi, most, root = (1.0 - theta) / sigma, min(1.0, 1.0 / b), sigma ** (-1.0 / (len(s) - 1))
    if theta > 0.0:
        return most * min(root, 1.0 / theta), phi
    return min(most * root, sigma), phi


# --- the formulas ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(("name", "count"), [("rosenbrock", 10), ("quadratic", 4)])
def test_iterates_are_those_of_the_formula(name: str, count: int, scale: bool, kind: Any) -> None:
    p = problems.ALL[name](4)
    x = x0 = p.starts(1, scale=0.3)[0]
    H = np.diag([0.02, 0.03, 0.01, 0.05])
    solver = kind("strong_wolfe", np.diag(H), scale)
    f, g = p.value_and_gradient(x)
    noise, wanted, length = lx.Space(x).backend.noise, [], 1.0
    for k in range(count):
        d = -H @ g
        first = 1.0 if length >= 0.9 else max(0.1, np.sqrt(length))
        search = solver.line_search.begin(float(f), float(g @ d), first, abs(float(f)) * noise)
        while search.status == SEARCHING:
            alpha = search.alpha
            f, new = p.value_and_gradient(x + alpha * d)
            search = solver.line_search.advance(search, float(f), float(new @ d))
        assert search.status == ACCEPTED
        s, y, length = alpha * d, new - g, alpha
        if scale and k == 0:
            H = updated(H, s, y, y @ H @ y / (s @ y), 1.0)
        else:
            H = updated(H, s, y, *chosen(kind, H, s, y))
        x, g = x + s, new
        wanted.append(x)
    seen: list[np.ndarray] = []
    res = lx.minimize(
        p.value_and_gradient, x0, jac=True, method=solver, maxiter=count, gtol=0.0,
        callback=lambda r: seen.append(r.x),
    )
    np.testing.assert_allclose(seen, wanted, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(res.hess_inv.todense(), H, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("phi", [-0.3, -0.01, 0.0, 0.6, 1.0, 2.5])
def test_two_squares_are_the_update(phi: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        A, s, g = rng.normal(size=(N, N)), rng.normal(size=N), rng.normal(size=N)
        H = A @ A.T + np.eye(N)
        y = np.linalg.solve(H, s) + 0.3 * rng.normal(size=N)
        if s @ y <= 0.1:
            continue
        v, rho = H @ y, 1.0 / (s @ y)
        numbers = float(rho), float(y @ v), phi, float(s @ g), float(v @ g)
        squares = _squares(of(1.0), True, *numbers)
        rows = _squares(of(np.ones(1)), np.ones(1, bool), *(np.asarray([each]) for each in numbers))
        assert squares == tuple(type(row)(*(float(each[0]) for each in row)) for row in rows)
        found, product = H, H @ g
        for of_s, of_v, sign, of_w in squares:
            w = of_s * s + of_v * v
            found, product = found + sign * np.outer(w, w), product + of_w * w
        np.testing.assert_allclose(found, updated(H, s, y, 1.0, phi), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(product, found @ g, rtol=1e-9, atol=1e-9)


@dataclasses.dataclass(frozen=True)
class Halved(DenseQuasiNewton):
    """Broyden's family with tau = 1/2 and phi = 0.6."""

    def scaling(self, n: int) -> Any:
        return _halved


def _halved(fn: Any, b: Any, h: Any) -> Any:
    return fn.full(2.0, b), fn.full(0.6, b)


@pytest.mark.parametrize("batched", [False, True])
def test_the_update_on_every_library(backend: Backend, batched: bool) -> None:
    if backend.is_jax and batched:
        pytest.skip("operation by operation, which is slow")
    starts = np.linspace(1.0, 2.0, B * N).reshape(B, N)
    x0 = backend.asarray(starts if batched else starts[0])
    scales = backend.asarray(np.asarray([1.0, 3.0, 0.1, 5.0, 2.0, 0.7]))
    space = lx.Space(x0, batched=batched)
    solver = Halved(scale_initial=False)

    def fun(x: Any) -> Any:
        cubes = x * x * x
        value = backend.xp.sum(scales * x * x + 0.25 * x * cubes, axis=-1)
        return value, 2.0 * scales * x + cubes

    def seen(state: Any) -> list[np.ndarray]:
        vectors = state.x, state.gradient, state.learned.product, state.learned.matrix
        return [np.array(backend.to_numpy(each)) for each in vectors]

    checked = 0
    with np.errstate(all="ignore"):
        state = solver.init(space, x0, *fun(x0))
        for _ in range(6):
            before = seen(state)
            state = solver.step(space, state, *fun(state.trial))
            accepted = backend.to_numpy(state.accepted) if batched else state.accepted
            x, g, product, H = seen(state)
            for i in np.flatnonzero(accepted) if batched else [...][: bool(accepted)]:
                s, y = x[i] - before[0][i], g[i] - before[1][i]
                wanted = updated(before[3][i], s, y, 0.5, 0.6)
                np.testing.assert_allclose(H[i], wanted, rtol=1e-9, atol=1e-9)
                np.testing.assert_array_equal(H[i], H[i].T)
                np.testing.assert_allclose(product[i], wanted @ g[i], rtol=1e-8, atol=1e-9)
                checked += 1
    assert checked >= 3


@pytest.mark.parametrize("k", [1, 2, 3, 7, 608, 2999])
def test_roots(k: int) -> None:
    x = np.asarray([1e-30, 1e-3, 0.9, 1.0, 1.5, 1e8, 1e30])
    np.testing.assert_allclose(_root(of(x), x, k), x ** (1.0 / k), rtol=1e-7)
    assert [_root(of(1.0), float(each), k) for each in x] == [*_root(of(x), x, k)]


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_minima_on_every_library(backend: Backend, dtype: str, kind: Any) -> None:
    if backend.is_jax and dtype == "float32":
        pytest.skip("operation by operation, which is slow")
    p = problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype=backend.dtype(dtype))
    gtol = 1e-6 if dtype == "float64" else 1e-2
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=kind(), gtol=gtol)
    assert res.success and res.x.dtype == p.x0.dtype
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=30.0 * gtol)
    H = backend.to_numpy(res.hess_inv.todense())
    np.testing.assert_array_equal(H, H.T)
    assert np.linalg.eigvalsh(H.astype(np.float64))[0] > 0.0


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_batch_takes_the_steps_of_its_rows(kind: Any) -> None:
    for p in (problems.rosenbrock(4), problems.chained_rosenbrock(40)):
        x0 = p.starts(5, scale=0.5)
        batch = lx.minimize(
            p.value_and_gradient, x0, jac=True, batched=True, method=kind(), gtol=1e-6
        )
        assert np.all(batch.success)
        for row, start in enumerate(x0):
            one = lx.minimize(p.value_and_gradient, start, jac=True, method=kind(), gtol=1e-6)
            assert abs(int(batch.nfev[row]) - one.nfev) <= 0.1 * one.nfev


@pytest.mark.parametrize("kind", SOLVERS)
def test_one_variable(kind: Any) -> None:
    res = lx.minimize(
        lambda x: (float(np.cosh(x[0] - 1.0)), np.sinh(x - 1.0)), np.asarray([4.0]), jac=True,
        method=kind(),
    )
    assert res.success and abs(res.x[0] - 1.0) < 1e-6


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_units_of_the_function(unit: float, kind: Any) -> None:
    p = problems.rosenbrock(4)

    def fun(x: np.ndarray) -> Any:
        value, gradient = p.value_and_gradient(x)
        return unit * value, unit * gradient

    wanted = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=kind(), gtol=1e-6)
    res = lx.minimize(fun, p.x0, jac=True, method=kind(), gtol=1e-6 * unit)
    assert res.success and abs(res.nfev - wanted.nfev) <= 5


@pytest.mark.parametrize("kind", SOLVERS)
def test_bounds(kind: Any) -> None:
    p = problems.chained_rosenbrock(8)
    bounds = (-2.0, np.linspace(0.4, 2.0, 8))
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=kind(), bounds=bounds)
    wanted = lx.minimize(p.value_and_gradient, p.x0, jac=True, method="bfgs", bounds=bounds)
    assert res.success and np.any(res.active != 0)
    np.testing.assert_array_equal(res.active, wanted.active)
    np.testing.assert_allclose(res.x, wanted.x, atol=1e-5)
    free, far = (
        lx.minimize(p.value_and_gradient, p.x0, jac=True, method=kind(), bounds=each)
        for each in (None, (-1e3, 1e3))
    )
    assert free.nfev == far.nfev
    np.testing.assert_array_equal(free.x, far.x)


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_compiled_loop_takes_the_same_steps(kind: Any) -> None:
    jax = pytest.importorskip("jax")
    if not jax.config.jax_enable_x64:
        pytest.skip("float32 only")
    p = problems.rosenbrock(4, xp=jax.numpy)
    x0 = p.starts(2, scale=0.3)
    for batched in (False, True):
        start = x0 if batched else x0[0]
        found, wanted = (
            lx.minimize(
                fun, start, jac=True, method=kind(), batched=batched, maxiter=8, gtol=0.0
            )
            for fun in (jax.jit(p.value_and_gradient), p.value_and_gradient)
        )
        assert np.all(found.nfev == wanted.nfev)
        np.testing.assert_allclose(found.x, wanted.x, rtol=1e-7)


# --- the matrix belongs to one run -------------------------------------------------------------


def counts(backend: Backend, res: lx.Result) -> list[Any]:
    both: list[Any] = [res.nit, res.nfev]
    return both if isinstance(res.nit, int) else [backend.to_numpy(each) for each in both]


@pytest.mark.parametrize("kind", [lx.BFGS, *SOLVERS])
@pytest.mark.parametrize("batched", [False, True])
def test_another_function_keeps_the_matrix_and_takes_its_own_gradient(
    backend: Backend, kind: Any, batched: bool
) -> None:
    if backend.is_jax and (batched or kind is lx.SSBFGS):
        pytest.skip("operation by operation, which is slow")
    scales = backend.asarray(np.asarray([1.0, 30.0, 900.0]))

    def fun(x: Any, target: Any) -> Any:
        r = x - target
        return backend.xp.sum(0.5 * scales * r * r, axis=-1), scales * r

    shape = (2, 3) if batched else (3,)
    x0 = backend.asarray(np.zeros(shape))
    targets = [backend.asarray(np.full(shape, each)) for each in (1.0, 1.5)]
    how: dict[str, Any] = {"jac": True, "batched": batched, "method": kind()}
    first = lx.minimize(fun, x0, (targets[0],), gtol=1e-6, **how)
    matrix = backend.to_numpy(first.hess_inv.todense()).copy()
    # With the curvature known, a single step leads to the other minimum.
    res = lx.minimize(fun, first.x, (targets[1],), state=first.state, gtol=1e-3, **how)
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.5, atol=1e-3)
    fresh = lx.minimize(fun, first.x, (targets[1],), gtol=1e-3, **how)
    for known, anew in zip(counts(backend, res), counts(backend, fresh), strict=True):
        assert np.all(known < anew)
    # The first result is as it was, and can be continued again.
    np.testing.assert_array_equal(backend.to_numpy(first.hess_inv.todense()), matrix)
    again = lx.minimize(fun, first.x, (targets[1],), state=first.state, gtol=1e-3, **how)
    np.testing.assert_array_equal(backend.to_numpy(again.x), backend.to_numpy(res.x))


@pytest.mark.parametrize("kind", [lx.BFGS, *SOLVERS])
def test_large_matrices_in_place(backend: Backend, kind: Any) -> None:
    """Blocks of rows, or one operation of the library, on the memory of the matrix."""
    n = 400
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n, n))
    matrix = matrix + matrix.T
    u, v = rng.normal(size=(2, n))
    for reproducible in (False, True):
        space = (lx.FixedOrderSpace if reproducible else lx.Space)(backend.asarray(u))
        on = [backend.asarray(each) for each in (u, -u, v, v)]
        wanted = 1.5 * matrix + (-u[:, None] * u + v[:, None] * v)
        found = space.add_products(
            1.5, space.own_matrices(backend.asarray(matrix)), (on[0], on[1]), (on[2], on[3])
        )
        found = backend.to_numpy(found)
        np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-13)
        # The product of a library may round an element and its mirror image differently.
        rounding = 0.0 if reproducible or backend.is_numpy else 1e-15 * np.max(np.abs(wanted))
        np.testing.assert_allclose(found, found.T, rtol=0.0, atol=rounding)
        if reproducible:
            np.testing.assert_array_equal(found, wanted)
        outer = space.add_outer(
            0.5, space.own_matrices(backend.asarray(matrix)), on[0], on[2]
        )
        product = u[:, None] * v
        np.testing.assert_array_equal(backend.to_numpy(outer), 0.5 * matrix + (product + product.T))


def test_a_given_matrix_is_not_overwritten(backend: Backend) -> None:
    given = np.diag([0.5, 1.0, 2.0, 4.0])
    here = backend.asarray(given)
    p = problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype=backend.dtype("float64"))
    solver = lx.SSBroyden(initial_inverse_hessian=here)
    runs = [
        lx.minimize(p.value_and_gradient, p.x0, jac=True, method=solver, maxiter=4, gtol=0.0)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(backend.to_numpy(here), given)
    np.testing.assert_array_equal(*(backend.to_numpy(run.x) for run in runs))


def test_other_states_are_refused() -> None:
    p = problems.rosenbrock(4)
    first = lx.minimize(p.value_and_gradient, p.x0, jac=True, maxiter=2)
    with pytest.raises(ValueError, match="state holds a LBFGSState.*wanted the state of SSBroyden"):
        lx.minimize(
            p.value_and_gradient, first.x, jac=True, method="ssbroyden", state=first.state
        )
    # The matrix of one method serves another.
    first = lx.minimize(p.value_and_gradient, p.x0, jac=True, method="bfgs", maxiter=20)
    res = lx.minimize(
        p.value_and_gradient, first.x, jac=True, method="ssbroyden", state=first.state
    )
    assert res.success
