"""`train_with_lbfgs` in many processes, which are threads here."""

from __future__ import annotations

import copy
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.saving import file
from lbfgs_xp.saving import together as keepers
from tests.distributed.threads import ThreadEngine, together

torch = pytest.importorskip("torch")
nn = torch.nn
from lbfgs_xp.torch import train_with_lbfgs  # noqa: E402
from tests.torch.outcomes import assert_same_outcome  # noqa: E402

ROWS = 24
SHARDS = {
    "one": [slice(None)], "even": [slice(0, 12), slice(12, 24)],
    "uneven": [slice(0, 3), slice(3, 20), slice(20, 24)],
    "empty": [slice(0, 11), slice(11, 11), slice(11, 24)],
}


def data(dtype: Any = torch.float64) -> tuple[Any, Any]:
    inputs = torch.linspace(-1.0, 1.0, ROWS, dtype=dtype)[:, None]
    return inputs, torch.sin(3.0 * inputs)


with torch.random.fork_rng():    # (which threads share)
    torch.manual_seed(0)
    NET = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def model(dtype: Any = torch.float64) -> Any:
    return copy.deepcopy(NET).to(dtype)


def weights(net: Any) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def train(
    engine: ThreadEngine | None, shards: list[slice], net: Any = None, mine: Any = None, **how: Any
) -> tuple[Any, Any]:
    """The result in one process, and the parameters there."""
    net = copy.deepcopy(NET if net is None else net)
    if mine is None:
        here = slice(None) if engine is None else shards[engine.rank]
        mine = tuple(t[here] for t in data(weights(net).dtype))
    how = {
        "loss_fn": nn.MSELoss(), "adam_steps": 6, "adam_lr": 0.05, "max_epochs": 2, "max_iter": 5,
        "tol": 0.0, **how,
    }
    loss_fn = how.pop("loss_fn")
    res = train_with_lbfgs(net, loss_fn, mine, distributed=engine, **how)
    return res, weights(net)


def trained(shards: str, work: Callable | None = None, **how: Any) -> list[Any]:
    parts = SHARDS[shards]
    work = work or (lambda engine: train(engine, parts, **how))
    return together(len(parts), work, sharded=False)


def assert_same(found: list[Any], wanted: list[Any] | None = None) -> None:
    """The same bits in all processes, and as wanted."""
    for each, other in zip(found, wanted or [found[0]] * len(found), strict=True):
        assert isinstance(each, tuple), each
        assert_same_outcome(each, other)


def by_count(net: Any, batch: Any) -> Any:
    """A loss whose rows count differently."""
    inputs, targets = batch
    counts = 1.0 + (inputs > 0.0)
    return (counts * (net(inputs) - targets) ** 2).sum(), float(counts.sum())


LOSSES: dict[str, dict[str, Any]] = {
    "mean": {}, "sum": {"loss_fn": nn.MSELoss(reduction="sum"), "adam_lr": 0.02},
    "counts": {"loss_fn": by_count, "pass_model": True}, "chunks": {"chunk_size": 4},
    "method": {"method": lx.SSBroyden()},
}


@functools.cache
def alone(loss: str) -> tuple[Any, Any]:
    return train(None, [], **LOSSES[loss])


@pytest.mark.parametrize(
    ("shards", "loss"),
    [*(("uneven", loss) for loss in LOSSES), ("one", "mean"), ("empty", "mean")],
)
def test_the_outcome_is_that_of_one_process(shards: str, loss: str) -> None:
    found = trained(shards, **LOSSES[loss])
    assert_same(found)
    (wanted, x), (res, y) = alone(loss), found[0]
    np.testing.assert_allclose(res.adam.loss, wanted.adam.loss, rtol=1e-9)
    np.testing.assert_allclose(res.lbfgs.loss, wanted.lbfgs.loss, rtol=1e-4)
    torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-3)


def items(shard: slice, size: int) -> list[Any]:
    pieces = zip(*(t[shard].split(size) for t in data()), strict=True)
    return [piece for piece in pieces if len(piece[0])]


@pytest.mark.parametrize(("kind", "shards"), [
    ("items", "uneven"), ("items", "empty"), ("drawn", "empty"),
    pytest.param("drawn", "uneven", marks=pytest.mark.thorough),
])
def test_batches(kind: str, shards: str) -> None:
    """Each process has its own batches, and they may be of any number."""
    def work(engine: ThreadEngine) -> Any:
        if kind == "drawn":
            return train(engine, SHARDS[shards], batch_size=3, max_epochs=4)
        mine = items(SHARDS[shards][engine.rank], 3 + engine.rank)
        return train(engine, [], mine=mine, max_epochs=4)

    found = trained(shards, work)
    assert_same(found)
    assert found[0][0].loss < 0.5 * found[0][0].adam.loss[0]


@pytest.mark.parametrize("kind", ["tensors", "drawn", "items", "items without rows"])
def test_no_rows_in_any_process(kind: str) -> None:
    def work(engine: ThreadEngine) -> Any:
        none = tuple(t[:0] for t in data())
        mine: Any = {"items": [], "items without rows": [none]}.get(kind, none)
        return train(engine, [], mine=mine, batch_size=3 if kind == "drawn" else None)

    for error in together(2, work, sharded=False):
        assert isinstance(error, ValueError)
        assert str(error) == (
            "data has no rows in any of the 2 processes; wanted at least one row in one of them"
        )


def test_a_batch_is_weighted_by_its_rows() -> None:
    """The first step of Adam has the loss and the gradient of all rows of its batches."""
    def work(engine: ThreadEngine) -> Any:
        mine = items(SHARDS["uneven"][engine.rank], 99)
        return train(engine, [], mine=mine, adam_steps=1, max_epochs=0)

    whole = train(None, [], adam_steps=1, max_epochs=0)
    res, x = trained("uneven", work)[0]
    assert res.adam.loss[0] == pytest.approx(whole[0].adam.loss[0], rel=1e-12)
    torch.testing.assert_close(x, whole[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["frozen", "float32", "complex", "params", "norm"])
def test_models(kind: str) -> None:
    net, how = model(torch.float32 if kind == "float32" else torch.float64), {}
    if kind == "frozen":
        net[0].weight.requires_grad_(False)
    if kind == "norm":
        net = nn.Sequential(net, nn.BatchNorm1d(1)).double().eval()
    if kind == "complex":
        net = nn.Sequential(nn.Linear(1, 1, dtype=torch.complex128))
        net[0].weight.data.fill_(1.0 + 1.0j)
        net[0].bias.data.fill_(0.5j)
        # So the complex ones begin at an odd place of the vector.
        net.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        how = {
            "pass_model": True, "adam_steps": 5, "loss_fn": lambda m, batch:
            (m(batch[0]) + m.shift - (1.0 + 2.0j) * batch[1]).abs().square().mean(),
        }

    def work(engine: ThreadEngine | None) -> Any:
        more = dict(how)
        if kind == "params":
            scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
            more = {
                "params": {"scale": scale}, "pass_model": True, "loss_fn": lambda m, batch:
                ((scale[0] * m(batch[0]) + scale[1] - batch[1]) ** 2).mean(),
            }
        res, x = train(engine, SHARDS["uneven"], net, **more)
        return res, torch.cat([x, scale.detach()]) if kind == "params" else x

    found = together(3, work, sharded=False)
    assert_same(found)
    (wanted, _), (res, y) = work(None), found[0]
    assert res.loss == pytest.approx(wanted.loss, rel=0.1 if kind == "float32" else 1e-4)
    if kind == "frozen":
        assert torch.equal(y[:5], weights(model())[:5])


def test_points_of_each_process() -> None:
    """data=None: the mean of the losses; and points that are drawn."""
    def loss(net: Any, points: Any) -> Any:
        return ((net(points) - points) ** 2).mean()

    def resampled(engine: ThreadEngine) -> Any:
        net = model()

        def points(k: int) -> Any:
            generator = torch.Generator().manual_seed(100 * k + engine.rank)
            return torch.rand((5 + engine.rank, 1), generator=generator, dtype=torch.float64)

        res = train_with_lbfgs(
            net, loss, resample=points, adam_steps=5, max_epochs=3, max_iter=5, tol=0.0,
            distributed=engine,
        )
        return res, weights(net)

    found = together(3, resampled, sharded=False)
    assert_same(found)
    assert found[0][0].loss < 0.01

    def bare(engine: ThreadEngine) -> Any:
        net = model()
        own = torch.full((1, 1), float(engine.rank), dtype=torch.float64)
        res = train_with_lbfgs(
            net, lambda m: loss(m, own), adam_steps=0, max_epochs=1, max_iter=3,
            distributed=engine,
        )
        return res, weights(net)

    found = together(2, bare, sharded=False)
    assert_same(found)
    first = [loss(NET, torch.full((1, 1), r, dtype=torch.float64)).item() for r in (0.0, 1.0)]
    assert found[0][0].lbfgs.loss[0] == pytest.approx(np.mean(first))


# --- decisions -----------------------------------------------------------------------------------


def at_call(number: int, act: Callable[[], Any]) -> Callable:
    """A loss that does something at one of its calls."""
    calls = [0]

    def loss(output: Any, target: Any) -> Any:
        calls[0] += 1
        found = act() if calls[0] == number else None
        value = ((output - target) ** 2).mean()
        return value if found is None else found * value

    return loss


def raising(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("call", [1, 7, 14])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_one_process(kind: type[BaseException], call: int) -> None:
    def work(engine: ThreadEngine) -> Any:
        last = engine.rank == 2
        loss_fn = at_call(call if last else 0, lambda: raising(kind("one of us")))
        net = model()
        mine = tuple(t[SHARDS["uneven"][engine.rank]] for t in data())
        try:
            res: Any = train_with_lbfgs(
                net, loss_fn, mine, adam_steps=6, adam_lr=0.05, max_epochs=9, max_iter=5,
                tol=0.0, reduction="mean", distributed=engine,
            )
        except Exception as error:
            res = error
        return res, weights(net)

    found = together(3, work, sharded=False)
    assert all(torch.equal(x, found[0][1]) for _, x in found)
    assert found[0][1].isfinite().all()
    if kind is KeyboardInterrupt:
        assert {res.status for res, _ in found} == {lx.Status.INTERRUPTED}
    else:
        assert [type(error).__name__ for error, _ in found] == [
            "ProcessFailed", "ProcessFailed", "ZeroDivisionError"
        ]
        assert str(found[0][0]) == "process 2 failed: ZeroDivisionError: one of us"


@pytest.mark.parametrize("where", ["callback", "resample", "items"])
def test_an_error_outside_of_the_loss(where: str) -> None:
    def work(engine: ThreadEngine) -> Any:
        last = engine.rank == 1

        def fails(*_: Any) -> None:
            if last:
                raise ZeroDivisionError("one of us")

        class Items:
            count = 0

            def __iter__(self) -> Any:
                self.count += 1
                yield data()
                if self.count > 2:
                    fails()

        how: dict[str, Any] = {}
        if where == "callback":
            how = {"callback": fails if last else None, "data": data()}
        elif where == "items":
            how = {"data": Items()}
        else:
            how = {"resample": lambda k: data() if k < 2 else fails() or data()}
        return train_with_lbfgs(
            model(), nn.MSELoss(), adam_steps=6, max_iter=2, tol=0.0, distributed=engine, **how
        )

    found = together(2, work, sharded=False)
    assert [type(error).__name__ for error in found] == ["ProcessFailed", "ZeroDivisionError"]


@pytest.mark.parametrize(("call", "status"), [(1, "NOT_FINITE"), (5, "DIVERGED"), (11, None)])
def test_nan_in_one_process(call: int, status: str | None) -> None:
    def work(engine: ThreadEngine) -> Any:
        loss_fn = at_call(call if engine.rank == 1 else 0, lambda: np.nan)
        return train(engine, SHARDS["even"], loss_fn=loss_fn, reduction="mean")

    found = together(2, work, sharded=False)
    assert_same(found)
    assert np.isfinite(found[0][0].loss) or status
    assert found[0][1].isfinite().all()
    if status:
        assert found[0][0].adam.status.name == status


@pytest.mark.parametrize("phase", ["Adam", "L-BFGS"])
def test_the_callback_of_one_process_stops_all(phase: str) -> None:
    def work(engine: ThreadEngine) -> Any:
        seen = []

        def callback(record: Any) -> bool:
            seen.append(record.epoch)
            return record.phase == phase

        res = train(
            engine, SHARDS["even"], callback=callback if engine.rank == 1 else None,
            progress=engine.rank == 0,
        )
        assert len(seen) == (engine.rank == 1) * (1 if phase == "Adam" else 2)
        return res

    found = together(2, work, sharded=False)
    assert_same(found)
    assert found[0][0].status is lx.Status.CALLBACK


def test_what_must_be_the_same() -> None:
    def other(**how: Any) -> list[str]:
        return [str(e) for e in together(2, lambda engine: train(engine, SHARDS["even"], **{
            name: value(engine.rank) for name, value in how.items()
        }), sharded=False)]

    def moved(rank: int) -> Any:
        net = model()
        net[2].bias.data += rank
        return net

    def frozen(rank: int) -> Any:
        net = moved(rank)
        net[2].bias.requires_grad_(False)
        return net

    for net in (moved, frozen):
        first, second = other(net=net)
        assert first == second == (
            "the parameters: 2.bias differs between process 0 and process 1; wanted the same in "
            "all processes, as by torch.manual_seed(0) before the model is made, or by "
            "DistributedDataParallel"
        )
    for name, value in {
        "tol": lambda rank: 0.1 * rank, "max_epochs": lambda rank: 3 + rank,
        "adam_lr": lambda rank: 0.1 + rank,
        "whether there is a batch_size or an iterable": None,
    }.items():
        how = {name: value} if value else {"batch_size": lambda rank: 3 if rank else None}
        for text in other(**how):
            assert text.startswith(f"the settings: {name} differs between process 0 and process 1")
    first, second = other(max_iter=lambda rank: 8 - 9 * rank)
    assert first == "process 1 failed: ValueError: max_iter is -1; wanted an integer of at least 1"
    assert f"process 1 failed: ValueError: {second}" == first


def test_buffers_that_differ_are_told() -> None:
    def work(engine: ThreadEngine) -> Any:
        net = nn.Sequential(*model(), nn.BatchNorm1d(1)).double().eval()
        net[3].running_mean += engine.rank
        return train(engine, SHARDS["even"], net, adam_steps=1, max_epochs=0)

    with pytest.warns(UserWarning, match=r"buffers .* differ .*\(3\.running_mean\), and are not"):
        found = together(2, work, sharded=False)
    assert_same(found)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"distributed is 'torch'; wanted lx\.distributed"):
        train_with_lbfgs(model(), nn.MSELoss(), data(), distributed="torch")
    for sharded in together(2, lambda engine: train(engine, SHARDS["even"])):
        assert "distributed has sharded=True; wanted sharded=False" in str(sharded)

    def mixed(engine: ThreadEngine) -> Any:
        points = {"inner": data()[0], "edge": data()[0][:1]}
        return train_with_lbfgs(
            model(), lambda net, p: net(p["inner"]).mean() ** 2, [points], distributed=engine
        )

    for error in together(2, mixed, sharded=False):
        assert "its share in the mean is not known" in str(error)


# --- checkpoints ---------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "whole": {}, "drawn": {"batch_size": 3}, "items": {"adam_steps": 20},
    "method": {"method": lx.SSBroyden(), "adam_steps": 4},
}


def saved_run(
    engine: ThreadEngine, path: Path | None, kind: str = "whole", call: int = 0, **how: Any
) -> Any:
    """A run that an exception in one process ends at a call of the loss."""
    mine = how.pop("mine", None)
    if kind == "items":
        mine = items(SHARDS["uneven"][engine.rank], 2 + engine.rank)
    failing = engine.rank == engine.size - 1
    loss_fn = at_call(call if failing else 0, lambda: raising(ZeroDivisionError()))
    checkpoint = None if path is None else lx.Checkpoint(path, every=2)
    how = {
        "adam_steps": 10, "max_epochs": 3, **KINDS[kind], "loss_fn": loss_fn, "reduction": "mean",
        "tol": 1e-4, **how,
    }
    return train(engine, SHARDS["uneven"], mine=mine, checkpoint=checkpoint, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_a_run_that_never_stopped(kind: str, tmp_path: Path) -> None:
    path, kinds = tmp_path / "run.npz", set()
    wanted = together(3, lambda engine: saved_run(engine, None, kind), sharded=False)
    assert_same(wanted)
    for call in range(15, 99):
        found = together(3, lambda engine, n=call: saved_run(engine, path, kind, n), sharded=False)
        if isinstance(found[0], tuple):
            break
        kinds.add(tuple(type(each).__name__ for each in found))
    assert kinds == {("ProcessFailed", "ProcessFailed", "ZeroDivisionError")}
    assert_same(found, wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    assert_same(together(3, lambda engine: saved_run(engine, path, adam_steps=3), sharded=False))

    def other(size: int = 3, **how: Any) -> str:
        found = together(size, lambda engine: saved_run(engine, path, **{
            name: value(engine.rank) for name, value in how.items()
        }), sharded=False)
        assert {str(each) for each in found} == {str(found[0])}
        assert isinstance(found[0], ValueError), found[0]
        return str(found[0]).partition("another run: ")[2].partition(";")[0]

    assert other(2) == "processes is 3 there and 2 here"
    assert other(seed=lambda rank: rank // 2) == "processes.2.seed is 0 there and 1 here"
    shards = [tuple(t[shard] for t in data()) for shard in SHARDS["uneven"]]
    shards[1] = shards[1][0] + 1.0, shards[1][1]
    assert other(mine=shards.__getitem__) == "processes.1.data.0 has other values here than there"


def test_a_run_alone_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    assert_same(together(3, lambda engine: saved_run(engine, path, adam_steps=3), sharded=False))
    with pytest.raises(ValueError, match="processes is 3 there and None here"):
        train(None, [], checkpoint=lx.Checkpoint(path), tol=1e-4, reduction="mean")


@pytest.mark.parametrize("call", [5, 19])
def test_sigterm_in_one_process_ends_all(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the same evaluation, although that is within an epoch."""
    path, received, known = tmp_path / "run.npz", [], {}

    class Known(keepers.TogetherKeeper):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            known[self._engine.rank] = self

    def work(engine: ThreadEngine) -> Any:
        loss_fn = at_call(call if engine.rank == 1 else 0, lambda: known[1]._handle())
        return train(
            engine, SHARDS["even"], loss_fn=loss_fn, reduction="mean",
            checkpoint=lx.Checkpoint(path, seconds=1e9),
        )

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(keepers, "TogetherKeeper", Known)
            found = together(2, work, sharded=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert_same(found)
    assert found[0][0].status is lx.Status.INTERRUPTED
    header, _ = file.read(path)
    assert not header["counts"]["done"]
    call = 0
    wanted = together(2, lambda engine: train(
        engine, SHARDS["even"], loss_fn=at_call(0, lambda: None), reduction="mean"
    ), sharded=False)
    assert_same(together(2, work, sharded=False), wanted)


class Struck(lx.distributed.Engine):
    """A single process that receives Ctrl-C within a message."""

    rank, size = 0, 1

    def __init__(self, number: int):
        self.number, self.said = number, []

    def sum(self, array: Any) -> Any:
        self.said.append(float(array[1]))
        if len(self.said) == self.number:
            signal.raise_signal(signal.SIGINT)
        return array

    def gather(self, item: Any) -> list[Any]:
        return [item]


@pytest.mark.parametrize("number", [4, 14])
def test_ctrl_c_within_a_message(number: int) -> None:
    """It waits for the next evaluation, where the others hear of it."""
    engine = Struck(number)
    res, x = train(engine, SHARDS["one"])
    assert res.status is lx.Status.INTERRUPTED
    assert engine.said == [*[0.0] * number, 1.0]
    assert x.isfinite().all()
