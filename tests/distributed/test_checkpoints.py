"""Checkpoints of runs in many processes, which are threads here."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.saving import file
from lbfgs_xp.saving import together as keepers
from tests.distributed.test_sharded import METHODS, N, function, pieces, stopping
from tests.distributed.threads import ThreadEngine, together

RUNS = ["L-BFGS", "bounds", "Adam", "phases", "fixed order"]


def solve(
    engine: ThreadEngine, path: Path | None, stop: int | None = None, **how: Any
) -> lx.Result:
    """A run that the callback in one process ends after so many iterations, by an exception."""
    here = pieces(engine.size)[engine.rank] if engine.sharded else slice(None)
    own = here if engine.sharded else pieces(engine.size)[engine.rank]
    share, calls = function(own, engine if how.get("reproducible") else None), [0]

    def fun(x: Any) -> Any:
        value, gradient = share(x if engine.sharded else x[own])
        calls[0] += 1
        if calls[0] == stop and engine.rank == engine.size - 1:
            raise ZeroDivisionError
        if engine.sharded:
            return value, gradient
        whole = np.zeros(N)
        whole[own] = gradient
        return value, whole

    if path is not None:
        how["checkpoint"] = how.pop("checkpoint", None) or lx.Checkpoint(path, every=2)
    return lx.minimize(fun, np.zeros(N)[here], jac=True, distributed=engine, **how)


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    for mine, other in zip(found, wanted, strict=True):
        assert isinstance(mine, lx.Result), mine
        assert mine.x.tobytes() == other.x.tobytes()
        for name in ("fun", "nit", "nfev", "status", "message"):
            assert getattr(mine, name) == getattr(other, name), name


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("method", RUNS)
def test_bits_of_a_run_that_never_stopped(method: str, sharded: bool, tmp_path: Path) -> None:
    how, path = METHODS[method], tmp_path / "run.npz"
    for _ in range(99):
        found = together(3, lambda engine: solve(engine, path, 9, **how), sharded)
        if isinstance(found[0], lx.Result):
            break
        kinds = [type(each).__name__ for each in found]
        assert kinds == ["ProcessFailed", "ProcessFailed", "ZeroDivisionError"], found
    assert_same(found, together(3, lambda engine: solve(engine, None, **how), sharded))
    names = sorted(p.name for p in tmp_path.iterdir())
    ends = [name.rpartition("-")[2] for name in names]
    assert ends == ["run.npz", *(["0of3", "1of3", "2of3"] if sharded else [])]


def saved(tmp_path: Path, size: int = 3, sharded: bool = True, **how: Any) -> Path:
    """The file of a run that has ended after some iterations."""
    path = tmp_path / "run.npz"
    together(size, lambda engine: solve(engine, path, maxiter=6, **how), sharded)
    return path


def test_wanted_again(tmp_path: Path) -> None:
    """After its end, and with a larger budget."""
    path = saved(tmp_path)
    wanted = together(3, lambda engine: solve(engine, None, maxiter=6))
    assert_same(together(3, lambda engine: solve(engine, path, maxiter=6)), wanted)
    assert_same(
        together(3, lambda engine: solve(engine, path)),
        together(3, lambda engine: solve(engine, None)),
    )


@pytest.mark.parametrize(
    ("size", "sharded", "how", "says"),
    [
        (2, True, {}, "was saved by 3 processes, and here are 2"),
        (3, False, {}, "was saved by another run: .*|holds a piece"),
        (3, True, {"method": lx.LBFGS(memory_size=3)}, "memory_size is 10 there and 3 here"),
        (3, True, {"bounds": (-1.0, 1.0)}, "bounds is None there and"),
    ],
    ids=str,
)
def test_another_run_is_refused(
    size: int, sharded: bool, how: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for error in together(size, lambda engine: solve(engine, path, **how), sharded):
        assert isinstance(error, ValueError)
        assert re.search(says, str(error))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_whole_file_is_no_header(tmp_path: Path) -> None:
    path = saved(tmp_path, sharded=False)
    for error in together(3, lambda engine: solve(engine, path)):
        assert "holds a run whose variables are in one piece" in str(error)
    # All walk the same steps, so their number may differ, and one process is enough.
    (alone,) = together(1, lambda engine: solve(engine, path), sharded=False)
    assert alone.success


@pytest.mark.parametrize("harm", ["missing", "cut", "of another save"])
def test_pieces_that_do_not_fit(harm: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    (piece,) = tmp_path.glob("run.npz.*-1of3")
    if harm == "missing":
        piece.unlink()
    elif harm == "cut":
        piece.write_bytes(piece.read_bytes()[:-99])
    else:
        other = tmp_path / "other"
        other.mkdir()
        saved(other, bounds=(-9.0, 9.0))
        (foreign,) = other.glob("run.npz.*-1of3")
        piece.write_bytes(foreign.read_bytes())
    for error in together(3, lambda engine: solve(engine, path)):
        assert isinstance(error, ValueError)
        assert "-1of3" in str(error) or "run.npz was saved" in str(error)


def test_the_save_before_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"

    def work(engine: ThreadEngine, **how: Any) -> Any:
        return solve(engine, path, checkpoint=lx.Checkpoint(path, every=2, keep=2), **how)

    together(3, lambda engine: work(engine, maxiter=6))
    newest = max(tmp_path.glob("run.npz.*-2of3"), key=lambda p: int(p.name.split(".")[2][:-5]))
    newest.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"-2of3 .*; the run goes on from the save before it"):
        found = together(3, work)
    assert_same(found, together(3, lambda engine: solve(engine, None)))


@pytest.mark.parametrize("sharded", [True, False])
def test_files_of_others_stay(sharded: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    np.savez(path, x=np.zeros(3))
    others = [tmp_path / name for name in ("run.npz.2.7-0of3", ".run.npz.2.7-0of3.ab1.part")]
    left = tmp_path / ".run.npz.7-1of3.ab1.part"
    for other in [*others, left]:
        other.write_text("")
    before = path.read_bytes()
    for error in together(3, lambda engine: solve(engine, path), sharded):
        assert isinstance(error, ValueError)
        assert "was not written by lbfgs_xp" in str(error)
    assert path.read_bytes() == before
    path.unlink()
    saved(tmp_path)
    assert all(other.exists() for other in others)
    assert not left.exists()


@pytest.mark.parametrize("sharded", [True, False])
def test_one_save_each_time(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write, written = tmp_path / "run.npz", file.write, []

    def counted(where: Path, *args: Any, **more: Any) -> str:
        written.append(where)
        return write(where, *args, **more)

    monkeypatch.setattr(file, "write", counted)
    first, *_ = together(
        3, lambda engine: solve(engine, path, checkpoint=lx.Checkpoint(path, every=4)), sharded
    )
    assert 2 <= written.count(path) <= first.nit // 4 + 1


@pytest.mark.parametrize("sharded", [True, False])
def test_a_disk_that_is_full_in_one_process(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = saved(tmp_path, sharded=sharded), file.write
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(where: Path, *args: Any, **more: Any) -> str:
        if where.name.endswith("-2of3") or not sharded:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(where, *args, **more)

    monkeypatch.setattr(file, "write", full)
    with pytest.warns(RuntimeWarning, match="could not be written .*No space left"):
        found = together(3, lambda engine: solve(engine, path), sharded)
    assert_same(found, together(3, lambda engine: solve(engine, None), sharded))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_stops_are_saved(tmp_path: Path) -> None:
    """Time, callbacks and Ctrl-C in one process; they are noticed in all after the same step."""
    def work(engine: ThreadEngine, how: str) -> Any:
        checkpoint = lx.Checkpoint(tmp_path / how)
        return solve(engine, tmp_path, checkpoint=checkpoint, **stopping(engine, how))

    wanted = together(3, lambda engine: solve(engine, None))
    for how in ("callback", "interrupt", "time"):
        stopped = together(3, lambda engine, how=how: work(engine, how))
        assert not any(res.success for res in stopped)
        again = lx.Checkpoint(tmp_path / how)
        found = together(
            3, lambda engine, again=again: solve(engine, tmp_path, checkpoint=again)
        )
        assert_same(found, wanted)


@pytest.mark.parametrize("sharded", [True, False])
def test_time_is_over_for_all(sharded: bool, tmp_path: Path) -> None:
    """Also if the clocks of the others say that it is not, and with another phase ahead."""
    def work(engine: ThreadEngine, maxtime: float | None) -> Any:
        return solve(
            engine, tmp_path, maxtime=maxtime if engine.rank == 1 else None,
            checkpoint=lx.Checkpoint(tmp_path / "run.npz", seconds=1e9), **METHODS["phases"],
        )

    for res in together(3, lambda engine: work(engine, 1e-9), sharded):
        assert res.status is lx.Status.TIME
    assert (tmp_path / "run.npz").exists()
    wanted = together(3, lambda engine: solve(engine, None, **METHODS["phases"]), sharded)
    assert_same(together(3, lambda engine: work(engine, None), sharded), wanted)


@pytest.mark.parametrize("sharded", [True, False])
def test_sigterm_in_one_process_ends_all(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, received = "PiecesKeeper" if sharded else "TogetherKeeper", []

    class Struck(getattr(keepers, kind)):  # type: ignore[misc]
        def visit(self, position: Any, advanced: int) -> None:
            self.visits = getattr(self, "visits", 0) + 1
            if self.visits == 4 and self._engine.rank == 1:
                self._handle()
            super().visit(position, advanced)

    path, before = tmp_path / "run.npz", signal.getsignal(signal.SIGTERM)
    checkpoint = lx.Checkpoint(path, seconds=1e9)
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(keepers, kind, Struck)
            found = together(3, lambda engine: solve(engine, path, checkpoint=checkpoint), sharded)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert {res.status for res in found} == {lx.Status.INTERRUPTED}
    assert {res.nfev for res in found} == {found[0].nfev}
    assert_same(
        together(3, lambda engine: solve(engine, path, checkpoint=checkpoint), sharded),
        together(3, lambda engine: solve(engine, None), sharded),
    )


def test_other_arguments(tmp_path: Path) -> None:
    def work(engine: ThreadEngine) -> Any:
        return solve(engine, tmp_path / "run.npz" if engine.rank else None)

    for error in together(2, work):
        assert str(error).startswith("whether and how often the run is saved differs")
    for error in together(2, lambda engine: solve(engine, tmp_path / "missing" / "run.npz")):
        assert isinstance(error, FileNotFoundError)
