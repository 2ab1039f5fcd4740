"""`train_with_lbfgs`: what data, losses and parameters may be, and what is said of them."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional

import lbfgs_xp as lx
from lbfgs_xp.torch import TrainingResult, denominators, layers, train_with_lbfgs

F64 = torch.float64


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, T = normal(0, 40, 4), normal(1, 40, 4)
WEIGHT = torch.tensor([10.0, 1.0, 2.0, 0.1], dtype=F64)
# Sorted, so that the classes of the chunks differ; nothing in the first chunks counts.
CLASSES = torch.arange(40) // 10
HOLES = torch.where((torch.arange(40) < 9) | (torch.arange(40) % 7 == 0), -100, CLASSES)
SHARES = torch.softmax(normal(2, 40, 4), 1)
MAPS, MAP_CLASSES = normal(3, 9, 3, 4, 5), torch.arange(180).reshape(9, 4, 5) // 45
MAP_HOLES = torch.where(MAP_CLASSES % 3 == 0, -100, MAP_CLASSES)


class LogSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax(self.layer(x), 1)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 4, dtype=F64)


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 1, dtype=F64)


def weighted(output: Any, target: Any) -> tuple[Any, Any]:
    sum_ = functional.cross_entropy(output, target, weight=WEIGHT, reduction="sum")
    return sum_, WEIGHT[target].sum()


LOSSES: dict[str, tuple[Callable, Any, torch.Tensor, torch.Tensor]] = {
    "weight": (linear, nn.CrossEntropyLoss(WEIGHT), X, CLASSES),
    "ignored": (linear, nn.CrossEntropyLoss(), X, HOLES),
    "both and smooth": (linear, nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), X, HOLES),
    "another ignored": (linear, nn.CrossEntropyLoss(ignore_index=2), X, CLASSES),
    "shares": (linear, nn.CrossEntropyLoss(WEIGHT), X, SHARES),
    "nll": (LogSoftmax, nn.NLLLoss(WEIGHT, ignore_index=1), X, CLASSES),
    "maps": (convolution, nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), MAPS, MAP_HOLES),
    "kl": (LogSoftmax, nn.KLDivLoss(reduction="batchmean"), X, SHARES),
    "positive weight": (linear, nn.BCEWithLogitsLoss(pos_weight=WEIGHT), X, (T > 0.0).to(F64)),
    "margin": (linear, nn.MultiMarginLoss(weight=WEIGHT), X, CLASSES),
    "sum": (linear, nn.L1Loss(reduction="sum"), X, T),
    "function": (linear, functional.cross_entropy, X, HOLES),
    "settings": (linear, functools.partial(functional.cross_entropy, weight=WEIGHT), X, CLASSES),
    "sum of a function": (linear, functools.partial(functional.mse_loss, reduction="sum"), X, T),
    "sum and count": (linear, weighted, X, CLASSES),
    "own mean": (linear, lambda a, b: ((a - b) ** 4).mean(), X, T),
}


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_give_the_loss_of_all_data(name: str) -> None:
    make, loss_fn, x, y = LOSSES[name]
    sizes = [1, len(x) - 3, 2]
    pairs = torch.utils.data.TensorDataset(x, y)
    ends = []
    for data, more in (
        ((x, y), {}),
        ((x, y), {"chunk_size": 4}),
        (list(zip(x.split(sizes), y.split(sizes), strict=True)), {}),
        (torch.utils.data.DataLoader(pairs, batch_size=7), {}),
    ):
        model = make()
        res = train_with_lbfgs(model, loss_fn, data, adam_steps=0, max_epochs=1, max_iter=5, **more)
        whole = loss_fn(model(x), y)
        whole = whole[0] / whole[1] if isinstance(whole, tuple) else whole
        assert res.loss == pytest.approx(float(whole.detach()), rel=1e-12)
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-10)


def test_data_of_which_nothing_counts() -> None:
    nothing = torch.full_like(CLASSES, -100)
    res = train_with_lbfgs(linear(), nn.CrossEntropyLoss(), (X, nothing), adam_steps=0)
    assert res.status is lx.Status.NOT_FINITE and not res.success


def summed(output: Any, target: Any) -> tuple[Any, Any]:
    total = functional.cross_entropy(output, target, reduction="sum")
    return total, (target != -100).sum()


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), summed])
def test_adam_passes_over_batches_in_which_nothing_counts(loss_fn: Any) -> None:
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, HOLES), batch_size=8)
    model = linear()
    res = train_with_lbfgs(model, loss_fn, batches, adam_steps=5, adam_lr=0.01, max_epochs=0)
    assert res.adam is not None and res.adam.status is lx.Status.EPOCHS
    assert torch.isfinite(torch.as_tensor(res.adam.loss)).tolist() == [False] + 4 * [True]
    whole = functional.cross_entropy(model(X), HOLES)
    assert res.loss == pytest.approx(float(whole.detach()), rel=1e-12)

    nothing = [(X, torch.full_like(HOLES, -100))]
    before = linear().weight
    res = train_with_lbfgs(model := linear(), loss_fn, nothing, adam_steps=5, max_epochs=0)
    assert res.status is lx.Status.NOT_FINITE and torch.equal(model.weight, before)


@pytest.mark.parametrize(("loss_fn", "reduction"), [
    (lambda a, b: nn.CrossEntropyLoss(WEIGHT)(a, b), None),
    (lambda a, b: functional.cross_entropy(a, b).sqrt(), None),
    (lambda a, b: functional.cross_entropy(a, b), "sum"),
    (type("Own", (nn.NLLLoss,), {"forward": lambda self, a, b: (a[:, 0] * b).std()})(), None),
])
def test_a_loss_that_cannot_be_split_is_told(loss_fn: Any, reduction: Any) -> None:
    def run(**more: Any) -> TrainingResult:
        return train_with_lbfgs(
            linear(), loss_fn, (X, CLASSES), adam_steps=0, max_epochs=1, reduction=reduction, **more
        )

    with pytest.warns(UserWarning, match="is not a (mean|sum) over rows.*sum, count") as caught:
        run(chunk_size=9)
    assert len(caught) == 1 and caught[0].filename == __file__
    run()    # all in one chunk: no warning


@pytest.mark.parametrize("count", [-1.0, "many", torch.ones(2)], ids=str)
def test_counts_are_numbers(count: Any) -> None:
    with pytest.raises(ValueError, match="the count that loss_fn returned with a sum is"):
        train_with_lbfgs(linear(), lambda a, b: (((a - b) ** 2).sum(), count), (X, T))


# --- batches of any kind -----------------------------------------------------------------------


def of_dict(model: Any, batch: Any) -> Any:
    return functional.mse_loss(model(batch["x"]), batch["y"])


def of_three(model: Any, batch: Any) -> Any:
    return (batch[2][:, None] * (model(batch[0]) - batch[1]) ** 2).mean()


def of_pair(model: Any, batch: Any) -> Any:
    return functional.mse_loss(model(batch[0]), batch[1])


ROWS = torch.ones(40, dtype=F64)


@pytest.mark.parametrize(("loss_fn", "data", "more"), [
    (of_dict, {"x": X, "y": T}, {"chunk_size": 7}),
    (of_dict, {"x": X, "y": T}, {"batch_size": 7, "adam_steps": 3}),
    (of_dict, [{"x": X[:5], "y": T[:5]}, {"x": X[5:], "y": T[5:]}], {}),
    (of_three, (X, T, ROWS), {"chunk_size": 7}),
    (of_three, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, T, ROWS), 9), {}),
    (of_pair, (X, T), {"chunk_size": 7, "pass_model": True}),
    (of_pair, [[X[:5], T[:5]], [X[5:], T[5:]]], {"pass_model": True}),
])
def test_batches_of_any_kind(loss_fn: Any, data: Any, more: dict) -> None:
    model, plain = linear(), linear()
    settings = {"adam_steps": 0, "tol": 1e-14}
    res = train_with_lbfgs(model, loss_fn, data, **settings | more)
    assert res.success
    train_with_lbfgs(plain, nn.MSELoss(), (X, T), **settings)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


def test_outputs_that_the_loss_does_not_take() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x), x

    with pytest.raises(AttributeError) as raised:
        train_with_lbfgs(Two(), nn.MSELoss(), (X, T), adam_steps=1)
    assert "the output of the model is a tuple of 2" in raised.value.__notes__[0]


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(), linear()

        def forward(self, x: Any, z: Any) -> Any:
            return self.a(x), self.b(z)

    def loss_fn(model: Any, batch: Any) -> Any:
        (x, z), wanted = batch
        first, second = model(x, z)
        return functional.mse_loss(first + second, wanted)

    data = ((X, X**2), T)
    assert train_with_lbfgs(
        Two(), loss_fn, data, adam_steps=0, pass_model=True, chunk_size=9
    ).success
    with pytest.raises(TypeError) as caught:
        train_with_lbfgs(Two(), nn.MSELoss(), data)
    assert "model(inputs) with a tuple of 2" in caught.value.__notes__[0]
    assert "pass_model=True" in caught.value.__notes__[0]


def test_items_whose_share_is_not_known() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return of_dict(model, batch) + 0.0 * batch["edges"].sum()

    items = [{"x": X[:5], "y": T[:5], "edges": ROWS[:2]}, {"x": X, "y": T, "edges": ROWS[:9]}]
    with pytest.raises(ValueError, match=r"a dict with tensors of different lengths.*sum, count"):
        train_with_lbfgs(linear(), loss_fn, items, adam_steps=0)
    train_with_lbfgs(linear(), loss_fn, items[:1], adam_steps=0, max_epochs=1)


# --- parameters outside the module -------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Parameter, lambda k: k.requires_grad_()])
@pytest.mark.parametrize("adam_steps", [0, 3])
def test_an_unknown_coefficient(kind: Callable, adam_steps: int) -> None:
    x = torch.linspace(-1.0, 1.0, 30, dtype=F64)[:, None]
    k, frozen = kind(torch.tensor(0.5, dtype=F64)), torch.ones(2, dtype=F64)

    def loss_fn(model: Any) -> Any:
        return ((model(x) * k - 3.0 * x) ** 2).mean() + (k - 2.0) ** 2

    def run(**more: Any) -> TrainingResult:
        torch.manual_seed(0)
        return train_with_lbfgs(
            nn.Linear(1, 1, dtype=F64), loss_fn, adam_steps=adam_steps, tol=1e-12, **more
        )

    with pytest.warns(UserWarning, match=r"1 tensor of shape \(\).*pass them as params=") as caught:
        assert run(max_epochs=3).loss > 1.0
    assert len(caught) == 1 and caught[0].filename == __file__
    assert k.item() == 0.5
    assert run(params={"k": k, "rest": [frozen]}).success
    assert k.item() == pytest.approx(2.0, abs=1e-5) and frozen.tolist() == [1.0, 1.0]


def test_points_are_no_parameters() -> None:
    """Those of an equation require a gradient, but belong to the inputs of the model."""
    x, t = (torch.linspace(0.0, 1.0, 20, dtype=F64).requires_grad_() for _ in range(2))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def residual(model: Any) -> Any:
        u = model(torch.stack([x, t], dim=1))
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope + u[:, 0]).square().mean() + (u[0] - 1.0).square().sum()

    res = train_with_lbfgs(model, residual, adam_steps=2, max_epochs=2)
    assert res.lbfgs is not None
    with (
        pytest.warns(UserWarning, match="belong neither to the model nor to params"),
        pytest.raises(TypeError, match="depends on none of the parameters"),
    ):
        train_with_lbfgs(model, lambda _: (x**2).sum(), max_epochs=1)


def test_traced_modules() -> None:
    """Their inputs cannot be watched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")    # tracing is deprecated
        model = torch.jit.trace(linear(), X)
    points = X.clone().requires_grad_()
    assert train_with_lbfgs(
        model, lambda model: (model(points) - T).square().mean(), adam_steps=2
    ).success


def test_checkpoints_that_run_a_pass_of_their_own() -> None:
    checkpoint = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=True)
    points, model, plain = X.clone().requires_grad_(), linear(), linear()
    train_with_lbfgs(model, lambda m: mse(checkpoint(m, points)), adam_steps=0, max_epochs=1)
    train_with_lbfgs(plain, lambda m: mse(m(points)), adam_steps=0, max_epochs=1)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def mse(output: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(output, T)


def test_frozen_parameters_stay() -> None:
    model = nn.Sequential(linear(), nn.BatchNorm1d(4, dtype=F64), linear()).eval()
    model[0].requires_grad_(False)
    before = [p.clone() for p in model[0].parameters()]
    assert train_with_lbfgs(model, nn.MSELoss(), (X, T), adam_steps=5, adam_lr=0.1).success
    assert all(map(torch.equal, before, model[0].parameters()))


def test_sparse_gradients() -> None:
    ends = []
    for sparse in (False, True):
        table = nn.Embedding(5, 3, sparse=sparse, dtype=F64, _weight=normal(9, 5, 3))
        data = torch.tensor([0, 2, 2, 3]), torch.ones(4, 3, dtype=F64)
        train_with_lbfgs(table, nn.MSELoss(), data, adam_steps=5, chunk_size=3)
        ends.append(table.weight.detach())
    assert torch.equal(*ends)


# --- layers and losses that are no functions ----------------------------------------------------


@pytest.mark.parametrize(("layer", "message"), [
    (nn.BatchNorm1d(4), "BatchNorm1d, so its loss depends on which rows"),
    (nn.SyncBatchNorm(4), "SyncBatchNorm, so its loss depends on which rows"),
    (nn.AlphaDropout(0.1), "AlphaDropout, so its loss differs from call"),
    (nn.RReLU(), "RReLU, so its loss differs"),
    (nn.LSTM(4, 4, 2, dropout=0.1), "LSTM, so its loss differs"),
    (nn.TransformerEncoderLayer(4, 2), "Dropout, MultiheadAttention, so its loss differs"),
    (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "_SpectralNorm, so its loss"),
], ids=lambda v: v.split(",")[0] if isinstance(v, str) else "")
def test_layers_in_training_mode_are_told(layer: nn.Module, message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)

    def loss_fn(model: Any) -> Any:
        return model[0](X.float()).square().mean()

    with pytest.warns(UserWarning, match=message) as caught:
        train_with_lbfgs(model, loss_fn, adam_steps=0, max_epochs=1)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_with_lbfgs(model.eval(), loss_fn, adam_steps=0, max_epochs=1)


def test_all_layers_of_torch_are_known() -> None:
    """The lists of public classes hold whatever this version of torch derives from its bases."""
    bases = {"_BatchNorm": layers._BATCH_NORMS, "_DropoutNd": layers._DROPOUTS}
    for base, known in bases.items():
        own = [
            c for c in vars(nn).values()
            if isinstance(c, type) and base in [parent.__name__ for parent in c.__mro__]
        ]
        assert len(own) >= 4
        lazy = [c for c in own if c.__name__.startswith("Lazy")]    # until the first call
        assert set(own) - set(lazy) == set(known)
    losses = [c for c in vars(nn).values() if isinstance(c, type) and c.__name__.endswith("Loss")]
    own = [c for c in losses if "reduction" in inspect.signature(c).parameters]
    assert len(own) >= 15
    sized = {"LinearCrossEntropyLoss": (4, 4)}
    assert all(denominators.denominator_of(c(*sized.get(c.__name__, ()))) for c in own)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="torch < 2.13")
def test_a_loss_with_a_layer_of_its_own() -> None:
    torch.manual_seed(0)
    loss = nn.LinearCrossEntropyLoss(4, 4, weight=WEIGHT, ignore_index=2, dtype=F64)
    divisor = denominators.denominator_of(loss)
    assert divisor is not None
    chunks = [(X[:15], CLASSES[:15]), (X[15:], CLASSES[15:])]
    total = sum(loss(*chunk).item() * divisor(*chunk) for chunk in chunks)
    assert total / divisor(X, CLASSES) == pytest.approx(loss(X, CLASSES).item(), rel=1e-12)


def test_data_drawn_anew_are_told() -> None:
    seeds = itertools.count()
    with pytest.warns(UserWarning, match="the loss for the same parameters was .* and is now"):
        train_with_lbfgs(
            linear(), lambda model: (model(normal(next(seeds), 9, 4)) - 1.0).square().mean(),
            adam_steps=0, max_iter=2,
        )


# --- how it ends -------------------------------------------------------------------------------


def test_batches_drawn_anew_are_told_without_adam() -> None:
    data = torch.utils.data.TensorDataset(X, T)
    drawn = torch.utils.data.RandomSampler(
        data, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=16, sampler=drawn)
    with pytest.warns(UserWarning, match="the loss for the same parameters was .* and is now"):
        train_with_lbfgs(linear(), nn.MSELoss(), loader, adam_steps=0)


@pytest.mark.parametrize("adam_steps", [0, 500])
def test_a_wall_is_no_success(adam_steps: int) -> None:
    model = linear()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()

    def within(output: Any, target: Any) -> Any:    # nan for an output below -1
        return ((output - 2.0 * target) ** 2).mean() + 0.0 * torch.log(output + 1.0).sum()

    res = train_with_lbfgs(model, within, (X, X), adam_steps=adam_steps, adam_lr=0.01)
    assert res.status is lx.Status.LINE_SEARCH and not res.success
    assert res.loss == float(within(model(X), X).detach())


def test_a_loss_that_clamps_the_parameters() -> None:
    def clamped(model: Any, batch: Any) -> Any:
        with torch.no_grad():
            model.weight.clamp_(max=0.5)
        return functional.mse_loss(model(batch[0]), batch[1])

    model = linear()
    res = train_with_lbfgs(model, clamped, (X, X), adam_steps=0, pass_model=True)
    assert res.status is lx.Status.LINE_SEARCH and "changes the parameters" in res.message
    assert res.loss == functional.mse_loss(model(X), X).item()


@pytest.mark.parametrize("seed", [2, 7])
def test_the_floor_of_float32(seed: int) -> None:
    """The rounding of a mean of small squares exceeds eps |f|."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))
    x = torch.linspace(-1.0, 1.0, 100)[:, None]
    data = x, 0.2 * torch.sin(4.0 * x)
    res = train_with_lbfgs(model, nn.MSELoss(), data, adam_steps=0, tol=0.0, max_epochs=60)
    assert res.status is lx.Status.PRECISION and res.loss == res.lbfgs.loss[-1] < 1e-5
    assert res.loss == float(nn.MSELoss()(model(x), data[1]).detach())


def test_an_error_while_parameters_are_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    from lbfgs_xp.torch.flat import Flat

    write, calls = Flat.write, itertools.count(1)

    def torn(self: Flat, vector: torch.Tensor) -> None:
        if next(calls) == 4:
            with torch.no_grad():
                self.params[0].fill_(99.0)
            raise MemoryError
        write(self, vector)

    model, seen = linear(), []
    monkeypatch.setattr(Flat, "write", torn)

    def loss_fn(output: Any, target: Any) -> Any:
        seen.append(model.weight.detach().clone())
        return functional.mse_loss(output, target)

    with pytest.raises(MemoryError):
        train_with_lbfgs(model, loss_fn, (X, T), batch_size=9)
    assert torch.equal(model.weight, seen[-1])
