"""First-order optimizers have the iterates of torch.optim and optax, on every library."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import schedules
from tests.backends import Backend

STEPS = 200
N = 7

# class -> name in torch.optim
TORCH = {
    "SGD": "SGD",
    "Adagrad": "Adagrad",
    "RMSProp": "RMSprop",
    "Adadelta": "Adadelta",
    "Adam": "Adam",
    "AdamW": "AdamW",
    "Adamax": "Adamax",
    "NAdam": "NAdam",
    "RAdam": "RAdam",
    "Rprop": "Rprop",
    "ASGD": "ASGD",
}
OPTAX = {"Yogi": "yogi", "AdaBelief": "adabelief", "Lion": "lion"}
ALL = [*TORCH, *OPTAX]

# optimizer, our settings, torch's settings if their names differ
TORCH_CASES: list[tuple[str, dict, dict]] = [
    *((name, {"learning_rate": 0.02}, {"lr": 0.02}) for name in TORCH),
    *((name, {}, {}) for name in TORCH),
    *((name, {"weight_decay": 0.1}, {}) for name in TORCH if name != "Rprop"),
    *((name, {"maximize": True}, {}) for name in TORCH),
    ("SGD", {"momentum": 0.9}, {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}, {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}, {}),
    ("RMSProp", {"centered": True}, {}),
    ("RMSProp", {"momentum": 0.9, "alpha": 0.9, "eps": 1e-4}, {}),
    ("RMSProp", {"momentum": 0.9, "centered": True}, {}),
    ("Adadelta", {"rho": 0.7, "eps": 1e-3}, {}),
    ("Adam", {"betas": (0.8, 0.9), "eps": 1e-3}, {}),
    ("Adam", {"amsgrad": True}, {}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, {}),
    ("AdamW", {"amsgrad": True, "maximize": True}, {}),
    ("Adamax", {"betas": (0.8, 0.9), "eps": 1e-3}, {}),
    ("NAdam", {"momentum_decay": 0.1, "betas": (0.8, 0.9)}, {}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, {}),
    ("RAdam", {"betas": (0.8, 0.95), "eps": 1e-3}, {}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, {}),
    ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1)}, {}),
    ("ASGD", {"lambd": 0.1, "alpha": 0.6, "t0": 20.0}, {}),
]
OPTAX_CASES: list[tuple[str, dict, dict]] = [
    ("Yogi", {}, {}),
    ("Yogi", {"betas": (0.8, 0.9), "eps": 1e-2}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2}),
    ("AdaBelief", {}, {}),
    (
        "AdaBelief",
        {"betas": (0.8, 0.9), "eps": 1e-4, "eps_root": 1e-6},
        {"b1": 0.8, "b2": 0.9, "eps": 1e-4, "eps_root": 1e-6},
    ),
    ("Lion", {}, {}),
    (
        "Lion",
        {"betas": (0.8, 0.9), "weight_decay": 0.1},
        {"b1": 0.8, "b2": 0.9, "weight_decay": 0.1},
    ),
]


def label(case: tuple[str, dict, dict]) -> str:
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


MATRIX = np.random.default_rng(3).standard_normal((N, N))
MATRIX = MATRIX @ MATRIX.T / N + np.eye(N)
START = np.random.default_rng(4).standard_normal(N)


NOISE = np.random.default_rng(5).standard_normal((STEPS, N))


def slope(x: np.ndarray, step: int = 0) -> np.ndarray:
    """A gradient with noise, and with one component that is exactly 0.

    Without noise, many rules end in a chaotic oscillation around the minimum, which multiplies
    rounding differences between any two programs by ten every few steps.
    """
    g = MATRIX @ x + NOISE[step]
    g[-1] = 0.0
    return g


def path(
    backend: Backend, opt: Any, steps: int = STEPS, dtype: str = "float64", **how: Any
) -> np.ndarray:
    """The iterates, with gradients computed on the host so that only the rule is compared."""
    x = backend.asarray(START, dtype)
    state = opt.init(x)
    found = []
    for step in range(steps):
        g = backend.asarray(slope(backend.to_numpy(x), step), dtype)
        x, state = opt.update(x, g, state, **how)
        found.append(backend.to_numpy(x))
    return np.stack(found)


def torch_path(name: str, settings: dict) -> np.ndarray:
    torch = pytest.importorskip("torch")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # ASGD keeps its rates in the default dtype
    try:
        x = torch.nn.Parameter(torch.asarray(START.copy()))
        opt = getattr(torch.optim, TORCH[name])([x], **settings)
        found = []
        for step in range(STEPS):
            x.grad = torch.asarray(slope(x.detach().numpy(), step))
            opt.step()
            found.append(x.detach().numpy().copy())
    finally:
        torch.set_default_dtype(default)
    return np.stack(found)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.sampled
@pytest.mark.parametrize("case", TORCH_CASES, ids=label)
def test_iterates_of_torch(backend: Backend, case: tuple[str, dict, dict]) -> None:
    name, settings, renamed = case
    theirs = torch_path(name, renamed or settings)
    close(path(backend, getattr(lx, name)(**settings)), theirs)


@pytest.mark.parametrize("case", OPTAX_CASES, ids=label)
def test_iterates_of_optax(backend: Backend, case: tuple[str, dict, dict]) -> None:
    optax = pytest.importorskip("optax")
    import jax

    name, settings, renamed = case
    opt = getattr(optax, OPTAX[name])(0.01, **renamed)
    update = jax.jit(opt.update)
    x = jax.numpy.asarray(START)
    state = opt.init(x)
    theirs = []
    for step in range(STEPS):
        changes, state = update(jax.numpy.asarray(slope(np.asarray(x), step)), state, x)
        x = optax.apply_updates(x, changes)
        theirs.append(np.asarray(x))
    close(path(backend, getattr(lx, name)(0.01, **settings)), np.stack(theirs))


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ALL)
def test_the_same_bits_in_reproducible_mode(backend: Backend, name: str, dtype: str) -> None:
    opt = getattr(lx, name)(0.02, weight_decay=0.01, clip_norm=1.0, clip_value=0.9)
    reference = path(Backend.NUMPY, opt, 30, dtype, reproducible=True)
    assert np.array_equal(path(backend, opt, 30, dtype, reproducible=True), reference)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_and_threads_change_nothing(name: str, dtype: str) -> None:
    """A large array is processed in blocks by several threads; elements are independent."""
    opt = getattr(lx, name)(0.02, weight_decay=0.01)
    rng = np.random.default_rng(5)
    n = 3 * 2**18 + 17
    x = rng.standard_normal(n).astype(dtype)
    picked = np.unique(np.concatenate([[0, n - 1], rng.integers(0, n, 50)]))
    few = x[picked].copy()
    states = opt.init(x), opt.init(few)
    for step in range(4):
        g = np.sin((step + 1) * x).astype(dtype)
        x, large = opt.update(x, g, states[0])
        few, small = opt.update(few, g[picked], states[1])
        states = large, small
        assert np.array_equal(x[picked], few)


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
def test_in_place(backend: Backend, name: str) -> None:
    if backend is Backend.NUMPY_READONLY:
        pytest.skip("arrays that cannot be overwritten")
    opt = getattr(lx, name)(0.02)
    x, y = backend.asarray(START), backend.asarray(START)
    at_x, at_y = opt.init(x), opt.init(y)
    for _ in range(5):
        g = backend.asarray(slope(backend.to_numpy(x)))
        x, at_x = opt.update(x, g, at_x)
        held = y
        y, at_y = opt.update(y, g, at_y, in_place=True)
        assert backend.is_jax or y is held
        assert np.array_equal(backend.to_numpy(x), backend.to_numpy(y))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
def test_nothing_is_overwritten_unless_told(backend: Backend, name: str) -> None:
    opt = getattr(lx, name)(0.02)
    x, g = backend.asarray(START), backend.asarray(slope(START))
    x, state = opt.update(x, g, opt.init(x))
    before = [backend.to_numpy(a) for a in (x, g, *state.slots[0])]
    opt.update(x, g, state)
    after = [backend.to_numpy(a) for a in (x, g, *state.slots[0])]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_in_place_where_memory_is_not_contiguous() -> None:
    x = np.arange(12.0).reshape(3, 4).T
    other = x.copy()
    g = np.ones((4, 3))
    opt = lx.Adam(0.1)
    fresh, _ = opt.update(other, g, opt.init(other))
    held = x
    x, _ = opt.update(x, g, opt.init(x), in_place=True)
    assert x is held and np.array_equal(x, fresh)


def nested(backend: Backend) -> Any:
    rng = np.random.default_rng(6)
    bias, weight = rng.standard_normal(3), rng.standard_normal((3, 2))
    return {
        "layers": [{"bias": backend.asarray(bias), "weight": backend.asarray(weight)}],
        "scale": backend.asarray(rng.standard_normal(())),
        "phase": backend.asarray(
            rng.standard_normal(4) + 1j * rng.standard_normal(4), "complex128"
        ),
        "single": backend.asarray(rng.standard_normal(5), "float32"),
    }


def leaves(backend: Backend, params: Any) -> dict[str, np.ndarray]:
    layer = params["layers"][0]
    found = {"bias": layer["bias"], "weight": layer["weight"]}
    found |= {name: params[name] for name in ("scale", "phase", "single")}
    return {name: backend.to_numpy(leaf) for name, leaf in found.items()}


def gradients(backend: Backend, params: Any) -> Any:
    def of(leaf: Any) -> Any:
        host = backend.to_numpy(leaf)
        return backend.asarray(host * 2.0 + 0.5, host.dtype.name)

    layer = params["layers"][0]
    return {
        "layers": [{name: of(leaf) for name, leaf in layer.items()}],
        **{name: of(params[name]) for name in ("scale", "phase", "single")},
    }


@pytest.mark.sampled
@pytest.mark.parametrize("name", list(TORCH))
def test_nested_parameters_as_torch(backend: Backend, name: str) -> None:
    """Shapes, and 0-d, complex and float32 leaves, are as in torch."""
    torch = pytest.importorskip("torch")
    opt = getattr(lx, name)(0.02)
    params = nested(backend)
    theirs = {
        key: torch.nn.Parameter(torch.asarray(leaf))
        for key, leaf in leaves(backend, params).items()
    }
    peer = getattr(torch.optim, TORCH[name])(list(theirs.values()), lr=0.02)
    state = opt.init(params)
    for _ in range(20):
        g = gradients(backend, params)
        for key, leaf in leaves(backend, g).items():
            theirs[key].grad = torch.asarray(leaf)
        params, state = opt.update(params, g, state)
        peer.step()
    for key, leaf in leaves(backend, params).items():
        expected = theirs[key].detach().numpy()
        assert leaf.dtype == expected.dtype and leaf.shape == expected.shape
        # torch keeps some numbers of these two in float32 here
        of_torch = 1e-6 if name in ("ASGD", "NAdam") else 1e-12
        tolerance = 1e-5 if key == "single" else of_torch
        np.testing.assert_allclose(leaf, expected, rtol=tolerance, atol=tolerance)


def test_clipping_by_norm_is_global(backend: Backend) -> None:
    params = {"a": backend.asarray([1.0, 2.0]), "b": backend.asarray([[3.0]])}
    g = {"a": backend.asarray([3.0, 0.0]), "b": backend.asarray([[4.0]])}
    opt = lx.SGD(1.0, clip_norm=1.0)
    new, _ = opt.update(params, g, opt.init(params))
    close(backend.to_numpy(new["a"]), np.asarray([1.0 - 0.6, 2.0]))
    close(backend.to_numpy(new["b"]), np.asarray([[3.0 - 0.8]]))
    opt = lx.SGD(1.0, clip_norm=10.0)
    new, _ = opt.update(params, g, opt.init(params))
    close(backend.to_numpy(new["b"]), np.asarray([[-1.0]]))


def test_clipping_by_norm_as_optax(backend: Backend) -> None:
    optax = pytest.importorskip("optax")
    import jax

    peer = optax.chain(optax.clip_by_global_norm(0.7), optax.adam(0.02))
    x = jax.numpy.asarray(START)
    state = peer.init(x)
    theirs = []
    update = jax.jit(peer.update)
    for step in range(50):
        changes, state = update(jax.numpy.asarray(slope(np.asarray(x), step)), state, x)
        x = optax.apply_updates(x, changes)
        theirs.append(np.asarray(x))
    close(path(backend, lx.Adam(0.02, clip_norm=0.7), 50), np.stack(theirs))


def test_clipping_of_a_zero_gradient(backend: Backend) -> None:
    x = backend.asarray([1.0, 2.0])
    opt = lx.SGD(1.0, clip_norm=1.0)
    new, _ = opt.update(x, backend.asarray([0.0, 0.0]), opt.init(x))
    assert np.array_equal(backend.to_numpy(new), [1.0, 2.0])


def test_clipping_by_value(backend: Backend) -> None:
    x = backend.asarray([0.0, 0.0, 0.0])
    opt = lx.SGD(1.0, clip_value=2.0)
    new, _ = opt.update(x, backend.asarray([5.0, -3.0, 1.0]), opt.init(x))
    assert np.array_equal(backend.to_numpy(new), [-2.0, 2.0, -1.0])


@pytest.mark.parametrize("name", ALL)
def test_decoupled_weight_decay_is_shrinkage(name: str) -> None:
    """If the gradient is 0 and there is no memory, x shrinks by the factor 1 - rate decay."""
    if name == "Yogi":
        settings: dict = {"initial_accumulator_value": 0.0}
    else:
        settings = {"lambd": 0.0} if name == "ASGD" else {}
    cls = getattr(lx, name)
    opt = cls(0.1, weight_decay=0.5, decoupled_weight_decay=True, **settings)
    x = np.asarray([2.0, -4.0])
    for _ in range(3):
        x, _ = opt.update(x, np.zeros(2), opt.init(x))
    close(x, np.asarray([2.0, -4.0]) * 0.95**3)


def test_a_schedule_is_the_learning_rate(backend: Backend) -> None:
    schedule = schedules.Cosine(0.1, steps=20)
    x = backend.asarray(START)
    opt = lx.SGD(schedule)
    state = opt.init(x)
    for step in range(25):
        before = backend.to_numpy(x)
        g = slope(before)
        x, state = opt.update(x, backend.asarray(g), state)
        close(backend.to_numpy(x), before - schedule(step) * g)
    assert state.step == 25


def test_a_function_is_a_schedule() -> None:
    opt = lx.SGD(lambda step: 1.0 / (1 + step))
    x = np.zeros(1)
    state = opt.init(x)
    for expected in (-1.0, -1.5, -1.5 - 1.0 / 3.0):
        x, state = opt.update(x, np.ones(1), state)
        close(x, np.asarray([expected]))


def test_plateau() -> None:
    opt = lx.SGD(schedules.ReduceOnPlateau(1.0, factor=0.5, patience=1))
    x = np.zeros(1)
    state = opt.init(x)
    rates = []
    for value in (3.0, 3.0, 3.0, 3.0, None, 3.0):
        before = x
        x, state = opt.update(x, np.ones(1), state, value=value)
        rates.append(float((before - x)[0]))
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("how", ["function", "tree"])
def test_groups_have_settings_of_their_own(backend: Backend, how: str) -> None:
    params = {"bias": backend.asarray([1.0]), "weight": backend.asarray([1.0, 2.0])}
    g = {"bias": backend.asarray([0.5]), "weight": backend.asarray([0.25, 1.0])}
    labels: Any = (lambda path: path) if how == "function" else {"bias": "bias", "weight": "rest"}
    own = {"weight_decay": 0.0, "learning_rate": schedules.Linear(0.2, 0.0, steps=4)}
    opt = lx.AdamW(0.1, labels=labels, groups={"bias": own})
    state = opt.init(params)
    plain = {"bias": lx.AdamW(**own)}
    plain["weight"] = lx.AdamW(0.1)
    alone = {name: (params[name], plain[name].init(params[name])) for name in params}
    for _ in range(6):
        params, state = opt.update(params, g, state)
        for name, one in plain.items():
            alone[name] = one.update(alone[name][0], g[name], alone[name][1])
            assert np.array_equal(
                backend.to_numpy(params[name]), backend.to_numpy(alone[name][0])
            )


def test_clip_norm_runs_over_all_groups() -> None:
    opt = lx.SGD(
        1.0, clip_norm=1.0, labels=lambda path: path, groups={"b": {"learning_rate": 2.0}}
    )
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    new, _ = opt.update(params, {"a": np.full(1, 3.0), "b": np.full(1, 4.0)}, opt.init(params))
    close(np.concatenate([new["a"], new["b"]]), np.asarray([-0.6, -1.6]))


# --- what is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite(backend: Backend, bad: float) -> None:
    params = {"a": backend.asarray([1.0, 2.0]), "b": backend.asarray([3.0])}
    g = {"a": backend.asarray([1.0, bad]), "b": backend.asarray([1.0])}
    opt = lx.Adam(0.1, on_nonfinite="skip")
    state = opt.init(params)
    new, after = opt.update(params, g, state)
    assert after is state and all(new[k] is params[k] for k in params)
    opt = lx.Adam(0.1, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="not|NaN"):
        opt.update(params, g, opt.init(params))
    opt = lx.SGD(0.1)
    new, _ = opt.update(params, g, opt.init(params))
    assert not np.isfinite(backend.to_numpy(new["a"])[1])


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: lx.Adam(-1e-3), "learning_rate is -0.001"),
        (lambda: lx.Adam(float("nan")), "learning_rate is nan"),
        (lambda: lx.Adam("fast"), "learning_rate is 'fast'"),
        (lambda: lx.Adam(betas=(0.9, 1.0)), r"betas is \(0.9, 1.0\)"),
        (lambda: lx.Adam(betas=(-0.1, 0.9)), "betas is"),
        (lambda: lx.Adam(betas=0.9), "betas is 0.9"),
        (lambda: lx.Lion(betas=(0.9, 0.99, 0.1)), "betas is"),
        (lambda: lx.Adam(eps=-1e-8), "eps is -1e-08"),
        (lambda: lx.Adam(amsgrad=1), "amsgrad is 1"),
        (lambda: lx.SGD(momentum=1.5), "momentum is 1.5"),
        (lambda: lx.SGD(momentum=-0.5), "momentum is -0.5"),
        (lambda: lx.SGD(nesterov=True), "nesterov=True with momentum=0.0"),
        (lambda: lx.RMSProp(alpha=1.0), "alpha is 1.0"),
        (lambda: lx.Adadelta(rho=1.5), "rho is 1.5"),
        (lambda: lx.Rprop(etas=(1.5, 0.5)), "etas is"),
        (lambda: lx.Rprop(step_sizes=(1.0, 0.1)), "step_sizes is"),
        (lambda: lx.Adam(weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: lx.Adam(clip_norm=0.0), "clip_norm is 0.0"),
        (lambda: lx.Adam(clip_value=-1.0), "clip_value is -1.0"),
        (lambda: lx.Adam(maximize="yes"), "maximize is 'yes'"),
        (lambda: lx.Adam(on_nonfinite="stop"), "on_nonfinite is 'stop'"),
        (lambda: lx.Adam(groups={"a": {}}), "without labels"),
        (lambda: lx.Adam(labels=str, groups={"a": {"clip_norm": 1.0}}), "sets clip_norm"),
        (lambda: lx.Adam(labels=str, groups={"a": {"betas": 3}}), "betas is 3"),
        (lambda: lx.Adam(labels=str, groups=[1]), "groups is"),
    ],
)
def test_bad_settings(make: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        make()


def test_bad_parameters_and_gradients(backend: Backend) -> None:
    opt = lx.Adam()
    x = {"a": backend.asarray([1.0, 2.0])}
    state = opt.init(x)
    wrong = [
        ({"b": x["a"]}, "grads has the structure"),
        ({"a": backend.asarray([1.0])}, r"grads\.a is .* wanted"),
        ({"a": backend.asarray([1.0, 2.0], "float32")}, "float32"),
        ({"a": [1.0, 2.0]}, "grads has the structure"),
        ({"a": 1.0}, r"grads\.a is a float; wanted an array"),
    ]
    for g, match in wrong:
        with pytest.raises((TypeError, ValueError), match=match):
            opt.update(x, g, state)
    with pytest.raises((TypeError, ValueError), match=r"params\.a is .* \(1,\); wanted"):
        opt.update({"a": backend.asarray([1.0])}, x, state)
    with pytest.raises(ValueError, match=r"state belongs to Adam .*; wanted a state of Lion"):
        lx.Lion(1e-3).update(x, x, state)
    with pytest.raises(ValueError, match="max_exp_avg_sq"):
        lx.Adam(amsgrad=True).update(x, x, state)
    with pytest.raises(TypeError, match="state is a dict"):
        opt.update(x, x, {})
    with pytest.raises(TypeError, match=r"params\.a has dtype .*int"):
        opt.init({"a": backend.asarray([1, 2], "int64")})
    with pytest.raises(ValueError, match="no arrays"):
        opt.init({})
    with pytest.raises(TypeError, match="params holds a float"):
        opt.init({"a": 1.0})


def test_another_library() -> None:
    torch = pytest.importorskip("torch")
    x = np.zeros(2)
    opt = lx.Adam()
    with pytest.raises(TypeError, match="grads is an array of torch; wanted one of numpy"):
        opt.update(x, torch.zeros(2, dtype=torch.float64), opt.init(x))
    with pytest.raises(TypeError, match="params mixes arrays of numpy, torch"):
        opt.init([x, torch.zeros(2)])


def test_another_device() -> None:
    xp = Backend.STRICT.xp
    here, there = Backend.STRICT.asarray([1.0]), Backend.STRICT_DEVICE.asarray([1.0])
    assert xp is Backend.STRICT_DEVICE.xp
    opt = lx.Adam()
    with pytest.raises(ValueError, match="grads is on device"):
        opt.update(here, there, opt.init(here))


def test_read_only_in_place() -> None:
    x = np.ones(3)
    x.flags.writeable = False
    opt = lx.Adam()
    with pytest.raises(ValueError, match="cannot be overwritten"):
        opt.update(x, np.ones(3), opt.init(x), in_place=True)


def test_labels_that_fit_nothing() -> None:
    params = {"a": np.zeros(1)}
    with pytest.raises(ValueError, match="settings for b"):
        lx.Adam(labels=lambda path: path, groups={"b": {"eps": 1.0}}).init(params)
    with pytest.raises(TypeError, match="the label of a is 1"):
        lx.Adam(labels=lambda path: 1, groups={"b": {"eps": 1.0}}).init(params)
    with pytest.raises(ValueError, match="labels are nested as"):
        lx.Adam(labels=["a", "b"], groups={"b": {"eps": 1.0}}).init(params)


def test_traced_arrays() -> None:
    jax = pytest.importorskip("jax")
    opt = lx.Adam()
    x = jax.numpy.zeros(2)
    for state in (opt.init(x), jax.jit(opt.init)(x)):
        moved = jax.jit(lambda g, state=state: opt.update(x, g, state)[0])(x + 1.0)
        np.testing.assert_allclose(moved, opt.update(x, x + 1.0, state)[0])
    with pytest.raises(TypeError, match="x is traced .*only minimize, least_squares"):
        jax.jit(lambda x: lx.check_gradient(lambda x: x @ x, x))(x)


# --- parameters as torch and JAX users have them -----------------------------------------------


def test_torch_parameters() -> None:
    torch = pytest.importorskip("torch")
    x = torch.nn.Parameter(torch.asarray([1.0, 2.0], dtype=torch.float64))
    opt = lx.SGD(0.5)
    state = opt.init(x)
    (x**2).sum().backward()
    new, state = opt.update(x, x.grad, state)
    assert new.requires_grad and new.is_leaf
    assert torch.equal(new.detach(), torch.zeros(2, dtype=torch.float64))
    same, state = opt.update(x, x.grad, state, in_place=True)
    assert same is x and torch.equal(x.detach(), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="grads has the layout torch.sparse_coo; wanted a dense"):
        opt.update(x, torch.ones(2, dtype=torch.float64).to_sparse(), state)


def test_jax_compiles_once() -> None:
    jax = pytest.importorskip("jax")
    from lbfgs_xp.first_order import update

    x = jax.numpy.asarray(START)
    opt = lx.Adam(schedules.Exponential(0.1, 0.9))
    state = opt.init(x)
    for _ in range(2):  # arrays made by JAX are placed differently from those of the user
        x, state = opt.update(x, x, state)
    compiled = state.spec.spaces[0].backend.jit(
        update.apply_at_once, (opt.rule,), state.spec.spaces, None
    )
    size = compiled.func._cache_size()
    for _ in range(3):
        x, state = opt.update(x, x, state)
    other = dataclasses.replace(opt, learning_rate=0.5)
    other.update(x, x, other.init(x))
    assert compiled.func._cache_size() == size


def test_state_and_optimizer_can_be_pickled(backend: Backend) -> None:
    if backend.is_strict:
        pytest.skip("arrays of array-api-strict cannot be pickled")
    opt = lx.Adam(schedules.Cosine(0.1, steps=9), clip_norm=1.0)
    x, g = backend.asarray(START), backend.asarray(slope(START))
    x, state = opt.update(x, g, opt.init(x))
    again, restored = pickle.loads(pickle.dumps((opt, state)))
    assert again == opt
    expected, _ = opt.update(x, g, state)
    found, _ = again.update(x, g, restored)
    assert np.array_equal(backend.to_numpy(found), backend.to_numpy(expected))


def test_optimizers_are_values() -> None:
    groups = {"a": {"eps": 1e-3}}
    assert lx.Adam(1e-2) == lx.Adam(1e-2) != lx.Adam(1e-3)
    assert hash(lx.Adam(1e-2)) == hash(lx.Adam(schedules.Constant(1e-2)))
    assert lx.Adam(labels=str, groups=groups) == lx.Adam(labels=str, groups=groups)
    changed = dataclasses.replace(lx.Adam(labels=str, groups=groups), learning_rate=0.5)
    assert [variant.learning_rate(0) for variant in changed.variants] == [0.5, 0.5]
    assert [variant.eps for variant in changed.variants] == [1e-8, 1e-3]


# --- hostile usage -----------------------------------------------------------------------------


def test_a_gradient_that_is_the_parameter_itself(backend: Backend) -> None:
    if backend is Backend.NUMPY_READONLY:
        pytest.skip("arrays that cannot be overwritten")
    opt = lx.Lion(0.1)
    fresh, same = backend.asarray([1.0, -2.0]), backend.asarray([1.0, -2.0])
    new, state = opt.update(fresh, fresh, opt.init(fresh))
    there, held = opt.update(same, same, opt.init(same), in_place=True)
    assert np.array_equal(backend.to_numpy(new), backend.to_numpy(there))
    for a, b in zip(state.slots[0], held.slots[0], strict=True):
        assert np.array_equal(backend.to_numpy(a), backend.to_numpy(b))


def test_read_only_parameters_are_refused_before_anything_changes() -> None:
    x = np.ones(3)
    x.flags.writeable = False
    opt = lx.Adam()
    state = opt.init(x)
    with pytest.raises(ValueError, match="cannot be overwritten"):
        opt.update(x, np.ones(3), state, in_place=True)
    assert not np.any(state.slots[0][0])


def test_clipping_overflows_without_a_warning(backend: Backend) -> None:
    x = backend.asarray([0.0, 0.0], "float32")
    g = backend.asarray([1e25, -1e25], "float32")
    opt = lx.SGD(1.0, clip_norm=1.0)
    new, _ = opt.update(x, g, opt.init(x))
    assert np.all(np.isfinite(backend.to_numpy(new)))


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine, several threads give the same bits as one."""
    from lbfgs_xp.first_order import blocks

    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 5 * 2**16 + 3))
    found = []
    for count in (1, 3, 8):
        monkeypatch.setattr(blocks, "_threads", lambda count=count: count)
        opt = lx.RMSProp(0.01, centered=True, momentum=0.9)
        new, state = opt.update(x, g, opt.init(x))
        found.append((new, *state.slots[0]))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_rule_of_ones_own(backend: Backend) -> None:
    @dataclasses.dataclass(frozen=True)
    class Signum(lx.FirstOrder):
        learning_rate: Any = 1e-3
        beta: float = 0.9

        def slots(self) -> dict[str, float]:
            return {"mean": 0.0}

        def formula(self, fn: Any, x: Any, g: Any, slots: Any, numbers: Any) -> Any:
            (rate,), (m,) = numbers, slots
            m = self.beta * m + (1.0 - self.beta) * g
            return x - rate * fn.sign(m), (m,)

    x = backend.asarray([1.0, -1.0])
    opt = Signum(0.25)
    new, state = opt.update(x, x, opt.init(x))
    assert np.array_equal(backend.to_numpy(new), [0.75, -0.75])
    close(backend.to_numpy(state.slots[0][0]), np.asarray([0.1, -0.1]))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("RMSprop", "RMSProp"), ("LBFG", "LBFGS"), ("Adamm", "Adam"), ("minimise", "minimize")],
)
def test_a_name_that_is_nearly_right(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"has no '{name}'; did you mean lx.{meant}[?]$"):
        getattr(lx, name)
    assert not hasattr(lx, "nothing_of_the_kind")


def test_memory_that_is_held_twice(backend: Backend) -> None:
    if backend is Backend.NUMPY_READONLY:
        pytest.skip("arrays that cannot be overwritten")
    x = backend.asarray([1.0, 2.0])
    g = [backend.asarray([1.0, 1.0]), backend.asarray([2.0, 2.0])]
    opt = lx.SGD(0.5)
    state = opt.init([x, x])
    with pytest.raises(ValueError, match="the same memory twice"):
        opt.update([x, x], g, state, in_place=True)
    one, other = opt.update([x, x], g, state)[0]
    assert np.array_equal(backend.to_numpy(one), [0.5, 1.5])
    assert np.array_equal(backend.to_numpy(other), [0.0, 1.0])


def test_parts_of_one_array() -> None:
    whole = np.arange(6.0)
    params = [whole[:3], whole[3:]]
    opt = lx.SGD(1.0)
    opt.update(params, [np.ones(3), np.ones(3)], opt.init(params), in_place=True)
    assert np.array_equal(whole, np.arange(6.0) - 1.0)


@pytest.mark.parametrize("shape", [(1,), (3, 1)])
def test_broadcast_tensors_are_refused_in_place(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(shape).expand((*shape[:-1], 4))
    opt = lx.SGD(0.5)
    with pytest.raises(ValueError, match="cannot be overwritten"):
        opt.update(x, torch.ones(x.shape), opt.init(x), in_place=True)


def test_autograd_notices_an_update_in_place() -> None:
    torch = pytest.importorskip("torch")
    w = torch.ones(3, requires_grad=True)
    loss = (w**3).sum()
    opt = lx.Adam(0.1)
    opt.update(w, torch.ones(3), opt.init(w), in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_states_of_complex_parameters_can_be_pickled(backend: Backend) -> None:
    if backend.is_strict:
        pytest.skip("arrays of array-api-strict cannot be pickled")
    opt = lx.SGD(1.0, momentum=0.5, clip_norm=1.0)
    z, g = backend.asarray([3.0 + 1j, 4.0], "complex128"), backend.asarray([1j, 2.0], "complex128")
    state = opt.init(z)
    expected, _ = opt.update(z, g, state)
    found, _ = opt.update(z, g, pickle.loads(pickle.dumps(state)))
    assert np.array_equal(backend.to_numpy(found), backend.to_numpy(expected))


def test_norms_out_of_range() -> None:
    for dtype, size in (("float32", 1e30), ("float64", 1e200), ("float64", 1e-200)):
        x = np.zeros(2, dtype)
        g = np.asarray([3.0 * size, 4.0 * size], dtype)
        opt = lx.SGD(1.0, clip_norm=size)
        new, _ = opt.update(x, g, opt.init(x))
        np.testing.assert_allclose(new / size, [-0.6, -0.8], rtol=1e-6)


def test_clipping_wants_one_device() -> None:
    params = [Backend.STRICT.asarray([1.0]), Backend.STRICT_DEVICE.asarray([1.0])]
    opt = lx.Adam()
    opt.update(params, params, opt.init(params))
    with pytest.raises(ValueError, match="params is on devices"):
        lx.Adam(clip_norm=1.0).init(params)


def test_a_state_without_a_plateau() -> None:
    x = np.ones(2)
    state = lx.Adam(0.1).init(x)
    with pytest.raises(ValueError, match="another kind of learning rate"):
        lx.Adam(schedules.ReduceOnPlateau(0.1)).update(x, x, state)


def test_clipping_keeps_each_dtype(backend: Backend) -> None:
    """Leaves of several dtypes share one norm, and each keeps its own dtype."""
    opt = lx.SGD(1.0, clip_norm=1.0)
    params = {"a": backend.asarray([0.0], "float32"), "b": backend.asarray([0.0], "float64")}
    grads = {"a": backend.asarray([3.0], "float32"), "b": backend.asarray([4.0], "float64")}
    new, _ = opt.update(params, grads, opt.init(params))
    for name, wanted in (("a", -0.6), ("b", -0.8)):
        assert new[name].dtype == params[name].dtype
        np.testing.assert_allclose(backend.to_numpy(new[name]), [wanted], rtol=1e-6)
