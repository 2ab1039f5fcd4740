"""Checkpoints: a run that is stopped anywhere, in any way, ends as if it had never stopped."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.saving import file
from tests.backends import Backend, or_skip

START = np.asarray([-1.2, 1.0, 0.3, -0.7, 1.4, 0.2, -0.4])
STARTS = np.stack([START * scale for scale in (1.0, 0.1, 0.9, -0.5, 0.3)])
LIBRARIES = [
    b for b in Backend if not b.is_gpu and b is not Backend.NUMPY_READONLY and not b.missing
]


class Stopped(Exception):
    """What ends a process in these tests."""


def chained(backend: Backend, power: float = 1.0) -> Any:
    """Value and gradient of a chain of springs and quartic wells."""
    xp = backend.xp

    def fun(x: Any) -> Any:
        d = x[..., 1:] - x[..., :-1]
        pull, zero = 100.0 * d, xp.zeros_like(x[..., :1])
        gradient = 4.0 * x * x * x - 3.0 * x + 0.25 * power
        gradient = gradient + xp.concat([zero, pull], axis=-1) - xp.concat([pull, zero], axis=-1)
        value = lx.fixed_sum(x * x * x * x - 1.5 * x * x + 0.25 * power * x)
        return value + 50.0 * lx.fixed_sum(d * d), gradient

    return fun


def stopping(fun: Any, calls: int) -> Any:
    """`fun`, which may be called only so often."""
    left = [calls]

    def limited(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return fun(*args)

    return limited


def until_it_ends(attempt: Callable[[], Any], most: int = 200) -> tuple[Any, int]:
    """What `attempt` returns once it is not stopped any more, and how often it was."""
    for stops in range(most):
        try:
            return attempt(), stops
        except Stopped:
            pass
    raise AssertionError(f"stopped {most} times")


def assert_same(backend: Backend, found: lx.Result, wanted: lx.Result) -> None:
    for name in ("x", "fun", "jac", "gradient_norm", "nit", "nfev", "nhev", "status", "success"):
        mine, other = (getattr(res, name) for res in (found, wanted))
        host = [
            backend.to_numpy(v) if hasattr(v, "shape") and hasattr(v, "dtype") else np.asarray(v)
            for v in (mine, other)
        ]
        np.testing.assert_array_equal(*host, err_msg=name)
    assert found.message == wanted.message
    assert len(found.phases) == len(wanted.phases)


RUNS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "L-BFGS": (START, {"method": "lbfgs"}),
    "BFGS": (START, {"method": "bfgs"}),
    "phases": (START, {"method": [lx.Adam(1e-2).until(maxiter=9), lx.LBFGS()]}),
    "bounds": (START, {"method": "lbfgs", "bounds": (-0.5, 0.6)}),
    "scaled": (START, {"method": "lbfgs", "x_scale": 2.0}),
    "batch": (STARTS, {"batched": True}),
    "batch L-BFGS": (STARTS, {"batched": True, "method": "lbfgs"}),
    "batch phases": (STARTS, {"batched": True, "method": [
        lx.Adam(1e-2).until(maxiter=9), lx.LBFGS(memory_size=3)
    ]}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("run", RUNS)
def test_bits_of_a_run_that_never_stopped(backend: Backend, run: str, tmp_path: Path) -> None:
    start, settings = RUNS[run]
    fun = chained(backend)

    def solve(fun: Any, **more: Any) -> lx.Result:
        return lx.minimize(fun, backend.asarray(start), jac=True, **settings, **more)

    def attempt() -> lx.Result:
        return solve(stopping(fun, 11), checkpoint=lx.Checkpoint(tmp_path / "run.npz", every=2))

    found, stops = until_it_ends(attempt)
    assert stops > 0
    assert_same(backend, found, solve(fun))
    # A run that has ended is not run again, apart from a look whether fun is the same.
    again = solve(stopping(fun, 1), checkpoint=lx.Checkpoint(tmp_path / "run.npz"))
    assert_same(backend, again, found)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("where", ["smooth", "among noise", "next to a singularity"])
def test_differences_go_on_exactly(where: str, jac: str, tmp_path: Path) -> None:
    chain, start = chained(Backend.NUMPY), START
    if where == "next to a singularity":
        start = np.concatenate([[1e-8], START])

    def fun(x: Any) -> Any:
        if where == "smooth":
            return chain(x)[0]
        if where == "among noise":
            return chain(x)[0] + 1e-4 * np.sin(1e9 * np.sum(x) + 3.0 * np.sin(1e8 * x[0]))
        if x[0] <= 0.0:
            return np.nan
        return x[0] - np.log(x[0]) + np.sum((x[1:] - 1.0) ** 2)

    def solve(calls: int, **more: Any) -> lx.Result:
        return lx.minimize(stopping(fun, calls), start, jac=jac, **more)

    checkpoint = lx.Checkpoint(tmp_path / "run.npz", every=1)
    found, stops = until_it_ends(lambda: solve(250, checkpoint=checkpoint))
    assert stops > 0
    assert_same(Backend.NUMPY, found, solve(10**6))


@pytest.mark.parametrize("run", RUNS)
def test_another_library_goes_on_with_the_same_bits(run: str, tmp_path: Path) -> None:
    start, settings = RUNS[run]
    chance = random.Random(run)
    libraries = [b for b in LIBRARIES if not b.is_jax or "batched" not in settings]
    chosen = Backend.NUMPY

    def attempt() -> lx.Result:
        nonlocal chosen
        chosen = chance.choice(libraries)
        return lx.minimize(
            stopping(chained(chosen), chance.randint(4, 12)), chosen.asarray(start), jac=True,
            reproducible=True, checkpoint=lx.Checkpoint(tmp_path / "run.npz", every=1), **settings,
        )

    found, stops = until_it_ends(attempt)
    assert stops > 0
    wanted = lx.minimize(chained(Backend.NUMPY), start, jac=True, reproducible=True, **settings)
    for name in ("x", "jac"):
        np.testing.assert_array_equal(chosen.to_numpy(getattr(found, name)), getattr(wanted, name))
    np.testing.assert_array_equal(*(np.asarray(
        backend.to_numpy(res.nfev) if "batched" in settings else res.nfev
    ) for backend, res in ((chosen, found), (Backend.NUMPY, wanted))))


def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    fun, path = chained(Backend.NUMPY), tmp_path / "run.npz"

    def solve(maxiter: int, checkpoint: Any = None, **more: Any) -> lx.Result:
        return lx.minimize(fun, START, jac=True, maxiter=maxiter, checkpoint=checkpoint, **more)

    assert solve(5, lx.Checkpoint(path)).status is lx.Status.ITERATIONS
    assert solve(5, lx.Checkpoint(path)).nit == 5
    assert_same(Backend.NUMPY, solve(1000, lx.Checkpoint(path)), solve(1000))


@pytest.mark.parametrize("ends", ["callback", "maxtime", "Ctrl-C"])
def test_a_run_that_was_ended_goes_on(ends: str, tmp_path: Path) -> None:
    fun, path = chained(Backend.NUMPY), tmp_path / "run.npz"
    calls = 0

    def interrupted(x: Any) -> Any:
        nonlocal calls
        calls += 1
        if ends == "Ctrl-C" and calls == 9:
            raise KeyboardInterrupt
        if ends == "maxtime" and calls == 9:
            time.sleep(0.2)
        return fun(x)

    how: dict[str, Any] = {
        "callback": {"callback": lambda record: record.nit == 5}, "maxtime": {"maxtime": 0.2},
    }.get(ends, {})
    first = lx.minimize(
        interrupted, START, jac=True, checkpoint=lx.Checkpoint(path, seconds=1e9), **how
    )
    assert not first.success
    assert 0 < first.nit < 9
    found = lx.minimize(fun, START, jac=True, checkpoint=lx.Checkpoint(path))
    assert_same(Backend.NUMPY, found, lx.minimize(fun, START, jac=True))


# --- files that do not fit -----------------------------------------------------------------------


def saved(path: Path, **settings: Any) -> Any:
    """A run of five iterations that has saved itself, with what it was called with."""
    settings = {"maxiter": 5, "jac": True, "method": lx.LBFGS(), **settings}
    fun = settings.pop("fun", None) or chained(Backend.NUMPY)
    start = settings.pop("x0", START)
    return lx.minimize(
        lambda x, *args: fun(x), start, checkpoint=lx.Checkpoint(path), **settings
    )


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"method": lx.LBFGS(memory_size=3)}, "memory_size is 10 there and 3 here"),
        ({"method": lx.BFGS()}, "method is LBFGS there and BFGS here"),
        ({"x0": START[:4]}, r"variables.x0 is float64 \[7\] there and float64 \[4\] here"),
        ({"x0": START.astype(np.float32)}, "float64 .* there and float32 .* here"),
        ({"gtol": 1e-3}, "gtol is 0.0 there and 0.001 here"),
        ({"reproducible": True}, "reproducible is False there and True here"),
        ({"bounds": (0.0, 1.0)}, "bounds"),
        ({"x_scale": 2.0}, "x_scale"),
        ({"jac": "3-point", "fun": lambda x: chained(Backend.NUMPY)(x)[0]}, "jac is True there"),
        ({"fun": chained(Backend.NUMPY, 2.0)}, "fun has the value .* instead of"),
        ({"args": (np.asarray([2.0, 0.0, 1.0]), 3.0)}, r"args\.0 has other values here"),
        ({"args": ()}, r"args\.0 is float64 \[3\] there and None here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused(other: dict[str, Any], says: str, tmp_path: Path) -> None:
    args = np.asarray([0.0, 2.0, 1.0]), 3.0
    saved(tmp_path / "run.npz", args=args)
    with pytest.raises(ValueError, match=says):
        saved(tmp_path / "run.npz", **{"args": args, **other})


def test_phases_are_told_in_a_few_words(tmp_path: Path) -> None:
    path, phases = tmp_path / "run.npz", [lx.Adam(1e-2).until(maxiter=5), lx.LBFGS()]
    saved(path, method=phases)
    for method, says in (
        ("lbfgs", "phases is [Adam, LBFGS] there and [LBFGS] here;"),
        ([phases[0], lx.LBFGS(4)], "phases[1].method.memory_size is 10 there and 4 here;"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"another run: {says}")):
            saved(path, method=method)


def test_the_log_says_that_a_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lbfgs_xp")
    path = tmp_path / "run.npz"
    saved(path, maxiter=2)
    assert not caplog.messages
    saved(path)
    (told,) = caplog.messages
    assert re.fullmatch(
        rf"{re.escape(str(path))}: the run goes on from what was saved there "
        r"\(phase 0, nfev \d+, done True\)", told,
    )


FOREIGN = {
    "torch": "it is a file of torch.save, which torch.load reads",
    "old torch": "it is a pickle or an old file of torch.save",
    "pickle": "it is a pickle",
    "npz": "it is another npz file, which numpy.load reads",
    "npy": "it is an npy file, which numpy.load reads",
    "zip": "it is another zip archive", "empty": "it is empty",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_others(kind: str, tmp_path: Path) -> None:
    path, array = tmp_path / "file", np.zeros(3)
    if "torch" in kind:
        torch = pytest.importorskip("torch")
        torch.save({"x": torch.zeros(3)}, path, _use_new_zipfile_serialization=kind == "torch")
    with path.open("ab") as stream:
        if kind == "pickle":
            pickle.dump({"x": array}, stream)
        elif kind in ("npz", "npy"):
            (np.savez if kind == "npz" else np.save)(stream, array)
        elif kind == "zip":
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr("x.txt", "0")
    before = path.read_bytes()
    says = rf"file was not written by lbfgs_xp: {re.escape(FOREIGN[kind])}.*; wanted a file that "
    with pytest.raises(ValueError, match=f"{says}lx.save has written"):
        lx.load(path, like=array)
    with pytest.raises(ValueError, match=f"{says}a run has saved"):
        saved(path)
    assert path.read_bytes() == before


def test_data_without_elements(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    for _ in range(2):
        saved(path, args=(np.zeros((0, 3)), np.zeros((2, 0))))
    with pytest.raises(ValueError, match=r"args\.0 is float64 \[0, 3\] there and .* \[1, 3\] here"):
        saved(path, args=(np.zeros((1, 3)), np.zeros((2, 0))))


def test_another_start_is_warned_of(tmp_path: Path) -> None:
    path, first = tmp_path / "run.npz", saved(tmp_path / "run.npz")
    with pytest.warns(RuntimeWarning, match="by a run with another start, and this one goes on"):
        assert_same(Backend.NUMPY, saved(path, x0=2.0 * START), first)
    saved(path, x0=START * (1.0 + 1e-15))    # as if computed again


def test_files_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    saved(path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"run\.npz.*wanted a file that a run has saved"):
            saved(path)
        assert path.read_bytes() == whole[:length]
    chance = random.Random(0)
    bits = [chance.randrange(8 * len(whole)) for _ in range(40)]
    bits += range(8 * len(whole) - 8 * 22, 8 * len(whole))  # where the archive ends
    bits += range(8 * len(whole) - 8 * 700, 8 * len(whole), 8)  # flags of its files
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        # A bit that no reader looks at changes nothing; any other is noticed.
        try:
            header, arrays = file.read(path)
        except file.Damaged:
            continue
        path.write_bytes(whole)
        known, wanted = file.read(path)
        assert header == known
        for mine, other in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_a_state_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    lx.save(path, START)
    with pytest.raises(ValueError, match=r"lx\.save"):
        saved(path)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"_init__": [[], None, "numpy"]}, "wanted one of float, bytes"),
        ({"saved": ["os:system", "true"]}, "is not of lbfgs_xp"),
        ({"saved": ["lbfgs_xp.saving.file:os.system", "true"]}, "is no class of states"),
        ({"saved": ["lbfgs_xp.saving.file:Path", "true"]}, "is no class of states"),
        ({"named": ["lbfgs_xp.saving.file:write", {}]}, "is no class of states"),
        ({"named": ["lbfgs_xp.saving.file:Gone", {}]}, "there is no lbfgs_xp.*Gone, unlike in"),
        ({"named": ["lbfgs_xp.gone:Gone", {}]}, "there is no lbfgs_xp.gone:Gone, unlike in"),
        ({"named": ["lbfgs_xp.result:Best", {"x": 1.0}]}, "has other fields in the version"),
    ],
)
def test_a_file_names_only_classes_of_states(state: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "crafted.npz"
    file.write(path, {"library": "numpy", "state": state}, [])
    with pytest.raises(ValueError, match=says):
        lx.load(path, START)


def test_the_file_before_a_damaged_one(tmp_path: Path) -> None:
    path, fun = tmp_path / "run.npz", chained(Backend.NUMPY)

    def solve(calls: int) -> lx.Result:
        return lx.minimize(
            stopping(fun, calls), START, jac=True, checkpoint=lx.Checkpoint(path, every=1, keep=3)
        )

    with pytest.raises(Stopped):
        solve(11)
    assert {p.name for p in tmp_path.iterdir()} == {"run.npz", "run.npz.1", "run.npz.2"}
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.warns(RuntimeWarning, match="goes on from the file before it"):
        found = solve(1000)
    assert_same(Backend.NUMPY, found, lx.minimize(fun, START, jac=True))


# --- systems that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fsync", "replace", "fdopen"])
def test_a_disk_that_is_full(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fun = tmp_path / "run.npz", chained(Backend.NUMPY)
    saved(path)
    before = path.read_bytes()

    def full(*args: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.warns(RuntimeWarning, match="could not be written .*No space left") as warned:
        found = lx.minimize(
            fun, START, jac=True, method="lbfgs", checkpoint=lx.Checkpoint(path, every=1)
        )
    assert len(warned) == 1
    monkeypatch.undo()
    assert_same(Backend.NUMPY, found, lx.minimize(fun, START, jac=True))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_a_run_that_cannot_be_saved_goes_on(tmp_path: Path) -> None:
    def fun(x: Any) -> Any:
        value, gradient = chained(Backend.NUMPY)(x)
        return (value, object()), gradient

    with pytest.warns(RuntimeWarning, match=r"not be written \(Unsaved: the run.aux\[0\] is a obj"):
        res = lx.minimize(
            fun, START, jac=True, has_aux=True, checkpoint=lx.Checkpoint(tmp_path / "f", every=1)
        )
    assert res.success


def test_paths_that_begin_in_the_same_way(tmp_path: Path) -> None:
    """A run removes what was left of its own saves only."""
    others = [".run.npz.1_a9.part", ".run.other.1_a9.part", "run.npz.7-0of1"]
    for name in [*others, ".run.1_a9.part"]:
        (tmp_path / name).write_text("")
    saved(tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == [*others[:2], "run", others[2]]


def test_a_disk_that_is_full_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fsync = 0, os.fsync

    def sometimes(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sometimes)
    fun, path = chained(Backend.NUMPY), tmp_path / "run.npz"
    with pytest.warns(RuntimeWarning, match="tries again"):
        first = lx.minimize(fun, START, jac=True, checkpoint=lx.Checkpoint(path, every=1))
    again = lx.minimize(stopping(fun, 1), START, jac=True, checkpoint=lx.Checkpoint(path))
    assert_same(Backend.NUMPY, again, first)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        saved(tmp_path / "nowhere" / "run.npz")


def test_a_folder_that_cannot_be_written() -> None:
    """As another user, if this one may write everywhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        path, fun = Path(folder) / "run.npz", chained(Backend.NUMPY)
        saved(path)
        before, calls, mine = path.read_bytes(), [0], os.geteuid()

        def closing(x: Any) -> Any:
            calls[0] += 1
            if calls[0] == 12:
                os.chmod(folder, 0o555)
            return fun(x)

        os.chmod(folder, 0o555)
        try:
            if mine == 0:
                os.seteuid(65534)
            with pytest.raises(PermissionError, match="cannot be written .*another folder"):
                saved(path)
        finally:
            os.seteuid(mine)
        assert path.read_bytes() == before
        os.chmod(folder, 0o755)
        if mine == 0:
            os.chown(folder, 65534, -1)
        try:
            if mine == 0:
                os.seteuid(65534)
            with pytest.warns(RuntimeWarning, match="could not be written .*Permission denied"):
                found = lx.minimize(
                    closing, START, jac=True, checkpoint=lx.Checkpoint(f"{folder}/b", every=1)
                )
            os.chmod(folder, 0o755)
        finally:
            os.seteuid(mine)
        assert_same(Backend.NUMPY, found, lx.minimize(fun, START, jac=True))


def test_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fun, wanted = chained(Backend.NUMPY), lx.minimize(chained(Backend.NUMPY), START, jac=True)

    def solve(path: Any, fun: Any = fun) -> lx.Result:
        return lx.minimize(fun, START, jac=True, checkpoint=lx.Checkpoint(path, every=2))

    with pytest.raises(IsADirectoryError, match="a folder; wanted the path of a file"):
        solve(tmp_path)
    # A link stays one, and both names are one path.
    (tmp_path / "link").symlink_to(tmp_path / "läuft 运行 [1]*.npz")
    solve(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(Backend.NUMPY, solve(tmp_path / "läuft 运行 [1]*.npz", stopping(fun, 1)), wanted)

    def moving(x: Any) -> Any:
        os.chdir("/")
        return fun(x)

    monkeypatch.chdir(tmp_path)
    assert_same(Backend.NUMPY, solve("here.npz", moving), wanted)
    assert (tmp_path / "here.npz").exists()


def test_every_cut_and_many_flips_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    saved(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 100), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="wanted a file that a run has saved"):
            saved(path)
    harmless = 0
    for place in range(0, len(whole), 173):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            again = saved(path)
        except ValueError as error:
            assert "wanted a file that a run has saved" in str(error)
        else:    # what says when a member of the archive was made, and the like
            harmless += 1
            assert again.x.tobytes() == saved(tmp_path / "other.npz").x.tobytes()
    assert harmless < len(whole) / 173 / 4


def test_one_run_for_each_path(tmp_path: Path) -> None:
    path, fun = tmp_path / "run.npz", chained(Backend.NUMPY)

    def nested(x: Any) -> Any:
        with pytest.raises(RuntimeError, match=rf"run\.npz is in use by process {os.getpid()}"):
            saved(path)
        return fun(x)

    lx.minimize(nested, START, jac=True, maxiter=2, checkpoint=lx.Checkpoint(path))
    assert saved(tmp_path / "other.npz").nit == 5


def test_in_a_thread(tmp_path: Path) -> None:
    found: list[lx.Result] = []
    thread = threading.Thread(target=lambda: found.append(saved(tmp_path / "run.npz")))
    thread.start()
    thread.join()
    assert found[0].nit == 5
    assert (tmp_path / "run.npz").exists()


# --- processes that are killed -------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
import numpy as np
import lbfgs_xp as lx
calls = 0
def fun(x):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        time.sleep(5.0)
    d = x[1:] - x[:-1] * x[:-1]
    e = 1.0 - x[:-1]
    g = np.zeros_like(x)
    g[1:] += 200.0 * d
    g[:-1] += -400.0 * d * x[:-1] - 2.0 * e
    return 100.0 * lx.fixed_sum(d * d) + lx.fixed_sum(e * e), g
method = [lx.Adam(1e-2).until(maxiter=20), lx.LBFGS()]
checkpoint = None if sys.argv[1] == "none" else lx.Checkpoint(sys.argv[1], every=3, keep=2)
res = lx.minimize(fun, np.linspace(-1.0, 1.0, 30), jac=True, method=method, checkpoint=checkpoint)
print(res.x.tobytes().hex(), res.nit, res.nfev, res.status.name)
"""


def run_script(path: str, how: str, call: int) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, path, how, str(call)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(root)}, timeout=120,
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_killed_processes(how: str, tmp_path: Path) -> None:
    wanted = run_script("none", how, 0)
    assert wanted.returncode == 0, wanted.stderr
    path, chance = str(tmp_path / "run.npz"), random.Random(1)
    for _ in range(2):
        killed = run_script(path, how, chance.randint(30, 60))
        assert killed.returncode == -getattr(signal, how), killed.stderr
        assert killed.stdout == ""
    found = run_script(path, how, 0)
    assert found.stdout == wanted.stdout, found.stderr


@pytest.mark.thorough
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The parent kills it, while it computes, saves or renames."""
    wanted = run_script("none", "SIGKILL", 0)
    path, chance = str(tmp_path / "run.npz"), random.Random(2)
    code = SCRIPT.replace("every=3", "every=1")
    code = code.replace("calls += 1", "calls += 1; time.sleep(5e-3)")
    root = Path(__file__).parents[2]
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", code, path, "SIGKILL", "0"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        try:
            process.communicate(timeout=chance.uniform(0.4, 1.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            break
    assert run_script(path, "SIGKILL", 0).stdout == wanted.stdout


def test_a_handler_of_the_user(tmp_path: Path) -> None:
    """It is called as soon as the run has saved itself, and the result is returned."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    fun, calls = chained(Backend.NUMPY), 0

    def terminated(x: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return fun(x)

    path = tmp_path / "run.npz"
    try:
        first = lx.minimize(terminated, START, jac=True, checkpoint=lx.Checkpoint(path))
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert first.status is lx.Status.INTERRUPTED
    found = lx.minimize(fun, START, jac=True, checkpoint=lx.Checkpoint(path))
    assert_same(Backend.NUMPY, found, lx.minimize(fun, START, jac=True))


# --- training ------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(40, 3))
Y = X @ [1.0, 2.0, 3.0] + 0.5
METHODS: dict[str, Any] = {
    "Adam": lx.Adam(1e-2),
    "cosine": lx.AdamW(lx.schedules.Cosine(1e-2, steps=60)),
    "plateau": lx.SGD(lx.schedules.ReduceOnPlateau(1e-2, patience=1), momentum=0.9),
    "skip": lx.RMSProp(1e-2, on_nonfinite="skip"),
    "L-BFGS": lx.LBFGS(),
}


def loss(params: Any, batch: Any) -> Any:
    rows, wanted = batch
    r = (rows * params["w"]).sum(-1) + params["b"] - wanted
    gradient = {"w": (2.0 * r[:, None] * rows).sum(0) / len(r), "b": 2.0 * r.sum() / len(r)}
    return (r * r).sum() / len(r), {**gradient, "b": gradient["b"] + 0.0 * params["b"]}


def fit(backend: Backend, method: Any, calls: int, **more: Any) -> lx.TrainResult:
    params = {"w": backend.asarray([0.0, 0.0, 0.0]), "b": backend.asarray(0.0)}
    data = backend.asarray(X), backend.asarray(Y)
    return lx.train(
        stopping(loss, calls), params, data, method=method, jac=True, batch_size=9,
        updates_per_batch=2, compile=False, **{"epochs": 4, **more},
    )


def assert_same_training(backend: Backend, found: lx.TrainResult, wanted: lx.TrainResult) -> None:
    for name in ("w", "b"):
        mine, other = (backend.to_numpy(res.params[name]) for res in (found, wanted))
        np.testing.assert_array_equal(mine, other)
    for name in ("loss", "epoch_loss", "learning_rate"):
        mine, other = (getattr(res.history, name) for res in (found, wanted))
        np.testing.assert_array_equal(mine, other)
    assert (found.updates, found.epochs, found.status) == (
        wanted.updates, wanted.epochs, wanted.status
    )


@pytest.mark.parametrize("library", [Backend.NUMPY, Backend.TORCH, Backend.JAX], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_exactly(method: str, library: Backend, tmp_path: Path) -> None:
    backend, path = or_skip(library), tmp_path / "run.npz"

    def attempt() -> lx.TrainResult:
        return fit(backend, METHODS[method], 17, checkpoint=lx.Checkpoint(path, seconds=0.0))

    found, stops = until_it_ends(attempt)
    assert stops > 0
    assert_same_training(backend, found, fit(backend, METHODS[method], 10**6))
    more = fit(backend, METHODS[method], 10**6, epochs=6, checkpoint=lx.Checkpoint(path))
    assert_same_training(backend, more, fit(backend, METHODS[method], 10**6, epochs=6))


@pytest.mark.parametrize("method", ["Adam", "L-BFGS"])
def test_training_whose_time_is_over_goes_on(method: str, tmp_path: Path) -> None:
    backend, path = Backend.NUMPY, tmp_path / "run.npz"
    calls = 0

    def slow(params: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            time.sleep(0.3)
        return loss(params, batch)

    def train(fun: Any, **more: Any) -> lx.TrainResult:
        params = {"w": np.zeros(3), "b": np.zeros(())}
        return lx.train(
            fun, params, (X, Y), method=METHODS[method], jac=True, batch_size=9, epochs=8, **more
        )

    first = train(slow, maxtime=0.3, checkpoint=lx.Checkpoint(path, seconds=1e9))
    assert first.status is lx.Status.TIME
    calls = before = 100
    found = train(slow, checkpoint=lx.Checkpoint(path, seconds=1e9))
    after, calls = calls - before, before
    assert_same_training(backend, found, train(slow))
    assert after < calls - before


def test_training_goes_on_in_another_library(tmp_path: Path) -> None:
    chance, chosen = random.Random(0), Backend.NUMPY

    def attempt() -> lx.TrainResult:
        nonlocal chosen
        chosen = chance.choice([Backend.NUMPY, Backend.TORCH])
        return fit(
            chosen, lx.Adam(1e-2), 12, reproducible=True,
            checkpoint=lx.Checkpoint(tmp_path / "run.npz", every=1),
        )

    found, _ = until_it_ends(attempt)
    wanted = fit(Backend.NUMPY, lx.Adam(1e-2), 10**6, reproducible=True)
    np.testing.assert_allclose(
        chosen.to_numpy(found.params["w"]), wanted.params["w"], rtol=1e-12
    )
    assert found.updates == wanted.updates


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"batch_size": 8}, "batch_size is 9 there and 8 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"method": lx.Adam(2e-2)}, r"learning_rate.* is 0\.01 there and 0\.02 here"),
        ({"updates_per_batch": 3}, "updates_per_batch is 2 there and 3 here"),
        ({"data": (X, Y[::-1])}, r"data\.1 has other values here than there"),
        ({"data": (X + 1e-6 * (X[3, 1] == X), Y)}, r"data\.0 has other values"),
        ({"data": (X[:, :2], Y)}, r"data\.0 is float64 \[40, 3\] there and float64 \[40, 2\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_training_is_refused(other: dict[str, Any], says: str, tmp_path: Path) -> None:
    def train(**more: Any) -> None:
        settings = {
            "method": lx.Adam(1e-2), "batch_size": 9, "updates_per_batch": 2, "data": (X, Y), **more
        }
        lx.train(
            loss, {"w": np.zeros(3), "b": np.zeros(())}, jac=True,
            checkpoint=lx.Checkpoint(tmp_path / "run.npz"), **settings,
        )

    train()
    train(data=(X * (1.0 + 1e-15), Y.copy()))    # as if computed again in another order
    with pytest.raises(ValueError, match=says):
        train(**other)


# --- states that users save ----------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("run", ["L-BFGS", "BFGS", "batch L-BFGS", "bounds"])
def test_saved_states_go_on_exactly(backend: Backend, run: str, tmp_path: Path) -> None:
    start, settings = RUNS[run]
    fun, path = chained(backend), tmp_path / "state.npz"

    def solve(x0: Any, **more: Any) -> lx.Result:
        return lx.minimize(fun, x0, jac=True, **settings, **more)

    first = solve(backend.asarray(start), maxiter=5)
    lx.save(path, {"x": first.x, "state": first.state})
    loaded = lx.load(path, like=backend.asarray(start))
    found = solve(loaded["x"], state=loaded["state"])
    wanted = solve(first.x, state=first.state)
    assert_same(backend, found, wanted)


@pytest.mark.parametrize("run", ["L-BFGS", "BFGS", "batch L-BFGS", "bounds"])
def test_saved_states_go_on_in_another_library(run: str, tmp_path: Path) -> None:
    start, settings = RUNS[run]
    path = tmp_path / "state.npz"

    def solve(backend: Backend, x0: Any, **more: Any) -> lx.Result:
        return lx.minimize(
            chained(backend), x0, jac=True, reproducible=True, **settings, **more
        )

    first = solve(Backend.NUMPY, start, maxiter=5)
    wanted = solve(Backend.NUMPY, first.x, state=first.state)
    lx.save(path, (first.x, first.state))
    for backend in LIBRARIES:
        x, state = lx.load(path, like=backend.asarray(start))
        found = solve(backend, x, state=state)
        np.testing.assert_array_equal(backend.to_numpy(found.x), wanted.x)


def test_saved_optimizers_go_on_exactly(backend: Backend, tmp_path: Path) -> None:
    path, opt = tmp_path / "state.npz", lx.AdamW(1e-2)
    params = {"w": backend.asarray([1.0, 2.0]), "b": [backend.asarray([[3.0]])]}
    state = opt.init(params)
    for _ in range(3):
        params, state = opt.update(params, params, state)
    lx.save(path, {"params": params, "state": state, "epoch": 3, "name": "run"})
    loaded = lx.load(path, like=params)
    assert (loaded["epoch"], loaded["name"]) == (3, "run")
    found, _ = opt.update(loaded["params"], loaded["params"], loaded["state"])
    wanted, _ = opt.update(params, params, state)
    np.testing.assert_array_equal(backend.to_numpy(found["w"]), backend.to_numpy(wanted["w"]))
    np.testing.assert_array_equal(
        backend.to_numpy(found["b"][0]), backend.to_numpy(wanted["b"][0])
    )


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, float("inf"), float("-inf"), "text", (1, [2.0, {"a": None}]), 1e300, -0.0],
    ids=repr,
)
def test_plain_values(value: Any, tmp_path: Path) -> None:
    lx.save(tmp_path / "f", value)
    assert repr(lx.load(tmp_path / "f", like=START)) == repr(value)


def test_arrays_of_all_kinds(tmp_path: Path) -> None:
    arrays = [
        np.asarray(3.0), np.zeros((2, 0)), np.arange(6).reshape(2, 3).T, np.asarray([True, False]),
        np.asarray([1 + 2j]), np.arange(10)[::2], np.asarray([np.nan, -0.0, np.inf], np.float32),
        np.broadcast_to(1.0, (3, 2)),
    ]
    lx.save(tmp_path / "f", arrays)
    for found, wanted in zip(lx.load(tmp_path / "f", like=START), arrays, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"net": object()}, r"state\['net'\] is a object; wanted arrays"),
        ([1.0, lambda: 0.0], r"state\[1\] is a function"),
        ([np.asarray([None])], r"state\[0\] is an array of dtype object; wanted numbers"),
        ({1.0, 2.0}, "state is a set"),
    ],
)
def test_what_has_no_form_in_a_file(value: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=says):
        lx.save(tmp_path / "f", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pairs_in_lower_precision_go_on(dtype: Any, tmp_path: Path) -> None:
    backend, method = or_skip(Backend.TORCH), lx.LBFGS(history_dtype=dtype)
    start = backend.asarray(START)
    settings: dict[str, Any] = {"jac": True, "method": method}
    path, own = tmp_path / "run", tmp_path / "own"

    def solve(**more: Any) -> lx.Result:
        return lx.minimize(chained(backend), start, **settings, **more)

    whole = solve()
    checkpoint = lx.Checkpoint(path, every=1)
    first = solve(maxiter=6, checkpoint=checkpoint)
    lx.save(own, first.state)
    elsewhere = {"like": START}
    if dtype == "bfloat16":
        with pytest.raises(ValueError, match="arrays of bfloat16, which numpy lacks; wanted"):
            lx.load(own, **elsewhere)
    else:
        state = lx.load(own, **elsewhere)
        assert state.solver_state.pairs.rows.dtype == np.float32
        at = backend.to_numpy(first.x)
        assert lx.minimize(chained(Backend.NUMPY), at, state=state, **settings).success
    assert_same(backend, solve(checkpoint=checkpoint), whole)


def test_states_of_other_shapes(tmp_path: Path) -> None:
    lx.save(tmp_path / "f", lx.Adam(0.1).init(np.zeros(3)))
    with pytest.raises(ValueError, match=r"\(3,\).*wanted.*\(4,\)"):
        lx.load(tmp_path / "f", like=np.zeros(4))
    state = lx.minimize(chained(Backend.NUMPY), START, jac=True).state
    lx.save(tmp_path / "f", state)
    with pytest.raises(ValueError, match=r"\(7,\) variables; wanted \(4,\)"):
        lx.load(tmp_path / "f", like=np.zeros(4))


def test_wrong_arguments(tmp_path: Path) -> None:
    for path in (None, 3, ""):
        with pytest.raises(TypeError, match="wanted the path of a file"):
            lx.Checkpoint(path)
        with pytest.raises(TypeError, match="wanted the path of a file"):
            lx.save(path, START)
    for name, value in (("seconds", -1.0), ("every", 0), ("every", 1.5), ("keep", 0)):
        with pytest.raises(ValueError, match=name):
            lx.Checkpoint("f", **{name: value})
    with pytest.raises(TypeError, match=r"checkpoint is .*; wanted lx\.Checkpoint"):
        lx.minimize(chained(Backend.NUMPY), START, jac=True, checkpoint="run.npz")
    with pytest.raises(FileNotFoundError):
        lx.load(tmp_path / "nothing", like=START)


# --- torch modules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{}, {"batch_size": 7}, {"items": True}, {"max_epochs": 0}, {"adam_steps": 0}],
    ids=str,
)
def test_modules_go_on_exactly(how: dict[str, Any], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lbfgs_xp.torch import train_with_lbfgs
    from tests.torch.outcomes import assert_same_outcome

    x = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64)[:, None]
    y = torch.sin(3.0 * x)
    how = dict(how)
    data = [(x[i::3], y[i::3]) for i in range(3)] if how.pop("items", False) else (x, y)

    def train(calls: int, checkpoint: Any = None, **more: Any) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
        ).double()
        squares = stopping(lambda a, b: ((a - b) ** 2).mean(), calls)
        settings = {"adam_steps": 12, "max_epochs": 6, "max_iter": 4, "history_size": 5}
        res = train_with_lbfgs(
            model, squares, data, checkpoint=checkpoint,
            **{"reduction": "mean", **settings, **how, **more},
        )
        return res, torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    path = tmp_path / "run.npz"
    found, stops = until_it_ends(lambda: train(22, lx.Checkpoint(path, every=1)))
    assert stops > 0 or how
    assert_same_outcome(found, train(10**6))
    more = {"adam_steps": 20} if how.get("max_epochs") == 0 else {"max_epochs": 9}
    assert_same_outcome(train(10**6, lx.Checkpoint(path), **more), train(10**6, **more))
    if how.get("batch_size"):
        with pytest.raises(ValueError, match="batch_size is 7 there and 8 here"):
            train(10**6, lx.Checkpoint(path), batch_size=8)
        with pytest.raises(ValueError, match="reduction is mean there and sum here"):
            train(10**6, lx.Checkpoint(path), reduction="sum")
