"""The command line."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import lbfgs_xp as lx
from lbfgs_xp.__main__ import main
from lbfgs_xp.arrays import inventory
from tests.backends import GPU

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fewer_libraries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The installed libraries without dask, whose lazy arrays take seconds for each run."""
    found = {name: v for name, v in inventory.installed().items() if name != "dask"}
    monkeypatch.setattr(inventory, "installed", lambda: found)
    return list(found)


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "demo" in shown and "info" in shown


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["dome"])
    assert error.value.code == 2
    assert "dome" in capsys.readouterr().err


def test_info(
    fewer_libraries: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the machine is.
    monkeypatch.setattr("lbfgs_xp.__main__._PATIENCE", math.inf)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert lx.__version__ in shown
    rows = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    assert set(rows) == set(fewer_libraries)
    # library, version, device, dtype, autodiff, in place, compiles, batched, reproducible
    numpy = [cell.strip() for cell in rows["numpy"].strip("│").split("│")]
    assert numpy[2:] == ["cpu", "float64", "no", "yes", "no", "yes", "yes"]
    if "jax" in rows:
        jax = [cell.strip() for cell in rows["jax"].strip("│").split("│")]
        assert jax[4:] == ["yes", "no", "yes", "yes", "yes"]


def test_demo(
    fewer_libraries: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("lbfgs_xp.demo._PATIENCE", math.inf)
    folder = tmp_path / "new"
    assert main(["demo", "--quick", "--out", str(folder)]) == 0
    shown = capsys.readouterr().out
    for title in ("Rosenbrock, n = 2", "Rosenbrock, n = 100", "network (MLP)"):
        assert title in shown
    for name in fewer_libraries:
        rows = [line for line in shown.splitlines() if line.split()[:1] == [name]]
        reproducible = [row for row in rows if " reproducible " in row]
        assert len(rows) >= 6 and len(reproducible) == len(rows) / 2
        same = "NumPy itself" if name == "numpy" else "the same bits"
        assert all(same in row for row in reproducible), reproducible
    picture = (folder / "lbfgs_xp_demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_demo_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(inventory, "installed", lambda: {"numpy": "2"})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_demo_leaves_out_what_is_slow_or_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from lbfgs_xp import demo

    solve = demo.solve

    def slow(case: demo.Case, *rest: object) -> demo.Solved:
        if case.title.startswith("network"):
            raise ArithmeticError("no [such] luck")
        run = solve(case, *rest)  # type: ignore[arg-type]
        if case.title == "Rosenbrock, n = 100":
            import dataclasses

            return run._replace(result=dataclasses.replace(run.result, status=lx.Status.TIME))
        return run

    monkeypatch.setattr(inventory, "installed", lambda: {"numpy": "2"})
    monkeypatch.setattr(demo, "solve", slow)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "numpy: left out" in shown and "Rosenbrock, n = 100" in shown

    cases = list(demo.cases(True))
    monkeypatch.setattr(demo, "cases", lambda quick: cases[2:])
    demo.tables(demo.console(), True)
    assert "ArithmeticError: no [such] luck" in " ".join(capsys.readouterr().out.split())


def test_module_runs() -> None:
    done = run("-m", "lbfgs_xp", "--version")
    assert done.stdout.split() == ["lbfgs_xp", lx.__version__]


def test_benchmarks_run() -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    folder = ROOT / "benchmarks"
    done = run(folder / "overhead.py", "--sizes", "10", "--repeats", "1", "--no-many")
    assert done.returncode == 0, done.stderr
    assert "n = 10" in done.stdout and "SciPy L-BFGS-B" in done.stdout
    done = run(folder / "import_time.py", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "lbfgs_xp" in done.stdout


@pytest.mark.parametrize(
    "library", ["numpy", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("torch", "jax"))]
)
def test_the_benchmark_for_gpus_runs_on_the_cpu(library: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    how = ["--cpu", "--small", "--repeats", "1", "--libraries", library]
    picture = tmp_path / "gpu.png"
    done = run(ROOT / "benchmarks" / "gpu.py", *how, "--plot", str(picture))
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert picture.stat().st_size > 10_000
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {row[0].strip() for row in rows} == {"task", "L-BFGS", "batch", "fits", "Adam"}
    for row in rows[1:]:
        assert all(row[column].strip().endswith(("ms", "/ s")) for column in (3, 5)), row


@pytest.mark.skipif(any(not backend.missing for backend in GPU), reason="there is a GPU")
def test_the_benchmark_for_gpus_says_that_there_is_none() -> None:
    done = run(ROOT / "benchmarks" / "gpu.py")
    assert done.returncode == 0, done.stderr
    assert "no GPU found: nothing was measured" in done.stdout


def test_every_status_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "basics.md").read_text(encoding="utf-8")
    for status in lx.Status:
        if status is not lx.Status.RUNNING:
            assert f"| `{status.name}` | {'yes' if status.success else 'no'} |" in text


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
