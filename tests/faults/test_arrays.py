"""Arrays and functions of every kind: nothing is overwritten, and no number is wrong."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.faults.script import well

METHODS = ["lbfgs", "bfgs", "gradient_descent", "newton-cg", "rprop"]


def layouts(folder: Path) -> dict[str, np.ndarray]:
    plain = np.arange(6.0)
    read_only = plain.copy()
    read_only.flags.writeable = False
    mapped = np.memmap(folder / "x.bin", float, "w+", shape=(6,))
    mapped[:] = plain
    return {
        "plain": plain,
        "read-only": read_only,
        "strided": np.repeat(plain, 2)[::2],
        "reversed": plain[::-1],
        "Fortran": np.asfortranarray(plain.reshape(2, 3)),
        "memory-mapped": mapped,
        "memory-mapped, read-only": np.memmap(folder / "x.bin", float, "r", shape=(6,)),
        "0-stride": np.broadcast_to(np.float64(3.0), (6,)),
        "big-endian": plain.astype(">f8"),
    }


@pytest.mark.parametrize("layout", [
    "plain", "read-only", "strided", "reversed", "Fortran", "memory-mapped",
    "memory-mapped, read-only", "0-stride", "big-endian",
])
@pytest.mark.parametrize("method", METHODS)
def test_starts(layout: str, method: str, tmp_path: Path) -> None:
    x0 = layouts(tmp_path)[layout]
    before, plain = x0.tobytes(), np.array(x0, dtype=float)
    res = lx.minimize(well, x0, jac=True, method=method, maxiter=300)
    wanted = lx.minimize(well, plain, jac=True, method=method, maxiter=300)
    assert x0.tobytes() == before
    assert type(res.x) is np.ndarray
    assert res.status == wanted.status
    np.testing.assert_allclose(res.x, wanted.x, rtol=1e-12, atol=1e-12)
    res.x[...] = 7.0    # ours to write on


@pytest.mark.parametrize("layout", ["0-stride", "strided", "read-only", "the same buffer"])
def test_gradients(layout: str) -> None:
    buffer = np.empty(6)

    def plain(x: np.ndarray) -> Any:
        value, gradient = well(x)
        # Rounding may make the variables differ a little.
        return value, np.full(6, gradient[0]) if layout == "0-stride" else gradient

    def fun(x: np.ndarray) -> Any:
        value, gradient = plain(x)
        if layout == "0-stride":
            return value, np.broadcast_to(gradient[0], (6,))
        if layout == "strided":
            return value, np.stack([gradient, gradient], axis=1)[:, 0]
        if layout == "read-only":
            gradient.flags.writeable = False
            return value, gradient
        buffer[...] = gradient
        return value, buffer

    for method in METHODS:
        res = lx.minimize(fun, np.full(6, 3.0), jac=True, method=method, maxiter=300)
        assert res.x.tobytes() == lx.minimize(
            plain, np.full(6, 3.0), jac=True, method=method, maxiter=300
        ).x.tobytes()


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "newton-cg", "adam"])
def test_a_function_that_changes_x(method: str) -> None:
    def fun(x: np.ndarray) -> Any:
        x -= 1.0
        return float(x @ x), 2.0 * x

    with pytest.raises(ValueError, match="fun changed x in place; wanted a function that leaves"):
        lx.minimize(fun, np.arange(6.0), jac=True, method=method)


def test_a_function_that_changes_x_later() -> None:
    """It is no success, whatever it returns."""
    calls = 0

    def fun(x: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            x += 0.1
        return well(x)

    assert not lx.minimize(fun, np.arange(6.0), jac=True).success


def test_runs_within_runs() -> None:
    wanted = lx.minimize(well, np.arange(6.0), jac=True)

    def nested(x: np.ndarray) -> Any:
        inner = lx.minimize(well, np.arange(6.0), jac=True, checkpoint=None)
        assert inner.nfev == wanted.nfev
        return well(x)

    def callback(record: lx.Record) -> None:
        assert lx.minimize(well, np.arange(6.0), jac=True).nfev == wanted.nfev

    res = lx.minimize(nested, np.arange(6.0), jac=True, callback=callback)
    assert res.x.tobytes() == wanted.x.tobytes()


def test_threads_side_by_side() -> None:
    """One solver object serves many threads."""
    method, found = lx.LBFGS(), []
    starts = [np.arange(6.0) * scale for scale in (1.0, 0.5, -1.0, 2.0)]
    wanted = [lx.minimize(well, x, jac=True).x.tobytes() for x in starts]

    def work(i: int) -> None:
        for _ in range(5):
            res = lx.minimize(well, starts[i], jac=True, method=method)
            found.append((i, res.x.tobytes()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([*enumerate(wanted)] * 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_one_bad_row(bad: float) -> None:
    starts = np.random.default_rng(0).normal(size=(3_000, 4))
    spoilt = starts.copy()
    spoilt[777] = bad

    def fun(x: np.ndarray) -> Any:
        d = x - 1.0
        with np.errstate(all="ignore"):
            return (d**4 + d**2).sum(-1), 4.0 * d**3 + 2.0 * d

    res = lx.minimize(fun, spoilt, jac=True, batched=True)
    wanted = lx.minimize(fun, starts, jac=True, batched=True)
    others = np.arange(3_000) != 777
    assert not res.success[777]
    assert res.x[others].tobytes() == wanted.x[others].tobytes()
    np.testing.assert_array_equal(res.nfev[others], wanted.nfev[others])
