"""One run over processes of torch.distributed and of MPI: the same steps in all, and no hang."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.saving import file

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("process.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
CASES = ("numpy", "torch", "batch", "bounds", "float32", "late", "callback", "ctrl-c")
SHARDED = (
    "sharded numpy", "sharded torch", "sharded torch float32", "sharded numpy bounds",
    "sharded numpy adam", "sharded numpy order",
)
FAILURES = ("error", "callback error", "x0", "settings")


def started(size: int, cases: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """What each of `size` processes found, by case."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder / "store"), *cases],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    (folder / "store").unlink(missing_ok=True)
    return [json.loads(out.splitlines()[-1]) if out else {"stderr": err} for out, err in outputs]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("torch")
    ended = ("sharded numpy interrupt", "sharded numpy later", "sharded numpy error")
    trained = ("train plain", "train ddp", "train interrupt")
    cases = (*CASES, *FAILURES, *SHARDED, *ended, "ddp", "dtensor", *trained, *CASES[:1])
    return started(2, cases, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("torch")
    cases = (*CASES[:5], *SHARDED, "ddp", "train plain")
    return started(1, cases, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("case", CASES)
def test_all_walk_the_same_steps(case: str, pair: list[dict[str, Any]]) -> None:
    assert pair[0][case] == pair[1][case]


@pytest.mark.parametrize("case", CASES[:5])
def test_the_outcome_is_that_of_one_process(
    case: str, pair: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    found, wanted = pair[0][case], alone[case]
    assert found["status"] == wanted["status"]
    rtol = 1e-3 if case == "float32" else 1e-6
    np.testing.assert_allclose(found["x"], wanted["x"], rtol=rtol, atol=rtol)
    if case in ("numpy", "torch", "batch"):
        assert (found["nit"], found["nfev"]) == (wanted["nit"], wanted["nfev"])


@pytest.mark.parametrize(
    ("case", "status"), [("late", "TIME"), ("callback", "CALLBACK"), ("ctrl-c", "INTERRUPTED")]
)
def test_one_process_ends_the_run_of_all(
    case: str, status: str, pair: list[dict[str, Any]]
) -> None:
    assert pair[0][case]["status"] == pair[1][case]["status"] == status


@pytest.mark.parametrize(
    ("case", "own"),
    [
        ("error", "ZeroDivisionError: one of us"), ("callback error", "ValueError: the callback"),
    ],
)
def test_a_process_that_fails_ends_the_others(
    case: str, own: str, pair: list[dict[str, Any]]
) -> None:
    first, second = pair[0][case], pair[1][case]
    assert second["error"] == own
    assert first["error"] == f"ProcessFailed: process 1 failed: {own}"
    assert first["has_result"]
    assert second["has_result"]


@pytest.mark.parametrize("case", SHARDED)
def test_divided_variables(case: str, pair: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert pair[0][case] == pair[1][case]
    assert_as_alone(pair[0][case], alone[case], case)


def assert_as_alone(found: dict[str, Any], wanted: dict[str, Any], case: str) -> None:
    if "order" in case:
        assert found == wanted
    assert found["status"] == wanted["status"]
    rtol = 1e-3 if "float32" in case else 1e-6
    np.testing.assert_allclose(found["x"], wanted["x"], rtol=rtol, atol=rtol)
    if "float32" not in case:
        assert (found["nit"], found["nfev"]) == (wanted["nit"], wanted["nfev"])


def test_modules_in_ddp(pair: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert pair[0]["ddp"] == pair[1]["ddp"]
    assert "wanted distributed=lx.distributed.torch() as well" in alone["ddp"]["refused"]
    np.testing.assert_allclose(pair[0]["ddp"]["losses"], alone["ddp"]["losses"], rtol=1e-6)


def test_trained_together(pair: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for case in ("train plain", "train ddp", "train interrupt"):
        assert pair[0][case] == pair[1][case]
    plain, wanted = pair[0]["train plain"], alone["train plain"]
    assert plain["status"] == wanted["status"] == "ITERATIONS"
    assert plain["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
    # It starts from the parameters of the first process, as without DDP.
    assert pair[0]["train ddp"] == plain
    assert pair[0]["train interrupt"]["status"] == "INTERRUPTED"


def test_dtensors(pair: list[dict[str, Any]]) -> None:
    for each in pair:
        found = each["dtensor"]
        x0, value = found["refused"]
        assert x0.startswith("x0 is a DTensor, of which this process has a piece; wanted")
        assert value.startswith("what fun returned is a DTensor")
        np.testing.assert_allclose(found["x"], 2.0, atol=1e-7)
    assert [len(each["dtensor"]["x"]) for each in pair] == [4, 3]


def test_divided_variables_end_together(pair: list[dict[str, Any]]) -> None:
    for each in pair:
        assert each["sharded numpy interrupt"]["status"] == "INTERRUPTED"
        assert each["sharded numpy later"]["status"] == "INTERRUPTED"
    first, second = (each["sharded numpy error"] for each in pair)
    assert first["error"] == "ProcessFailed: process 1 failed: ZeroDivisionError: one of us"
    assert second["error"] == "ZeroDivisionError: one of us"


@pytest.mark.parametrize(("case", "what"), [("x0", "x0"), ("settings", "the settings")])
def test_other_arguments_in_one_process(
    case: str, what: str, pair: list[dict[str, Any]]
) -> None:
    for each in pair:
        assert each[case]["error"].startswith(f"ValueError: {what} differs between process 0 and")


def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found, _ = started(2, ("kill",), tmp_path)
    assert found["kill"]["has_result"]
    assert found["kill"]["seconds"] < 30.0


def test_one_process_is_terminated_and_all_go_on(tmp_path: Path, alone: dict[str, Any]) -> None:
    first, second = started(2, ("sharded numpy terminated",), tmp_path)
    # It has saved itself, and has then ended as the signal wants.
    assert second == {"stderr": ""}
    assert "error" not in first or first["error"].startswith("RuntimeError")
    header, _ = file.read(tmp_path / "store.npz")
    assert header["counts"]["nfev"] >= 3
    found = started(2, ("sharded numpy again",), tmp_path)
    for each in found:
        assert_as_alone(each["sharded numpy again"], alone["sharded numpy"], "sharded numpy")


@pytest.mark.thorough
def test_four_processes(tmp_path: Path, alone: dict[str, Any]) -> None:
    found = started(4, (*CASES[:3], *SHARDED), tmp_path)
    for case in SHARDED:
        assert all(each[case] == found[0][case] for each in found)
        assert_as_alone(found[0][case], alone[case], case)
    for case in CASES[:3]:
        assert all(each[case] == found[0][case] for each in found)
        np.testing.assert_allclose(found[0][case]["x"], alone[case]["x"], rtol=1e-6)


@pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or shutil.which("mpirun") is None,
    reason="mpi4py or mpirun is not installed",
)
def test_processes_of_mpi(alone: dict[str, Any], tmp_path: Path) -> None:
    done = subprocess.run(
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable,
         str(SCRIPT), "mpi", "2", str(tmp_path / "found"), "numpy", "torch", *SHARDED, "error"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False,
    )
    paths = sorted(tmp_path.glob("found.*"))
    assert len(paths) == 2, done.stderr
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for case in SHARDED:
        assert found[0][case] == found[1][case]
        assert_as_alone(found[0][case], alone[case], case)
    for case in ("numpy", "torch"):
        assert found[0][case] == found[1][case]
        np.testing.assert_allclose(found[0][case]["x"], alone[case]["x"], rtol=1e-6)
    assert {each["error"]["error"].partition(":")[0] for each in found} == {
        "ZeroDivisionError", "ProcessFailed"
    }


# --- one process ---------------------------------------------------------------------------------


class Alone(lx.distributed.Engine):
    """A single process."""

    rank, size = 0, 1

    def sum(self, array: Any) -> Any:
        return array

    def gather(self, item: Any) -> list[Any]:
        return [item]


def bowl(x: Any) -> Any:
    return (x * x).sum(), 2.0 * x


def test_wrong_arguments() -> None:
    start = np.ones(3)
    with pytest.raises(TypeError, match=r"distributed is 'torch'; wanted lx\.distributed\.torch"):
        lx.minimize(bowl, start, jac=True, distributed="torch")
    with pytest.raises(ValueError, match="differences"):
        lx.minimize(lambda x: (x * x).sum(), start, jac="3-point", distributed=Alone())
    with pytest.raises(ValueError, match="needs the Hessian"):
        lx.minimize(
            bowl, start, jac=True, method="newton", hess=lambda x: 2.0 * np.eye(3),
            distributed=Alone(),
        )
    res = lx.minimize(bowl, start, jac=True, distributed=Alone())
    assert res.success
    with pytest.raises(ValueError, match="comes from many processes"):
        res.hessian()


def test_ctrl_c_within_a_sum() -> None:
    """It waits for the next evaluation, where the others hear of it."""
    said: list[bool] = []

    class Struck(Alone):
        def sum(self, array: Any) -> Any:
            said.append(array[1] == 1.0)
            if len(said) == 2:
                signal.raise_signal(signal.SIGINT)
            return array

    start = np.arange(1.0, 9.0)
    res = lx.minimize(
        lambda x: ((x**4).sum(), 4.0 * x**3), start, jac=True, distributed=Struck()
    )
    assert res.status is lx.Status.INTERRUPTED
    assert said == [False, False, True]


def test_no_processes() -> None:
    torch = pytest.importorskip("torch")
    assert not torch.distributed.is_initialized()
    with pytest.raises(RuntimeError, match="init_process_group"):
        lx.distributed.torch()


def test_a_group_of_others(tmp_path: Path) -> None:
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="group without this process; wanted one"):
            lx.distributed.torch(dist.GroupMember.NON_GROUP_MEMBER)
    finally:
        dist.destroy_process_group()
