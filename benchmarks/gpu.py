"""Large problems, many problems, many fits and Adam on a GPU, compared with torch and optax.

    python benchmarks/gpu.py [--plot gpu.png]    # without a GPU it says so
    python benchmarks/gpu.py --cpu --small       # the same code, quickly, on the CPU

One row for each task, size and contender: the median of several runs, each of which ends when the
device is done, after two that are not counted.

- L-BFGS: one iteration on a quadratic with condition 10^4, with a memory of 10. Two runs of
  different length are timed, so that the start cancels. The time includes the function. The share
  is the time for reading the history of 20 vectors twice, at the bandwidth of a copy, divided by
  the time taken.
- batch: the extended Rosenbrock function in 6 variables from random starts, until the largest
  component of each gradient is at most 1e-4 in float32 and 1e-6 in float64.
- fits: two parameters of an exponential decay with 50 noisy points each, analytic derivatives.
- Adam: one step in place. The share counts four arrays read and three written.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _common import print_machine
from _optax import adam_step, lbfgs_to_the_end

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the libraries share the memory

MEMORY = 10
GTOL = {"float32": 1e-4, "float64": 1e-6}
SIZES = {
    "L-BFGS": (10**6, 10**7, 10**8),
    "batch": (500, 10**4, 10**5, 10**6),
    "fits": (10**5,),
    "Adam": (10**7, 10**8),
}
SMALL = {"L-BFGS": (1000,), "batch": (50,), "fits": (200,), "Adam": (10_000,)}
ITERATIONS = 12, 42  # after twelve the memory is full
# How many vectors go through memory at least, read or written.
MOVED = {"L-BFGS": 2 * 2 * MEMORY, "Adam": 7}

Step = Callable[[], Any]


@dataclasses.dataclass(frozen=True, eq=False)  # devices of CuPy have no hash
class Place:
    """A library on a device: its namespace, how to wait for it, how to compile a function."""

    name: str
    xp: Any
    device: Any
    wait: Callable[[Any], Any]
    compile: Callable[[Callable], Callable] = lambda function: function

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return self.xp.asarray(values, dtype=getattr(self.xp, dtype), device=self.device)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; `error` instead of seconds if the contender failed."""

    task: str
    size: int
    dtype: str
    contender: str
    seconds: float = float("nan")
    share: float | None = None
    error: str = ""

    @property
    def rate(self) -> str:
        """In the unit of the task."""
        if self.error:
            return self.error
        if self.task in ("batch", "fits"):
            return f"{self.size / self.seconds:,.0f} / s"
        return f"{1e3 * self.seconds:.3g} ms"


# --- where to run ------------------------------------------------------------------------------


def places(cpu: bool) -> dict[str, Place]:
    """Library -> place, for the libraries that find a GPU, or for those on the CPU."""
    found: dict[str, Place] = {}
    if cpu:
        found["numpy"] = Place("NumPy", importlib.import_module("array_api_compat.numpy"), "cpu",
                               lambda _: None)
    else:
        _add(found, "cupy", _cupy)
    _add(found, "torch", functools.partial(_torch, cpu))
    _add(found, "jax", functools.partial(_jax, cpu))
    return found


def _add(found: dict[str, Place], name: str, make: Callable[[], Place | None]) -> None:
    try:
        place = make()
    except ImportError:
        print(f"{name}: not installed, skipped")
        return
    except Exception as error:  # each library has its own for "no driver" and "no device"
        print(f"{name}: no GPU ({type(error).__name__}), skipped")
        return
    if place is None:
        print(f"{name}: no GPU, skipped")
    else:
        found[name] = place


def _cupy() -> Place | None:
    cupy = importlib.import_module("cupy")
    if not cupy.cuda.runtime.getDeviceCount():
        return None
    xp = importlib.import_module("array_api_compat.cupy")
    return Place("CuPy", xp, cupy.cuda.Device(0), lambda _: cupy.cuda.Device(0).synchronize())


def _torch(cpu: bool) -> Place | None:
    torch = importlib.import_module("torch")
    if not cpu and not torch.cuda.is_available():
        return None
    xp = importlib.import_module("array_api_compat.torch")
    wait = (lambda _: None) if cpu else (lambda _: torch.cuda.synchronize())
    return Place("PyTorch", xp, torch.device("cpu" if cpu else "cuda"), wait)


def _jax(cpu: bool) -> Place | None:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    device = jax.devices("cpu" if cpu else "gpu")[0]
    # The peers make arrays where JAX likes.
    jax.config.update("jax_default_device", device)
    return Place("JAX", jax.numpy, device, jax.block_until_ready, jax.jit)


# --- timing ------------------------------------------------------------------------------------


def median_time(run: Step, wait: Callable[[Any], Any], repeats: int) -> float:
    """Seconds from an idle device to an idle device, after two runs that are not counted."""
    for _ in range(2):
        wait(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@functools.cache
def bandwidth(place: Place, size: int, dtype: str) -> float:
    """Bytes per second of an addition x + 1, which reads and writes each element once."""
    x = place.array(np.zeros(size), dtype)
    add = place.compile(lambda x: x + 1.0)
    return 2 * size * np.dtype(dtype).itemsize / median_time(lambda: add(x), place.wait, 9)


def free_memory(place: Place) -> None:
    """What one contender has allocated is free for the next."""
    gc.collect()
    if place.name == "CuPy":
        importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
    elif place.name == "PyTorch" and place.device.type == "cuda":
        importlib.import_module("torch").cuda.empty_cache()


# --- L-BFGS ------------------------------------------------------------------------------------


def scales(place: Place, size: int, dtype: str) -> Any:
    return place.array(np.geomspace(1.0, 1e4, size, dtype=dtype), dtype)


def lbfgs(place: Place, size: int, dtype: str) -> Callable[[int], Any]:
    import lbfgs_xp as lx

    scale = scales(place, size, dtype)
    x0 = place.xp.ones_like(scale)

    @place.compile
    def fun(x: Any, scale: Any) -> Any:
        gradient = scale * x
        return 0.5 * place.xp.vecdot(x, gradient), gradient

    def run(iterations: int) -> Any:
        res = lx.minimize(
            fun, x0, (scale,), jac=True, method=lx.LBFGS(memory_size=MEMORY), gtol=0.0,
            maxiter=iterations,
        )
        assert res.nit == iterations, res.message
        return res.x

    return run


def lbfgs_of_torch(place: Place, size: int, dtype: str) -> Callable[[int], Any]:
    import torch

    scale = scales(place, size, dtype)

    def run(iterations: int) -> Any:
        x = torch.nn.Parameter(torch.ones_like(scale))
        optimizer = torch.optim.LBFGS(
            [x], max_iter=iterations, max_eval=10**6, tolerance_grad=0.0, tolerance_change=0.0,
            history_size=MEMORY, line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            x.grad = scale * x.detach()
            return 0.5 * torch.dot(x.detach(), x.grad)

        optimizer.step(closure)
        assert optimizer.state[x]["n_iter"] == iterations
        return x

    return run


def lbfgs_of_optax(place: Place, size: int, dtype: str) -> Callable[[int], Any]:
    """The whole loop is one compiled function."""
    import jax
    import optax

    scale = scales(place, size, dtype)
    x0 = jax.numpy.ones_like(scale)
    solver = optax.lbfgs(memory_size=MEMORY)

    @jax.jit
    def run(iterations: Any, x: Any, scale: Any) -> Any:
        def fun(x: Any) -> Any:
            return 0.5 * jax.numpy.vdot(x, scale * x)

        value_and_gradient = optax.value_and_grad_from_state(fun)

        def step(_: Any, carry: Any) -> Any:
            x, state = carry
            value, gradient = value_and_gradient(x, state=state)
            updates, state = solver.update(
                gradient, state, x, value=value, grad=gradient, value_fn=fun
            )
            return optax.apply_updates(x, updates), state

        return jax.lax.fori_loop(0, iterations, step, (x, solver.init(x)))[0]

    return lambda iterations: run(iterations, x0, scale)


# --- many problems -----------------------------------------------------------------------------


def starts(place: Place, count: int, dtype: str) -> Any:
    values = np.random.default_rng(0).uniform(-2.0, 2.0, size=(count, 6))
    return place.array(values, dtype)


def batch(method: str, place: Place, count: int, dtype: str) -> Step:
    import lbfgs_xp as lx
    from lbfgs_xp.problems import rosenbrock

    p = rosenbrock(6, xp=place.xp, device=place.device, dtype=dtype)
    fun, x0 = place.compile(p.value_and_gradient), starts(place, count, dtype)

    def run() -> Any:
        res = lx.minimize(fun, x0, jac=True, method=method, batched=True, gtol=GTOL[dtype])
        solved = float(place.xp.mean(place.xp.astype(res.success, x0.dtype)))
        assert solved > 0.99, f"{solved:.2%} of the problems were solved"
        return res.x

    return run


def batch_of_optax(place: Place, count: int, dtype: str) -> Step:
    """All problems continue until the last is done, or after 200 iterations."""
    import jax

    from lbfgs_xp.problems import rosenbrock

    fun = rosenbrock(6, xp=jax.numpy, dtype=dtype).fun
    solve = lbfgs_to_the_end(fun, MEMORY, GTOL[dtype], most=200)
    many, x0 = jax.jit(jax.vmap(solve)), starts(place, count, dtype)
    return lambda: many(x0)[0]


def fits(place: Place, count: int, dtype: str) -> Step:
    import lbfgs_xp as lx

    xp, rng = place.xp, np.random.default_rng(0)
    t = np.linspace(0.0, 4.0, 50)
    truth = rng.uniform([1.0, 0.5], [4.0, 2.0], size=(count, 2))
    data = truth[:, :1] * np.exp(-truth[:, 1:] * t) + 0.02 * rng.normal(size=(count, 50))
    times, y = place.array(t, dtype), place.array(data, dtype)
    p0 = place.array(np.ones((count, 2)), dtype)

    @place.compile
    def model(t: Any, a: Any, k: Any) -> Any:
        return a * xp.exp(-k * t)

    @place.compile
    def jacobian(t: Any, a: Any, k: Any) -> Any:
        e = xp.exp(-k * t)
        return xp.stack([e, -a * t * e], axis=-1)

    def run() -> Any:
        fit = lx.curve_fit(model, times, y, p0, jac=jacobian, batched=True)
        assert bool(xp.all(fit.success))
        return fit.x

    return run


# --- Adam --------------------------------------------------------------------------------------


def parameters(place: Place, size: int, dtype: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal(size, dtype=dtype) for _ in range(2))
    return place.array(x, dtype), place.array(g, dtype)


def adam(place: Place, size: int, dtype: str) -> Step:
    import lbfgs_xp as lx

    opt = lx.Adam(1e-3)
    x, g = parameters(place, size, dtype)
    held = [x, opt.init(x)]

    def run() -> Any:
        held[:] = opt.update(held[0], g, held[1], in_place=True)
        return held[0]

    return run


def adam_of_torch(how: str, place: Place, size: int, dtype: str) -> Step:
    import torch

    x, g = parameters(place, size, dtype)
    x = torch.nn.Parameter(x)
    x.grad = g
    return torch.optim.Adam([x], 1e-3, **{how: True}).step


def adam_of_optax(place: Place, size: int, dtype: str) -> Step:
    return adam_step(*parameters(place, size, dtype))


# --- all of it ---------------------------------------------------------------------------------

# task -> (contender, the library that it needs, how it is made). A `{}` stands for the library.
CONTENDERS: dict[str, list[tuple[str, str | None, Callable]]] = {
    "L-BFGS": [
        ("lbfgs_xp, {}", None, lbfgs), ("torch.optim.LBFGS", "torch", lbfgs_of_torch),
        ("optax.lbfgs, compiled", "jax", lbfgs_of_optax),
    ],
    "batch": [
        ("lbfgs_xp BFGS, {}", None, functools.partial(batch, "bfgs")),
        ("lbfgs_xp L-BFGS, {}", None, functools.partial(batch, "lbfgs")),
        ("optax.lbfgs, vmap", "jax", batch_of_optax),
    ],
    "fits": [("lbfgs_xp, {}", None, fits)],
    "Adam": [
        ("lbfgs_xp, {}", None, adam),
        ("torch.optim.Adam, fused", "torch", functools.partial(adam_of_torch, "fused")),
        ("torch.optim.Adam, foreach", "torch", functools.partial(adam_of_torch, "foreach")),
        ("optax.adam, compiled", "jax", adam_of_optax),
    ],
}


def measure(task: str, make: Callable, place: Place, size: int, dtype: str, repeats: int) -> float:
    """Seconds for one iteration, batch or step."""
    made = make(place, size, dtype)
    if task != "L-BFGS":
        return median_time(made, place.wait, repeats)
    few, many = (
        median_time(functools.partial(made, k), place.wait, repeats) for k in ITERATIONS
    )
    if many <= few:
        # Noise hides the difference, so the start counts, too.
        return many / ITERATIONS[1]
    return (many - few) / (ITERATIONS[1] - ITERATIONS[0])


def attempt(row: Row, make: Callable, place: Place, repeats: int, copied: int) -> Row:
    """`row` with its figures, or with the error of the contender, such as too little memory.

    copied : how many numbers to copy in order to measure the bandwidth.
    """
    try:
        seconds = measure(row.task, make, place, row.size, row.dtype, repeats)
        free_memory(place)
        share = None
        if row.task in MOVED:
            moved = MOVED[row.task] * row.size * np.dtype(row.dtype).itemsize
            share = moved / bandwidth(place, copied, row.dtype) / seconds
        return dataclasses.replace(row, seconds=seconds, share=share)
    except ImportError as error:
        return dataclasses.replace(row, error=f"{error.name} is not installed")
    except Exception as error:  # of a library; the other figures are worth having
        print(f"{row.contender}: {type(error).__name__}: {error}", file=sys.stderr)
        text = f"{type(error).__name__} {error}"
        lacking = "memory" in text.lower() or "RESOURCE_EXHAUSTED" in text
        return dataclasses.replace(
            row, error="out of memory" if lacking else type(error).__name__
        )
    finally:
        free_memory(place)


def rows(
    found: dict[str, Place], sizes: dict[str, tuple[int, ...]], repeats: int, copied: int
) -> Iterator[Row]:
    for task, contenders in CONTENDERS.items():
        for size in sizes[task]:
            for dtype in ("float32", "float64"):
                for name, needs, make in contenders:
                    for library, place in found.items():
                        if needs in (None, library):
                            row = Row(task, size, dtype, name.format(place.name))
                            yield attempt(row, make, place, repeats, copied)


def table(lines: list[Row]) -> list[str]:
    """The figures as one Markdown table: a row for each contender and size, a column per dtype."""
    shown = [
        "| task | size | contender | float32 | of the bandwidth | float64 | of the bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    by_case: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in lines:
        by_case.setdefault((row.task, row.size, row.contender), {})[row.dtype] = row
    for (task, size, contender), found in by_case.items():
        cells = [task, f"{size:,}", contender]
        for dtype in ("float32", "float64"):
            row = found[dtype]
            cells += [row.rate, "" if row.share is None else f"{row.share:.0%}"]
        shown.append("| " + " | ".join(cells) + " |")
    return shown


def plot(path: str, lines: list[Row]) -> None:
    """One panel for each task: time or rate over the size, in float32."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.5), layout="constrained")
    panels = figure.subplots(2, 2)
    # Okabe & Ito: distinct for colour-blind readers.
    colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    for axes, task in zip(panels.flat, CONTENDERS, strict=True):
        rate = task in ("batch", "fits")
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in lines:
            if row.task == task and row.dtype == "float32" and not row.error:
                value = row.size / row.seconds if rate else 1e3 * row.seconds
                curves.setdefault(row.contender, []).append((row.size, value))
        for i, (name, points) in enumerate(curves.items()):
            axes.loglog(
                *zip(*points, strict=True), marker="o", markersize=4,
                color=colors[i % len(colors)], linestyle="-" if "lbfgs_xp" in name else "--",
                label=name,
            )
        axes.set(
            title=f"{task}, float32", xlabel="problems" if rate else "variables",
            ylabel=f"{'fits' if task == 'fits' else 'problems'} / s" if rate else
            f"ms per {'iteration' if task == 'L-BFGS' else 'step'}",
        )
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="run on the CPU")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the code")
    parser.add_argument("--tasks", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--libraries", nargs="+", help="only these of numpy, cupy, torch and jax")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", metavar="FILE", help="draw the figures")
    options = parser.parse_args()
    found = {
        name: place for name, place in places(options.cpu).items()
        if name in (options.libraries or (name,))
    }
    if not found:
        print("no GPU found: nothing was measured; --cpu --small tries the code on the CPU")
        return
    sizes = {
        task: each if task in options.tasks else ()
        for task, each in (SMALL if options.small else SIZES).items()
    }
    lines = []
    copied = 10**5 if options.small else 10**8
    for row in rows(found, sizes, options.repeats, copied):
        lines.append(row)
        print(f"{row.task:8}{row.size:>12,}  {row.dtype:9}{row.contender:28}{row.rate:>16}",
              flush=True)
    print("\n" + "\n".join(table(lines)))
    if options.plot:
        plot(options.plot, lines)
    print_machine()


if __name__ == "__main__":
    main()
