"""`LBFGS` of lbfgs_xp.torch with bounds for each group of parameters."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from lbfgs_xp.torch import LBFGS

F64 = torch.float64
UPPER = torch.tensor([0.5, 0.8, 2.0, 3.0, -0.5], dtype=F64)
WANTED = torch.minimum(UPPER, torch.ones(5, dtype=F64))


class Valleys:
    """Five of Rosenbrock's valleys in x and y, with bounds for x; a closure that looks whether x is
    within them."""

    def __init__(self, **settings: Any):
        self.x = torch.full((5,), -1.2, dtype=F64, requires_grad=True)
        self.y = torch.full((5,), 1.0, dtype=F64, requires_grad=True)
        self.settings, self.calls = settings, 0
        self.opt = self.optimizer()

    def optimizer(self) -> LBFGS:
        groups = [{"params": [self.x], "bounds": (None, UPPER)}, {"params": [self.y]}]
        return LBFGS(groups, **self.settings)

    def __call__(self) -> Any:
        self.calls += 1
        assert torch.all(self.x <= UPPER)
        self.opt.zero_grad()
        loss = (100.0 * (self.y - self.x**2) ** 2 + (1.0 - self.x) ** 2).sum()
        loss.backward()
        return loss


@pytest.mark.parametrize(
    ("rule", "lr"), [(None, 1.0), (None, 0.5), ("strong_wolfe", 1.0), ("more_thuente", 1.3)]
)
def test_the_minimum_within_the_bounds(rule: Any, lr: float) -> None:
    problem = Valleys(
        lr=lr, line_search_fn=rule, max_iter=300, max_eval=400, tolerance_change=1e-12
    )
    problem.opt.step(problem)
    problem.opt.step(problem)
    torch.testing.assert_close(problem.x.detach(), WANTED, atol=1e-5, rtol=0.0)
    active = problem.x.detach() == UPPER
    assert active.tolist() == [True, True, False, False, True]


def test_any_budget_and_a_start_outside() -> None:
    for most in (2, 7):
        problem = Valleys(line_search_fn="strong_wolfe", max_iter=100, max_eval=most)
        with torch.no_grad():
            problem.x.fill_(9.0)
        for _ in range(60):
            problem.opt.step(problem)
            assert torch.all(problem.x <= UPPER)
        torch.testing.assert_close(problem.x.detach(), WANTED, atol=1e-3, rtol=0.0)


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    ends = []
    for saves in (False, True):
        problem = Valleys(max_iter=7)
        for _ in range(8):
            problem.opt.step(problem)
            if saves:
                file = io.BytesIO()
                torch.save(problem.opt.state_dict(), file)
                file.seek(0)
                problem.opt = problem.optimizer()
                problem.opt.load_state_dict(torch.load(file, weights_only=True))
                assert torch.equal(problem.opt.param_groups[0]["bounds"][1], UPPER)
        ends.append(torch.cat([problem.x, problem.y]).detach())
    assert torch.equal(*ends)


def test_a_state_of_torch_leaves_the_bounds_alone() -> None:
    problem = Valleys(line_search_fn="strong_wolfe", max_iter=200, max_eval=400)
    other = torch.optim.LBFGS([{"params": [problem.x]}, ], line_search_fn="strong_wolfe")
    one = LBFGS([problem.x], bounds=(None, 0.25), line_search_fn="strong_wolfe")
    one.load_state_dict(other.state_dict())
    assert one.param_groups[0]["bounds"] == (None, 0.25)


def test_the_parameters_stay_inside_whatever_the_closure_does() -> None:
    x = torch.zeros(3, dtype=F64, requires_grad=True)
    opt = LBFGS([x], bounds=(-1.0, 1.0), line_search_fn="strong_wolfe")
    calls = 0

    def moves(first: int) -> Any:
        nonlocal calls
        calls += 1
        opt.zero_grad()
        loss = ((x - 3.0) ** 2).sum()
        loss.backward()
        if calls >= first:
            with torch.no_grad():
                x.add_(10.0)
        return loss

    def raises() -> Any:
        with torch.no_grad():
            x.fill_(50.0)
        raise OSError

    for first in (1, 2):
        calls = 0
        with torch.no_grad():
            x.zero_()
        opt.step(lambda first=first: moves(first))
        assert opt.result is not None and opt.result.status.name == "LINE_SEARCH"
        assert x.abs().max() <= 1.0
    with pytest.raises(OSError):
        opt.step(raises)
    assert x.abs().max() <= 1.0

    def not_finite() -> Any:
        opt.zero_grad()
        (x * float("nan")).sum().backward()
        return float("nan")

    opt.step(not_finite)
    assert x.abs().max() <= 1.0


def test_maximize_and_a_number_for_all() -> None:
    x = torch.zeros(2, 2, dtype=F64, requires_grad=True)
    opt = LBFGS([x], bounds=(0.0, 1.5), maximize=True, line_search_fn="strong_wolfe")

    def closure() -> Any:
        opt.zero_grad()
        loss = x.sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert torch.equal(x.detach(), torch.full((2, 2), 1.5, dtype=F64))
    assert opt.result is not None and opt.result.gradient_norm == 0.0


def test_bad_bounds() -> None:
    x = torch.zeros(3, dtype=F64, requires_grad=True)
    three = torch.tensor([0.0, 2.0, 0.0])
    for error, match, bounds in (
        (ValueError, "lower bound of group 0 is 2.0 and the upper one is 1.0 at index 1",
         (three, 1.0)),
        (ValueError, "lower bound of group 0 contains nan or inf", (float("nan"), None)),
        (ValueError, r"upper bound of group 0 has shape \(4,\); wanted one that broadcasts",
         (None, torch.zeros(4))),
        (TypeError, "bounds is 1.0; wanted the pair", 1.0),
    ):
        with pytest.raises(error, match=match):
            LBFGS([x], bounds=bounds)
    with pytest.raises(TypeError, match="complex numbers have no order"):
        LBFGS([torch.zeros(2, dtype=torch.complex128, requires_grad=True)], bounds=(0.0, None))
    opt = LBFGS([x])
    with pytest.raises(ValueError, match="lower bound of group 1"):
        opt.add_param_group({"params": [x.detach().clone().requires_grad_()], "bounds": (2.0, 1.0)})
    assert len(opt.param_groups) == 1
