"""Callbacks and the status line of fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 30)
NOISE = 0.05 * np.random.default_rng(0).normal(size=(3, 30))
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + NOISE


def fit(y: Any = Y[0], backend: Backend = Backend.NUMPY, **settings: Any) -> lx.CurveFit:
    xp = backend.xp
    return lx.curve_fit(
        lambda x, a, k, c: a * xp.exp(-k * x) + c, backend.asarray(X), backend.asarray(y),
        {"k": 1.0, "a": 1.0, "c": 1.0}, batched=np.ndim(y) == 2, **settings,
    )


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.STRICT, Backend.TORCH], ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_callback(backend: Backend, batched: bool) -> None:
    records: list[lx.FitRecord] = []
    res = fit(Y if batched else Y[0], backend, callback=records.append)
    assert len(records) >= int(backend.to_numpy(res.nit).max() if batched else res.nit) > 2
    last = records[-1]
    np.testing.assert_allclose(backend.to_numpy(last.x["k"]), backend.to_numpy(res.x["k"]))
    cost = backend.to_numpy(last.cost) if batched else last.cost
    chi2 = backend.to_numpy(res.chi2) if batched else res.chi2
    np.testing.assert_allclose(2.0 * cost, chi2, rtol=1e-9)
    assert tuple(last.fun.shape) == ((3, 30) if batched else (30,))
    assert [record.nfev for record in records] == sorted(record.nfev for record in records)


def test_a_callback_stops() -> None:
    res = fit(callback=lambda record: record.nit == 2)
    assert res.nit == 2 and res.status is Status.CALLBACK and not res.success
    some = fit(Y, callback=lambda record: record.nit.max() == 2)
    assert (some.status == Status.CALLBACK).all() and some.nit.max() == 2
    with pytest.raises(RuntimeError, match="no") as error:
        fit(callback=lambda record: (_ for _ in ()).throw(RuntimeError("no")))
    assert error.value.result.cost < np.sum(Y[0] ** 2)    # type: ignore[attr-defined]


def test_a_callback_sees_the_whole_batch() -> None:
    """Which is otherwise fitted in pieces."""
    y = np.tile(Y, (400, 1))
    shapes = set()
    res = fit(y, callback=lambda record: shapes.add(record.x["k"].shape))
    assert shapes == {(1200,)} and res.success.all()
    np.testing.assert_allclose(res.x["k"], fit(y).x["k"], rtol=1e-7)


@pytest.mark.parametrize("y", [Y[0], Y, np.tile(Y, (6000, 1))], ids=["one", "few", "pieces"])
def test_progress(y: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    fit(y, progress=True, maxiter=4)
    text = capsys.readouterr().out
    wanted = "step 4  calls " if y.ndim == 1 else (
        "3 fits  steps " if len(y) == 3 else "of 18000 fits  steps "
    )
    assert wanted in text and ("cost " in text) == (y.ndim == 1)
    assert (" done" in text) == (len(y) == 18000)
    lx.least_squares(lambda x: x - 1.0, np.zeros(2), jac="2-point", progress=True)
    assert "step 2  calls 9  cost 0" in capsys.readouterr().out


def test_both_with_lbfgs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    records: list[Any] = []
    fit(method="lbfgs", callback=records.append, progress=True)
    assert isinstance(records[0], lx.Record) and "iteration" in capsys.readouterr().out


def test_wrong_settings() -> None:
    with pytest.raises(TypeError, match="callback is 3; wanted a function or None"):
        fit(callback=3)
    with pytest.raises(TypeError, match="progress is 'a'; wanted True or False"):
        fit(progress="a")


def test_status_line_of_contours(capsys: pytest.CaptureFixture) -> None:
    res = fit()
    border = res.contour("a", "k", size=8, progress=True)
    shown = capsys.readouterr().out
    assert "contour of a, k" in shown and int(shown.split("steps")[-1]) > 5
    np.testing.assert_array_equal(border, res.contour("a", "k", size=8))
    assert capsys.readouterr().out == ""
    rows = fit(Y).row(0).contour("a", "k", size=8, progress=True)
    assert "steps" in capsys.readouterr().out
    np.testing.assert_allclose(rows, border, rtol=1e-3)
