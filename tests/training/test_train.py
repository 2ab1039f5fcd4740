"""`lx.train`: batches, updates, results, and continued runs."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from tests.backends import Backend, watch_reads

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3))
Y = X @ np.asarray([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=23)
SOLUTION = np.linalg.lstsq(X, Y, rcond=None)[0]


def data_of(backend: Backend) -> tuple[Any, Any]:
    return backend.asarray(X), backend.asarray(Y)


def squares(p: Any, batch: Any) -> tuple[Any, Any]:
    """(value, gradient) of linear least squares."""
    inputs, wanted = batch
    r = inputs @ p - wanted
    return (r @ r) / r.shape[0], (2.0 / r.shape[0]) * (r @ inputs)


def order(seed: int, epoch: int, n: int = len(X)) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def indices(batch_size: int, epochs: int, seed: int = 0, n: int = len(X)) -> list[np.ndarray]:
    """The batches that a run should see."""
    found = []
    for epoch in range(epochs):
        each = order(seed, epoch, n)
        found += [each[i : i + batch_size] for i in range(0, n, batch_size)]
    return found


def same(a: Any, b: Any, backend: Backend) -> bool:
    return backend.to_numpy(a).tobytes() == backend.to_numpy(b).tobytes()


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [5, 23, 100, None])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_the_seed(
    backend: Backend, batch_size: int | None, shuffle: bool
) -> None:
    rows = np.stack([np.arange(23.0), np.arange(23.0) + 0.5], axis=1)
    seen: list[np.ndarray] = []

    def loss(p: Any, batch: Any) -> tuple[float, Any]:
        assert batch["x"].shape[0] == batch["more"]["label"].shape[0]
        seen.append(np.concatenate(
            [backend.to_numpy(batch["x"]), backend.to_numpy(batch["more"]["label"])[:, None]], 1
        ))
        return 0.0, p

    data = {
        "x": backend.asarray(rows),
        "more": {"label": backend.asarray(np.arange(23), dtype="int64")},
    }
    start = backend.asarray(np.ones(2))
    res = lx.train(
        loss, start, data, jac=True, batch_size=batch_size, epochs=2, seed=7, shuffle=shuffle
    )
    whole = batch_size is None or batch_size >= 23
    if whole or not shuffle:
        step = 23 if batch_size is None else batch_size
        wanted = 2 * [np.arange(i, min(i + step, 23)) for i in range(0, 23, step)]
    else:
        wanted = indices(batch_size or 0, 2, seed=7)
    assert len(seen) == len(wanted) == res.updates
    for batch, each in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(batch[:, :2], rows[each])
        np.testing.assert_array_equal(batch[:, 2], each)
    if not whole:
        assert [len(batch) for batch in seen] == 2 * [5, 5, 5, 5, 3]
        assert sorted(np.concatenate(seen[:5])[:, 0]) == list(range(23))
        if shuffle:
            assert any((a != b).any() for a, b in zip(seen[:5], seen[5:], strict=True))


def test_slices_without_shuffle_are_views() -> None:
    shared = []

    def loss(p: Any, batch: Any) -> tuple[float, Any]:
        shared.append(np.shares_memory(batch, X))
        return 0.0, p

    lx.train(loss, np.ones(1), X, jac=True, batch_size=4, shuffle=False)
    lx.train(loss, np.ones(1), X, jac=True)
    assert shared == 7 * [True]


def test_dataclasses_of_arrays() -> None:
    @dataclasses.dataclass
    class Points:
        x: Any
        y: Any

    def loss(p: Points, batch: Points) -> tuple[float, Points]:
        assert isinstance(batch, Points)
        r = p.x * batch.x + p.y - batch.y
        return np.mean(r * r), Points(2.0 * np.mean(r * batch.x), 2.0 * np.mean(r))

    start = Points(np.asarray(0.0), np.asarray(0.0))
    x = np.linspace(-1.0, 1.0, 20)
    res = lx.train(
        loss, start, Points(x, 3.0 * x - 1.0), jac=True, method=lx.SGD(0.2), batch_size=8,
        epochs=100,
    )
    assert isinstance(res.params, Points)
    np.testing.assert_allclose([res.params.x, res.params.y], [3.0, -1.0], rtol=1e-8)


def test_parameters_that_are_numpy_scalars() -> None:
    def loss(p: Any, batch: Any) -> tuple[Any, Any]:
        r = p["a"] * batch - 2.0
        return np.mean(r * r), {"a": 2.0 * np.mean(r * batch)}

    res = lx.train(
        loss, {"a": np.float64(0.0)}, np.ones(6), jac=True, method=lx.SGD(0.2), batch_size=2,
        epochs=20,
    )
    assert res.params["a"] == pytest.approx(2.0, rel=1e-9)


def test_batches_of_an_iterable() -> None:
    """They are passed unchanged and in order; the mean of an epoch weights them by their rows."""
    batches = [(X[:10], Y[:10]), (X[10:], Y[10:])]
    seen = []

    def loss(p: Any, batch: Any) -> Any:
        seen.append(any(batch is each for each in batches))
        return squares(p, batch)

    res = lx.train(loss, np.zeros(3), batches, jac=True, epochs=2, method=lx.SGD(0.0))
    assert seen == 4 * [True]
    assert res.history.epoch_loss == pytest.approx(2 * [np.mean(Y**2)], rel=1e-14)
    once = lx.train(loss, np.zeros(3), iter(batches), jac=True, method=lx.SGD(0.0))
    assert once.loss == res.loss

    words = lx.train(lambda p, word: (float(len(word)), p), np.ones(1), ["a", "bcd"], jac=True)
    assert words.loss == 2.0


def test_generators_serve_one_epoch() -> None:
    with pytest.raises(ValueError, match="data is a generator.*once.*epochs=2"):
        lx.train(squares, np.zeros(3), (b for b in [(X, Y)]), jac=True, epochs=2)


# --- updates -----------------------------------------------------------------------------------


def test_least_squares(backend: Backend) -> None:
    """The data lie on a plane, so that all batches have the same minimum."""
    exact = np.asarray([1.0, -2.0, 0.5])
    data = backend.asarray(X), backend.asarray(X @ exact)
    res = lx.train(
        squares, backend.asarray(np.zeros(3)), data, jac=True, method=lx.SGD(0.1), batch_size=5,
        epochs=80,
    )
    assert (res.status, res.success, res.epochs, res.updates) == (Status.EPOCHS, True, 80, 400)
    assert res.message == Status.EPOCHS.message
    np.testing.assert_allclose(backend.to_numpy(res.params), exact, rtol=1e-9)
    assert type(res.params) is type(backend.asarray(X))
    h = res.history
    assert (h.loss.shape, h.learning_rate.shape) == ((400,), (400,))
    assert (h.epoch_loss.shape, h.seconds.shape) == ((80,), (80,))
    assert set(h.learning_rate) == {0.1} and (h.seconds > 0.0).all()
    assert res.loss == h.epoch_loss[-1] < 1e-15 < h.epoch_loss[0]
    assert h.epoch_loss[0] == pytest.approx(h.loss[:5] @ [5, 5, 5, 5, 3] / 23, rel=1e-14)


@pytest.mark.parametrize("method", [lx.SGD(0.05, momentum=0.9, weight_decay=0.01), lx.Adam(0.01)])
def test_same_bits_on_every_library(backend: Backend, method: Any) -> None:
    def loss(p: Any, batch: Any) -> tuple[Any, Any]:
        inputs, wanted = batch
        r = p * inputs - wanted[:, None]
        share = 1.0 / r.shape[0]
        return (
            share * lx.fixed_sum(lx.fixed_sum(r * r)),
            share * lx.fixed_sum(2.0 * (r * inputs), axis=0),
        )

    def run(backend: Backend) -> lx.TrainResult:
        return lx.train(
            loss, backend.asarray(np.zeros(3)), data_of(backend), jac=True, method=method,
            batch_size=4, epochs=4, reproducible=True,
        )

    res, reference = run(backend), run(Backend.NUMPY)
    assert backend.to_numpy(res.params).tobytes() == reference.params.tobytes()
    assert res.history.loss.tobytes() == reference.history.loss.tobytes()
    assert res.history.epoch_loss.tobytes() == reference.history.epoch_loss.tobytes()


def test_the_loop_of_torch() -> None:
    torch = pytest.importorskip("torch")
    inputs, wanted = torch.asarray(X), torch.asarray(Y)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model.double()

    def loss(params: Any, batch: Any) -> Any:
        x, y = batch
        return ((torch.func.functional_call(model, params, (x,))[:, 0] - y) ** 2).mean()

    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    params = dict(model.named_parameters())
    res = lx.train(
        loss, params, (inputs, wanted), batch_size=4, epochs=5, seed=3,
        method=lx.Adam(lx.schedules.Exponential(0.05, 0.99)),
    )
    for name, p in params.items():
        assert torch.equal(p, start[name]) and p.grad is None and p.requires_grad
        assert not res.params[name].requires_grad

    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    losses = []
    for each in indices(4, 5, seed=3):
        each = torch.asarray(each)
        optimizer.zero_grad()
        value = loss(params, (inputs[each], wanted[each]))
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    for name, p in params.items():
        torch.testing.assert_close(res.params[name], p.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(res.history.loss, losses, rtol=1e-12)
    model.load_state_dict(res.params)


def test_a_data_loader_as_it_is() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    pairs = TensorDataset(torch.asarray(X), torch.asarray(Y))

    def loader() -> Any:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(pairs, batch_size=4, shuffle=True, generator=generator)

    def loss(p: Any, batch: Any) -> Any:
        x, y = batch
        return ((x @ p - y) ** 2).mean()

    start = torch.zeros(3, dtype=torch.float64)
    res = lx.train(loss, start, loader(), method=lx.SGD(0.1), epochs=3)

    p = start.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([p], lr=0.1)
    data = loader()
    for _ in range(3):
        for batch in data:
            optimizer.zero_grad()
            loss(p, batch).backward()
            optimizer.step()
    torch.testing.assert_close(res.params, p.detach(), rtol=1e-13, atol=0.0)
    assert res.updates == 18


@pytest.mark.parametrize("compile", [True, False])
def test_the_loop_of_optax(compile: bool) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    jnp = jax.numpy
    inputs, wanted = jnp.asarray(X), jnp.asarray(Y)
    start = {"w": jnp.asarray(RNG.normal(size=(3, 4))), "v": jnp.ones(4)}
    traces = []

    def loss(p: Any, batch: Any) -> Any:
        traces.append(1)
        x, y = batch
        return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - y) ** 2)

    res = lx.train(
        loss, start, (inputs, wanted), method=lx.Adam(0.05), batch_size=4, epochs=3,
        compile=compile,
    )
    # 23 rows in batches of 4 leave a shorter batch, for which another program is compiled.
    assert len(traces) == (2 if compile else 18)

    optimizer = optax.adam(0.05)
    p, state = start, optimizer.init(start)
    for each in indices(4, 3):
        gradient = jax.grad(loss)(p, (inputs[each], wanted[each]))
        step, state = optimizer.update(gradient, state, p)
        p = optax.apply_updates(p, step)
    for name in p:
        np.testing.assert_allclose(res.params[name], p[name], rtol=1e-12, atol=1e-14)


def test_a_loss_that_cannot_be_compiled() -> None:
    jax = pytest.importorskip("jax")

    def loss(p: Any, batch: Any) -> Any:
        x = jax.numpy.asarray(batch["x"])
        r = x @ p - batch["y"]
        return r @ r if float(r[0]) > 0.0 and batch["kind"] == "plain" else 0.5 * (r @ r)

    start, batch = jax.numpy.zeros(3), {"x": X, "y": Y, "kind": "plain"}
    with pytest.raises(TypeError) as caught:
        lx.train(loss, start, [batch])
    assert any("compile=False" in note for note in caught.value.__notes__)
    eager = lx.train(lambda p, b: jax.numpy.mean((b["x"] @ p - b["y"]) ** 2), start, [batch],
                     compile=False)
    assert eager.success


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_automatic_gradients_of_nested_complex_parameters(name: str) -> None:
    backend = Backend(name)
    xp = backend.xp
    rng = np.random.default_rng(1)
    A = rng.normal(size=(12, 2)) + 1j * rng.normal(size=(12, 2))
    z, c = np.asarray([1.0 - 2.0j, 0.5j]), 0.7
    wanted = A @ z + c

    def loss(p: Any, batch: Any) -> Any:
        a, b = batch
        r = a @ p["z"] + p["rest"][0] - b
        return xp.mean(xp.real(r) ** 2 + xp.imag(r) ** 2)

    start = {
        "z": backend.asarray(np.zeros(2), dtype="complex128"),
        "rest": [backend.asarray(0.0), backend.asarray(np.ones(2))],  # the last is unused
    }
    data = backend.asarray(A, dtype="complex128"), backend.asarray(wanted, dtype="complex128")
    res = lx.train(loss, start, data, method=lx.SGD(0.1), batch_size=4, epochs=150)
    np.testing.assert_allclose(backend.to_numpy(res.params["z"]), z, rtol=1e-8)
    np.testing.assert_allclose(backend.to_numpy(res.params["rest"][0]), c, rtol=1e-8)
    np.testing.assert_array_equal(backend.to_numpy(res.params["rest"][1]), 1.0)


def test_the_parameters_given_stay_as_they_are(backend: Backend) -> None:
    start = {"p": backend.asarray([1.0, 2.0, 3.0]), "z": backend.asarray([1j], "complex128")}

    def loss(params: Any, batch: Any) -> tuple[Any, Any]:
        value, gradient = squares(params["p"], batch)
        return value, {"p": gradient, "z": params["z"]}

    seen: list[Any] = []
    res = lx.train(
        loss, start, data_of(backend), jac=True, method=lx.Adam(0.1), batch_size=5, epochs=3,
        callback=[seen.append, lambda record: overwrite(record.params["p"])],
    )
    np.testing.assert_array_equal(backend.to_numpy(start["p"]), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(backend.to_numpy(start["z"]), [1j])
    alone = lx.train(
        loss, start, data_of(backend), jac=True, method=lx.Adam(0.1), batch_size=5, epochs=3
    )
    assert same(res.params["p"], alone.params["p"], backend)
    assert same(res.params["z"], alone.params["z"], backend)
    assert len({id(record.params["z"]) for record in seen}) == 3


def overwrite(array: Any) -> None:
    if hasattr(type(array), "__setitem__") and "jax" not in type(array).__module__:
        array[...] = 99.0


def test_gradients_in_the_memory_of_parameters(backend: Backend) -> None:
    """The gradient of a·b is (b, a): the very arrays that an in-place update overwrites."""
    start = {"a": backend.asarray([1.0, 2.0]), "b": backend.asarray([3.0, -1.0])}

    def run(gradient: Callable) -> Any:
        return lx.train(
            lambda p, batch: p["a"] @ p["b"], start, backend.asarray(np.ones(6)), jac=gradient,
            batch_size=1, method=lx.SGD(0.1, momentum=0.5, weight_decay=0.1),
        ).params

    shared = run(lambda p, batch: {"a": p["b"][:], "b": p["a"]})
    apart = run(lambda p, batch: {"a": 1.0 * p["b"], "b": 1.0 * p["a"]})
    assert same(shared["a"], apart["a"], backend) and same(shared["b"], apart["b"], backend)


def test_several_updates_on_a_batch() -> None:
    batches = [(X[:10], Y[:10]), (X[10:], Y[10:])]
    res = lx.train(
        squares, np.zeros(3), batches, jac=True, method=lx.SGD(0.1), updates_per_batch=2
    )
    each = [b for batch in batches for b in (batch, batch)]
    single = lx.train(squares, np.zeros(3), each, jac=True, method=lx.SGD(0.1))
    assert res.params.tobytes() == single.params.tobytes() and res.updates == 4
    assert (res.history.loss == single.history.loss[::2]).all()


def test_a_plateau_is_told_the_mean_of_each_epoch() -> None:
    torch = pytest.importorskip("torch")
    inputs, wanted = torch.asarray(X), torch.asarray(Y)

    def loss(p: Any, batch: Any) -> Any:
        return ((batch[0] @ p - batch[1]) ** 2).mean()

    plateau = lx.schedules.ReduceOnPlateau(0.3, factor=0.5, patience=1)
    start = torch.zeros(3, dtype=torch.float64)
    res = lx.train(loss, start, (inputs, wanted), method=lx.SGD(plateau), batch_size=4, epochs=25)

    p = start.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([p], lr=0.3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    rates, batches = [], iter(indices(4, 25))
    for _ in range(25):
        total = 0.0
        for _ in range(6):
            each = torch.asarray(next(batches))
            optimizer.zero_grad()
            value = loss(p, (inputs[each], wanted[each]))
            value.backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            total += value.item() * len(each)
        schedule.step(total / len(X))
    assert len(set(rates)) > 3
    np.testing.assert_allclose(res.history.learning_rate, rates, rtol=1e-15)
    torch.testing.assert_close(res.params, p.detach(), rtol=1e-12, atol=0.0)


# --- solvers -----------------------------------------------------------------------------------


def test_lbfgs_on_all_rows_is_minimize(backend: Backend) -> None:
    def loss(p: Any, batch: Any) -> tuple[Any, Any]:
        u, v = batch[0] * p["u"], batch[1] * p["v"]
        gradient = {"u": batch[0] * (4.0 * u**3 + v), "v": batch[1] * (2.0 * v + u)}
        return backend.xp.sum(u**4 + v**2 + u * v), gradient

    start = {"u": backend.asarray([0.3, 2.0]), "v": backend.asarray([-1.0, 0.5])}
    data = backend.asarray([1.0, 2.0]), backend.asarray([3.0, 0.5])
    res = lx.train(
        loss, start, data, jac=True, method=lx.LBFGS(memory_size=4), epochs=10
    )
    whole = lx.minimize(
        loss, start, (data,), jac=True, method=lx.LBFGS(memory_size=4), maxiter=10, gtol=0.0
    )
    assert whole.nit == res.updates == 10
    assert same(res.params["u"], whole.x["u"], backend)
    assert same(res.params["v"], whole.x["v"], backend)


def test_lbfgs_on_batches_keeps_its_curvature() -> None:
    res = lx.train(
        squares, np.zeros(3), (X, Y), jac=True, method="lbfgs", batch_size=12, epochs=2,
        updates_per_batch=2,
    )
    p, state, losses, steps = np.zeros(3), None, [], []
    for each in indices(12, 2):
        batch = X[each], Y[each]
        losses.append(squares(p, batch)[0])
        part = lx.minimize(squares, p, (batch,), jac=True, maxiter=2, gtol=0.0, state=state)
        p, state = part.x, part.state
        steps.append(state.solver_state.step)
    assert res.params.tobytes() == p.tobytes() and res.updates == 8
    assert list(res.history.loss) == losses and list(res.history.learning_rate) == steps
    assert res.state.memory.solver_state.pairs.count == 8  # one batch alone gives only two


@pytest.mark.parametrize(
    "method", ["projected_gradient", lx.GradientDescent(line_search="bisection")], ids=str
)
def test_other_solvers(method: Any) -> None:
    res = lx.train(
        squares, np.zeros(3), (X, Y), jac=True, method=method, epochs=3, updates_per_batch=30
    )
    np.testing.assert_allclose(res.params, SOLUTION, rtol=1e-5)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_lbfgs_with_automatic_gradients(name: str) -> None:
    backend = Backend(name)
    res = lx.train(
        lambda p, batch: ((batch[0] @ p - batch[1]) ** 2).mean(),
        backend.asarray(np.zeros(3)), data_of(backend), method="lbfgs", updates_per_batch=20,
    )
    np.testing.assert_allclose(backend.to_numpy(res.params), SOLUTION, rtol=1e-7)


# --- how a run ends, and continues -------------------------------------------------------------


METHODS = [
    lx.SGD(0.05, momentum=0.9),
    lx.Adam(lx.schedules.ReduceOnPlateau(0.3, factor=0.5, patience=0)),
    lx.LBFGS(memory_size=3),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_going_on_is_not_stopping(backend: Backend, method: Any) -> None:
    start, data = backend.asarray(np.zeros(3)), data_of(backend)
    settings: dict[str, Any] = {"jac": True, "method": method, "batch_size": 5, "seed": 1}
    whole = lx.train(squares, start, data, epochs=5, **settings)
    first = lx.train(squares, start, data, epochs=2, **settings)
    # A state can be used for more than one run.
    for _ in range(2):
        second = lx.train(squares, first.params, data, epochs=3, state=first.state, **settings)
        assert (second.epochs, second.updates) == (5, whole.updates)
        assert same(second.params, whole.params, backend)
        joined = np.concatenate([first.history.loss, second.history.loss])
        assert joined.tobytes() == whole.history.loss.tobytes()


def test_every_call_gets_the_parameters_in_the_same_order() -> None:
    """A product of matrices rounds differently if one of them is stored by columns, so a run that
    goes on would end at other bits."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 64)), rng.normal(size=(300, 10))
    orders = []

    def loss(w: Any, batch: Any) -> Any:
        orders.append(w.flags.c_contiguous)
        X, y = batch
        r = X @ w - y
        return np.sum(r * r), 2.0 * X.T @ r

    settings: dict[str, Any] = {"jac": True, "method": lx.Adam(0.01), "batch_size": 64}
    for start in (np.zeros((64, 10)), np.zeros((64, 10), order="F")):
        whole = lx.train(loss, start, (X, y), epochs=5, **settings)
        first = lx.train(loss, start, (X, y), epochs=2, **settings)
        second = lx.train(loss, first.params, (X, y), epochs=3, state=first.state, **settings)
        assert second.params.tobytes() == whole.params.tobytes()
    assert all(orders)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_going_on_in_the_midst_of_an_epoch(backend: Backend, method: Any) -> None:
    start, data = backend.asarray(np.zeros(3)), data_of(backend)
    settings: dict[str, Any] = {"jac": True, "method": method, "batch_size": 5, "epochs": 3}
    calls = 0

    def fails(p: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("out of data")
        return squares(p, batch)

    whole = lx.train(squares, start, data, **settings)
    with pytest.raises(RuntimeError, match="out of data") as caught:
        lx.train(fails, start, data, **settings)
    first = caught.value.result  # type: ignore[attr-defined]
    (note,) = caught.value.__notes__
    assert f"after {first.updates} updates" in note
    assert first.status is Status.RUNNING and not first.success
    second = lx.train(
        squares, first.params, data, **(settings | {"epochs": 3 - first.epochs}), state=first.state
    )
    assert same(second.params, whole.params, backend)
    joined = np.concatenate([first.history.epoch_loss, second.history.epoch_loss])
    assert joined.tobytes() == whole.history.epoch_loss.tobytes()


def test_a_state_can_be_pickled() -> None:
    first = lx.train(squares, np.zeros(3), (X, Y), jac=True, batch_size=5)
    state = pickle.loads(pickle.dumps(first.state))
    a, b = (
        lx.train(squares, first.params, (X, Y), jac=True, batch_size=5, state=s)
        for s in (state, first.state)
    )
    assert a.params.tobytes() == b.params.tobytes()


def test_callbacks_see_each_epoch_and_stop_the_run() -> None:
    seen: list[lx.TrainRecord] = []

    def stop(record: lx.TrainRecord) -> Any:
        return np.bool_(record.epoch == 3)

    res = lx.train(
        squares, np.zeros(3), (X, Y), jac=True, batch_size=5, epochs=9, callback=[stop, seen.append]
    )
    assert (res.status, res.success, res.epochs) == (Status.CALLBACK, False, 3)
    assert [record.epoch for record in seen] == [1, 2, 3]
    assert [record.updates for record in seen] == [5, 10, 15]
    assert [record.loss for record in seen] == list(res.history.epoch_loss)
    assert {record.learning_rate for record in seen} == {1e-3}
    assert (seen[-1].params == res.params).all()
    last = lx.train(squares, np.zeros(3), (X, Y), jac=True, callback=lambda record: True)
    assert last.status is Status.EPOCHS


def test_a_budget_of_seconds() -> None:
    res = lx.train(squares, np.zeros(3), (X, Y), jac=True, maxtime=0)
    assert (res.status, res.updates, res.epochs) == (Status.TIME, 0, 0)
    assert math.isnan(res.loss) and len(res.history.loss) == 0
    assert (res.params == 0.0).all()


def test_a_run_that_is_not_finite_and_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses on a device are read only at the end, but even then they are checked."""
    clock = iter(range(100))
    monkeypatch.setattr("lbfgs_xp.training.run.time.perf_counter", lambda: float(next(clock)))
    device = Backend.STRICT_DEVICE
    start, data = device.asarray(np.zeros(3)), data_of(device)
    res = lx.train(
        lambda p, batch: (math.nan * p[0], p), start, data, jac=True, batch_size=5, maxtime=4.5
    )
    assert res.status is Status.DIVERGED and len(res.history.loss) == 1
    assert same(res.params, start, device)


def test_interrupted_between_updates(backend: Backend) -> None:
    calls = 0

    def loss(p: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return squares(p, batch)

    start, data = backend.asarray(np.zeros(3)), data_of(backend)
    settings: dict[str, Any] = {"jac": True, "method": lx.SGD(0.1, momentum=0.5), "batch_size": 5}
    res = lx.train(loss, start, data, epochs=3, **settings)
    assert (res.status, res.success) == (Status.INTERRUPTED, False)
    assert (res.updates, res.epochs, len(res.history.loss)) == (7, 1, 7)
    second = lx.train(squares, res.params, data, epochs=2, state=res.state, **settings)
    whole = lx.train(squares, start, data, epochs=3, **settings)
    assert same(second.params, whole.params, backend)


def test_interrupted_in_the_midst_of_an_update(backend: Backend) -> None:
    """Half-written arrays are not returned: the run goes back to the start of the epoch."""

    class Interrupted(lx.SGD):
        def update_leaves(self, xs: Any, gs: Any, state: Any, **settings: Any) -> Any:
            after = super().update_leaves(xs, gs, state, **settings)
            if state.step == 7:
                raise KeyboardInterrupt
            return after

    start, data = backend.asarray(np.zeros(3)), data_of(backend)
    settings: dict[str, Any] = {"jac": True, "batch_size": 5}
    res = lx.train(squares, start, data, method=Interrupted(0.1), epochs=3, **settings)
    one = lx.train(squares, start, data, method=lx.SGD(0.1), **settings)
    assert (res.status, res.epochs, res.updates) == (Status.INTERRUPTED, 1, 5)
    assert same(res.params, one.params, backend)


def test_interrupted_within_a_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = lx.LBFGS.step, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(lx.LBFGS, "step", interrupted)
    res = lx.train(squares, np.zeros(3), (X, Y), jac=True, method="lbfgs", epochs=20)
    assert res.status is Status.INTERRUPTED and 0 < res.epochs < 20


@pytest.mark.parametrize("what", ["loss", "gradient", "last gradient"])
@pytest.mark.parametrize("kind", ["SGD", "LBFGS"])
def test_what_is_not_finite_ends_the_run(backend: Backend, what: str, kind: str) -> None:
    """In the second epoch, at the third of five batches or at the last."""
    method = lx.SGD(0.05, momentum=0.5) if kind == "SGD" else lx.LBFGS()
    start, data = backend.asarray(np.zeros(3)), data_of(backend)
    settings: dict[str, Any] = {"jac": True, "method": method, "batch_size": 5}
    one = lx.train(squares, start, data, **settings)
    batches = 0
    last = None

    def loss(p: Any, batch: Any) -> Any:
        nonlocal batches, last
        batches += batch[1] is not last
        last = batch[1]
        value, gradient = squares(p, batch)
        if batches >= (10 if what == "last gradient" else 8):
            return (value * math.nan, gradient) if what == "loss" else (value, gradient * math.nan)
        return value, gradient

    res = lx.train(loss, start, data, epochs=4, **settings)
    assert (res.status, res.success, res.epochs) == (Status.DIVERGED, False, 1)
    assert "not finite" in res.message
    assert same(res.params, one.params, backend)
    assert res.updates == one.updates and res.loss == one.loss
    seen = res.history.loss
    assert np.isfinite(seen[:-1]).all()
    # The loss itself was finite before the last update.
    assert np.isfinite(seen[-1]) == (what == "last gradient" and kind == "SGD")
    # A gentler run can start from the state.
    if kind == "SGD":
        settings["method"] = lx.SGD(0.01, momentum=0.5)
    assert lx.train(squares, res.params, data, state=res.state, **settings).success


def test_batches_that_are_not_finite_can_be_skipped(backend: Backend) -> None:
    start = backend.asarray(np.zeros(3))
    broken = X.copy()
    broken[:4] = math.nan
    data = backend.asarray(broken), backend.asarray(Y)
    settings: dict[str, Any] = {"jac": True, "batch_size": 4, "shuffle": False, "epochs": 2}
    res = lx.train(squares, start, data, method=lx.SGD(0.1, on_nonfinite="skip"), **settings)
    assert res.success and res.updates == 10
    assert np.isnan(res.history.loss[[0, 6]]).all() and np.isfinite(res.history.epoch_loss).all()
    rest = backend.asarray(X[4:]), backend.asarray(Y[4:])
    assert same(
        res.params, lx.train(squares, start, rest, method=lx.SGD(0.1), **settings).params, backend
    )
    with pytest.raises(FloatingPointError) as caught:
        lx.train(squares, start, data, method=lx.SGD(0.1, on_nonfinite="raise"), **settings)
    assert caught.value.result.updates == 0  # type: ignore[attr-defined]


def test_a_learning_rate_that_is_too_large() -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        res = lx.train(squares, np.zeros(3), (X, Y), jac=True, method=lx.SGD(1e3), epochs=500)
    assert res.status is Status.DIVERGED and np.isfinite(res.params).all()
    assert len(res.history.loss) == res.updates + 1


def test_losses_are_read_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Backend.STRICT_DEVICE
    shapes = watch_reads(device, monkeypatch)
    res = lx.train(
        squares, device.asarray(np.zeros(3)), data_of(device), jac=True, batch_size=5, epochs=4
    )
    # In each epoch, the five losses and the largest component of the parameters.
    assert res.updates == 20 and shapes == 4 * [(6,)]


def test_progress_shows_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    res = lx.train(squares, np.zeros(3), (X, Y), jac=True, epochs=2, progress=True)
    out = capsys.readouterr().out
    assert "epoch 2" in out and f"loss {res.loss:.9g}" in out
    assert "EPOCHS" in repr(res) and "2 batches and 2 epochs" in repr(res)


# --- invalid arguments -------------------------------------------------------------------------


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"loss": 1.0}, TypeError, "loss is a float; wanted a function"),
    ({"params": [1.0]}, TypeError, "params holds a float at params.0; wanted arrays"),
    ({"params": {}}, ValueError, "params holds no arrays"),
    ({"jac": None}, ValueError, "numpy has no automatic differentiation: give jac="),
    ({"jac": "2-point"}, ValueError, "jac is '2-point'; wanted None"),
    ({"method": "adm"}, ValueError, "method is 'adm'; wanted one of .*'lbfgs'.*'adam'"),
    ({"method": "newton"}, ValueError, r"method is Newton\(.*; wanted one that needs no Hessian"),
    ({"method": lx.Adam}, TypeError, "method is <class.*Adam'>; wanted"),
    ({"method": 3}, TypeError, "method is 3; wanted"),
    ({"batch_size": 0}, ValueError, "batch_size is 0; wanted an integer of at least 1"),
    ({"batch_size": 2.5}, ValueError, r"batch_size is 2\.5; wanted an integer of .*1, or None"),
    ({"epochs": float("inf")}, ValueError, "epochs is inf; wanted an integer of at least 1"),
    ({"batch_size": True}, ValueError, "batch_size is True; wanted an integer"),
    ({"epochs": 0}, ValueError, "epochs is 0; wanted an integer of at least 1"),
    ({"seed": -1}, ValueError, "seed is -1; wanted an integer of at least 0"),
    ({"updates_per_batch": 0}, ValueError, "updates_per_batch is 0; wanted"),
    ({"shuffle": 1}, TypeError, "shuffle is 1; wanted True or False"),
    ({"maxtime": -1.0}, ValueError, r"maxtime is -1\.0; wanted a number of seconds"),
    ({"callback": 3}, TypeError, "callback is a int; wanted a function"),
    ({"callback": [print, "b"]}, TypeError, "callback is a str; wanted a function"),
    ({"state": 3}, TypeError, "state is a int; wanted the `state` of a TrainResult"),
    ({"data": 3}, TypeError, "data is a int; wanted an array"),
    ({"data": "rows"}, TypeError, "data is a str; wanted an array"),
    ({"data": ()}, ValueError, r"data is \(\); wanted at least one array"),
    ({"data": (X, [1.0])}, TypeError, "data holds a float; wanted arrays"),
    ({"data": (X, Y[:-1])}, ValueError, r"shapes \[\(23, 3\), \(22,\)\]; wanted the same number"),
    ({"data": X[:0]}, ValueError, "at least one row"),
    ({"data": (X, np.asarray(1.0))}, ValueError, "data holds a 0-d array; wanted arrays with a"),
    ({"data": []}, ValueError, "data, a list, gave no batch in epoch 0"),
    ({"data": [X], "batch_size": 2}, ValueError, "batch_size is 2, but data, a list, gives"),
]


def test_counts_may_be_whole_floats() -> None:
    how: dict[str, Any] = {"jac": True, "method": lx.SGD(0.1)}
    res = lx.train(squares, np.zeros(3), (X, Y), epochs=2.0, batch_size=5.0, seed=1.0, **how)
    same = lx.train(squares, np.zeros(3), (X, Y), epochs=2, batch_size=5, seed=1, **how)
    assert res.updates == same.updates == 10 and np.array_equal(res.params, same.params)


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda v: str(v)[:30])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "loss": squares, "params": np.zeros(3), "data": (X, Y), "jac": True, "epochs": 1
    }
    given |= change
    with pytest.raises(error, match=message):
        lx.train(given.pop("loss"), given.pop("params"), given.pop("data"), **given)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (1.0, TypeError, r"loss returned a float; wanted, with jac=True, the pair"),
        ((np.ones(2), np.ones(3)), ValueError, r"loss returned an array of shape \(2,\); wanted"),
        (("low", np.ones(3)), TypeError, "loss returned a str; wanted a real number"),
        ((np.asarray(1j), np.ones(3)), TypeError, "loss returned dtype complex128; wanted"),
        ((1.0, np.ones(2)), ValueError, r"grads is float64 \(2,\); wanted float64 \(3,\)"),
    ],
)
def test_bad_losses(out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lx.train(lambda p, batch: out, np.zeros(3), X, jac=True)


def test_data_and_parameters_of_different_libraries() -> None:
    torch = pytest.importorskip("torch")
    start = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(TypeError, match="data holds an array of numpy; wanted torch, like params"):
        lx.train(squares, start, (X, Y))
    strict = Backend.STRICT, Backend.STRICT_DEVICE
    with pytest.raises(ValueError, match="data is on device .*; wanted .*device1"):
        lx.train(squares, strict[1].asarray(X[0]), strict[0].asarray(X), jac=True)
    with pytest.raises(TypeError, match="does not depend on params"):
        lx.train(lambda p, batch: torch.zeros(()), start, [0])
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="train was called under torch.inference_mode"),
    ):
        lx.train(lambda p, batch: p.sum(), start, [0])


def test_states_of_another_method() -> None:
    res = lx.train(squares, np.zeros(3), (X, Y), jac=True)
    with pytest.raises(ValueError, match="state comes from .* another kind .* a state of LBFGS"):
        lx.train(squares, res.params, (X, Y), jac=True, method="lbfgs", state=res.state)
    with pytest.raises(ValueError, match="state belongs to Adam .*; wanted a state of SGD"):
        lx.train(squares, res.params, (X, Y), jac=True, method="sgd", state=res.state)


# --- mistakes of newcomers ---------------------------------------------------------------------


def test_a_module_with_parameters_of_its_own() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1)
    x, y = torch.ones(4, 2), torch.ones(4, 1)
    with pytest.raises(TypeError, match="functional_call"):
        lx.train(
            lambda p, b: ((module(b[0]) - b[1]) ** 2).mean(),
            dict(module.named_parameters()),
            (x, y),
        )


def test_a_record_can_be_gone_on_from() -> None:
    states = []

    def loss(p: np.ndarray, batch: np.ndarray) -> tuple[float, np.ndarray]:
        return float(np.mean((p - batch) ** 2)), 2.0 * (p - batch.mean(keepdims=True))

    data = np.linspace(0.0, 1.0, 12)
    how: dict = {"jac": True, "method": lx.Adam(0.1), "batch_size": 5}
    whole = lx.train(
        loss, np.zeros(1), data, epochs=6,
        callback=lambda record: states.append((record.params, record.state)), **how,
    )
    params, state = states[2]
    rest = lx.train(loss, params, data, epochs=3, state=state, **how)
    assert np.array_equal(rest.params, whole.params) and rest.epochs == 6


def test_values_that_lie_in_the_parameters(backend: Backend) -> None:
    if backend is Backend.NUMPY_READONLY:
        pytest.skip("the same as NumPy")

    def loss(p: Any, batch: Any) -> tuple[Any, Any]:
        return p[0], backend.asarray([1.0, 0.0])

    res = lx.train(
        loss, backend.asarray([0.0, 0.0]), backend.asarray(np.zeros((4, 1))), jac=True,
        method=lx.SGD(1.0), batch_size=1,
    )
    assert res.history.loss.tolist() == [0.0, -1.0, -2.0, -3.0]


def test_another_batch_size_in_the_middle_of_an_epoch() -> None:
    calls = []

    def loss(p: np.ndarray, batch: np.ndarray) -> tuple[float, np.ndarray]:
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(p @ p), 2.0 * p

    data = np.zeros((10, 1))
    how: dict = {"jac": True, "method": lx.SGD(0.1)}
    res = lx.train(loss, np.ones(1), data, batch_size=2, **how)
    assert res.status is lx.Status.INTERRUPTED
    for size in (None, 5):
        with pytest.raises(ValueError, match="wanted the same data and batch_size"):
            lx.train(loss, res.params, data, batch_size=size, state=res.state, **how)
    rest = lx.train(loss, res.params, data, batch_size=2, state=res.state, **how)
    assert rest.updates == 5


def test_skipping_everything_is_no_success() -> None:
    res = lx.train(
        lambda p, b: (np.nan, p * np.nan), np.ones(2), np.zeros((4, 1)), jac=True,
        method=lx.SGD(0.1, on_nonfinite="skip"), batch_size=2,
    )
    assert res.status is lx.Status.DIVERGED and np.array_equal(res.params, np.ones(2))
