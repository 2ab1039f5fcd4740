"""What `import lbfgs_xp` imports, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["cupy", "dask", "jax", "matplotlib", "optax", "rich", "scipy", "torch"]


@pytest.mark.parametrize("module", ["lbfgs_xp", "lbfgs_xp.problems", "lbfgs_xp.scipy"])
def test_import_leaves_others_alone(module: str) -> None:
    """None of these is imported until the user imports it."""
    program = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
