"""The examples run on several libraries, and print and draw what they should."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lbfgs_xp import schedules
from lbfgs_xp.line_search import NAMES

FOLDER = Path(__file__).parents[2] / "examples"


def test_every_example_is_run() -> None:
    tested = {
        "batch_of_fits.py", "burgers_pinn.py", "fit_decay.py", "line_searches.py",
        "many_processes.py", "rosenbrock.py", "schedules.py", "sparse_features.py",
        # test_examples_networks.py
        "two_dimensions.py", "cnn_fixed_batch.py", "cnn_minibatches.py",
        # test_example_gaussian_peaks.py
        "gaussian_peaks.py",
        # test_examples_fits.py
        "dose_response.py", "impedance.py", "ode_model.py", "photon_decay.py",
        "shared_parameters.py", "voigt_spectrum.py",
    }
    assert {path.name for path in FOLDER.glob("[!_]*.py")} == tested


def test_a_library_that_is_missing_is_named() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed")
    done = run("rosenbrock.py", "--backend", "cupy")
    assert done.returncode == 1 and done.stderr == "--backend cupy: cupy is not installed\n"


@pytest.mark.parametrize("backend", ["numpy", "array_api_strict", "torch", "jax"])
def test_rosenbrock(backend: str) -> None:
    pytest.importorskip(backend)
    done = run("rosenbrock.py", "--backend", backend)
    assert "the gradient is small" in done.stdout, done.stderr
    assert float(re.search(r"fun: (\S+)", done.stdout)[1]) < 1e-16


def test_fit_decay(tmp_path: Path) -> None:
    shown = quick("fit_decay.py", tmp_path, "fit_decay", "fit_decay_convergence")
    truth, fit, formula, few, *many = rows(shown, r"[AkC]" + r" +(\S+)" * 8).T
    assert len(fit) == 3 and len(many) == 4
    assert np.all(np.abs(fit - truth) < 3.0 * formula)
    # Three pairs hold less information about the Hessian than more pairs do.
    assert np.allclose(many, formula, rtol=0.05, atol=1e-3) and np.max(few / formula) > 1.5

    evaluations = dict(re.findall(r"(\w+=\w+) .* (\d+) evaluations", shown))
    assert int(evaluations["memory_size=30"]) < int(evaluations["memory_size=3"])
    assert int(evaluations["scale_initial=True"]) < 0.7 * int(evaluations["scale_initial=False"])
    astray = re.findall(r"no clipping .* k +(\S+)", shown)
    home = re.findall(r"clip_\w+=300 .* k +(\S+)", shown)
    assert len(astray) == 2 and all(abs(float(k) - 1.3) > 1.0 for k in astray)
    assert len(home) == 4 and all(abs(float(k) - 1.3) < 0.1 for k in home)


def test_batch_of_fits(tmp_path: Path) -> None:
    pattern = r"[abc]: .* error (\S+); .* error (\S+)"
    shown = quick("batch_of_fits.py", tmp_path, "batch_of_fits", problems=100)
    assert "100 succeeded" in shown
    expected = rows(shown, pattern)
    assert expected.shape == (3, 2)
    assert np.all(expected[:, 0] < 0.02) and np.all(np.abs(expected[:, 1] - 1.0) < 0.2)

    pytest.importorskip("jax")
    found = rows(without_pictures("batch_of_fits.py", tmp_path, "jax", problems=100), pattern)
    assert np.allclose(found, expected, rtol=0.0, atol=[1.1e-4, 1.1e-2])


def test_line_searches(tmp_path: Path) -> None:
    pictures = ["line_searches_bumps_short", "line_searches_barrier_outside"]
    shown = quick("line_searches.py", tmp_path, *pictures)
    lines = re.findall(r"^(\w+) +(\S+) +(\S+) +(\S+) +(\d+) trials?, accepted$", shown, re.M)
    n = len(NAMES)
    bumps, barrier = (
        {rule: tuple(map(float, numbers)) for rule, *numbers in part}
        for part in (lines[:n], lines[n:])
    )
    assert len(bumps) == len(barrier) == n
    for rule in ("Fixed", "Armijo"):    # the first trial, although it is too short
        alpha, _, slope, trials = bumps[rule]
        assert alpha == 0.1 and slope < 0.0 and trials == 1
    for rule in ("Bisection", "HagerZhang"):    # beyond the minimum, where the slope has risen
        alpha, _, slope, _ = bumps[rule]
        assert alpha > 1.0 and slope > 0.0
    for rule in ("StrongWolfe", "MoreThuente"):
        alpha, _, slope, trials = bumps[rule]
        assert abs(alpha - 1.0) < 1e-3 and abs(slope) < 0.01 and trials > 5
    for alpha, value, _, trials in barrier.values():
        assert 0.0 < alpha < 1.0 and value < 0.0 and trials > 1


def test_schedules(tmp_path: Path) -> None:
    shown = quick("schedules.py", tmp_path, "schedules")
    lines = re.findall(r"^(\w[\w, ]*\w) +(\S+e\S+)$", shown, re.M)
    ends = {name: float(end) for name, end in lines}
    public = {name: getattr(schedules, name) for name in schedules.__all__}
    made = {name for name, each in public.items() if isinstance(each, type)}
    assert ends.keys() == made - {"Schedule", "PlateauState"} | {"Constant, low"}
    assert all(end > 0.0 for end in ends.values())
    for name in ("Cosine", "Linear", "OneCycle", "WarmupStableDecay"):
        assert 3.0 * ends[name] < ends["Constant"] < ends["Constant, low"]


def test_sparse_features(tmp_path: Path) -> None:
    pattern = r"[A-Z]\w+" + r" +([\d.]+)" * 4
    shown = quick("sparse_features.py", tmp_path, "sparse_features")
    names = re.findall(r"^([A-Z]\w+) +[\d.]+ ", shown, re.M)
    expected = rows(shown, pattern)
    ends = dict(zip(names, expected, strict=True))
    assert set(ends) == {"SGD", "Adagrad", "RMSProp", "Adadelta", "Adam", "Yogi"}
    assert all(0.0 < loss < 0.01 for _, loss, _, _ in ends.values())
    _, loss, rare, frequent = ends["SGD"]
    assert rare > 1.5 * frequent
    for name in ("Adagrad", "RMSProp"):
        assert ends[name][1] < loss and ends[name][2] < 0.7 * rare

    pytest.importorskip("torch")
    found = rows(without_pictures("sparse_features.py", tmp_path, "torch"), pattern)
    assert np.allclose(found, expected, rtol=0.0, atol=[0.0, 1.1e-5, 1.1e-2, 1.1e-2])


def test_many_processes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    shown = quick("many_processes.py", tmp_path, "many_processes")
    images = [int(each) for each in re.findall(r"^process \d: (\d+) images", shown, re.M)]
    total = int(re.search(r"^one process: (\d+) images", shown, re.M)[1])
    assert images == [total // 2, total // 2] and shown.count("success True") == 3
    assert "bit for bit: True" in shown
    assert float(re.search(r"one process: (\S+e\S+)$", shown, re.M)[1]) < 1e-6
    assert float(re.search(r"([\d.]+)% right", shown)[1]) > 95.0


def test_burgers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    savemat = pytest.importorskip("scipy.io").savemat
    script = "burgers_pinn.py"
    short = ["--quick", "--dtype", "float64", "--out", str(tmp_path)]
    done = run(script, *short, "--evaluations", "300")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"300 evaluations, .*loss (\S+)  relative L2 error (\S+)", done.stdout)
    (loss, error), (loss_alone, error_alone) = [map(float, each) for each in found]
    assert loss < 0.5 * loss_alone and error < error_alone
    assert (tmp_path / "burgers_float64.png").stat().st_size > 10_000
    # The network satisfies the initial values u = 1, 0, -1 exactly, so halved values are wrong by
    # their own size.
    half = {"x": [[-0.5], [0.0], [0.5]], "t": [[0.0]], "usol": [[0.5], [0.0], [-0.5]]}
    savemat(tmp_path / "half.mat", half)
    done = run(script, *short, "--evaluations", "4", "--data", str(tmp_path / "half.mat"))
    assert done.stdout.count("relative L2 error 1.00e+00") == 2, done.stderr
    done = run(script, "--data", "nowhere.mat")
    assert done.returncode == 2 and "nowhere.mat: no such file" in done.stderr


def rows(shown: str, pattern: str) -> np.ndarray:
    """The numbers in each line that matches the pattern."""
    return np.asarray(re.findall(f"^{pattern}$", shown, re.M), dtype=float)


def quick(script: str, folder: Path, *pictures: str, **options: object) -> str:
    """What the script prints, after a check of its pictures."""
    done = run(script, "--quick", "--out", str(folder), *arguments(options))
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in folder.glob("*.png")} == set(pictures)
    for name in pictures:
        content = (folder / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
        assert f"picture: {folder / name}.png" in done.stdout
    return done.stdout


def without_pictures(script: str, folder: Path, backend: str, **options: object) -> str:
    """What the script prints with another library, and without matplotlib."""
    stub = folder / "stub" / "matplotlib"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    options |= {"backend": backend, "out": folder / "none"}
    done = run(script, "--quick", *arguments(options), before=str(stub.parent))
    assert done.returncode == 0, done.stderr
    assert "matplotlib is not installed" in done.stdout and not (folder / "none").exists()
    return done.stdout


def arguments(options: dict[str, object]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def run(script: str, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script from the folder above; `before` is searched for modules first."""
    path = os.pathsep.join(filter(None, (before, os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *options], cwd=FOLDER.parent,
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )
