"""What a result says is true, and what a run was given stays unchanged."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.arrays.backend import Backend as Library
from tests.backends import Backend


def two_gaussians(seed: int) -> Any:
    """Half of chi squared of a sum of two Gaussians: a minimum far from 0, flat to rounding."""
    rng = np.random.default_rng(seed)
    t = np.linspace(-5.0, 5.0, 120)

    def model(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, columns = np.zeros_like(t), []
        for a, m, w in (p[:3], p[3:]):
            z = (t - m) / w
            e = np.exp(-0.5 * z * z)
            value = value + a * e
            columns += [e, a * e * z / w, a * e * z * z / w]
        return value, np.stack(columns)

    truth = np.asarray([2.0, -1.0, 0.8, 1.2, 1.5, 1.1])
    data = model(truth)[0] + 0.05 * rng.standard_normal(t.size)

    def fun(p: np.ndarray) -> tuple[float, np.ndarray]:
        value, columns = model(p)
        r = (value - data) / 0.05
        return 0.5 * float(r @ r), columns @ (r / 0.05)

    return fun, truth + 0.2 * rng.standard_normal(6)


@pytest.mark.parametrize("seed", range(40))
def test_a_small_gradient_is_that_of_the_point_returned(seed: int) -> None:
    fun, start = two_gaussians(seed)
    seen = []

    def counted(x: np.ndarray) -> tuple[float, np.ndarray]:
        seen.append(fun(x)[0])
        return fun(x)

    res = lx.minimize(counted, start, jac=True, gtol=1.5e-8)
    value, gradient = fun(res.x)
    assert res.fun == value
    np.testing.assert_array_equal(res.jac, gradient)
    assert res.gradient_norm == np.max(np.abs(gradient))
    assert res.status is lx.Status.GRADIENT and res.gradient_norm <= 1.5e-8
    assert res.fun <= min(seen) * (1 + 64 * 2.3e-16)
    assert res.nfev == len(seen)


@pytest.mark.parametrize("yes", [True, np.True_, np.asarray(True)], ids=repr)
def test_any_true_stops(yes: Any) -> None:
    p = lx.problems.rosenbrock(4)
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, callback=lambda _: yes)
    assert res.status is lx.Status.CALLBACK
    assert res.nit == 1


def test_a_callback_may_change_its_record() -> None:
    p = lx.problems.rosenbrock(4)

    def spoil(record: lx.Record) -> None:
        record.x[...] = 7.0

    clean = lx.minimize(p.value_and_gradient, p.x0, jac=True)
    spoiled = lx.minimize(p.value_and_gradient, p.x0, jac=True, callback=spoil)
    np.testing.assert_array_equal(spoiled.x, clean.x)


@pytest.mark.parametrize("container", [list, tuple], ids=["list", "tuple"])
def test_a_container_that_is_used_again(container: type) -> None:
    p = lx.problems.rosenbrock(10)
    buffer = np.empty(10)
    kept: Any = container([0.0, buffer])

    def fun(x: np.ndarray) -> Any:
        value, gradient = p.value_and_gradient(x)
        buffer[...] = gradient
        if container is list:
            kept[0] = float(value)
            return kept
        return float(value), kept[1]

    clean = lx.minimize(p.value_and_gradient, p.x0, jac=True)
    res = lx.minimize(fun, p.x0, jac=True)
    assert (res.nit, res.nfev) == (clean.nit, clean.nfev)
    np.testing.assert_array_equal(res.x, clean.x)


def test_values_of_a_batch_in_one_buffer() -> None:
    values = np.empty(2)

    def fun(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values[...] = np.where(np.all(x == 1.0, axis=1), 3.0, 1e6)
        return values, 2.0 * x

    res = lx.minimize(fun, np.ones((2, 3)), jac=True, batched=True, maxfun=3)
    np.testing.assert_array_equal(res.fun, 3.0)
    np.testing.assert_array_equal(res.x, 1.0)


def test_fun_must_not_change_x() -> None:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        x -= 1.0
        return float(x @ x), 2 * x

    with pytest.raises(ValueError, match="changed x in place"):
        lx.minimize(fun, np.zeros(3), jac=True)


@pytest.mark.sampled
@pytest.mark.parametrize("maxfun", [8, 11, 16, 19, 23])
@pytest.mark.parametrize("memory", [1, 3])
def test_inverse_hessian_in_the_middle_of_a_search(
    backend: Backend, memory: int, maxfun: int
) -> None:
    """It is positive definite and consists of complete pairs, wherever the budget ran out."""
    p = lx.problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    method = lx.LBFGS(memory_size=memory)
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=method, maxfun=maxfun)
    dense = backend.to_numpy(res.hess_inv.todense())
    assert np.all(np.linalg.eigvalsh(dense) > 0)
    vector = backend.asarray([1.0, -2.0, 0.5, 3.0])
    product = backend.to_numpy(res.hess_inv @ vector)
    np.testing.assert_allclose(dense @ backend.to_numpy(vector), product, rtol=1e-9, atol=1e-12)
    # Its newest pair is complete: H y = s (the secant equation).
    pairs = res.hess_inv._pairs
    newest = (pairs.slot - 1) % memory
    rows = backend.to_numpy(pairs.rows)
    np.testing.assert_allclose(
        dense @ rows[newest + memory], rows[newest], rtol=1e-8, atol=1e-10
    )


def test_a_search_ended_by_nan_leaves_the_pairs_whole(backend: Backend) -> None:
    p = lx.problems.rosenbrock(2, xp=backend.xp, device=backend.device, dtype="float64")
    calls = 0

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        value, gradient = p.value_and_gradient(x)
        return (value, gradient) if calls < 12 else (value * float("nan"), gradient * float("nan"))

    res = lx.minimize(fun, p.x0, jac=True, maxfun=13)
    assert np.all(np.isfinite(backend.to_numpy(res.hess_inv.todense())))


def test_a_space_of_ones_own_is_used() -> None:
    calls: list[str] = []

    class Counting(lx.Space):
        def dot(self, u: Any, v: Any) -> Any:
            calls.append("dot")
            return super().dot(u, v)

        def products(self, rows: Any, vector: Any) -> Any:
            calls.append("products")
            return super().products(rows, vector)

    p = lx.problems.rosenbrock(2)
    space, solver = Counting(p.x0), lx.LBFGS()
    state = solver.init(space, p.x0, *p.value_and_gradient(p.x0))
    for _ in range(5):
        state = solver.step(space, state, *p.value_and_gradient(state.trial))
    assert {"dot", "products"} <= set(calls)


def test_results_can_be_kept(backend: Backend) -> None:
    if backend.is_strict:
        pytest.skip("arrays of array-api-strict cannot be pickled on every device")
    p = lx.problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, maxiter=10)
    for kept in (copy.deepcopy(res), pickle.loads(pickle.dumps(res))):
        np.testing.assert_array_equal(backend.to_numpy(kept.x), backend.to_numpy(res.x))
        np.testing.assert_array_equal(
            backend.to_numpy(kept.hess_inv.todense()), backend.to_numpy(res.hess_inv.todense())
        )
        on = lx.minimize(p.value_and_gradient, kept.x, jac=True, state=kept.state, maxiter=5)
        same = lx.minimize(p.value_and_gradient, res.x, jac=True, state=res.state, maxiter=5)
        np.testing.assert_array_equal(backend.to_numpy(on.x), backend.to_numpy(same.x))


def test_error_bars_find_their_parameters() -> None:
    scale = {"z": np.full(1, 1.0), "a": np.full(2, 4.0)}

    def fun(p: dict[str, np.ndarray]) -> Any:
        value = sum(float(np.sum(scale[k] * p[k] ** 2)) / 2 for k in p)
        return value, {k: scale[k] * p[k] for k in p}

    res = lx.minimize(fun, {"z": np.ones(1), "a": np.asarray([1.0, 3.0])}, jac=True)
    variances = res.hess_inv.unravel(res.hess_inv.diagonal())
    np.testing.assert_allclose(variances["z"], 1.0, rtol=0.05)
    np.testing.assert_allclose(variances["a"], 0.25, rtol=0.2)
    assert res.hess_inv.unravel([1.0, 2.0, 3.0])["z"] == [3.0]
    with pytest.raises(ValueError, match=r"the vector has shape \(4,\); wanted \(3,\)"):
        res.hess_inv.unravel(np.ones(4))


def test_a_compiled_function_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    traced = 0

    def fun(x: Any) -> Any:
        nonlocal traced
        traced += 1
        return ((x - 1.0) ** 2).sum()

    compiled = jax.jit(fun)
    for _ in range(3):
        assert lx.minimize(compiled, jax.numpy.zeros(3)).success
    assert traced <= 2


@pytest.mark.parametrize("dtype", ["float16"])
def test_half_precision_is_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match="float16.*32 bits"):
        lx.minimize(lambda x: (x @ x, 2 * x), np.ones(3, dtype=dtype), jac=True)


def test_the_key_of_a_library_is_its_dtype_and_device() -> None:
    a, b = Library.of(np.ones(2)), Library.of(np.ones(3))
    assert a == b and hash(a) == hash(b)
    assert a != Library.of(np.ones(2, dtype=np.float32))


def test_a_solver_of_ones_own() -> None:
    """The contract in solvers/contract.py is all that `minimize` requires."""

    class State(NamedTuple):
        x: Any
        value: Any
        gradient: Any
        gradient_norm: Any
        step: Any
        trial: Any
        seen: Any
        decrement: Any
        accepted: Any
        failed: Any
        unbounded: Any

    class Descent:
        """Steps of a fixed length along the negative gradient."""

        def init(self, space: lx.Space, x: Any, value: Any, gradient: Any) -> State:
            value, norm = space.read(value, space.max_abs(gradient))
            trial = x - 0.1 * gradient
            return State(
                x, value, gradient, norm, 0.0, trial, value, np.inf, False, False, False
            )

        def step(
            self, space: lx.Space, state: State, value: Any, gradient: Any, active: Any = True
        ) -> State:
            return self.init(space, state.trial, value, gradient)._replace(accepted=True)

    res = lx.minimize(
        lambda x: (x @ x, 2 * x), np.ones(3), jac=True, method=Descent(), gtol=1e-6
    )
    assert res.status is lx.Status.GRADIENT and res.hess_inv is None
    with pytest.raises(ValueError, match="bounds were passed, but Descent"):
        lx.minimize(lambda x: x, np.ones(3), method=Descent(), bounds=(0, 1))


# --- found by a hostile user --------------------------------------------------------------------


def bowl(centre: float) -> Any:
    return lambda x: (np.sum((x - centre) ** 2), 2.0 * (x - centre))


def test_a_limited_step_is_no_proof_of_no_bound() -> None:
    method = lx.LBFGS(line_search=lx.MoreThuente(alpha_max=1.0))
    res = lx.minimize(bowl(3.0), np.full(3, -7.0), jac=True, method=method)
    assert res.status is lx.Status.GRADIENT
    far = lx.minimize(bowl(2e13), np.asarray([1e13]), jac=True)
    assert far.status is lx.Status.GRADIENT
    line = lx.minimize(lambda x: (np.sum(x), np.ones_like(x)), np.zeros(3), jac=True)
    assert line.status is lx.Status.UNBOUNDED


@pytest.mark.parametrize("x0", [[1.0, 3.0], [1e4, 2.0]])
def test_one_wrong_sign_is_not_rounding(x0: list[float]) -> None:
    def fun(x: np.ndarray) -> Any:
        return x[0] ** 4 + (x[1] - 1) ** 2, np.asarray([4 * x[0] ** 3, -2 * (x[1] - 1)])

    res = lx.minimize(fun, np.asarray(x0), jac=True, gtol=1e-8)
    assert res.status is lx.Status.LINE_SEARCH and not res.success


# Frequencies and starts for which a run settles in a higher valley than one that it has crossed.
VALLEYS = np.asarray(
    [(5.0, 4.2), (7.0, -5.9), (7.0, -3.428571), (9.0, 0.9), (15.5, -1.5), (30.0, 5.3)]
)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_lower_valley_seen_on_the_way_is_gone_back_to(batched: bool, method: str) -> None:
    lowest = np.full(len(VALLEYS), np.inf)

    def fun(x: np.ndarray, rows: Any) -> Any:
        w = VALLEYS[rows, :1]
        value = (np.sin(w * x) + 0.05 * x * x)[..., 0]
        lowest[rows] = np.minimum(lowest[rows], value)
        return value, w * np.cos(w * x) + 0.1 * x

    for rows in [np.arange(len(VALLEYS))] if batched else range(len(VALLEYS)):
        records: list[lx.Record] = []
        res = lx.minimize(
            fun, VALLEYS[rows, 1:], () if batched else (rows,), jac=True, batched=batched,
            pass_rows=batched, method=method, callback=records.append,
        )
        # The run must have settled higher first, or there is nothing to go back to.
        settled = [np.where(r.gradient_norm <= 1.5e-8, r.fun, -np.inf) for r in records]
        assert np.all(np.max(settled, axis=0) > res.fun + 1e-3)
        assert np.all(res.status == lx.Status.GRADIENT)
        assert np.all(res.gradient_norm <= 1.5e-8)
        np.testing.assert_allclose(res.fun, lowest[rows], rtol=1e-15)


def test_a_point_without_a_gradient_is_not_the_best() -> None:
    def fun(x: np.ndarray) -> Any:
        return (2 * x[0] ** 2 if x[0] > -2 else -5.0), np.where(x > -2, 4 * x, np.nan)

    res = lx.minimize(fun, np.ones(1), jac=True, method=lx.LBFGS(scale_initial=False))
    assert res.success and abs(res.x[0]) < 1e-6


def test_another_function_with_the_same_value() -> None:
    first = lx.minimize(bowl(0.0), np.ones(2), jac=True)

    def fun(x: np.ndarray) -> Any:
        return (x[0] - 1) ** 2 - 1 + x[1] ** 2, np.asarray([2 * (x[0] - 1), 2 * x[1]])

    res = lx.minimize(fun, first.x, jac=True, state=first.state)
    np.testing.assert_allclose(res.x, [1.0, 0.0], atol=1e-7)


def test_another_line_search_goes_on_from_the_pairs() -> None:
    p = lx.problems.rosenbrock(6)
    method = lx.LBFGS(line_search="bisection")
    for maxfun in (12, 13, 14, 15):
        first = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=method, maxfun=maxfun)
        for name in ("more_thuente", "hager_zhang", "strong_wolfe"):
            res = lx.minimize(
                p.value_and_gradient, first.x, jac=True, state=first.state,
                method=lx.LBFGS(line_search=name),
            )
            assert res.success


def test_a_state_of_another_kind_of_run() -> None:
    p = lx.problems.rosenbrock(4)
    x0 = p.starts(2, seed=1)
    first = lx.minimize(p.value_and_gradient, x0, jac=True, batched=True, maxiter=3)
    with pytest.raises(ValueError, match="state comes from a run in Space"):
        lx.minimize(
            p.value_and_gradient, first.x, jac=True, batched=True, state=first.state,
            reproducible=True,
        )


def test_differences_leave_no_graph() -> None:
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    start = torch.zeros(3, dtype=torch.float64)
    res = lx.minimize(lambda x: ((w * x - 3) ** 2).sum(), start, jac="3-point")
    assert not res.x.requires_grad


def test_masked_arrays_are_refused() -> None:
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    with pytest.raises(TypeError, match="masked"):
        lx.minimize(bowl(0.0), masked, jac=True)
    with pytest.raises(TypeError, match="masked"):
        lx.minimize(lambda x: (1.0, masked), np.ones(2), jac=True)


def test_a_matrix_function_may_change_its_vector() -> None:
    def inverse(v: np.ndarray) -> np.ndarray:
        v *= 0.1
        return v

    method = lx.LBFGS(initial_inverse_hessian=inverse)
    res = lx.minimize(bowl(3.0), np.zeros(3), jac=True, method=method, maxfun=1)
    np.testing.assert_array_equal(res.jac, -6.0)


def test_going_back_keeps_the_budget() -> None:
    w = 15.5

    def fun(x: np.ndarray) -> Any:
        return float(np.sin(w * x[0]) + 0.05 * x[0] ** 2), w * np.cos(w * x) + 0.1 * x

    whole = lx.minimize(fun, np.asarray([-1.5]), jac=True)
    for maxfun in range(1, whole.nfev + 1):
        calls = []

        def counted(x: np.ndarray, calls: list[float] = calls) -> Any:
            calls.append(x[0])
            return fun(x)

        res = lx.minimize(counted, np.asarray([-1.5]), jac=True, maxfun=maxfun)
        assert res.nfev == len(calls) <= maxfun


@pytest.mark.parametrize("scale", [10.0, 50.0, 100.0, 1e4])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["right", "wrong"])
def test_a_steep_start_is_no_excuse_for_a_wrong_gradient(
    sign: float, batched: bool, scale: float
) -> None:
    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        return np.sum(x**10, axis=-1) + x[..., 0], 10.0 * x**9 + np.asarray([sign, 0.0])

    x0 = np.full((2, 2) if batched else (2,), scale)
    res = lx.minimize(fun, x0, jac=True, method="lbfgs", batched=batched, gtol=1e-8)
    if sign < 0.0:
        assert np.all(np.asarray(res.status) == int(lx.Status.LINE_SEARCH))
    else:
        assert np.all(res.success)
        np.testing.assert_allclose(res.fun, -0.9 * 0.1 ** (1 / 9), rtol=1e-8)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["right", "wrong"])
def test_a_steep_start_is_no_excuse_for_a_wrong_jacobian(sign: float) -> None:
    res = lx.least_squares(
        lambda p: np.stack([p[0] ** 5 + p[0], p[1] - 1.0]), np.full(2, 1e3),
        jac=lambda p: np.asarray([[5.0 * p[0] ** 4 + sign, 0.0], [0.0, 1.0]]),
    )
    assert res.success if sign > 0.0 else res.status is lx.Status.LINE_SEARCH


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("x0", [[2.0, 0.0], [3.0, 1.0], [1.3, 5.0]])
def test_the_end_of_the_domain_is_no_precision_floor(x0: list[float], jac: str) -> None:
    t = np.linspace(0.0, 1.0, 20)

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.where(p[0] < 1.2, np.nan, p[0] + p[1] * t) - (1.0 + 2.0 * t)

    res = lx.least_squares(residuals, np.asarray(x0), jac=jac)
    assert res.status is lx.Status.LINE_SEARCH and abs(res.x[0] - 1.2) < 1e-4


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("start", [1.001, 2.0, 1e5])
def test_nor_is_the_end_of_the_domain_at_0(start: float, end: float) -> None:
    """At 0, x itself vanishes, to which steps are relative."""
    res = lx.least_squares(
        lambda p: np.where(p < end, np.nan, p) + 1.0, np.asarray([start]),
        jac=lambda p: np.ones((1, 1)),
    )
    assert res.status is lx.Status.LINE_SEARCH and abs(res.x[0] - end) < 1e-8


def test_differences_of_a_large_value_are_not_believed() -> None:
    """Next to 1e9, forward differences of this function are 0 everywhere."""
    def fun(x: np.ndarray) -> Any:
        return np.log1p((x[..., 0] - 1.0) ** 2) + 1e9

    for x0 in (np.asarray([3.0]), np.asarray([[3.0], [1.0], [-1.0]])):
        res = lx.minimize(fun, x0, jac="2-point", batched=x0.ndim == 2)
        np.testing.assert_allclose(res.x, np.ones_like(x0), atol=1e-2)


@pytest.mark.parametrize("x0", [[3.0], [[3.0], [-1.0]]], ids=["one", "batch"])
def test_what_a_budget_leaves_unchecked_is_not_believed(x0: Any) -> None:
    def fun(x: np.ndarray) -> Any:
        return np.log1p((x[..., 0] - 1.0) ** 2) + 1e9

    start = np.asarray(x0)
    for maxfun in (1, 2, 3, 4):
        res = lx.minimize(fun, start, jac="2-point", maxfun=maxfun, batched=start.ndim == 2)
        np.testing.assert_array_equal(res.jac, np.zeros_like(start))
        assert np.all(np.asarray(res.status) == int(lx.Status.EVALUATIONS))
        assert np.all(np.asarray(res.nfev) == 2) and not np.any(res.success)
    res = lx.minimize(fun, start, jac="2-point", maxtime=0.0, batched=start.ndim == 2)
    assert np.all(np.asarray(res.status) == int(lx.Status.TIME))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("start", [0.0, 3.0])
@pytest.mark.parametrize(
    ("method", "unit"),
    [(method, unit) for method in ("lbfgs", "bfgs") for unit in (1e-15, 1e8, 1e20, 1e30, 1e100)]
    + [(lx.GradientDescent(), unit) for unit in (1e-8, 1e8)]
    + [("projected_gradient", unit) for unit in (1e-8, 1e8, 1e15)],
    ids=str,
)
def test_the_units_of_x_may_be_any(
    method: Any, unit: float, start: float, batched: bool, dtype: Any
) -> None:
    if unit > 1e30 and dtype is np.float32:
        pytest.skip(f"{unit} is beyond float32")
    one = dtype(unit)

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        u = x / one - 1.0
        return np.sum(u * u, axis=-1), 2.0 * u / one

    x0 = np.full((2, 3) if batched else (3,), start * unit, dtype=dtype)
    res = lx.minimize(fun, x0, jac=True, method=method, batched=batched, gtol=0.0)
    assert np.all(res.success)
    np.testing.assert_allclose(np.asarray(res.x) / unit, np.ones_like(x0), rtol=1e-3)


def test_differences_warn_of_nothing() -> None:
    def fun(x: np.ndarray) -> Any:
        return np.inf if x[0] < 1.0 else x[0]

    with np.errstate(all="raise"):
        lx.minimize(fun, np.asarray([2.0]), jac="3-point")


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("maxfun", [1, 5, 9, 20, 33])
def test_a_fit_keeps_its_budget(maxfun: int, jac: str) -> None:
    calls = 0

    def residuals(p: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.stack([10.0 * (p[1] - p[0] ** 2), 1.0 - p[0]])

    res = lx.least_squares(residuals, np.asarray([-1.2, 1.0]), jac=jac, maxfun=maxfun)
    step = {"2-point": 3, "3-point": 5}[jac]    # a trial and its Jacobian; the same for the start
    assert res.nfev == calls <= max(maxfun, step) and res.status is lx.Status.EVALUATIONS
    # The rest of the budget did not allow another step, with one evaluation for the curvature.
    assert calls + step + 1 > maxfun


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_a_kink_is_no_precision_floor(method: str, batched: bool) -> None:
    """Along a kink the curvature seems infinite, so that no decrease is predicted for any step."""
    weights = np.asarray([1.8, 59.9])

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        return np.abs(x) @ weights, weights * np.sign(x)

    x0 = np.asarray([1.2, -1.9])
    res = lx.minimize(
        fun, np.stack([x0, x0]) if batched else x0, jac=True, method=method, batched=batched
    )
    assert np.all(np.asarray(res.fun) > 1.0) and not np.any(res.success)
    assert np.all(np.asarray(res.status) == int(lx.Status.LINE_SEARCH))


@pytest.mark.parametrize("method", ["lbfgs", "newton"])
@pytest.mark.parametrize("start", [35.0, 50.0, 85.0, 110.0])
def test_a_start_higher_by_any_factor_does_not_end_a_run_early(method: str, start: float) -> None:
    def fun(x: np.ndarray) -> Any:
        return np.sum(np.exp(x) - x), np.exp(x) - 1.0

    hess = (lambda x: np.diag(np.exp(x))) if method == "newton" else None
    res = lx.minimize(fun, np.asarray([start]), jac=True, hess=hess, method=method)
    assert not res.success or res.fun < 1.0 + 1e-10
    rows = lx.minimize(
        lambda x: (np.sum(np.exp(x) - x, axis=-1), np.exp(x) - 1.0), np.asarray([[start], [2.0]]),
        jac=True, batched=True, method="lbfgs",
    )
    assert (rows.fun < 1.0 + 1e-10).all()


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_differences_in_mixed_units(jac: Any, method: str) -> None:
    """The error of one steep variable hides what all others have left to gain."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        a, centre = rng.normal(size=(5, 5)), rng.normal(size=5)
        unit = 10.0 ** rng.choice([-8, 0, 8], size=5)

        def fun(x: np.ndarray, a: Any = a, centre: Any = centre, unit: Any = unit) -> Any:
            u = a @ (x / unit - centre)
            return np.sum(u**4 + 0.01 * u**2)

        start = unit * (centre + rng.normal(size=5))
        res = lx.minimize(fun, start, jac=jac, method=method)
        assert res.success and res.fun <= 1e-6 * fun(start)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_no_step_in_units_ends_at_0(method: str) -> None:
    """There, nothing would show the unit of a variable any more."""
    solver = lx.LBFGS() if method == "lbfgs" else lx.BFGS()
    x = np.asarray([3.0, 1e8, 1e-8])
    space = lx.Space(x)
    state = solver.init(space, x, 10.0, 1e3 / x, unit=np.abs(x))
    assert np.all(state.trial != 0.0)


@pytest.mark.parametrize("start", [(1e3, -1e3), (1e4, -1e3), (1e4, -1e3, -1e5), (-8274.6, -613.5)])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_a_start_far_away_makes_no_gradient_small(start: tuple, method: str) -> None:
    """On the floor of Rosenbrock's valley, compared with where the walls begin."""

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        off, gradient = x[1:] - x[:-1] ** 2, np.zeros_like(x)
        gradient[:-1] = -400.0 * x[:-1] * off - 2.0 * (1.0 - x[:-1])
        gradient[1:] += 200.0 * off
        return float(np.sum(100.0 * off**2 + (1.0 - x[:-1]) ** 2)), gradient

    res = lx.minimize(fun, np.asarray(start), jac=True, method=method)
    assert not res.success or res.fun < 1e-6


def _valley(x: np.ndarray) -> Any:
    off, gradient = x[..., 1:] - x[..., :-1] ** 2, np.zeros_like(x)
    gradient[..., :-1] = -400.0 * x[..., :-1] * off - 2.0 * (1.0 - x[..., :-1])
    gradient[..., 1:] += 200.0 * off
    value = np.sum(100.0 * off * off + (1.0 - x[..., :-1]) ** 2, axis=-1)
    return value, gradient


def _valley_hessian(x: np.ndarray) -> np.ndarray:
    hessian = np.diag(np.append(1200.0 * x[:-1] ** 2 - 400.0 * x[1:] + 2.0, 0.0))
    hessian += np.diag(np.append(0.0, np.full(x.size - 1, 200.0)))
    return hessian - np.diag(400.0 * x[:-1], 1) - np.diag(400.0 * x[:-1], -1)


def _bowl(x: np.ndarray) -> Any:
    u = x - 2.0
    return np.sum(u**4 + 0.01 * u**2, axis=-1), 4.0 * u**3 + 0.02 * u


def _bowl_hessian(x: np.ndarray) -> np.ndarray:
    return np.diag(12.0 * (x - 2.0) ** 2 + 0.02)


FAR = [(-30.0, 5.0), (250.0, -40.0), (1e3, -1e3), (40.0, -7.0, -60.0), (1e4, -1e3, -1e5)]


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize(
    "start", [(1e5, 1e5), (1e4, -1e4), (1e5, -3e4), (3263.597, 19979.929)]
)
def test_by_differences_a_start_far_away_makes_no_gradient_small(
    start: tuple, method: str, jac: str
) -> None:
    """The value falls from up to 1e22."""
    res = lx.minimize(
        lambda x: 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2, np.asarray(start),
        jac=jac, method=method,
    )
    assert res.success and res.fun < 1e-3


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_by_differences_in_float32_a_start_makes_no_gradient_small(method: str, jac: str) -> None:
    """Next to a minimum of 0 or of 5, not where 4 eps of the fall, 1e5 to 1e15, would still hide
    what is left."""
    weights = np.asarray([1.0, 1e3], dtype=np.float32)
    for start in ((1e6, 1e6), (1e3, -10.0), (7.0, 3.0)):
        for least in (0.0, 5.0):
            res = lx.minimize(
                lambda x, least=least: np.float32(least) + np.sum(weights * (x - 1.0) ** 2),
                np.asarray(start, dtype=np.float32), jac=jac, method=method,
            )
            assert res.success and res.fun - least < 1e-3
    for start in ((-10.0, 10.0), (-1e3, 1e3), (-1e5, 1e5)):
        res = lx.minimize(
            lambda x: _valley(x)[0], np.asarray(start, dtype=np.float32), jac=jac, method=method
        )
        assert not res.success or res.fun < 1e-3


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_a_lower_point_that_a_look_has_seen_is_kept(method: str) -> None:
    """The first variable is so far away that its slope is lost next to the second one."""
    values: list[float] = []

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        values.append(float(np.sum(np.log1p(x * x))))
        return values[-1], 2.0 * x / (1.0 + x * x)

    start = np.asarray([1e10, 1e3], dtype=np.float32)
    res = lx.minimize(fun, start, jac=True, method=method)
    assert res.fun <= min(values) + 1e-6 * abs(min(values)) + 1e-12 and res.fun < 1e-12


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "newton"])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_in_float32_a_start_far_away_makes_no_gradient_small(method: str, unit: float) -> None:
    """What eps of the fall from there would hide, a run from the end would find."""
    one = np.float32(unit)
    for fun, curved in ((_valley, _valley_hessian), (_bowl, _bowl_hessian)):
        for start in FAR:
            def scaled(x: np.ndarray, fun: Any = fun) -> Any:
                value, gradient = fun(x)
                return one * value, one * gradient

            def hessian(x: np.ndarray, curved: Any = curved) -> Any:
                return one * curved(x)

            more: Any = {"hess": hessian} if method == "newton" else {}
            x0 = np.asarray(start, dtype=np.float32)
            res = lx.minimize(scaled, x0, jac=True, method=method, maxiter=400, **more)
            assert not res.success or res.fun < 1e-3 * unit, (start, res.fun / unit, res.message)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "projected_gradient"])
def test_in_float32_no_row_of_a_batch_trusts_a_start_far_away(method: str) -> None:
    starts = np.asarray([start for start in FAR if len(start) == 3], dtype=np.float32)
    for fun in (_valley, _bowl):
        res = lx.minimize(fun, starts, jac=True, method=method, batched=True, maxiter=3000)
        assert np.all(~res.success | (res.fun < 1e-3))
