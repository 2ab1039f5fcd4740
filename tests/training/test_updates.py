"""`lx.train` with many updates in one compiled program."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.training import run
from lbfgs_xp.training.run import TrainingRun
from lbfgs_xp.training.updates import Updates

jax = pytest.importorskip("jax")
jnp = jax.numpy

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(23, 3))
WANTED = INPUTS @ np.asarray([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=23)
DATA = {"x": jnp.asarray(INPUTS), "y": jnp.asarray(WANTED)}
START = {"w": jnp.zeros(3), "b": jnp.asarray(0.5, dtype=jnp.float32)}


def loss(p: Any, batch: Any) -> Any:
    r = batch["x"] @ p["w"] + p["b"] - batch["y"]
    return jnp.mean(r**2 + 0.1 * r**4)


def train(method: Any = None, **how: Any) -> lx.TrainResult:
    method = lx.SGD(0.05, momentum=0.5) if method is None else method
    start = how.pop("start", START)
    return lx.train(how.pop("loss", loss), start, how.pop("data", DATA), method=method, **how)


def check_same(one: lx.TrainResult, other: lx.TrainResult, rtol: float = 1e-6) -> None:
    """The same run up to rounding (one of the parameters is float32)."""
    for name in ("status", "epochs", "updates", "best_epoch"):
        assert getattr(one, name) == getattr(other, name)
    trees = [(r.params, r.average, r.best_params) for r in (one, other)]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)
    for name in ("loss", "learning_rate", "epoch_loss", "validation"):
        a, b = (getattr(r.history, name) for r in (one, other))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def check_bits(one: lx.TrainResult, other: lx.TrainResult) -> None:
    for a, b in zip(*(jax.tree.leaves((r.params, r.average)) for r in (one, other)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(("method", "how"), [
    (None, {"batch_size": 5}),
    (lx.AdamW(lx.schedules.Cosine(0.05, steps=20), weight_decay=0.1, clip_norm=0.5,
              labels=lambda path: path, groups={"b": {"learning_rate": 0.01}}),
     {"batch_size": 5, "updates_per_batch": 2, "average_decay": 0.9}),
    (lx.NAdam(0.05), {"batch_size": 4, "shuffle": False, "maxtime": 1e3}),
    (lx.Adam(lx.schedules.ReduceOnPlateau(0.3, factor=0.5, patience=0)), {"epochs": 9}),
    (lx.SGD(0.05), {"batch_size": 23, "average_decay": 0.5, "progress": True}),
    (lx.Adam(0.05), {"batch_size": 6, "validate": lambda p: abs(float(p["b"]) - 0.3),
                     "callback": lambda record: record.epoch == 3}),
], ids=["rest", "groups", "slices", "plateau", "whole", "validated"])
def test_the_same_as_batch_by_batch(method: Any, how: dict[str, Any]) -> None:
    how = {"epochs": 4, "seed": 2} | how
    check_same(train(method, **how), train(method, compile=False, **how))


def test_calls_of_any_length_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says, and wherever a run is stopped; by one program."""
    traces = []

    def traced(p: Any, batch: Any) -> Any:
        traces.append(1)
        return loss(p, batch)

    how: dict[str, Any] = {
        "loss": traced, "batch_size": 5, "updates_per_batch": 3, "average_decay": 0.9, "epochs": 8,
    }
    whole = train(**how)
    made = []
    call = Updates.__call__

    def watched(self: Any, *arguments: Any) -> Any:
        made.append(arguments[5])
        return call(self, *arguments)

    monkeypatch.setattr(Updates, "__call__", watched)
    for most in (1, 4, 40, 100):
        made.clear()
        monkeypatch.setattr("lbfgs_xp.training.run.Chunk.within", lambda self, left, n=most: n)
        # 15 updates an epoch: parts of an epoch, or whole epochs.
        wanted = {1: [1], 4: [4, 3], 40: [30], 100: [90, 30]}[most]
        check_bits(train(**how), whole)
        assert sum(made) == 120 and sorted(set(made)) == sorted(wanted)
        first = train(**how | {"epochs": 3})
        second = train(start=first.params, state=first.state, **how | {"epochs": 5})
        check_bits(second, whole)
        joined = np.concatenate([first.history.loss, second.history.loss])
        assert joined.tobytes() == whole.history.loss.tobytes()
    assert len(traces) == 2    # a whole batch, and the shorter one

    # Stopped within an epoch, and within a batch.
    ticks = itertools.count()
    monkeypatch.setattr("lbfgs_xp.training.run.Chunk.within", lambda self, left: 4)
    monkeypatch.setattr("lbfgs_xp.training.run.time.perf_counter", lambda: 0.1 * next(ticks))
    res, runs = None, 0
    while res is None or res.status is Status.TIME:
        more: dict[str, Any] = {} if res is None else {
            "start": res.params, "state": res.state, "epochs": 8 - res.epochs,
        }
        res, runs = train(maxtime=1.5, **how | more), runs + 1
    assert runs > 3
    check_bits(res, whole)


@pytest.mark.parametrize("spans", [True, False])
def test_a_run_that_is_not_finite(spans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the epoch in which this happened, with the parameters at its start."""
    monkeypatch.setattr("lbfgs_xp.training.run.Chunk.within", lambda self, left: 1000)
    big = START | {"w": jnp.full(3, 1e6)}

    def diverging(**how: Any) -> lx.TrainResult:
        more = {} if spans else {"callback": lambda record: False}
        return train(lx.SGD(lambda step: 1e-15 if step < 15 else 1.0), start=big, batch_size=5,
                     epochs=60, **more, **how)

    res, each = diverging(), diverging(compile=False)
    assert res.status is Status.DIVERGED and res.epochs == 3
    assert math.isfinite(res.history.loss[-2]) and not math.isfinite(res.history.loss[-1])
    check_same(res, each)
    assert res.updates == 15 and len(res.history.loss) > 15


def test_an_exception_of_a_schedule_comes_at_its_step() -> None:
    def rate(step: int) -> float:
        if step == 13:
            raise RuntimeError("no such step")
        return 0.05

    with pytest.raises(RuntimeError, match="no such step") as caught:
        train(lx.SGD(rate), batch_size=5, epochs=9)
    res = caught.value.result  # type: ignore[attr-defined]
    assert (res.epochs, res.updates) == (2, 13)


def test_what_is_compiled_goes_with_the_loss_and_keeps_no_data() -> None:
    def own(p: Any, batch: Any) -> Any:
        return jnp.sum((p - batch) ** 2)

    data = jnp.ones((4, 2))
    held = weakref.ref(own), weakref.ref(data)
    res = lx.train(own, jnp.zeros(2), data, epochs=3)
    assert res.updates == 3
    del own, data, res
    gc.collect()
    assert [each() for each in held] == [None, None]


def test_checkpoints_between_calls(tmp_path: Path) -> None:
    """A run that saves itself every three epochs goes on from there with the same bits."""
    path = lx.Checkpoint(tmp_path / "run.npz", every=3)
    how: dict[str, Any] = {"batch_size": 5, "epochs": 8}
    whole = train(**how)

    def rate(step: int) -> float:
        if step == 37 and fails:
            raise KeyboardInterrupt
        return 0.05

    fails = True
    assert train(lx.SGD(rate, momentum=0.5), checkpoint=path, **how).status is Status.INTERRUPTED
    fails = False
    check_bits(train(lx.SGD(rate, momentum=0.5), checkpoint=path, **how), whole)


@pytest.mark.parametrize("place", ["_make", "_read_with_sizes", "_note_losses", "_mean"])
def test_interrupts_around_a_call(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lead back to the end of an epoch, from which the run goes on with the same bits."""
    how: dict[str, Any] = {"batch_size": 5, "epochs": 60}
    whole = train(**how)
    where: Any = run if place == "_mean" else TrainingRun
    function = getattr(where, place)
    calls = itertools.count()

    def interrupted(*arguments: Any) -> Any:
        out = function(*arguments)
        if next(calls) == (20 if place == "_mean" else 3):
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(where, place, interrupted)
    monkeypatch.setattr("lbfgs_xp.training.run.Chunk.within", lambda self, left: 50)
    first = train(**how)
    assert first.status is Status.INTERRUPTED and 0 < first.epochs < 60
    assert len(first.history.loss) == 5 * first.epochs
    second = train(start=first.params, state=first.state, **how | {"epochs": 60 - first.epochs})
    check_bits(second, whole)
    joined = np.concatenate([first.history.loss, second.history.loss])
    assert joined.tobytes() == whole.history.loss.tobytes()
