"""L-BFGS against the dense BFGS matrix, and independence of its steps from units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems
from lbfgs_xp.line_search import NAMES
from tests.backends import CPU, Backend


def dense_bfgs(S: np.ndarray, Y: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """The inverse Hessian in product form, Nocedal & Wright, eq. 6.17; oldest pair first."""
    H = initial
    for s, y in zip(S, Y, strict=True):
        rho = 1.0 / (s @ y)
        V = np.eye(len(s)) - rho * np.outer(y, s)
        H = V.T @ H @ V + rho * np.outer(s, s)
    return H


def random_pairs(
    rng: np.random.Generator, m: int, n: int, batch: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """m pairs (..., m, n) with positive curvature."""
    root = rng.normal(size=(*batch, n, n))
    A = root @ np.swapaxes(root, -1, -2) + np.eye(n)
    S = rng.normal(size=(*batch, m, n))
    return S, S @ A


def close(found: np.ndarray, wanted: np.ndarray, relative: float = 1e-10) -> None:
    scale = np.max(np.abs(wanted))
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=relative * scale)


def path_of(problem: problems.Problem, backend: Backend, **settings: Any):
    """The result, and the iterates x_0, x_1, ... with their gradients, as NumPy arrays."""
    xs = [backend.to_numpy(problem.x0)]

    def callback(record: lx.Record) -> None:
        xs.append(backend.to_numpy(record.x))

    res = lx.minimize(
        problem.value_and_gradient, problem.x0, jac=True, callback=callback, **settings
    )
    x = np.stack(xs)
    return res, x, backend.to_numpy(problem.gradient(backend.asarray(x)))


# --- the two-loop recursion --------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("m", [0, 1, 4, 9])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=["one", "batch", "batch2"])
def test_two_loop_is_the_dense_matrix(backend: Backend, batch: tuple[int, ...], m: int) -> None:
    rng = np.random.default_rng(m)
    n = 6
    S, Y = random_pairs(rng, m, n, batch)
    g = rng.normal(size=(*batch, n))
    gamma = rng.uniform(0.5, 2.0, size=batch)
    found = lx.two_loop(
        backend.asarray(g), backend.asarray(S), backend.asarray(Y), backend.asarray(gamma)
    )
    assert found.dtype == backend.dtype("float64")
    assert tuple(found.shape) == g.shape
    wanted = np.empty_like(g)
    for i in np.ndindex(batch):
        wanted[i] = dense_bfgs(S[i], Y[i], gamma[i] * np.eye(n)) @ g[i]
    close(backend.to_numpy(found), wanted)


def test_two_loop_takes_a_number_or_a_function(backend: Backend) -> None:
    rng = np.random.default_rng(1)
    S, Y = random_pairs(rng, 3, 5)
    g, diagonal = rng.normal(size=5), rng.uniform(1.0, 3.0, size=5)
    arrays = [backend.asarray(a) for a in (g, S, Y)]
    plain = lx.two_loop(*arrays)
    close(backend.to_numpy(plain), dense_bfgs(S, Y, np.eye(5)) @ g)
    weights = backend.asarray(diagonal)
    weighted = lx.two_loop(*arrays, lambda v: weights * v)
    close(backend.to_numpy(weighted), dense_bfgs(S, Y, np.diag(diagonal)) @ g)


def test_two_loop_passes_over_a_pair_without_curvature(backend: Backend) -> None:
    rng = np.random.default_rng(2)
    S, Y = random_pairs(rng, 3, 4)
    Y[1] = -S[1]
    g = rng.normal(size=4)
    found = lx.two_loop(backend.asarray(g), backend.asarray(S), backend.asarray(Y), 0.5)
    kept = [0, 2]
    close(backend.to_numpy(found), dense_bfgs(S[kept], Y[kept], 0.5 * np.eye(4)) @ g)


def test_two_loop_names_the_shapes() -> None:
    g, S = np.ones(3), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\).*wanted"):
        lx.two_loop(g, S, np.ones((2, 4)))


# --- the inverse Hessian of a run --------------------------------------------------------------

N, ITERATIONS = 8, 6
DIAGONAL = np.linspace(0.5, 2.0, N)
INITIAL = {"none": None, "scalar": 0.3, "diagonal": DIAGONAL, "callable": DIAGONAL}


def initial_of(kind: str, backend: Backend) -> Any:
    value = INITIAL[kind]
    if kind == "diagonal":
        return backend.asarray(value)
    if kind == "callable":
        weights = backend.asarray(value)
        return lambda v: weights * v
    return value


def expected_inverse(kind: str, scale: bool, S: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """The matrix that the pairs of a run define."""
    initial = INITIAL[kind]
    matrix = np.diag(np.broadcast_to(1.0 if initial is None else initial, (S.shape[-1],)))
    if scale and kind != "callable":
        base = matrix if kind == "diagonal" else np.eye(len(matrix))
        matrix = (S[-1] @ Y[-1]) / (Y[-1] @ base @ Y[-1]) * base
    return dense_bfgs(S, Y, matrix)


@pytest.mark.sampled
@pytest.mark.parametrize("memory_size", [3, 20])
@pytest.mark.parametrize("scale", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("kind", INITIAL)
def test_hess_inv_is_the_dense_matrix(
    backend: Backend, kind: str, scale: bool, memory_size: int
) -> None:
    p = problems.chained_rosenbrock(N, xp=backend.xp, device=backend.device, dtype="float64")
    solver = lx.LBFGS(
        memory_size=memory_size,
        initial_inverse_hessian=initial_of(kind, backend),
        scale_initial=scale,
    )
    res, x, g = path_of(p, backend, method=solver, gtol=0.0, maxiter=ITERATIONS)
    assert res.nit == ITERATIONS and len(x) == ITERATIONS + 1
    S, Y = np.diff(x, axis=0)[-memory_size:], np.diff(g, axis=0)[-memory_size:]
    assert np.all(np.sum(S * Y, axis=1) > 0)
    wanted = expected_inverse(kind, scale, S, Y)

    assert tuple(res.hess_inv.shape) == (N, N)
    dense = res.hess_inv.todense()
    assert dense.device == res.x.device and dense.dtype == res.x.dtype
    close(backend.to_numpy(dense), wanted, 1e-8)
    close(backend.to_numpy(res.hess_inv.diagonal()), np.diag(wanted), 1e-8)
    v = np.random.default_rng(5).normal(size=(N, 2))
    product = backend.to_numpy(res.hess_inv @ backend.asarray(v[:, 0]))
    close(product, wanted @ v[:, 0], 1e-8)
    close(backend.to_numpy(res.hess_inv @ backend.asarray(v)), wanted @ v, 1e-8)

    if kind == "diagonal":
        gamma = 1.0 if not scale else (S[-1] @ Y[-1]) / (Y[-1] @ (DIAGONAL * Y[-1]))
        weights = backend.asarray(gamma * DIAGONAL)
        initial: Any = lambda u: weights * u  # noqa: E731
    elif kind == "callable":
        initial = solver.initial_inverse_hessian
    else:
        initial = INITIAL[kind] or 1.0
        initial = (S[-1] @ Y[-1]) / (Y[-1] @ Y[-1]) if scale else initial
    textbook = lx.two_loop(
        backend.asarray(v[:, 0]), backend.asarray(S), backend.asarray(Y),
        initial if callable(initial) else float(initial),
    )
    close(backend.to_numpy(textbook), product, 1e-8)


@pytest.mark.parametrize("kind", ["none", "diagonal", "callable"])
def test_hess_inv_of_a_batch(backend: Backend, kind: str) -> None:
    p = problems.chained_rosenbrock(N, xp=backend.xp, device=backend.device, dtype="float64")
    starts = p.starts(3)
    host = backend.to_numpy(starts)
    paths: list[dict[int, np.ndarray]] = [{0: host[i]} for i in range(3)]

    def callback(record: lx.Record) -> None:
        x, nit = backend.to_numpy(record.x), backend.to_numpy(record.nit)
        for i in range(3):
            paths[i].setdefault(int(nit[i]), x[i])

    solver = lx.LBFGS(memory_size=4, initial_inverse_hessian=initial_of(kind, backend))
    res = lx.minimize(
        p.value_and_gradient, starts, jac=True, batched=True, method=solver,
        reproducible=backend.is_jax,  # which then compiles less
        gtol=0.0, maxiter=ITERATIONS, callback=callback,
    )
    v = np.random.default_rng(5).normal(size=(3, N))
    product = backend.to_numpy(res.hess_inv @ backend.asarray(v))
    dense = backend.to_numpy(res.hess_inv.todense())
    diagonal = backend.to_numpy(res.hess_inv.diagonal())
    assert tuple(res.hess_inv.shape) == dense.shape == (3, N, N)
    for i, path in enumerate(paths):
        assert sorted(path) == list(range(ITERATIONS + 1))
        x = np.stack([path[k] for k in sorted(path)])
        g = backend.to_numpy(p.gradient(backend.asarray(x)))
        S, Y = np.diff(x, axis=0)[-4:], np.diff(g, axis=0)[-4:]
        wanted = expected_inverse(kind, True, S, Y)
        close(dense[i], wanted, 1e-8)
        close(diagonal[i], np.diag(wanted), 1e-8)
        close(product[i], wanted @ v[i], 1e-8)


def test_hess_inv_without_an_iteration() -> None:
    p = problems.rosenbrock(4)
    for initial, wanted in [(None, np.ones(4)), (0.5, np.full(4, 0.5)), (DIAGONAL[:4],) * 2]:
        solver = lx.LBFGS(initial_inverse_hessian=initial)
        res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=solver, maxiter=0)
        close(res.hess_inv.todense(), np.diag(wanted), 1e-15)


def test_hess_inv_names_the_shape() -> None:
    res = lx.minimize(lambda x: (x @ x, 2 * x), np.ones(3), jac=True)
    with pytest.raises(ValueError, match=r"\(4,\).*wanted \(3,\)"):
        res.hess_inv @ np.ones(4)


# --- guaranteed by theory ----------------------------------------------------------------------

EXACT = [lx.MoreThuente(c1=1e-8, c2=1e-6), lx.StrongWolfe(c1=1e-8, c2=1e-6)]


@pytest.mark.parametrize("rule", EXACT, ids=["more_thuente", "strong_wolfe"])
def test_quadratic_ends_after_n_exact_searches(backend: Backend, rule: lx.LineSearch) -> None:
    """Nocedal & Wright, theorem 6.4: after n steps the inverse Hessian is exact."""
    n = 6
    p = problems.quadratic(
        spectrum=np.geomspace(1.0, 30.0, n), xp=backend.xp, device=backend.device, dtype="float64"
    )
    solver = lx.LBFGS(memory_size=n + 2, line_search=rule, initial_inverse_hessian=1.0)
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=solver, gtol=1e-8)
    assert res.status == lx.Status.GRADIENT
    assert n - 1 <= res.nit <= n + 1
    identity = np.eye(n)
    origin = p.gradient(backend.asarray(np.zeros(n)))
    A = backend.to_numpy(p.gradient(backend.asarray(identity)) - origin)
    close(backend.to_numpy(res.hess_inv.todense()), np.linalg.inv(A), 1e-5)


def test_quadratic_with_all_pairs_in_memory(backend: Backend) -> None:
    p = problems.quadratic(n=10, xp=backend.xp, device=backend.device, dtype="float64")
    counts = []
    for memory_size in (3, 40):
        solver = lx.LBFGS(memory_size=memory_size)
        res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=solver, gtol=1e-8)
        assert res.success
        np.testing.assert_allclose(
            backend.to_numpy(res.x), backend.to_numpy(p.x_min), rtol=0.0, atol=1e-7
        )
        counts.append(res.nfev)
    assert counts[1] <= counts[0]


def test_one_pair(backend: Backend) -> None:
    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float64")
    solver = lx.LBFGS(memory_size=1)
    res, x, g = path_of(p, backend, method=solver, gtol=1e-8)
    assert res.status == lx.Status.GRADIENT
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=1e-6)
    res, x, g = path_of(p, backend, method=solver, maxiter=5)
    wanted = expected_inverse("none", True, np.diff(x, axis=0)[-1:], np.diff(g, axis=0)[-1:])
    close(backend.to_numpy(res.hess_inv.todense()), wanted, 1e-8)


# --- units of x and f --------------------------------------------------------------------------

SHAPED = {
    "rosenbrock": problems.rosenbrock(2),
    "beale": problems.beale(),
    "quadratic": problems.quadratic(),
    "logistic_regression": problems.logistic_regression(),
    "exponential_decay": problems.exponential_decay(),
}


def in_units(p: problems.Problem, unit_f: float = 1.0, unit_x: float = 1.0) -> Any:
    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, gradient = p.value_and_gradient(x / unit_x)
        return unit_f * value, (unit_f / unit_x) * gradient

    return fun


def solve_in_units(p: problems.Problem, unit_f: float, unit_x: float, **more: Any) -> lx.Result:
    return lx.minimize(
        in_units(p, unit_f, unit_x), unit_x * p.x0, jac=True, gtol=1e-6 * unit_f / unit_x, **more
    )


@pytest.mark.parametrize("unit_x", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("unit_f", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("name", SHAPED)
def test_units_cost_a_few_evaluations_at_most(name: str, unit_f: float, unit_x: float) -> None:
    p = SHAPED[name]
    plain = solve_in_units(p, 1.0, 1.0)
    res = solve_in_units(p, unit_f, unit_x)
    assert plain.status == res.status == lx.Status.GRADIENT
    # The path changes with the first step, so it may take a few more iterations.
    assert res.nfev <= plain.nfev + max(10, plain.nfev // 3)


@pytest.mark.parametrize("unit_f", [1e-100, 1e100])
@pytest.mark.parametrize("name", SHAPED)
def test_curvature_test_is_relative(name: str, unit_f: float) -> None:
    p = SHAPED[name]
    plain = solve_in_units(p, 1.0, 1.0)
    res = solve_in_units(p, unit_f, 1.0)
    assert res.status == lx.Status.GRADIENT
    assert abs(res.nit - plain.nit) <= 2
    np.testing.assert_allclose(res.x, plain.x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", [-300, -20, 20, 300])
@pytest.mark.parametrize("rule", NAMES)
def test_powers_of_two_change_no_bit(rule: str, exponent: int) -> None:
    """A run does not depend on units: f times a power of two gives the same iterates."""
    p = problems.chained_rosenbrock(6)
    unit = 2.0**exponent
    method = lx.LBFGS(line_search=rule)
    plain = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=method, gtol=0, maxiter=15)
    res = lx.minimize(in_units(p, unit), p.x0, jac=True, method=method, gtol=0, maxiter=15)
    assert (res.nit, res.nfev, res.status) == (plain.nit, plain.nfev, plain.status)
    assert res.x.tobytes() == plain.x.tobytes()
    assert res.fun == unit * plain.fun


# --- the memory is dropped ---------------------------------------------------------------------


def with_gamma(res: lx.Result, factor: float) -> lx.State:
    """The state of a run with spoiled memory."""
    state = res.state
    pairs = state.solver_state.pairs
    pairs = pairs._replace(gamma=pairs.gamma * factor)
    return state._replace(solver_state=state.solver_state._replace(pairs=pairs))


@pytest.mark.parametrize(
    ("backend_", "batched"),
    [(b, batched) for b in CPU for batched in (False, True) if not (b.is_jax and batched)],
)
def test_uphill_direction_drops_the_memory(backend_: Backend, batched: bool) -> None:
    p = problems.rosenbrock(4, xp=backend_.xp, device=backend_.device, dtype="float64")
    x0 = p.starts(3) if batched else p.x0
    run: dict[str, Any] = {"jac": True, "batched": batched, "reproducible": True}
    run["method"] = "lbfgs"
    first = lx.minimize(p.value_and_gradient, x0, maxiter=3, **run)
    spoiled = with_gamma(first, -1e6)
    elsewhere = x0 + 0.5
    at_once = lx.minimize(p.value_and_gradient, elsewhere, maxiter=0, state=spoiled, **run)
    dense = backend_.to_numpy(at_once.hess_inv.todense())
    np.testing.assert_array_equal(dense, np.broadcast_to(np.eye(4), dense.shape))
    if backend_.is_jax:  # operation by operation and slow; the rest gives the same numbers
        return
    res = lx.minimize(p.value_and_gradient, elsewhere, state=spoiled, **run)
    np.testing.assert_allclose(backend_.to_numpy(res.x), 1.0, atol=1e-6)
    fresh = lx.minimize(p.value_and_gradient, elsewhere, **run)
    assert backend_.to_numpy(res.x).tobytes() == backend_.to_numpy(fresh.x).tobytes()


def test_memory_of_another_function_is_survived() -> None:
    """Curvature that is wrong by any factor costs evaluations but never ends the run."""
    p = problems.rosenbrock(4)
    first = lx.minimize(p.value_and_gradient, p.x0, jac=True, maxiter=5)
    for unit in (1e-12, 1e12):
        res = lx.minimize(
            in_units(p, unit), p.x0 + 0.3, jac=True, state=first.state, gtol=1e-6 * unit
        )
        assert res.status == lx.Status.GRADIENT
        np.testing.assert_allclose(res.x, 1.0, atol=1e-4)


@pytest.mark.parametrize("initial", [1e-14, 1e-10, 1e3])
@pytest.mark.parametrize("rule", [name for name in NAMES if name != "fixed"])
def test_initial_matrix_that_is_wrong_by_far(rule: str, initial: float) -> None:
    """The longest step of a search says nothing about the function if its direction is tiny."""
    p = problems.rosenbrock(2)
    solver = lx.LBFGS(initial_inverse_hessian=initial, line_search=rule)
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=solver, gtol=1e-6)
    assert res.status == lx.Status.GRADIENT


# --- settings ----------------------------------------------------------------------------------


def test_solver_is_a_value() -> None:
    assert lx.LBFGS() == lx.LBFGS(memory_size=10, line_search="more_thuente")
    assert lx.LBFGS(memory_size=5) != lx.LBFGS()
    assert hash(lx.LBFGS(line_search="armijo")) == hash(lx.LBFGS(line_search=lx.Armijo()))
    with pytest.raises(AttributeError):
        lx.LBFGS().memory_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("rule", ["armijo", "bisection", "strong_wolfe", "hager_zhang"])
def test_every_line_search_solves(backend: Backend, rule: str) -> None:
    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float64")
    res = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, method=lx.LBFGS(line_search=rule), gtol=1e-8
    )
    assert res.status == lx.Status.GRADIENT
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=1e-6)


def test_user_owned_loop(backend: Backend) -> None:
    """`init` and `step` alone, without `minimize`."""
    from lbfgs_xp.arrays.backend import Backend as Library

    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float64")
    space, solver = lx.Space(Library.of(p.x0), batched=False), lx.LBFGS()
    state = solver.init(space, p.x0, *p.value_and_gradient(p.x0))
    for _ in range(100):
        if state.gradient_norm <= 1e-8:
            break
        state = solver.step(space, state, *p.value_and_gradient(state.trial))
    assert state.gradient_norm <= 1e-8
    np.testing.assert_allclose(backend.to_numpy(state.x), 1.0, atol=1e-6)


# --- the learning rate -------------------------------------------------------------------------


def bowl(x: Any) -> tuple[Any, Any]:
    return lx.fixed_sum(x * x * x * x + x * x), 4.0 * (x * x * x) + 2.0 * x


@pytest.mark.parametrize(
    "rate",
    [0.5, lx.schedules.Exponential(1.0, 0.9), lambda step: 1.0 / (1 + step)],
    ids=["number", "schedule", "function"],
)
def test_learning_rate_is_the_step_of_a_fixed_search(backend: Backend, rate: Any) -> None:
    solver = lx.LBFGS(line_search=lx.Fixed(), learning_rate=rate, scale_initial=False)
    steps: list[float] = []
    lx.minimize(
        bowl, backend.asarray([0.1, -0.2, 0.3]), jac=True, method=solver, maxiter=8, gtol=0.0,
        callback=lambda record: steps.append(record.step),
    )
    assert steps == [solver.learning_rate(k) for k in range(8)]


def test_learning_rate_is_the_first_trial(backend: Backend) -> None:
    """Armijo accepts a short step as it is, so the first trials are visible."""
    solver = lx.LBFGS(line_search=lx.Armijo(), learning_rate=0.25, scale_initial=False)
    steps: list[float] = []
    res = lx.minimize(
        bowl, backend.asarray([0.1, -0.2, 0.3]), jac=True, method=solver,
        callback=lambda record: steps.append(record.step),
    )
    assert res.success and set(steps[1:-1]) == {0.25}


def test_learning_rate_of_a_plateau() -> None:
    plateau = lx.schedules.ReduceOnPlateau(
        1.0, factor=0.5, patience=0, threshold=10.0, threshold_mode="abs"
    )
    solver = lx.LBFGS(line_search=lx.Fixed(), learning_rate=plateau, scale_initial=False)
    steps: list[float] = []
    lx.minimize(
        lambda x: (float(x[0]), np.ones(1)), np.zeros(1) + 1.0, jac=True, method=solver, maxiter=4,
        callback=lambda record: steps.append(record.step),
    )
    assert steps == [1.0, 0.5, 0.25, 0.125]


def test_learning_rate_that_ends_at_0() -> None:
    solver = lx.LBFGS(line_search=lx.Fixed(), learning_rate=lx.schedules.Linear(1.0, 0.0, steps=3))
    res = lx.minimize(bowl, np.ones(3), jac=True, method=solver, maxiter=30)
    assert np.isfinite(res.fun) and res.fun < 6.0


@pytest.mark.parametrize("reproducible", [False, True])
def test_learning_rate_of_a_batch(backend: Backend, reproducible: bool) -> None:
    x0 = np.asarray([[0.1, -0.2, 0.3], [1.0, 2.0, -0.5]])
    how: dict = {
        "jac": True,
        "method": lx.LBFGS(learning_rate=0.5),
        "reproducible": reproducible,
        "gtol": 1e-6,
    }
    together = lx.minimize(bowl, backend.asarray(x0), batched=True, **how)
    for row in range(2):
        alone = lx.minimize(bowl, backend.asarray(x0[row]), **how)
        found = backend.to_numpy(together.x)[row]
        np.testing.assert_allclose(found, backend.to_numpy(alone.x), atol=1e-6)
        if reproducible:
            assert np.array_equal(found, backend.to_numpy(alone.x))
    solver = lx.LBFGS(learning_rate=lx.schedules.Cosine(1.0, steps=10))
    with pytest.raises(ValueError, match=r"learning_rate is Cosine.* with batched=True"):
        lx.minimize(bowl, backend.asarray(x0), jac=True, batched=True, method=solver)


def test_learning_rate_goes_on() -> None:
    solver = lx.LBFGS(line_search=lx.Fixed(), learning_rate=lx.schedules.Exponential(0.5, 0.9))
    how: dict = {"jac": True, "method": solver, "gtol": 0.0}
    x0 = np.asarray([0.1, -0.2, 0.3])
    whole = lx.minimize(bowl, x0, maxiter=10, **how)
    half = lx.minimize(bowl, x0, maxiter=5, **how)
    rest = lx.minimize(bowl, half.x, maxiter=5, state=half.state, **how)
    assert np.array_equal(rest.x, whole.x)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), "fast"])
def test_learning_rate_that_is_none(rate: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="learning_rate is"):
        lx.LBFGS(learning_rate=rate)


def test_states_have_all_their_fields() -> None:
    """Named tuples may be made without their constructor, which would count the fields."""

    def whole(value: Any) -> None:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            assert len(value) == len(value._fields)
            for part in value:
                whole(part)

    p = lx.problems.chained_rosenbrock(6)
    for maxfun in range(1, 30):
        res = lx.minimize(p.value_and_gradient, p.x0, jac=True, maxfun=maxfun)
        whole(res.state)


def test_large_problems_in_a_compiled_loop() -> None:
    """There W y is a difference of W g, as for one problem on NumPy."""
    jax = pytest.importorskip("jax")
    settings = {"method": lx.LBFGS(memory_size=5), "gtol": 1e-8}
    problem = problems.rosenbrock(4096)
    there = problems.rosenbrock(4096, xp=jax.numpy, dtype=jax.numpy.float64)
    want = lx.minimize(problem.value_and_gradient, problem.x0, jac=True, **settings)
    found = lx.minimize(jax.jit(there.fun), there.x0, **settings)
    assert (found.nit, found.nfev, found.status) == (want.nit, want.nfev, want.status)
    np.testing.assert_allclose(found.x, want.x, rtol=1e-9)
    state = found.state.solver_state
    known = np.asarray(state.pairs.rows) @ np.asarray(state.gradient)
    np.testing.assert_allclose(state.with_gradient, known, rtol=1e-6, atol=1e-12)
    assert state.squared == pytest.approx(float(np.sum(np.square(state.gradient))), rel=1e-9)
