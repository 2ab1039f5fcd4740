"""`train_with_lbfgs(has_aux=True)`: what the loss returns besides its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

torch = pytest.importorskip("torch")
from lbfgs_xp.torch import train_with_lbfgs  # noqa: E402
from tests.distributed.threads import Meeting, ThreadEngine  # noqa: E402
from tests.torch.test_second_phase import model, numbers, points, residual  # noqa: E402

SETTINGS: dict[str, Any] = {"adam_steps": 6, "max_epochs": 3, "max_iter": 4, "tol": 0.0}


def with_terms(net: Any, x: Any) -> Any:
    """The loss again, its largest term, a number of Python, and an array."""
    r = net(x) - torch.sin(3.0 * x)
    loss = (r * r).mean()
    return loss, {"loss": loss, "rows": len(x), "r": r}


@pytest.mark.parametrize("how", [
    {}, {"chunk_size": 7}, {"method": "ssbroyden"}, {"batch_size": 8, "max_epochs": 1},
], ids=str)
def test_numbers_belong_to_the_losses(how: dict[str, Any]) -> None:
    records: list[Any] = []
    net, twin = model(), model()
    res = train_with_lbfgs(
        net, with_terms, points(0), has_aux=True, callback=records.append, **SETTINGS | how
    )
    plain = train_with_lbfgs(twin, residual, points(0), **SETTINGS | how)
    assert np.array_equal(numbers(net), numbers(twin)) and res.loss == plain.loss
    assert plain.aux is None and plain.adam.metrics is None
    for phase in (res.adam, res.lbfgs):
        np.testing.assert_allclose(phase.metrics["loss"], phase.loss, rtol=1e-14)
        assert phase.metrics["r"] is None
    assert [r.metrics["loss"] for r in records] == pytest.approx([r.loss for r in records], 1e-14)
    assert res.aux["loss"] == pytest.approx(res.loss, rel=1e-14)
    assert type(res.aux["loss"]) is float and not res.aux["r"].requires_grad


def test_chunks_are_weighted_by_rows_or_counts() -> None:
    def summed(net: Any, x: Any) -> Any:
        loss, aux = with_terms(net, x)
        return (2.0 * len(x) * loss, 2.0 * len(x)), aux

    for loss_fn in (with_terms, summed):
        res = train_with_lbfgs(
            model(), loss_fn, points(0), has_aux=True, adam_steps=2, max_epochs=0, chunk_size=20
        )
        # 20 rows and 10.
        assert res.aux["rows"] == pytest.approx(50.0 / 3.0) and len(res.aux["r"]) == 10
        assert res.aux["loss"] == pytest.approx(res.loss, rel=1e-14)


def test_a_run_that_goes_on_from_a_file(tmp_path: Path) -> None:
    whole = train_with_lbfgs(model(), with_terms, points(0), has_aux=True, **SETTINGS)
    calls: list[int] = []

    def stopping(net: Any, x: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:    # in the second phase
            raise KeyboardInterrupt
        return with_terms(net, x)

    file = lx.Checkpoint(tmp_path / "run.npz", every=1)
    half = train_with_lbfgs(
        model(), stopping, points(0), has_aux=True, checkpoint=file, **SETTINGS
    )
    assert half.status is lx.Status.INTERRUPTED
    rest = train_with_lbfgs(
        model(), with_terms, points(0), has_aux=True, checkpoint=file, **SETTINGS
    )
    done = train_with_lbfgs(
        model(), with_terms, points(0), has_aux=True, checkpoint=file, **SETTINGS
    )
    for res in (rest, done):
        for one, other in ((res.adam, whole.adam), (res.lbfgs, whole.lbfgs)):
            assert np.array_equal(one.metrics["loss"], other.metrics["loss"])
        assert res.aux["loss"] == whole.aux["loss"]


def test_what_makes_no_sense() -> None:
    with pytest.raises(TypeError, match=r"loss_fn returned.*has_aux=True, the pair \(loss, aux\)"):
        train_with_lbfgs(model(), residual, points(0), has_aux=True, adam_steps=1)
    uneven = {"x": points(0), "few": points(0)[:3]}

    def loss(net: Any, batch: Any) -> Any:
        return residual(net, batch["x"]), None

    with pytest.raises(ValueError, match=r"wanted loss_fn to return \(sum, count\)"):
        train_with_lbfgs(
            model(), loss, [uneven, uneven], has_aux=True, adam_steps=0, reduction="sum"
        )
    with pytest.raises(ValueError, match="has_aux is True, and distributed was passed"):
        train_with_lbfgs(
            model(), with_terms, points(0), has_aux=True, distributed=ThreadEngine(Meeting(1), 0)
        )
