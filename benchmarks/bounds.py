"""Bounds and the L1 penalty: L-BFGS and BFGS beside SciPy, jaxopt and scikit-learn.

Four tables: the evaluations on Rosenbrock's valley and random quadratics within bounds; the
processor time per iteration, without the function, for many variables a third of which are at their
bounds; the time for many small problems at once, beside a loop over SciPy's; and the time for
logistic regression with an L1 penalty, for one weight and for a path of them, to a duality gap.
jaxopt and scikit-learn are optional.

With --cutest COUNT, instead, so many problems of CUTEst with at most 50 variables (the package
sif2jax). A problem is solved if the projected gradient is at most 1e-6, or if the value is within
1e-8 of the lowest one found by any of the methods. A success is false if it is not solved and
SciPy finds a lower value nearby, by more than 1e-8 of it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from _common import print_machine, print_table
from _cutest import Bounded, bounded, is_installed
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


def by_scipy(
    fun: Any, x0: np.ndarray, lower: np.ndarray, upper: np.ndarray, maxiter: int,
    maxfun: int = 10**6, gtol: float = 0.5 * GTOL,
) -> Any:
    options = {"maxcor": 10, "ftol": 0.0, "gtol": gtol, "maxiter": maxiter, "maxfun": maxfun}
    return optimize.minimize(
        fun, np.clip(x0, lower, upper), jac=True, method="L-BFGS-B", options=options,
        bounds=optimize.Bounds(lower, upper),
    )


def by_ours(method: str) -> Callable[..., Any]:
    def run(
        fun: Any, x0: np.ndarray, lower: np.ndarray, upper: np.ndarray, maxiter: int,
        maxfun: int | None = None,
    ) -> Any:
        return lx.minimize(
            fun, x0, jac=True, method=method, bounds=(lower, upper), gtol=GTOL, maxiter=maxiter,
            maxfun=maxfun,
        )

    return run


def by_jaxopt(fun: Any, x0: np.ndarray, lower: np.ndarray, upper: np.ndarray, maxiter: int) -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    like = jax.ShapeDtypeStruct((), float), jax.ShapeDtypeStruct(x0.shape, float)

    def counted(x: Any) -> Any:
        return jax.pure_callback(lambda x: fun(np.asarray(x)), like, x)

    solver = optional("jaxopt").LBFGSB(
        fun=counted, value_and_grad=True, maxiter=maxiter, tol=0.5 * GTOL, history_size=10,
        implicit_diff=False,
    )
    start, *box = map(jax.numpy.asarray, (np.clip(x0, lower, upper), lower, upper))
    return jax.block_until_ready(solver.run(start, bounds=tuple(box)))


METHODS = {"L-BFGS": by_ours("lbfgs"), "BFGS": by_ours("bfgs"), "SciPy": by_scipy}


def optional(name: str) -> Any:
    """A module that may be missing; None then, with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed; without its figures")
        return None


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
    methods = dict(METHODS)
    if optional("jaxopt"):
        methods["jaxopt"] = by_jaxopt
    for name, (fun, x0, lower, upper) in cases.items():
        row = [name]
        for method, solve in methods.items():
            counted = Counted(fun, lower, upper)
            solve(counted, x0, lower, upper, 1000 if method == "jaxopt" else 10_000)
            assert not counted.outside or method == "jaxopt"
            outside = f" ({counted.outside} outside)" if counted.outside else ""
            row.append(("-" if counted.solved is None else str(counted.solved)) + outside)
        rows.append(row)
    print_table(f"Evaluations until |projected gradient| <= {GTOL:g}", ["", *methods], rows)


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


class Logistic:
    """The mean logistic loss of m points with n features, a tenth of which matter, for one vector
    of coefficients or for rows of them."""

    def __init__(self, m: int, n: int):
        rng = np.random.default_rng(0)
        mixing = np.eye(n) + 0.3 * rng.normal(size=(n, n)) / np.sqrt(n)
        self.features = rng.normal(size=(m, n)) @ mixing
        truth = np.where(rng.uniform(size=n) < 0.1, rng.normal(size=n), 0.0)
        chance = 1.0 / (1.0 + np.exp(-self.features @ truth))
        self.labels = np.where(rng.uniform(size=m) < chance, 1.0, -1.0)
        self.points = self.features * self.labels[:, None]
        self.transposed = np.ascontiguousarray(self.points.T)

    def __call__(self, x: np.ndarray) -> Any:
        margins = x @ self.transposed
        small = np.exp(-np.abs(margins))
        value = np.mean(np.log1p(small) - np.minimum(margins, 0.0), axis=-1)
        shares = np.where(margins >= 0.0, small, 1.0) / (1.0 + small)
        return value, shares @ self.points * (-1.0 / len(self.points))

    def gap(self, x: np.ndarray, weight: float) -> float:
        """The duality gap of the loss with an L1 penalty."""
        margins = self.points @ x
        shares = 1.0 / (1.0 + np.exp(margins))
        slope = np.max(np.abs(self.transposed @ shares)) / len(self.points)
        shares = shares * min(1.0, weight / slope)
        entropy = np.sum(shares * np.log(shares) + (1.0 - shares) * np.log1p(-shares))
        return float(self(x)[0] + weight * np.sum(np.abs(x)) + entropy / len(self.points))

    def by_sklearn(self, solver: str, weight: float, tol: float) -> np.ndarray:
        strength = 1.0 / (weight * len(self.points))
        how: dict[str, Any] = {"solver": solver, "C": strength, "tol": tol, "max_iter": 10_000}
        model = optional("sklearn.linear_model").LogisticRegression(
            l1_ratio=1.0, fit_intercept=False, **how
        )
        return model.fit(self.features, self.labels).coef_[0]

    def by_ours(self, weight: float, tol: float) -> np.ndarray:
        n = self.points.shape[1]
        return lx.minimize(self, np.zeros(n), jac=True, l1=weight, gtol=tol).x


def until_gap(
    problem: Logistic, weight: float, solve: Callable[[float, float], np.ndarray], most: float
) -> str:
    """The processor time with the largest tolerance that leads to a small duality gap."""
    for tol in tolerances():
        begin = time.process_time()
        x = solve(weight, tol)
        spent = time.process_time() - begin
        if problem.gap(x, weight) <= most:
            return f"{spent:.2f}"
    return "-"


def tolerances() -> Iterator[float]:
    return (10.0**-k for k in range(4, 13))


def penalised(m: int, n: int) -> None:
    problem, most, sklearn = Logistic(m, n), 1e-8, optional("sklearn.linear_model")
    largest = float(np.max(np.abs(problem(np.zeros(n))[1])))
    solvers: dict[str, Callable[[float, float], np.ndarray]] = {"ours": problem.by_ours}
    if sklearn:
        for name in ("liblinear", "saga"):
            solvers[name] = lambda weight, tol, name=name: problem.by_sklearn(name, weight, tol)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for share in (0.1, 0.01):
            weight = share * largest
            rows.append([f"weight {share:g} of the largest"] + [
                until_gap(problem, weight, solve, most) for solve in solvers.values()
            ])
        weights = largest * np.geomspace(1.0, 1e-2, 100)
        row = ["a path of 100 weights, from 1 to 0.01"]
        for tol in tolerances():
            begin = time.process_time()
            path = lx.minimize(
                problem, np.zeros((100, n)), jac=True, l1=weights, batched=True, gtol=tol
            )
            seconds = time.process_time() - begin
            if max(map(problem.gap, path.x, weights)) <= most:
                break
        row.append(f"{seconds:.1f}")
        for name in list(solvers)[1:]:
            some = weights[4::10]
            each = [until_gap(problem, w, solvers[name], most) for w in some]
            row.append(
                "-" if "-" in each else f"{10.0 * sum(map(float, each)):.0f} (10 of them x 10)"
            )
        rows.append(row)
    print_table(
        f"Logistic regression with an L1 penalty, {m} x {n}: seconds to a duality gap of {most:g}",
        ["", *solvers], rows,
    )


class End(NamedTuple):
    """The end of a run on a problem of CUTEst."""

    x: np.ndarray
    value: float
    success: bool
    calls: int
    outside: int


def run_on(problem: Bounded, solve: Callable[..., Any]) -> End:
    counted = Counted(problem.both, problem.lower, problem.upper)
    res = solve(counted, problem.start, problem.lower, problem.upper, 15_000, 15_000)
    return End(res.x, float(res.fun), bool(res.success), counted.calls, counted.outside)


def cutest(count: int) -> None:
    """Print what becomes of so many small problems of CUTEst."""
    if not is_installed():
        print("CUTEst is left out: the package sif2jax is not installed")
        return
    methods = METHODS | {"SciPy": functools.partial(by_scipy, gtol=GTOL)}
    solved: dict[str, list[bool]] = {name: [] for name in methods}
    ends: dict[str, list[End]] = {name: [] for name in methods}
    false = dict.fromkeys(methods, 0)
    for problem in bounded(count):
        found = {name: run_on(problem, solve) for name, solve in methods.items()}
        best = min(end.value for end in found.values())
        for name, end in found.items():
            gradient = problem.both(end.x)[1]
            projected = np.clip(end.x - gradient, problem.lower, problem.upper) - end.x
            near = end.value - best <= 1e-8 * abs(best)
            there = bool(near or np.max(np.abs(projected)) <= GTOL)
            solved[name].append(there)
            ends[name].append(end)
            if there and end.success:
                continue
            gap = end.value - problem.lowest(end.x)
            is_false = end.success and not gap <= 1e-8 * abs(end.value)
            false[name] += is_false
            what = "false success" if is_false else "solved, no success" if there else "not solved"
            print(f"{problem.name}: {what} of {name}", flush=True)
    rows = []
    for name in methods:
        logs = [
            np.log(mine.calls / theirs.calls)
            for mine, theirs, *both in zip(
                ends[name], ends["SciPy"], solved[name], solved["SciPy"], strict=True
            )
            if all(both)
        ]
        rows.append([
            name, str(sum(solved[name])), str(false[name]),
            str(sum(end.outside for end in ends[name])), f"{np.exp(np.mean(logs)):.3f}",
        ])
    headings = ["", "solved", "false success", "outside", "evaluations, geometric mean over SciPy"]
    print_table(f"CUTEst: {len(ends['SciPy'])} problems within bounds", headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller problems")
    parser.add_argument("--cutest", type=int, default=0, help="small problems of CUTEst")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.cutest:
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        cutest(arguments.cutest)
        print_machine()
        return
    evaluations()
    time_per_iteration([10_000] if quick else [10_000, 1_000_000])
    many(1000 if quick else 10_000)
    penalised(*((2000, 100) if quick else (20_000, 500)))
    print_machine()


if __name__ == "__main__":
    main()
