"""Fits from several starts: the best one is kept, for one fit and for batches, on all libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.0, 6.0, 80)
BOX = ([0.0, 0.5, -3.2], [5.0, 12.0, 3.2])
NEAR = [1.0, 1.0, 0.0]    # from here, waves are fitted by others that are too long
STARTS = np.stack([np.ones(12), np.arange(1.0, 13.0), np.zeros(12)], axis=-1)


def wave(xp: Any = np) -> Any:
    return lambda x, a, w, p: a * xp.sin(w * x + p)


Y = np.stack([wave()(X, 1.5, 4.3, 0.4), wave()(X, 2.0, 7.1, -1.0)])
Y = Y + 0.1 * np.random.default_rng(0).normal(size=Y.shape)


def test_the_best_start_of_each_fit_is_kept(backend: Backend) -> None:
    x, y = backend.asarray(X), backend.asarray(Y)
    res = lx.curve_fit(wave(backend.xp), x, y, NEAR, bounds=BOX, starts=STARTS, batched=True)
    found = backend.to_numpy(res.x)
    np.testing.assert_allclose(found[:, 1], [4.3, 7.1], atol=0.05)
    told = res.starts
    cost, ends = backend.to_numpy(told.cost), backend.to_numpy(told.x)
    assert cost.shape == (2, 13) and ends.shape == (2, 13, 3)
    best = backend.to_numpy(told.best)
    assert best.tolist() == cost.argmin(axis=1).tolist() and np.all(best > 0)
    for row in range(2):
        np.testing.assert_allclose(found[row], ends[row, best[row]], rtol=1e-5)
        chi2 = float(backend.to_numpy(res.chi2)[row])
        assert chi2 == pytest.approx(2.0 * cost[row].min(), rel=1e-6)
    assert backend.to_numpy(told.success).dtype == bool


def test_one_fit_from_a_sampler() -> None:
    qmc = pytest.importorskip("scipy.stats.qmc")
    plain = lx.curve_fit(wave(), X, Y[0], NEAR, bounds=BOX)
    assert plain.starts is None and plain.chi2 > 50.0
    res = lx.curve_fit(wave(), X, Y[0], NEAR, bounds=BOX, starts=qmc.Sobol(3, rng=0))
    assert res.success and res.chi2 < 1.0 and res.starts.x.shape == (33, 3)
    assert res.nfev > plain.nfev and isinstance(res.starts.best, int)
    assert 2.0 * res.starts.cost[0] == pytest.approx(plain.chi2, rel=1e-6)
    few = lx.curve_fit(
        wave(), X, Y[0], {"w": 1.0, "p": 0.4, "a": 1.0}, fixed="p",
        starts=(qmc.Halton(2, rng=0), 12), bounds=({"a": 0.0, "w": 0.5}, {"a": 5.0, "w": 12.0}),
    )
    assert few.chi2 < 2.0 and few.starts.x["w"].shape == (13,)
    assert np.all(few.starts.x["p"] == 0.4)


def test_starts_by_name_of_each_row_and_of_counts() -> None:
    start = {"w": 1.0, "a": 1.0, "p": 0.0}
    named = lx.curve_fit(
        wave(), X, Y[0], start, starts={"w": [1.0, 4.0, 8.0], "p": np.zeros(3), "a": [1, 1, 1]}
    )
    listed = lx.curve_fit(wave(), X, Y[0], start, starts=[[4.0, 1.0, 0.0]])
    assert named.starts.best == 2 and listed.starts.best == 1
    assert named.chi2 < 1.0 and named.chi2 == pytest.approx(listed.chi2, rel=1e-9)
    own = np.asarray([[[1.0, 4.0, 0.0]], [[1.0, 7.0, 0.0]]])
    rows = lx.curve_fit(wave(), X, Y, NEAR, starts=own, batched=True, bounds=BOX)
    assert rows.starts.best.tolist() == [1, 1] and np.all(rows.chi2 < 2.0)
    rng = np.random.default_rng(1)
    counts = rng.poisson(3.0 + 2.5 * np.sin(4.3 * X)).astype(float)

    def level(x: Any, m: Any, a: Any, w: Any) -> Any:
        return m * (1.0 + a * np.sin(w * x))

    fit = lx.curve_fit(
        level, X, counts, [3.0, 0.5, 1.0], likelihood="poisson", priors={"m": (3.0, 0.5)},
        bounds=([0.1, 0.0, 0.1], [9.0, 0.99, 12.0]),
        starts=[[3.0, 0.5, float(w)] for w in range(2, 12)],
    )
    assert fit.x[2] == pytest.approx(4.3, abs=0.1)
    lowest = 0.5 * (fit.deviance + fit.chi2_priors)
    assert lowest == pytest.approx(fit.starts.cost.min(), rel=1e-6)


def test_starts_without_a_value_are_told() -> None:
    def model(x: Any, a: Any, b: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return a * np.log(x + b)

    y = model(X + 1.0, 2.0, 0.5)
    res = lx.curve_fit(model, X + 1.0, y, [1.0, 3.0], starts=[[1.0, -5.0], [1.0, 1.0]])
    assert res.success and res.starts.status[1] == lx.Status.NOT_FINITE
    assert res.starts.success.tolist() == [True, False, True]
    lost = lx.curve_fit(model, X + 1.0, y, [1.0, -4.0], starts=[[1.0, -5.0]])
    assert lost.status is lx.Status.NOT_FINITE


@pytest.mark.parametrize(("settings", "error", "words"), [
    ({"starts": np.ones(3)}, ValueError, r"with shape \(3,\); wanted \(S, 3\)"),
    ({"starts": np.ones((4, 2))}, ValueError, r"shape \(4, 2\)"),
    ({"starts": "sobol"}, TypeError, "starts is 'sobol'"),
    ({"starts": {"a": [1.0]}}, ValueError, "starts is a dict of a; wanted "),
    ({"method": "lbfgs"}, ValueError, "starts were passed with method='lbfgs'"),
])
def test_errors(settings: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        lx.curve_fit(wave(), X, Y[0], NEAR, **{"starts": STARTS, **settings})


def test_errors_of_samplers() -> None:
    qmc = pytest.importorskip("scipy.stats.qmc")
    for starts, bounds, words in (
        (qmc.Sobol(3), None, "there are no bounds"),
        (qmc.Sobol(3), (0.0, [1.0, np.inf, 1.0]), r"p0\[1\] has no finite bounds"),
        (qmc.Sobol(2), BOX, "a sampler of 2 dimensions; wanted 3"),
        ((qmc.Sobol(3), 0), BOX, "the number of starts is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            lx.curve_fit(wave(), X, Y[0], NEAR, starts=starts, bounds=bounds)
