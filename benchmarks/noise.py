"""Noisy functions: how many reference problems are solved to the level of the noise.

Every value has uniform noise of up to 1e-3, every component of the gradient normal noise of 1e-3.
Their sizes are measured, or told by `noise=`. Solved: the value without noise is within five times
the noise of the minimum. False: the run reports success and is not. SciPy's L-BFGS-B and BFGS
beside ours.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import print_machine, print_table
from scipy import optimize

import lbfgs_xp as lx


def ours(method: str, told: bool) -> Callable:
    def run(fun: Callable, x0: np.ndarray, most: int, size: float) -> Any:
        noise = (size, size) if told else None
        return lx.minimize(fun, x0, jac=True, method=method, maxfun=most, noise=noise)

    return run


METHODS: dict[str, Callable[[Callable, np.ndarray, int, float], Any]] = {
    "L-BFGS": ours("lbfgs", told=False),
    "L-BFGS, told": ours("lbfgs", told=True),
    "BFGS": ours("bfgs", told=False),
    "BFGS, told": ours("bfgs", told=True),
    "SciPy L-BFGS-B": lambda fun, x0, most, _: optimize.minimize(
        fun, x0, jac=True, method="L-BFGS-B", options={"maxfun": most, "maxiter": most}
    ),
    "SciPy BFGS": lambda fun, x0, most, _: optimize.minimize(
        fun, x0, jac=True, method="BFGS", options={"maxiter": most}
    ),
}


def noisy(problem: Any, size: float, seed: int) -> Callable:
    rng = np.random.default_rng(seed)

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.value_and_gradient(x)
        return (
            float(value) + size * rng.uniform(-1.0, 1.0),
            gradient + size * rng.normal(size=gradient.shape),
        )

    return fun


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--noise", type=float, default=1e-3)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--maxfun", type=int, default=2000)
    options = arguments.parse_args()
    found: dict[str, list[tuple[bool, bool, int]]] = {name: [] for name in METHODS}
    rows = []
    for factory in lx.problems.ALL.values():
        problem = factory()
        exact = problem.value_and_gradient
        lowest = float(lx.minimize(exact, problem.x0, jac=True, maxfun=5000).fun)
        if problem.x_min is not None:
            lowest = min(lowest, float(exact(problem.x_min)[0]))
        cells = [problem.name]
        for name, solve in METHODS.items():
            gaps = []
            for seed in range(options.seeds):
                res = solve(noisy(problem, options.noise, seed), problem.x0, options.maxfun,
                            options.noise)
                gap = float(exact(np.asarray(res.x))[0]) - lowest
                solved = math.isfinite(gap) and gap <= 5.0 * options.noise
                found[name].append((solved, bool(res.success) and not solved, int(res.nfev)))
                gaps.append(gap)
            cells.append(f"{np.median(gaps):.1e}")
        rows.append(cells)
    print_table(
        f"Noise of {options.noise:g} in value and gradient, {options.seeds} seeds: median of the "
        "true value above the minimum", ["problem", *METHODS], rows,
    )
    print_table(
        "All runs", ["method", "solved", "false successes", "median of evaluations"],
        [
            [
                name, f"{sum(s for s, _, _ in runs)} of {len(runs)}",
                str(sum(f for _, f, _ in runs)), f"{np.median([n for _, _, n in runs]):.0f}",
            ]
            for name, runs in found.items()
        ],
    )
    print_machine()


if __name__ == "__main__":
    main()
