"""`lx.train(has_aux=True)`: what the loss returns besides its value, and means of its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend
from tests.training.test_train import RNG, data_of, squares

START = RNG.normal(size=3)


def with_aux(p: Any, batch: Any) -> Any:
    """The squares, with the value again, a number of Python, an array, and other things."""
    value, gradient = squares(p, batch)
    aux = {"value": value, "rows": batch[1].shape[0], "inputs": batch[0], "name": "squares"}
    return (value, aux), gradient


def differentiated(p: Any, batch: Any) -> Any:
    inputs, wanted = batch
    r = inputs @ p - wanted
    value = (r * r).mean()
    return value, [value, {"large": abs(r).max() > 1.0}, None]


def run(backend: Backend, loss: Any = with_aux, **how: Any) -> Any:
    settings: dict[str, Any] = {
        "jac": True, "method": lx.SGD(0.1), "batch_size": 5, "epochs": 3, "has_aux": True,
    } | how
    return lx.train(loss, backend.asarray(START), data_of(backend), **settings)


@pytest.mark.parametrize("method", [lx.SGD(0.1), lx.StochasticLBFGS(0.1), lx.LBFGS()], ids=repr)
def test_means_and_the_last_aux(backend: Backend, method: Any) -> None:
    records: list[Any] = []
    res = run(backend, method=method, updates_per_batch=2, callback=records.append)
    plain = run(backend, lambda p, b: squares(p, b), method=method, updates_per_batch=2,
                has_aux=False)
    assert np.array_equal(backend.to_numpy(res.params), backend.to_numpy(plain.params))
    assert plain.aux is None and plain.history.metrics is None
    means = res.history.metrics
    assert np.array_equal(means["value"], res.history.epoch_loss)
    # Weighted by rows: batches of 5, 5, 5, 5 and 3.
    assert np.array_equal(means["rows"], 3 * [109 / 23])
    assert means["inputs"] is None and means["name"] is None
    assert [each.metrics["value"] for each in records] == list(res.history.epoch_loss)
    assert res.aux["value"] == res.history.loss[-1] and type(res.aux["value"]) is float
    assert res.aux["rows"] == 3.0 and res.aux["name"] == "squares"
    assert type(res.aux["inputs"]) is type(res.params) and res.aux["inputs"].shape == (3, 3)


@pytest.mark.parametrize("library", [Backend.TORCH, Backend.JAX], ids=str)
def test_with_automatic_differentiation(library: Backend) -> None:
    """On JAX the numbers come out of the program, also if it makes several epochs at once."""
    res = run(library, differentiated, jac=None)
    again = run(library, differentiated, jac=None, callback=lambda record: None)
    for each in (res, again):
        value, rest, nothing = each.history.metrics
        np.testing.assert_allclose(value, each.history.epoch_loss, rtol=1e-14)
        np.testing.assert_array_equal(rest["large"], res.history.metrics[1]["large"])
        assert nothing is None and each.aux[0] == each.history.loss[-1]
    assert res.history.metrics[1]["large"][0] > 0.0
    alone = run(library, lambda p, b: differentiated(p, b)[0], jac=None, has_aux=False)
    np.testing.assert_allclose(
        library.to_numpy(res.params), library.to_numpy(alone.params), rtol=1e-14
    )


def test_arrays_in_aux_on_jax() -> None:
    """They stay outside the program, whose updates are then made one by one."""
    def loss(p: Any, batch: Any) -> Any:
        inputs, wanted = batch
        r = inputs @ p - wanted
        return (r * r).mean(), r

    res = run(Backend.JAX, loss, jac=None, epochs=1)
    assert res.aux.shape == (3,) and res.history.metrics is None


def test_accumulated_batches() -> None:
    """The means are those over all rows of an update; the rest comes from its last batch."""
    whole = run(Backend.NUMPY, batch_size=12)
    parts = run(Backend.NUMPY, batch_size=4, accumulate=3)
    np.testing.assert_allclose(
        parts.history.metrics["value"], whole.history.metrics["value"], rtol=1e-12
    )
    assert parts.aux["rows"] == pytest.approx((4 * 4 + 4 * 4 + 3 * 3) / 11)
    assert parts.aux["inputs"].shape == (3, 3)


@pytest.mark.parametrize("library", [Backend.NUMPY, Backend.JAX], ids=str)
def test_a_run_that_was_stopped_goes_on(library: Backend, tmp_path: Any) -> None:
    loss = with_aux if library is Backend.NUMPY else differentiated
    jac = True if library is Backend.NUMPY else None
    whole = run(library, loss, jac=jac)
    calls: list[int] = []

    def stopped(p: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return loss(p, batch)

    file = lx.Checkpoint(tmp_path / "run.npz", every=1)
    how = {"jac": jac, "compile": False, "checkpoint": file}
    first = run(library, stopped, **how)
    assert first.status is lx.Status.INTERRUPTED and len(first.state.seen) == 2
    second = run(library, loss, jac=jac, checkpoint=file)
    third = lx.train(
        loss, first.params, data_of(library), jac=jac, method=lx.SGD(0.1), batch_size=5, epochs=2,
        has_aux=True, state=lx.TrainState(*first.state),
    )
    name = "value" if library is Backend.NUMPY else 0
    wanted = whole.history.metrics[name]
    np.testing.assert_allclose(second.history.metrics[name], wanted, rtol=1e-12)
    np.testing.assert_allclose(third.history.metrics[name], wanted[1:], rtol=1e-12)
    with pytest.raises(ValueError, match="has_aux is False, but state is in the middle"):
        lx.train(
            lambda p, b: squares(p, b), first.params, data_of(library), jac=True, batch_size=5,
            method=lx.SGD(0.1), state=first.state,
        )


def test_what_makes_no_sense() -> None:
    with pytest.raises(TypeError, match=r"with has_aux=True, the pair \(value, aux\)"):
        run(Backend.NUMPY, lambda p, b: squares(p, b))
    calls: list[int] = []

    def changing(p: Any, batch: Any) -> Any:
        calls.append(1)
        value, gradient = squares(p, batch)
        return (value, {"a": value} if len(calls) < 3 else {"b": value}), gradient

    with pytest.raises(ValueError, match="loss returned aux of the structure.*'b'.*'a'") as caught:
        run(Backend.NUMPY, changing)
    assert caught.value.result.updates == 2    # type: ignore[attr-defined]
    nothing = run(Backend.NUMPY, maxtime=0.0)
    assert nothing.aux is None and nothing.history.metrics is None
