"""What `import lbfgs_xp` costs beyond `import numpy`: medians over fresh interpreters."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from _common import print_machine, print_table

CODE = """
import time
a = time.perf_counter()
import numpy
b = time.perf_counter()
import {module}
c = time.perf_counter()
import sys
print(b - a, c - b, len(sys.modules))
"""
MODULES = ("lbfgs_xp", "array_api_compat", "array_api_extra", "optree", "scipy.optimize")


def measure(module: str) -> tuple[float, float, int]:
    """(seconds for NumPy, seconds for the module after it, modules loaded)."""
    command = [sys.executable, "-c", CODE.format(module=module)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(out[0]), float(out[1]), int(out[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    seen: dict[str, list[tuple[float, float, int]]] = {module: [] for module in MODULES}
    missing = set()
    for _ in range(repeats):
        for module in MODULES:  # in turn, so that a busy moment affects all
            if module in missing:
                continue
            try:
                seen[module].append(measure(module))
            except subprocess.CalledProcessError:
                missing.add(module)
    rows = []
    for module, figures in seen.items():
        if module in missing:
            continue
        numpy, own, count = (statistics.median(column) for column in zip(*figures, strict=True))
        rows.append([module, f"{1e3 * own:.1f}", f"{1e3 * numpy:.1f}", f"{count:.0f}"])
    headings = ["module", "ms beyond NumPy", "ms for NumPy", "modules loaded"]
    print_table(f"Import time, medians of {repeats}", headings, rows)
    print_machine()


if __name__ == "__main__":
    main()
