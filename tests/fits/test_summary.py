"""Fits as text and as pictures."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.fits.summary import measured
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 40)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.2 * np.random.default_rng(0).normal(size=40)


def fit(y: Any = Y, backend: Backend = Backend.NUMPY, **settings: Any) -> lx.CurveFit:
    xp = backend.xp
    settings.setdefault("p0", {"k": 1.0, "a": 1.0, "c": 1.0})
    return lx.curve_fit(
        lambda x, a, k, c: a * xp.exp(-k * x) + c, backend.asarray(X), backend.asarray(y),
        settings.pop("p0"), batched=np.ndim(y) == 2, **settings,
    )


@pytest.mark.parametrize(("numbers", "text"), [
    ((2.583635, 0.135412), "2.58 ± 0.14"),
    ((1.4649, 0.158, 0.147), "1.46 +0.16 -0.15"),
    ((6.62607e-34, 8e-41), "(6.62607000 ± 0.00000080)e-34"),
    ((123456.789, 1234.0), "(1.235 ± 0.012)e+05"),
    ((3.0, 0.0999), "3.00 ± 0.10"),    # rounding the error adds a digit
    ((9.9999, 0.00996), "10.000 ± 0.010"),
    ((-4.9996, 0.0102), "-5.000 ± 0.010"),
    ((2.5e-7, 1e-3), "0.0000 ± 0.0010"),
    ((0.00123, 0.00045), "0.00123 ± 0.00045"),
    ((250000.0, 5.0), "250000.0 ± 5.0"),
    ((1.0, np.inf, 0.1), "1.00 +inf -0.10"),
    ((1.0, np.inf), "1 ± inf"),
    ((0.0, 0.0), "0 ± 0"),
    ((-0.0, 0.5), "0.00 ± 0.50"),
    ((5e-324, 5e-324), "(4.9 ± 4.9)e-324"),
    ((1e300, 1e298), "(1.000 ± 0.010)e+300"),
    ((1.0, 2.2e-17), "1 ± 2.2e-17"),    # less than the rounding of the value
    ((0.0, 1e-300, 1e300), "0 +1e-300 -1e+300"),
    ((1.0, 0.1, np.nan), "1.00 +0.10 -nan"),
])
def test_digits(numbers: tuple[float, ...], text: str) -> None:
    assert measured(*numbers) == text


def test_summary_of_one(backend: Backend) -> None:
    res = fit(backend=backend, sigma=0.2, absolute_sigma=True)
    text = res.summary()
    lines = text.splitlines()
    assert lines[0].startswith("40 data, 3 free parameters, converged in ")
    # In the order of p0.
    assert [line.split()[0] for line in lines[1:4]] == ["k", "a", "c"]
    assert lines[2].split()[1:] == ["2.58", "±", "0.14"]
    assert f"dof = 37, chi2 / dof = {res.reduced_chi2:.4g}, p = " in text
    assert "correlations beyond 0.5:" in text and "k, c   +0." in text
    assert "correlations" not in res.summary(limit=0.9)


def test_summary_with_intervals() -> None:
    res = fit(bounds=({"c": 0.5, "a": 0.0}, {"c": 0.5, "a": 2.65}))
    lines = res.summary(level=0.95).splitlines()
    found = res.intervals(0.95)
    assert lines[1].endswith(
        measured(res.x["k"], found.high["k"] - res.x["k"], res.x["k"] - found.low["k"])
    )
    assert lines[2].endswith("(high: bound)") and lines[3].endswith("0.5 (fixed)")
    assert "(intervals by profile likelihood and Student's t, 95 %)" in lines[4]
    assert "errors are scaled by chi2 / dof" in "\n".join(lines)


def test_summary_of_a_failure() -> None:
    y = Y.copy()
    y[3] = np.nan
    res = fit(y)
    assert "NOT CONVERGED" in res.summary() and res.message in res.summary()
    loose = lx.curve_fit(lambda x, a, b: a * x + 0.0 * b, X, Y, [1.0, 1.0])
    assert "b   1 (not determined)" in loose.summary()


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.STRICT, Backend.TORCH], ids=str)
def test_summary_of_a_batch(backend: Backend) -> None:
    rng = np.random.default_rng(1)
    y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.2 * rng.normal(size=(60, 40))
    y[7, 3] = np.nan
    res = fit(y, backend, sigma=0.2, absolute_sigma=True)
    text = res.summary()
    assert text.startswith("60 fits, 59 converged")
    assert "1 x NOT_FINITE: the value or the gradient at the start is not finite" in text
    good = backend.to_numpy(res.success)
    row = next(line.split() for line in text.splitlines() if line.split()[0] == "k")
    k, stderr = (backend.to_numpy(tree["k"])[good] for tree in (res.x, res.stderr))
    assert row[1] == f"{np.median(k):.6g}" and row[3] == f"{np.median(stderr):.3g}"
    pulls = next(line for line in text.splitlines() if line.startswith("pulls"))
    wanted = backend.to_numpy(res.residuals)[good] / 0.2
    assert f"deviation {wanted.std():.3f}" in pulls and "(of normal errors 0.27 %)" in pulls
    # Copies have the table, but not the residuals in units of sigma.
    assert "pulls" not in copy.copy(res).summary() and row[1] in copy.copy(res).summary()


def test_summary_of_a_batch_with_intervals() -> None:
    res = fit(np.stack([Y, Y + 0.1]))
    row = next(line for line in res.summary(0.6827).splitlines() if line.split()[0] == "k")
    found = res.intervals(0.6827)
    high, low = (np.median(each["k"]) for each in (found.high, found.low))
    assert f"+{high - res.x['k'][0]:.3g} -{res.x['k'][0] - low:.3g}" in row and row.endswith("0")


# --- pictures ------------------------------------------------------------------------------------


@pytest.fixture
def plt() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.TORCH], ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_plot(plt: Any, backend: Backend, batched: bool) -> None:
    sigma = np.where(X > 3.5, np.inf, 0.2)
    res = fit(np.stack([Y + 1.0, Y]) if batched else Y, backend, sigma=sigma)
    figure = res.plot(0.95, row=1) if batched else res.plot(0.95)
    above, below = figure.axes
    figure.canvas.draw()
    curve, data = above.lines[-1], above.containers[0].lines[0]
    row = 1 if batched else None
    one = {
        name: float(backend.to_numpy(leaf if row is None else leaf[row]))
        for name, leaf in res.x.items()
    }
    x, y = curve.get_data()
    np.testing.assert_allclose(y, one["a"] * np.exp(-one["k"] * x) + one["c"], rtol=1e-6)
    assert len(x) > 400 and len(data.get_xdata()) == np.sum(X <= 3.5)
    np.testing.assert_allclose(data.get_ydata(), Y[X <= 3.5])
    rest = below.containers[0].lines[0].get_ydata()
    wanted = Y - (one["a"] * np.exp(-one["k"] * X) + one["c"])
    np.testing.assert_allclose(rest, wanted[X <= 3.5], atol=1e-6)
    assert "95 % band" in [text.get_text() for text in above.get_legend().get_texts()]


def test_plot_of_other_coordinates(plt: Any) -> None:
    """A model of two coordinates is drawn over the number of the point."""
    res = lx.curve_fit(lambda x, a, b: a * x[0] + b * x[1], (X, X**2), Y, [1.0, 1.0])
    figure = res.plot()
    assert figure.axes[1].get_xlabel() == "number of the point"
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), res.predict())


def test_plot_of_data_with_a_covariance(plt: Any) -> None:
    covariance = 0.04 * np.exp(-np.abs(X[:, None] - X))
    figure = fit(sigma=covariance, absolute_sigma=True).plot()
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[1, 1] - bar[0, 1] for bar in bars], 0.4, rtol=1e-6)


def test_plots_of_counts(plt: Any) -> None:
    """The bars are the deviations of the distribution; of shares of trials, in their unit."""
    counts = np.random.default_rng(0).poisson(8.0 * np.exp(-1.3 * X) + 1.0) * 1.0

    def bars(res: lx.CurveFit) -> tuple[np.ndarray, np.ndarray]:
        container = res.plot().axes[0].containers[0]
        segments = container.lines[2][0].get_segments()
        return container.lines[0].get_ydata(), np.asarray([s[:, 1] for s in segments])

    res = fit(counts, likelihood="poisson", bounds=(1e-3, 50.0))
    data, ends = bars(res)
    np.testing.assert_allclose(data, counts)
    np.testing.assert_allclose(ends[:, 1] - data, np.sqrt(res.predict()))
    share = lx.curve_fit(
        lambda x, p: p + 0.0 * x, X, np.minimum(counts, 12.0), [0.5], likelihood="binomial",
        trials=np.full(40, 12.0),
    )
    data, ends = bars(share)
    np.testing.assert_allclose(data, np.minimum(counts, 12.0) / 12.0)
    p = float(share.x[0])
    np.testing.assert_allclose(ends[:, 1] - data, np.sqrt(p * (1.0 - p) / 12.0))
    two = fit(sigma=(np.full(40, 0.1), np.full(40, 0.3)), absolute_sigma=True)
    data, ends = bars(two)
    np.testing.assert_allclose(ends - data[:, None], np.tile([-0.1, 0.3], (40, 1)))


def test_plots_of_profiles(plt: Any) -> None:
    res = fit(bounds=({"c": 0.5}, {"c": 0.5}))
    profiles = res.plot_profiles(size=9)
    assert [ax.get_xlabel() for ax in profiles.axes if ax.get_visible()] == ["k", "a"]
    contours = res.plot_contours(size=12)
    shown = [ax for ax in contours.axes if ax.get_visible()]
    assert len(shown) == 3 and shown[1].get_xlabel() == "k" and shown[1].get_ylabel() == "a"
    points = np.stack(shown[1].lines[0].get_data(), axis=-1)
    np.testing.assert_allclose(points, res.contour("k", "a", 0.6827, 12))
    contours.canvas.draw()
    assert [text.get_text() for text in contours.legends[0].get_texts()] == [
        "profile", "covariance"
    ]
    # Profiles go from one end of the interval to the other, through the fit.
    for figure, least, place in ((profiles, 9, 0), (contours, 31, 0)):
        values, rise = figure.axes[place].lines[0].get_data()
        assert len(values) >= least and res.x["k"] in values
        assert abs(rise.min()) < 1e-9
        np.testing.assert_allclose(values[[0, -1]], [
            float(side["k"]) for side in res.intervals(0.9973)
        ])
    with pytest.raises(ValueError, match="the fit is a batch"):
        fit(np.stack([Y, Y])).plot_profiles()
    with pytest.raises(ValueError, match="row is 2; wanted the number of a fit below 2"):
        fit(np.stack([Y, Y])).plot(row=2)


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for method in ("plot", "plot_profiles", "plot_contours"):
        with pytest.raises(ImportError, match=r"pip install 'lbfgs_xp\[plot\]'"):
            getattr(fit(), method)()


def test_what_a_standard_error_cannot_say_is_said() -> None:
    at_bound = fit(p0=[1.0, 1.0, 0.9], bounds=([0.0, 0.0, 0.8], None)).summary()
    assert at_bound.count("(at its bound)") == 1 and "(at its bound)" in at_bound.splitlines()[3]
    one = lx.curve_fit(lambda x, a: a + 0.0 * x, [1.0], [2.0], [0.0])
    assert "a   2 (error unknown)" in one.summary()


def test_perfect_data_have_no_lower_minimum_elsewhere() -> None:
    with np.errstate(all="raise"):
        res = lx.curve_fit(lambda x, a, b: a + b * x, X, 1.0 + 2.0 * X, [0.0, 0.0])
        found, text = res.intervals(), res.summary(level=0.6827)
    assert found.better is None and "lower minimum" not in text


@pytest.mark.parametrize("batched", [False, True])
def test_the_message_names_what_the_data_do_not_determine(batched: bool) -> None:
    x = np.linspace(0.0, 1.0, 20)
    rows = np.stack([2.0 + x, 1.0 - x])
    fit = lx.curve_fit(
        lambda x, a, b, c: a + b + c * x, x, rows if batched else rows[0],
        {key: np.ones(2 if batched else ()) for key in ("c", "a", "b")}, jac="3-point",
        batched=batched,
    )
    for message in fit.message if batched else [fit.message]:
        assert message.endswith("; the data do not determine a, b")


def test_errors_of_a_perfect_fit_are_not_those_of_fixed_parameters() -> None:
    x = np.linspace(0.0, 4.0, 30)
    lines = lx.curve_fit(lambda x, a, b: a * x + b, x, 0.0 * x, [1.0, 1.0]).summary().splitlines()
    assert lines[1].endswith("± 0") and lines[2].endswith("± 0")
    assert measured(1.0 - 1.1e-16, 3.3e-16, 0.0) == "1 +3.3e-16 -0"
