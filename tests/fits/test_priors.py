"""Priors of parameters: in closed form for linear models, in batches, beside robust losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.0, 1.0, 30)
RNG = np.random.default_rng(3)
ROWS = np.stack([np.ones(30), X, X**2], axis=-1)
Y = ROWS @ np.asarray([[1.0, -2.0, 0.5], [0.5, 1.0, 1.0]]).T + 0.1 * RNG.normal(size=(30, 2))
Y = Y.T
MEANS = np.asarray([-1.5, 0.5])
PAIR = np.asarray([[0.2, 0.05], [0.05, 0.1]])


def parabola(x: Any, a: Any, b: Any, c: Any) -> Any:
    return a + b * x + c * x * x


def exact(y: np.ndarray, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """The parameters and their covariance, with b ~ N(mean, 0.3) and (a, c) by a covariance."""
    precision = np.zeros((3, 3))
    precision[1, 1] = 0.3**-2.0
    precision[np.ix_([0, 2], [0, 2])] = np.linalg.inv(PAIR)
    prior = np.asarray([0.8, mean, 0.4])
    covariance = np.linalg.inv(ROWS.T @ ROWS / 0.01 + precision)
    return covariance @ (ROWS.T @ y / 0.01 + precision @ prior), covariance


PRIORS = {"b": (MEANS, 0.3), ("a", "c"): ([0.8, 0.4], PAIR)}
HOW: dict[str, Any] = {"sigma": 0.1, "absolute_sigma": True}


def test_normal_priors_in_closed_form(backend: Backend) -> None:
    start = {"c": 0.0, "a": 0.0, "b": 0.0}
    res = lx.curve_fit(
        parabola, backend.asarray(X), backend.asarray(Y), start, priors=PRIORS, batched=True, **HOW
    )
    for row in range(2):
        wanted, covariance = exact(Y[row], MEANS[row])
        found = [float(backend.to_numpy(res.x[name])[row]) for name in "abc"]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        order = [1, 2, 0]    # c, a, b in the result
        np.testing.assert_allclose(
            backend.to_numpy(res.covariance)[row][np.ix_(order, order)], covariance, rtol=1e-5
        )
        away = wanted - [0.8, MEANS[row], 0.4]
        pair = away[[0, 2]] @ np.linalg.inv(PAIR) @ away[[0, 2]]
        assert float(backend.to_numpy(res.chi2_priors)[row]) == pytest.approx(
            pair + (away[1] / 0.3) ** 2, rel=1e-5
        )
        chi2 = np.sum((Y[row] - ROWS @ wanted) ** 2) / 0.01
        assert float(backend.to_numpy(res.chi2)[row]) == pytest.approx(chi2, rel=1e-7)
    assert backend.to_numpy(res.dof).tolist() == [30, 30] and res.n_priors == 3


def test_a_function_of_one_fit(backend: Backend) -> None:
    """The same priors as a function; for one fit, with a tied parameter."""
    xp = backend.xp

    def priors(p: Any) -> Any:
        return xp.stack([(p["b"] + 1.5) / 0.3, (p["c"] - 0.4) / 0.2])

    start = {"a": 0.0, "b": 0.0, "c": 0.0}
    arguments = backend.asarray(X), backend.asarray(Y[0]), start
    by_name = {"b": (-1.5, 0.3), "c": (0.4, 0.2)}
    res, wanted = (lx.curve_fit(parabola, *arguments, priors=each, **HOW)
                   for each in (priors, by_name))
    for name in "abc":
        assert float(res.x[name]) == pytest.approx(float(wanted.x[name]), rel=1e-6)
        assert float(res.stderr[name]) == pytest.approx(float(wanted.stderr[name]), rel=1e-5)
    tied = lx.curve_fit(
        parabola, *arguments, priors=by_name, ties={"c": lambda p: -0.2 * p["b"]}, **HOW
    )
    column = ROWS[:, 1] - 0.2 * ROWS[:, 2]
    rows = np.stack([ROWS[:, 0], column], axis=-1)
    precision = np.diag([0.0, 0.3**-2.0 + 0.2**2 / 0.2**2])
    right = rows.T @ Y[0] / 0.01 + [0.0, -1.5 / 0.09 - 0.2 * 0.4 / 0.04]
    solved = np.linalg.solve(rows.T @ rows / 0.01 + precision, right)
    assert float(tied.x["b"]) == pytest.approx(solved[1], rel=1e-6)
    assert tied.dof == 30


def test_priors_do_not_pass_through_the_loss() -> None:
    """A prior far from the data keeps its weight, whatever the loss of the data."""
    y = Y[0].copy()
    y[::5] += 3.0
    how: dict[str, Any] = {**HOW, "loss": "cauchy", "priors": {"b": (5.0, 0.01)}}
    for method in ("lm", "lbfgs"):
        res = lx.curve_fit(parabola, X, y, [1.0, 0.0, 0.0], method=method, **how)
        assert res.success and res.x[1] == pytest.approx(5.0, abs=0.05)
        assert res.stderr[1] < 0.0101
        residuals = (y - ROWS @ res.x) / 0.1
        assert res.chi2 == pytest.approx(np.sum(np.log1p(residuals**2)), rel=1e-9)


def test_priors_determine_what_the_data_do_not() -> None:
    res = lx.curve_fit(
        lambda x, a, b: a + b + 0.0 * x, X, Y[0], [0.0, 0.0], priors={"b": (0.3, 0.5)}, **HOW
    )
    assert res.success and res.x[1] == pytest.approx(0.3, abs=1e-6)
    assert res.stderr[1] == pytest.approx(0.5, rel=1e-6)
    few = lx.curve_fit(
        parabola, X[:2], Y[0, :2], [0.0, 0.0, 0.0], priors={1: (0.0, 1.0), 2: (0.0, 1.0)}, **HOW
    )
    assert few.success and np.isfinite(few.stderr).all() and few.dof == 1


def test_priors_of_counts_and_of_leaves_with_several_numbers() -> None:
    counts = RNG.poisson(4.0, size=(2, 30)).astype(float)

    def model(x: Any, w: Any) -> Any:
        return np.exp(w[..., 0] + w[..., 1] * x)

    how: dict[str, Any] = {"likelihood": "poisson"}
    start = {"w": np.zeros((2, 2))}
    prior = {"w": (np.asarray([1.0, 0.0]), np.asarray([0.1, 0.2]))}
    res = lx.curve_fit(model, X, counts, start, priors=prior, batched=True, **how)
    one = lx.curve_fit(
        model, X, counts[1], {"w": np.zeros(2)}, priors={"w[0]": (1.0, 0.1), "w[1]": (0.0, 0.2)},
        **how,
    )
    np.testing.assert_allclose(res.x["w"][1], one.x["w"], rtol=1e-6)
    np.testing.assert_allclose(res.stderr["w"][1], one.stderr["w"], rtol=1e-5)
    assert one.n_priors == 2 and one.chi2_priors > 0.0


@pytest.mark.parametrize(("settings", "error", "words"), [
    ({"absolute_sigma": False}, ValueError, "priors were passed with absolute_sigma=False"),
    ({"priors": 3}, TypeError, "priors is 3; wanted a dict"),
    ({"priors": {"d": (0.0, 1.0)}}, ValueError, "priors names 'd'; wanted one of 'a', 'b', 'c'"),
    ({"priors": {"a": 1.0}}, TypeError, r"priors\['a'\] is 1.0; wanted the pair"),
    ({"priors": {"a": (0.0, 0.0)}}, ValueError, r"priors\['a'\] has the standard deviation 0"),
    ({"priors": {"a": (0.0, np.inf)}}, ValueError, r"priors\['a'\] has the standard deviation inf"),
    ({"priors": {"a": (np.nan, 1.0)}}, ValueError, r"priors\['a'\] has the mean"),
    ({"priors": {"a": ("b", 1.0)}}, TypeError, r"priors\['a'\] is 'b'"),
    ({"priors": {"a": (np.ones(3), 1.0)}}, ValueError, r"priors\['a'\] has an array of shape"),
    ({"priors": {("a", "b"): (np.ones(2), np.ones(2))}}, ValueError, r"and a covariance \(2, 2\)"),
    ({"priors": {("a", "b"): (np.ones(2), -np.eye(2))}}, ValueError, "not positive definite"),
    ({"priors": {("a", "b"): (np.ones(2), [[1, 2], [0, 1]])}}, ValueError, "not symmetric"),
    ({"priors": {"a": (0, 1), ("a", "b"): ([0, 0], np.eye(2))}}, ValueError, "a parameter twice"),
    ({"priors": lambda p: 1.0}, ValueError, r"priors returned an array of shape \(\)"),
    ({"fixed": ("a",)}, ValueError, r"priors\['a'\] is of parameters alone that are fixed"),
    ({"bounds": ([0.5, -9, -9], [0.5, 9, 9])}, ValueError, r"priors\['a'\] is of parameters alone"),
    ({"priors": {(): (1.0, 1.0)}}, ValueError, r"priors has the key \(\); wanted a tuple of names"),
    (
        {"priors": {("a", "b"): (np.ones(2), np.diag([1.0, np.inf]))}}, ValueError,
        r"priors\[\('a', 'b'\)\] has a matrix with entries that are not finite",
    ),
])
def test_errors(settings: dict[str, Any], error: type, words: str) -> None:
    given = {"priors": {"a": (0.0, 1.0)}, **HOW, **settings}
    with pytest.raises(error, match=words):
        lx.curve_fit(parabola, X, Y[0], [0.0, 0.0, 0.0], **given)


def test_a_prior_of_a_parameter_with_equal_bounds() -> None:
    """Alone it says nothing, in one row of a batch neither; correlated with a free one it does."""
    low = np.asarray([[-9.0, -9.0, -9.0], [0.5, -9.0, -9.0]])
    high = np.asarray([[9.0, 9.0, 9.0], [0.5, 9.0, 9.0]])
    with pytest.raises(ValueError, match=r"priors\['a'\] is of parameters alone that are fixed"):
        lx.curve_fit(
            parabola, X, np.stack([Y[0], Y[0]]), [0.5, 0.0, 0.0], batched=True,
            bounds=(low, high), priors={"a": (0.0, 1.0)}, **HOW,
        )
    cov = np.asarray([[1.0, 0.5], [0.5, 1.0]])
    res = lx.curve_fit(
        parabola, X, Y[0], [0.5, 0.0, 0.0], bounds=(low[1], high[1]),
        priors={("a", "b"): ([0.0, 0.0], cov)}, **HOW,
    )
    assert res.success and res.x[0] == 0.5
    tied = lx.curve_fit(
        parabola, X, Y[0], [0.5, 0.0, 0.0], ties={"a": lambda p: 2.0 * p[1]},
        priors={"a": (0.0, 1.0)}, **HOW,
    )
    assert tied.n_priors == 1
