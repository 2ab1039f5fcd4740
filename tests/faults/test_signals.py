"""Signals at the worst moments, limits of the system, and processes that are forked.

`tests/saving` kills processes inside fun, and `tests/distributed` those of a team.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.faults.script import solve, well

ROOT = Path(__file__).parents[2]
START = np.linspace(-3.0, 4.0, 30)


@pytest.mark.parametrize("where", ["fun", "callback"])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "adam"])
def test_interrupted(where: str, method: str) -> None:
    calls = 0

    def fun(x: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if where == "fun" and calls == 5:
            signal.raise_signal(signal.SIGINT)
        return well(x)

    def callback(record: lx.Record) -> None:
        if where == "callback" and record.nit == 4:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    res = lx.minimize(fun, START, jac=True, method=method, callback=callback)
    assert res.status is lx.Status.INTERRUPTED
    assert res.fun == well(res.x)[0] < well(START)[0]
    assert signal.getsignal(signal.SIGINT) is handler


def run(what: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.script", what, path], capture_output=True, text=True,
        check=False, cwd=ROOT, timeout=120,
    )


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_while_saving(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "run.npz")
    ended = run(name, path)
    if name == "SIGINT":
        assert ended.stdout.endswith("INTERRUPTED\n"), ended.stderr
    else:
        assert ended.returncode == -getattr(signal, name), ended.stderr
    assert solve(path) == solve()
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_processes_that_fun_forks(tmp_path: Path) -> None:
    """They end on SIGTERM as without a checkpoint, and do not keep the path from the next run."""
    path = tmp_path / "run.npz"
    killed = run("children", str(path))
    assert killed.stdout == f"{-signal.SIGTERM}\n", killed.stderr
    assert solve(path) == solve()
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    limited = run("limit", str(tmp_path / "run.npz"))
    assert limited.stdout == solve() + "\n"
    assert "could not be written" in limited.stderr
    assert "File too large" in limited.stderr


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_process_that_is_forked() -> None:
    assert run("fork", "-").stdout == "True\n"
