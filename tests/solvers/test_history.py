"""Pairs of L-BFGS in a lower precision than x, and how many vectors methods hold."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems
from tests.backends import Backend
from tests.distributed.threads import together

ROSENBROCK = problems.rosenbrock(40)
HOW: dict[str, dict[str, Any]] = {
    "free": {}, "bounds": {"bounds": (-0.5, 0.8)}, "penalty": {"l1": 0.1},
    "fixed order": {"reproducible": True}, "restart": {"gtol": 0.0},
}


def rosenbrock(backend: Backend) -> Any:
    xp = backend.xp

    def fun(x: Any) -> Any:
        t, u = x[1::2] - x[::2] ** 2, 1.0 - x[::2]
        gradient = xp.stack([-400.0 * x[::2] * t - 2.0 * u, 200.0 * t], axis=-1)
        return xp.sum(100.0 * t * t + u * u), xp.reshape(gradient, (-1,))

    return fun


@pytest.mark.parametrize("how", HOW)
def test_float32_pairs_cost_no_evaluations(how: str) -> None:
    runs = [
        lx.minimize(
            ROSENBROCK.value_and_gradient, ROSENBROCK.x0, jac=True,
            method=lx.LBFGS(history_dtype=dtype), **HOW[how],
        )
        for dtype in (None, "float32")
    ]
    plain, lower = runs
    assert lower.status == plain.status
    assert lower.nfev <= 1.1 * plain.nfev + 1
    assert lower.state.solver_state.pairs.rows.dtype == np.float32
    np.testing.assert_allclose(lower.x, plain.x, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_library(backend: Backend, dtype: str) -> None:
    method = lx.LBFGS(history_dtype=dtype)

    def solve() -> Any:
        start = backend.asarray(ROSENBROCK.x0)
        return lx.minimize(rosenbrock(backend), start, jac=True, method=method)

    if not hasattr(backend.xp, dtype):
        with pytest.raises(ValueError, match="history_dtype is 'bfloat16', which .* lacks; wanted"):
            solve()
        return
    res = solve()
    rows = res.state.solver_state.pairs.rows
    assert str(rows.dtype).endswith(dtype)
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), 1.0, atol=1e-6)
    product = backend.to_numpy(res.hess_inv @ res.x)
    dense = backend.to_numpy(res.hess_inv.todense())
    np.testing.assert_allclose(product, dense @ backend.to_numpy(res.x), rtol=1e-6)
    assert (np.linalg.eigvalsh(dense) > 0.0).all()


def test_divided_among_processes() -> None:
    centres = np.linspace(-1.0, 1.0, 30)

    def work(engine: Any) -> Any:
        here = slice(0, 11) if engine.rank == 0 else slice(11, 30)
        c = centres[here]

        def fun(x: Any) -> Any:
            return ((x - c) ** 2 + (x - c) ** 4).sum(), 2.0 * (x - c) + 4.0 * (x - c) ** 3

        method = lx.LBFGS(history_dtype="float32")
        return lx.minimize(fun, 0.0 * c + 3.0, jac=True, distributed=engine, method=method)

    found = together(2, work)
    np.testing.assert_allclose(np.concatenate([r.x for r in found]), centres, atol=1e-5)


def test_what_is_refused(tmp_path: Path) -> None:
    lower = lx.LBFGS(history_dtype="float32")
    with pytest.raises(ValueError, match="history_dtype is 'float16'; wanted None, 'float32'"):
        lx.LBFGS(history_dtype="float16")    # type: ignore[arg-type]
    fun, start = ROSENBROCK.value_and_gradient, ROSENBROCK.x0
    with pytest.raises(ValueError, match=r"history_dtype is 'float32' with batched=True"):
        lx.minimize(fun, start[None], jac=True, batched=True, method=lower)
    res = lx.minimize(fun, start, jac=True, maxiter=5)
    with pytest.raises(ValueError, match="state holds pairs in float64; wanted float32"):
        lx.minimize(fun, res.x, jac=True, state=res.state, method=lower)


def test_checkpoints_hold_float32_pairs(tmp_path: Path) -> None:
    def solve(maxiter: int, checkpoint: Any = None) -> lx.Result:
        return lx.minimize(
            ROSENBROCK.value_and_gradient, ROSENBROCK.x0, jac=True, maxiter=maxiter,
            method=lx.LBFGS(history_dtype="float32"), checkpoint=checkpoint,
        )

    checkpoint = lx.Checkpoint(tmp_path / "run.npz")
    solve(10, checkpoint)
    found, wanted = solve(1000, checkpoint), solve(1000)
    assert found.x.tobytes() == wanted.x.tobytes()
    assert found.nfev == wanted.nfev


# --- memory --------------------------------------------------------------------------------------

N = 150_000
SCALES = np.linspace(1.0, 100.0, N)


@pytest.mark.parametrize(
    ("method", "vectors"),
    [
        (lx.LBFGS(memory_size=5), 2 * 5 + 8),
        (lx.LBFGS(memory_size=20), 2 * 20 + 8),
        (lx.LBFGS(memory_size=20, history_dtype="float32"), 20 + 8),
    ],
    ids=["5 pairs", "20 pairs", "20 pairs in float32"],
)
def test_vectors_held(
    method: lx.LBFGS, vectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of fun is among them."""
    monkeypatch.setattr("lbfgs_xp.arrays.backend.Backend.keep_freed_memory", lambda self: None)

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        gradient = SCALES * x
        return 0.5 * float(x @ gradient), gradient

    start = np.ones(N)
    gc.collect()
    tracemalloc.start()
    try:
        res = lx.minimize(fun, start, jac=True, method=method, maxiter=30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert res.nit > 25
    assert vectors - 1 < peak / start.nbytes < vectors + 0.5
