"""A run of `lx.train` that was stopped anywhere goes on with the bits of one that was not."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(23, 3))
DATA = INPUTS, INPUTS @ np.asarray([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=23)
EPOCHS = 3
METHODS = [
    lx.SGD(0.05, momentum=0.9),
    lx.Adam(lx.schedules.ReduceOnPlateau(0.3, factor=0.5, patience=0)),
    lx.LBFGS(memory_size=3),
]
EVERY_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def quartic(p: np.ndarray, batch: Any) -> tuple[float, np.ndarray]:
    inputs, wanted = batch
    r = inputs @ p - wanted
    return float(np.mean(r**2 + 0.1 * r**4)), (2.0 * r + 0.4 * r**3) @ inputs / len(r)


def train(method: Any, updates_per_batch: int, before: Any = None, **more: Any) -> lx.TrainResult:
    """The run, or what is left of it after `before`."""
    settings: dict[str, Any] = {
        "jac": True, "method": method, "batch_size": 5, "seed": 1,
        "updates_per_batch": updates_per_batch,
    }
    if before is not None:
        more = {"state": before.state, "epochs": EPOCHS - before.epochs} | more
    start = np.zeros(3) if before is None else before.params
    return lx.train(more.pop("loss", quartic), start, DATA, **{"epochs": EPOCHS} | settings | more)


def stopped(call: Callable) -> Any:
    """The result of a call, or that attached to its exception; None if it had not begun."""
    try:
        return call()
    except (RuntimeError, MemoryError, KeyboardInterrupt) as error:
        return getattr(error, "result", None)


def check_joined(first: lx.TrainResult, second: lx.TrainResult, whole: lx.TrainResult) -> None:
    assert second.params.tobytes() == whole.params.tobytes()
    assert (second.epochs, second.updates) == (whole.epochs, whole.updates)
    for name in ("loss", "learning_rate", "epoch_loss"):
        parts = [getattr(res.history, name) for res in (first, second)]
        assert np.concatenate(parts).tobytes() == getattr(whole.history, name).tobytes()


@EVERY_METHOD
@pytest.mark.parametrize("updates_per_batch", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_at_every_call_of_the_loss(method: Any, updates_per_batch: int, error: Any) -> None:
    def run(last: int, before: Any = None) -> lx.TrainResult | None:
        loss = broken(last, error)
        return stopped(lambda: train(method, updates_per_batch, before, loss=loss))

    whole = train(method, updates_per_batch)
    for last in itertools.count(1, 3):
        first = run(last)
        if first is None:    # at the very first call of a solver
            continue
        if first.epochs == EPOCHS:
            break
        check_joined(first, train(method, updates_per_batch, first), whole)
        # A second stop, mostly on the same batch.
        second = run(2, first)
        if second is not None and second.epochs < EPOCHS:
            third = train(method, updates_per_batch, second)
            assert third.params.tobytes() == whole.params.tobytes()
    assert last > 12


def broken(last: int, error: Any) -> Callable:
    """The loss, with an error at one of its calls."""
    calls = itertools.count(1)

    def loss(p: Any, batch: Any) -> Any:
        if next(calls) == last:
            raise error
        return quartic(p, batch)

    return loss


def interrupted(call: Callable, last: int, error: Any) -> tuple[Any, int]:
    """What `stopped` returns if a call into the package, or its end, raises; and their number."""
    seen = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        if "lbfgs_xp" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        frame.f_trace_lines = False
        if event in ("call", "return"):
            seen += 1
            if seen == last:
                sys.settrace(None)
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return stopped(call), seen
    finally:
        sys.settrace(before)


def stops(method: Any, updates_per_batch: int, count: int) -> None:
    def run() -> lx.TrainResult:
        return train(method, updates_per_batch)

    whole, seen = interrupted(run, -1, None)
    chosen = random.Random(updates_per_batch)
    for _ in range(count):
        last = chosen.randrange(seen // 10, seen)
        for error in (MemoryError, KeyboardInterrupt):
            first, _ = interrupted(run, last, error)
            if first is not None and first.epochs < EPOCHS:
                check_joined(first, train(method, updates_per_batch, first), whole)


@EVERY_METHOD
@pytest.mark.parametrize("updates_per_batch", [1, 3])
def test_anywhere(method: Any, updates_per_batch: int) -> None:
    stops(method, updates_per_batch, 6)


@pytest.mark.thorough
@EVERY_METHOD
@pytest.mark.parametrize("updates_per_batch", [1, 3])
def test_anywhere_often(method: Any, updates_per_batch: int) -> None:
    stops(method, updates_per_batch, 300)


@pytest.mark.parametrize("steps", [7, 23, 60])
def test_a_solver_out_of_time(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch on which the time has run out is not done; the rest of it comes first."""
    whole = train("lbfgs", 8)
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    res, runs = None, 0
    while res is None or res.status is lx.Status.TIME:
        res = train("lbfgs", 8, res, maxtime=float(steps))
        runs += 1
    assert runs > 3 and res.status is lx.Status.EPOCHS
    assert res.params.tobytes() == whole.params.tobytes() and res.updates == whole.updates


def test_in_the_midst_of_an_update_in_place() -> None:
    class Fails(lx.SGD):
        def update_leaves(self, xs: Any, gs: Any, state: Any, **settings: Any) -> Any:
            if state.step == 7:
                xs[0][1] = 99.0
                raise MemoryError
            return super().update_leaves(xs, gs, state, **settings)

    Fails.__name__ = "SGD"    # by which a state is recognised
    first = stopped(lambda: train(Fails(0.1), 1))
    assert first.epochs == 1 and first.updates == 5
    assert train(lx.SGD(0.1), 1, first).params.tobytes() == train(lx.SGD(0.1), 1).params.tobytes()


def test_a_gradient_refused_keeps_what_was_done() -> None:
    def loss(p: Any, batch: Any) -> Any:
        value, gradient = quartic(p, batch)
        return value, gradient * np.nan if next(calls) == 8 else gradient

    calls = itertools.count(1)
    with pytest.raises(FloatingPointError) as caught:
        train(lx.SGD(0.1, on_nonfinite="raise"), 1, loss=loss)
    first = caught.value.result  # type: ignore[attr-defined]
    assert first.updates == 7
    whole = train(lx.SGD(0.1, on_nonfinite="raise"), 1)
    check_joined(first, train(lx.SGD(0.1, on_nonfinite="raise"), 1, first), whole)


@pytest.mark.parametrize(("change", "message"), [
    ({"epoch": -1}, r"state\.epoch is -1; wanted an integer of at least 0"),
    ({"updates": 2.5}, r"state\.updates is 2\.5; wanted an integer"),
    ({"seen": 3}, r"state\.seen is 3; wanted \(loss, rows, learning rate, metrics\)"),
    ({"seen": ((1.0, 5),)}, r"state\.seen is .*; wanted"),
    ({"begun": 3}, r"state\.begun is 3; wanted None or a BegunBatch"),
], ids=str)
def test_states_that_make_no_sense(change: dict, message: str) -> None:
    res = train("adam", 1)
    with pytest.raises((TypeError, ValueError), match=message):
        train("adam", 1, state=res.state._replace(**change))
