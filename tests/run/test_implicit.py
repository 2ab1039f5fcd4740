"""Differentiable solutions, against closed forms and against differences of solutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(7)
ROWS, DATA = RNG.normal(size=(12, 4)), RNG.normal(size=12)
TIGHT: dict[str, Any] = {"gtol": 1e-11, "differentiable": True}


def tensor(numbers: Any, **more: Any) -> Any:
    return torch.tensor(np.asarray(numbers), dtype=torch.float64, **more)


X, Y = tensor(ROWS), tensor(DATA)


def ridge(w: Any, penalty: Any) -> Any:
    return 0.5 * ((X @ w - Y) ** 2).sum() + 0.5 * penalty * (w**2).sum()


def of_ridge(penalty: Any, targets: Any = Y) -> Any:
    return torch.linalg.solve(X.T @ X + penalty * torch.eye(4, dtype=torch.float64), X.T @ targets)


def curved(w: Any, penalty: Any) -> Any:
    return ridge(w, penalty) + 0.2 * torch.logaddexp(w, -w).sum() * penalty


def slope(w: Any, penalty: Any) -> Any:
    return X.T @ (X @ w - Y) + penalty * w + 0.2 * penalty * torch.tanh(w)


def solution(fun: Any, penalty: Any, start: Any = 0.0, **settings: Any) -> Any:
    x0 = torch.full((4,), start, dtype=torch.float64)
    return lx.minimize(fun, x0, (penalty,), **{**TIGHT, **settings}).x


def derivatives(x: Any, *inputs: Any) -> tuple[Any, Any]:
    """The gradients of a function of x, and those of a function of them."""
    first = torch.autograd.grad((x**3).sum(), inputs, create_graph=True)
    total = sum((g**2).sum() for g in first)
    return first, torch.autograd.grad(total, inputs, retain_graph=True)


def compare(found: Any, wanted: Any, digits: float = 1e-8) -> None:
    for one, two in zip(found, wanted, strict=True):
        if isinstance(one, tuple):
            compare(one, two, digits)
        else:
            np.testing.assert_allclose(one.detach(), two.detach(), rtol=digits, atol=digits)


def test_ridge_by_its_closed_form() -> None:
    penalty = tensor(0.7, requires_grad=True)
    found = derivatives(solution(ridge, penalty), penalty)
    compare(found, derivatives(of_ridge(penalty), penalty), 1e-9)


@pytest.mark.parametrize("settings", [
    {"method": "lbfgs"},
    {"method": "bfgs", "jac": slope},
    {"method": "newton"},
    {"fun": lambda w, penalty: (curved(w, penalty), slope(w, penalty)), "jac": True},
    {"x_scale": [1.0, 1e-3, 1e3, 4.0]},
    {"method": [lx.Adam(0.05).until(maxiter=20), lx.LBFGS(initial_inverse_hessian=lambda v: v)]},
], ids=["lbfgs", "bfgs", "newton", "both", "scaled", "phases"])
def test_derivatives_agree_with_differences(settings: dict[str, Any]) -> None:
    settings = {"fun": curved, **settings}
    penalty = tensor(0.7, requires_grad=True)

    def of_penalty(penalty: Any) -> Any:
        return solution(penalty=penalty, **settings)

    assert torch.autograd.gradcheck(of_penalty, (penalty,))
    assert torch.autograd.gradgradcheck(of_penalty, (penalty,))


def test_value_gradient_and_aux_are_differentiable_too() -> None:
    penalty = tensor(0.7, requires_grad=True)
    res = lx.minimize(
        lambda w, p: (ridge(w, p), {"size": (w**2).sum()}), torch.zeros(4, dtype=torch.float64),
        (penalty,), has_aux=True, **TIGHT,
    )
    w = of_ridge(penalty)
    wanted = derivatives(torch.stack([ridge(w, penalty), (w**2).sum()]), penalty)
    compare(derivatives(torch.stack([res.fun, res.aux["size"]]), penalty), wanted)
    assert torch.autograd.grad(res.jac.sum(), penalty)[0].abs() < 1e-10


def test_nested_parameters_and_args() -> None:
    def fun(p: Any, given: Any) -> Any:
        return ((p["a"] - given["t"][0]) ** 2).sum() + (p["b"] * given["u"] - 1.0).abs() ** 2

    given = {"t": [tensor([1.0, 2.0], requires_grad=True)], "u": tensor(4.0, requires_grad=True)}
    start = {"a": torch.zeros(2, dtype=torch.float64), "b": tensor(1.0)}
    x = lx.minimize(fun, start, (given,), **TIGHT).x
    assert x["b"].shape == ()
    (one, two) = torch.autograd.grad(x["a"].sum() + x["b"], [given["t"][0], given["u"]])
    np.testing.assert_allclose(one, [1.0, 1.0], rtol=1e-9)
    np.testing.assert_allclose(two, -1.0 / 16.0, rtol=1e-9)


def test_complex_variables() -> None:
    target = torch.tensor([1.0 + 2.0j, -0.5j], dtype=torch.complex128, requires_grad=True)

    def fun(z: Any, target: Any) -> Any:
        return ((z - target).abs() ** 2).sum() + 0.5 * (z.abs() ** 2).sum()

    def of_target(target: Any) -> Any:
        return lx.minimize(fun, torch.zeros(2, dtype=torch.complex128), (target,), **TIGHT).x

    assert torch.autograd.gradcheck(of_target, (target,))


def test_what_functions_hold_is_found() -> None:
    layer = torch.nn.Linear(4, 1, dtype=torch.float64)
    penalty = tensor(0.7, requires_grad=True)
    doubled = 2.0 * penalty    # not a leaf

    def fun(w: Any) -> Any:
        return layer(w).square().sum() + ((w - 1.0) ** 2).sum() * doubled

    x = lx.minimize(fun, torch.zeros(4, dtype=torch.float64), **TIGHT).x
    row, one = layer.weight, torch.ones(4, dtype=torch.float64)
    wanted = torch.linalg.solve(
        row.T @ row + doubled * torch.eye(4, dtype=torch.float64),
        doubled * one - row[0] * layer.bias,
    )
    inputs = penalty, layer.weight, layer.bias
    compare(derivatives(x, *inputs), derivatives(wanted, *inputs))


def test_what_cannot_be_watched_is_refused() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Any, factor: Any) -> Any:
            ctx.save_for_backward(w, factor)
            return (factor * w**2).sum()

        @staticmethod
        def backward(ctx: Any, change: Any) -> Any:
            w, factor = ctx.saved_tensors
            return 2.0 * change * factor * w, change * (w**2).sum()

    factor = tensor(3.0, requires_grad=True)
    with pytest.raises(TypeError, match="cannot be watched"):
        lx.minimize(
            lambda w: Hidden.apply(w - 1.0, factor), torch.zeros(2, dtype=torch.float64), **TIGHT
        )


def test_variables_at_bounds_stay_there() -> None:
    penalty = tensor(0.7, requires_grad=True)
    x = solution(ridge, penalty, bounds=(-0.05, 0.1))
    held = (x == 0.1) | (x == -0.05)
    assert 0 < held.sum() < 4
    free = ~held
    part, rest = X[:, free], Y - X[:, held] @ x[held].detach()
    matrix = part.T @ part + penalty * torch.eye(int(free.sum()), dtype=torch.float64)
    wanted = torch.zeros(4, dtype=torch.float64).masked_scatter(
        free, torch.linalg.solve(matrix, part.T @ rest)
    )
    compare(derivatives(x, penalty), derivatives(wanted + held * x.detach(), penalty))


def test_variables_that_a_penalty_holds_at_0_stay_there() -> None:
    """The solution is s - A^-1 (l1 sign(x)) for the two variables that are not 0."""
    target = tensor([2.0, 0.3, -1.5, -0.2], requires_grad=True)

    def coupled(x: Any, s: Any) -> Any:
        return 0.5 * ((x - s) ** 2).sum() + 0.1 * x[0] * x[2]

    res = lx.minimize(
        coupled, tensor([1.0] * 4), (target,), l1=0.5, gtol=1e-12, differentiable=True
    )
    inverse = np.linalg.inv(np.asarray([[1.0, 0.1], [0.1, 1.0]]))
    x = inverse @ [2.0 - 0.5, -1.5 + 0.5]
    compare(res.x, tensor([x[0], 0.0, x[1], 0.0]))
    compare([res.fun], [coupled(res.x, target) + 0.5 * abs(res.x).sum()])
    (of_first,) = torch.autograd.grad(res.x[0], target, retain_graph=True)
    compare(of_first, tensor([inverse[0, 0], 0.0, inverse[0, 1], 0.0]))
    (of_value,) = torch.autograd.grad(res.fun, target)
    compare(of_value, (target - res.x).detach())


def test_rows_are_independent() -> None:
    penalties = tensor([[0.1], [1.0], [7.0]], requires_grad=True)

    def fun(w: Any, penalty: Any) -> Any:
        return 0.5 * ((w @ X.T - Y) ** 2).sum(-1) + 0.5 * (penalty * w**2).sum(-1)

    start = torch.zeros((3, 4), dtype=torch.float64)
    x = lx.minimize(fun, start, (penalties,), batched=True, **TIGHT).x
    wanted = torch.stack([of_ridge(each) for each in penalties[:, 0]])
    compare(derivatives(x, penalties), derivatives(wanted, penalties))

    def by_number(w: Any, rows: Any, penalties: Any) -> Any:
        return fun(w, penalties[rows])

    x = lx.minimize(
        by_number, start, (penalties,), batched=True, pass_rows=True, **TIGHT
    ).x
    compare(derivatives(x, penalties), derivatives(wanted, penalties))


def test_a_singular_hessian_is_said() -> None:
    total = tensor(1.0, requires_grad=True)

    def flat(w: Any, total: Any) -> Any:
        return ((w.sum(-1) - total) ** 2).sum(-1) if w.ndim == 1 else (w.sum(-1) - total) ** 2

    x = solution(flat, total)
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        x.sum().backward()
    # At a maximum.
    x = solution(lambda w, t: (torch.cos(w - t)).sum(), total, start=1.0, gtol=10.0)
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        x.sum().backward()

    def some(w: Any, total: Any, weight: Any) -> Any:
        return (w.sum(-1) - total) ** 2 + (weight * (w - 1.0) ** 2)[:, 0]

    x = lx.minimize(
        some, torch.zeros((2, 2), dtype=torch.float64), (total, tensor([[1.0], [0.0]])),
        batched=True, **TIGHT,
    ).x
    with pytest.warns(RuntimeWarning, match="rows 1"):
        change = torch.autograd.grad(x[0].sum(), total)[0]
    assert torch.isnan(change)


def test_a_run_that_has_failed_warns() -> None:
    penalty = tensor(0.7, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="not to be trusted"):
        solution(curved, penalty, maxiter=1)


def test_what_has_no_derivative_is_refused() -> None:
    penalty = tensor(0.7, requires_grad=True)
    with pytest.raises(ValueError, match="finite differences"):
        solution(curved, penalty, jac="3-point")
    with pytest.raises(ValueError, match="has a projection"):
        solution(curved, penalty, method=lx.ProjectedGradient(lx.projections.Simplex()))
    with pytest.raises(TypeError, match="bounds is traced or requires a gradient"):
        solution(curved, penalty, bounds=(None, penalty))
    with pytest.raises(TypeError, match="l1 is traced or requires a gradient"):
        solution(curved, penalty, l1=penalty)
    with pytest.raises(TypeError, match="does not depend on x"):
        solution(curved, penalty, jac=lambda w, p: slope(w, p).detach())
    with pytest.raises(ValueError, match="no automatic differentiation"):
        lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True, differentiable=True)
    with pytest.raises(TypeError, match="differentiable is 1"):
        solution(curved, penalty, differentiable=1)


def test_without_derivatives_nothing_requires_a_gradient() -> None:
    penalty = tensor(0.7, requires_grad=True)
    assert not solution(curved, penalty, differentiable=False).requires_grad
    with torch.no_grad():
        x = solution(curved, penalty)
    assert not x.requires_grad and not solution(curved, penalty.detach()).requires_grad


def test_float32() -> None:
    penalty = torch.tensor(0.7, requires_grad=True)
    rows, data = X.float(), Y.float()

    def fun(w: Any, penalty: Any) -> Any:
        return 0.5 * ((rows @ w - data) ** 2).sum() + 0.5 * penalty * (w**2).sum()

    x = lx.minimize(fun, torch.zeros(4), (penalty,), differentiable=True).x
    exact = tensor(0.7, requires_grad=True)
    wanted = torch.autograd.grad((of_ridge(exact) ** 2).sum(), exact)[0]
    found = torch.autograd.grad((x**2).sum(), penalty)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_a_backward_pass_takes_two_solves(batched: bool, monkeypatch: Any) -> None:
    from lbfgs_xp.run import conjugate_gradients

    calls, solve = [], conjugate_gradients.solve
    monkeypatch.setattr(
        conjugate_gradients, "solve", lambda *given: (calls.append(1), solve(*given))[1]
    )
    penalty = tensor(0.7, requires_grad=True)

    def fun(w: Any, penalty: Any) -> Any:
        return ((w - 1.0) ** 2).sum(-1) + penalty * (w**2).sum(-1)

    shape = (3, 4) if batched else (4,)
    start = torch.zeros(shape, dtype=torch.float64)
    x = lx.minimize(fun, start, (penalty,), batched=batched, **TIGHT).x
    for wanted in (2, 3):    # the first one also looks whether the Hessian is singular
        torch.autograd.grad((x**2).sum(), penalty, retain_graph=True)
        assert len(calls) == wanted
