"""Many small problems at once: the rate, beside a loop over SciPy and a vmap of optax.

The extended Rosenbrock function in 6 variables from B random starts, float64, until the largest
component of each gradient is at most 1e-6. SciPy's L-BFGS-B solves a sample of the starts, one
after the other, which gives its rate. What a library compiles is compiled before the clock starts;
each figure is the best of a few runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import print_machine, print_table

import lbfgs_xp as lx
from lbfgs_xp import problems

GTOL = 1e-6
REPEATS = 3
SAMPLE = 300


def best_time(solve: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Seconds, the least of some runs, and what the last one returned."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = solve()
        times.append(time.perf_counter() - start)
    return min(times), result


def scipy_loop(x0: np.ndarray) -> tuple[float, float]:
    """Problems per second, and the mean evaluations."""
    from scipy.optimize import minimize

    fun = problems.rosenbrock(x0.shape[1]).value_and_gradient
    options = {"maxcor": 10, "gtol": GTOL, "ftol": 0.0}

    def solve() -> list[int]:
        return [
            minimize(fun, x, jac=True, method="L-BFGS-B", options=options).nfev
            for x in x0[:SAMPLE]
        ]

    seconds, evaluations = best_time(solve)
    return min(SAMPLE, len(x0)) / seconds, float(np.mean(evaluations))


def ours(xp: Any, method: str, x0: np.ndarray, wrap: Callable) -> tuple[float, float]:
    p = problems.rosenbrock(x0.shape[1], xp=xp, dtype="float64")
    fun, start = wrap(p.value_and_gradient), xp.asarray(x0)

    def solve() -> lx.Result:
        res = lx.minimize(fun, start, jac=True, method=method, batched=True, gtol=GTOL)
        assert bool(res.success.all())  # waits for the device
        return res

    solve()
    seconds, res = best_time(solve)
    return len(x0) / seconds, float(np.mean(np.asarray(res.nfev)))


def optax_vmap(x0: np.ndarray) -> tuple[float, float]:
    """optax.lbfgs in a while loop, under vmap: all go on until the last one is done."""
    import jax
    import jax.numpy as jnp
    import optax

    fun = problems.rosenbrock(x0.shape[1], xp=jnp, dtype="float64").fun
    solver = optax.lbfgs(memory_size=10)
    value_and_gradient = optax.value_and_grad_from_state(fun)

    def norm(state: Any) -> Any:
        return jnp.max(jnp.abs(optax.tree_utils.tree_get(state, "grad")))

    def step(carry: Any) -> Any:
        x, state, count = carry
        value, gradient = value_and_gradient(x, state=state)
        updates, state = solver.update(
            gradient, state, x, value=value, grad=gradient, value_fn=fun
        )
        return optax.apply_updates(x, updates), state, count + 1

    def unfinished(carry: Any) -> Any:
        _, state, count = carry
        return (count == 0) | ((norm(state) > GTOL) & (count < 1000))

    def run(x: Any) -> Any:
        _, state, _ = jax.lax.while_loop(unfinished, step, (x, solver.init(x), 0))
        return norm(state)

    many, start = jax.jit(jax.vmap(run)), jnp.asarray(x0)

    def solve() -> Any:
        return many(start).block_until_ready()

    solve()
    seconds, norms = best_time(solve)
    reached = float(np.mean(np.asarray(norms) <= GTOL))
    if reached < 1.0:
        print(f"optax: {1.0 - reached:.2%} of the problems did not get there")
    return len(x0) / seconds, float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-B", type=int, default=10_000, help="how many problems")
    parser.add_argument("-n", type=int, default=6, help="variables of each, even")
    arguments = parser.parse_args()
    shape = arguments.B, arguments.n
    x0 = np.random.default_rng(0).uniform(-2.0, 2.0, size=shape)

    contenders: dict[str, Callable[[], tuple[float, float]]] = {
        "SciPy L-BFGS-B, a loop": lambda: scipy_loop(x0)
    }
    libraries: dict[str, tuple[Any, Callable]] = {"NumPy": (np, lambda fun: fun)}
    try:
        import torch

        libraries["torch"] = torch, lambda fun: fun
    except ImportError:
        print("torch: not installed, left out")
    try:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        libraries["JAX, jitted"] = jnp, jax.jit
    except ImportError:
        print("JAX: not installed, left out")
    for library, (xp, wrap) in libraries.items():
        for method in ("bfgs", "lbfgs"):
            contenders[f"{method}, {library}"] = (
                lambda xp=xp, method=method, wrap=wrap: ours(xp, method, x0, wrap)
            )
    contenders["optax.lbfgs, JAX vmap"] = lambda: optax_vmap(x0)

    rows, base = [], None
    for name, run in contenders.items():
        try:
            rate, evaluations = run()
        except ImportError as error:
            print(f"{name}: {error.name} is not installed, left out")
            continue
        base = base or (rate if name.startswith("SciPy") else None)
        factor = f"{rate / base:.1f}" if base else "-"
        counted = f"{evaluations:.0f}" if evaluations == evaluations else "-"
        rows.append([name, f"{rate:.0f}", factor, counted])
    print_table(
        f"Rosenbrock, n = {shape[1]}, {shape[0]} problems, gtol = {GTOL:g}",
        ["", "problems / s", "x SciPy", "evaluations"], rows,
    )
    print_machine()


if __name__ == "__main__":
    main()
