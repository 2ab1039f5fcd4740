"""One fit of a batch as a single fit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 30)
Y = np.stack([2.5 * np.exp(-1.3 * X) + 0.5, 1.5 * np.exp(-0.7 * X) + 0.2])
Y = Y + 0.05 * np.random.default_rng(0).normal(size=Y.shape)
FEW = [Backend.NUMPY, Backend.TORCH]


def both(backend: Backend, **settings: Any) -> tuple[lx.CurveFit, lx.CurveFit]:
    """The second fit of a batch, and a fit of its data."""
    xp, x, y = backend.xp, backend.asarray(X), backend.asarray(Y)
    p0 = settings.pop("p0", {"k": 1.0, "c": 1.0, "a": 1.0})
    sigma = np.where(X[4] == X, np.inf, 0.05)

    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        return a * xp.exp(-k * x) + c

    settings = {"sigma": backend.asarray(sigma), "absolute_sigma": True, **settings}
    many = lx.curve_fit(model, x, y, p0, batched=True, **settings)
    return many.row(1), lx.curve_fit(model, x, y[1, :], p0, **settings)


def same(backend: Backend, found: Any, wanted: Any, rtol: float = 1e-5) -> None:
    if isinstance(wanted, dict):
        for name in wanted:
            same(backend, found[name], wanted[name], rtol)
        return
    found, wanted = (
        each if isinstance(each, float) else backend.to_numpy(each) for each in (found, wanted)
    )
    assert np.shape(found) == np.shape(wanted)
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("backend", FEW, ids=str)
@pytest.mark.parametrize("settings", [
    {}, {"p0": [1.0, 1.0, 1.0], "absolute_sigma": False},
    {"ties": {"c": lambda p: 0.25 * p["a"]}, "bounds": (None, {"a": 1.4})},
], ids=["dict", "list", "ties"])
def test_a_row_is_like_a_fit_alone(backend: Backend, settings: dict[str, Any]) -> None:
    row, alone = both(backend, **settings)
    assert type(row) is lx.CurveFit and row.names == alone.names and row.status == alone.status
    for name in ("x", "covariance", "stderr", "residuals", "jacobian", "correlation"):
        same(backend, getattr(row, name), getattr(alone, name))
    for name in ("chi2", "reduced_chi2", "r2", "p_value", "aic", "bic", "deviance", "dof"):
        assert getattr(row, name) == pytest.approx(getattr(alone, name), rel=1e-6, nan_ok=True)
        assert type(getattr(row, name)) is type(getattr(alone, name))
    pair = [fit.intervals(0.9) for fit in (row, alone)]
    for name in ("low", "high", "low_status", "high_status"):
        same(backend, *(getattr(each, name) for each in pair), rtol=1e-4)
    assert pair[0].success is True and pair[0].better is None
    for found, wanted in zip(row.band(X, 0.9), alone.band(X, 0.9), strict=True):
        same(backend, found, wanted)
    drawn = row.sample(2000, seed=1)
    drawn, error = (
        each["k"] if isinstance(each, dict) else each[..., 1] for each in (drawn, row.stderr)
    )
    assert float(drawn.std()) == pytest.approx(float(error), rel=0.1) and drawn.shape == (2000,)
    profiles = [fit.profile("k", size=5) for fit in (row, alone)]
    same(backend, profiles[0].delta, profiles[1].delta, rtol=1e-3)
    function = (lambda p: p[0] * p[1]) if "p0" in settings else (lambda p: p["a"] * p["k"])
    for found, wanted in zip(row.propagate(function), alone.propagate(function), strict=True):
        assert isinstance(found, float) and found == pytest.approx(wanted, rel=1e-5)
    lines, others = (fit.summary(level=0.9).splitlines() for fit in (row, alone))
    assert lines[2:] == others[2:] and lines[1].split() == others[1].split()
    assert "chi2" in copy.copy(row).summary()


def test_pictures_of_a_row() -> None:
    pytest.importorskip("matplotlib")
    row, alone = both(Backend.NUMPY)
    for name, axes in (("plot", 2), ("plot_profiles", 3)):
        found, wanted = (getattr(fit, name)() for fit in (row, alone))
        assert len(found.axes) == len(wanted.axes) == axes
        for one, other in zip(found.axes, wanted.axes, strict=True):
            np.testing.assert_allclose(one.get_xlim(), other.get_xlim(), rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(one.get_ylim(), other.get_ylim(), rtol=1e-3, atol=1e-6)


def test_a_model_that_holds_all_rows() -> None:
    offsets = np.asarray([[0.0], [5.0]])
    fits = lx.curve_fit(
        lambda x, a, k: a * np.exp(-k * x) + offsets, X, Y + offsets, [1.0, 1.0], batched=True,
        compact=False,
    )
    alone = lx.curve_fit(lambda x, a, k: a * np.exp(-k * x), X, Y[1], [1.0, 1.0])
    row = fits.row(1)
    same(Backend.NUMPY, row.intervals().low, alone.intervals().low, rtol=1e-4)
    same(Backend.NUMPY, row.predict(), alone.predict() + 5.0)
    assert row.propagate(lambda p: p[0])[1] == pytest.approx(alone.stderr[0], rel=1e-5)


def test_rows_that_failed_and_starts() -> None:
    y = Y.copy()
    y[0, 3] = np.nan
    fits = lx.curve_fit(
        lambda x, a, k: a * np.exp(-k * x), X, y, [1.0, 1.0], batched=True,
        starts=np.asarray([[2.0, 0.5]]),
    )
    assert not fits.row(0).success and fits.row(0).status == lx.Status.NOT_FINITE
    assert "NOT CONVERGED" in fits.row(0).summary() and not fits.row(0).intervals().success
    row = fits.row(1)
    assert row.success is True and row.starts.cost.shape == (2,)
    assert row.starts.best == np.argmin(row.starts.cost) and isinstance(row.nit, int)
    with pytest.raises(ValueError, match="number is 2; wanted the number of a fit below 2"):
        fits.row(2)
    with pytest.raises(ValueError, match="number is -1; wanted"):
        fits.row(-1)
    with pytest.raises(ValueError, match="is a copy, or comes from a pickle"):
        copy.copy(fits).row(1).intervals()
