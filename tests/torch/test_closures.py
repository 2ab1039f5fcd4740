"""`LBFGS` of lbfgs_xp.torch: closures that are not what they should be, and states of torch."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lbfgs_xp as lx
from lbfgs_xp.torch import LBFGS

F64 = torch.float64
RULES = [None, "strong_wolfe", "more_thuente"]


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def start(values: Any = (-1.2, 1.0, 0.5), dtype: Any = F64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


class Count:
    """A closure that clears the gradients, and counts its calls."""

    def __init__(self, opt: Any, x: torch.Tensor, fun: Callable = rosenbrock):
        self.opt, self.x, self.fun, self.calls = opt, x, fun, 0

    def __call__(self) -> Any:
        self.calls += 1
        self.opt.zero_grad()
        loss = self.fun(self.x)
        loss.backward()
        return loss


# --- closures with a mistake -------------------------------------------------------------------


def forgets(opt: Any, x: Any) -> Any:
    loss = rosenbrock(x)
    loss.backward()
    return loss


def forgets_one(opt: Any, x: Any) -> Any:
    """Two passes, after clearing only what is no gradient."""
    half = 0.5 * rosenbrock(x)
    half.backward(retain_graph=True)
    half.backward()
    return 2.0 * half


def negates(opt: Any, x: Any) -> Any:
    opt.zero_grad()
    loss = rosenbrock(x)
    (-loss).backward()
    return loss


def spoils(opt: Any, x: Any) -> Any:
    loss = Count(opt, x)()
    x.grad[0] *= -1.0
    return loss


def returns_another(opt: Any, x: Any) -> Any:
    opt.zero_grad()
    loss = rosenbrock(x)
    (loss + 3.0 * (x**2).sum()).backward()
    return loss


def clamps(opt: Any, x: Any) -> Any:
    x.data.clamp_(-1.0, 0.7)
    return Count(opt, x)()


def clamps_afterwards(opt: Any, x: Any) -> Any:
    loss = Count(opt, x)()
    with torch.no_grad():
        x.clamp_(-2.0, 0.7)
    return loss


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("closure", "message"), [
    (forgets, "function and gradient disagree: closure adds.*zero_grad"),
    (forgets_one, "function and gradient disagree: closure adds.*zero_grad"),
    (negates, "function and gradient disagree: over a short step|the gradient is wrong"),
    (spoils, "function and gradient disagree: over a short step|the gradient is wrong"),
    (clamps, "closure changes the parameters, such as by clamping"),
    (clamps_afterwards, "closure changes the parameters, such as by clamping"),
], ids=lambda v: v.__name__ if callable(v) else "")
def test_mistakes_are_told_and_cost_little(rule: Any, closure: Callable, message: str) -> None:
    x = start()
    opt = LBFGS([x], max_iter=20, line_search_fn=rule)
    values = []
    for _ in range(3):
        opt.step(lambda: closure(opt, x))
        assert opt.result.nfev <= 10 and not opt.result.status.success
        assert opt.result.status in (lx.Status.LINE_SEARCH, lx.Status.DIVERGED)
        values.append(float(rosenbrock(x).detach()))
    assert torch.isfinite(x).all() and max(values) <= 60.0
    assert re.search(message, opt.result.message)


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_of_another_function_is_told_at_its_minimum(rule: Any) -> None:
    x = start()
    opt = LBFGS([x], line_search_fn=rule)
    for _ in range(12):
        opt.step(lambda: returns_another(opt, x))
        assert opt.result.status is not lx.Status.VALUE and not opt.result.status.success
        if "over a short step" in opt.result.message:
            break
    assert opt.result.status is lx.Status.LINE_SEARCH


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("closure", [forgets, negates, spoils, clamps], ids=lambda c: c.__name__)
def test_mistakes_are_told_in_short_steps(rule: Any, closure: Callable) -> None:
    """As in a loop with one iteration in each step."""
    x = start()
    opt = LBFGS([x], max_iter=1, line_search_fn=rule)
    told = 0
    for _ in range(12):
        opt.step(lambda: closure(opt, x))
        told += bool(opt.result.message.count("gradient") or opt.result.message.count("changes"))
    assert not opt.result.status.success and told > 3
    assert x.abs().max() < 1e6


def test_what_is_no_mistake() -> None:
    """Gradients that are cleared in place, or clipped, or accumulated in parts, or cleared by the
    caller; and a start that is moved into the domain."""

    def parts(opt: Any, x: Any) -> Any:
        opt.zero_grad(set_to_none=False)
        losses = [100.0 * (x[1:] - x[:-1] ** 2) ** 2, (1.0 - x[:-1]) ** 2]
        for loss in losses:
            loss.sum().backward()
        return sum(loss.sum() for loss in losses)

    x = start()
    opt = LBFGS([x], max_iter=100, line_search_fn="strong_wolfe")
    opt.step(lambda: parts(opt, x))
    assert opt.result.status.success and torch.allclose(x, torch.ones(3, dtype=F64), atol=1e-3)

    x = start()
    opt = LBFGS([x], max_iter=1, line_search_fn=None)
    for _ in range(20):
        opt.zero_grad()
        opt.step(lambda: forgets(opt, x))
        assert opt.result.status is lx.Status.ITERATIONS

    x = start((5.0, 5.0))
    opt = LBFGS([x], line_search_fn="strong_wolfe")

    def domain() -> Any:
        with torch.no_grad():
            x.clamp_(max=4.0)
        return Count(opt, x, lambda x: ((x - 3.0) ** 4).sum())()

    opt.step(domain)
    assert opt.result.status.success and torch.allclose(x, x.new_tensor(3.0), atol=1e-2)


@pytest.mark.parametrize("max_iter", [1, 20])
def test_without_a_line_search_nothing_runs_away(max_iter: int) -> None:
    for fun, lr, status in (
        (lambda x: (x**2).sum(), 30.0, lx.Status.DIVERGED),
        (lambda x: -(x**2).sum(), 1.0, lx.Status.UNBOUNDED),
        (rosenbrock, 5.0, lx.Status.DIVERGED),
    ):
        x = start()
        opt = LBFGS([x], lr=lr, max_iter=max_iter)
        closure = Count(opt, x, fun)
        for _ in range(1000):
            opt.step(closure)
            if opt.result.status is status:
                break
        assert opt.result.status is status and not status.success
        assert abs(opt.result.fun) < 1e160
        calls = closure.calls
        for _ in range(6):    # says so again
            opt.step(closure)
            if opt.result.status is status:
                break
        assert opt.result.status is status and closure.calls <= calls + 20


def test_no_gradient_moves_nothing() -> None:
    x = start()
    opt = LBFGS([x], line_search_fn="strong_wolfe")
    assert opt.step(lambda: rosenbrock(x)).item() == rosenbrock(x).item()
    assert x.tolist() == [-1.2, 1.0, 0.5] and opt.result.nfev == 1
    assert opt.result.status is lx.Status.LINE_SEARCH
    assert "closure left no gradients" in opt.result.message


# --- tolerances --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[:2])
def test_tolerances_are_those_of_torch(rule: Any) -> None:
    values = [math.inf, -math.inf, -1.0, 0.0, 1e-9]
    for grad, change in itertools.product(values, values):
        settings = {"tolerance_grad": grad, "tolerance_change": change, "max_iter": 8}
        ends = []
        for kind in (LBFGS, torch.optim.LBFGS):
            x = start((1.0, 2.0))
            closure = Count(kind([x], line_search_fn=rule, **settings), x, lambda x: (x**4).sum())
            closure.opt.step(closure)
            ends.append((closure.calls, x.detach()))
        assert ends[0][0] == ends[1][0]
        torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-7, atol=1e-9)


# --- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("history_size", [4, 100])
def test_states_of_torch(rule: Any, steps: int, dtype: Any, history_size: int) -> None:
    def fun(x: torch.Tensor) -> torch.Tensor:
        return (torch.logspace(0, 2, 6, dtype=dtype) * x**2 + x**4).sum()

    x = start(torch.linspace(-1.0, 2.0, 6).tolist(), dtype)
    theirs = torch.optim.LBFGS([x], max_iter=3, line_search_fn=rule, history_size=history_size)
    for _ in range(steps):
        theirs.step(Count(theirs, x, fun))
    y = x.detach().clone().requires_grad_()
    ours = LBFGS([y], max_iter=9)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["max_iter"] == 3
    assert ours.param_groups[0]["line_search_fn"] == rule
    # Also once more, through a state of our own.
    again = LBFGS([y], max_iter=9)
    again.load_state_dict(ours.state_dict())
    tolerance = {F64: 1e-10, torch.float32: 1e-4}[dtype]
    for _ in range(2 if rule else 4):
        theirs.step(Count(theirs, x, fun))
        again.step(Count(again, y, fun))
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)


def test_states_of_torch_with_frozen_parameters() -> None:
    ends = []
    for kind in (LBFGS, torch.optim.LBFGS):
        frozen, x = torch.ones(2, dtype=F64), start()
        theirs = torch.optim.LBFGS([frozen, x], max_iter=4)
        theirs.step(Count(theirs, x))
        opt = kind([frozen, x], max_iter=4)
        opt.load_state_dict(theirs.state_dict())
        opt.step(Count(opt, x))
        assert frozen.tolist() == [1.0, 1.0]
        ends.append(x.detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="vectors of 5 numbers; wanted 6"):
        opt = LBFGS([torch.ones(3, dtype=F64), start()])
        opt.load_state_dict(theirs.state_dict())


def test_states_without_curvature_or_new_settings() -> None:
    x = start((0.0, 0.0))
    theirs = torch.optim.LBFGS([x], line_search_fn="strong_wolfe")
    theirs.step(Count(theirs, x, lambda x: (x**2).sum()))
    opt = LBFGS([x], maximize=True)
    opt.load_state_dict(theirs.state_dict())
    assert opt.param_groups[0]["maximize"] is True
    state = LBFGS([x]).state_dict()
    del state["param_groups"][0]["maximize"]
    opt.load_state_dict(state)
    opt.step(Count(opt, x, lambda x: -((x - 1.0) ** 2).sum()))
    assert torch.allclose(x, torch.ones(2, dtype=F64))


def test_a_copy_keeps_the_result() -> None:
    x = start()
    opt = LBFGS([x], line_search_fn="strong_wolfe")
    assert copy.deepcopy(opt).result is None
    opt.step(Count(opt, x))
    twin = copy.deepcopy(opt)
    assert twin.result == opt.result and twin.result is not None
    y = twin.param_groups[0]["params"][0]
    opt.step(Count(opt, x))
    twin.step(Count(twin, y))
    assert torch.equal(x, y) and y is not x


def test_states_of_other_parameters_are_refused() -> None:
    x = start()
    opt = LBFGS([x], max_iter=3)
    opt.step(Count(opt, x))
    other = LBFGS([torch.zeros(7, dtype=F64, requires_grad=True)])
    before = other.state_dict()
    with pytest.raises(ValueError, match=f"vectors of {x.numel()} numbers; wanted 7"):
        other.load_state_dict(opt.state_dict())
    assert other.state_dict() == before


def test_a_state_continues_in_another_dtype() -> None:
    settings: dict[str, Any] = {"max_iter": 4, "line_search_fn": "strong_wolfe"}
    x = start()
    opt = LBFGS([x], **settings)
    for _ in range(3):
        opt.step(Count(opt, x))
    single = x.detach().float().requires_grad_()
    again = LBFGS([single], **settings)
    again.load_state_dict(opt.state_dict())
    for each, at in ((opt, x), (again, single)):
        each.step(Count(each, at))
    torch.testing.assert_close(single.detach().double(), x.detach(), rtol=1e-2, atol=1e-3)


def test_without_a_line_search_new_parameters_start_with_a_small_step() -> None:
    x, z = start(), torch.full((2,), 30.0, dtype=F64, requires_grad=True)
    opt = LBFGS([x])

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = 1e3 * ((x - 1.0) ** 2).sum() + 1e3 * ((z - 3.0) ** 4).sum()
        loss.backward()
        return loss

    opt.step(closure)
    opt.add_param_group({"params": [z]})
    first = closure().item()
    opt.step(closure)
    assert opt.result is not None and opt.result.fun < 1e-3 * first


@pytest.mark.parametrize("rule", [None, "armijo", "strong_wolfe"])
def test_a_wall_is_no_success(rule: Any) -> None:
    x = torch.tensor([2.0], dtype=F64, requires_grad=True)
    opt = LBFGS([x], max_iter=60, line_search_fn=rule)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = ((x - 0.5) ** 2).sum() + 0.0 * torch.where(x < 0.9, torch.nan, x).sum()
        loss.backward()
        return loss

    for _ in range(3):
        opt.step(closure)
        assert opt.result is not None and not opt.result.status.success
    assert 0.9 <= x.item() < 0.9001
