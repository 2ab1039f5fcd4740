"""`least_squares` by products with the Jacobian, and residuals in blocks."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.fits import jacobian
from tests.backends import Backend

UNITS = 3
POINTS = np.linspace(-1.0, 1.0, 24)
START = np.random.default_rng(0).normal(size=3 * UNITS)


def data(points: np.ndarray) -> np.ndarray:
    return np.sin(3.0 * points) + 0.2 * np.random.default_rng(1).normal(size=points.size)


def network(xp: Any) -> Callable:
    """The residuals of a small network with a penalty on its weights."""

    def hidden(x: Any, t: Any) -> tuple[Any, Any]:
        w, b, v = x[:UNITS], x[UNITS : 2 * UNITS], x[2 * UNITS :]
        return xp.tanh(t[:, None] * w + b), v

    def residuals(x: Any, t: Any, y: Any) -> Any:
        h, v = hidden(x, t)
        return xp.concat([h @ v - y, 0.2 * x])

    def jac(x: Any, t: Any, y: Any) -> Any:
        h, v = hidden(x, t)
        bend = v * (1.0 - h * h)
        eye = xp.eye(x.shape[0], dtype=x.dtype, device=x.device)
        return xp.concat([xp.concat([bend * t[:, None], bend, h], axis=1), 0.2 * eye])

    return types.SimpleNamespace(residuals=residuals, jac=jac)  # type: ignore[return-value]


class Operator:
    """Products with a matrix, as SciPy's LinearOperator has them."""

    def __init__(self, matrix: Any):
        self.matvec: Callable = lambda v: matrix @ v
        self.rmatvec: Callable = lambda u: u @ matrix


def prepared(backend: Backend) -> tuple[Callable, Any, Any]:
    """The residuals, their Jacobian as an operator if it is needed, and the further arguments."""
    functions: Any = network(backend.xp)
    args = backend.asarray(POINTS), backend.asarray(data(POINTS))
    if not backend.has_autodiff:
        return functions.residuals, lambda *given: Operator(functions.jac(*given)), args
    if backend.is_jax:
        import jax

        return jax.jit(functions.residuals), None, args
    return functions.residuals, None, args


def dense(loss: Any = "linear") -> Any:
    import array_api_compat.numpy as xp

    functions: Any = network(xp)
    return lx.least_squares(
        functions.residuals, START, (POINTS, data(POINTS)), jac=functions.jac, loss=loss,
        f_scale=0.3,
    )


@pytest.mark.parametrize("solver", ["dual", "cg"])
def test_the_minimum_is_that_of_the_dense_solver(backend: Backend, solver: Any) -> None:
    fun, jac, args = prepared(backend)
    res = lx.least_squares(fun, backend.asarray(START), args, jac=jac, solver=solver)
    wanted = dense()
    assert res.success and wanted.success
    assert res.cost == pytest.approx(wanted.cost, rel=1e-12)
    assert np.allclose(np.abs(backend.to_numpy(res.x)), np.abs(wanted.x), atol=1e-5)
    assert res.jac.shape == wanted.jac.shape
    image = backend.to_numpy(res.jac.matvec(res.x))
    other = lx.least_squares(fun, res.x, args, jac=None if jac is None else matrix_of(backend))
    assert np.allclose(image, backend.to_numpy(other.jac) @ backend.to_numpy(res.x), atol=1e-6)
    slope = backend.to_numpy(res.jac.rmatvec(res.fun))
    assert np.abs(slope).max() < 1e-5


def matrix_of(backend: Backend) -> Callable:
    functions: Any = network(backend.xp)
    return functions.jac


@pytest.mark.parametrize("solver", ["dual", "cg"])
def test_a_robust_loss(solver: Any) -> None:
    fun, jac, args = prepared(Backend.NUMPY)
    res = lx.least_squares(
        fun, START, args, jac=jac, solver=solver, loss="soft_l1", f_scale=0.3
    )
    assert res.success and res.cost == pytest.approx(dense("soft_l1").cost, rel=1e-10)


@pytest.mark.parametrize(
    ("library", "solver"), [(Backend.TORCH, "dual"), (Backend.TORCH, "cg"), (Backend.JAX, "dual")],
    ids=str,
)
def test_fewer_residuals_than_parameters(library: Backend, solver: Any) -> None:
    xp, rng = library.xp, np.random.default_rng(0)
    start = {
        "w": library.asarray(rng.normal(size=20)), "b": library.asarray(rng.normal(size=20)),
        "v": library.asarray(rng.normal(size=20)),
    }

    def fun(p: Any, t: Any, y: Any) -> Any:
        return xp.tanh(t[:, None] * p["w"] + p["b"]) @ p["v"] - y

    if library.is_jax:
        import jax

        fun = jax.jit(fun)
    t = np.linspace(-1.0, 1.0, 8)
    args = library.asarray(t), library.asarray(np.sin(3.0 * t))
    res = lx.least_squares(fun, start, args, solver=solver, pointwise=solver == "dual")
    assert res.success and res.cost < 1e-14
    assert set(res.x) == set(start)


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "pointwise", "parameters"),
    [
        (Backend.TORCH, True, 16), (Backend.TORCH, False, 16), (Backend.TORCH, True, 6),
        (Backend.TORCH, False, 6), (Backend.JAX, True, 16),
    ],
    ids=str,
)
def test_matrices_come_from_pieces_of_rows(
    library: Backend, pointwise: bool, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the Jacobian nor more than a block of its rows is ever there."""
    xp, m = library.xp, 12
    rng = np.random.default_rng(0)
    points, x = rng.normal(size=(m, parameters)), rng.normal(size=parameters)
    monkeypatch.setattr(jacobian, "BLOCK", 8 * parameters)
    monkeypatch.setattr(jacobian, "_PIECE", 4 * parameters)
    seen: list[int] = []
    rows = jacobian.Products._rows

    def watched(self: Any, start: int, stop: int) -> Any:
        found = rows(self, start, stop)
        seen.append(found.shape[0])
        return found

    monkeypatch.setattr(jacobian.Products, "_rows", watched)
    held: list[Any] = []
    monkeypatch.setattr(
        jacobian.Products, "form", lambda self, form=jacobian.Products.form: (
            held.append(self), form(self)
        )[1],
    )

    def fun(x: Any, t: Any) -> Any:
        return xp.tanh(t @ x) - 0.5

    args = (library.asarray(points),)
    lx.least_squares(
        fun, library.asarray(x), args, solver="dual", pointwise=pointwise, maxiter=0
    )
    (operator,) = held
    assert max(seen) <= 4 and operator._whole is None
    wanted = points * (1.0 - np.tanh(points @ x) ** 2)[:, None]
    scale = np.linspace(1.0, 2.0, parameters)
    found, is_dual = operator.gram(scale)
    wanted = wanted / scale
    wanted = wanted @ wanted.T if is_dual else wanted.T @ wanted
    assert is_dual == (m <= parameters)
    assert np.allclose(library.to_numpy(library.xp.asarray(found)), wanted, atol=1e-12)


# --- blocks ------------------------------------------------------------------------------------


def inside(x: Any, points: Any) -> Any:
    a, b = points["inside"], points["edge"]
    return {"edge": x[0] + x[1] * b - 3.0, "inside": [x[0] * a - 1.0, x[1] * a + x[0] * x[1]]}


def test_blocks_have_weights_and_costs() -> None:
    points = {"inside": np.linspace(0.0, 1.0, 5), "edge": np.asarray([1.0, 2.0])}
    weights = {"edge": 10.0, "inside": [1.0, 0.25]}
    res = lx.least_squares(inside, np.asarray([1.0, 1.0]), (points,), weights=weights)

    def joined(x: Any) -> Any:
        found = inside(x, points)
        return np.concat([
            np.sqrt(10.0) * found["edge"], found["inside"][0], 0.5 * found["inside"][1]
        ])

    wanted = lx.least_squares(joined, np.asarray([1.0, 1.0]))
    assert res.success and np.allclose(res.x, wanted.x, atol=1e-8)
    assert res.cost == pytest.approx(wanted.cost) and np.allclose(res.fun, joined(res.x))
    costs = res.costs
    assert costs["edge"] == pytest.approx(5.0 * np.sum(inside(res.x, points)["edge"] ** 2))
    assert costs["edge"] + sum(costs["inside"]) == pytest.approx(res.cost)


def test_blocks_of_a_batch() -> None:
    def fun(x: Any) -> Any:
        return x[:, :1] - 1.0, x * 2.0

    res = lx.least_squares(fun, np.ones((3, 2)), weights=(1.0, 0.5), batched=True)
    assert res.success.all() and res.costs[0].shape == res.costs[1].shape == (3,)
    assert np.allclose(sum(res.costs), res.cost)
    assert np.allclose(res.x, [[1.0 / 3.0, 0.0]] * 3)


@pytest.mark.parametrize("edge", [3, 5])
def test_blocks_by_rows(edge: int) -> None:
    """Also if blocks have the same number of rows."""
    import torch

    points = {
        "inside": torch.linspace(0.0, 1.0, 5, dtype=torch.float64),
        "edge": torch.linspace(1.0, 2.0, edge, dtype=torch.float64),
    }
    start, weights = torch.ones(2, dtype=torch.float64), {"edge": 4.0, "inside": [1.0, 2.0]}
    given: dict[str, Any] = {"weights": weights, "args": (points,)}
    fits = [
        lx.least_squares(inside, start, **given),
        lx.least_squares(inside, start, solver="dual", pointwise=True, **given),
    ]
    assert all(fit.success for fit in fits)
    assert torch.allclose(fits[0].x, fits[1].x, atol=1e-6)


# --- what goes wrong ---------------------------------------------------------------------------


def test_a_wrong_transpose_is_no_success() -> None:
    functions: Any = network(__import__("array_api_compat.numpy", fromlist=["numpy"]))

    def wrong(x: Any, *args: Any) -> Any:
        operator, matrix = Operator(functions.jac(x, *args)), functions.jac(x, *args)
        operator.matvec, operator.rmatvec = (lambda v: -(matrix @ v)), (lambda u: -(u @ matrix))
        return operator

    for solver in ("dual", "cg"):
        res = lx.least_squares(
            functions.residuals, START, (POINTS, data(POINTS)), jac=wrong, solver=solver
        )
        assert not res.success and res.status is lx.Status.LINE_SEARCH


@pytest.mark.parametrize("solver", ["dual", "cg"])
def test_a_region_of_nan_is_left(solver: Any) -> None:
    import torch

    def fun(x: Any) -> Any:
        return torch.cat([torch.sqrt(x) - 0.01, torch.log(x) + 1.0])

    res = lx.least_squares(fun, torch.full((3,), 4.0, dtype=torch.float64), solver=solver)
    wanted = lx.least_squares(fun, torch.full((3,), 4.0, dtype=torch.float64))
    assert res.success and torch.allclose(res.x, wanted.x, atol=1e-6)


def test_an_exception_keeps_the_best_point() -> None:
    fun, jac, args = prepared(Backend.NUMPY)
    calls: list[int] = []

    def fails(x: Any, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("lost")
        return fun(x, *rest)

    with pytest.raises(RuntimeError, match="lost") as caught:
        lx.least_squares(fails, START, args, jac=jac, solver="dual")
    best = caught.value.result  # type: ignore[attr-defined]
    assert best.nit > 0 and best.cost < 0.5 * np.sum(fun(START, *args) ** 2)


def test_exceptions_that_are_forgiven() -> None:
    fun, jac, args = prepared(Backend.NUMPY)

    def singular(x: Any, *rest: Any) -> Any:
        if np.abs(x).max() > 1.7 and len(seen) < 3:
            seen.append(x)
            raise np.linalg.LinAlgError("far")
        return jac(x, *rest)

    seen: list[Any] = []
    start = 0.5 * START
    res = lx.least_squares(
        fun, start, args, jac=singular, solver="dual", on_error=np.linalg.LinAlgError
    )
    assert res.success and res.cost == pytest.approx(dense().cost, rel=1e-6)


def test_sparse_matrices_have_products() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    ones = np.ones(50)
    chain = sparse.diags_array([ones, -ones[1:]], offsets=[0, 1]).tocsr()

    def jac(x: Any) -> Any:
        return chain @ sparse.diags_array(1.0 + 3.0 * x**2)

    for solver in ("dual", "cg"):
        res = lx.least_squares(
            lambda x: chain @ (x + x**3) - 1.0, np.zeros(50), jac=jac, solver=solver
        )
        assert res.success and res.cost < 1e-12


def test_what_is_refused() -> None:
    fun, jac, args = prepared(Backend.NUMPY)
    given: dict[str, Any] = {"jac": jac, "solver": "dual"}

    def short(*args: Any) -> Any:
        operator: Any = jac(*args)
        operator.rmatvec = lambda u: u
        return operator

    for match, more in (
        ("solver is 'qr'", {"solver": "qr"}),
        ("with batched=True", {"batched": True}),
        ("with bounds", {"bounds": (0.0, None)}),
        ("jac is None and solver", {"jac": None}),
        ("jac is '2-point' and solver", {"jac": "2-point"}),
        ("pointwise is True with solver='cg'", {"solver": "cg", "pointwise": True}),
        ("weights is -1", {"weights": -1.0}),
        ("weights has the structure", {"weights": (1.0, 2.0)}),
        (r"the product J\^T u has shape", {"jac": short}),
    ):
        with pytest.raises(ValueError, match=match):
            lx.least_squares(fun, START, args, **{**given, **more})
    with pytest.raises(TypeError, match=r"jac returned a list; wanted an array \(m, p\)"):
        lx.least_squares(fun, START, args, jac=lambda *a: [], solver="cg")
    res = lx.least_squares(fun, START, args, maxiter=1, **given)
    with pytest.raises(ValueError, match='wanted a result of solver="dense"'):
        res.covariance  # noqa: B018


def test_rows_that_are_not_alone_are_refused() -> None:
    import torch

    t = torch.linspace(0.0, 1.0, 6, dtype=torch.float64)
    start = torch.ones(2, dtype=torch.float64)
    for match, fun in (
        ("pointwise is True, but residual 0", lambda x, t: x[0] * t - t.mean() + x[1]),
        ("has a first axis of length 12", lambda x, t: torch.cat([x[0] * t, x[1] * t - 1.0])),
    ):
        with pytest.raises(ValueError, match=match):
            lx.least_squares(fun, start, (t,), solver="dual", pointwise=True)
