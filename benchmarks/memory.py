"""Vectors of n numbers that each method holds at most, at the same time, on NumPy in float64.

The gradient that the function returns is included; x0 and the data of the function are not.
"tracemalloc" counts what NumPy requests, "resident" is how much the process grows. Each method has
a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import lbfgs_xp as lx

# Method -> settings, and what the docs say.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "L-BFGS, 10 pairs": ({}, "2m + 8"),
    "L-BFGS, 5 pairs": ({"method": lx.LBFGS(memory_size=5)}, "2m + 8"),
    "L-BFGS, 10 pairs in float32": ({"method": lx.LBFGS(history_dtype="float32")}, "m + 8"),
    "L-BFGS, 10 pairs, bounds": ({"bounds": (0.1, None)}, "2m + 15"),
    "gradient descent": ({"method": "gradient_descent"}, "10"),
    "SGD": ({"method": lx.SGD(1e-3)}, "5"),
    "SGD, momentum": ({"method": lx.SGD(1e-3, momentum=0.9)}, "8"),
    "Adam": ({"method": "adam"}, "7"),
    "Newton-CG": ({"method": "newton-cg"}, "17"),
}


def measure(name: str, n: int, traced: bool) -> float:
    """The most bytes that a run takes, in vectors."""
    scales = np.linspace(1.0, 100.0, n)

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        gradient = scales * x
        return 0.5 * float(x @ gradient), gradient

    start = np.ones(n)
    lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(5000), jac=True, **METHODS[name][0])
    if traced:
        tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lx.minimize(fun, start, jac=True, maxiter=25, **METHODS[name][0])
    if traced:
        return tracemalloc.get_traced_memory()[1] / (8 * n)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (8 * n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=1.5e6)
    options = parser.parse_args()
    from _common import print_machine, print_table

    rows = []
    for name, (_, said) in METHODS.items():
        found = [
            subprocess.run(
                [sys.executable, __file__, "--one", name, str(int(options.size)), traced],
                capture_output=True, text=True, check=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            ).stdout
            for traced in ("traced", "resident")
        ]
        rows.append((name, said, *(f"{float(each):.1f}" for each in found)))
    title = f"vectors held at most, n = {int(options.size):,}"
    print_table(title, ("method", "said", "tracemalloc", "resident"), rows)
    print_machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "traced"))
    else:
        main()
