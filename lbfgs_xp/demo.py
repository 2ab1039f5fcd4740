"""`python -m lbfgs_xp demo`: the same problems with every array library found, and a picture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lbfgs_xp as lx
from lbfgs_xp import backend, problems
from lbfgs_xp.backend import Backend

PICTURE = "lbfgs_xp_demo.png"
# Seconds for one run. A library that needs more (lazy ones do) is not asked for more.
PATIENCE = 10.0

# Okabe & Ito (2008): eight colours that colour-blind readers tell apart.
METHODS: dict[str, tuple[Any, str, str, str]] = {
    "Moré–Thuente": (lx.LBFGS(line_search=lx.MoreThuente()), "#0072B2", "-", "o"),
    "Hager–Zhang": (lx.LBFGS(line_search=lx.HagerZhang()), "#E69F00", "--", "s"),
    "strong Wolfe": (lx.LBFGS(line_search=lx.StrongWolfe()), "#009E73", "-.", "^"),
    "bisection": (lx.LBFGS(line_search=lx.Bisection()), "#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "Armijo": (lx.LBFGS(line_search=lx.Armijo()), "#56B4E9", (0, (3, 1)), "v"),
    "Armijo, memory of 1": (
        lx.LBFGS(memory_size=1, line_search=lx.Armijo()), "#D55E00", ":", "x",
    ),
}


class Case(NamedTuple):
    """One problem of the table: how it is made, and the budget."""

    title: str
    factory: Any
    settings: dict[str, Any]
    maxiter: int


class Run(NamedTuple):
    """One solved problem: the outcome, the seconds, and the iterates on the host."""

    result: Any
    seconds: float
    iterates: list[np.ndarray]


def console() -> Any:
    """A rich console, wide enough for a table where the output is not a terminal."""
    from rich.console import Console

    out = Console()
    return out if out.is_terminal else Console(width=132)


def demo(folder: Path, quick: bool = False) -> int:
    """Prints the table and saves the picture; 0 where both went well."""
    out = console()
    table(out, quick)
    return picture(out, folder, quick)


# --- the table ---------------------------------------------------------------------------------


def table(out: Any, quick: bool) -> None:
    """Every library, device, problem and mode, a row each."""
    from rich.table import Table

    headings = {
        "problem": "left", "library": "left", "device": "left", "dtype": "left", "mode": "left",
        "iterations": "right", "evaluations": "right", "value": "right", "gradient": "right",
        "ms": "right", "iterates against NumPy's": "left",
    }
    shown = Table(title="The same problems with every array library found here")
    for heading, side in headings.items():
        shown.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    places = [
        (name, device, Backend(array))
        for name in backend.installed()
        for device, array in backend.samples(name)
    ]
    skipped: dict[str, str] = {}
    with out.status("") as status:
        for case in cases(quick):
            for reproducible in (False, True):
                mode = "reproducible" if reproducible else "default"
                references: dict[str, list[np.ndarray]] = {}
                for name, device, here in places:
                    if name in skipped:
                        continue
                    status.update(f"{case.title}, {mode}: {name} on {device}")
                    dtype = str(here.dtype).split(".")[-1]
                    cells = [case.title, name, device, dtype, mode]
                    try:
                        run = solve(case, here, reproducible)
                    except Exception as error:  # one library that fails does not end the demo
                        shown.add_row(*cells, *"----", "-", f"{type(error).__name__}: {error}")
                        continue
                    if run.result.status == lx.Status.TIME:
                        skipped[name] = f"{case.title}, {mode}, {run.result.nit} iterations"
                        continue
                    if dtype not in references:
                        references[dtype] = run.iterates
                        if name != "numpy":
                            references[dtype] = solve(case, _numpy(dtype), reproducible).iterates
                    shown.add_row(*cells, *_numbers(run), _compare(run, references[dtype], name))
                shown.add_section()
    out.print(shown)
    out.print(
        "ms: the time of a second run, compiled programs being kept from the first. The last "
        "column: the largest difference of an iterate, relative to its largest component.",
        style="dim",
    )
    for name, where in skipped.items():
        out.print(
            f"{name}: left out from here on, slower than {PATIENCE:.0f} s for one run ({where})",
            style="dim",
        )


def cases(quick: bool) -> Iterator[Case]:
    """The problems of the table."""
    yield Case("Rosenbrock, n = 2", problems.rosenbrock, {"n": 2}, 200)
    n = 100 if quick else 1000
    yield Case(f"Rosenbrock, n = {n}", problems.rosenbrock, {"n": n}, 200)
    yield Case("network (MLP)", problems.mlp_regression, {}, 10 if quick else 200)


def solve(case: Case, here: Backend, reproducible: bool) -> Run:
    """Solves the case twice: once to see every iterate, once for the time."""
    settings = dict(case.settings)
    if reproducible and case.factory is problems.mlp_regression:
        settings["activation"] = "softsign"  # libraries differ in the last bits of tanh
    problem = case.factory(
        **settings, xp=here.xp, dtype=here.dtype, device=here.device, reproducible=reproducible
    )
    # A compiled program may round a product and a sum at once, so it may not where bits count.
    fun = problem.value_and_gradient
    fun = fun if reproducible else here.jit(fun)
    iterates: list[np.ndarray] = []

    def keep(record: Any) -> None:
        iterates.append(np.array(here.to_host(record.x)))

    def run(**more: Any) -> Any:
        return lx.minimize(
            fun, problem.x0, jac=True, reproducible=reproducible, maxiter=case.maxiter,
            maxtime=PATIENCE, **more,
        )

    result = run(callback=keep)
    start = time.perf_counter()
    if result.status != lx.Status.TIME:
        result = run()
    here.to_host(result.x)  # waits for the device
    return Run(result, time.perf_counter() - start, iterates)


def _numpy(dtype: str) -> Backend:
    return Backend(np.zeros(1, dtype=dtype))


def _numbers(run: Run) -> list[str]:
    res = run.result
    return [
        str(res.nit), str(res.nfev), f"{res.fun:.2e}", f"{res.gradient_norm:.1e}",
        f"{1e3 * run.seconds:.1f}",
    ]


def _compare(run: Run, reference: list[np.ndarray], name: str) -> str:
    if run.iterates is reference:
        return "(NumPy itself)"
    pairs = list(zip(run.iterates, reference, strict=False))
    if len(run.iterates) == len(reference) and all(a.tobytes() == b.tobytes() for a, b in pairs):
        return "[green]the same bits[/]"
    apart = max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)
    counted = "" if len(run.iterates) == len(reference) else f" over {len(pairs)} iterations"
    return f"{apart:.0e} apart{counted}"


# --- the picture -------------------------------------------------------------------------------


def picture(out: Any, folder: Path, quick: bool) -> int:
    """Saves the picture, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        out.print("no picture: matplotlib is not installed (pip install 'lbfgs_xp[plot]')")
        return 0
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 6.2), layout="constrained", gridspec_kw={"width_ratios": [1.15, 1]}
    )
    problem = problems.rosenbrock(2)
    _contours(left, problem)
    for label, (solver, colour, line, marker) in METHODS.items():
        path, losses, counts = _follow(problem, solver)
        left.plot(
            *path.T, color=colour, linestyle=line, marker=marker, markersize=4.5, linewidth=1.6,
            label=label, markerfacecolor="none", markeredgewidth=1.1,
        )
        right.semilogy(
            counts, losses, color=colour, linestyle=line, marker=marker, markersize=4.5,
            linewidth=1.6, label=label, markerfacecolor="none", markeredgewidth=1.1,
        )
    left.plot(*problem.x0, marker="o", color="black", markersize=7, zorder=5)
    left.annotate("start", problem.x0, xytext=(-8, 10), textcoords="offset points", ha="center")
    left.plot(1.0, 1.0, marker="*", color="black", markersize=14, zorder=5)
    left.annotate("minimum", (1.0, 1.0), xytext=(0, 12), textcoords="offset points", ha="center")
    left.set(xlabel="x₁", ylabel="x₂", title="Rosenbrock's valley: the iterates of L-BFGS")
    right.set(
        xlabel="evaluations of value and gradient", ylabel="value above the minimum",
        title="How fast the value falls",
    )
    right.grid(True, which="major", alpha=0.3)
    right.legend(title="line search", frameon=False)
    path = folder / PICTURE
    figure.savefig(path, dpi=100 if quick else 150)
    plt.close(figure)
    out.print(f"picture: {path}")
    return 0


def _contours(axes: Any, problem: Any) -> None:
    x, y = np.meshgrid(np.linspace(-1.6, 1.4, 300), np.linspace(-0.6, 1.7, 300))
    values = problem.fun(np.stack([x, y], axis=-1))
    levels = np.geomspace(0.1, 2000.0, 12)
    axes.contour(x, y, values, levels=levels, colors="0.75", linewidths=0.8)


def _follow(problem: Any, solver: Any) -> tuple[np.ndarray, list[float], list[int]]:
    """The iterates (k, 2), how far their values lie above the minimum, and the evaluations."""
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
