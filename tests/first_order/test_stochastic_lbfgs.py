"""`lx.StochasticLBFGS`: formulas, batches, bounds of its inverse Hessian, and its seams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.solvers.lbfgs import curvature
from tests.backends import Backend

RNG = np.random.default_rng(5)
N = 6
MATRIX = np.diag(np.geomspace(1.0, 30.0, N)) + 0.1 * np.ones((N, N))
SHIFTS = RNG.normal(size=(24, N))
X0 = RNG.normal(size=N)


def quadratic(x: np.ndarray, shift: np.ndarray) -> tuple[float, np.ndarray]:
    """A batch: 1/2 x'Ax + 0.1 sum cos(3 x) + shift . x."""
    value = 0.5 * x @ MATRIX @ x + 0.1 * np.sum(np.cos(3.0 * x)) + shift @ x
    return float(value), MATRIX @ x - 0.3 * np.sin(3.0 * x) + shift


def reference(fun: Callable, x: np.ndarray, opt: lx.StochasticLBFGS, steps: int) -> np.ndarray:
    """The formulas of the docstring with a dense inverse Hessian."""
    lower, upper = opt.curvature_bounds
    mean, anchor, pairs, length = np.zeros_like(x), x, [], 0.0
    gamma, middle, unit = 0.0, 0.0, 0.0    # middle: C
    for t in range(1, steps + 1):
        def batch(x: np.ndarray, k: int = t - 1) -> np.ndarray:
            g = fun(x, k)
            g = -g if opt.maximize else g
            return g + opt.weight_decay * x * (not opt.decoupled_weight_decay)

        g = batch(x)
        unit = unit or np.max(np.abs(g))
        if t == 2 or (t > 1 and (t - 1) % opt.pair_every == 0):
            s, y = x - anchor, g - batch(anchor)
            sigma = max(y @ y / (s @ y), middle) if s @ y > 0.0 else middle
            sigma = min(sigma, upper * middle) if pairs else sigma
            sigma = sigma or np.linalg.norm(y) / np.linalg.norm(s)
            if opt.damping and s @ y < opt.damping * sigma * (s @ s):
                share = (1.0 - opt.damping) * sigma * (s @ s) / (sigma * (s @ s) - s @ y)
                y = share * y + (1.0 - share) * sigma * s
            least, most = (lower * middle, upper * middle) if pairs else (lower * unit, math.inf)
            if s @ y > 0.0 and s @ y >= least * (s @ s) and y @ y <= most * (s @ y):
                pairs = [*pairs, (s, y)][-opt.memory_size :]
                k = len(pairs)
                gamma = gamma ** (1 - 1 / k) * (s @ s / (s @ y)) ** (1 / k)
                middle = middle ** (1 - 1 / k) * (y @ y / (s @ y)) ** (1 / k)
            anchor = x
        if opt.clip_norm is not None:
            g = g * min(1.0, opt.clip_norm / np.linalg.norm(g))
        inverse = np.eye(len(x)) * gamma
        for s, y in pairs:
            rho = 1.0 / (s @ y)
            left = np.eye(len(x)) - rho * np.outer(s, y)
            inverse = left @ inverse @ left.T + rho * np.outer(s, s)
        if pairs:
            length = length or g @ inverse @ g
            g = g * min(1.0, 2.0 * np.sqrt(length / (g @ inverse @ g)))
            length = 0.9 * length + 0.1 * (g @ inverse @ g)
        mean = opt.momentum * mean + (1.0 - opt.momentum) * g
        b = mean / (1.0 - opt.momentum**t)
        if not pairs:
            inverse = np.eye(len(x)) / np.linalg.norm(b)
        rate = min(opt.learning_rate(t - 1), 1.0 - opt.momentum if pairs else 1.0)
        if opt.decoupled_weight_decay:
            x = x - rate * opt.weight_decay * x
        x = x - rate * inverse @ b
    return x


def driven(backend: Backend, opt: Any, steps: int, **how: Any) -> tuple[Any, Any]:
    """The parameters after steps on batches, in two leaves."""
    xp, matrix = backend.xp, backend.asarray(MATRIX)
    p = {"a": backend.asarray(X0[:2]), "b": backend.asarray(X0[2:].reshape(2, 2))}
    state = opt.init(p)
    for k in range(steps):
        shift = backend.asarray(SHIFTS[k])

        def fun(p: Any, shift: Any = shift) -> tuple[Any, Any]:
            x = xp.concat([p["a"], xp.reshape(p["b"], (-1,))])
            g = matrix @ x - 0.3 * xp.sin(3.0 * x) + shift
            value = 0.5 * (x @ (matrix @ x)) + 0.1 * xp.sum(xp.cos(3.0 * x)) + shift @ x
            return value, {"a": g[:2], "b": xp.reshape(g[2:], (2, 2))}

        value, grads = fun(p)
        p, state = opt.update(p, grads, state, value=value, fun=fun, **how)
    return np.concatenate([backend.to_numpy(p[k]).ravel() for k in ("a", "b")]), state


SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.0, "pair_every": 1, "memory_size": 3},
    {"pair_every": 4, "damping": 0.5, "weight_decay": 0.1, "clip_norm": 2.0},
    {"pair_every": 3, "damping": 0.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
    {"learning_rate": lx.schedules.Linear(0.5, 0.1, 20), "curvature_bounds": (2.0, 20.0)},
    {"learning_rate": 30.0, "momentum": 0.8},
    {"learning_rate": 30.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_those_of_the_formulas(settings: dict[str, Any]) -> None:
    opt = lx.StochasticLBFGS(**({"learning_rate": 0.3, "pair_every": 2} | settings))
    wanted = reference(lambda x, k: quadratic(x, SHIFTS[k])[1], X0, opt, 20)
    found, _ = driven(Backend("numpy"), opt, 20)
    assert np.allclose(found, wanted, rtol=1e-10, atol=1e-12)


def test_steps_are_the_same_on_every_library(backend: Backend) -> None:
    opt = lx.StochasticLBFGS(0.3, memory_size=3, pair_every=2, clip_norm=3.0)
    wanted, _ = driven(Backend("numpy"), opt, 10, reproducible=True)
    found, _ = driven(backend, opt, 10, reproducible=True)
    assert np.allclose(found, wanted, rtol=1e-12)    # cos and sin are the library's own


def test_pairs_hold_the_effect_of_the_step_alone() -> None:
    """Batches whose gradients differ by far more than the step changes them."""
    opt = lx.StochasticLBFGS(0.1, memory_size=5, pair_every=2, damping=0.0)
    x, state = X0, opt.init(X0)
    for k in range(12):
        def fun(x: np.ndarray, k: int = k) -> tuple[float, np.ndarray]:
            return 0.0, MATRIX @ x + 1e4 * SHIFTS[k]

        x, state = opt.update(x, fun(x)[1], state, fun=fun)
    s, y = curvature.by_age(lx.Space(X0[None], batched=True), state.memory.pairs)
    assert state.memory.pairs.count == 5
    assert np.allclose(y[0] / state.memory.unit, s[0] @ MATRIX, rtol=1e-6)


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_the_inverse_hessian_is_within_its_bounds(damping: float) -> None:
    """Gradients without any curvature, positive definite or not."""
    lower, upper = 0.5, 20.0
    opt = lx.StochasticLBFGS(
        0.5, memory_size=4, pair_every=1, damping=damping, curvature_bounds=(lower, upper)
    )
    rng = np.random.default_rng(1)
    x, state, space = X0, opt.init(X0), lx.Space(X0[None], batched=True)
    allowed: list[tuple[float, float]] = []
    kept = 0
    for _ in range(60):
        matrix = rng.normal(size=(N, N)) * 10.0 ** rng.uniform(-1.0, 2.0) + 2.0 * np.eye(N)

        def fun(x: np.ndarray, matrix: np.ndarray = matrix) -> tuple[float, np.ndarray]:
            return 0.0, matrix @ x

        middle, slot = state.memory.curvature.item(), state.memory.pairs.slot.item()
        x, state = opt.update(x, fun(x)[1], state, fun=fun)
        x = x / np.linalg.norm(x)
        pairs = state.memory.pairs
        m = int(pairs.count[0])
        if m == 0:
            continue
        s, y = (rows[0][-m:] for rows in curvature.by_age(space, pairs))
        ss, sy, yy = np.sum(s * s, 1), np.sum(s * y, 1), np.sum(y * y, 1)
        if pairs.slot.item() != slot:
            # The first pair has no upper bound.
            new = (lower * middle, upper * middle) if middle else (lower, yy[-1] / sy[-1])
            allowed = [*allowed, new][-m:]
        lows, highs = np.asarray(allowed).T
        assert (sy >= (1 - 1e-9) * lows * ss).all() and (yy <= (1 + 1e-9) * highs * sy).all()
        kept += 1
        columns = [curvature.apply(space, pairs, e[None])[0] for e in np.eye(N)]
        sizes = np.linalg.eigvalsh(np.stack(columns))
        r = max(highs) / min(lows)
        assert sizes[0] >= (1.0 - 1e-9) / ((m + 1) * max(highs))
        assert sizes[-1] <= r ** (m + 1) / ((r - 1.0) * min(lows))
    assert kept > 20


def test_the_armijo_test_lets_no_batch_get_worse() -> None:
    """Away from its minimum, log cosh shows less and less curvature, and the step is too long."""
    def run(opt: lx.StochasticLBFGS) -> list[float]:
        x, state, rises = 2.0 + X0, opt.init(X0), []
        for k in range(20):
            def fun(x: np.ndarray, k: int = k) -> tuple[float, np.ndarray]:
                z = x + 0.1 * SHIFTS[k]
                return float(np.sum(np.logaddexp(z, -z))), np.tanh(z)

            before, g = fun(x)
            x, state = opt.update(x, g, state, value=before if k % 2 else None, fun=fun)
            rises.append(fun(x)[0] - before)
        return rises

    settings: dict[str, Any] = {"learning_rate": 1.0, "momentum": 0.0, "pair_every": 2}
    assert max(run(lx.StochasticLBFGS(**settings))) > 1.0
    assert max(run(lx.StochasticLBFGS(**settings, armijo=1e-4))) <= 0.0


def test_a_rate_beyond_what_noise_allows_changes_nothing() -> None:
    """Gradients of nothing but noise lead x no farther with a rate of 10 than with one of 0.5;
    the smallest one is taken as it is."""
    def distance(rate: float) -> float:
        opt = lx.StochasticLBFGS(rate)
        rng, x = np.random.default_rng(0), np.zeros(200)
        state = opt.init(x)
        for _ in range(300):
            noise = rng.normal(size=200)

            def fun(x: np.ndarray, noise: np.ndarray = noise) -> tuple[float, np.ndarray]:
                return float(0.5 * x @ x + noise @ x), x + noise

            x, state = opt.update(x, fun(x)[1], state, fun=fun)
        return float(np.linalg.norm(x))

    small, half, large = (distance(rate) for rate in (0.01, 0.5, 10.0))
    assert half == pytest.approx(large, rel=0.05)
    assert small < 0.6 * half < 0.6 * np.sqrt(200.0)


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
def test_batches_of_very_different_size_do_no_harm(rate: float) -> None:
    """The gradient of a batch is that of the whole, times a number between 1e-3 and 1e3."""
    sizes, rng = np.geomspace(1.0, 30.0, 20), np.random.default_rng(0)
    x, opt = np.full(20, 3.0), lx.StochasticLBFGS(rate)
    state = opt.init(x)
    first = 0.5 * np.sum(sizes * x * x)
    for _ in range(1000):
        size, noise = 10.0 ** rng.normal(), 0.1 * rng.normal(size=20)

        def fun(x: np.ndarray, size: Any = size, noise: Any = noise) -> tuple[float, np.ndarray]:
            return float(size * np.sum((0.5 * sizes * x + noise) * x)), size * (sizes * x + noise)

        x, state = opt.update(x, fun(x)[1], state, fun=fun)
    assert 0.5 * np.sum(sizes * x * x) < 1e-4 * first


@pytest.mark.parametrize("armijo", [None, 1e-4])
def test_the_unit_of_the_loss_does_not_matter(backend: Backend, armijo: float | None) -> None:
    """In float32, squares of gradients of 1e25 overflow, those of 1e-25 vanish."""
    dtype = backend.xp.float32

    def run(unit: float) -> np.ndarray:
        opt = lx.StochasticLBFGS(0.3, pair_every=2, armijo=armijo, clip_norm=100.0 * unit)
        x = backend.asarray(X0, dtype)
        state, scales = opt.init(x), backend.asarray(np.geomspace(1.0, 9.0, N), dtype)
        for _ in range(12):
            def fun(x: Any) -> tuple[Any, Any]:
                return backend.xp.sum(0.5 * unit * scales * x * x), unit * scales * x

            value, g = fun(x)
            x, state = opt.update(x, g, state, value=value, fun=fun)
        return backend.to_numpy(x)

    wanted = run(1.0)
    assert np.linalg.norm(wanted) < 0.5 * np.linalg.norm(X0)
    for unit in (1e-25, 1e25):
        assert np.allclose(run(unit), wanted, rtol=1e-3, atol=1e-5)


def test_the_old_state_stays_as_it_is_unless_told() -> None:
    opt = lx.StochasticLBFGS(0.3, memory_size=2, pair_every=1)
    _, state = driven(Backend("numpy"), opt, 5)
    before = state.memory.pairs.rows.copy()
    p = {"a": np.ones(2), "b": np.ones((2, 2))}

    def fun(p: Any) -> tuple[float, Any]:
        return 0.0, {"a": 3.0 * p["a"], "b": 2.0 * p["b"]}

    first, after = opt.update(p, fun(p)[1], state, fun=fun)
    assert (state.memory.pairs.rows == before).all() and (p["a"] == 1.0).all()
    second, _ = opt.update(p, fun(p)[1], state, fun=fun, in_place=True)
    assert (first["b"] == second["b"]).all() and (state.memory.pairs.rows != before).any()
    assert after.step == 6


def test_wrong_calls() -> None:
    opt, x = lx.StochasticLBFGS(), np.ones(2)
    state = opt.init(x)
    with pytest.raises(TypeError, match=r"fun is None; wanted a function params -> \(value"):
        opt.update(x, x, state)
    with pytest.raises(TypeError, match="fun returned .*wanted, with StochasticLBFGS, the pair"):
        _, state = opt.update(x, x, state, fun=lambda p: p)
        opt.update(x, x, state, fun=lambda p: 1.0)
    with pytest.raises(ValueError, match="curvature_bounds is .*the lower one first"):
        lx.StochasticLBFGS(curvature_bounds=(2.0, 1.0))
    with pytest.raises(ValueError, match="labels is 'all'; wanted None"):
        lx.StochasticLBFGS(labels="all")
    with pytest.raises(TypeError, match=r"wanted lx.LBFGS\(\) for lx.minimize, or lx.train"):
        lx.minimize(lambda x: (x @ x, 2.0 * x), x, jac=True, method=opt)
    with pytest.raises(ValueError, match="params has the dtypes .*; wanted one"):
        opt.init([x, x.astype(np.float32)])
    with pytest.raises(FloatingPointError, match="not finite|NaN or infinite"):
        bad = lx.StochasticLBFGS(on_nonfinite="raise")
        bad.update(x, np.asarray([math.nan, 0.0]), bad.init(x), fun=lambda p: (0.0, p))


# --- train -------------------------------------------------------------------------------------

ROWS = RNG.normal(size=(40, 3))
WANTED = ROWS @ np.asarray([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=40)


def squares(p: np.ndarray, batch: Any) -> tuple[float, np.ndarray]:
    rows, wanted = batch
    r = rows @ p - wanted
    return float(r @ r) / len(r), 2.0 / len(r) * (r @ rows)


@pytest.mark.parametrize("armijo", [None, 1e-4])
def test_train_is_the_loop_written_by_hand(armijo: float | None) -> None:
    opt = lx.StochasticLBFGS(0.3, memory_size=3, pair_every=3, armijo=armijo)
    settings: dict[str, Any] = {"jac": True, "method": opt, "batch_size": 9}
    res = lx.train(squares, np.zeros(3), (ROWS, WANTED), epochs=5, **settings)
    x, state = np.zeros(3), opt.init(np.zeros(3))
    for epoch in range(5):
        order = np.random.default_rng([0, epoch]).permutation(40)
        for start in range(0, 40, 9):
            rows = order[start : start + 9]

            def fun(x: np.ndarray, batch: Any = (ROWS[rows], WANTED[rows])) -> Any:
                return squares(x, batch)

            value, g = fun(x)
            x, state = opt.update(x, g, state, value=value, fun=fun)
    assert (res.params == x).all() and res.updates == 25
    # In two parts, the state in a file in between.
    first = lx.train(squares, np.zeros(3), (ROWS, WANTED), epochs=2, **settings)
    again = lx.train(
        squares, first.params, (ROWS, WANTED), epochs=3, state=first.state, **settings
    )
    assert (again.params == x).all()


def test_a_run_goes_on_from_a_checkpoint_also_on_another_library(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    opt = lx.StochasticLBFGS(0.3, memory_size=2, pair_every=2)
    settings: dict[str, Any] = {"jac": True, "method": opt, "batch_size": 9, "epochs": 4}
    data = ROWS, WANTED
    whole = lx.train(squares, np.zeros(3), data, **settings)

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    def tensors(p: Any, batch: Any) -> Any:
        r = batch[0] @ p - batch[1]
        return (r @ r) / len(r), 2.0 / len(r) * (r @ batch[0])

    for name in ("numpy", "torch"):
        path = lx.Checkpoint(tmp_path / f"{name}.npz", every=1)
        first = lx.train(
            squares, np.zeros(3), data, callback=stop, checkpoint=path, **settings
        )
        assert first.status is lx.Status.INTERRUPTED
        if name == "numpy":
            res = lx.train(squares, np.zeros(3), data, checkpoint=path, **settings)
            assert (res.params == whole.params).all()
            continue
        start = torch.zeros(3, dtype=torch.float64)
        res = lx.train(
            tensors, start, tuple(map(torch.tensor, data)), checkpoint=path, **settings
        )
        assert np.allclose(res.params.numpy(), whole.params, rtol=1e-12)


def test_a_state_survives_a_file(tmp_path: Any, backend: Backend) -> None:
    opt = lx.StochasticLBFGS(0.3, memory_size=2, pair_every=2)
    p, state = backend.asarray(np.ones(3)), None
    state = opt.init(p)

    def fun(p: Any) -> tuple[float, Any]:
        return 0.0, 3.0 * p

    for _ in range(3):
        p, state = opt.update(p, fun(p)[1], state, fun=fun, reproducible=True)
    lx.save(tmp_path / "state.npz", state)
    loaded = lx.load(tmp_path / "state.npz", like=p)
    ends = [opt.update(p, fun(p)[1], s, fun=fun, reproducible=True)[0] for s in (state, loaded)]
    assert (backend.to_numpy(ends[0]) == backend.to_numpy(ends[1])).all()


# --- JAX and PyTorch ---------------------------------------------------------------------------


def test_in_a_compiled_function() -> None:
    jax = pytest.importorskip("jax")
    opt = lx.StochasticLBFGS(0.3, memory_size=2, pair_every=3, armijo=1e-4)
    shifts = jax.numpy.asarray(SHIFTS[:10])

    def loss(x: Any, shift: Any) -> Any:
        return 0.5 * x @ (MATRIX @ x) + shift @ x

    def step(carry: Any, shift: Any) -> Any:
        def fun(x: Any) -> Any:
            return jax.value_and_grad(loss)(x, shift)

        x, state = carry
        value, g = fun(x)
        return opt.update(x, g, state, value=value, fun=fun), value

    x = jax.numpy.asarray(X0)
    (found, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, shifts))((x, opt.init(x)))
    wanted, state = X0, opt.init(X0)
    for k in range(10):
        def fun(x: np.ndarray, k: int = k) -> tuple[float, np.ndarray]:
            return float(loss(x, SHIFTS[k])), MATRIX @ x + SHIFTS[k]

        value, g = fun(wanted)
        wanted, state = opt.update(wanted, g, state, value=value, fun=fun)
    assert np.allclose(np.asarray(found), wanted, rtol=1e-9)


def test_the_optimizer_of_torch_makes_the_same_steps() -> None:
    torch = pytest.importorskip("torch")
    from lbfgs_xp.torch import StochasticLBFGS

    rule = lx.StochasticLBFGS(0.3, memory_size=3, pair_every=2, weight_decay=0.1, armijo=1e-4)
    matrix, shifts = torch.tensor(MATRIX), torch.tensor(SHIFTS)
    x = torch.tensor(X0, requires_grad=True)

    def make(x: Any) -> Any:
        return StochasticLBFGS([x], 0.3, 3, pair_every=2, weight_decay=0.1, armijo=1e-4)

    opt = make(x)
    for k in range(12):
        if k == 6:    # continue in another optimizer
            saved = opt.state_dict()
            opt = make(x)
            opt.load_state_dict(saved)

        def closure(k: int = k, opt: Any = opt) -> Any:
            opt.zero_grad()
            loss = 0.5 * x @ (matrix @ x) + shifts[k] @ x
            loss.backward()
            return loss

        opt.step(closure)
    wanted, state = X0, rule.init(X0)
    for k in range(12):
        def fun(x: np.ndarray, k: int = k) -> tuple[float, np.ndarray]:
            return 0.5 * x @ (MATRIX @ x) + SHIFTS[k] @ x, MATRIX @ x + SHIFTS[k]

        value, g = fun(wanted)
        wanted, state = rule.update(wanted, g, state, value=value, fun=fun)
    assert np.allclose(x.detach().numpy(), wanted, rtol=1e-12)

    def broken() -> Any:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        opt.step(broken)
    assert np.allclose(x.detach().numpy(), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="momentum is 2.0; wanted"):
        StochasticLBFGS([x], momentum=2.0)
    with pytest.raises(ValueError, match="lr is .0.1.; wanted"):
        StochasticLBFGS([x], lr=[0.1])
    with pytest.raises(ValueError, match="history_size is 0; wanted"):
        StochasticLBFGS([x], history_size=0)


def test_parameters_kept_in_one_buffer() -> None:
    """The first point of a pair is not the buffer that the user overwrites."""
    scales = np.asarray([1.0, 5.0, 20.0])

    def fun(x):
        return 0.5 * (scales * x * x).sum(), scales * x

    optimizer = lx.StochasticLBFGS(0.1)
    buffer, free = np.ones(3), np.ones(3)
    states = optimizer.init(buffer), optimizer.init(free)
    for _ in range(6):
        new, kept = optimizer.update(buffer, fun(buffer)[1], states[0], fun=fun)
        free, other = optimizer.update(free, fun(free)[1], states[1], fun=fun)
        states = kept, other
        buffer[:] = new
    assert (buffer == free).all()
