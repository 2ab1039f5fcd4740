"""The recipe for dask in docs/distributed.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
WANTED = np.arange(1.0, 6.0)


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(int(path)).normal(size=(50, 5))
    return rows, rows @ WANTED


def recipe() -> dict[str, Any]:
    blocks = re.findall(r"```python no-run\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (each for each in blocks if "import dask" in each)
    known: dict[str, Any] = {"lx": lx, "np": np, "load": load, "paths": list("0123")}
    exec(block, known)
    return known


def test_chunks_on_this_machine() -> None:
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler="synchronous"):
        known = recipe()
        np.testing.assert_allclose(known["res"].x, WANTED)
        known["chunks"] = dask.persist(*known["chunks"])
        again = lx.minimize(known["fun"], np.zeros(5), jac=True)
    assert again.x.tobytes() == known["res"].x.tobytes()


@pytest.mark.thorough
def test_chunks_on_a_cluster() -> None:
    pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        known = recipe()
        known["chunks"] = client.persist(known["chunks"])
        again = lx.minimize(known["fun"], np.zeros(5), jac=True)
    np.testing.assert_allclose(known["res"].x, WANTED)
    assert again.x.tobytes() == known["res"].x.tobytes()
