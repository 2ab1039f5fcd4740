"""The example that fits many peaks: its derivatives, its numbers and its picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import gaussian_peaks

    return gaussian_peaks


def test_derivatives(example: Any) -> None:
    point = np.asarray([7.2, 6.5, 900.0, 8.0, 1.3])
    found = example.DERIVATIVES(example.T, *point)
    for i, h in enumerate(1e-6 * point):
        up, down = (
            example.MODEL(example.T, *(point + sign * h * np.eye(5)[i])) for sign in (1, -1)
        )
        np.testing.assert_allclose(found[:, i], (up - down) / (2.0 * h), atol=1e-4)
    # Nearly all of the light falls on the pixels.
    light = example.MODEL(example.T, *point) - point[3]
    assert np.sum(light) == pytest.approx(900.0, rel=1e-3)


def test_bound_of_the_place(example: Any) -> None:
    """For many photons on small pixels without background, the bound is width / sqrt(photons)."""
    bound = example.bounds_of(np.asarray([[7.0, 7.0, 1e4, 1e-4, 1.5]]))
    assert bound[0, 0] == pytest.approx(1.5 / 100.0, rel=0.05)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_quick_run(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    pytest.importorskip("scipy")
    command = ["gaussian_peaks.py", "--quick", "--peaks", "600", "--backend", library]
    done = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path)], cwd=EXAMPLES, capture_output=True,
        text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"([\d.]+) % succeeded", done.stdout)[1]) == 100.0
    assert float(re.search(r"difference (\S+) standard errors", done.stdout)[1]) < 0.02
    # 25 ratios of 120 errors each: the relative error of such a ratio is 0.065.
    rows = re.findall(r"^ *\d+ {3}.*\(.*$", done.stdout, re.MULTILINE)
    ratios = np.asarray([re.findall(r"([\d.]+) \(([\d.]+)\)", row) for row in rows], dtype=float)
    assert ratios.shape == (5, 5, 2)
    assert np.abs(ratios - 1.0).max() < 0.3 and np.abs(ratios.mean(axis=(0, 1)) - 1.0).max() < 0.06
    assert (tmp_path / "gaussian_peaks.png").stat().st_size > 20_000
