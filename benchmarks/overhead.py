"""The time per iteration that is not spent in the user's function.

Extended Rosenbrock with an analytic gradient, float64, a memory of 10, until the largest component
of the gradient is at most 1e-6. All contenders run in one process, in turn; the figures are medians
of several rounds, after one that is not counted. By default everything runs on one thread, because
the thread pools of several libraries in one process compete for the cores.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

GTOL = 1e-6
MEMORY = 10
MAXITER = 1000


class Timed(NamedTuple):
    """One solve: seconds in all, seconds in fun (nan: unknown), iterations, evaluations, norm."""

    seconds: float
    inside: float
    iterations: int
    evaluations: int
    norm: float

    @property
    def overhead(self) -> float:
        return (self.seconds - self.inside) / self.iterations


class Clock:
    """A function that measures the time spent in it."""

    def __init__(self, function: Callable, wait: Callable[[Any], Any]):
        self.function, self.wait = function, wait
        self.seconds, self.calls = 0.0, 0

    def __call__(self, x: Any) -> Any:
        self.wait(x)  # pending work is not the function's
        start = time.perf_counter()
        out = self.function(x)
        self.wait(out)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return out


def nothing(_: Any) -> None:
    """Do not wait: on the host, arrays are ready when they are returned."""


def waiter(name: str, device: str) -> Callable[[Any], Any]:
    """A function that waits until an array of that library is ready."""
    if name == "jax":
        import jax

        return jax.block_until_ready
    if name == "torch" and device != "cpu":
        import torch

        return lambda _: torch.cuda.synchronize()
    if name == "cupy":
        import cupy

        return lambda _: cupy.cuda.get_current_stream().synchronize()
    return nothing


def ours(problem: Any, name: str, device: str) -> Callable[[], Timed]:
    import lbfgs_xp as lx
    from lbfgs_xp.arrays.backend import Backend

    wait = waiter(name, device)
    fun = Backend.of(problem.x0).jit(problem.value_and_gradient)
    host = Backend.of(problem.x0).to_host

    def run() -> Timed:
        clock = Clock(fun, wait)
        start = time.perf_counter()
        res = lx.minimize(
            clock, problem.x0, jac=True, method=lx.LBFGS(memory_size=MEMORY), gtol=GTOL,
            maxiter=MAXITER,
        )
        wait(res.x)
        seconds = time.perf_counter() - start
        norm = float(abs(host(problem.gradient(res.x))).max())
        return Timed(seconds, clock.seconds, res.nit, res.nfev, norm)

    return run


def scipy_lbfgsb(n: int) -> Callable[[], Timed]:
    from scipy.optimize import minimize

    from lbfgs_xp import problems

    problem = problems.rosenbrock(n)
    options = {"maxcor": MEMORY, "gtol": GTOL, "ftol": 0.0, "maxiter": MAXITER, "maxfun": 10**6}

    def run() -> Timed:
        clock = Clock(problem.value_and_gradient, nothing)
        start = time.perf_counter()
        res = minimize(clock, problem.x0, jac=True, method="L-BFGS-B", options=options)
        seconds = time.perf_counter() - start
        return Timed(seconds, clock.seconds, res.nit, clock.calls, float(abs(res.jac).max()))

    return run


def torch_lbfgs(n: int, device: str) -> Callable[[], Timed]:
    import array_api_compat.torch as xp
    import torch

    from lbfgs_xp import problems

    problem = problems.rosenbrock(n, xp=xp, dtype=torch.float64, device=torch.device(device))
    wait = waiter("torch", device)

    def run() -> Timed:
        x = torch.nn.Parameter(problem.x0.clone())
        clock = Clock(problem.value_and_gradient, wait)

        def closure() -> Any:
            value, x.grad = clock(x.detach())
            return value

        start = time.perf_counter()
        optimizer = torch.optim.LBFGS(
            [x], max_iter=MAXITER, max_eval=10**6, tolerance_grad=GTOL, tolerance_change=0.0,
            history_size=MEMORY, line_search_fn="strong_wolfe",
        )
        state = optimizer.state[x]
        before = -1
        # One step runs to the tolerance; it is repeated as long as it makes progress.
        while before < state.get("n_iter", 0) < MAXITER:
            before = state.get("n_iter", 0)
            optimizer.step(closure)
            if float(problem.gradient(x.detach()).abs().max()) <= GTOL:
                break
        wait(x)
        seconds = time.perf_counter() - start
        norm = float(problem.gradient(x.detach()).abs().max())
        return Timed(seconds, clock.seconds, state["n_iter"], clock.calls, norm)

    return run


def torchmin_lbfgs(n: int, device: str) -> Callable[[], Timed]:
    import array_api_compat.torch as xp
    import torch
    import torchmin

    from lbfgs_xp import problems

    problem = problems.rosenbrock(n, xp=xp, dtype=torch.float64, device=torch.device(device))
    wait = waiter("torch", device)
    # It differentiates by autograd, so wrap the function with its known gradient.
    options = {
        "gtol": GTOL, "xtol": 0.0, "gtd_tol": 0.0, "history_size": MEMORY, "max_iter": MAXITER,
    }

    def run() -> Timed:
        clock = Clock(problem.value_and_gradient, wait)

        class Known(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                value, gradient = clock(x.detach())
                ctx.save_for_backward(gradient)
                return value

            @staticmethod
            def backward(ctx: Any, *outer: Any) -> Any:
                return ctx.saved_tensors[0]

        start = time.perf_counter()
        res = torchmin.minimize(Known.apply, problem.x0, method="l-bfgs", options=dict(options))
        wait(res.x)
        seconds = time.perf_counter() - start
        norm = float(problem.gradient(res.x).abs().max())
        return Timed(seconds, clock.seconds, res.nit, clock.calls, norm)

    return run


def in_one_loop(problem: Any) -> Callable[[], Timed]:
    """Ours, compiled together with the function."""
    import jax

    import lbfgs_xp as lx

    fun = jax.jit(problem.fun)

    def run() -> Timed:
        start = time.perf_counter()
        res = lx.minimize(
            fun, problem.x0, method=lx.LBFGS(memory_size=MEMORY), gtol=GTOL, maxiter=MAXITER
        )
        jax.block_until_ready(res.x)
        seconds = time.perf_counter() - start
        return Timed(seconds, float("nan"), res.nit, res.nfev, res.gradient_norm)

    return run


def in_a_program(problem: Any) -> Callable[[], Timed]:
    """Ours, called inside a function that JAX compiles."""
    import jax

    import lbfgs_xp as lx

    @jax.jit
    def solve(x: Any) -> Any:
        return lx.minimize(
            problem.fun, x, method=lx.LBFGS(memory_size=MEMORY), gtol=GTOL, maxiter=MAXITER
        )

    def run() -> Timed:
        start = time.perf_counter()
        res = jax.block_until_ready(solve(problem.x0))
        seconds = time.perf_counter() - start
        return Timed(seconds, float("nan"), int(res.nit), int(res.nfev), float(res.gradient_norm))

    return run


def jaxopt_lbfgs(problem: Any) -> Callable[[], Timed]:
    import jax
    import jax.numpy as jnp
    import jaxopt

    # Its tolerance is for the Euclidean norm; this one makes no run longer than ours.
    solver = jaxopt.LBFGS(
        problem.fun, maxiter=MAXITER, tol=GTOL * len(problem.x0) ** 0.5, history_size=MEMORY,
        implicit_diff=False,
    )
    solve = jax.jit(lambda x: solver.run(x))

    def run() -> Timed:
        start = time.perf_counter()
        x, state = jax.block_until_ready(solve(problem.x0))
        seconds = time.perf_counter() - start
        norm = float(jnp.max(jnp.abs(problem.gradient(x))))
        return Timed(seconds, float("nan"), int(state.iter_num), 0, norm)

    return run


def optimistix_lbfgs(problem: Any) -> Callable[[], Timed]:
    import jax
    import jax.numpy as jnp
    import optimistix

    # It stops by the changes of x and of the value.
    solver = optimistix.LBFGS(rtol=GTOL, atol=GTOL, history_length=MEMORY)

    @jax.jit
    def solve(x: Any) -> Any:
        found = optimistix.minimise(
            lambda x, _: problem.fun(x), solver, x, max_steps=MAXITER, throw=False
        )
        return found.value, found.stats["num_steps"]

    def run() -> Timed:
        start = time.perf_counter()
        x, count = jax.block_until_ready(solve(problem.x0))
        seconds = time.perf_counter() - start
        norm = float(jnp.max(jnp.abs(problem.gradient(x))))
        return Timed(seconds, float("nan"), int(count), 0, norm)

    return run


def optax_lbfgs(problem: Any) -> Callable[[], Timed]:
    import jax
    from _optax import lbfgs_to_the_end

    solve = jax.jit(lbfgs_to_the_end(problem.fun, MEMORY, GTOL, MAXITER))

    def run() -> Timed:
        start = time.perf_counter()
        _, norm, count = jax.block_until_ready(solve(problem.x0))
        seconds = time.perf_counter() - start
        return Timed(seconds, float("nan"), int(count), 0, float(norm))

    return run


def contenders(n: int) -> dict[str, Callable[[], Timed]]:
    """Name -> a function that solves the problem in n variables once; report missing peers."""
    import jax

    from lbfgs_xp import problems
    from lbfgs_xp.arrays import inventory
    from lbfgs_xp.arrays.backend import Backend

    jax.config.update("jax_enable_x64", True)
    made: dict[str, Callable[[], Timed]] = {}

    def add(label: str, make: Callable[[], Callable[[], Timed]]) -> None:
        try:
            made[label] = make()
        except ImportError as error:
            print(f"{label}: skipped ({error})")

    devices: dict[str, list[tuple[str, Any]]] = {}
    for name in ("numpy", "torch", "jax", "cupy"):
        if name in inventory.installed():
            devices[name] = inventory.samples(name)
    for name, places in devices.items():
        for device, array in places:
            here = Backend.of(array)
            problem = problems.rosenbrock(n, xp=here.xp, dtype=here.dtype, device=here.device)
            add(f"lbfgs_xp, {name} {device}", lambda a=(problem, name, device): ours(*a))
    add("SciPy L-BFGS-B", lambda: scipy_lbfgsb(n))
    for device, _ in devices.get("torch", []):
        add(f"torch.optim.LBFGS {device}", lambda d=device: torch_lbfgs(n, d))
        add(f"pytorch-minimize {device}", lambda d=device: torchmin_lbfgs(n, d))
    for device, array in devices.get("jax", []):
        here = Backend.of(array)
        problem = problems.rosenbrock(n, xp=here.xp, dtype=here.dtype, device=here.device)
        add(f"lbfgs_xp, jax {device}, one loop (1)", lambda p=problem: in_one_loop(p))
        add(f"lbfgs_xp, jax {device}, inside jit (1)", lambda p=problem: in_a_program(p))
        add(f"optax.lbfgs {device}, one loop (1)", lambda p=problem: optax_lbfgs(p))
        add(f"jaxopt.LBFGS {device} (1)", lambda p=problem: jaxopt_lbfgs(p))
        add(f"optimistix.LBFGS {device} (1)", lambda p=problem: optimistix_lbfgs(p))
    return made


# --- many starts, and steps of a first-order rule -----------------------------------------------


def starts(alike: bool, count: int = 256, n: int = 6) -> Any:
    """Starts for Rosenbrock's function: near each other, or such that some runs take many times as
    many iterations as others."""
    import numpy as np

    rng = np.random.default_rng(0)
    far = np.ones((count, 1)) if alike else np.geomspace(0.01, 100.0, count)[:, None]
    return 1.0 + far * rng.uniform(-1.0, 1.0, (count, n))


def many_starts(alike: bool) -> dict[str, Callable[[], Any]]:
    """256 starts of a problem in 6 variables, all to the same tolerance."""
    import jax
    import jax.numpy as jnp
    from _optax import lbfgs_to_the_end

    import lbfgs_xp as lx

    def fun(x: Any) -> Any:
        return jnp.sum(
            100.0 * (x[..., 1::2] - x[..., ::2] ** 2) ** 2 + (1.0 - x[..., ::2]) ** 2, axis=-1
        )

    x0, method = jnp.asarray(starts(alike)), lx.LBFGS(memory_size=MEMORY)
    rows, by_vmap = jax.jit(fun), jax.jit(jax.vmap(lbfgs_to_the_end(fun, MEMORY, GTOL, MAXITER)))
    ours = jax.jit(jax.vmap(
        lambda x: lx.minimize(fun, x, method=method, gtol=GTOL, maxiter=MAXITER)
    ))
    return {
        "optax.lbfgs, vmap": lambda: by_vmap(x0)[0],
        "lbfgs_xp, vmap": lambda: ours(x0).x,
        "lbfgs_xp, batched": lambda: lx.minimize(
            rows, x0, method=method, gtol=GTOL, maxiter=MAXITER, batched=True
        ).x,
        "lbfgs_xp, batched, BFGS": lambda: lx.minimize(
            rows, x0, gtol=GTOL, maxiter=MAXITER, batched=True
        ).x,
    }


def many_steps(count: int = 10_000) -> dict[str, Callable[[], Any]]:
    """Steps of AdamW on a network with 4,928 parameters, all rows in one batch."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import lbfgs_xp as lx

    rng = np.random.default_rng(0)
    shapes = {"u": (10, 64), "a": (64,), "v": (64, 64), "b": (64,), "w": (64, 1)}
    start = {
        name: jnp.asarray(rng.normal(size=shape) / 8.0, dtype=jnp.float32)
        for name, shape in shapes.items()
    }
    x = jnp.asarray(rng.normal(size=(128, 10)), dtype=jnp.float32)
    data = x, jnp.sin(x.sum(axis=1))

    def loss(p: Any, batch: Any) -> Any:
        hidden = jnp.tanh(jnp.tanh(batch[0] @ p["u"] + p["a"]) @ p["v"] + p["b"])
        return jnp.mean(((hidden @ p["w"])[:, 0] - batch[1]) ** 2)

    theirs, own = optax.adamw(1e-3, weight_decay=0.01), lx.AdamW(1e-3, weight_decay=0.01)

    def scanned(init: Callable, update: Callable) -> Callable:
        def step(carry: Any, _: Any) -> Any:
            p, state = carry
            value, gradient = jax.value_and_grad(loss)(p, data)
            return update(p, gradient, state), value

        return jax.jit(lambda p: jax.lax.scan(step, (p, init(p)), None, length=count)[0][0])

    def of_optax(p: Any, gradient: Any, state: Any) -> Any:
        updates, state = theirs.update(gradient, state, p)
        return optax.apply_updates(p, updates), state

    by_optax, by_update = scanned(theirs.init, of_optax), scanned(own.init, own.update)
    return {
        "optax.adamw in lax.scan": lambda: by_optax(start),
        "lx.AdamW.update in lax.scan": lambda: by_update(start),
        "lx.train": lambda: lx.train(loss, start, data, method=own, epochs=count).params,
    }


def compare(title: str, runs: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Wall and processor time of each, in turn, relative to the first."""
    import jax
    from _common import print_table

    cold, wall, used = {}, {name: [] for name in runs}, {name: [] for name in runs}
    for k in range(repeats + 1):
        for name, run in runs.items():
            gc.collect()
            start, before = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            took = time.perf_counter() - start, time.process_time() - before
            if k == 0:
                cold[name] = took[0]
            else:
                wall[name].append(took[0])
                used[name].append(took[1])
    first = next(iter(runs))
    base = statistics.median(used[first])
    rows = []
    for name in runs:
        whole, own = statistics.median(wall[name]), statistics.median(used[name])
        rows.append([
            name, f"{1e3 * whole:.1f}", f"{1e3 * cold[name]:.0f}", f"{1e3 * own:.1f}",
            f"{own / base:.2f}",
        ])
    headings = ["", "ms", "cold, ms", "processor ms", f"/ {first}"]
    print_table(title, headings, rows)


def floor(n: int, repeats: int) -> float:
    """Seconds for two products with the history, which every L-BFGS with this memory needs."""
    import numpy as np

    rng = np.random.default_rng(0)
    W, g, c = rng.normal(size=(2 * MEMORY, n)), rng.normal(size=n), rng.normal(size=2 * MEMORY)
    times = []
    for _ in range(5 * repeats + 1):
        start = time.perf_counter()
        W @ g, c @ W
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(n: int, repeats: int) -> tuple[dict[str, Timed], dict[str, float]]:
    """The median solve of each contender, by overhead or, if that is unknown, by time; and the
    seconds that its first solve took, including compiling."""
    made = contenders(n)
    seen: dict[str, list[Timed]] = {name: [] for name in made}
    first: dict[str, float] = {}
    for k in range(repeats + 1):
        for name, run in made.items():
            gc.collect()
            timed = run()
            if k == 0:  # the first round compiles
                first[name] = timed.seconds
            else:
                seen[name].append(timed)
    medians = {
        name: sorted(figures, key=lambda t: t.seconds - (0 if t.inside != t.inside else t.inside))[
            len(figures) // 2
        ]
        for name, figures in seen.items()
    }
    return medians, first


def show(
    n: int, results: dict[str, Timed], first: dict[str, float], base: float | None
) -> None:
    from _common import print_table

    scipy = results["SciPy L-BFGS-B"].overhead
    peers = [t.overhead for name, t in results.items() if name.startswith("torch.optim")]
    better = min([scipy, *peers])
    rows = []
    for name, t in results.items():
        known = t.inside == t.inside
        row = [name, str(t.iterations), str(t.evaluations or ""), f"{t.norm:.0e}"]
        row += [f"{1e3 * t.seconds:.2f}", f"{1e3 * first[name]:.0f}"]
        row += [f"{1e6 * t.seconds / t.iterations:.1f}"]
        optax = [r.seconds for other, r in results.items() if other.startswith("optax")]
        row += [f"{t.seconds / optax[0]:.2f}" if optax and not known else ""]
        if known:
            row += [f"{1e6 * t.overhead:.1f}", f"{t.overhead / scipy:.2f}"]
            row += [f"{t.overhead / better:.2f}"]
        else:
            row += ["", "", ""]
        if base is not None:
            row.append(f"{t.overhead / base:.2f}" if known else "")
        rows.append(row)
    headings = ["", "iterations", "evaluations", "gradient", "solve ms", "whole solve, cold, ms"]
    headings += ["µs/iter.", "solve / optax", "overhead µs/iter."]
    headings += ["/ SciPy", "/ better of SciPy, torch"]
    headings += ["/ floor"] if base is not None else []
    print_table(f"n = {n:,}", headings, rows)
    if base is not None:
        print(f"floor: W @ g and c @ W with W ({2 * MEMORY}, n) on NumPy, {1e6 * base:.1f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    parser.add_argument(
        "--repeats", type=int, help="rounds (default: 7, or 3 if n is a million or more)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads per library; 0: as the libraries choose"
    )
    parser.add_argument(
        "--no-many", dest="many", action="store_false",
        help="without the batches and the steps of AdamW in JAX",
    )
    options = parser.parse_args()
    if options.threads:
        for name in ("OMP", "OPENBLAS", "MKL"):  # read when the libraries are first imported
            os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
        if hasattr(os, "sched_setaffinity"):  # JAX counts the cores available to it
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    from _common import print_machine

    print(__doc__)
    for n in options.sizes:
        large = n >= 1_000_000
        repeats = options.repeats or (3 if large else 7)
        results, first = measure(n, repeats)
        show(n, results, first, floor(n, repeats) if large else None)
        sys.stdout.flush()
    if options.many:
        for alike in (True, False):
            lengths = "like" if alike else "different"
            compare(f"256 starts, n = 6, runs of {lengths} length", many_starts(alike), 5)
        compare("10,000 steps of AdamW, 4,928 parameters", many_steps(), 5)
    print("\n(1) compiled together with the function, so the time includes the function")
    print(f"threads: {options.threads or 'as each library chooses'}")
    print_machine()


if __name__ == "__main__":
    main()
