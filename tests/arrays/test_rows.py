"""Finished rows leave the batch: what the function sees then, and that nothing is lost."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.arrays import rows
from tests.backends import Backend

B = 40


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, because those that JAX compiles for are in the thousands."""
    monkeypatch.setattr(rows, "_COMPILED_SIZES", (8, 16, 32))


def targets(backend: Backend) -> Any:
    """Rows of very different difficulty: (B, 3)."""
    rng = np.random.default_rng(4)
    return backend.asarray(rng.normal(size=(B, 3)) * np.logspace(-3.0, 1.5, B)[:, None])


def wells(backend: Backend) -> Any:
    """(x, targets) -> values and gradients of a quartic well around each target."""
    xp = backend.xp

    def fun(x: Any, target: Any) -> Any:
        d = x - target
        return xp.sum(d**4 + d * d, axis=-1), 4.0 * d**3 + 2.0 * d

    return fun


METHODS = [lx.LBFGS(memory_size=3), lx.BFGS(), lx.ProjectedGradient(), lx.Adam(0.3)]


@pytest.mark.sampled
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_args_go_with_their_rows(backend: Backend, method: Any) -> None:
    if backend.is_jax and not isinstance(method, lx.BFGS):
        pytest.skip("compiled anew for each size: one is enough")
    fun, target = wells(backend), targets(backend)
    seen: list[int] = []

    def watched(x: Any, target: Any, factor: float, whole: Any) -> Any:
        assert x.shape == target.shape and whole.shape == (3,) and factor == 1.0
        seen.append(x.shape[0])
        return fun(x, target)

    x0 = backend.asarray(np.zeros((B, 3)))
    args = target, 1.0, target[0, ...]
    adam = isinstance(method, lx.Adam)
    how = {"jac": True, "method": method, "gtol": 0.1 if adam else 1e-5, "maxiter": 150}
    res = lx.minimize(watched, x0, args, batched=True, **how)
    nfev, status = (backend.to_numpy(a) for a in (res.nfev, res.status))
    assert seen[0] == B and seen[-1] < B and seen == sorted(seen, reverse=True)
    if not backend.is_jax:    # which fills up its batches
        assert sum(seen) <= 1.1 * nfev.sum()
    x, fun_, jac = (backend.to_numpy(a) for a in (res.x, res.fun, res.jac))
    assert x.shape == jac.shape == (B, 3) and fun_.shape == status.shape == (B,)
    if adam:
        return
    assert np.all(status == Status.GRADIENT)
    np.testing.assert_allclose(x, backend.to_numpy(target), atol=1e-5)
    values, gradients = fun(res.x, target)
    np.testing.assert_allclose(fun_, backend.to_numpy(values), atol=1e-12)
    np.testing.assert_allclose(jac, backend.to_numpy(gradients), atol=1e-9)


def test_rows_equal_their_single_runs_to_the_bit(backend: Backend) -> None:
    p = problems.rosenbrock(
        4, xp=backend.xp, device=backend.device, dtype=backend.dtype("float64"), reproducible=True
    )
    count = 3 if backend.is_jax else 4 if backend.is_strict else 12
    x0 = p.starts(count, scale=1.0, seed=2)
    how: dict[str, Any] = {"jac": True, "reproducible": True, "gtol": 1e-5}
    if backend.is_jax:
        how["maxiter"] = 8
    for method in ("bfgs", "lbfgs"):
        res = lx.minimize(p.value_and_gradient, x0, batched=True, method=method, **how)
        found = {n: backend.to_numpy(getattr(res, n)) for n in ("x", "jac", "nit", "nfev")}
        assert len(set(found["nfev"].tolist())) > 1
        for i in range(count):
            alone = lx.minimize(p.value_and_gradient, x0[i, ...], method=method, **how)
            assert found["x"][i].tobytes() == backend.to_numpy(alone.x).tobytes()
            assert found["jac"][i].tobytes() == backend.to_numpy(alone.jac).tobytes()
            assert (found["nit"][i], found["nfev"][i]) == (alone.nit, alone.nfev)


def test_pass_rows(backend: Backend) -> None:
    xp, fun, target = backend.xp, wells(backend), targets(backend)
    seen: list[np.ndarray] = []

    def by_number(x: Any, rows: Any, whole: Any) -> Any:
        assert whole.shape == (B, 3) and rows.shape == x.shape[:1]
        seen.append(backend.to_numpy(rows))
        return fun(x, xp.take(whole, rows, axis=0))

    def gradient(x: Any, rows: Any, whole: Any) -> Any:
        return by_number(x, rows, whole)[1]

    x0 = backend.asarray(np.zeros((B, 3)))
    how = {"batched": True, "pass_rows": True, "gtol": 1e-6}
    res = lx.minimize(by_number, x0, (target,), jac=True, **how)
    assert bool(backend.to_numpy(res.success).all())
    np.testing.assert_allclose(backend.to_numpy(res.x), backend.to_numpy(target), atol=1e-5)
    assert list(seen[0]) == list(range(B)) and len(seen[-1]) < B
    apart = lx.minimize(
        lambda *told: by_number(*told)[0], x0, (target,), jac=gradient, maxiter=5, **how
    )
    assert backend.to_numpy(apart.nfev).max() == 6


def test_pass_rows_wants_a_batch() -> None:
    with pytest.raises(ValueError, match="pass_rows is True for one problem"):
        lx.minimize(lambda x, rows: x @ x, np.ones(2), jac="3-point", pass_rows=True)


def test_what_rows_or_variables_may_mean_is_warned_of() -> None:
    def fun(x: np.ndarray, a: np.ndarray) -> Any:
        return np.sum((x - a) ** 2, axis=-1), 2.0 * (x - a)

    x0, shared = np.zeros((4, 4)), np.arange(4.0)
    with pytest.warns(UserWarning, match=r"shape \(4,\).*array\[None\]") as caught:
        lx.minimize(fun, x0, (shared,), jac=True, batched=True)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        res = lx.minimize(fun, x0, (shared[None],), jac=True, batched=True)
        lx.minimize(fun, x0, (shared[:, None],), jac=True, batched=True)
        lx.minimize(fun, np.zeros((5, 4)), (shared,), jac=True, batched=True)
        lx.minimize(lambda x, rows, a: fun(x, a), x0, (shared,), jac=True, batched=True,
                    pass_rows=True)
    np.testing.assert_allclose(res.x, np.broadcast_to(shared, x0.shape), atol=1e-7)


@pytest.mark.filterwarnings("ignore:args has an array of numpy")
def test_args_in_containers_and_of_numpy(backend: Backend) -> None:
    fun, target = wells(backend), backend.to_numpy(targets(backend))

    def nested(x: Any, data: dict[str, Any], names: list[str]) -> Any:
        assert names == ["a", "b"] and isinstance(data["target"], np.ndarray)
        return fun(x, backend.asarray(data["target"]))

    x0 = backend.asarray(np.zeros((B, 3)))
    args = {"target": target, "nothing": None}, ["a", "b"]
    res = lx.minimize(nested, x0, args, jac=True, batched=True, gtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(res.x), target, atol=1e-5)


def test_differentiated_and_by_differences(backend: Backend) -> None:
    fun, target = wells(backend), targets(backend)
    x0 = backend.asarray(np.zeros((B, 3)))
    for jac in (None, "3-point") if backend.has_autodiff else ("3-point",):
        res = lx.minimize(
            lambda x, target: fun(x, target)[0], x0, (target,), jac=jac, batched=True, gtol=1e-4
        )
        assert bool(backend.to_numpy(res.success).all())
        np.testing.assert_allclose(backend.to_numpy(res.x), backend.to_numpy(target), atol=1e-4)


def test_aux_is_that_of_each_row_s_best_point(backend: Backend) -> None:
    fun, target = wells(backend), targets(backend)

    def with_aux(x: Any, target: Any) -> Any:
        value, gradient = fun(x, target)
        return (value, {"x": x + 0.0, "shared": target[:1, 0], "name": "well"}), gradient

    x0 = backend.asarray(np.zeros((B, 3)))
    res = lx.minimize(with_aux, x0, (target,), jac=True, has_aux=True, batched=True)
    assert res.aux["name"] == "well" and res.aux["shared"].shape == (1,)
    np.testing.assert_array_equal(backend.to_numpy(res.aux["x"]), backend.to_numpy(res.x))


def test_records_and_results_are_whole(backend: Backend) -> None:
    fun, target = wells(backend), targets(backend)
    x0 = backend.asarray(np.zeros((B, 3)))
    last: list[np.ndarray] = []

    def watch(record: lx.Record) -> None:
        assert record.x.shape == (B, 3)
        for name in ("fun", "gradient_norm", "step", "nit", "nfev"):
            assert getattr(record, name).shape == (B,), name
        last[:] = [backend.to_numpy(a) for a in (record.x, record.nit, record.nfev)]

    res = lx.minimize(fun, x0, (target,), jac=True, batched=True, callback=watch, gtol=1e-6)
    np.testing.assert_allclose(last[0], backend.to_numpy(res.x), atol=1e-6)
    np.testing.assert_array_equal(last[1], backend.to_numpy(res.nit))
    np.testing.assert_array_equal(last[2], backend.to_numpy(res.nfev))
    assert res.hess_inv.shape == (B, 3, 3) and len(res.message) == B


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["interrupt", "error", "budget", "callback"])
def test_an_end_while_rows_are_gone_loses_nothing(backend: Backend, how: str) -> None:
    fun, target = wells(backend), targets(backend)
    x0 = backend.asarray(np.zeros((B, 3)))

    def until(x: Any, target: Any) -> Any:
        if x.shape[0] < B and how in ("interrupt", "error"):
            raise KeyboardInterrupt if how == "interrupt" else ArithmeticError("no luck")
        return fun(x, target)

    settings: dict[str, Any] = {"jac": True, "batched": True, "gtol": 1e-6}
    if how == "budget":
        settings["maxfun"] = 6
    if how == "callback":
        settings["callback"] = lambda record: bool(backend.to_numpy(record.nit).max() >= 5)
    try:
        res = lx.minimize(until, x0, (target,), **settings)
    except ArithmeticError as error:
        res = error.result  # type: ignore[attr-defined]
        assert any("leave the batch" in note for note in error.__notes__)
    status = backend.to_numpy(res.status)
    ended = {
        "interrupt": Status.INTERRUPTED, "error": Status.RUNNING,
        "budget": Status.EVALUATIONS, "callback": Status.CALLBACK,
    }[how]
    assert set(status.tolist()) == {int(Status.GRADIENT), int(ended)}
    values, _ = fun(res.x, target)
    np.testing.assert_allclose(
        backend.to_numpy(res.fun), backend.to_numpy(values), rtol=1e-9, atol=1e-12
    )
    # and all rows can continue from there
    if how != "error":
        more = lx.minimize(
            fun, res.x, (target,), jac=True, batched=True, gtol=1e-6, state=res.state
        )
        assert bool(backend.to_numpy(more.success).all())


@pytest.mark.parametrize("call", range(3, 25, 3))
@pytest.mark.parametrize("batched", [False, True])
def test_an_interrupt_within_a_step_tears_nothing(
    monkeypatch: pytest.MonkeyPatch, call: int, batched: bool
) -> None:
    """The matrices of a batch are overwritten in place; half an update must not be used."""
    p, calls, add_outer = problems.rosenbrock(6), 0, lx.Space.add_outer

    def torn(space: lx.Space, factor: Any, matrix: np.ndarray, u: Any, v: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            matrix[..., :2] *= -7.0
            raise KeyboardInterrupt
        return add_outer(space, factor, matrix, u, v)

    monkeypatch.setattr(lx.Space, "add_outer", torn)
    x0 = np.random.default_rng(1).uniform(-2.0, 2.0, size=(20, 6))
    how: dict[str, Any] = {"jac": True, "batched": batched, "method": "bfgs"}
    res = lx.minimize(p.value_and_gradient, x0 if batched else x0[0], **how)
    assert np.all(np.asarray(res.status) == Status.INTERRUPTED)
    more = lx.minimize(p.value_and_gradient, res.x, state=res.state, **how)
    assert np.all(np.asarray(more.status) == Status.GRADIENT)
    np.testing.assert_allclose(more.x, 1.0, atol=1e-6)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_going_on_equals_not_stopping(method: str) -> None:
    fun, target = wells(Backend.NUMPY), targets(Backend.NUMPY)
    x0 = np.zeros((B, 3))
    how: dict[str, Any] = {"jac": True, "batched": True, "gtol": 1e-9, "method": method}
    whole = lx.minimize(fun, x0, (target,), **how)
    half = lx.minimize(fun, x0, (target,), maxiter=6, **how)
    assert 0 < np.count_nonzero(half.success) < B
    rest = lx.minimize(fun, half.x, (target,), state=half.state, **how)
    assert rest.x.tobytes() == whole.x.tobytes()


def test_bounds_of_rows_go_with_them(backend: Backend) -> None:
    fun, target = wells(backend), targets(backend)
    upper = backend.to_numpy(target) * np.linspace(0.0, 2.0, B)[:, None]
    x0 = backend.asarray(np.zeros((B, 3)) + np.minimum(upper, 0.0))
    res = lx.minimize(
        fun, x0, (target,), jac=True, batched=True, method="projected_gradient",
        bounds=(None, backend.asarray(upper)), gtol=1e-6,
    )
    assert bool(backend.to_numpy(res.success).all())
    wanted = np.minimum(backend.to_numpy(target), upper)
    np.testing.assert_allclose(backend.to_numpy(res.x), wanted, atol=1e-5)


def test_newton_s_hessian_is_that_of_the_rows(backend: Backend) -> None:
    if backend.is_jax:
        pytest.skip("compiled anew for each size")
    xp, fun, target = backend.xp, wells(backend), targets(backend)
    one = backend.asarray(np.eye(3))

    def hessian(x: Any, target: Any) -> Any:
        d = x - target
        return (12.0 * d * d + 2.0)[:, :, None] * one

    x0 = backend.asarray(np.zeros((B, 3)))
    res = lx.minimize(
        fun, x0, (target,), jac=True, hess=hessian, batched=True, method="newton", gtol=1e-8
    )
    assert bool(backend.to_numpy(xp.all(res.status == int(Status.GRADIENT))))
    np.testing.assert_allclose(backend.to_numpy(res.x), backend.to_numpy(target), atol=1e-8)


def test_phases_begin_with_all_rows() -> None:
    fun, target = wells(Backend.NUMPY), targets(Backend.NUMPY)
    seen: list[int] = []

    def watched(x: np.ndarray, target: np.ndarray) -> Any:
        seen.append(len(x))
        return fun(x, target)

    res = lx.minimize(
        watched, np.zeros((B, 3)), (target,), jac=True, batched=True,
        method=[lx.Phase(lx.LBFGS(), lx.Limits(gtol=1e-2)), lx.LBFGS()], gtol=1e-8,
    )
    assert res.success.all() and len(res.phases) == 2
    grown = [a < b for a, b in zip(seen, seen[1:], strict=False)]
    assert sum(grown) == 1    # where the second phase begins
    np.testing.assert_array_equal(res.nit, sum(phase.nit for phase in res.phases))


def test_few_rows_are_evaluated_in_vain() -> None:
    """Also if some are done at the start: 19 of 100 rows, or 1 of 9."""
    fun = wells(Backend.NUMPY)
    for count, done in ((100, 19), (9, 1), (1000, 199)):
        target = np.random.default_rng(0).normal(size=(count, 3))
        x0 = np.zeros((count, 3))
        x0[:done] = target[:done]
        seen = []

        def watched(x: np.ndarray, target: np.ndarray, seen: list[int] = seen) -> Any:
            seen.append(len(x))
            return fun(x, target)

        res = lx.minimize(watched, x0, (target,), jac=True, batched=True)
        assert res.success.all() and sum(seen) <= 1.1 * res.nfev.sum()


def test_a_batch_is_no_slower_in_evaluations_than_its_rows() -> None:
    """The function sees at most 1.1 times as many rows as in single runs."""
    p = problems.rosenbrock(6)
    x0 = np.random.default_rng(0).uniform(-2.0, 2.0, size=(100, 6))
    count = 0

    def fun(x: np.ndarray) -> Any:
        nonlocal count
        count += len(x)
        return p.value_and_gradient(x)

    for method in ("bfgs", "lbfgs"):
        count = 0
        res = lx.minimize(fun, x0, jac=True, batched=True, method=method, gtol=1e-6)
        assert res.success.all()
        alone = [
            lx.minimize(p.value_and_gradient, x, jac=True, method=method, gtol=1e-6).nfev
            for x in x0
        ]
        assert count <= 1.1 * sum(alone)
