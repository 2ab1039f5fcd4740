"""`make test-gpu`: its order and its report, with the stand-in for CuPy as the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import GPU, Backend

ROOT = Path(__file__).parents[2]

CASES = '''
import signal
import warnings
import pytest
from tests.backends import Backend, parameters

both = pytest.mark.parametrize("backend", parameters([Backend.TORCH_CUDA, Backend.CUPY]))

@both
def test_last(backend):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:    # as `minimize` does
        pass

@both
@pytest.mark.thorough
def test_thorough(backend):
    pass

@both
def test_to_compare_rows_of_a_batch(backend):
    if backend is Backend.TORCH_CUDA:
        pytest.skip("no luck")
    warnings.warn("the library is slow here")

@both
def test_same_bits(backend):
    assert backend is Backend.TORCH_CUDA, "not the same"

def test_without_a_gpu():
    raise RuntimeError
'''


def run(report: Path, *arguments: str, standin: bool = True) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "tests" / "standins")] if standin else []
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--report", str(report), *arguments], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *paths])},
        capture_output=True, text=True, timeout=300,
    )


@pytest.mark.skipif(any(b.is_gpu and not b.missing for b in GPU), reason="there is a GPU")
def test_without_a_gpu_the_report_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "report.md", standin=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "No GPU was found" in text
    for name in ("cupy", "torch-cuda", "jax-cuda"):
        assert f"- {name}: " in text


def test_an_interrupted_run_leaves_a_report(tmp_path: Path) -> None:
    cases, report = tmp_path / "test_cases.py", tmp_path / "report.md"
    cases.write_text(CASES, encoding="utf-8")
    done = run(
        report, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-v", str(cases)
    )
    assert done.returncode == 2, done.stdout + done.stderr
    text = report.read_text(encoding="utf-8")
    assert "The run was interrupted" in text
    table = [
        [cell.strip() for cell in line.split("|")[1:8]]
        for line in text.splitlines() if line.startswith(("| cupy |", "| torch-cuda |"))
    ]
    assert table == [  # library, group, tests, passed, failed, skipped, not run
        ["cupy", "bits", "1", "", "1", "", ""],
        ["cupy", "batches", "1", "1", "", "", ""],
        ["torch-cuda", "bits", "1", "1", "", "", ""],
        ["torch-cuda", "batches", "1", "", "", "1", ""],
        ["cupy", "everything else", "1", "1", "", "", ""],
        ["torch-cuda", "everything else", "1", "", "", "", "1"],
        ["cupy", "thorough", "1", "", "", "", "1"],
        ["torch-cuda", "thorough", "1", "", "", "", "1"],
    ]
    assert "not the same" in text and "1 × torch-cuda: no luck" in text
    assert "1 × UserWarning: the library is slow here" in text
    assert "1 × torch-cuda, everything else:" in text


def test_every_library_on_a_gpu_has_a_place() -> None:
    from tests.gpu import LIBRARIES

    assert set(LIBRARIES) == {b for b in Backend if b.is_gpu} | {Backend.CUPY}


def test_the_tests_themselves_run_on_the_stand_in_as_a_gpu(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    names = "cupy and (test_in_place and Adam or test_float32_rosenbrock or reads_once)"
    done = run(report, "-q", "tests/first_order/test_first_order.py", "tests/run/test_minimize.py",
               "tests/arrays/test_reads.py", "-k", names)
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text(encoding="utf-8")
    assert "The run is complete" in text
    order = [line.split("|")[2].strip() for line in text.splitlines() if line[:6] == "| cupy"]
    assert order == ["minimize, curve_fit, Adam", "reads", "rules and kernels"]
