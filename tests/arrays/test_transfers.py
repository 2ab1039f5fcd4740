"""What crosses the bus in one evaluation, and how many operations it takes: see docs/gpu.md.

Each bound is what was counted, slightly rounded up; operations have a quarter to spare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.problems import rosenbrock
from tests.backends import Backend, or_skip, parameters
from tests.transfers import COUNTED, Crossed, counting


@pytest.fixture(params=parameters(COUNTED))
def backend(request: pytest.FixtureRequest) -> Backend:
    """The libraries whose transfers can be counted; torch on the CPU counts as remote."""
    return or_skip(request.param)


def check(
    crossed: Crossed, steps: int, reads: float, uploads: float = 0.0,
    operations: float = float("inf"),
) -> None:
    """Hold the counts of `steps` evaluations or updates to what each of them may cost."""
    if crossed.uploads is None:  # uploads count as reads, or not at all
        reads += uploads
    else:
        assert crossed.uploads <= uploads * steps
    assert crossed.reads <= reads * steps
    if crossed.launches is not None:
        assert crossed.launches <= operations * steps


def test_the_counts_see_what_is_read_and_sent(backend: Backend) -> None:
    xp, x = backend.xp, backend.asarray([1.0, 2.0])
    with counting(backend) as crossed:
        total = xp.sum(x * x)
        float(total)
        bool(xp.any(x > 1.5))
        lx.Space(x).backend.to_host(x + x)
        lx.Space(x).backend.from_host(np.ones(2))
    if backend is Backend.CUPY and backend.is_gpu:
        assert crossed.reads == 1
    elif backend is Backend.TORCH_CUDA:
        assert crossed.reads in (3, 4)
    else:
        assert crossed.reads == 3
    assert crossed.uploads in (None, 1)
    assert crossed.launches is None or crossed.launches >= 5


@pytest.mark.parametrize(
    ("method", "reads", "operations"),
    [
        ("lbfgs", 1.05, 65), ("bfgs", 1.1, 58), ("gradient_descent", 1.1, 40),
        ("projected_gradient", 1.1, 48),
    ],
)
def test_one_problem(backend: Backend, method: str, reads: float, operations: float) -> None:
    p = rosenbrock(100, xp=backend.xp, device=backend.device, dtype="float64")
    with counting(backend) as crossed:
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, method=method, maxiter=100, gtol=1e-9
        )
    assert res.nfev >= 40
    check(crossed, res.nfev, reads, operations=operations)


def test_the_test_of_the_step_reads_nothing_more(backend: Backend) -> None:
    p = rosenbrock(100, xp=backend.xp, device=backend.device, dtype="float64")
    with counting(backend) as crossed:
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, gtol=1e-9, xtol=1e-12, maxiter=100
        )
    assert res.nfev >= 40
    check(crossed, res.nfev, 1.05, operations=71)


def test_newton_reads_twice(backend: Backend) -> None:
    """The value, and the eigenvalues of the Hessian."""
    xp, n = backend.xp, 10
    p = rosenbrock(n, xp=xp, device=backend.device, dtype="float64")
    eye = backend.asarray(np.eye(n // 2))[:, None, :, None]

    def hessian(x: Any) -> Any:
        a, b = x[0::2], x[1::2]
        first = xp.stack([1200.0 * a * a - 400.0 * b + 2.0, -400.0 * a], axis=-1)
        second = xp.stack([-400.0 * a, xp.full_like(a, 200.0)], axis=-1)
        blocks = xp.stack([first, second], axis=1)  # (n / 2, 2, 2)
        return xp.reshape(eye * blocks[:, :, None, :], (n, n))

    with counting(backend) as crossed:
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, hess=hessian, method="newton", maxiter=100,
            gtol=1e-9,    # no looks at the end
        )
    assert res.success and res.nfev >= 20
    # On a GPU torch.linalg.eigh itself waits, to see whether it has converged.
    check(crossed, res.nfev, 3.0 if backend is Backend.TORCH_CUDA else 2.0, operations=75)


@pytest.mark.parametrize(
    ("method", "operations"), [("lbfgs", 170), ("bfgs", 165), (lx.Adam(0.01), 65)],
    ids=["lbfgs", "bfgs", "adam"],
)
def test_a_batch(backend: Backend, method: Any, operations: float) -> None:
    p = rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    starts, calls = p.starts(500), 0

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return p.value_and_gradient(x)

    with counting(backend) as crossed:
        lx.minimize(fun, starts, jac=True, batched=True, method=method, gtol=1e-5, maxiter=100)
    assert calls >= 80
    # One more read where the run ends.
    check(crossed, calls + 1, 1.05, operations=operations)


@pytest.mark.parametrize(
    ("batched", "reads", "uploads", "operations"), [(True, 1, 0, 250), (False, 2, 1, 50)]
)
def test_an_iteration_of_a_fit(
    backend: Backend, batched: bool, reads: int, uploads: int, operations: float
) -> None:
    xp, jac = backend.xp, None if backend.has_autodiff else "2-point"
    if jac:
        operations += 175  # the differences measure their steps
    t = backend.asarray(np.linspace(0.0, 4.0, 50))
    noise = np.cos(40.0 * np.linspace(0.0, 4.0, 50) + np.arange(1000.0)[:, None])
    curves = 3.0 * xp.exp(-0.5 * t) + 0.01 * backend.asarray(noise)
    y = curves if batched else curves[0, ...]
    counts = []
    for iterations in (2, 6):
        with counting(backend) as crossed:
            fit = lx.curve_fit(
                lambda t, a, k: a * xp.exp(-k * t), t, y, [1.0, 1.0], batched=batched, jac=jac,
                maxiter=iterations,
            )
        assert np.all((backend.to_numpy(fit.nit) if batched else fit.nit) == iterations)
        counts.append(crossed)
    short, long = counts
    # The start, whether it is far off, the report, and whether differences are to be doubted.
    check(short, 1, 2 * reads + 9 + bool(jac), 2 * uploads + 7, 1300)
    if long.uploads is None:
        assert long.reads - short.reads <= 4 * (reads + uploads)
    else:
        assert long.reads - short.reads <= 4 * reads
        assert long.uploads - (short.uploads or 0) <= 4 * uploads
    if long.launches is not None:
        assert long.launches - (short.launches or 0) <= 4 * operations


@pytest.mark.parametrize(
    ("updates", "batch_size", "reads", "uploads", "operations"),
    [(5, 32, 1.35, 0.1, 91), (1, 32, 2.55, 0.5, 163), (1, None, 3.05, 0.0, 168)],
    ids=["5-updates-per-batch", "minibatches", "full-batch"],
)
def test_training_with_lbfgs(
    backend: Backend, updates: int, batch_size: int | None, reads: float, uploads: float,
    operations: float,
) -> None:
    """Two reads for an update, and one for each epoch, which here has one or two batches.

    A pair (s, y) needs both of its gradients on the same data, so an update on new data evaluates
    the loss at its start and at its trial. Each evaluation is read, because the next step depends
    on it: at the start whether the loss is finite, at the trial whether it is accepted.
    """
    crossed, res = _trained(
        backend, method="lbfgs", batch_size=batch_size, updates_per_batch=updates
    )
    assert res.updates >= 20
    check(crossed, res.updates, reads, uploads, operations)


def test_training_with_adam_reads_once_an_epoch(backend: Backend) -> None:
    crossed, res = _trained(backend, method="adam", batch_size=32, updates_per_batch=5)
    assert res.updates == 200
    check(crossed, res.epochs, 1.0, 1.0, 10 * 29)


def _trained(backend: Backend, **how: Any) -> tuple[Crossed, lx.TrainResult]:
    xp, rng = backend.xp, np.random.default_rng(0)
    inputs = rng.standard_normal((64, 3))
    data = backend.asarray(inputs), backend.asarray(inputs @ [[1.0], [2.0], [3.0]])
    params = {"w": backend.asarray(np.zeros((3, 1))), "b": backend.asarray(np.zeros(1))}

    def loss(p: Any, batch: Any) -> Any:
        a, wanted = batch
        t = xp.tanh(a @ p["w"])
        residual = 4.0 * t + p["b"] - wanted
        slope = residual * (2.0 / a.shape[0])
        gradient = xp.matrix_transpose(a) @ (slope * (4.0 * (1.0 - t * t)))
        return xp.mean(residual * residual), {"w": gradient, "b": xp.sum(slope, axis=0)}

    with counting(backend) as crossed:
        res = lx.train(loss, params, data, epochs=20, jac=True, **how)
    return crossed, res


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_an_update_that_may_be_skipped(backend: Backend, clip_norm: float | None) -> None:
    """The leaves differ in dtype; whether they are all finite is one number."""
    opt = lx.Adam(0.01, on_nonfinite="skip", clip_norm=clip_norm)
    shapes = {"a": (3, "float32"), "b": (3, "float64"), "c": (2, "float32")}
    params = {name: backend.asarray(np.zeros(n), dtype) for name, (n, dtype) in shapes.items()}
    state = opt.init(params)
    new, state = opt.update(params, params, state)
    with counting(backend) as crossed:
        for _ in range(10):
            new, state = opt.update(new, params, state)
    check(crossed, 10, 1.0, operations=45)


def test_an_update_reads_nothing(backend: Backend) -> None:
    opt = lx.Adam(0.01, clip_norm=1.0)
    params = {"a": backend.asarray(np.zeros(3)), "b": backend.asarray(np.zeros(2))}
    state = opt.init(params)
    with counting(backend) as crossed:
        for _ in range(10):
            params, state = opt.update(params, params, state)
    check(crossed, 10, 0.0, operations=22)
