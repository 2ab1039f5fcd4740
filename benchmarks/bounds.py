"""Bounds: L-BFGS and BFGS beside SciPy's L-BFGS-B.

Three tables: the evaluations on Rosenbrock's valley and random quadratics within bounds; the
processor time per iteration, without the function, for many variables a third of which are at their
bounds; and the time for many small problems at once, beside a loop over SciPy's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import print_machine, print_table
from scipy import optimize

import lbfgs_xp as lx

GTOL = 1e-6


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
    t, u = x[1::2] - x[::2] ** 2, 1.0 - x[::2]
    gradient = np.empty_like(x)
    gradient[1::2], gradient[::2] = 200.0 * t, -400.0 * x[::2] * t - 2.0 * u
    return float(100.0 * (t @ t) + u @ u), gradient


class Counted:
    """A function that counts its calls and their processor time, and the first call that finds a
    small projected gradient."""

    def __init__(self, fun: Callable[[np.ndarray], Any], lower: Any, upper: Any):
        self.fun, self.lower, self.upper = fun, lower, upper
        self.calls, self.seconds, self.outside = 0, 0.0, 0
        self.solved: int | None = None

    def __call__(self, x: np.ndarray) -> Any:
        start = time.process_time()
        self.calls += 1
        value, gradient = self.fun(x)
        self.outside += bool(np.any(x < self.lower) or np.any(x > self.upper))
        projected = np.clip(x - gradient, self.lower, self.upper) - x
        if self.solved is None and np.max(np.abs(projected)) <= GTOL:
            self.solved = self.calls
        self.seconds += time.process_time() - start
        return value, gradient


def by_scipy(fun: Any, x0: np.ndarray, lower: np.ndarray, upper: np.ndarray, maxiter: int) -> Any:
    options = {"maxcor": 10, "ftol": 0.0, "gtol": 0.5 * GTOL, "maxiter": maxiter, "maxfun": 10**6}
    return optimize.minimize(
        fun, np.clip(x0, lower, upper), jac=True, method="L-BFGS-B", options=options,
        bounds=optimize.Bounds(lower, upper),
    )


def by_ours(method: str) -> Callable[..., Any]:
    def run(fun: Any, x0: np.ndarray, lower: np.ndarray, upper: np.ndarray, maxiter: int) -> Any:
        return lx.minimize(
            fun, x0, jac=True, method=method, bounds=(lower, upper), gtol=GTOL, maxiter=maxiter
        )

    return run


METHODS = {"L-BFGS": by_ours("lbfgs"), "BFGS": by_ours("bfgs"), "SciPy": by_scipy}


def quadratic(n: int, seed: int) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    a, b = root @ root.T + 0.01 * np.eye(n), 3.0 * rng.normal(size=n)
    lower, upper = -rng.uniform(size=n), rng.uniform(size=n)

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        product = a @ x
        return float(0.5 * x @ product - b @ x), product - b

    return fun, np.zeros(n), lower, upper


def evaluations() -> None:
    cases = {}
    for n in (2, 10, 100):
        upper = np.where(np.arange(n) % 3 == 0, 0.5, np.inf)
        start = np.tile([-1.2, 1.0], n // 2)
        cases[f"rosenbrock, n = {n}"] = rosenbrock, start, np.full(n, -np.inf), upper
    for n in (5, 20, 100):
        cases[f"quadratic, n = {n}"] = quadratic(n, n)
    rows = []
    for name, (fun, x0, lower, upper) in cases.items():
        row = [name]
        for solve in METHODS.values():
            counted = Counted(fun, lower, upper)
            solve(counted, x0, lower, upper, 10_000)
            assert not counted.outside
            row.append("-" if counted.solved is None else str(counted.solved))
        rows.append(row)
    print_table(f"Evaluations until |projected gradient| <= {GTOL:g}", ["", *METHODS], rows)


def time_per_iteration(sizes: list[int]) -> None:
    rows = []
    for n in sizes:
        upper = np.where(np.arange(n) % 3 == 0, 0.5, np.inf)
        start, lower = np.tile([-1.2, 1.0], n // 2), np.full(n, -np.inf)
        row = [f"n = {n}"]
        for name in ("L-BFGS", "SciPy"):
            best = np.inf
            for _ in range(3):
                fun = Counted(rosenbrock, lower, upper)
                begin = time.process_time()
                res = METHODS[name](fun, start, lower, upper, 30 if n < 10**5 else 12)
                spent = time.process_time() - begin - fun.seconds
                best = min(best, 1e3 * spent / res.nit)
            row.append(f"{best:.2f}")
        rows.append([*row, f"{float(row[1]) / float(row[2]):.2f}"])
    title = "Milliseconds per iteration without the function, a third of the bounds active"
    print_table(title, ["", "L-BFGS", "SciPy", "ratio"], rows)


def many(count: int) -> None:
    n, rng = 6, np.random.default_rng(0)
    roots = rng.normal(size=(count, n, n))
    a = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n)
    center = 2.0 * rng.normal(size=(count, n))
    lower, upper = -rng.uniform(size=(count, n)), rng.uniform(size=(count, n))

    def fun(x: np.ndarray, a: np.ndarray, center: np.ndarray) -> Any:
        d, cubes = x - center, x * x * x
        gradient = np.einsum("...ij,...j->...i", a, d)
        return 0.5 * np.sum(d * gradient, -1) + 0.25 * np.sum(cubes * x, -1), gradient + cubes

    def residual(x: np.ndarray) -> np.ndarray:
        gradient = fun(x, a[: len(x)], center[: len(x)])[1]
        box = lower[: len(x)], upper[: len(x)]
        return np.max(np.abs(np.clip(x - gradient, *box) - x), axis=-1)

    rows, loop = [], min(count, 500)
    begin = time.process_time()
    found = [
        by_scipy(
            lambda x, i=i: fun(x, a[i], center[i]), np.zeros(n), lower[i], upper[i], 1000
        ).x
        for i in range(loop)
    ]
    scipy_seconds = (time.process_time() - begin) * count / loop
    solved = np.mean(residual(np.stack(found)) <= GTOL)
    rows.append([f"SciPy, a loop ({loop} of them)", f"{scipy_seconds:.2f}", "1", f"{solved:.2%}"])
    for name, method in (("BFGS, a batch", "bfgs"), ("L-BFGS, a batch", "lbfgs")):
        seconds = np.inf
        for _ in range(2):
            begin = time.process_time()
            res = lx.minimize(
                fun, np.zeros((count, n)), (a, center), jac=True, method=method, batched=True,
                bounds=(lower, upper), gtol=0.5 * GTOL,
            )
            seconds = min(seconds, time.process_time() - begin)
        solved = np.mean(residual(res.x) <= GTOL)
        rows.append([name, f"{seconds:.2f}", f"{scipy_seconds / seconds:.1f}", f"{solved:.2%}"])
    print_table(
        f"{count} problems in {n} variables", ["", "seconds", "times faster", "solved"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller problems")
    quick = parser.parse_args().quick
    evaluations()
    time_per_iteration([10_000] if quick else [10_000, 1_000_000])
    many(1000 if quick else 10_000)
    print_machine()


if __name__ == "__main__":
    main()
