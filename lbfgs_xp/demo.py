"""`python -m lbfgs_xp demo`: the same problems in every installed array library, and a picture."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lbfgs_xp as lx
from lbfgs_xp import problems
from lbfgs_xp.arrays import inventory
from lbfgs_xp.arrays.backend import Backend

PICTURE = "lbfgs_xp_demo.png"
# Seconds after which a run is given up.
_PATIENCE = 8.0


class Drawing(NamedTuple):
    """A solver, with the style of its curve."""

    solver: lx.LBFGS
    colour: str
    line: Any
    marker: str


def _drawn(rule: lx.LineSearch, colour: str, line: Any, marker: str, memory: int = 10) -> Drawing:
    return Drawing(lx.LBFGS(memory_size=memory, line_search=rule), colour, line, marker)


# The palette of Okabe & Ito (2008), which colour-blind readers can distinguish.
METHODS: dict[str, Drawing] = {
    "Moré–Thuente": _drawn(lx.MoreThuente(), "#0072B2", "-", "o"),
    "Hager–Zhang": _drawn(lx.HagerZhang(), "#E69F00", "--", "s"),
    "strong Wolfe": _drawn(lx.StrongWolfe(), "#009E73", "-.", "^"),
    "bisection": _drawn(lx.Bisection(), "#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "Armijo": _drawn(lx.Armijo(), "#56B4E9", (0, (3, 1)), "v"),
    "fixed step 1": _drawn(lx.Fixed(), "#000000", (0, (1, 1)), "."),
    "Armijo, memory of 1": _drawn(lx.Armijo(), "#D55E00", ":", "x", memory=1),
}


class Case(NamedTuple):
    """One problem of the table: how to make it, and its budget."""

    title: str
    factory: Any
    settings: dict[str, Any]
    maxiter: int


class Solved(NamedTuple):
    """One solved problem: the result, the time in seconds, and the iterates on the host."""

    result: Any
    seconds: float
    iterates: list[np.ndarray]


def console() -> Any:
    """A rich console, wide enough for a table if the output is not a terminal."""
    from rich.console import Console

    out = Console()
    return out if out.is_terminal else Console(width=132)


def demo(folder: Path, quick: bool = False) -> int:
    """Print the tables and save the picture; return the exit code."""
    out = console()
    tables(out, quick)
    return picture(out, folder, quick)


# --- the table ---------------------------------------------------------------------------------


def tables(out: Any, quick: bool) -> None:
    """Print a table for each problem, with a row for each library, device and mode."""
    from rich.markup import escape

    places = [
        (name, device, Backend.of(array))
        for name in inventory.installed()
        for device, array in inventory.samples(name)
    ]
    slow: dict[str, str] = {}
    for case in cases(quick):
        shown = _empty_table(case.title, wide=out.width >= 110)
        for reproducible in (False, True):
            mode = "reproducible" if reproducible else "default"
            references: dict[str, list[np.ndarray]] = {}
            for name, device, here in places:
                if name in slow:
                    continue
                dtype = str(here.dtype).split(".")[-1]
                cells = [name, device, dtype, mode]
                with out.status(f"{case.title}, {mode} mode: {name} on {device}"):
                    try:
                        run = solve(case, here, reproducible, _PATIENCE)
                    except Exception as error:  # one failing library does not end the demo
                        shown.add_row(*cells, *"-----", escape(f"{type(error).__name__}: {error}"))
                        continue
                    if run.result.status == lx.Status.TIME:
                        slow[name] = f"{case.title}, {mode} mode: {run.result.nit} iterations"
                        continue
                    if dtype not in references:
                        references[dtype] = run.iterates
                        if name != "numpy":
                            numpy = Backend.of(np.zeros(1, dtype=dtype))
                            again = solve(case, numpy, reproducible, _PATIENCE)
                            references[dtype] = again.iterates
                shown.add_row(*cells, *_numbers(run), _compare(run, references[dtype]))
            shown.add_section()
        out.print(shown)
    out.print(
        "ms: the fastest of up to three runs, after compilation. Last column: the largest "
        "difference in any iterate, relative to its largest component. Libraries round "
        "differently, and the differences grow over many steps unless every sum has a fixed order "
        "(reproducible mode). The network uses tanh, but softsign in reproducible mode, because "
        "libraries differ in the last bits of tanh.",
        style="dim",
    )
    for name, where in slow.items():
        out.print(
            f"{name}: left out because a run took more than {_PATIENCE:.0f} s ({where} in that "
            "time)",
            style="dim",
        )


def _empty_table(title: str, wide: bool) -> Any:
    from rich import box
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("library", "device", "dtype", "mode"):
        shown.add_column(heading, overflow="fold", no_wrap=wide)
    for heading in ("iterations", "evaluations", "value", "gradient", "ms"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("iterates against NumPy's", overflow="fold")
    return shown


def cases(quick: bool) -> Iterator[Case]:
    """The problems of the table."""
    yield Case("Rosenbrock, n = 2", problems.rosenbrock, {"n": 2}, 200)
    n = 100 if quick else 1000
    yield Case(f"Rosenbrock, n = {n}", problems.rosenbrock, {"n": n}, 200)
    yield Case("network (MLP)", problems.mlp_regression, {}, 10 if quick else 100)


def solve(case: Case, here: Backend, reproducible: bool, patience: float) -> Solved:
    """Solve the case once to record every iterate, then again to measure the time."""
    settings = dict(case.settings)
    if reproducible and case.factory is problems.mlp_regression:
        settings["activation"] = "softsign"  # libraries differ in the last bits of tanh
    problem = case.factory(
        **settings, xp=here.xp, dtype=here.dtype, device=here.device, reproducible=reproducible
    )
    # A compiled program may fuse a product and a sum into one rounding, which changes bits.
    fun = problem.value_and_gradient
    fun = fun if reproducible else here.jit(fun)
    iterates: list[np.ndarray] = []

    def keep(record: Any) -> None:
        iterates.append(np.array(here.to_host(record.x)))

    def run(**more: Any) -> Any:
        result = lx.minimize(
            fun, problem.x0, jac=True, reproducible=reproducible, maxiter=case.maxiter,
            maxtime=patience, **more,
        )
        here.to_host(result.x)  # waits for the device
        return result

    result = run(callback=keep)
    if here.compiles and result.status == lx.Status.TIME:  # possibly spent on compilation
        iterates.clear()
        result = run(callback=keep)
    if result.status == lx.Status.TIME:
        return Solved(result, math.inf, iterates)
    if here.compiles and not reproducible:
        run()  # without a callback it is another program
    times: list[float] = []
    while len(times) < 3 and sum(times) < 1.0:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return Solved(result, min(times), iterates)


def _numbers(run: Solved) -> list[str]:
    res = run.result
    return [
        str(res.nit), str(res.nfev), f"{res.fun:.2e}", f"{res.gradient_norm:.1e}",
        f"{1e3 * run.seconds:.1f}",
    ]


def _compare(run: Solved, reference: list[np.ndarray]) -> str:
    if run.iterates is reference:
        return "[dim]NumPy itself[/]"
    pairs = list(zip(run.iterates, reference, strict=False))
    if len(run.iterates) == len(reference) and all(a.tobytes() == b.tobytes() for a, b in pairs):
        return "[green]the same bits[/]"
    apart = max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)
    counted = "" if len(run.iterates) == len(reference) else f" over {len(pairs)} iterations"
    return f"{apart:.0e} apart{counted}"


# --- the picture -------------------------------------------------------------------------------


def picture(out: Any, folder: Path, quick: bool) -> int:
    """Save the picture, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        out.print(
            "no picture: matplotlib is not installed (pip install 'lbfgs_xp[plot]')", markup=False
        )
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    problem = problems.rosenbrock(2)
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.55, 1])
    left, right = halves
    left.suptitle("L-BFGS in Rosenbrock's valley, with each line search")
    panels = left.subplots(2, 4, sharex=True, sharey=True)
    curves = right.subplots()
    for panel, (label, drawing) in zip(panels.flat, METHODS.items(), strict=False):
        path, losses, counts = _follow(problem, drawing.solver)
        _contours(panel, problem)
        panel.plot(*path.T, color=drawing.colour, linewidth=1.4, marker="o", markersize=3)
        panel.plot(*problem.x0, marker="s", color="black", markersize=6)
        panel.plot(1.0, 1.0, marker="*", color="black", markersize=12, zorder=5)
        panel.set_title(f"{label}\n{counts[-1]} evaluations", fontsize=10)
        curves.semilogy(
            counts, losses, color=drawing.colour, linestyle=drawing.line, marker=drawing.marker,
            markersize=5, markerfacecolor="white", linewidth=1.6, label=label,
        )
    _explain(panels.flat[-1])
    for panel in panels[-1, :-1]:
        panel.set_xlabel("$x_1$")
    panels[0, -1].tick_params(labelbottom=True)
    panels[0, -1].set_xlabel("$x_1$")
    for panel in panels[:, 0]:
        panel.set_ylabel("$x_2$")
    curves.set(
        xlabel="evaluations of value and gradient", ylabel="value above the minimum",
        title="How fast the value falls",
    )
    curves.grid(True, which="major", alpha=0.3)
    curves.legend(loc="lower left", frameon=False)
    file = folder / PICTURE
    figure.savefig(file, dpi=80 if quick else 150)
    out.print(f"picture: {file}", soft_wrap=True)
    return 0


def _contours(axes: Any, problem: Any) -> None:
    x, y = np.meshgrid(np.linspace(-1.6, 1.6, 200), np.linspace(-0.7, 1.7, 200))
    values = problem.fun(np.stack([x, y], axis=-1))
    levels = np.geomspace(0.2, 2000.0, 10)
    axes.contourf(x, y, values, levels=[0.0, *levels], cmap="Greys", norm="asinh", alpha=0.5)
    axes.set(xlim=(-1.6, 1.6), ylim=(-0.7, 1.7))


def _explain(axes: Any) -> None:
    """Draw the legend of the small panels, in the last of them."""
    axes.axis("off")
    axes.plot([], [], marker="s", color="black", linestyle="", label="start")
    axes.plot([], [], marker="*", color="black", linestyle="", markersize=12, label="minimum")
    axes.plot([], [], marker="o", color="0.4", markersize=3, label="iterates")
    axes.legend(loc="center", frameon=False, title="dark: large values")


def _follow(problem: Any, solver: Any) -> tuple[np.ndarray, list[float], list[int]]:
    """The iterates (k, 2), their values above the minimum, and the evaluations so far."""
    path = [problem.x0]
    losses = [float(problem.fun(problem.x0)) - problem.minimum]
    counts = [1]

    def keep(record: Any) -> None:
        path.append(np.array(record.x))
        losses.append(max(record.fun - problem.minimum, 1e-300))
        counts.append(record.nfev)

    lx.minimize(
        problem.value_and_gradient, problem.x0, jac=True, method=solver, callback=keep, maxiter=300
    )
    return np.stack(path), losses, counts
