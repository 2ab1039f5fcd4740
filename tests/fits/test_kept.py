"""What a fit keeps alive, and when it computes."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx


def fit_of(points: int, calls: list[int], batched: bool = False) -> lx.CurveFit:
    x = np.linspace(0.0, 4.0, points)
    y = 2.0 * np.exp(-x) + 0.1 * np.random.default_rng(0).normal(size=points)

    def model(x: Any, a: Any, k: Any) -> Any:
        calls.append(1)
        return a * np.exp(-k * x)

    return lx.curve_fit(
        model, x, np.stack([y] * 3) if batched else y, [1.0, 1.0], batched=batched, sigma=0.1
    )


def arrays_in(root: Any) -> dict[int, np.ndarray]:
    """All arrays that can be reached from an object, with their own memory."""
    seen: set[int] = set()
    found: dict[int, np.ndarray] = {}
    todo = [root]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type(gc)):
            continue
        seen.add(id(each))
        if isinstance(each, np.ndarray):
            while each.base is not None and isinstance(each.base, np.ndarray):
                each = each.base
            found[id(each)] = each
            continue
        if isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, (list, tuple, set)):
            todo += each
        elif callable(each) and hasattr(each, "__closure__"):
            todo += [cell.cell_contents for cell in each.__closure__ or ()]
        elif type(each).__module__.startswith("lbfgs_xp") or hasattr(each, "func"):
            todo += [*vars(each).values(), *getattr(each, "args", ())]
    return found


@pytest.mark.parametrize("batched", [False, True])
def test_a_fit_keeps_little_more_than_the_data(batched: bool) -> None:
    points, calls = 10_000, []
    res = fit_of(points, calls, batched)
    rows = 3 if batched else 1
    kept = sum(array.nbytes for array in arrays_in(res).values()) / (8 * points)
    # x, and in each row y, sigma, y in units of sigma, and the residuals.
    assert kept < 1 + 4 * rows + 0.1
    assert any(array.size == points for array in arrays_in(res).values())


def test_nothing_is_computed_until_it_is_asked_for() -> None:
    calls: list[int] = []
    res = fit_of(50, calls)
    before = len(calls)
    assert np.isfinite([res.aic, res.bic, res.r2]).all() and res.correlation.shape == (2, 2)
    assert len(calls) == before
    for ask in (lambda: res.jacobian, res.predict, res.band, res.intervals):
        ask()
        assert len(calls) > before
        before = len(calls)
    small = arrays_in(res)
    res.intervals(), res.contour("a", "k", size=8), res.bootstrap(3)
    assert arrays_in(res).keys() == small.keys()


def test_copies_let_go_of_the_data() -> None:
    calls: list[int] = []
    res = fit_of(1000, calls)
    data = weakref.ref(res._analysis)
    other = copy.copy(res)
    del res
    gc.collect()
    assert data() is None and other.summary().startswith("1000 data")
