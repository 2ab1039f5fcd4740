"""Schedule-free AdamW, and the rules that act on a leaf as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

STEPS = 25
RNG = np.random.default_rng(0)
SHAPES = [(4, 3), (2, 5), (3, 2, 2), (6,), ()]
STARTS = [RNG.standard_normal(shape) for shape in SHAPES]
NOISE = [[RNG.standard_normal(shape) for shape in SHAPES] for _ in range(STEPS)]
SCALE = [1.0 + np.arange(x.size).reshape(x.shape) for x in STARTS]
RULES = ["ScheduleFreeAdamW", "Adafactor", "Muon", "SOAP"]


def slopes(xs: list[np.ndarray], step: int) -> list[np.ndarray]:
    return [a * x + 0.3 * n for a, x, n in zip(SCALE, xs, NOISE[step], strict=True)]


def path(backend: Backend, opt: Any, leaves: list[int], **how: Any) -> list[np.ndarray]:
    """The leaves with these indices after `STEPS` updates, with gradients from the host."""
    xs = [backend.asarray(STARTS[i]) for i in leaves]
    state = opt.init(xs)
    for step in range(STEPS):
        full = list(STARTS)
        for i, x in zip(leaves, xs, strict=True):
            full[i] = backend.to_numpy(x)
        gs = slopes(full, step)
        xs, state = opt.update(xs, [backend.asarray(gs[i]) for i in leaves], state, **how)
    if isinstance(opt, lx.ScheduleFreeAdamW):
        xs = [*xs, *opt.averages(xs, state)]
    return [backend.to_numpy(x) for x in xs]


def torch_path(name: str, leaves: list[int], **settings: Any) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    xs = [torch.nn.Parameter(torch.asarray(STARTS[i].copy())) for i in leaves]
    opt = getattr(torch.optim, name)(xs, **settings)
    for step in range(STEPS):
        full = list(STARTS)
        for i, x in zip(leaves, xs, strict=True):
            full[i] = x.detach().numpy()
        gs = slopes(full, step)
        for i, x in zip(leaves, xs, strict=True):
            x.grad = torch.asarray(gs[i])
        opt.step()
    return [x.detach().numpy() for x in xs]


def close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [
    {}, {"weight_decay": 0.1}, {"eps": (1e-3, 0.5), "decay": -0.5, "threshold": 1.5},
], ids=str)
def test_adafactor_is_that_of_torch(backend: Backend, settings: dict) -> None:
    theirs = {"beta2_decay" if k == "decay" else "d" if k == "threshold" else k: v
              for k, v in settings.items()}
    leaves = [0, 1, 2, 3, 4]
    close(path(backend, lx.Adafactor(0.1, **settings), leaves),
          torch_path("Adafactor", leaves, lr=0.1, **theirs))


@pytest.mark.parametrize("settings", [
    {}, {"nesterov": False, "momentum": 0.5, "weight_decay": 0.0}, {"ns_steps": 2},
    {"scale": "match_rms_adamw"},
], ids=str)
def test_muon_is_that_of_torch_in_float64(
    backend: Backend, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    # torch runs the iterations in bfloat16.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    theirs = {"adjust_lr_fn" if k == "scale" else k: v for k, v in settings.items()}
    close(path(backend, lx.Muon(0.02, **settings), [0, 1]),
          torch_path("Muon", [0, 1], lr=0.02, **theirs))


@pytest.mark.parametrize("rule", [lx.Muon(0.02), lx.SOAP(0.02, betas=(0.9, 0.95))], ids=repr)
def test_leaves_that_are_no_matrices_take_steps_of_adamw(backend: Backend, rule: Any) -> None:
    adam = lx.AdamW(0.02, betas=(0.9, 0.95), weight_decay=rule.weight_decay)
    close(path(backend, rule, [3, 4]), path(Backend.NUMPY, adam, [3, 4]))
    matrix = path(backend, rule, [2])[0]
    assert matrix.shape == SHAPES[2] and np.all(np.isfinite(matrix))


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "betas": (0.8, 0.99)}], ids=str)
def test_schedule_free_is_that_of_optax(backend: Backend, settings: dict) -> None:
    contrib = pytest.importorskip("optax").contrib
    import jax

    b1, b2 = settings.get("betas", (0.9, 0.999))
    peer = contrib.schedule_free_adamw(
        0.05, b1=b1, b2=b2, weight_decay=settings.get("weight_decay", 0.0)
    )
    xs = [jax.numpy.asarray(x) for x in STARTS]
    state = peer.init(xs)
    with jax.disable_jit():
        for step in range(STEPS):
            gs = slopes([np.asarray(x) for x in xs], step)
            changes, state = peer.update([jax.numpy.asarray(g) for g in gs], state, xs)
            xs = [x + change for x, change in zip(xs, changes, strict=True)]
    theirs = [*xs, *contrib.schedule_free_eval_params(state, xs)]
    ours = path(backend, lx.ScheduleFreeAdamW(0.05, **settings), [0, 1, 2, 3, 4])
    close(ours, [np.asarray(x) for x in theirs])


def test_schedule_free_with_a_warm_up() -> None:
    """The weights of the average, from a rate of 0 on, as in the algorithm."""
    rates = lx.schedules.Linear(0.0, 0.1, steps=5)
    opt, y, z, v, x = lx.ScheduleFreeAdamW(rates), STARTS[3], STARTS[3], 0.0, STARTS[3]
    state, total, params = opt.init(y), 0.0, y
    for step in range(12):
        g = slopes([*STARTS[:3], y, STARTS[4]], step)[3]
        v = 0.999 * v + 0.001 * g * g
        rate = rates(step)
        z = z - rate * g / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        total += rate**2
        c = rate**2 / total if total else 0.0
        x = (1 - c) * x + c * z
        y = 0.1 * z + 0.9 * x
        params, state = opt.update(params, g, state)
        close([params, opt.averages(params, state)], [y, x])


def soap_path(x: np.ndarray, steps: int, every: int, lr: float, b: tuple) -> np.ndarray:
    """SOAP as printed (Vyas et al. 2024, Algorithms 3 and 4), with the corrections of Adam."""
    m = v = 0.0
    L, R = np.zeros((len(x),) * 2), np.zeros((x.shape[1],) * 2)
    for t in range(1, steps + 1):
        g = SCALE[0] * x + 0.3 * NOISE[t - 1][0]
        L, R = b[1] * L + (1 - b[1]) * g @ g.T, b[1] * R + (1 - b[1]) * g.T @ g
        if t == 1:
            QL, QR = (np.linalg.eigh(each)[1][:, ::-1] for each in (L, R))
        m = b[0] * m + (1 - b[0]) * g
        rotated = QL.T @ g @ QR
        v = b[1] * v + (1 - b[1]) * rotated**2
        mean = QL.T @ (m / (1 - b[0] ** t)) @ QR
        x = x - lr * QL @ (mean / (np.sqrt(v / (1 - b[1] ** t)) + 1e-4)) @ QR.T
        if t > 1 and t % every == 0:
            QL, QR = np.linalg.qr(L @ QL)[0], np.linalg.qr(R @ QR)[0]
    return x


@pytest.mark.parametrize("every", [1, 4])
def test_soap_is_that_of_the_paper(backend: Backend, every: int) -> None:
    opt = lx.SOAP(0.05, betas=(0.9, 0.8), basis_every=every, weight_decay=0.0, eps=1e-4)
    wanted = soap_path(STARTS[0], STEPS, every, 0.05, (0.9, 0.8))
    close(path(backend, opt, [0]), [wanted])


def test_soap_without_bases_is_adam() -> None:
    opt = lx.SOAP(0.05, max_side=0, weight_decay=0.0)
    adam = lx.Adam(0.05, (0.95, 0.95))
    close(path(Backend.NUMPY, opt, [0, 2]), path(Backend.NUMPY, adam, [0, 2]))


@pytest.mark.sampled
@pytest.mark.parametrize("name", RULES)
def test_the_same_bits_in_reproducible_mode(backend: Backend, name: str) -> None:
    opt = getattr(lx, name)(0.02, weight_decay=0.01, clip_norm=1.0, clip_value=0.9)
    reference = path(Backend.NUMPY, opt, [0, 2, 3], reproducible=True)
    found = path(backend, opt, [0, 2, 3], reproducible=True)
    assert all(np.array_equal(a, b) for a, b in zip(found, reference, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_rows_of_a_batch_and_nested_parameters(name: str) -> None:
    """A batch equals its rows, and one problem the loop with `update`."""
    opt = getattr(lx, name)(0.02, clip_norm=3.0)
    starts = {"w": RNG.standard_normal((3, 4, 2)), "b": RNG.standard_normal((3, 2))}
    scales = {"w": 1.0 + np.arange(8.0).reshape(4, 2), "b": np.asarray([2.0, 0.5])}

    def fun(p: Any) -> Any:
        lead = p["b"].ndim - 1
        parts = {k: 0.5 * scales[k] * p[k] ** 2 for k in p}
        total = sum(part.sum(axis=tuple(range(lead, part.ndim))) for part in parts.values())
        return total, {k: scales[k] * p[k] for k in p}

    batch = lx.minimize(
        fun, starts, jac=True, method=opt, batched=True, maxiter=6, reproducible=True
    )
    for row in range(3):
        start = {k: v[row] for k, v in starts.items()}
        one = lx.minimize(fun, start, jac=True, method=opt, maxiter=6, reproducible=True)
        params, state, lowest = start, opt.init(start), (np.inf, start)
        for _ in range(7):
            value, grads = fun(params)
            lowest = min(lowest, (value, params), key=lambda pair: pair[0])
            params, state = opt.update(params, grads, state, reproducible=True)
        for k in start:
            assert np.array_equal(batch.x[k][row], one.x[k])
            # The norm for clip_norm may be summed in another order.
            np.testing.assert_allclose(one.x[k], lowest[1][k], rtol=1e-13)


@pytest.mark.parametrize("name", RULES)
def test_a_saved_state_goes_on(name: str, tmp_path: Any) -> None:
    opt = getattr(lx, name)(0.02)
    x, g = STARTS[0], SCALE[0]
    y, state = opt.update(x, g, opt.init(x))
    lx.save(tmp_path / "state.npz", state)
    again = lx.load(tmp_path / "state.npz", like=x)
    one, other = (opt.update(y, g, each)[0] for each in (state, again))
    assert np.array_equal(one, other)
    for here, there in zip(*map(optree.tree_leaves, (state.slots, again.slots)), strict=True):
        assert here.strides == there.strides    # else some libraries round products differently


def test_wrong_settings() -> None:
    for make, message in (
        (lambda: lx.Adafactor(decay=0.5), "decay is 0.5"),
        (lambda: lx.Adafactor(eps=1e-3), "eps is 0.001; wanted two numbers"),
        (lambda: lx.Muon(scale="no"), "scale is 'no'"),
        (lambda: lx.Muon(ns_steps=0), "ns_steps is 0"),
        (lambda: lx.SOAP(basis_every=0), "basis_every is 0"),
        (lambda: lx.ScheduleFreeAdamW(betas=(0.0, 0.9)), "betas is"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            make()
    for opt in (lx.Muon(), lx.SOAP(), lx.Adafactor()):
        with pytest.raises(TypeError, match="wanted real ones"):
            opt.init(np.zeros((2, 2), complex))
        with pytest.raises(TypeError, match="wanted real ones"):
            lx.minimize(lambda x: (0.0, x), np.zeros((2, 2), complex), jac=True, method=opt)
