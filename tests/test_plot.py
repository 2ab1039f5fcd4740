"""Pictures: what is drawn, seen in the artists of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

plt = pytest.importorskip("matplotlib.pyplot")
PROBLEM = lx.problems.rosenbrock(2)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def run(method: Any = "lbfgs") -> tuple[lx.Result, list[lx.Record]]:
    records: list[lx.Record] = []
    res = lx.minimize(
        PROBLEM.value_and_gradient, PROBLEM.x0, jac=True, method=method, maxiter=60,
        callback=records.append,
    )
    return res, records


def contours(ax: Any) -> list[np.ndarray]:
    """The points of each contour line."""
    return [path.vertices for path in ax.collections[-1].get_paths()]


def test_contours_lie_where_the_function_has_their_value(backend: Backend) -> None:
    like = backend.asarray([0.0, 0.0])
    seen = []

    def fun(x: Any, scale: float) -> Any:
        seen.append(type(x))
        return (scale * x[0] ** 2 + x[1] ** 2, "ignored")

    ax = lx.plot.contour(
        fun, (-2.0, 2.0), (-1.0, 1.0), 4.0, like=like, levels=[0.25, 0.5], points=25
    )
    assert len(seen) == 625 and set(seen) == {type(like)}
    for points, level in zip(contours(ax), (0.25, 0.5), strict=True):
        values = 4.0 * points[:, 0] ** 2 + points[:, 1] ** 2
        assert len(points) > 10 and np.allclose(values, level, atol=0.05)
    assert ax.get_xlim() == (-2.0, 2.0) and ax.get_ylim() == (-1.0, 1.0)


def test_contours_of_a_function_of_a_batch_are_the_same() -> None:
    one = lx.plot.contour(lambda x: float(PROBLEM.fun(x)), points=15, levels=4)
    many = lx.plot.contour(PROBLEM.fun, points=15, levels=4, batched=True)
    for a, b in zip(contours(one), contours(many), strict=True):
        np.testing.assert_allclose(a, b)


def test_contours_leave_out_what_is_not_finite() -> None:
    def fun(x: Any) -> Any:
        return np.where(x[..., 0] < 0.0, np.nan, x[..., 0] + x[..., 1] ** 2)

    ax = lx.plot.contour(fun, batched=True, points=20)
    assert all(points[:, 0].min() >= 0.0 for points in contours(ax) if len(points))


def test_a_trace_goes_through_the_iterates() -> None:
    _, records = run()
    ax = lx.plot.contour(PROBLEM.fun, batched=True, points=10)
    limits = ax.get_xlim(), ax.get_ylim()
    assert lx.plot.trace(records, start=PROBLEM.x0, ax=ax, label="L-BFGS") is ax
    path = ax.lines[0].get_xydata()
    np.testing.assert_array_equal(path, np.stack([PROBLEM.x0, *(r.x for r in records)]))
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    lx.plot.trace([[0.0, 0.0], [9.0, 9.0]], ax=ax, label="out")
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    assert ax.lines[3].get_color() != ax.lines[0].get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["L-BFGS", "out"]


def test_history_of_records_numbers_and_training() -> None:
    res, records = run()
    ax = lx.plot.history({"run": records, "numbers": [3.0, 2.0, 1.0]}, over="nfev", minimum=1.0)
    where, values = ax.lines[0].get_data()
    np.testing.assert_array_equal(where, [r.nfev for r in records])
    wanted = np.asarray([r.fun - 1.0 for r in records])
    np.testing.assert_array_equal(values, np.where(wanted > 0.0, wanted, np.nan))
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [2.0, 1.0, np.nan])
    assert ax.get_yscale() == "log" and where[-1] == records[-1].nfev <= res.nfev
    ax = lx.plot.history(records, quantity="gradient_norm")
    assert ax.lines[0].get_ydata()[-1] == res.gradient_norm

    def loss(w: Any, rows: Any) -> Any:
        return float(np.sum((w - rows.mean(0)) ** 2)), 2.0 * (w - rows.mean(0))

    trained = lx.train(loss, np.zeros(2), np.ones((8, 2)), method=lx.SGD(0.1), jac=True,
                       batch_size=4, epochs=3)
    for given in (trained, trained.history):
        ax = lx.plot.history(given)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), trained.history.loss)


def test_schedules() -> None:
    cosine = lx.schedules.Cosine(0.1, steps=40)
    ax = lx.plot.schedule([cosine, 0.05])
    assert [len(line.get_xdata()) for line in ax.lines] == [101, 101]
    ax = lx.plot.schedule({"a": cosine, "b": lambda step: 1.0 / (1 + step)}, 40)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [cosine(k) for k in range(41)])
    assert ax.lines[1].get_label() == "b" and ax.lines[1].get_ydata()[1] == 0.5


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: lx.plot.trace(run()[0]), "holds only the end of a run; wanted its records"),
        (lambda: lx.plot.history(run()[0]), "holds only the end of a run; wanted its records"),
        (lambda: lx.plot.trace([]), "records is empty"),
        (lambda: lx.plot.trace([[1.0, 2.0, 3.0]]), r"shape \(3,\); wanted two variables"),
        (lambda: lx.plot.history([]), "no records"),
        (lambda: lx.plot.history([1.0], over="time"), "over is 'time'; wanted 'nit' or 'nfev'"),
        (lambda: lx.plot.history([1.0], quantity="x"), "quantity is 'x'"),
        (lambda: lx.plot.contour(PROBLEM.fun, x=3.0), r"x is 3.0; wanted the range"),
        (lambda: lx.plot.contour(PROBLEM.fun, y=(1.0, 0.0)), "wanted low < high"),
        (lambda: lx.plot.contour(lambda x: x), "wanted a number for each x"),
        (lambda: lx.plot.contour(lambda x: 1.0, batched=True), r"wanted \(10000,\)"),
        (lambda: lx.plot.contour(lambda x: 1.0), "the same everywhere"),
        (lambda: lx.plot.contour(PROBLEM.fun, levels=[2.0, 1.0]), "in increasing order"),
        (lambda: lx.plot.schedule(lx.schedules.ReduceOnPlateau(0.1)), "depends on values"),
    ],
)
def test_wrong_calls(call: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()
