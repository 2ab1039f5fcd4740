"""Gauss-Newton steps on a network whose Jacobian is too large to keep: time and peak memory.

A network of 50,000 parameters and 5,000 residuals, one for each point, in float64: the Jacobian
would take 2 GB. `lx.least_squares(solver="dual")` forms the kernel J J^T (200 MB) from blocks of
128 MB. Peak memory is that of the process above what it was before the fit.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from pathlib import Path

import torch
from _common import print_machine, print_table

import lbfgs_xp as lx


def resident() -> float:
    """The memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Peak:
    """The largest memory while it is open, above that at the start."""

    def __enter__(self) -> Peak:
        self.start = self.most = resident()
        self._open = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._open:
            self.most = max(self.most, resident())
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()


def network(width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    params = {}
    for i, (m, n) in enumerate([(2, width), (width, width), (width, 1)]):
        scale = (2.0 / (m + n)) ** 0.5
        params[f"w{i}"] = scale * torch.randn(m, n, dtype=torch.float64, generator=random)
        params[f"b{i}"] = torch.zeros(n, dtype=torch.float64)
    return params


def residuals(
    p: dict[str, torch.Tensor], points: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    h = torch.tanh(points @ p["w0"] + p["b0"])
    h = torch.tanh(h @ p["w1"] + p["b1"])
    return (h @ p["w2"] + p["b2"])[:, 0] - values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a network of 5,000 parameters")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    width, count = (65, 500) if options.quick else (221, 5000)
    random = torch.Generator().manual_seed(1)
    points = 2.0 * torch.rand(count, 2, dtype=torch.float64, generator=random) - 1.0
    values = torch.sin(3.0 * points[:, 0]) * torch.cos(4.0 * points[:, 1])
    start = network(width)
    size = sum(leaf.numel() for leaf in start.values())
    given = {"args": (points, values), "gtol": 0.0}
    lx.least_squares(residuals, network(8), solver="dual", pointwise=True, maxiter=1, **given)
    rows = []
    for name, settings in (
        ("dual", {"solver": "dual", "pointwise": True, "maxiter": options.steps}),
        ("cg", {"solver": "cg", "maxiter": options.steps}),
    ):
        before = 0.5 * float((residuals(start, points, values) ** 2).sum())
        began = time.perf_counter()
        with Peak() as peak:
            fit = lx.least_squares(residuals, start, **given, **settings)
        seconds = (time.perf_counter() - began) / max(fit.nit, 1)
        rows.append([
            name, str(fit.nit), f"{seconds:.1f}", f"{peak.most - peak.start:.0f}",
            f"{8.0 * size * count / 1e6:.0f}", f"{before:.3g}", f"{fit.cost:.3g}",
        ])
        print(rows[-1], flush=True)
    print_table(
        f"{size} parameters, {count} residuals",
        ["solver", "steps", "s/step", "peak MB", "J would be MB", "cost before", "after"], rows,
    )
    print_machine()


if __name__ == "__main__":
    main()
