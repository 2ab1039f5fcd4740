"""Many small problems at once: the rate, compared with a loop over SciPy and a vmap of optax.

The extended Rosenbrock function in 6 variables from B random starts, float64, until the largest
component of each gradient is at most 1e-6. SciPy's L-BFGS-B solves a sample of the starts, one
after the other, which gives its rate. Compilation happens before the clock starts; each figure is
the best of a few runs. If PyTorch or JAX sees a GPU, or CuPy is installed, each device is a
separate contender.

    python benchmarks/batched.py --plot batched.png    # draws B = 1, 10, ... 1,000,000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import print_machine, print_table
from _optax import lbfgs_to_the_end

import lbfgs_xp as lx
from lbfgs_xp import problems
from lbfgs_xp.arrays.backend import Backend

GTOL = 1e-6
REPEATS = 3
SAMPLE = 300


def best_time(solve: Callable[[], Any]) -> tuple[float, Any]:
    """The least time of several runs, in seconds, and the result of the last one."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = solve()
        times.append(time.perf_counter() - start)
    return min(times), result


def scipy_loop(x0: np.ndarray) -> tuple[float, float]:
    """Problems per second, and the mean number of evaluations."""
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


def ours(
    xp: Any, method: str, x0: np.ndarray, wrap: Callable, device: Any
) -> tuple[float, float]:
    p = problems.rosenbrock(x0.shape[1], xp=xp, device=device, dtype="float64")
    fun, start = wrap(p.value_and_gradient), xp.asarray(x0, device=device)

    def solve() -> lx.Result:
        res = lx.minimize(fun, start, jac=True, method=method, batched=True, gtol=GTOL)
        assert bool(res.success.all())  # waits for the device
        return res

    solve()
    seconds, res = best_time(solve)
    evaluations = Backend.of(start).to_host(res.nfev)
    return len(x0) / seconds, float(np.mean(evaluations))


def optax_vmap(x0: np.ndarray) -> tuple[float, float]:
    """Run optax.lbfgs in a while loop under vmap: all problems continue until the last is done."""
    import jax
    import jax.numpy as jnp

    fun = problems.rosenbrock(x0.shape[1], xp=jnp, dtype="float64").fun
    run = lbfgs_to_the_end(fun, memory_size=10, gtol=GTOL, most=1000)
    many, start = jax.jit(jax.vmap(run)), jnp.asarray(x0)

    def solve() -> Any:
        return many(start)[1].block_until_ready()

    solve()
    seconds, norms = best_time(solve)
    reached = float(np.mean(np.asarray(norms) <= GTOL))
    if reached < 1.0:
        print(f"optax: {1.0 - reached:.2%} of the problems did not converge")
    return len(x0) / seconds, float("nan")


def libraries() -> dict[str, tuple[Any, Callable, Any]]:
    """Name -> (namespace, wrapper that speeds up a function, device), for each device found."""
    found: dict[str, tuple[Any, Callable, Any]] = {"NumPy": (np, lambda fun: fun, None)}
    try:
        import torch

        found["torch"] = torch, lambda fun: fun, "cpu"
        if torch.cuda.is_available():
            found["torch, GPU"] = torch, lambda fun: fun, "cuda"
    except ImportError:
        print("torch: not installed, skipped")
    try:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        found["JAX, jitted"] = jnp, jax.jit, jax.devices("cpu")[0]
        if jax.default_backend() != "cpu":
            found["JAX, jitted, GPU"] = jnp, jax.jit, jax.devices()[0]
    except ImportError:
        print("JAX: not installed, skipped")
    try:
        import array_api_compat.cupy as cupy

        found["CuPy"] = cupy, lambda fun: fun, None
    except ImportError:
        pass
    return found


def contenders() -> dict[str, Callable[[np.ndarray], tuple[float, float]]]:
    """Name -> a function from the starts to (problems per second, evaluations)."""
    found: dict[str, Callable] = {"SciPy L-BFGS-B, a loop": scipy_loop}
    for library, (xp, wrap, device) in libraries().items():
        for method in ("bfgs", "lbfgs"):
            found[f"{method}, {library}"] = (
                lambda x0, xp=xp, method=method, wrap=wrap, device=device: ours(
                    xp, method, x0, wrap, device
                )
            )
    found["optax.lbfgs, JAX vmap"] = optax_vmap
    return found


def starts(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-2.0, 2.0, size=(count, size))


def compare(count: int, size: int) -> None:
    rows, base = [], None
    for name, run in contenders().items():
        try:
            rate, evaluations = run(starts(count, size))
        except ImportError as error:
            print(f"{name}: {error.name} is not installed, skipped")
            continue
        base = base or (rate if name.startswith("SciPy") else None)
        factor = f"{rate / base:.1f}" if base else "-"
        counted = f"{evaluations:.0f}" if evaluations == evaluations else "-"
        rows.append([name, f"{rate:.0f}", factor, counted])
    print_table(
        f"Rosenbrock, n = {size}, {count} problems, gtol = {GTOL:g}",
        ["", "problems / s", "x SciPy", "evaluations"], rows,
    )


def plot(path: str, size: int, most: float) -> None:
    """Draw the rates for B = 1, 10, ... 1,000,000, of each contender up to runs of `most` s."""
    from matplotlib.figure import Figure

    global REPEATS
    REPEATS = 1
    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.subplots()
    # Okabe & Ito: distinct for colour-blind readers. A colour for each library, dashes for L-BFGS.
    colors = iter(["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"])
    color: dict[str, str] = {}
    for name, run in contenders().items():
        found: list[tuple[int, float]] = []
        try:
            for count in (10**power for power in range(7)):
                rate, _ = run(starts(count, size))
                found.append((count, rate))
                print(f"{name}: B = {count}, {rate:.0f} problems / s", flush=True)
                # A batch ten times as large takes ten times as long, once the calls cost little.
                sampled = name.startswith("SciPy")
                if not sampled and count >= 1000 and 10.0 * count / rate > most:
                    break
        except ImportError as error:
            print(f"{name}: {error.name} is not installed, skipped")
            continue
        method, _, library = name.partition(", ")
        if library not in color:
            color[library] = "#000000" if method.startswith("SciPy") else next(colors)
        dash = "--" if method.startswith("lbfgs") else ":" if "optax" in method else "-"
        axes.loglog(*zip(*found, strict=True), dash, color=color[library], marker="o",
                    markersize=3.5, label=name)
    axes.set(xlabel="problems at once", ylabel="problems / s",
             title=f"Rosenbrock, n = {size}, gtol = {GTOL:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-B", type=int, default=10_000, help="number of problems")
    parser.add_argument("-n", type=int, default=6, help="number of variables of each, even")
    parser.add_argument("--plot", metavar="FILE", help="draw the rates for B = 1 to 1,000,000")
    parser.add_argument("--seconds", type=float, default=60.0, help="the longest run for the plot")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot, arguments.n, arguments.seconds)
    else:
        compare(arguments.B, arguments.n)
    print_machine()


if __name__ == "__main__":
    main()
