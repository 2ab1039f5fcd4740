"""Errors about a leaf name its path; what is no dense array of numbers is refused by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

GOOD = {"a": np.ones(3), "b": [np.ones(2), np.ones(1)]}
WRONG: dict[str, Any] = {
    "integers": np.ones(2, int),
    "None": None,
    "a function": len,
    "a mask": np.ma.masked_array([1.0, 2.0], [0, 1]),
    "text": np.asarray(["a"]),
    "half": np.ones(2, np.float16),
    "float32": np.ones(2, np.float32),
}


def with_leaf(leaf: Any) -> Any:
    return {"a": np.ones(3), "b": [leaf, np.ones(1)]}


def value(p: Any) -> Any:
    return 1.0, p


@pytest.mark.parametrize("kind", WRONG)
def test_parameters(kind: str) -> None:
    tree = with_leaf(WRONG[kind])
    calls: dict[str, Callable[[], Any]] = {
        "x0": lambda: lx.minimize(value, tree, jac=True),
        "x": lambda: lx.check_gradient(value, tree, jac=True),
        "params": lambda: lx.Adam().init(tree),
    }
    if kind == "float32":    # an optimizer takes several dtypes
        del calls["params"]
    for what, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=rf"{what}\.b\.0\b"):
            call()
    with pytest.raises((TypeError, ValueError), match=r"x0\.b\.0"):
        lx.least_squares(lambda p: p["a"], tree, jac="3-point")


@pytest.mark.parametrize("wrong", [np.ones(4), np.ones(2) * 1j, np.asarray(["a", "b"])], ids=str)
def test_gradients(wrong: Any) -> None:
    tree = with_leaf(wrong)
    with pytest.raises((TypeError, ValueError), match=r"the gradient\.b\.0 "):
        lx.minimize(lambda p: (1.0, tree), GOOD, jac=True)
    state = lx.Adam().init(GOOD)
    with pytest.raises((TypeError, ValueError), match=r"grads\.b\.0 "):
        lx.Adam().update(GOOD, tree, state)


def test_bounds_and_starts_of_fits() -> None:
    for bad in (np.zeros(4), "a", np.asarray(["a"])):
        with pytest.raises((TypeError, ValueError), match=r"the lower bound\.b\.0 "):
            lx.minimize(value, GOOD, jac=True, bounds=(with_leaf(bad), None))
    x = np.arange(5.0)
    with pytest.raises(TypeError, match=r"p0\.b is 'z'; wanted real numbers"):
        lx.curve_fit(lambda x, a, b: a * x, x, x, {"a": 1.0, "b": "z"}, jac="3-point")


def test_rows_of_a_batch() -> None:
    tree = {"a": np.ones((2, 3)), "b": np.ones((3, 3))}
    message = r"x0\.a has shape \(2, 3\), x0\.b has shape \(3, 3\); wanted, with batched=True"
    with pytest.raises(ValueError, match=message):
        lx.minimize(value, tree, jac=True, batched=True)


def test_a_matrix() -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0]])
    with pytest.raises(TypeError, match="x0 is a numpy.matrix; wanted an array, such as"):
        lx.minimize(value, matrix, jac=True)


# --- tensors of torch that are sparse or without values ------------------------------------------


def test_sparse_and_meta_tensors() -> None:
    torch = pytest.importorskip("torch")
    dense = torch.eye(3, dtype=torch.float64)
    sparse, meta = dense.to_sparse(), dense.to("meta")
    for leaf, words in ((sparse, "has the layout torch.sparse_coo; wanted a dense tensor"),
                        (meta, "is on the device meta, which holds no numbers; wanted")):
        for tree, name in ((leaf, "x0"), ({"a": leaf}, r"x0\.a"), ([dense, leaf], r"x0\.1")):
            with pytest.raises(TypeError, match=f"{name} {words}"):
                lx.minimize(lambda p: p, tree)
        with pytest.raises(TypeError, match=rf"params\.a {words}"):
            lx.Adam().init({"a": leaf})
    start = {"a": dense, "b": dense[0]}
    with pytest.raises(TypeError, match=r"params\.a has the layout torch.sparse_coo"):
        lx.Adam().update({**start, "a": sparse}, start, lx.Adam().init(start))
