"""noise=: errors of fun whose sizes the user knows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.line_search import MoreThuente
from lbfgs_xp.solvers.lbfgs import curvature
from tests.backends import Backend

SIZE = 1e-3
GIVEN = (SIZE, SIZE)
METHODS = ["lbfgs", "bfgs", "ssbroyden"]


def random(p: problems.Problem, seed: int, gradient: float = SIZE) -> Callable:
    """The problem with uniform noise of the value and normal noise of the gradient."""
    rng = np.random.default_rng(seed)

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = p.value_and_gradient(x)
        noise = gradient * rng.normal(size=slope.shape)
        return float(value) + SIZE * rng.uniform(-1.0, 1.0), slope + noise

    return fun


def repeatable(p: problems.Problem, backend: Backend) -> Callable:
    """The problem with noise that is the same whenever x is, for batches and compilers, too."""
    xp = backend.xp

    def fun(x: Any) -> tuple[Any, Any]:
        value, slope = p.value_and_gradient(x)
        return value + SIZE * xp.sin(1e7 * x[..., 0]), slope + SIZE * xp.sin(3e7 * x)

    return fun


def lowest(p: problems.Problem) -> float:
    found = float(lx.minimize(p.value_and_gradient, p.x0, jac=True, maxfun=5000).fun)
    return found if p.x_min is None else min(found, float(p.value_and_gradient(p.x_min)[0]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in problems.ALL if name != "exponential_decay"])
def test_reference_problems_are_solved_to_the_level_of_the_noise(name: str, method: str) -> None:
    p = problems.ALL[name]()
    least = lowest(p)
    for seed in range(3):
        res = lx.minimize(
            random(p, seed), p.x0, jac=True, method=method, noise=GIVEN, maxfun=2000
        )
        assert res.success and res.status is Status.PRECISION
        assert float(p.value_and_gradient(res.x)[0]) - least <= 5.0 * SIZE


def test_the_first_search_knows_the_noise() -> None:
    """Without it, a value that is higher by chance rejects a good step."""
    p = problems.quadratic()
    seen = []
    lx.minimize(
        random(p, 0), p.x0, jac=True, noise=GIVEN, maxiter=3,
        callback=lambda record: seen.append(record.state.solver_state.search.noise),
    )
    assert seen and set(seen) == {2.0 * SIZE}


@pytest.mark.parametrize("given", [False, True])
def test_pairs_are_kept_only_where_noise_does_not_explain_them(given: bool) -> None:
    """The noise control condition; without it, there are such pairs."""
    p, error, short = problems.quadratic(), 0.03, 0
    for seed in range(5):
        fun = random(p, seed, gradient=error)
        res = lx.minimize(
            fun, p.x0, jac=True, noise=(SIZE, error) if given else None, maxiter=25, gtol=0.0
        )
        state = res.state.solver_state
        s, y = curvature.by_age(res.state.space, state.pairs)
        kept = np.any(s != 0.0, axis=-1)
        bend = np.sum(s * y, axis=-1)[kept]
        assert kept.any()
        short += int(np.sum(bend < 3.0 * error * np.linalg.norm(s[kept], axis=-1)))
    assert (short == 0) is given


def test_a_step_that_is_too_short_is_lengthened_by_those_that_follow() -> None:
    """The next pair begins where the last one that was kept ended."""
    solver = lx.LBFGS().with_gradient_error(0.1)
    space = lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True).state.space
    x, points, pairs = np.asarray([1.0, 1.0]), [], []
    state = solver.init(space, x, 1.0, np.asarray([1.0, 1.0]))
    points.append(state.x)
    for _ in range(8):
        # A function with curvature 1e-2: |s . y| / |s| is 1e-2 |s|.
        at = state.trial
        gradient = 1.0 + 1e-2 * (at - x)
        value = 1.0 + float((at - x) @ (1.0 + 0.5e-2 * (at - x)))
        state = solver.step(space, state, value, gradient)
        if state.accepted:
            points.append(state.x)
            s, _ = curvature.by_age(space, state.pairs)
            pairs.append(s[np.any(s != 0.0, axis=-1)].copy())
    assert len(pairs[0]) == 0 and len(pairs[-1]) > 0    # the first step shows nothing
    (first,) = next(found for found in pairs if len(found))
    assert first == pytest.approx(points[next(i for i, f in enumerate(pairs) if len(f)) + 1] - x)
    assert 1e-2 * np.linalg.norm(first) >= 0.3


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_batch_are_single_runs(method: str) -> None:
    p = problems.rosenbrock(2, reproducible=True)
    fun, x0 = repeatable(p, Backend.NUMPY), p.starts(4, scale=0.5)
    settings: dict[str, Any] = {
        "jac": True, "method": method, "noise": GIVEN, "reproducible": True,
    }
    batch = lx.minimize(fun, x0, batched=True, **settings)
    for i in range(len(x0)):
        alone = lx.minimize(fun, x0[i], **settings)
        assert batch.x[i].tobytes() == alone.x.tobytes() and batch.nfev[i] == alone.nfev
    assert np.all(batch.success)


@pytest.mark.parametrize("batched", [False, True])
def test_every_library(backend: Backend, batched: bool) -> None:
    p = problems.rosenbrock(2, xp=backend.xp, device=backend.device)
    x0 = p.starts(2, scale=0.5) if batched else p.x0
    for method in ("lbfgs", "bfgs"):
        res = lx.minimize(
            repeatable(p, backend), x0, jac=True, batched=batched, method=method, noise=GIVEN
        )
        assert np.all(backend.to_numpy(res.success) if batched else res.success)
        value = backend.to_numpy(p.value_and_gradient(res.x)[0])
        assert np.all(value <= 5.0 * SIZE)


def test_inside_a_program_of_jax() -> None:
    jax = pytest.importorskip("jax")
    p = problems.rosenbrock(2, xp=jax.numpy)
    fun = repeatable(p, Backend.JAX)
    res = jax.jit(lambda x: lx.minimize(fun, x, jac=True, noise=GIVEN))(p.x0)
    assert bool(res.success) and float(p.value_and_gradient(res.x)[0]) <= 5.0 * SIZE


@pytest.mark.parametrize("bounds", [([-2.0, -2.0], [0.5, 2.0]), None])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_bounds_and_penalties(bounds: Any, method: str) -> None:
    p = problems.rosenbrock(2)
    more = {"bounds": bounds} if bounds else {"l1": 0.1}
    if bounds is None and method == "bfgs":
        pytest.skip("BFGS takes no penalty")
    exact = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=method, **more)
    for seed in range(3):
        res = lx.minimize(random(p, seed), p.x0, jac=True, method=method, noise=GIVEN, **more)
        assert res.success and np.allclose(res.x, exact.x, atol=0.03)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_differences_suit_the_noise_from_the_start(jac: Any) -> None:
    p = problems.rosenbrock(2)
    for seed in range(3):
        fun = random(p, seed)
        res = lx.minimize(lambda x, fun=fun: fun(x)[0], p.x0, jac=jac, noise=SIZE)
        assert res.success and float(p.value_and_gradient(res.x)[0]) <= 5.0 * SIZE


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("told", [1e-11, 1e-5])
def test_by_differences_less_noise_than_there_is_does_no_harm(told: float, method: str) -> None:
    """What was given would make them take steps over which noise is all they see."""
    p = problems.rosenbrock(2)
    for seed in range(3):
        fun = random(p, seed)
        res = lx.minimize(
            lambda x, fun=fun: fun(x)[0], p.x0, jac="2-point", method=method, noise=told
        )
        assert res.success and float(p.value_and_gradient(res.x)[0]) <= 5.0 * SIZE


def test_less_noise_than_there_is_makes_no_success() -> None:
    p = problems.rosenbrock(2)
    for seed in range(3):
        res = lx.minimize(random(p, seed), p.x0, jac=True, noise=(1e-8, 1e-8), maxfun=2000)
        assert not res.success or float(p.value_and_gradient(res.x)[0]) <= 5.0 * SIZE


def test_clipped_gradients_move_the_anchor_as_well() -> None:
    p = problems.rosenbrock(2)
    for method in (lx.LBFGS(clip_norm=50.0), lx.BFGS(clip_norm=50.0)):
        res = lx.minimize(random(p, 0), p.x0, jac=True, method=method, noise=GIVEN)
        assert res.success and float(p.value_and_gradient(res.x)[0]) <= 5.0 * SIZE


def test_a_run_that_resumes_keeps_the_noise() -> None:
    p = problems.rosenbrock(2)
    fun = repeatable(p, Backend.NUMPY)
    whole = lx.minimize(fun, p.x0, jac=True, noise=GIVEN, maxiter=20)
    half = lx.minimize(fun, p.x0, jac=True, noise=GIVEN, maxiter=10)
    rest = lx.minimize(
        fun, half.state.solver_state.x, jac=True, noise=GIVEN, maxiter=10, state=half.state
    )
    assert rest.x.tobytes() == whole.x.tobytes()


def test_a_checkpoint_knows_the_noise(tmp_path: Path) -> None:
    p = problems.rosenbrock(2)
    fun, saved = repeatable(p, Backend.NUMPY), lx.Checkpoint(tmp_path / "run.npz")
    first = lx.minimize(fun, p.x0, jac=True, noise=GIVEN, checkpoint=saved)
    again = lx.minimize(fun, p.x0, jac=True, noise=GIVEN, checkpoint=saved)
    assert again.x.tobytes() == first.x.tobytes()
    with pytest.raises(ValueError, match="noise"):
        lx.minimize(fun, p.x0, jac=True, noise=SIZE, checkpoint=saved)


@pytest.mark.parametrize(
    ("noise", "error"),
    [
        (0.0, "noise is 0.0; wanted a finite number above 0"),
        (-1.0, "noise is -1.0; wanted a finite number above 0"),
        ((1e-3,), "noise holds 1 numbers; wanted one, of the value, or two"),
        ((1e-3, -1.0), "noise[1] is -1.0; wanted a finite number of at least 0"),
    ],
)
def test_wrong_noise(noise: Any, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True, noise=noise)


def test_noise_needs_a_method_that_compares_values() -> None:
    with pytest.raises(ValueError, match="Adam does not compare values"):
        lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True, noise=SIZE, method="adam")
    phases = [lx.Adam(1e-2).until(maxiter=5), lx.LBFGS(line_search=MoreThuente())]
    res = lx.minimize(
        lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True, noise=SIZE, method=phases
    )
    assert res.success
