"""Gradient descent and L-BFGS on functions of two variables: python examples/two_dimensions.py

Rosenbrock's function has one long curved valley, steep across and almost flat along it. Rastrigin's
function is a bowl with a local minimum near every point of the integer grid. On each of them the
script runs gradient descent with a fixed learning rate, gradient descent with a line search, and
L-BFGS. The pictures show the path of each run, and its values over the evaluations of function and
gradient, since a line search may take several of them for one step.

None of the three methods looks for the global minimum. Which minimum a run reaches depends on its
steps, and a line search may step over a ridge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import (
    BLUE,
    GREEN,
    VERMILION,
    Library,
    array_library,
    figure,
    host,
    parser,
    progress,
    save,
)

import lbfgs_xp as lx


class Case(NamedTuple):
    """A function, a start, a suitable learning rate, and how to draw the function."""

    problem: lx.problems.Problem
    start: tuple[float, float]
    rate: float
    box: tuple[float, float, float, float]    # left, right, bottom, top
    levels: np.ndarray


class Run(NamedTuple):
    """The outcome; and for the start and each iterate: the point, evaluations so far, the value."""

    result: lx.Result
    path: np.ndarray
    evaluations: np.ndarray
    values: np.ndarray


def cases(lib: Library) -> list[Case]:
    # Near a minimum rates up to 2 / L converge, with L the largest eigenvalue of the Hessian there:
    # 1002 for Rosenbrock's function, 397 for Rastrigin's.
    rosenbrock = lx.problems.rosenbrock(2, xp=lib.xp)
    rastrigin = lx.problems.rastrigin(2, xp=lib.xp)
    bent, bowl = np.geomspace(0.02, 2e3, 18), np.linspace(0.0, 80.0, 11)
    return [
        Case(rosenbrock, (-1.2, 1.0), 1.5e-3, (-1.6, 1.4, -0.6, 1.8), bent),
        Case(rastrigin, (-3.3, 2.4), 2.5e-3, (-3.8, 0.6, -0.6, 3.8), bowl),
    ]


def methods(rate: float) -> dict[str, Any]:
    return {
        f"gradient descent, rate {rate:g}": lx.GradientDescent(rate),
        "gradient descent, line search": lx.GradientDescent(line_search=lx.Armijo()),
        "L-BFGS": lx.LBFGS(),
    }


def solve(lib: Library, case: Case, name: str, method: Any, maxiter: int) -> Run:
    x0 = lib.array(case.start)
    seen = [(host(x0), 1, float(case.problem.fun(x0)))]

    def watch(record: lx.Record) -> None:
        seen.append((host(record.x), record.nfev, record.fun))
        if record.nit % 100 == 0:
            progress(f"{case.problem.name}, {name}: iteration {record.nit}, {record.fun:.2e}")

    res = lx.minimize(
        lib.compiled(case.problem.value_and_gradient), x0, jac=True, method=method,
        maxiter=maxiter, callback=watch,
    )
    path, evaluations, values = map(np.asarray, zip(*seen, strict=True))
    return Run(res, path, evaluations, values)


def scale(curves: list[np.ndarray]) -> str:
    """The scale of an axis: logarithmic if the curves span several powers of ten."""
    numbers = np.concatenate(curves)
    return "log" if numbers.max() > 100.0 * numbers.min() else "linear"


def draw(lib: Library, case: Case, runs: dict[str, Run], folder: Path) -> None:
    picture = figure(12.0, 5.6)
    if picture is None:
        return
    plane, curves = picture.subplots(1, 2)
    left, right, bottom, top = case.box
    x, y = np.linspace(left, right, 300), np.linspace(bottom, top, 300)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    heights = host(case.problem.fun(lib.array(grid)))
    shades = [str(shade) for shade in np.linspace(1.0, 0.8, len(case.levels) - 1)]
    plane.contourf(x, y, heights, case.levels, colors=shades, extend="max")
    plane.contour(x, y, heights, case.levels, colors="#AAAAAA", linewidths=0.5)
    for (name, run), color, marker, dash in zip(
        runs.items(), (VERMILION, GREEN, BLUE), "s^o", ("-", "--", "-"), strict=True
    ):
        shown = np.unique(np.geomspace(1, len(run.path), 40).astype(int)) - 1
        plane.plot(
            *run.path.T, dash, color=color, marker=marker, markersize=4, markevery=shown.tolist(),
            linewidth=1.3, label=f"{name}: {run.result.nit} iterations",
        )
        curves.plot(
            run.evaluations, run.values, dash, color=color, marker=marker, markersize=4,
            markevery=shown.tolist(), linewidth=1.3, label=f"{name}: ends at {run.result.fun:.3g}",
        )
    plane.plot(*case.start, "D", color="black", markersize=7, label="start")
    least = host(case.problem.x_min)
    plane.plot(*least, "*", color="black", markersize=14, label="global minimum")
    plane.set(
        xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="$x_0$", ylabel="$x_1$",
        title="paths",
    )
    curves.set(
        xlabel="evaluations of function and gradient", ylabel="value", title="value along the path",
        xscale=scale([run.evaluations for run in runs.values()]),
        yscale=scale([run.values for run in runs.values()]),
    )
    plane.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    curves.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    picture.suptitle(f"{case.problem.name.capitalize()}'s function")
    save(picture, folder, f"two_dimensions_{case.problem.name}")


def main() -> None:
    options = parser(__doc__).parse_args()
    lib = array_library(options.backend)
    for case in cases(lib):
        print(f"{case.problem.name}, from {case.start}")
        runs = {
            name: solve(lib, case, name, method, 500 if options.quick else 20_000)
            for name, method in methods(case.rate).items()
        }
        progress()
        for name, run in runs.items():
            res, (u, v) = run.result, host(run.result.x)
            print(
                f"  {name:32}{res.nit:6} iterations {res.nfev:6} evaluations  value {res.fun:8.2e}"
                f"  at ({u:.4f}, {v:.4f}), {res.status.name}"
            )
        draw(lib, case, runs, options.out)


if __name__ == "__main__":
    main()
