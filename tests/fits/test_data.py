"""The data of fits in the forms in which they come, and what models return."""

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

X = np.linspace(-1.0, 1.0, 20)
NOISE = 0.1 * np.random.default_rng(0).normal(size=20)
Y = 1.0 + 2.0 * X + NOISE
LEFT_OUT = np.isin(np.arange(20), [3, 11])


def line(x: Any, a: Any, b: Any) -> Any:
    return a + b * x


def fit(x: Any = X, y: Any = Y, p0: Any = (0.0, 0.0), model: Any = line, **settings: Any) -> Any:
    return lx.curve_fit(model, x, y, p0, jac="3-point", **settings)


def masked(array: np.ndarray, fill: float = 1e6, mask: np.ndarray = LEFT_OUT) -> Any:
    return np.ma.array(np.where(mask, fill, array), mask=mask)


# --- masks ---------------------------------------------------------------------------------------


def without_the_points(**settings: Any) -> Any:
    sigma = settings.pop("sigma", None)
    sigma = None if sigma is None else sigma[~LEFT_OUT]
    return fit(X[~LEFT_OUT], Y[~LEFT_OUT], sigma=sigma, **settings)


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        {"y": masked(Y)},
        {"x": masked(X, np.nan)},
        {"sigma": masked(np.ones(20), -1.0)},
        {"y": masked(Y, np.nan), "sigma": 1.0 + X**2},
        {"y": masked(Y, mask=np.arange(20) == 3), "x": masked(X, mask=np.arange(20) == 11)},
    ],
    ids=["y", "x", "sigma", "y beside sigma", "x and y"],
)
def test_masked_points_are_left_out(data: dict, absolute_sigma: bool) -> None:
    sigma = data.get("sigma")
    wanted = without_the_points(
        sigma=None if sigma is None else np.ma.filled(sigma, 1.0), absolute_sigma=absolute_sigma
    )
    res = fit(**data, absolute_sigma=absolute_sigma)
    np.testing.assert_allclose(res.x, wanted.x, rtol=1e-6)
    np.testing.assert_allclose(res.covariance, wanted.covariance, rtol=1e-6)
    for name in ("chi2", "reduced_chi2", "r2"):
        assert getattr(res, name) == pytest.approx(getattr(wanted, name), rel=1e-6)


def test_masks_of_a_batch_and_of_coordinates() -> None:
    mask = np.stack([LEFT_OUT, ~LEFT_OUT & (np.arange(20) < 5)])
    ys = np.ma.array(np.where(mask, np.nan, np.stack([Y, 3.0 * Y])), mask=mask)
    res = fit(y=ys, batched=True)
    for row in range(2):
        keep = ~mask[row]
        alone = fit(X[keep], ys.data[row][keep])
        np.testing.assert_allclose(res.x[row], alone.x, rtol=1e-6)
        assert res.reduced_chi2[row] == pytest.approx(alone.reduced_chi2, rel=1e-6)
    both = np.ma.array(np.stack([X, X**2]), mask=np.stack([LEFT_OUT, np.zeros(20, dtype=bool)]))
    plane = fit(both, model=lambda x, a, b: a * x[0] + b * x[1])
    alone = fit(both.data[:, ~LEFT_OUT], Y[~LEFT_OUT], model=lambda x, a, b: a * x[0] + b * x[1])
    np.testing.assert_allclose(plane.x, alone.x, rtol=1e-6)


def test_a_mask_without_points_changes_nothing() -> None:
    res = fit(np.ma.array(X), np.ma.array(Y), sigma=np.ma.array(np.ones(20)))
    assert np.array_equal(res.x, fit(sigma=np.ones(20)).x)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"y": np.ma.array(Y, mask=True)}, "all data are masked"),
        ({"y": masked(Y), "sigma": np.eye(20)}, "sigma is a covariance"),
        ({"p0": np.ma.array([0.0, 0.0], mask=[True, False])}, "p0 is a masked array"),
        ({"x": {"t": masked(X)}}, "x holds a masked array"),
        ({"bounds": (np.ma.array([0.0, 0.0], mask=[True, False]), None)}, "bound is a masked"),
    ],
)
def test_masks_that_are_refused(data: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit(**data)


# --- columns of data frames ----------------------------------------------------------------------


class Series:
    """Like a Series of pandas: it holds an array, and operations give another one."""

    ndim = 1

    def __init__(self, values: Any):
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __rmul__(self, other: Any) -> Any:
        return Series(other * self.values)

    __mul__ = __rmul__

    def __add__(self, other: Any) -> Any:
        return Series(other + self.values)

    __radd__ = __add__


@pytest.mark.parametrize(
    "data", [{"x": Series(X)}, {"y": Series(Y)}, {"sigma": Series(1.0 + X**2)}],
    ids=["x", "y", "sigma"],
)
def test_columns_of_data_frames(data: dict) -> None:
    plain = {name: series.values for name, series in data.items()}
    assert np.array_equal(fit(**data).x, fit(**plain).x)


def test_columns_of_integers_and_of_text() -> None:
    counts = Series(np.arange(20))
    np.testing.assert_allclose(fit(counts, counts).x, [0.0, 1.0], atol=1e-8)
    with pytest.raises(TypeError, match="y has dtype object; wanted real numbers"):
        fit(y=Series(np.asarray(["a"] * 20, dtype=object)))


# --- what models return --------------------------------------------------------------------------


def test_models_that_return_something_else() -> None:
    with pytest.raises(TypeError, match="model returned dtype int64; wanted a real floating"):
        fit(model=lambda x, a, b: np.round(a + 9.0 * x).astype(int))
    with pytest.raises(TypeError, match=r"model returned a list; wanted an array of shape \(20,\)"):
        fit(model=lambda x, a, b: list(a + b * x))
    with pytest.raises(TypeError, match="model returned a Series; wanted an array of shape"):
        fit(model=lambda x, a, b: Series(a + b * x))


def test_a_model_that_returns_an_array_of_another_library() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="model returned an array of torch; wanted an array of num"):
        fit(model=lambda x, a, b: torch.as_tensor(a + b * x))


# --- coordinates beside a batch ------------------------------------------------------------------


def plane(x: Any, a: Any, b: Any) -> Any:
    return a * x[0] + b * x[-1]


def curved(x: Any, a: Any, b: Any) -> Any:
    return a * x[0] + np.exp(b) * x[-1]


def middle(x: Any, a: Any, b: Any) -> Any:
    return a * x[1] + b * x[0]


@pytest.mark.parametrize("model", [plane, curved, middle])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_many_coordinates_as_curves(model: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    x, true = rng.normal(size=(count, 40)), rng.normal(size=(count, 2))
    spread = np.linspace(0.0, 2.0, count)[:, None] * rng.normal(size=(count, 40))
    ys = np.stack([model(x, *p) for p in true]) + spread
    res = fit(x, ys, model=model, batched=True)
    for row, y in enumerate(ys):
        np.testing.assert_allclose(res.x[row], fit(x, y, model=model).x, rtol=1e-4, atol=1e-7)


def test_data_of_rows_stay_data_of_rows() -> None:
    x = np.random.default_rng(0).normal(size=(3, 40))
    seen = []

    def model(x: Any, a: Any, b: Any) -> Any:
        seen.append(x.shape)
        return a * x + np.exp(b * x)

    ys = np.stack([model(row, 1.0, 0.5 * i) for i, row in enumerate(x)])
    res = fit(x, ys, model=model, batched=True)
    np.testing.assert_allclose(res.x, [[1.0, 0.0], [1.0, 0.5], [1.0, 1.0]], atol=1e-6)
    assert {shape[1:] for shape in seen if len(shape) == 2} == {(40,)}


# --- starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("p0", [1.0, 1, np.asarray(1.0), np.float32(1.0)])
def test_one_number_as_a_start(p0: Any) -> None:
    res = fit(p0=p0, model=lambda x, a: a * np.exp(x), y=2.0 * np.exp(X))
    assert res.x.shape == (1,) and res.x[0] == pytest.approx(2.0)
    both = fit(
        p0=p0, model=lambda x, a: a * np.exp(x), batched=True,
        y=np.stack([2.0 * np.exp(X), 3.0 * np.exp(X)]),
    )
    np.testing.assert_allclose(both.x, [[2.0], [3.0]])


def test_data_may_be_integers() -> None:
    whole = np.round(10.0 * Y).astype(int)
    np.testing.assert_array_equal(fit(y=whole).x, fit(y=whole.astype(float)).x)
    parts = fit(y=whole, chunk_size=7)
    np.testing.assert_allclose(parts.x, fit(y=whole).x, rtol=1e-6)


def test_an_iterator_is_refused_as_a_coordinate() -> None:
    with pytest.raises(TypeError, match="x is an iterator, which a model can read once"):
        fit(iter(X))


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 2.0**-60, reason="no wider dtype")
def test_dtypes_that_matrices_do_not_have() -> None:
    with pytest.raises(TypeError, match="p0 has dtype .*128, .* from the data; wanted float32"):
        fit(y=Y.astype(np.longdouble))
    with pytest.raises(TypeError, match="x0 has dtype .*128"):
        lx.least_squares(lambda x: x - 1.0, np.zeros(2, np.longdouble))


def test_lists_in_bounds() -> None:
    def polynomial(x: Any, a: Any, b: Any) -> Any:
        return a[0] + a[1] * x + b * x**2

    start = {"a": np.zeros(2), "b": 0.0}
    found = fit(p0=start, model=polynomial, bounds=({"a": [1.2, 0.0]}, {"a": [3.0, 1.5]}))
    np.testing.assert_allclose(found.x["a"], [1.2, 1.5])
    with pytest.raises(ValueError, match=r"the lower bound\.a has shape \(3,\); wanted .* \(2,\)"):
        fit(p0=start, model=polynomial, bounds=({"a": [0.0] * 3}, None))
    with pytest.raises(ValueError, match=r"the structure \{'a': \{'c': \*\}, 'b': \*\}; wanted"):
        fit(p0=start, model=polynomial, bounds=({"a": {"c": 1.0}}, None))
