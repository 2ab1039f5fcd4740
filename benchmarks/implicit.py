"""The gradient of a validation error with respect to a ridge penalty, through the solution.

The closed form gives the error, jaxopt (if it is installed) the time to compare with: both minimise
with L-BFGS to the same tolerance and differentiate implicitly.

    python benchmarks/implicit.py [n]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _common import print_machine, print_table

import lbfgs_xp as lx

GTOL, REPEATS = 1e-9, 5


def problem(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows, truth = rng.normal(size=(2 * n, n)) / np.sqrt(n), rng.normal(size=n)
    more = rng.normal(size=(n, n)) / np.sqrt(n)
    return {
        "rows": rows, "data": rows @ truth + 0.5 * rng.normal(size=2 * n),
        "more": more, "others": more @ truth + 0.5 * rng.normal(size=n),
    }


def exact(given: dict[str, np.ndarray], penalty: float) -> float:
    rows, more = given["rows"], given["more"]
    matrix = rows.T @ rows + penalty * np.eye(rows.shape[1])
    w = np.linalg.solve(matrix, rows.T @ given["data"])
    return float(-(more.T @ (more @ w - given["others"])) @ np.linalg.solve(matrix, w))


def best(gradient: Callable[[float], Any], penalty: float) -> tuple[float, float, float]:
    """The gradient, and the seconds of the first call and of the fastest one after it."""
    times = []
    for i in range(REPEATS + 1):
        start = time.perf_counter()
        found = float(gradient(penalty * (1.0 + 1e-3 * (REPEATS - i))))
        times.append(time.perf_counter() - start)
    return found, times[0], min(times[1:])


def with_jax(given: dict[str, np.ndarray]) -> dict[str, Callable]:
    rows, data, more, others = (jnp.asarray(array) for array in given.values())
    start = jnp.zeros(rows.shape[1])

    @jax.jit
    def ridge(w: Any, penalty: Any) -> Any:
        return 0.5 * jnp.sum((rows @ w - data) ** 2) + 0.5 * penalty * jnp.sum(w**2)

    def error(w: Any) -> Any:
        return 0.5 * jnp.sum((more @ w - others) ** 2)

    def ours(penalty: Any) -> Any:
        return error(lx.minimize(ridge, start, (penalty,), gtol=GTOL).x)

    found = {"lbfgs_xp, JAX": jax.grad(ours), "lbfgs_xp, JAX, in jit": jax.jit(jax.grad(ours))}
    try:
        import jaxopt
    except ImportError:
        return found
    solver = jaxopt.LBFGS(ridge, tol=GTOL, maxiter=1000, implicit_diff=True)
    found["jaxopt, in jit"] = jax.jit(jax.grad(lambda p: error(solver.run(start, p).params)))
    return found


def with_torch(given: dict[str, np.ndarray]) -> Callable[[float], Any]:
    rows, data, more, others = (torch.asarray(array) for array in given.values())
    start = torch.zeros(rows.shape[1], dtype=torch.float64)

    def ridge(w: Any, penalty: Any) -> Any:
        return 0.5 * ((rows @ w - data) ** 2).sum() + 0.5 * penalty * (w**2).sum()

    def gradient(penalty: float) -> Any:
        p = torch.tensor(penalty, dtype=torch.float64, requires_grad=True)
        x = lx.minimize(ridge, start, (p,), gtol=GTOL, differentiable=True).x
        return torch.autograd.grad(0.5 * ((more @ x - others) ** 2).sum(), p)[0]

    return gradient


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    n, penalty = int(sys.argv[1]) if len(sys.argv) > 1 else 1000, 0.3
    given = problem(n)
    wanted = exact(given, penalty)
    lines = []
    for name, gradient in {**with_jax(given), "lbfgs_xp, PyTorch": with_torch(given)}.items():
        found, first, warm = best(gradient, penalty)
        error = abs(found - wanted) / abs(wanted)
        lines.append([name, f"{error:.1e}", f"{first:.2f} s", f"{1e3 * warm:.1f} ms"])
    print_table(
        f"Gradient of a validation error by a ridge penalty, n = {n}",
        ["", "relative error", "first call", "warm"], lines,
    )
    print_machine()


if __name__ == "__main__":
    main()
