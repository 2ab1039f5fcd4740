"""`lx.train(grow_batches=...)`: more batches for each update, once noise dominates the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend
from tests.training.test_train import squares

RNG = np.random.default_rng(5)
X = RNG.normal(size=(512, 3))
Y = X @ np.asarray([1.0, -2.0, 0.5]) + RNG.normal(size=512)


def run(backend: Backend = Backend.NUMPY, loss: Any = squares, **how: Any) -> Any:
    settings: dict[str, Any] = {
        "jac": True, "method": lx.SGD(0.2), "batch_size": 4, "epochs": 8, "grow_batches": 1.0,
    } | how
    data = backend.asarray(X), backend.asarray(Y)
    return lx.train(loss, backend.asarray(np.zeros(3)), data, **settings)


@pytest.mark.parametrize("method", [lx.SGD(0.2), lx.Adam(0.1), lx.StochasticLBFGS(0.1)], ids=repr)
def test_a_lower_loss_after_as_many_passes(method: Any) -> None:
    exact = np.linalg.lstsq(X, Y, rcond=None)[0]
    found = []
    for how in ({"grow_batches": None, "epochs": 10}, {}):
        rows = 0

        def loss(p: Any, batch: Any) -> Any:
            nonlocal rows
            rows += len(batch[1])
            return squares(p, batch)

        res = run(loss=loss, method=method, **how)
        found.append((squares(res.params, (X, Y))[0] - squares(exact, (X, Y))[0], rows))
    (fixed, passes), (grown, fewer) = found
    assert fewer <= passes
    assert grown < 0.2 * fixed


def test_the_number_follows_the_norm_test(backend: Backend) -> None:
    seen: list[int] = []

    def loss(p: Any, batch: Any) -> Any:
        seen.append(batch[1].shape[0])
        return squares(p, batch)

    records: list[Any] = []
    res = run(backend, loss, epochs=4, batch_size=16, grow_batches=0.7, callback=records.append)
    counts = [record.state.together for record in records]
    assert res.state.together == counts[-1] and counts[0] < counts[-1] <= 16
    assert max(seen) == 16 and res.updates == sum(-(-32 // count) for count in counts)
    starts = [np.zeros(3), *(backend.to_numpy(record.params) for record in records)]
    now = 1
    for epoch, count in enumerate(counts):
        looks = max(8, now)
        order = np.random.default_rng([0, epoch]).permutation(512)[: 16 * looks]
        each = np.stack([
            squares(starts[epoch], (X[rows], Y[rows]))[1] for rows in np.split(order, looks)
        ])
        mean, variance = each.mean(axis=0), each.var(axis=0, ddof=1).sum()
        signal = mean @ mean - variance / looks
        wanted = variance / (0.49 * signal) if signal > 0.0 else np.inf
        assert count == max(now, min(2 * now, np.ceil(wanted)))
        now = count


def test_nothing_grows_without_noise() -> None:
    data = np.ones((64, 3)), np.full(64, 2.0)
    res = lx.train(
        squares, np.zeros(3), data, jac=True, batch_size=4, epochs=3, method=lx.SGD(0.01),
        grow_batches=1.0,
    )
    assert res.state.together == 1 and res.updates == 48
    whole = run(batch_size=None, epochs=2)
    assert whole.state.together == 1 and whole.updates == 2


@pytest.mark.parametrize("library", [Backend.TORCH, Backend.JAX], ids=str)
def test_with_automatic_differentiation(library: Backend) -> None:
    def loss(p: Any, batch: Any) -> Any:
        inputs, wanted = batch
        r = inputs @ p - wanted
        return (r * r).mean()

    res, wanted = run(library, loss, jac=None, epochs=4), run(epochs=4)
    assert (res.state.together, res.updates) == (wanted.state.together, wanted.updates)
    np.testing.assert_allclose(library.to_numpy(res.params), wanted.params, rtol=1e-10)


def test_a_run_that_was_stopped_goes_on(tmp_path: Any) -> None:
    whole = run(epochs=4)
    for stop in (3, 133, 200, 300):    # while it looks, and within an epoch
        calls = 0

        def stopped(p: Any, batch: Any, stop: int = stop) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return squares(p, batch)

        file = lx.Checkpoint(tmp_path / f"{stop}.npz", every=1)
        half = run(loss=stopped, epochs=4, checkpoint=file)
        assert half.status is lx.Status.INTERRUPTED
        rest = lx.train(
            squares, half.params, (X, Y), jac=True, method=lx.SGD(0.2), batch_size=4,
            epochs=4 - half.epochs, grow_batches=1.0, state=half.state,
        )
        for res in (rest, run(epochs=4, checkpoint=file)):
            assert np.array_equal(res.params, whole.params)
            assert res.state.together == whole.state.together


def test_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"grow_batches is 0\.0; wanted"):
        run(grow_batches=0.0)
    with pytest.raises(ValueError, match=r"grow_batches is 1\.0, but data, a list, gives its own"):
        lx.train(squares, np.zeros(3), [(X, Y)], jac=True, grow_batches=1.0)
