"""`lx.train(accumulate=...)`: several batches for each update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend
from tests.training.test_train import RNG, X, data_of, squares

START = RNG.normal(size=3)


def run(backend: Backend, batch_size: Any, accumulate: int, **how: Any) -> Any:
    settings: dict[str, Any] = {"method": lx.Adam(0.05), "epochs": 4} | how
    return lx.train(
        squares, backend.asarray(START), data_of(backend), jac=True, batch_size=batch_size,
        accumulate=accumulate, **settings,
    )


@pytest.mark.parametrize("method", [lx.Adam(0.05), lx.StochasticLBFGS(0.1), lx.LBFGS()], ids=repr)
def test_it_is_the_mean_over_all_rows(backend: Backend, method: Any) -> None:
    """23 rows in batches of 4, three for each update, are batches of 12 and 11 rows."""
    seen: list[int] = []

    def loss(p: Any, batch: Any) -> Any:
        seen.append(batch[1].shape[0])
        return squares(p, batch)

    settings: dict[str, Any] = {"jac": True, "method": method, "epochs": 2}
    x, data = backend.asarray(START), data_of(backend)
    whole = lx.train(squares, x, data, batch_size=12, **settings)
    parts = lx.train(loss, x, data, batch_size=4, accumulate=3, **settings)
    assert max(seen) == 4 and parts.updates == whole.updates == 4
    np.testing.assert_allclose(
        backend.to_numpy(parts.params), backend.to_numpy(whole.params), rtol=1e-10
    )
    np.testing.assert_allclose(parts.history.loss, whole.history.loss, rtol=1e-10)


@pytest.mark.parametrize("library", [Backend.TORCH, Backend.JAX], ids=str)
def test_with_automatic_differentiation(library: Backend) -> None:
    def loss(p: Any, batch: Any) -> Any:
        inputs, wanted = batch
        r = inputs @ p["w"] - wanted
        return (r * r).mean()

    start = {"w": library.asarray(START)}
    found = [
        library.to_numpy(lx.train(
            loss, start, data_of(library), method=lx.Muon(0.05), epochs=2, **sizes
        ).params["w"])
        for sizes in ({"batch_size": 12}, {"batch_size": 4, "accumulate": 3})
    ]
    np.testing.assert_allclose(*found, rtol=1e-10)


def test_batches_of_an_iterable() -> None:
    data = data_of(Backend.NUMPY)
    batches = [tuple(part[i : i + 5] for part in data) for i in range(0, 23, 5)]
    found = lx.train(
        squares, START, batches, jac=True, method=lx.SGD(0.1), accumulate=2, epochs=1
    )
    x = START
    for rows in (slice(0, 10), slice(10, 20), slice(20, 23)):
        x = x - 0.1 * squares(x, tuple(part[rows] for part in data))[1]
    np.testing.assert_allclose(found.params, x, rtol=1e-12)
    assert found.updates == 3


def test_a_run_that_was_stopped_goes_on(tmp_path: Any) -> None:
    whole = run(Backend.NUMPY, 4, 3)
    first = run(Backend.NUMPY, 4, 3, epochs=2)
    second = lx.train(
        squares, first.params, data_of(Backend.NUMPY), jac=True, batch_size=4, accumulate=3,
        method=lx.Adam(0.05), epochs=2, state=first.state,
    )
    assert np.array_equal(whole.params, second.params)

    def stopped(p: Any, batch: Any, counted: list[int] = []) -> Any:  # noqa: B006
        counted.append(1)
        if len(counted) == 9:    # the second update of the second epoch
            raise KeyboardInterrupt
        return squares(p, batch)

    half = lx.train(
        stopped, START, data_of(Backend.NUMPY), jac=True, batch_size=4, accumulate=3,
        method=lx.Adam(0.05), epochs=4,
    )
    assert half.status is lx.Status.INTERRUPTED
    rest = lx.train(
        squares, half.params, data_of(Backend.NUMPY), jac=True, batch_size=4, accumulate=3,
        method=lx.Adam(0.05), epochs=4 - half.epochs, state=half.state,
    )
    assert np.array_equal(rest.params, whole.params)
    if half.state.seen:
        with pytest.raises(ValueError, match="same data, batch_size and accumulate"):
            lx.train(
                squares, half.params, data_of(Backend.NUMPY), jac=True, batch_size=4, accumulate=2,
                method=lx.Adam(0.05), state=half.state,
            )


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="accumulate is 0"):
        run(Backend.NUMPY, 4, 0)
    assert len(X) == 23
