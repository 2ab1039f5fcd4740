"""Fixed and tied parameters of fits, by names and positions, for one fit and for batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 40)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.random.default_rng(0).normal(size=40)
SIGMA = np.linspace(0.5, 2.0, 40) * 0.05
ROWS = np.stack([Y, 2.0 * Y, 0.5 * Y])
# A value of c for each row, and how many a belong to one k.
OFFSETS, RATIO = np.asarray([0.45, 0.9, 0.25]), 1.9


def decay(xp: Any = np) -> Any:
    return lambda x, a, k, c: a * xp.exp(-k * x) + c


def jac_of(backend: Backend) -> Any:
    return None if backend.has_autodiff else "3-point"


def ratio(p: Any) -> Any:
    return p["a"] / RATIO


def alone(row: int, **settings: Any) -> lx.CurveFit:
    """The same fit, of a model without the parameters that are fixed or tied."""
    def model(x: Any, a: Any) -> Any:
        return decay()(x, a, a / RATIO, OFFSETS[row])

    return lx.curve_fit(model, X, ROWS[row], [1.0], jac="3-point", sigma=SIGMA, **settings)


def test_fixed_and_tied_parameters_of_a_batch(backend: Backend) -> None:
    """Each row is a fit with one parameter, and the tied one has an error, too."""
    res = lx.curve_fit(
        decay(backend.xp), backend.asarray(X), backend.asarray(ROWS),
        {"a": 1.0, "k": 0.0, "c": OFFSETS}, fixed=("c",), ties={"k": ratio}, jac=jac_of(backend),
        sigma=SIGMA, batched=True,
    )
    x, stderr = ({n: backend.to_numpy(v) for n, v in side.items()} for side in (res.x, res.stderr))
    assert list(x) == list(stderr) == ["a", "k", "c"] and backend.to_numpy(res.success).all()
    np.testing.assert_array_equal(x["c"], OFFSETS)
    np.testing.assert_array_equal(stderr["c"], 0.0)
    for row in range(3):
        one = alone(row)
        assert x["a"][row] == pytest.approx(one.x[0], rel=1e-7)
        assert x["k"][row] == pytest.approx(one.x[0] / RATIO, rel=1e-7)
        assert stderr["a"][row] == pytest.approx(one.stderr[0], rel=1e-5)
        assert stderr["k"][row] == pytest.approx(one.stderr[0] / RATIO, rel=1e-5)
        reduced = backend.to_numpy(res.reduced_chi2)[row]
        assert reduced == pytest.approx(one.reduced_chi2, rel=1e-7)
        correlated = backend.to_numpy(res.covariance)[row, 0, 1]
        assert correlated == pytest.approx(one.covariance[0, 0] / RATIO, rel=1e-5)


def test_fixed_and_tied_parameters_of_one_fit(backend: Backend) -> None:
    res = lx.curve_fit(
        decay(backend.xp), backend.asarray(X), backend.asarray(Y), [1.0, 0.0, OFFSETS[0]],
        fixed="c", ties={1: lambda p: p[0] / RATIO}, jac=jac_of(backend), sigma=SIGMA,
    )
    one = alone(0)
    wanted = [one.x[0], one.x[0] / RATIO, OFFSETS[0]]
    np.testing.assert_allclose(backend.to_numpy(res.x), wanted, rtol=1e-7)
    errors = [one.stderr[0], one.stderr[0] / RATIO, 0.0]
    np.testing.assert_allclose(backend.to_numpy(res.stderr), errors, rtol=1e-5)


def test_a_jacobian_that_is_given_counts_all_parameters() -> None:
    def jac(x: Any, a: Any, k: Any, c: Any) -> Any:
        e = np.exp(-k * x)
        return np.stack([e, -a * x * e, np.ones_like(e)], axis=-1)

    start = {"a": 1.0, "k": 0.0, "c": OFFSETS}
    res = lx.curve_fit(
        decay(), X, ROWS, start, fixed=["c"], ties={"k": ratio}, jac=jac, sigma=SIGMA,
        batched=True,
    )
    for row in range(3):
        assert res.x["a"][row] == pytest.approx(alone(row).x[0], rel=1e-7)
        assert res.stderr["a"][row] == pytest.approx(alone(row).stderr[0], rel=1e-5)


def test_rows_keep_their_own_values_when_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, in a compacted batch, and by L-BFGS."""
    import sys

    monkeypatch.setattr(sys.modules["lbfgs_xp.fits.pieces"], "_FEWEST", 16)
    rng = np.random.default_rng(1)
    rates = rng.uniform(0.3, 3.0, 60)
    offsets = rng.normal(size=60)
    y = 2.0 * np.exp(-rates[:, None] * X) + offsets[:, None] + 0.01 * rng.normal(size=(60, 40))
    start = {"a": 1.0, "k": 1.0, "c": offsets}
    sizes = set()

    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        sizes.add(len(a))
        return decay()(x, a, k, c)

    how: dict[str, Any] = {"jac": "3-point", "batched": True, "fixed": "c"}
    res = lx.curve_fit(model, X, y, start, threads=3, **how)
    assert len(sizes) > 1 and max(sizes) < 60
    shifted = lx.curve_fit(
        lambda x, a, k: decay()(x, a, k, 0.0), X, y - offsets[:, None], [1.0, 1.0],
        jac="3-point", batched=True,
    )
    np.testing.assert_allclose(res.x["k"], shifted.x[:, 1], rtol=1e-6)
    np.testing.assert_allclose(res.stderr["a"], shifted.stderr[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(res.x["c"], offsets)
    slow = lx.curve_fit(model, X, y[:7], {**start, "c": offsets[:7]}, method="lbfgs", **how)
    np.testing.assert_allclose(slow.x["k"], res.x["k"][:7], rtol=1e-5)


def test_nested_names_and_leaves_of_several_numbers() -> None:
    """Two peaks with a shared width; a branch is fixed by its name."""
    grid = np.linspace(-3.0, 3.0, 60)

    def model(x: Any, peaks: Any, ground: Any) -> Any:
        height, place, width = peaks["height"], peaks["place"], peaks["width"]
        total = ground["level"] + ground["slope"] * x
        for i in range(2):
            total = total + height[i] * np.exp(-(((x - place[i]) / width[i]) ** 2))
        return total

    start = {
        "peaks": {"height": np.ones(2), "place": np.asarray([-1.0, 1.2]), "width": np.ones(2)},
        "ground": {"level": 0.1, "slope": 0.02},
    }
    truth = {
        "peaks": {"height": [1.5, 0.7], "place": [-0.9, 1.0], "width": [0.8, 0.8]},
        "ground": start["ground"],
    }
    y = model(grid, **truth)
    res = lx.curve_fit(
        model, grid, y, start, fixed=("ground",), jac="3-point",
        ties={"peaks.width": lambda p: 0.8 * p["peaks"]["height"] / p["peaks"]["height"]},
        bounds=({"peaks": {"height": 0.0}}, None),
    )
    assert res.success and res.x["ground"] == start["ground"]
    np.testing.assert_allclose(res.x["peaks"]["height"], [1.5, 0.7], rtol=1e-7)
    np.testing.assert_allclose(res.x["peaks"]["width"], 0.8, rtol=1e-12)
    assert res.covariance.shape == (8, 8)


def test_ties_of_ties_and_curved_ties() -> None:
    """The error of a tied parameter is its derivative times that of the free one."""
    start = {"c": 0.0, "k": 0.0, "a": 1.0}
    res = lx.curve_fit(
        decay(), X, Y, start, jac="3-point",
        ties={"k": lambda p: p["a"] ** 2 / 5.0, "c": lambda p: 0.4 * p["k"]},
    )
    a = res.x["a"]
    assert res.x["k"] == pytest.approx(a**2 / 5.0) and res.x["c"] == pytest.approx(a**2 / 12.5)
    assert res.stderr["k"] == pytest.approx(0.4 * a * res.stderr["a"], rel=1e-8)
    assert res.stderr["c"] == pytest.approx(0.16 * a * res.stderr["a"], rel=1e-8)
    assert res.covariance_of("c", "k")[0, 0] == pytest.approx(
        res.stderr["c"] * res.stderr["k"], rel=1e-8
    )


def test_what_the_data_do_not_determine_is_passed_on() -> None:
    res = lx.curve_fit(
        lambda x, a, b, c: a + b + 0.0 * c * x, X, Y, {"a": 1.0, "b": 1.0, "c": 0.0}, jac="3-point",
        ties={"c": lambda p: 3.0 * p["a"]},
    )
    assert np.isinf(res.stderr["a"]) and np.isinf(res.stderr["c"])


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.TORCH], ids=str)
@pytest.mark.parametrize("form", ["one", "batch", "chunks"])
def test_ties_of_what_the_data_do_determine(backend: Backend, form: str) -> None:
    """Data at a product of two parameters determine it, though neither of them."""
    xp, y = backend.xp, backend.asarray(np.stack([Y, 2.0 * Y]) if form == "batch" else Y)
    res = lx.curve_fit(
        lambda x, a, b, c, product, other: a * b * xp.exp(-1.3 * x) + c, backend.asarray(X), y,
        {"a": 1.0, "b": 2.0, "c": 0.1, "product": 0.0, "other": 0.0},
        ties={"product": lambda p: p["a"] * p["b"], "other": lambda p: p["a"] + p["c"]},
        batched=form == "batch", **({"chunk_size": 10} if form == "chunks" else {}),
    )
    plain = lx.curve_fit(
        lambda x, product, c: product * xp.exp(-1.3 * x) + c, backend.asarray(X), y,
        {"product": 1.0, "c": 0.1}, batched=form == "batch",
    )
    # The scale of the errors counts a and b as two.
    ratio = res.reduced_chi2 / plain.reduced_chi2
    ratio = np.sqrt(ratio if isinstance(ratio, float) else backend.to_numpy(ratio))
    for name in ("product", "c"):
        np.testing.assert_allclose(
            backend.to_numpy(res.stderr[name]), ratio * backend.to_numpy(plain.stderr[name]),
            rtol=1e-5,
        )
    for name in ("a", "b", "other"):
        assert np.isinf(backend.to_numpy(res.stderr[name])).all()


def test_x_scale_and_messages_know_the_free_parameters() -> None:
    res = lx.curve_fit(
        decay(), X, Y, {"a": 1.0, "k": 1.0, "c": 0.45}, jac="3-point", fixed="k",
        x_scale={"c": 0.1},
    )
    plain = lx.curve_fit(
        lambda x, a, c: decay()(x, a, 1.0, c), X, Y, {"a": 1.0, "c": 0.45}, jac="3-point",
        x_scale={"c": 0.1},
    )
    np.testing.assert_allclose(res.x["c"], plain.x["c"], rtol=1e-9)
    assert (res.nit, res.nfev) == (plain.nit, plain.nfev)
    silent = lx.curve_fit(
        lambda x, a, k, c: a + 0.0 * k * c * x, X, Y, [1.0, 1.0, 1.0], jac="3-point", fixed=1
    )
    assert silent.message.endswith("do not respond to c")


@pytest.mark.parametrize("settings", [
    {"fixed": "c", "bounds": (None, {"c": 1.0, "a": 10.0})},
    {"fixed": (), "ties": {}},
])
def test_settings_that_change_nothing(settings: dict[str, Any]) -> None:
    start = {"a": 1.0, "k": 1.0, "c": 0.5}
    res = lx.curve_fit(decay(), X, Y, start, jac="3-point", **settings)
    assert res.success


ERRORS: list[tuple[dict[str, Any], type, str]] = [
    ({"fixed": "d"}, ValueError, "fixed names 'd'; wanted one of 'a', 'k', 'c'"),
    ({"fixed": 3}, ValueError, "fixed names 3; wanted a name"),
    ({"fixed": 1.5}, TypeError, "fixed is 1.5; wanted a tuple"),
    ({"fixed": ("a", "k", "c")}, ValueError, "name all parameters"),
    ({"ties": ("a",)}, TypeError, r"ties is \('a',\); wanted a dict"),
    ({"ties": {"d": ratio}}, ValueError, "ties names 'd'"),
    ({"ties": {"k": 2.0}}, TypeError, r"ties\['k'\] is 2.0; wanted a function"),
    ({"ties": {"k": ratio}, "fixed": "k"}, ValueError, "'k' is in ties and in fixed"),
    ({"ties": {"k": lambda p: np.ones(3)}}, ValueError, r"ties\['k'\] returned an array of shape"),
    ({"ties": {"k": lambda p: "a"}}, TypeError, r"what ties\['k'\] returned is 'a'"),
    ({"ties": {"k": ratio}, "bounds": (0.0, None)}, ValueError, "bound for p0.k, which is tied"),
    ({"fixed": "k", "bounds": ({"k": 2.0}, None)}, ValueError, "p0.k is 1, fixed outside"),
]


@pytest.mark.parametrize(("settings", "error", "words"), ERRORS)
def test_errors(settings: dict[str, Any], error: type, words: str) -> None:
    start = {"a": 1.0, "k": 1.0, "c": 1.0}
    with pytest.raises(error, match=words):
        lx.curve_fit(decay(), X, Y, start, jac="3-point", **settings)


def test_errors_of_positions_and_order() -> None:
    with pytest.raises(ValueError, match="fixed names 'd'; wanted one of 'a', 'k', 'c'"):
        lx.curve_fit(decay(), X, Y, [1.0, 1.0, 1.0], jac="3-point", fixed="d")
    with pytest.raises(ValueError, match="fixed names 3; wanted a name"):
        lx.curve_fit(decay(), X, Y, [1.0, 1.0, 1.0], jac="3-point", fixed=3)
    for ties in (
        {"c": lambda p: 0.4 * p["k"], "k": ratio}, {"c": lambda p: 0.4 * p["c"]},
        {"c": lambda p: np.exp(p["c"])},
    ):
        with pytest.raises(TypeError, match=r"ties\['c'\] met None .*: a tie sees the ties"):
            lx.curve_fit(
                decay(), X, Y, {"a": 1.0, "k": 1.0, "c": 1.0}, jac="3-point", ties=ties,
            )
    with pytest.raises(KeyError) as caught_name:
        lx.curve_fit(
            decay(), X, Y, {"a": 1.0, "k": 1.0, "c": 1.0}, ties={"c": lambda p: p["kk"]},
        )
    assert "raised by ties['c']" in caught_name.value.__notes__[0]
    assert caught_name.value.__notes__[1].endswith("the parameters are 'a', 'k', 'c'")
    tree = {"peak": {"a": 1.0, "b": 1.0}, "c": 1.0}
    with pytest.raises(ValueError, match="ties names 'peak', a branch of several"):
        lx.curve_fit(lambda x, peak, c: x, X, Y, tree, jac="3-point", ties={"peak": ratio})


@pytest.mark.parametrize("ties", [
    {"c": lambda p: p["c"]}, {"c": lambda p: p["k"], "k": lambda p: p["c"]},
])
def test_circles_of_ties_are_refused(ties: dict) -> None:
    with pytest.raises(TypeError, match="returned None; wanted numbers: a tie sees the ties bef"):
        lx.curve_fit(
            lambda x, a, k, c: a + k * x + c * x * x, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0],
            {"a": 1.0, "k": 1.0, "c": 1.0}, ties=ties,
        )


def test_a_leaf_of_which_some_numbers_are_tied() -> None:
    """A tie that follows sees the leaf whole, and one before sees nan in place of tied numbers."""
    x = np.linspace(0.0, 1.0, 9)
    seen = []

    def sum_of(p: Any) -> Any:
        seen.append(p["w"])
        return p["w"][0] + p["w"][1]

    res = lx.curve_fit(
        lambda x, w, c: w[0] + w[1] * x + c * x**2, x, 1.0 + 2.0 * x + 3.0 * x**2,
        {"w": np.asarray([1.0, 1.0]), "c": 1.0},
        ties={"w[1]": lambda p: 2.0 if np.isnan(p["w"][1]) else math.nan, "c": sum_of},
    )
    assert res.success and res.x["w"][1] == 2.0 and abs(res.x["c"] - res.x["w"][0] - 2.0) < 1e-12
    assert all(leaf is not None and tuple(leaf.shape) == (2,) for leaf in seen)


def test_a_number_tied_to_another_of_its_leaf(backend: Backend) -> None:
    """As in a fit of a plain vector."""
    xp, x = backend.xp, np.linspace(0.0, 4.0, 40)
    peaks = np.exp(-((x - 1.0) ** 2)) + 2.1 * np.exp(-((x - 3.0) ** 2)) + 0.01 * np.cos(9.0 * x)

    def model(x: Any, h: Any, c: Any) -> Any:
        return h[0] * xp.exp(-((x - 1.0) ** 2)) + h[1] * xp.exp(-((x - 3.0) ** 2)) + c

    start = {"h": backend.asarray([1.0, 1.0]), "c": backend.asarray(0.0)}
    res = lx.curve_fit(
        model, backend.asarray(x), backend.asarray(peaks), start,
        ties={"h[1]": lambda p: 2.0 * p["h"][0]},
    )
    alone = lx.curve_fit(
        lambda x, h, c: model(x, [h, 2.0 * h], c), backend.asarray(x), backend.asarray(peaks),
        {"h": 1.0, "c": 0.0},
    )
    first, second = backend.to_numpy(res.x["h"])
    assert res.success and second == 2.0 * first
    np.testing.assert_allclose(first, float(alone.x["h"]), rtol=1e-7)
    np.testing.assert_allclose(
        backend.to_numpy(res.stderr["h"]), float(alone.stderr["h"]) * np.asarray([1.0, 2.0]),
        rtol=1e-6,
    )


def test_a_tie_that_needs_a_later_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ties\['w\[0\]'\] is not finite at p0; wanted finite"):
        lx.curve_fit(
            lambda x, w: w[0] + w[1] * x + w[2] * x**2, X, Y, {"w": np.ones(3)},
            ties={"w[0]": lambda p: p["w"][1], "w[1]": lambda p: p["w"][2]},
        )
