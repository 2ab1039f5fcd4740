"""Newton's method with conjugate gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.solvers import nystrom
from tests.backends import Backend

SCALES = np.asarray([1.0, 3.0, 10.0, 100.0])


def make(backend: Backend, name: str = "rosenbrock", dtype: str = "float64", n: int = 4) -> Any:
    return problems.ALL[name](
        n, xp=backend.xp, device=backend.device, dtype=backend.dtype(dtype)
    )


def quartic(backend: Backend) -> tuple[Any, Any, Any]:
    """sum(a x^2 / 2 + x^4 / 4), with gradient, Hessian and products."""
    scales, eye = backend.asarray(SCALES), backend.asarray(np.eye(4))

    def fun(x: Any) -> Any:
        value = backend.xp.sum(0.5 * scales * x * x + 0.25 * x * x * x * x, axis=-1)
        return value, scales * x + x * x * x

    def hess(x: Any) -> Any:
        return (scales + 3.0 * x * x)[..., None] * eye

    def hessp(x: Any, p: Any) -> Any:
        return (scales + 3.0 * x * x) * p

    return fun, hess, hessp


# --- where products come from ------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_products_from_everywhere(backend: Backend, batched: bool) -> None:
    if backend.is_jax and batched:
        pytest.skip("operation by operation, which is slow")
    fun, hess, hessp = quartic(backend)
    x0 = backend.asarray(np.linspace(1.0, 2.0, 8).reshape(2, 4) if batched else np.ones(4))
    how: dict[str, Any] = {"method": "newton-cg", "batched": batched, "gtol": 1e-8}
    runs = {
        "hess": lx.minimize(fun, x0, jac=True, hess=hess, **how),
        "hessp": lx.minimize(fun, x0, jac=True, hessp=hessp, **how),
        "differences": lx.minimize(fun, x0, jac=True, **how),
    }
    if backend.has_autodiff:
        runs["automatic"] = lx.minimize(lambda x: fun(x)[0], x0, **how)
    for name, res in runs.items():
        done = backend.to_numpy(res.success) if batched else res.success
        assert np.all(done), name
        np.testing.assert_allclose(backend.to_numpy(res.x), 0.0, atol=1e-7)
        nit = backend.to_numpy(res.nit) if batched else res.nit
        assert np.all(nit <= 12), name
    assert runs["hess"].nhev <= runs["hessp"].nhev


def test_differences_count_their_calls() -> None:
    fun, _, hessp = quartic(Backend.NUMPY)
    calls = []

    def counted(x: np.ndarray) -> Any:
        calls.append(1)
        return fun(x)

    res = lx.minimize(counted, np.ones(4), jac=True, method="newton-cg", gtol=1e-8)
    assert res.nfev == len(calls) and res.nhev > 0
    given = lx.minimize(fun, np.ones(4), jac=True, hessp=hessp, method="newton-cg", gtol=1e-8)
    assert given.nfev + given.nhev <= res.nfev + 3 and res.nfev > given.nfev
    calls.clear()
    phases = [lx.NewtonCG().until(maxiter=2), lx.NewtonCG()]
    calls.clear()
    res = lx.minimize(counted, np.ones(4), jac=True, method=phases, gtol=1e-8)
    assert res.success and res.nfev == len(calls)
    calls.clear()
    res = lx.minimize(counted, np.ones(4), jac=True, method="newton-cg", gtol=0.0, maxfun=15)
    assert res.status is Status.EVALUATIONS and res.nfev == len(calls) <= 15 + 8


def test_nested_parameters_and_scales() -> None:
    def fun(p: Any) -> Any:
        a, b = p["a"] - 1.0, p["b"] - 2.0
        value = np.sum(a**4 + a**2) + 50.0 * np.sum(b * b)
        return value, {"a": 4.0 * a**3 + 2.0 * a, "b": 100.0 * b}

    def hessp(p: Any, v: Any) -> Any:
        return {"a": (12.0 * (p["a"] - 1.0) ** 2 + 2.0) * v["a"], "b": 100.0 * v["b"]}

    x0 = {"a": np.zeros((2, 2)), "b": np.zeros(3)}
    for scale in (None, {"a": 4.0, "b": 0.1}):
        res = lx.minimize(fun, x0, jac=True, hessp=hessp, method="newton-cg", x_scale=scale)
        assert res.success
        np.testing.assert_allclose(res.x["a"], 1.0, atol=1e-6)
        np.testing.assert_allclose(res.x["b"], 2.0, atol=1e-6)


# --- the method --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rosenbrock", "chained_rosenbrock", "quadratic"])
def test_it_solves_in_a_batch_as_alone(name: str) -> None:
    p = problems.ALL[name](8)
    x0 = p.starts(4, scale=0.3)
    how: dict[str, Any] = {"jac": True, "method": "newton-cg", "gtol": 1e-6}
    batch = lx.minimize(p.value_and_gradient, x0, batched=True, **how)
    assert np.all(batch.success)
    for row, start in enumerate(x0):
        one = lx.minimize(p.value_and_gradient, start, **how)
        assert one.success and abs(one.nit - batch.nit[row]) <= 3
        np.testing.assert_allclose(one.fun, batch.fun[row], atol=1e-8)


def test_convergence_is_superlinear() -> None:
    p = problems.rosenbrock(10)
    seen: list[float] = []
    res = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, method="newton-cg", gtol=1e-10,
        callback=lambda r: seen.append(r.gradient_norm),
    )
    assert res.success and res.nit < 40
    assert seen[-1] / seen[-2] < 0.1 * (seen[-2] / seen[-3])


def test_few_products_far_from_the_minimum() -> None:
    p = problems.quadratic(200)
    counted: list[int] = []

    def hessp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        counted[-1] += 1
        return p.gradient(v) - p.gradient(0.0 * v)

    def fun(x: np.ndarray) -> Any:
        counted.append(0)
        return p.value_and_gradient(x)

    lx.minimize(fun, p.x0, jac=True, hessp=hessp, method="newton-cg", gtol=1e-8)
    assert counted[0] < max(counted)
    counted.clear()
    limited = lx.NewtonCG(max_products=5)
    res = lx.minimize(fun, p.x0, jac=True, hessp=hessp, method=limited, gtol=1e-6)
    assert max(counted) == 5 and res.fun < p.fun(p.x0)


@pytest.mark.parametrize("start", [1e-2, 1e-6, -1e-6])
def test_saddles_are_left(start: float) -> None:
    def fun(x: np.ndarray) -> Any:
        value = x[..., 0] ** 2 - 2.0 * x[..., 1] ** 2 + x[..., 1] ** 4
        return value, np.stack([2.0 * x[..., 0], 4.0 * x[..., 1] ** 3 - 4.0 * x[..., 1]], axis=-1)

    x0 = np.asarray([1.0, start])
    for x in (x0, np.stack([x0, 2.0 * x0])):
        res = lx.minimize(fun, x, jac=True, method="newton-cg", batched=x.ndim > 1)
        assert np.all(res.success)
        np.testing.assert_allclose(res.x[..., 0], 0.0, atol=1e-6)
        np.testing.assert_allclose(res.x[..., 1], np.sign(start), atol=1e-6)


def test_a_concave_start() -> None:
    """Negative curvature in the first direction: a step as long as x, downhill."""
    res = lx.minimize(
        lambda x: (float(np.sum(np.cos(x))), -np.sin(x)), np.full(3, 0.1), jac=True,
        method="newton-cg",
    )
    assert res.success
    np.testing.assert_allclose(np.cos(res.x), -1.0, atol=1e-9)
    falling = lx.minimize(
        lambda x: (-float(np.sum(x * x)), -2.0 * x), np.ones(2), jac=True, method="newton-cg"
    )
    assert falling.status is Status.UNBOUNDED


def test_a_flat_hessian() -> None:
    """A linear function within a smooth hull has no curvature at the start."""
    def fun(x: np.ndarray) -> Any:
        return float(np.sum(np.where(x > 0.0, x, 0.5 * x * x + x))), np.where(x > 0.0, 1.0, x + 1.0)

    res = lx.minimize(fun, np.full(3, 5.0), jac=True, method="newton-cg")
    assert res.success
    np.testing.assert_allclose(res.x, -1.0, atol=1e-6)


def test_what_is_not_finite() -> None:
    fun, _, _ = quartic(Backend.NUMPY)

    def broken(x: np.ndarray, p: np.ndarray) -> np.ndarray:
        return np.full(4, np.nan)

    res = lx.minimize(fun, np.ones(4), jac=True, hessp=broken, method="newton-cg", gtol=1e-3)
    assert np.isfinite(res.fun) and res.fun < fun(np.ones(4))[0]


# --- the Nyström preconditioner ------------------------------------------------------------------


def decaying(n: int = 60) -> np.ndarray:
    """A symmetric matrix with eigenvalues that fall from 1e4 to 1e-1."""
    vectors, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))
    return (vectors * (1e4 * np.exp(-np.arange(n) / 2.0) + 0.1)) @ vectors.T


def solve_decaying(backend: Backend, **how: Any) -> Any:
    matrix = backend.asarray(decaying())
    b = backend.asarray(np.random.default_rng(2).normal(size=60))
    settings = how.pop("settings", {})
    return lx.minimize(
        lambda x: (0.5 * backend.xp.sum(x * (matrix @ x)) - backend.xp.sum(b * x), matrix @ x - b),
        backend.asarray(np.zeros(60)), jac=True, hessp=lambda x, p: matrix @ p, gtol=1e-6,
        method=lx.NewtonCG(max_products=500, **settings), **how,
    )


def test_fewer_products_where_the_spectrum_decays(backend: Backend) -> None:
    exact = np.linalg.solve(decaying(), np.random.default_rng(2).normal(size=60))
    plain = solve_decaying(backend)
    sketched = solve_decaying(backend, settings={"nystrom_rank": 20})
    for res in (plain, sketched):
        assert res.success
        np.testing.assert_allclose(backend.to_numpy(res.x), exact, atol=1e-4)
    # All products count, those for the sketch, too.
    assert sketched.nhev < 0.4 * plain.nhev


def test_the_preconditioner_lowers_the_condition() -> None:
    matrix, space = decaying(), lx.Space(np.zeros(60))
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1]
    for rank in (10, 20, 60, 90):
        sketch = nystrom.drawn(space, lambda p: matrix @ p, rank, 60, 0, 0)
        inverse = np.stack([sketch.solve(space, row) for row in np.eye(60)])
        np.testing.assert_allclose(inverse, inverse.T, atol=1e-12)
        values = np.linalg.eigvalsh(inverse)
        assert values[0] > 0.0 and values[-1] <= 1.0 + 1e-12
        factor = np.linalg.cholesky(inverse)
        values = np.linalg.eigvalsh(factor.T @ matrix @ factor)
        # Without sketching errors the largest eigenvalue left would be that of this rank.
        left = 4.0 * eigenvalues[rank - 1] / eigenvalues[-1] if rank < 60 else 1.001
        assert values[-1] / values[0] <= left
    nothing = nystrom.drawn(space, lambda p: np.nan * p, 5, 60, 0, 0)
    assert not nothing.rows.any()
    flat = nystrom.drawn(space, lambda p: 0.0 * p, 5, 60, 0, 0)
    assert not flat.rows.any()


@pytest.mark.parametrize("start", [1e-2, -1e-6])
def test_the_preconditioner_of_an_indefinite_matrix(start: float) -> None:
    def fun(x: np.ndarray) -> Any:
        bowl = x[2:] * np.logspace(0.0, 4.0, 8)
        value = x[0] ** 2 - 2.0 * x[1] ** 2 + x[1] ** 4 + 0.5 * bowl @ x[2:]
        return value, np.concatenate([[2.0 * x[0], 4.0 * x[1] ** 3 - 4.0 * x[1]], bowl])

    x0 = np.concatenate([[1.0, start], np.ones(8)])
    for rank in (1, 4, 10):
        method = lx.NewtonCG(nystrom_rank=rank, nystrom_every=2)
        res = lx.minimize(fun, x0, jac=True, method=method)
        assert res.success
        # Either minimum: the step along negative curvature goes downhill, but may be long.
        np.testing.assert_allclose(abs(res.x), [0.0, 1.0, *np.zeros(8)], atol=1e-5)


def test_the_preconditioner_is_reproducible_and_goes_on(tmp_path: Any) -> None:
    p = problems.chained_rosenbrock(20)

    def run(seed: int, **how: Any) -> Any:
        method = lx.NewtonCG(nystrom_rank=4, nystrom_every=3, seed=seed)
        return lx.minimize(p.value_and_gradient, how.pop("x", p.x0), jac=True, method=method, **how)

    whole = run(0, maxiter=8)
    assert np.array_equal(whole.x, run(0, maxiter=8).x)
    assert not np.array_equal(whole.x, run(1, maxiter=8).x)
    half = run(0, maxiter=4)
    lx.save(tmp_path / "state.npz", half.state)
    for state in (half.state, lx.load(tmp_path / "state.npz", p.x0)):
        assert np.array_equal(run(0, x=half.x, maxiter=4, state=state).x, whole.x)


def test_the_same_bits_on_every_library(backend: Backend) -> None:
    def run(backend: Backend) -> Any:
        p = make(backend, n=6)
        method = lx.NewtonCG(nystrom_rank=3, nystrom_every=2)
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, method=method, maxiter=5, reproducible=True
        )
        return backend.to_numpy(res.x)

    assert np.array_equal(run(backend), run(Backend.NUMPY))


# --- errors ------------------------------------------------------------------------------------


def test_errors_name_what_was_passed() -> None:
    p = problems.rosenbrock(4)

    def solve(**how: Any) -> Any:
        return lx.minimize(p.value_and_gradient, p.x0, **{"jac": True, **how})

    with pytest.raises(ValueError, match="hessp was passed, but LBFGS needs none"):
        solve(hessp=lambda x, p: p)
    with pytest.raises(TypeError, match="hessp is a int; wanted a function of x and a vector"):
        solve(hessp=3, method="newton-cg")
    with pytest.raises(ValueError, match="the product"):
        solve(hessp=lambda x, p: p[:2], method="newton-cg")
    with pytest.raises(ValueError, match=r"tolerance is 1\.5"):
        lx.NewtonCG(tolerance=1.5)
    with pytest.raises(ValueError, match="max_products is 0"):
        lx.NewtonCG(max_products=0)
    for name, wrong in (("nystrom_rank", -1), ("nystrom_every", 0), ("seed", -2)):
        with pytest.raises(ValueError, match=f"{name} is {wrong}"):
            lx.NewtonCG(**{name: wrong})
    with pytest.raises(ValueError, match="nystrom_rank is 3 for a batch; wanted 0"):
        lx.minimize(
            p.value_and_gradient, p.starts(2), jac=True, batched=True,
            method=lx.NewtonCG(nystrom_rank=3),
        )
    with pytest.raises(ValueError, match="bounds were passed, but NewtonCG takes none"):
        solve(method="newton-cg", bounds=(0.0, None))
    with pytest.raises(ValueError, match="'Trust-NCG'.*; did you mean 'trust-ncg'"):
        solve(method="Trust-NCG")
    with pytest.raises(TypeError, match="NewtonCG was given no products"):
        lx.NewtonCG().init(lx.Space(p.x0), p.x0, *p.value_and_gradient(p.x0))
    first = solve(method="bfgs", maxiter=2)
    with pytest.raises(ValueError, match="of another method; wanted the state of NewtonCG"):
        solve(method="newton-cg", state=first.state)


def test_a_trust_region_limits_steps_and_leaves_a_saddle() -> None:
    def fun(x: Any) -> tuple[Any, Any]:
        gradient = np.stack([2.0 * x[0], -4.0 * x[1] + 4.0 * x[1] ** 3])
        return x[0] ** 2 - 2.0 * x[1] ** 2 + x[1] ** 4, gradient

    def products(x: Any, gradient: Any) -> Any:
        return lambda p: np.stack([2.0, -4.0 + 12.0 * x[1] ** 2]) * p

    x0 = np.asarray([1.0, 1e-6])
    solver, space = lx.TrustNCG(initial_radius=0.1), lx.Space(x0)
    state = solver.init(space, x0, *fun(x0), products=products)
    radius, values = 0.1, [state.value]
    for _ in range(40):
        assert np.linalg.norm(state.trial - state.x) <= radius * (1.0 + 1e-12)
        state = solver.step(space, state, *fun(state.trial), products=products)
        radius = state.region.radius
        values.append(state.value)
        if state.gradient_norm < 1e-10:
            break
    assert np.allclose(state.x, [0.0, 1.0]) and values == sorted(values, reverse=True)
    with pytest.raises(TypeError, match="TrustNCG was given no products"):
        solver.init(space, x0, *fun(x0))
    with pytest.raises(ValueError, match=r"initial_radius is 0\.0; wanted"):
        lx.TrustNCG(initial_radius=0.0)
    with pytest.raises(ValueError, match="of another method; wanted the state of TrustNCG"):
        lx.minimize(fun, x0, jac=True, method="trust-ncg",
                    state=lx.minimize(fun, x0, jac=True, maxiter=1).state)
