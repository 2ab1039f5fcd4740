"""The interface for PyTorch, compared with torch.optim.LBFGS."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lbfgs_xp as lx
from lbfgs_xp.arrays.torch import TorchBackend
from lbfgs_xp.torch import LBFGS, train_with_lbfgs
from tests.backends import Backend, parameters

F64 = torch.float64


@pytest.fixture(params=[*parameters([Backend.TORCH, Backend.TORCH_CUDA]), "far"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where the parameters are; "far" is the host, treated like a remote device."""
    if request.param == "far":
        never = property(lambda self: False, lambda self, value: None)
        monkeypatch.setattr(TorchBackend, "reads_are_free", never)
        return torch.device("cpu")
    if request.param.missing:
        pytest.skip(request.param.missing)
    return request.param.device


class Counted:
    """A problem in one vector, as a closure that counts its calls."""

    def __init__(self, fun: Callable, x0: Any, opt: Callable, dtype: Any = F64, **settings: Any):
        self.fun = fun
        self.x = torch.as_tensor(x0, dtype=dtype).clone().requires_grad_()
        self.opt = opt([self.x], **settings)
        self.calls = 0
        self.factor = 1.0

    def __call__(self) -> Any:
        self.calls += 1
        self.opt.zero_grad()
        loss = self.factor * self.fun(self.x)
        loss.backward()
        return loss

    def steps(self, count: int) -> list[torch.Tensor]:
        """The parameters after each step."""
        path = []
        for _ in range(count):
            self.opt.step(self)
            path.append(self.x.detach().clone())
        return path

    @property
    def value(self) -> float:
        with torch.no_grad():
            return float(self.fun(self.x))


def both(*args: Any, **settings: Any) -> tuple[Counted, Counted]:
    """The same problem with our optimizer and with torch's."""
    return Counted(*args, opt=LBFGS, **settings), Counted(*args, opt=torch.optim.LBFGS, **settings)


# --- ten problems ------------------------------------------------------------------------------


def rosenbrock(x: Any) -> Any:
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def beale(x: Any) -> Any:
    a, b = x
    return sum((c - a + a * b**k) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def himmelblau(x: Any) -> Any:
    a, b = x
    return (a * a + b - 11.0) ** 2 + (a + b * b - 7.0) ** 2


def quadratic(x: Any) -> Any:
    return 0.5 * (torch.logspace(0, 4, len(x), dtype=x.dtype) * (x - 1.0) ** 2).sum()


def rastrigin(x: Any) -> Any:
    return (x**2 - 10.0 * torch.cos(2.0 * math.pi * x) + 10.0).sum()


def exponential(p: Any) -> Any:
    t = torch.linspace(0.0, 4.0, 50, dtype=F64)
    data = 2.5 * torch.exp(-1.3 * t) + 0.5
    return ((p[0] * torch.exp(-p[1] * t) + p[2] - data) ** 2).sum()


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def logistic(w: Any) -> Any:
    X, noise = normal(0, 100, 5), normal(1, 100)
    y = (X @ torch.arange(-2.0, 3.0, dtype=F64) + noise > 0).to(F64)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(X @ w[:5] + w[5], y)
    return loss + 1e-3 * (w**2).sum()


def perceptron(w: Any) -> Any:
    x = torch.linspace(-1.0, 1.0, 40, dtype=F64)[:, None]
    hidden = torch.tanh(x * w[:8] + w[8:16])
    return ((hidden @ w[16:24] + w[24] - torch.sin(3.0 * x[:, 0])) ** 2).mean() + 1e-3 * (w @ w)


def factors(w: Any) -> Any:
    wanted = normal(2, 8, 2) @ normal(3, 2, 6)
    return ((w[:16].reshape(8, 2) @ w[16:].reshape(2, 6) - wanted) ** 2).mean()


TEN: dict[str, tuple[Callable, Any]] = {
    "rosenbrock 2": (rosenbrock, [-1.2, 1.0]),
    "rosenbrock 50": (rosenbrock, [-1.2, 1.0] * 25),
    "beale": (beale, [1.0, 1.0]),
    "himmelblau": (himmelblau, [0.0, 0.0]),
    "quadratic": (quadratic, [0.0] * 30),
    "logistic": (logistic, [0.0] * 6),
    "perceptron": (perceptron, 0.5 * normal(4, 25)),
    "factors": (factors, 0.5 * normal(5, 28)),
    "exponential": (exponential, [1.0, 1.0, 0.0]),
    "rastrigin": (rastrigin, [0.2, -0.15, 1.1, 0.9]),
}


@pytest.mark.parametrize("name", TEN)
def test_no_more_evaluations_than_torch_and_no_higher(name: str) -> None:
    # With the default of 1e-9, either may end 1e-9 above the other.
    settings = {"line_search_fn": "strong_wolfe", "max_iter": 500, "tolerance_change": 1e-12}
    ours, theirs = both(*TEN[name], **settings)
    ours.steps(1)
    theirs.steps(1)
    assert ours.calls <= theirs.calls
    assert ours.value <= theirs.value + 1e-12
    assert ours.opt.result.status.success


# --- the iterates of torch ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"max_iter": 1}, {"max_iter": 4, "lr": 0.7}, {"max_iter": 50, "max_eval": 7},
    {"max_iter": 30, "history_size": 3}, {"max_iter": 3, "history_size": 20}, {"max_eval": 1},
    {"lr": torch.tensor(0.5)},
], ids=str)
def test_fixed_steps_are_those_of_torch(device: Any, settings: dict) -> None:
    x0 = normal(6, 12).to(device)
    scale = torch.logspace(0, 2, 12, dtype=F64, device=device)
    ours, theirs = both(lambda x: (scale * x**2 + x**4).sum(), x0, **settings)
    for x, y in zip(ours.steps(10), theirs.steps(10), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)
    assert ours.calls == theirs.calls


def test_fixed_steps_on_changing_batches_are_those_of_torch(device: Any) -> None:
    ours, theirs = both(lambda x: (x**2 + 0.1 * x**4).sum(), normal(7, 5).to(device), max_iter=4)
    for k in range(8):
        ours.factor = theirs.factor = 1.0 + 0.1 * (k % 3)
        x, y = ours.steps(1)[0], theirs.steps(1)[0]
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)
    assert ours.calls == theirs.calls


@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_strong_wolfe_begins_like_torch(device: Any, lr: float) -> None:
    settings = {"line_search_fn": "strong_wolfe", "max_iter": 5, "max_eval": 50, "lr": lr}
    ours, theirs = both(rosenbrock, torch.tensor([-1.2, 1.0], dtype=F64, device=device), **settings)
    for x, y in zip(ours.steps(3), theirs.steps(3), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)
    assert ours.calls == theirs.calls


def test_step_returns_the_first_loss_as_it_is() -> None:
    run = Counted(rosenbrock, [-1.2, 1.0], LBFGS)
    losses = []

    def closure() -> Any:
        losses.append(run())
        return losses[-1]

    assert run.opt.step(closure) is losses[0] and losses[0].requires_grad


@pytest.mark.parametrize("rule", ["more_thuente", "hager_zhang", "bisection", "armijo",
                                  lx.StrongWolfe(c2=0.1), lx.MoreThuente(max_evaluations=5)])
def test_every_line_search_finds_the_minimum(device: Any, rule: Any) -> None:
    x0 = torch.tensor([-1.2, 1.0], dtype=F64, device=device)
    run = Counted(rosenbrock, x0, LBFGS, line_search_fn=rule, max_iter=300)
    run.steps(1)
    assert run.value < 1e-8


@pytest.mark.parametrize("max_eval", [1, 3])
def test_a_budget_that_ends_searches_still_gets_there(device: Any, max_eval: int) -> None:
    # The first trial along the steep direction is too long for a single search with few trials.
    x0 = torch.tensor([2.0, -3.0], dtype=F64, device=device)
    run = Counted(rosenbrock, x0, LBFGS, line_search_fn="strong_wolfe", max_eval=max_eval, lr=30.0)
    values = [run.value]
    for _ in range(150):
        before = run.calls
        run.steps(1)
        assert run.calls - before <= max(max_eval, 2)
        values.append(run.value)
    assert all(b <= a for a, b in zip(values, values[1:], strict=False))
    assert values[-1] < 1e-6


def test_the_room_for_pairs_grows(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x0 = torch.zeros(30, dtype=F64, device=device)
    scale = torch.logspace(0, 3, 30, dtype=F64, device=device)
    ends = []
    for room in (1, 8, 100):
        monkeypatch.setattr("lbfgs_xp.torch.step._ROOM", room)
        run = Counted(lambda x: (scale * (x - 1.0) ** 2).sum(), x0, LBFGS,
                      line_search_fn="strong_wolfe", max_iter=25, history_size=20)
        ends.append(run.steps(1)[0])
        rows = next(iter(run.opt.state.values()))["pairs"]["rows"]
        assert rows.shape == (40, 30)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ends[1], ends[2], rtol=1e-6, atol=1e-9)


# --- continuing --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {}, {"line_search_fn": "strong_wolfe"}, {"line_search_fn": "more_thuente", "max_eval": 3},
    {"line_search_fn": "strong_wolfe", "history_size": 3}, {"lr": 0.3, "max_iter": 5},
], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("how", ["saved", "copied", "pickled"])
def test_going_on_is_exact(device: Any, settings: dict, dtype: Any, how: str) -> None:
    settings = {"max_iter": 4} | settings
    x0 = torch.tensor([-1.2, 1.0, -1.2, 1.0, 0.5], device=device)
    run = Counted(rosenbrock, x0, LBFGS, dtype, **settings)
    x = run.steps(3)[-1]
    other = Counted(rosenbrock, x, LBFGS, dtype, **settings)
    if how == "saved":
        file = io.BytesIO()
        torch.save(run.opt.state_dict(), file)
        wanted = run.steps(3)  # which must not change what was saved
        file.seek(0)
        other.opt.load_state_dict(torch.load(file, weights_only=True))
    elif how == "copied":
        snapshot = run.opt.state_dict()
        wanted = run.steps(3)
        other.opt.load_state_dict(snapshot)
        other.opt.load_state_dict(copy.deepcopy(other.opt.state_dict()))
    else:
        file = io.BytesIO()
        torch.save(run.opt, file)
        wanted = run.steps(3)
        file.seek(0)
        other.opt = torch.load(file, weights_only=False)
        other.x = other.opt.param_groups[0]["params"][0]
    for a, b in zip(other.steps(3), wanted, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(wanted[0], wanted[-1])


def test_a_rule_as_an_object_stays_that_of_the_optimizer() -> None:
    run = Counted(rosenbrock, [-1.2, 1.0], LBFGS, line_search_fn=lx.HagerZhang())
    run.steps(1)
    saved = run.opt.state_dict()
    other = Counted(rosenbrock, run.x.detach(), LBFGS, line_search_fn=lx.HagerZhang())
    other.opt.load_state_dict(saved)
    assert torch.equal(run.steps(1)[0], other.steps(1)[0])
    named = Counted(rosenbrock, [0.0, 0.0], LBFGS, line_search_fn="strong_wolfe")
    other.opt.load_state_dict(named.opt.state_dict())
    assert other.opt.param_groups[0]["line_search_fn"] == "strong_wolfe"


@pytest.mark.parametrize(("state", "error", "message"), [
    (3, TypeError, "state_dict is 3; wanted the state_dict of an LBFGS"),
    ({}, TypeError, "state_dict is a dict with nothing; wanted"),
    ({"state": {}, "param_groups": [{"params": [0]}]}, ValueError, "lacks history_size, lr, max_"),
    ("adam", ValueError, "state_dict holds 'step', 'exp_avg', 'exp_avg_sq'; wanted"),
], ids=lambda v: str(v)[:20])
def test_the_state_of_another_optimizer_is_refused(state: Any, error: Any, message: str) -> None:
    if state == "adam":
        run = Counted(rosenbrock, [-1.2, 1.0], torch.optim.Adam)
        run()
        run.opt.step()
        state = run.opt.state_dict()
    with pytest.raises(error, match=message):
        Counted(rosenbrock, [-1.2, 1.0], LBFGS).opt.load_state_dict(state)


@pytest.mark.parametrize("make", [
    lambda opt: torch.optim.lr_scheduler.StepLR(opt, 3, 0.5),
    lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10),
    lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0, threshold=0.9999),
    lambda opt: torch.optim.lr_scheduler.SequentialLR(
        opt,
        [torch.optim.lr_scheduler.ConstantLR(opt, 0.1, 3),
         torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)],
        [3],
    ),
], ids=["step", "cosine", "plateau", "sequential"])
def test_schedulers_of_torch(make: Callable) -> None:
    ours, theirs = both(lambda x: (x**2 + 0.1 * x**4).sum(), normal(7, 5), max_iter=2, lr=0.5)
    rates = set()
    schedulers = [(run, make(run.opt)) for run in (ours, theirs)]
    for _ in range(12):
        for run, scheduler in schedulers:
            value = float(run.opt.step(run).detach())
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(value)
            else:
                scheduler.step()
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-8, atol=1e-12)
        rates.add(ours.opt.param_groups[0]["lr"])
    assert len(rates) > 1


def test_learning_rate_zero_moves_nothing() -> None:
    for line_search_fn in (None, "strong_wolfe"):
        run = Counted(rosenbrock, [-1.2, 1.0], LBFGS, lr=0.0, line_search_fn=line_search_fn)
        assert run.steps(1)[0].tolist() == [-1.2, 1.0] and run.calls == 1
        assert run.opt.result.status is lx.Status.STEP


# --- parameters of all kinds -------------------------------------------------------------------


def fitted(params: Any, loss: Callable, steps: int = 5, **settings: Any) -> LBFGS:
    opt = LBFGS(params, **{"line_search_fn": "strong_wolfe"} | settings)

    def closure() -> Any:
        opt.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        opt.step(closure)
    return opt


def test_groups_that_agree_are_one_vector() -> None:
    a, b = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (-1.2, 1.0))
    fitted([{"params": [a]}, {"params": [b]}], lambda: rosenbrock(torch.stack([a, b])))
    run = Counted(rosenbrock, [-1.2, 1.0], LBFGS, line_search_fn="strong_wolfe")
    assert [a.item(), b.item()] == run.steps(5)[-1].tolist()


@pytest.mark.parametrize("odd", [{"lr": 0.1}, {"max_iter": 3}, {"line_search_fn": "armijo"},
                                 {"maximize": True}], ids=str)
def test_groups_that_disagree_are_refused(odd: dict) -> None:
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    ((name, value),) = odd.items()
    message = f"{name} is .* in one group of parameters and {value!r} in another; wanted the same"
    with pytest.raises(ValueError, match=message):
        LBFGS([{"params": [a]}, {"params": [b]} | odd])
    opt = LBFGS([a])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [b]} | odd)
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [b]})
    opt.param_groups[1][name] = value
    with pytest.raises(ValueError, match=message):
        opt.step(lambda: (a + b).sum())


def test_frozen_parameters_stay_and_thawed_ones_move() -> None:
    a, b = (torch.ones(2, dtype=F64, requires_grad=True) for _ in range(2))
    b.requires_grad_(False)
    opt = fitted([a, b], lambda: ((a - 2.0) ** 2).sum() + ((b - 3.0) ** 2).sum())
    assert torch.allclose(a, a.new_full((2,), 2.0)) and torch.equal(b, torch.ones(2, dtype=F64))
    a.requires_grad_(False)
    b.requires_grad_(True)

    def closure() -> Any:
        opt.zero_grad()
        value = ((a - 5.0) ** 2).sum() + ((b - 3.0) ** 2).sum()
        value.backward()
        return value

    opt.step(closure)
    assert torch.allclose(a, a.new_full((2,), 2.0)) and torch.allclose(b, b.new_full((2,), 3.0))
    for p in (a, b):
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        opt.step(closure)


def test_parameters_that_the_loss_leaves_out_stay() -> None:
    a, b = (torch.ones(2, dtype=F64, requires_grad=True) for _ in range(2))
    fitted([a, b], lambda: ((a - 2.0) ** 2).sum())
    assert b.grad is None and torch.equal(b, torch.ones(2, dtype=F64))
    assert torch.allclose(a, a.new_full((2,), 2.0))


def test_shared_parameters_count_once() -> None:
    layer = torch.nn.Linear(2, 2, bias=False, dtype=F64)
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), layer)
    x = normal(8, 20, 2)
    opt = fitted(model.parameters(), lambda: ((model(x) - x) ** 2).mean())
    assert next(iter(opt.state.values()))["pairs"]["rows"].shape[1] == 4


def test_sparse_gradients_count_like_dense_ones() -> None:
    rows = torch.tensor([0, 2, 2, 3])
    ends = []
    for sparse in (False, True):
        table = torch.nn.Embedding(5, 3, sparse=sparse, dtype=F64, _weight=normal(9, 5, 3))
        fitted(table.parameters(), lambda t=table: ((t(rows) - 1.0) ** 2).sum())
        ends.append(table.weight.detach())
    assert torch.equal(*ends) and torch.allclose(ends[0][2:4], ends[0].new_ones(2, 3))


def test_complex_parameters_count_as_two_real_ones() -> None:
    z = torch.tensor([1.0 + 2.0j, -1.0j], dtype=torch.complex128, requires_grad=True)
    x = torch.view_as_real(z.detach()).clone().requires_grad_()
    weight = torch.tensor([1.0, 10.0], dtype=F64)

    def loss(re: Any, im: Any) -> Any:
        return (weight * ((re - 3.0) ** 2 + (im + re) ** 2)).sum()

    fitted([z], lambda: loss(z.real, z.imag))
    fitted([x], lambda: loss(x[:, 0], x[:, 1]))
    assert torch.equal(torch.view_as_real(z), x)
    assert torch.allclose(z, z.new_tensor(3.0 - 3.0j))


def test_strides_do_not_matter() -> None:
    wide = normal(10, 4, 3).T.requires_grad_()
    assert not wide.is_contiguous()
    fitted([wide], lambda: ((wide - 2.0) ** 4).sum(), max_iter=50)
    assert torch.allclose(wide, wide.new_tensor(2.0), atol=1e-2)


def test_mixtures_and_short_numbers_are_refused() -> None:
    single, double, half, away = (
        torch.zeros(2, requires_grad=True, **where)
        for where in ({}, {"dtype": F64}, {"dtype": torch.float16}, {"device": "meta"})
    )
    with pytest.raises(ValueError, match="dtypes torch.float32, torch.float64; wanted only one"):
        LBFGS([single, double])
    with pytest.raises(ValueError, match="devices cpu, meta; wanted only one"):
        LBFGS([single, away])
    with pytest.raises(TypeError, match="a parameter has dtype torch.float16; wanted one of at"):
        LBFGS([half])
    opt = LBFGS([single])
    single.data = single.data.to(torch.bfloat16)
    with pytest.raises(TypeError, match="a parameter has dtype torch.bfloat16"):
        opt.step(lambda: single.sum())


@pytest.mark.parametrize(("settings", "message"), [
    ({"lr": -1.0}, "lr is -1.0; wanted a finite number of at least 0"),
    ({"lr": torch.ones(2)}, "lr is tensor"),
    ({"max_iter": 0}, "max_iter is 0; wanted an integer of at least 1"),
    ({"max_eval": 0}, "max_eval is 0"),
    ({"tolerance_grad": "small"}, "tolerance_grad is 'small'"),
    ({"tolerance_change": math.nan}, "tolerance_change is nan"),
    ({"history_size": 2.5}, "history_size is 2.5"),
    ({"line_search_fn": "strong_wolf"}, "did you mean 'strong_wolfe'"),
    ({"line_search_fn": 3}, "line_search_fn is 3; wanted a name or a LineSearch object"),
    ({"maximize": 1}, "maximize is 1; wanted True or False"),
], ids=str)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LBFGS([torch.zeros(2, requires_grad=True)], **settings)


def test_a_step_needs_a_closure() -> None:
    with pytest.raises(TypeError, match="closure is None; wanted a function"):
        LBFGS([torch.zeros(2, requires_grad=True)]).step(None)


@pytest.mark.parametrize(("returned", "what"), [
    (None, "NoneType"), ((1.0, 2.0), "tuple"), ("1.5", "str"), (1j, "complex"),
    (torch.ones(2), r"tensor of torch.float32 and shape \(2,\)"),
    (torch.ones((), dtype=torch.complex64), "tensor of torch.complex64"),
], ids=str)
def test_a_closure_returns_the_loss(returned: Any, what: str) -> None:
    x = torch.ones(2, dtype=F64, requires_grad=True)
    opt, calls = LBFGS([x]), 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        opt.zero_grad()
        loss = ((x - 3.0) ** 4).sum()
        loss.backward()
        return loss if calls < last else returned

    for last in (1, 3):    # at once, and in the middle of a step
        calls, before = 0, x.detach().clone()
        with pytest.raises(TypeError, match=f"^closure returned a {what}.*; wanted the loss"):
            opt.step(closure)
        assert calls == last and torch.equal(x, before) == (last == 1)


def test_parameters_that_are_all_empty_are_told() -> None:
    empty, full = torch.zeros(0, requires_grad=True), torch.ones(1, requires_grad=True)

    def step(*params: Any) -> None:
        def closure() -> Any:
            loss = torch.stack([p.sum() for p in params]).sum()
            loss.backward()
            return loss

        LBFGS(params).step(closure)

    with pytest.raises(ValueError, match="^the parameters are all empty tensors; wanted at least"):
        step(empty)
    step(empty, full)
    with pytest.raises(ValueError, match="empty parameter list"):
        step()


# --- how a step ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "status"), [
    ({"max_iter": 200, "tolerance_change": 0.0}, lx.Status.GRADIENT),
    ({"max_iter": 200, "tolerance_grad": 0.0}, lx.Status.VALUE),
    ({"max_iter": 200, "tolerance_change": 0.4}, lx.Status.STEP),
    ({"max_iter": 3, "max_eval": 20}, lx.Status.ITERATIONS),
    ({"max_iter": 30, "max_eval": 5}, lx.Status.EVALUATIONS),
    ({"max_iter": 200, "tolerance_change": 0.0, "tolerance_grad": 1e-300}, lx.Status.PRECISION),
], ids=str)
def test_result_tells_why(settings: dict, status: lx.Status) -> None:
    def fun(x: Any) -> Any:
        return rosenbrock(x) + torch.cos(x).sum()

    run = Counted(fun, [-1.2, 1.0], LBFGS, line_search_fn="strong_wolfe", **settings)
    run.steps(1)
    res = run.opt.result
    assert res.status is status and status.name in repr(res) and res.message in repr(res)
    assert res.nfev == run.calls and 0 < res.nit < res.nfev
    assert res.fun == run.value
    run()
    assert res.gradient_norm == run.x.grad.abs().max().item()


def test_maximize_is_minimising_the_opposite() -> None:
    for line_search_fn in (None, "strong_wolfe"):
        up, down = (
            Counted(lambda x, s=s: s * rosenbrock(x), [-0.5, 1.0], LBFGS, max_iter=5,
                    line_search_fn=line_search_fn, maximize=s < 0)
            for s in (-1.0, 1.0)
        )
        assert torch.equal(up.steps(3)[-1], down.steps(3)[-1])
        assert up.opt.result.fun == -down.opt.result.fun


def test_a_start_that_is_not_finite_stays() -> None:
    for bad in (math.nan, math.inf):
        run = Counted(lambda x, bad=bad: (x * bad).sum(), [1.0, 2.0], LBFGS)
        assert run.steps(1)[0].tolist() == [1.0, 2.0]
        assert run.opt.result.status is lx.Status.NOT_FINITE and run.calls == 1


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente"])
def test_trials_that_are_not_finite_are_shortened(device: Any, line_search_fn: Any) -> None:
    # log is nan below 0, where the first steps with a large lr lead.
    x0 = torch.tensor([0.1, 8.0], dtype=F64, device=device)
    run = Counted(lambda x: (x - torch.log(x)).sum(), x0, LBFGS, lr=20.0, max_iter=3,
                  line_search_fn=line_search_fn)
    for x in run.steps(30):
        assert bool(x.isfinite().all())
    run.opt.param_groups[0]["lr"] = 1.0
    run.steps(10)
    assert torch.allclose(run.x, torch.ones_like(run.x), atol=1e-3)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_errors_leave_the_last_accepted_point(device: Any, line_search_fn: Any, error: Any) -> None:
    x0 = torch.tensor([-1.2, 1.0], dtype=F64, device=device)
    for count in (1, 2, 6):
        run = Counted(rosenbrock, x0, LBFGS, line_search_fn=line_search_fn, max_iter=30, lr=0.5)
        values = []

        def closure(run: Counted = run, count: int = count, values: list = values) -> Any:
            if run.calls == count:
                raise error
            loss = run()
            values.append(float(loss.detach()))
            return loss

        with pytest.raises(error):
            run.opt.step(closure)
        res = run.opt.result
        expected = lx.Status.INTERRUPTED if error is KeyboardInterrupt else lx.Status.RUNNING
        assert res.status is expected and res.fun == run.value
        assert run.value == (values[-1] if line_search_fn is None else min(values))
        run.steps(10)
        assert line_search_fn is None or run.value < 1e-8


def test_an_interrupt_within_the_solver_drops_what_may_be_torn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Counted(rosenbrock, [-1.2, 1.0], LBFGS, line_search_fn="strong_wolfe", max_iter=3)
    run.steps(1)
    value = run.value

    def step(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lx.LBFGS, "step", step)
        run.opt.step(run)
    assert run.value == value
    assert next(iter(run.opt.state.values()))["pairs"] is None
    run.steps(60)
    assert run.value < 1e-8


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_a_change_of_dtype_or_memory_begins_anew(line_search_fn: Any) -> None:
    run = Counted(lambda x: (x**2 + x**4).sum(), normal(15, 30), LBFGS, torch.float32,
                  line_search_fn=line_search_fn, max_iter=12)
    run.steps(1)
    run.x.data = run.x.data.double()
    run.steps(1)
    run.opt.param_groups[0]["history_size"] = 3
    run.steps(2)
    assert run.value < 1e-9


def test_an_error_in_the_first_call_changes_nothing() -> None:
    run, twin = (Counted(rosenbrock, [-1.2, 1.0], LBFGS, max_iter=3) for _ in range(2))
    x = run.steps(2)[-1]
    twin.steps(2)
    with pytest.raises(ZeroDivisionError):
        run.opt.step(lambda: 1 / 0)
    assert torch.equal(run.x, x)
    assert torch.equal(run.steps(1)[0], twin.steps(1)[0])


def test_parameters_changed_from_outside_are_where_it_goes_on() -> None:
    for line_search_fn in (None, "strong_wolfe"):
        run = Counted(lambda x: ((x - 1.0) ** 4).sum() + (x**2).sum(), [3.0, -1.0], LBFGS,
                      max_iter=3, line_search_fn=line_search_fn, tolerance_change=0.0)
        run.steps(1)
        with torch.no_grad():
            run.x.copy_(torch.tensor([-2.0, 2.0]))
        run.steps(15)
        assert run.opt.result.gradient_norm < 1e-6


# --- train_with_lbfgs --------------------------------------------------------------------------


def line(count: int = 40, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and targets that a linear layer with bias cannot fit exactly."""
    x = normal(11, count, 3)
    y = x @ normal(12, 3, 2) + 0.5 + 0.1 * normal(13, count, 2)
    return x.to(device), y.to(device)


def linear(device: Any = "cpu") -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2, dtype=F64, device=device)


def least_squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Weight and bias at the minimum, stacked as rows."""
    ones = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    return torch.linalg.lstsq(ones, y).solution


def both_of(model: torch.nn.Linear) -> torch.Tensor:
    return torch.cat([model.weight.detach().T, model.bias.detach()[None]])


mse = torch.nn.MSELoss()


def test_training_finds_least_squares(device: Any) -> None:
    x, y = line(device=device)
    model = linear(device)
    res = train_with_lbfgs(model, mse, (x, y), adam_steps=20, tol=1e-8, until="gradient")
    assert res.success and res.status is lx.Status.GRADIENT and "tol=1e-08" in res.message
    assert torch.allclose(both_of(model), least_squares(x, y), atol=1e-6)
    assert res.loss == float(mse(model(x), y).detach())
    assert len(res.adam.loss) == len(res.adam.seconds) == 20
    assert res.adam.status is lx.Status.EPOCHS
    assert (res.lbfgs.loss[1:] <= res.lbfgs.loss[:-1]).all()
    assert (res.lbfgs.seconds[1:] >= res.lbfgs.seconds[:-1]).all()
    assert res.lbfgs.loss[0] <= res.adam.loss.min() and res.lbfgs.loss[-1] == res.loss


CHUNKED: dict[str, Callable] = {
    "chunk_size": lambda x, y: ((x, y), {"chunk_size": 7}),
    "a list of pairs": lambda x, y: (list(zip(x.split(7), y.split(7), strict=True)), {}),
    "a loader": lambda x, y: (
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7), {}
    ),
}


@pytest.mark.parametrize("how", CHUNKED)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_chunks_add_up_to_all_data(how: str, reduction: str) -> None:
    x, y = line()
    data, chunked = CHUNKED[how](x, y)
    loss_fn = torch.nn.MSELoss(reduction=reduction)
    ends = []
    for given, more in (((x, y), {}), (data, chunked)):
        model = linear()
        settings = {"adam_steps": 0, "max_epochs": 1, "max_iter": 6} | more
        res = train_with_lbfgs(model, loss_fn, given, **settings)
        assert res.adam is None and res.lbfgs.loss[0] > res.lbfgs.loss[1]
        ends.append((both_of(model), res.loss))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)
    assert ends[1][1] == pytest.approx(float(loss_fn(model(x), y).detach()), rel=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_adam_is_that_of_torch(chunk_size: int | None) -> None:
    x, y = line()
    model, twin = linear(), linear()
    res = train_with_lbfgs(model, mse, (x, y), adam_steps=30, adam_lr=0.01, max_epochs=0,
                           chunk_size=chunk_size)
    opt = torch.optim.Adam(twin.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = mse(twin(x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        opt.step()
    torch.testing.assert_close(both_of(model), both_of(twin), rtol=1e-9, atol=1e-12)
    assert res.adam.loss == pytest.approx(losses, rel=1e-9)
    assert res.lbfgs is None and res.status is lx.Status.EPOCHS


def test_batches_take_each_row_once_an_epoch() -> None:
    x = torch.arange(10.0, dtype=F64)
    model = torch.nn.Linear(1, 1, dtype=F64)
    seen: list[list[float]] = []

    def loss_fn(model: Any, points: Any) -> Any:
        seen.append(points.tolist())
        return model(points[:, None]).square().mean()

    train_with_lbfgs(model, loss_fn, x, adam_steps=8, max_epochs=0, batch_size=3, seed=4)
    epochs = [sum(seen[:4], []), sum(seen[4:8], [])]
    assert [len(batch) for batch in seen[:8]] == [3, 3, 3, 1] * 2
    assert sorted(epochs[0]) == sorted(epochs[1]) == x.tolist()
    assert epochs[0] != epochs[1] != x.tolist()
    assert seen[8] == x.tolist()  # for the loss on all data


def test_what_makes_no_sense_is_told_of() -> None:
    x, y = line()
    model, loss = linear(), torch.nn.MSELoss()
    with pytest.raises(TypeError, match=r"tol is an array.*data=\(inputs, targets\)"):
        train_with_lbfgs(model, loss, x, y)
    noisy = torch.nn.Sequential(model, torch.nn.Dropout(0.2))
    with pytest.warns(UserWarning, match="training mode with Dropout.*model.eval"):
        train_with_lbfgs(noisy, loss, (x, y), adam_steps=2, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_with_lbfgs(noisy.eval(), loss, (x, y), adam_steps=2, max_epochs=1)


def test_a_loss_without_data() -> None:
    x = torch.linspace(0.0, 1.0, 20, dtype=F64)[:, None].requires_grad_()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, 8, dtype=F64), torch.nn.Tanh(), torch.nn.Linear(8, 1, dtype=F64)
    )

    def residual(model: Any) -> Any:  # u' = -u, u(0) = 1
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope + u).square().mean() + (u[0] - 1.0).square().sum()

    res = train_with_lbfgs(model, residual, adam_steps=50, max_epochs=30)
    assert res.loss < 1e-5
    assert torch.allclose(model(x), torch.exp(-x), atol=0.01)


@pytest.mark.parametrize("until", ["either", "both", "loss", "gradient"])
def test_until_what(until: str) -> None:
    x, y = line()
    res = train_with_lbfgs(linear(), mse, (x, y), 1e-6, 0, until=until, max_iter=2)
    last = abs(res.lbfgs.loss[-1] - res.lbfgs.loss[-2]) <= 1e-6
    assert res.success and (last or until in ("either", "gradient"))
    assert ("gradient" in res.message) == (res.status is lx.Status.GRADIENT)
    assert res.status is not lx.Status.VALUE or until in ("either", "loss")


def test_float32_ends_where_it_can_do_no_better() -> None:
    x, y = (part.float() for part in line())
    res = train_with_lbfgs(linear().float(), mse, (x, y), 0.0, 0, until="gradient")
    assert res.success and res.status in (lx.Status.PRECISION, lx.Status.GRADIENT)


def test_out_of_epochs() -> None:
    res = train_with_lbfgs(linear(), mse, line(), 0.0, 0, max_epochs=2, max_iter=1)
    assert not res.success and res.status is lx.Status.ITERATIONS
    assert len(res.lbfgs.loss) == 3 and "all 2 epochs" in res.message and "all 2" in repr(res)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(("calls", "phase"), [(25, "adam"), (40, "lbfgs")])
def test_errors_leave_the_best_parameters(error: Any, calls: int, phase: str) -> None:
    # With such a large learning rate, the loss of Adam fluctuates.
    x, y = line()
    model = linear()
    values = []

    def loss_fn(output: Any, target: Any) -> Any:
        if len(values) == calls:
            raise error
        loss = mse(output, target)
        values.append(float(loss.detach()))
        return loss

    settings: dict[str, Any] = {"adam_steps": 30, "adam_lr": 1.0, "reduction": "mean"}
    if error is KeyboardInterrupt:
        res = train_with_lbfgs(model, loss_fn, (x, y), **settings)
        assert res.status is lx.Status.INTERRUPTED and not res.success
        assert getattr(res, phase).status is res.status and res.loss == min(values)
    else:
        with pytest.raises(RuntimeError):
            train_with_lbfgs(model, loss_fn, (x, y), **settings)
    assert phase == "lbfgs" or values[-1] > min(values)
    assert float(mse(model(x), y).detach()) == min(values)


def test_adam_that_diverges_is_told_and_left() -> None:
    model = linear()
    start = both_of(model)

    def loss_fn(output: Any, target: Any) -> Any:
        loss = mse(output, target)
        return loss / 0.0 if len(loss_fn.seen) == 3 else loss_fn.seen.append(loss.item()) or loss

    loss_fn.seen = []
    x, y = line()
    res = train_with_lbfgs(model, loss_fn, (x, y), adam_steps=50, max_epochs=0)
    assert res.status is lx.Status.DIVERGED and res.loss == min(loss_fn.seen)
    assert not torch.equal(both_of(model), start)
    batches = train_with_lbfgs(model, lambda a, b: mse(a, b) * math.nan, (x, y), batch_size=5)
    assert batches.adam.status is batches.status is lx.Status.NOT_FINITE
    assert math.isnan(batches.loss)


def test_batches_of_adam_that_diverge_leave_what_was_learned() -> None:
    model, (x, y), losses = linear(), line(), []

    def loss_fn(output: Any, target: Any) -> Any:
        losses.append(both_of(model))
        loss = mse(output, target)
        return loss * math.nan if len(losses) == 30 else loss

    res = train_with_lbfgs(model, loss_fn, (x, y), adam_steps=50, batch_size=5, max_epochs=0)
    assert res.status is lx.Status.DIVERGED and "last batch" in res.message
    assert len(losses) == 30 and torch.equal(both_of(model), losses[-2])

    start = both_of(model := linear())
    res = train_with_lbfgs(
        model, mse, (x, y), adam_steps=1, adam_lr=1e200, batch_size=5, max_epochs=0
    )
    assert res.status is lx.Status.DIVERGED and not res.success
    assert torch.equal(both_of(model), start)


def test_training_needs_no_recording_of_the_caller() -> None:
    model, data = linear(), line()
    with torch.no_grad():
        assert train_with_lbfgs(model, mse, data, adam_steps=3).success
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        train_with_lbfgs(model, mse, data, adam_steps=3)
    with pytest.raises(TypeError, match="does not depend on the model"):
        train_with_lbfgs(model, lambda a, b: mse(a.detach(), b), data, adam_steps=3)


def test_the_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    train_with_lbfgs(linear(), mse, line(), adam_steps=3, max_epochs=2, progress=True)
    assert "L-BFGS" in capsys.readouterr().out


def test_counts_may_be_whole_floats() -> None:
    def run(number: type) -> list[float]:
        names = "adam_steps", "max_epochs", "max_iter", "history_size", "batch_size", "chunk_size"
        model = linear()
        train_with_lbfgs(model, mse, line(), **{name: number(3) for name in names})  # type: ignore[arg-type]
        return [p.detach().sum().item() for p in model.parameters()]

    assert run(float) == run(int)


@pytest.mark.parametrize(("settings", "message"), [
    ({"adam_steps": -1}, "adam_steps is -1; wanted an integer of at least 0"),
    ({"adam_steps": 0, "max_epochs": 0}, "both 0; wanted at least one above 0"),
    ({"tol": -1.0}, "tol is -1.0; wanted a finite number of at least 0"),
    ({"until": "loss or gradient"}, "until is 'loss or gradient'; wanted 'either', 'both'"),
    ({"line_search_fn": None}, "line_search_fn is None; wanted the name of a rule"),
    ({"progress": 1}, "progress is 1; wanted True or False"),
    ({"reduction": "none"}, "reduction is 'none'; wanted 'mean' or 'sum'"),
    ({"batch_size": 0}, "batch_size is 0; wanted an integer of at least 1"),
    ({"data": [], "chunk_size": 3}, "chunk_size is 3, but data, a list, has no rows to draw"),
    ({"data": []}, "data, a list, gave nothing; wanted a batch"),
    ({"data": iter([])}, "data is a list_iterator; wanted a tensor, a pair"),
    ({"data": [torch.ones(0, 3)]}, "data holds a batch without rows"),
    ({"data": (torch.ones(2, 3), [1.0])}, "data.1.0 is a float; wanted tensors"),
    ({"data": ()}, "data holds no tensor; wanted at least one, or None"),
    ({"data": "rows"}, "data is a str; wanted a tensor, a pair"),
    ({"loss_fn": 3}, "loss_fn is 3; wanted a function, such as torch.nn.MSELoss"),
    ({"loss_fn": torch.nn.MSELoss}, r"the class MSELoss; wanted a function: MSELoss\(\)"),
    ({"reduction": "sum"}, "reduction is 'sum', but that of loss_fn is 'mean'; wanted the same"),
    ({"params": [3.0]}, "params.0 is a float; wanted tensors that require a gradient"),
    ({"params": {"k": torch.ones(1)}}, "no tensor in params requires a gradient"),
    ({"params": torch.ones(1, requires_grad=True) * 2}, "params is a tensor computed from others"),
    ({"pass_model": 1}, "pass_model is 1; wanted True or False"),
    ({"data": (torch.ones(2, 3), torch.ones(3, 2))}, "; wanted the same number of rows"),
    ({"data": (torch.ones(0, 3), torch.ones(0, 2))}, "at least one row"),
    ({"loss_fn": lambda a, b: (a - b) ** 2}, r"loss_fn returned \(40, 2\); wanted a tensor with"),
    ({"loss_fn": lambda a, b: 3.0}, "loss_fn returned float; wanted a tensor with a single number"),
    ({"model": torch.nn.Identity()}, "model has no parameter"),
    ({"model": torch.nn.ParameterList([torch.zeros(0)])}, "no parameter .* and is not empty"),
])
def test_bad_arguments_of_training_are_refused(settings: dict, message: str) -> None:
    arguments: dict[str, Any] = {"model": linear(), "loss_fn": mse, "data": line()} | settings
    with pytest.raises((ValueError, TypeError), match=message):
        train_with_lbfgs(**{"adam_steps": 2} | arguments)


@pytest.mark.parametrize("offset", [-3.0, 1.0, 1e6])
def test_a_floor_is_that_of_minimize(offset: float) -> None:
    """The face cannot look as `minimize` does, but calls the same points a floor."""

    def value(x: torch.Tensor) -> torch.Tensor:
        return offset + ((x - 3.0) ** 4).sum()

    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    opt = LBFGS(
        [x], max_iter=500, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = value(x)
        loss.backward()
        return loss

    opt.step(closure)
    res = lx.minimize(
        value, torch.zeros(2, dtype=torch.float64), gtol=0.0,
        method=lx.LBFGS(100, "strong_wolfe", initial_inverse_hessian=1.0),
    )
    assert opt.result is not None
    ends = {lx.Status.PRECISION, lx.Status.GRADIENT, lx.Status.STEP, lx.Status.VALUE}
    assert opt.result.status in ends and res.status in ends
    assert (opt.result.status is lx.Status.PRECISION) == (res.status is lx.Status.PRECISION)
