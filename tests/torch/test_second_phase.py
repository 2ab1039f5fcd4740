"""`train_with_lbfgs`: another second method, points drawn anew, and callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

torch = pytest.importorskip("torch")
from lbfgs_xp.torch import train_with_lbfgs  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    ).double()


def points(k: int) -> Any:
    generator = torch.Generator().manual_seed(k)
    return torch.rand(30, 1, generator=generator, dtype=torch.float64) * 2.0 - 1.0


def residual(net: Any, x: Any) -> Any:
    return ((net(x) - torch.sin(3.0 * x)) ** 2).mean()


def numbers(net: Any) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()


@pytest.mark.parametrize("method", ["ssbroyden", lx.LBFGS(memory_size=7)])
def test_another_method_is_that_of_minimize_with_its_curvature_kept(method: Any) -> None:
    net, by_hand = model(), model()
    drawn: list[int] = []

    def resample(k: int) -> Any:
        drawn.append(k)
        return points(k)

    res = train_with_lbfgs(
        net, residual, adam_steps=0, max_epochs=4, max_iter=8, method=method, tol=0.0,
        resample=resample, resample_every=2,
    )
    assert drawn == [0, 1] and res.status is lx.Status.ITERATIONS
    params, state = list(by_hand.parameters()), None

    def loss_on(k: int) -> Any:
        def fun(x: Any) -> tuple[float, Any]:
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(x, params)
            value = residual(by_hand, points(k))
            gradients = torch.autograd.grad(value, params)
            return float(value.detach()), torch.cat([g.reshape(-1) for g in gradients])
        return fun

    x = torch.from_numpy(numbers(by_hand))
    for epoch in range(4):
        out = lx.minimize(
            loss_on(epoch // 2), x, jac=True, method=method, gtol=0.0, maxiter=8, state=state
        )
        x, state = out.x, out.state
    assert np.array_equal(numbers(net), x.numpy())
    assert res.loss == out.fun and res.lbfgs is not None and len(res.lbfgs.loss) == 5


def test_adam_draws_too_and_the_best_is_of_the_current_draw() -> None:
    net = model()
    seen: list[float] = []

    def loss(net: Any, x: Any) -> Any:
        if not seen or seen[-1] != float(x[0]):
            seen.append(float(x[0]))
        return residual(net, x)

    res = train_with_lbfgs(
        net, loss, adam_steps=25, max_epochs=2, max_iter=10, resample=points, tol=0.0,
    )
    # Ten, ten and five steps of Adam, then two epochs.
    assert seen == [float(points(k)[0]) for k in range(5)]
    assert res.loss == pytest.approx(float(residual(net, points(4)).detach()), rel=1e-12)


@pytest.mark.parametrize("method", [None, "ssbroyden"])
def test_a_run_that_goes_on_from_a_file_draws_the_same(
    method: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "adam_steps": 25, "max_epochs": 4, "max_iter": 10, "tol": 0.0, "resample": points,
        "resample_every": 2, "method": method,
    }
    whole = model()
    train_with_lbfgs(whole, residual, **settings)
    for stop in (1, 4):    # within Adam, and within the second phase
        path = os.fspath(tmp_path / f"{stop}.npz")
        calls = 0

        def callback(record: Any, stop: int = stop) -> bool:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return False

        net = model()
        train_with_lbfgs(
            net, residual, **settings, callback=callback, checkpoint=lx.Checkpoint(path, every=1)
        )
        again = model()
        train_with_lbfgs(again, residual, **settings, checkpoint=lx.Checkpoint(path, every=1))
        assert np.array_equal(numbers(again), numbers(whole))


def test_callbacks_follow_and_stop() -> None:
    records: list[Any] = []

    def callback(record: Any) -> bool:
        records.append(record)
        return len(records) == 4

    net = model()
    res = train_with_lbfgs(
        net, residual, points(0), adam_steps=25, max_epochs=9, max_iter=10, tol=0.0,
        callback=callback,
    )
    assert [(r.phase, r.epoch) for r in records] == [
        ("Adam", 10), ("Adam", 20), ("L-BFGS", 1), ("L-BFGS", 2)
    ]
    assert res.status is lx.Status.CALLBACK and not res.success
    assert records[-1].loss == res.loss and records[-1].gradient_norm > 0.0
    res = train_with_lbfgs(
        model(), residual, points(0), adam_steps=25, max_iter=10, callback=lambda record: True
    )
    assert res.status is lx.Status.CALLBACK and res.lbfgs is None
    assert res.adam is not None and len(res.adam.loss) == 10


@pytest.mark.parametrize(("more", "message"), [
    ({"resample": 3}, "resample is a int; wanted a function of the number"),
    ({"data": points(0), "resample": points}, "data and resample were both passed"),
    ({"data": points(0), "callback": 1}, "callback is a int; wanted a function"),
    ({"data": points(0), "method": "newton"}, "method is Newton.*needs no Hessian"),
    ({"resample": points, "resample_every": 0}, "resample_every is 0; wanted"),
])
def test_wrong_arguments(more: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        train_with_lbfgs(model(), residual, **more)
