"""Whether a run that says success is at a minimum: false successes and false failures.

Sums of squares, as plain functions with gradients: the problems of Moré, Garbow & Hillstrom, random
problems whose variables have units from 1e-8 to 1e8, and with --nist FOLDER the nonlinear
regressions of NIST from both starts. L-BFGS, BFGS and least squares of this library and of SciPy,
each with its default tolerances (least squares by MINPACK). The lowest value near the end of a run
is found by Levenberg-Marquardt in scaled variables. A success is false if that is lower by more
than 1e-4 of it and 1e-10 of the decrease so far; a failure is false if the run is within 1e-8 and
1e-14 of it.

With --cutest COUNT, so many small problems of CUTEst (the package sif2jax), by given gradients and
by the same rules.

With --random COUNT, so many random problems of each kind in `_random_problems.py`, by given
gradients and by differences. What a run has reached is judged without the noise, in float64: by the
minimum, or by Newton's method from its end. A success is false if the value is higher by more than
1e-4 of the lowest one, a part of the fall (1e-9, and 1e-6 by differences; 1e-5 and 1e-3 in float32)
and 10 times the noise for each variable. A failure is false if it is within 1e-8, 1e-14 and the
noise; at a kink no failure is.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from _common import print_machine, print_table
from _cutest import Smooth, is_installed, problems
from _more_garbow_hillstrom import PROBLEMS, Residuals, jacobian
from _random_problems import DERIVATIVES, KINDS, Problem, of_kind

import lbfgs_xp as lx

MAXFUN = 20_000
HEADINGS = ["", "solved", "false success", "false failure", "honest failure", "evaluations"]
Case = tuple[Residuals, np.ndarray]


def scaled(count: int) -> Iterator[Case]:
    """Random regressions with noise, in variables of very different units."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        n = int(rng.integers(2, 6))
        a, b = rng.normal(size=(3 * n, n)), rng.normal(size=(3 * n, n))
        truth = rng.normal(size=n)
        y = a @ truth + 0.3 * np.sin(b @ truth) + 0.05 * rng.normal(size=3 * n)
        unit = 10.0 ** rng.choice([-8, -4, -2, 0, 2, 4, 8], size=n)

        def residuals(x: Any, a: Any = a, b: Any = b, y: Any = y, unit: Any = unit) -> Any:
            return a @ (x / unit) + 0.3 * np.sin(b @ (x / unit)) - y

        yield residuals, unit * (truth + 0.5 * rng.normal(size=n))


def _sum_of_exponentials(b: Any, x: Any) -> Any:
    return sum(b[i] * np.exp(-b[i + 1] * x) for i in (0, 2, 4))


def _gauss(b: Any, x: Any) -> Any:
    peaks = sum(b[i] * np.exp(-(((x - b[i + 1]) / b[i + 2]) ** 2)) for i in (2, 5))
    return b[0] * np.exp(-b[1] * x) + peaks


MODELS: dict[str, Callable[[Any, Any], Any]] = {
    "Misra1a": lambda b, x: b[0] * (1 - np.exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2.0),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Chwirut1": lambda b, x: np.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Chwirut2": lambda b, x: np.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "Hahn1": lambda b, x: (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3)
    / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3),
    "Kirby2": lambda b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "MGH17": lambda b, x: b[0] + b[1] * np.exp(-x * b[3]) + b[2] * np.exp(-x * b[4]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - np.arctan(b[2] / (x - b[3])) / np.pi,
    **{f"Gauss{i}": _gauss for i in (1, 2, 3)},
    **{f"Lanczos{i}": _sum_of_exponentials for i in (1, 2, 3)},
}


def nist(folder: Path) -> Iterator[Case]:
    """The files NAME.dat of the Statistical Reference Datasets that have a model here."""
    for name, model in MODELS.items():
        file = folder / f"{name}.dat"
        if not file.exists():
            continue
        lines = file.read_text().splitlines()
        found = (re.match(r"\s*b\d+\s*=\s*(\S+)\s+(\S+)", line) for line in lines[:60])
        starts = np.array([[float(v) for v in match.groups()] for match in found if match])
        first = next(i for i, line in enumerate(lines) if i > 40 and line.startswith("Data:"))
        y, x = np.array([[float(v) for v in line.split()] for line in lines[first + 1:] if line]).T

        def residuals(b: Any, model: Any = model, x: Any = x, y: Any = y) -> Any:
            return model(b, x) - y

        yield residuals, starts[:, 0]
        yield residuals, starts[:, 1]


def ours(method: str) -> Callable[[Any, np.ndarray], tuple[np.ndarray, float, bool]]:
    def run(fun: Any, x0: np.ndarray) -> tuple[np.ndarray, float, bool]:
        settings: dict[str, Any] = {"jac": True, "method": method, "maxfun": MAXFUN}
        res = lx.minimize(fun, x0, **settings)
        return res.x, res.fun, res.success

    return run


def scipys(method: str) -> Callable[[Any, np.ndarray], tuple[np.ndarray, float, bool]]:
    def run(fun: Any, x0: np.ndarray) -> tuple[np.ndarray, float, bool]:
        res = scipy.optimize.minimize(
            fun, x0, jac=True, method=method, options={"maxiter": MAXFUN}
        )
        return res.x, float(res.fun), bool(res.success)

    return run


def least_squares(residuals: Any, x0: np.ndarray) -> tuple[np.ndarray, float, bool]:
    res = lx.least_squares(residuals, x0, jac=residuals.jacobian, maxfun=MAXFUN)
    return res.x, 2.0 * res.cost, res.success


def minpack(residuals: Any, x0: np.ndarray) -> tuple[np.ndarray, float, bool]:
    x, _, info, _, code = scipy.optimize.leastsq(
        residuals, x0, Dfun=residuals.jacobian, full_output=True, maxfev=MAXFUN
    )
    return x, float(np.sum(info["fvec"] ** 2)), code in (1, 2, 3, 4)


RUNS = {
    "lx.LBFGS": ours("lbfgs"),
    "lx.BFGS": ours("bfgs"),
    "SciPy L-BFGS-B": scipys("L-BFGS-B"),
    "SciPy BFGS": scipys("BFGS"),
    "lx.least_squares": least_squares,
    "SciPy leastsq": minpack,
}


class Counted:
    """Residuals that count their calls; and the sum of their squares with its gradient."""

    def __init__(self, residuals: Residuals):
        self.residuals, self.jacobian, self.calls = residuals, jacobian(residuals), 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.residuals(x)

    def squares(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        r = self(x)
        return float(r @ r), 2.0 * self.jacobian(x).T @ r


def lowest(residuals: Residuals, x: np.ndarray) -> float:
    """The lowest value near x."""
    found = [float(residuals(x) @ residuals(x))]
    sizes = np.where(x != 0.0, np.abs(x), 1.0)
    for method, scale in (("lm", "jac"), ("trf", sizes)):
        try:
            res = scipy.optimize.least_squares(
                residuals, x, jacobian(residuals), method=method, x_scale=scale,
                xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000,
            )
            found.append(2.0 * res.cost)
        except (ValueError, np.linalg.LinAlgError):
            continue
    return min(value for value in found if np.isfinite(value) or value == found[0])


def judged(run: Any, residuals: Residuals, x0: np.ndarray) -> tuple[str, int]:
    """The verdict on one run, a heading of the table, and its evaluations."""
    counted = Counted(residuals)
    x, value, success = run(counted if run in (least_squares, minpack) else counted.squares, x0)
    calls, start = counted.calls, float(residuals(x0) @ residuals(x0))
    return compared(value, lowest(residuals, x), start, success), calls


def compared(value: float, best: float, start: float, success: bool) -> str:
    """The verdict on a run from the value `start` to `value`, where `best` is the lowest one."""
    gap, fallen = value - best, abs(start - best)
    if success:
        return "solved" if gap <= 1e-4 * abs(best) + 1e-10 * fallen else "false success"
    return "false failure" if gap <= 1e-8 * abs(best) + 1e-14 * fallen else "honest failure"


def cutest(count: int) -> None:
    """Print what becomes of so many small problems of CUTEst, and which ends are false."""
    if not is_installed():
        print("CUTEst is left out: the package sif2jax is not installed")
        return
    runs = {name: run for name, run in RUNS.items() if run not in (least_squares, minpack)}
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in runs}
    for problem in problems(count):
        for name, run in runs.items():
            calls = 0

            def both(x: np.ndarray, problem: Smooth = problem) -> tuple[float, np.ndarray]:
                nonlocal calls
                calls += 1
                return problem.both(x)

            x, value, success = run(both, problem.start)
            start = problem.both(problem.start)[0]
            verdict = compared(value, problem.lowest(x), start, success)
            found[name].append((verdict, calls))
            if verdict.startswith("false"):
                print(f"{problem.name}: {verdict} of {name}", flush=True)
    size = len(found["lx.LBFGS"])
    full = f"CUTEst: {size} problems; geometric mean of evaluations"
    print_table(full, HEADINGS, [row_of(name, several) for name, several in found.items()])


def row_of(name: str, verdicts: list[tuple[str, int]]) -> list[str]:
    """A row of a table: how many of each verdict, and the geometric mean of evaluations."""
    counts = Counter(verdict for verdict, _ in verdicts)
    mean = np.exp(np.mean([np.log(calls) for _, calls in verdicts]))
    return [name, *(str(counts[key]) for key in HEADINGS[1:-1]), f"{mean:.1f}"]


# --- random problems -----------------------------------------------------------------------------


def ours_among_noise(method: str) -> Callable[[Problem, str], tuple[np.ndarray, bool, int]]:
    def run(p: Problem, how: str) -> tuple[np.ndarray, bool, int]:
        jac = p.gradient if how == "given" else how
        res = lx.minimize(p.fun, p.start.copy(), jac=jac, method=method, maxfun=MAXFUN)
        return res.x, bool(res.success), int(res.nfev)

    return run


def scipys_among_noise(method: str) -> Callable[[Problem, str], tuple[np.ndarray, bool, int]]:
    def run(p: Problem, how: str) -> tuple[np.ndarray, bool, int]:
        kind, start = p.start.dtype, p.start.astype(np.float64)
        res = scipy.optimize.minimize(
            lambda x: float(p.fun(x.astype(kind))), start, method=method,
            jac=(lambda x: p.gradient(x.astype(kind)).astype(float)) if how == "given" else how,
            options={"maxiter": MAXFUN},
        )
        return res.x, bool(res.success), int(res.nfev)

    return run


AMONG_NOISE = {
    "lx.LBFGS": ours_among_noise("lbfgs"),
    "lx.BFGS": ours_among_noise("bfgs"),
    "SciPy L-BFGS-B": scipys_among_noise("L-BFGS-B"),
    "SciPy BFGS": scipys_among_noise("BFGS"),
}


def verdict(p: Problem, how: str, x: np.ndarray, success: bool) -> str:
    height, lowest, blur = p.height(x), p.lowest(x), p.blur(x)
    gap = height - lowest if np.isfinite(height) else np.inf
    fallen = abs(p.height(p.start) - lowest)
    share = 1e-9 if p.start.dtype == np.float64 else 1e-5
    if how != "given":
        share *= 1e3 if p.start.dtype == np.float64 else 1e2
    if success:
        solved = gap <= 1e-4 * abs(lowest) + share * fallen + 10.0 * len(x) * blur
        return "solved" if solved else "false success"
    there = gap <= 1e-8 * abs(lowest) + 1e-14 * fallen + blur
    return "false failure" if there and p.differentiable else "honest failure"


def random_problems(count: int) -> None:
    """Print what becomes of random problems of each kind, and which of our ends are false."""
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for kind in KINDS:
        for number, (p, how) in enumerate(of_kind(kind, count)):
            for name, run in AMONG_NOISE.items():
                x, success, calls = run(p, how)
                entry = verdict(p, how, x, success), calls
                if entry[0].startswith("false") and name.startswith("lx."):
                    print(f"{kind}, number {number}, {how}: {entry[0]} of {name}", flush=True)
                found.setdefault((kind, how, name), []).append(entry)
    groups: dict[str, Callable[[str, str], bool]] = {
        **{kind: lambda k, _, kind=kind: k == kind for kind in KINDS},
        **{f"derivatives: {d}": lambda _, h, d=d: h == d for d in DERIVATIVES},
        "all": lambda _, __: True,
    }
    short = ["false success", "false failure", "honest failure"]
    headings = ["", "problems", *(f"{name}" for name in AMONG_NOISE)]
    rows = []
    for title, belongs in groups.items():
        cells, size = [], 0
        for name in AMONG_NOISE:
            entries = [
                e for (kind, how, who), several in found.items()
                if who == name and belongs(kind, how) for e in several
            ]
            size = len(entries)
            counts = Counter(v for v, _ in entries)
            cells.append(" ".join(f"{counts[key]:4d}" for key in short))
        rows.append([title, str(size), *cells])
    print_table(f"Random problems: {', '.join(short)}", headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nist", type=Path, help="the folder with the .dat files of NIST")
    parser.add_argument("--count", type=int, default=200, help="random problems")
    parser.add_argument("--quick", action="store_true", help="few problems")
    parser.add_argument("--random", type=int, default=0, help="random problems of each kind")
    parser.add_argument("--cutest", type=int, default=0, help="small problems of CUTEst")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if arguments.random or arguments.cutest:
        if arguments.random:
            random_problems(arguments.random)
        if arguments.cutest:
            cutest(arguments.cutest)
        print_machine()
        return
    families: dict[str, list[Case]] = {
        "Moré, Garbow & Hillstrom": [case[1:] for case in PROBLEMS],
        "Random problems in mixed units": list(scaled(arguments.count)),
    }
    if arguments.nist:
        families["NIST, both starts"] = list(nist(arguments.nist))
    for title, cases in families.items():
        cases = cases[:5] if arguments.quick else cases
        rows = [
            row_of(name, [judged(run, *case) for case in cases]) for name, run in RUNS.items()
        ]
        full = f"{title}: {len(cases)} problems; geometric mean of evaluations"
        print_table(full, HEADINGS, rows)
    print_machine()


if __name__ == "__main__":
    main()
