"""`check_gradient`: the gradient compared with differences, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import problems
from tests.backends import Backend


def test_the_error(backend: Backend) -> None:
    p = problems.rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    for call in (
        lambda: lx.check_gradient(p.value_and_gradient, p.x0, True),
        lambda: lx.check_gradient(p.fun, p.x0, p.gradient),
    ):
        found = call()
        assert type(found.error) is float and found.error < 1e-8
        assert found.jac.device == p.x0.device and found.differences.dtype == p.x0.dtype
    if backend.has_autodiff:
        assert lx.check_gradient(p.fun, p.x0).error < 1e-8

    bump = backend.asarray([0.0, 0.0, 5.0, 0.0])
    wrong = lx.check_gradient(p.fun, p.x0, lambda x: p.gradient(x) + bump)
    assert wrong.where == 2
    size = np.max(np.abs(backend.to_numpy(p.gradient(p.x0))))
    assert wrong.error == pytest.approx(5.0 / size, rel=1e-4)


def test_nested_parameters() -> None:
    def fun(t: Any, k: float) -> Any:
        return (k * (np.sum(t["a"] ** 2) + t["b"] ** 3), "aux"), {"a": 2 * k * t["a"], "b": t["b"]}

    tree = {"a": np.ones(2), "b": np.asarray(2.0)}
    found = lx.check_gradient(fun, tree, True, (2.0,), has_aux=True)
    assert found.where == 2
    assert found.error == pytest.approx(22.0 / 24.0, rel=1e-6)


def test_differences_warn_of_nothing() -> None:
    def fun(x: np.ndarray) -> Any:
        return np.inf if x[0] < 1.0 else x[0]

    with np.errstate(all="raise"):
        lx.check_gradient(fun, np.asarray([1.0]), lambda x: np.ones_like(x))


def test_bad_arguments() -> None:
    def value(x: np.ndarray) -> Any:
        return np.sum(x * x)

    with pytest.raises(ValueError, match="numpy has no automatic differentiation: give jac="):
        lx.check_gradient(value, np.ones(3))
    with pytest.raises(TypeError, match="holds a NoneType; wanted arrays"):
        lx.check_gradient(value, None, True)
    with pytest.raises(TypeError, match="fun is a int; wanted a function"):
        lx.check_gradient(3, np.ones(3), True)  # type: ignore[arg-type]
