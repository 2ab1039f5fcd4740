"""BFGS with a dense inverse Hessian, for one problem and for a batch."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.line_search import ACCEPTED, NAMES, SEARCHING, rule_of
from tests.backends import CPU, Backend

MATRIX = np.asarray([[0.02, 0.01, 0.0, 0.0], [0.01, 0.03, 0.0, 0.0],
                     [0.0, 0.0, 0.01, 0.0], [0.0, 0.0, 0.0, 0.05]])


# All batches on JAX have this shape, so that JAX compiles once for all of them.
B, N = 3, 6


def make(name: str, backend: Backend, dtype: str = "float64", **more: Any) -> problems.Problem:
    return problems.ALL[name](
        xp=backend.xp, device=backend.device, dtype=backend.dtype(dtype), **more
    )


def run(p: problems.Problem, x0: Any, **settings: Any) -> lx.Result:
    settings = {"method": "bfgs", **settings}
    return lx.minimize(p.value_and_gradient, x0, jac=True, **settings)


# --- the formula -------------------------------------------------------------------------------


def textbook(
    p: problems.Problem, x: np.ndarray, rule: lx.LineSearch, H: np.ndarray, scale: bool, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The iterates of Nocedal & Wright, Algorithm 6.1, by eq. 6.17 as printed, and the last H."""
    f, g = p.value_and_gradient(x)
    noise, identity = lx.Space(x).backend.noise, np.eye(p.n)
    iterates = []
    for k in range(count):
        d = -H @ g
        search = rule.begin(float(f), float(g @ d), 1.0, abs(float(f)) * noise)
        while search.status == SEARCHING:
            alpha = search.alpha
            f, new = p.value_and_gradient(x + alpha * d)
            search = rule.advance(search, float(f), float(new @ d))
        assert search.status == ACCEPTED
        s, y = alpha * d, new - g
        x, g, rho = x + s, new, 1.0 / (s @ y)
        if scale and k == 0:
            H = H * (s @ y) / (y @ H @ y)  # eq. 6.20 if H is the identity
        left = identity - rho * np.outer(s, y)
        H = left @ H @ left.T + rho * np.outer(s, s)
        iterates.append(x)
    return iterates, H


@pytest.mark.parametrize("rule", ["more_thuente", "hager_zhang"])
@pytest.mark.parametrize("kind", ["identity", "scaled", "number", "diagonal", "matrix"])
@pytest.mark.parametrize(("name", "count"), [("rosenbrock", 12), ("quadratic", 4)])
def test_iterates_are_those_of_the_formula(name: str, count: int, kind: str, rule: str) -> None:
    p = problems.ALL[name](4)
    x0 = p.starts(1, scale=0.3)[0]
    initial = {"scaled": 1.0, "number": 0.01, "diagonal": np.diag(MATRIX), "matrix": MATRIX}
    given, scale = initial.get(kind), kind != "identity"
    H = np.eye(4) if given is None else np.asarray(given)
    H = H * np.eye(4) if H.ndim < 2 else H
    solver = lx.BFGS(rule, given, scale, rescale=False)
    wanted, last = textbook(p, x0, rule_of(rule), H, scale, count)
    seen: list[np.ndarray] = []
    res = run(
        p, x0, method=solver, maxiter=count, gtol=0.0, callback=lambda r: seen.append(r.x)
    )
    assert len(seen) == count
    np.testing.assert_allclose(seen, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(res.hess_inv.todense(), last, rtol=1e-7, atol=1e-9)


def test_every_library_takes_the_same_iterates(backend: Backend) -> None:
    def path(b: Backend) -> tuple[np.ndarray, int]:
        p = make("rosenbrock", b, n=4)
        seen: list[np.ndarray] = []
        res = run(
            p, p.x0, maxiter=12, gtol=0.0, callback=lambda r: seen.append(b.to_numpy(r.x))
        )
        return np.stack(seen), res.nfev

    (found, nfev), (wanted, evaluations) = path(backend), path(Backend.NUMPY)
    assert nfev == evaluations
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)


def test_quadratic_ends_after_n_exact_searches() -> None:
    """With exact searches BFGS is the conjugate gradient method (section 6.4)."""
    p = problems.quadratic(6, spectrum=[1.0, 2.0, 5.0, 6.0, 9.0, 12.0])
    rule = lx.MoreThuente(c1=1e-11, c2=1e-10, xtol=0.0)
    res = run(p, p.x0, method=lx.BFGS(rule, scale_initial=False), gtol=1e-6, maxiter=8)
    assert res.status is Status.GRADIENT and res.nit <= 6
    true = np.linalg.inv(np.stack([p.gradient(e) - p.gradient(0.0 * e) for e in np.eye(6)]))
    np.testing.assert_allclose(res.hess_inv.todense(), true, atol=1e-4)


# --- SciPy -------------------------------------------------------------------------------------

SET: dict[str, problems.Problem] = {
    "rosenbrock-2": problems.rosenbrock(2),
    "rosenbrock-10": problems.rosenbrock(10),
    "chained-10": problems.chained_rosenbrock(10),
    "beale": problems.beale(),
    "himmelblau": problems.himmelblau(),
    "quadratic": problems.quadratic(),
    "logistic": problems.logistic_regression(),
    "mlp": problems.mlp_regression(4, samples=16),
    "decay": problems.exponential_decay(),
    "decay-noise": problems.exponential_decay(noise=0.05),
}


def test_the_minima_of_scipy() -> None:
    """With no more evaluations than SciPy's BFGS or our L-BFGS."""
    optimize = pytest.importorskip("scipy.optimize")
    totals = np.zeros(3)
    methods = lx.BFGS(rescale=False), "lbfgs"
    for name, p in SET.items():
        ours, limited = (run(p, p.x0, gtol=1e-6, method=m) for m in methods)
        theirs = optimize.minimize(
            p.value_and_gradient, p.x0, jac=True, method="BFGS", options={"gtol": 1e-6}
        )
        assert ours.status is Status.GRADIENT
        if name not in ("mlp", "chained-10"):  # these have more than one minimum
            assert ours.fun == pytest.approx(theirs.fun, rel=1e-8, abs=1e-8)
        print(f"{name:14} {ours.nfev:5} {limited.nfev:5} {theirs.nfev:5}")
        totals += ours.nfev, limited.nfev, theirs.nfev
    assert totals[0] <= 1.1 * totals[1] and totals[0] <= 1.1 * totals[2]


def test_rescaling_saves_evaluations() -> None:
    """Over many starts, because one start of the network, which has many minima, shows nothing."""
    for name, most in {
        "rosenbrock-10": 0.85, "chained-10": 0.95, "quadratic": 0.95, "logistic": 1.05, "mlp": 1.0,
    }.items():
        p = SET[name]
        x0 = p.starts(50, scale=0.3 if name == "mlp" else 1.0, seed=3)
        rescaled, plain = (
            run(p, x0, batched=True, gtol=1e-6, maxiter=800, method=lx.BFGS(rescale=rescale))
            for rescale in (True, False)
        )
        counts = np.median(rescaled.nfev), np.median(plain.nfev)
        assert counts[0] <= most * counts[1], (name, *counts)
        assert np.median(rescaled.fun) <= np.median(plain.fun) + 1e-8


# --- batches, bits -----------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("backend_", "settings"),
    [
        (b, s)
        for b in CPU
        for s in [{}, {"scale_initial": False}, {"initial_inverse_hessian": MATRIX}]
        if not (b.is_jax and s)  # operation by operation, which is slow
    ],
)
def test_rows_are_bitwise_single_runs(backend_: Backend, settings: dict[str, Any]) -> None:
    p = make("rosenbrock", backend_, n=4, reproducible=True)
    x0 = p.starts(2, scale=0.5)
    how = {"method": lx.BFGS(**settings), "reproducible": True}
    how |= {"gtol": 0.0, "maxiter": 3 if backend_.is_jax else 60}
    batch = run(p, x0, batched=True, **how)
    counts = {
        name: backend_.to_numpy(getattr(batch, name)) for name in ("fun", "nit", "nfev", "status")
    }
    for i in range(2):
        alone = run(p, x0[i, ...], **how)
        for name in ("x", "jac"):
            rows = backend_.to_numpy(getattr(batch, name))
            assert rows[i].tobytes() == backend_.to_numpy(getattr(alone, name)).tobytes()
        for name, values in counts.items():
            assert values[i] == getattr(alone, name), name
        dense = backend_.to_numpy(batch.hess_inv.todense())[i]
        assert dense.tobytes() == backend_.to_numpy(alone.hess_inv.todense()).tobytes()
        np.testing.assert_array_equal(dense, dense.T)


def bits(backend: Backend, dtype: str, batched: bool, iterations: int) -> tuple[Any, ...]:
    p = make("rosenbrock", backend, dtype, n=4, reproducible=True)
    x0 = p.starts(2, scale=0.5) if batched else p.x0
    res = run(p, x0, batched=batched, reproducible=True, gtol=0.0, maxiter=iterations)
    counts = res.nit, res.nfev
    counts = tuple(map(backend.to_numpy, counts)) if batched else counts
    last = (res.x, res.jac, res.hess_inv.todense())
    return *(backend.to_numpy(a).tobytes() for a in last), *np.ravel(counts).tolist()


@functools.cache
def numpy_bits(*settings: Any) -> tuple[Any, ...]:
    return bits(Backend.NUMPY, *settings)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_bits_on_every_library(backend: Backend, dtype: str, batched: bool) -> None:
    if backend.is_jax and batched == (dtype == "float32"):
        pytest.skip("op by op and slow: each setting once is enough")
    iterations = 3 if backend.is_jax else 45
    wanted = numpy_bits(dtype, batched, iterations)
    assert bits(backend, dtype, batched, iterations) == wanted


@pytest.mark.parametrize("rule", NAMES)
def test_rows_are_bitwise_single_runs_to_the_floor(rule: str) -> None:
    """Rounding errors, stuck searches, and dropping what was learned."""
    for name, dtype in [("beale", "float64"), ("himmelblau", "float32")]:
        p = make(name, Backend.NUMPY, dtype, reproducible=True)
        x0 = p.starts(4, scale=1.0)
        how: dict[str, Any] = {"reproducible": True, "gtol": 0.0, "maxfun": 90}
        how["method"] = lx.BFGS(rule)
        batch = run(p, x0, batched=True, **how)
        for i in range(4):
            alone = run(p, x0[i], **how)
            assert batch.x[i].tobytes() == alone.x.tobytes()
            assert (batch.nit[i], batch.nfev[i]) == (alone.nit, alone.nfev)
            assert batch.status[i] == alone.status


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_batch(backend: Backend, dtype: str) -> None:
    if backend.is_jax and dtype == "float32":
        pytest.skip("compiled anew: once is enough")
    p = make("rosenbrock", backend, dtype, n=N)
    x0 = p.starts(B, scale=0.5)
    gtol = 1e-6 if dtype == "float64" else 1e-2
    res = run(p, x0, batched=True, method=None, gtol=gtol)
    assert type(res.x) is type(x0) and res.x.dtype == x0.dtype
    assert isinstance(res.state.solver, lx.BFGS)
    assert np.all(backend.to_numpy(res.status) == Status.GRADIENT)
    atol = 1e-5 if dtype == "float64" else 3e-2
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=atol)
    for i in range(B):
        alone = run(p, x0[i, ...], gtol=gtol)
        np.testing.assert_allclose(backend.to_numpy(alone.x), 1.0, atol=atol)
        assert abs(int(backend.to_numpy(res.nfev)[i]) - alone.nfev) <= 0.2 * alone.nfev


def test_complex(backend: Backend) -> None:
    xp, re, im = backend.xp, np.arange(9.0).reshape(B, 3), np.ones((B, 3))
    target = backend.asarray(re + 1j * im, "complex128")

    def fun(z: Any, target: Any) -> Any:
        d = z - target
        return xp.sum(xp.real(d) ** 2 + 3.0 * xp.imag(d) ** 2, axis=-1), 2.0 * (
            xp.astype(xp.real(d), z.dtype) + 3.0j * xp.astype(xp.imag(d), z.dtype)
        )

    z0 = backend.asarray(np.zeros((B, 3)), "complex128")
    res = lx.minimize(fun, z0, (target,), jac=True, batched=True, method="bfgs")
    assert res.x.dtype == z0.dtype and np.all(backend.to_numpy(res.success))
    np.testing.assert_allclose(backend.to_numpy(res.x), backend.to_numpy(target), atol=1e-6)
    assert res.hess_inv.shape == (B, N, N)


def test_one_bad_row_is_bad_alone() -> None:
    p = problems.rosenbrock(4)

    def fun(x: np.ndarray, rows: np.ndarray) -> Any:
        value, gradient = p.value_and_gradient(x)
        gradient[rows == 1] *= -1.0
        gradient[(rows == 2) & (x != x0[rows]).any(-1)] = np.nan
        return value, gradient

    x0 = p.starts(5, scale=0.5)
    res = lx.minimize(
        fun, x0, jac=True, batched=True, pass_rows=True, method="bfgs", gtol=1e-7
    )
    clean = run(p, x0, batched=True, gtol=1e-7)
    assert not res.success[1] and not res.success[2]
    for name in ("x", "nit", "nfev", "status"):
        rows, wanted = getattr(res, name), getattr(clean, name)
        np.testing.assert_array_equal(rows[[0, 3, 4]], wanted[[0, 3, 4]])
    np.testing.assert_array_equal(res.x[1:3], x0[1:3])


# --- requirements on every solver --------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("backend_", CPU, ids=str)
def test_going_on_equals_not_stopping(backend_: Backend, batched: bool) -> None:
    p = make("chained_rosenbrock", backend_, n=N)
    x0 = p.starts(B, scale=0.5) if batched else p.x0
    n = 10 if backend_.is_jax else 30
    how: dict[str, Any] = {"batched": batched, "gtol": 0.0}
    whole = run(p, x0, maxiter=2 * n, **how)
    half = run(p, x0, maxiter=n, **how)
    state = half.state
    if backend_ is Backend.NUMPY:
        state = pickle.loads(pickle.dumps(state))
    rest = run(p, half.x, maxiter=n, state=state, **how)
    again = run(p, half.x, maxiter=n, state=half.state, **how)
    for res in (rest, again):
        for name in ("x", "jac"):
            found, wanted = getattr(res, name), getattr(whole, name)
            assert backend_.to_numpy(found).tobytes() == backend_.to_numpy(wanted).tobytes()
    # What was learned helps elsewhere too.
    if backend_ is Backend.NUMPY:
        near = whole.x + 1e-3
        told = run(p, near, state=whole.state, batched=batched, gtol=1e-6)
        assert np.all(told.nfev < run(p, near, batched=batched, gtol=1e-6).nfev)


@pytest.mark.parametrize("batched", [False, True])
def test_hess_inv(backend: Backend, batched: bool) -> None:
    p = make("quadratic", backend, n=N)
    x0 = p.starts(B) if batched else p.x0
    H = run(p, x0, batched=batched, gtol=1e-8).hess_inv
    assert H.shape == ((B, N, N) if batched else (N, N)) and H.dtype == x0.dtype
    dense, product = backend.to_numpy(H.todense()), backend.to_numpy(H @ x0)
    vector = backend.to_numpy(x0)
    np.testing.assert_allclose(product, (dense @ vector[..., None])[..., 0], rtol=1e-10)
    np.testing.assert_array_equal(
        backend.to_numpy(H.diagonal()), np.diagonal(dense, axis1=-2, axis2=-1)
    )
    np.testing.assert_array_equal(backend.to_numpy(H.unravel(H.diagonal())).shape, x0.shape)
    if batched:
        with pytest.raises(ValueError, match=r"hess_inv of shape \(3, 6, 6\) was multiplied"):
            H @ x0[:2, ...]
    else:
        columns = backend.to_numpy(H @ backend.asarray(np.eye(N)[:, :2]))
        np.testing.assert_allclose(columns, dense[:, :2], rtol=1e-10, atol=1e-14)


def test_hess_inv_stays_where_the_gradient_is_0() -> None:
    """The first step on a quadratic with minimum 0 ends exactly there."""
    res = lx.minimize(
        lambda x: (1.5 * (x @ x), 3.0 * x), np.ones(2), jac=True, method="bfgs", gtol=0.0
    )
    assert res.gradient_norm == 0.0 and res.nit == 1
    np.testing.assert_allclose(res.hess_inv.todense(), np.eye(2) / 3.0, rtol=1e-15)


@pytest.mark.parametrize("batched", [False, True])
def test_wrong_curvature_is_dropped(backend: Backend, batched: bool) -> None:
    """If the matrix of a state gives an uphill direction, the run starts from scratch."""
    p = make("rosenbrock", backend, n=N)
    x0 = p.starts(B) if batched else p.x0
    first = run(p, x0, batched=batched, maxiter=3)
    inner = first.state.solver_state
    learned = inner.learned._replace(matrix=-inner.learned.matrix)
    state = first.state._replace(solver_state=inner._replace(learned=learned))
    how: dict[str, Any] = {"batched": batched, "gtol": 1e-6, "maxiter": 8}
    res, fresh = run(p, x0 + 0.5, state=state, **how), run(p, x0 + 0.5, **how)
    assert backend.to_numpy(res.x).tobytes() == backend.to_numpy(fresh.x).tobytes()


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_units_of_the_function(unit: float) -> None:
    p = problems.rosenbrock(4)

    def fun(x: np.ndarray) -> Any:
        value, gradient = p.value_and_gradient(x)
        return unit * value, unit * gradient

    wanted = run(p, p.x0, gtol=1e-6)
    res = lx.minimize(fun, p.x0, jac=True, method="bfgs", gtol=1e-6 * unit)
    assert res.success and res.nfev <= wanted.nfev + 5


def test_function_without_bound() -> None:
    res = lx.minimize(lambda x: (-x.sum(), -np.ones(2)), np.zeros(2), jac=True, method="bfgs")
    assert res.status is Status.UNBOUNDED


@pytest.mark.parametrize("rule", [rule for rule in NAMES if rule != "fixed"])
def test_every_line_search_solves(rule: str) -> None:
    p = problems.rosenbrock(4)
    res = run(p, p.starts(4, scale=0.5), batched=True, method=lx.BFGS(rule), gtol=1e-6)
    assert np.all(res.status == Status.GRADIENT)


def test_auto_takes_the_dense_matrix_for_small_problems_of_a_batch() -> None:
    def taken(n: int, batched: bool, **how: Any) -> type:
        p = problems.rosenbrock(n)
        x0 = p.starts(2) if batched else p.x0
        res = lx.minimize(
            p.value_and_gradient, x0, jac=True, batched=batched, maxiter=1, **how
        )
        return type(res.state.solver)

    assert taken(20, True) is taken(20, True, method="auto") is lx.BFGS
    assert taken(22, True) is taken(22, True, method="auto") is lx.LBFGS
    assert taken(4, False) is taken(4, False, method="auto") is lx.LBFGS


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (0.0, ValueError),
        (-1.0, ValueError),
        (np.nan, ValueError),
        ([1.0, -1.0], ValueError),
        (np.ones((2, 3)), ValueError),
        ([[1.0, 2.0], [0.0, 1.0]], ValueError),
        ([[1.0, 2.0], [2.0, 1.0]], ValueError),
        (np.ones((2, 2, 2)), ValueError),
        (True, TypeError),
        ("identity", TypeError),
        (lambda v: v, TypeError),
    ],
)
def test_initial_matrix_that_is_none(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"initial_inverse_hessian is .*; wanted None, a positive"):
        lx.BFGS(initial_inverse_hessian=given)


def test_errors_name_what_was_passed() -> None:
    p = problems.rosenbrock(4)
    with pytest.raises(ValueError, match=r"has shape \(3,\); wanted \(4,\) or \(4, 4\)"):
        run(p, p.x0, method=lx.BFGS(initial_inverse_hessian=np.ones(3)))
    with pytest.raises(TypeError, match="scale_initial is 1; wanted True or False"):
        lx.BFGS(scale_initial=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="line_search is 'wolf'; "):
        lx.BFGS("wolf")
    first = run(p, p.x0, method="lbfgs", maxiter=2)
    with pytest.raises(ValueError, match="state holds a LBFGSState.*wanted the state of BFGS"):
        run(p, first.x, state=first.state)


def test_solver_is_a_value() -> None:
    assert lx.BFGS() == lx.BFGS("more_thuente") != lx.BFGS("armijo")
    assert hash(lx.BFGS(initial_inverse_hessian=2.0)) == hash(lx.BFGS(initial_inverse_hessian=2.0))
    assert lx.BFGS() != lx.BFGS(scale_initial=False)


def test_a_row_in_a_search_keeps_its_matrix_while_others_turn() -> None:
    """Even if rounding has left it without a descent direction."""
    def fun(x: np.ndarray) -> Any:
        return np.sum(x * x, axis=-1), 2.0 * x

    solver, x = lx.BFGS(line_search="strong_wolfe"), np.asarray([[1.0, 2.0], [1.0, 2.0]])
    space = lx.Space(x, batched=True)
    state = solver.init(space, x, *fun(x))
    matrix = state.learned.matrix.copy()
    matrix[0] = -np.eye(2)
    learned = state.learned._replace(matrix=matrix.copy(), bare=np.zeros(2, dtype=bool))
    value, gradient = fun(state.trial)
    # The search of the first row has to continue: the value is lower and the slope still steep.
    gradient[0], value[0] = fun(x)[1][0], fun(x)[0][0] - 10.0
    with np.errstate(all="ignore"):
        after = solver.step(space, state._replace(learned=learned), value, gradient)
    assert list(after.accepted) == [False, True]
    np.testing.assert_array_equal(after.learned.matrix[0], matrix[0])
    assert not after.learned.bare[0]
