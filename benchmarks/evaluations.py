"""Evaluations of value and gradient until the largest component of the gradient is small.

Each reference problem on NumPy in float64, with L-BFGS with each line search, and with the L-BFGS
of SciPy and PyTorch, all with a memory of 10. A dash means that a run stopped before that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import print_machine, print_table

import lbfgs_xp as lx
from lbfgs_xp import problems

PROBLEMS: dict[str, problems.Problem] = {
    "rosenbrock, n = 2": problems.rosenbrock(2),
    "rosenbrock, n = 100": problems.rosenbrock(100),
    "chained rosenbrock, n = 100": problems.chained_rosenbrock(100),
    "beale": problems.beale(),
    "himmelblau": problems.himmelblau(),
    "rastrigin, n = 10": problems.rastrigin(10),
    "quadratic, n = 100": problems.quadratic(100),
    "logistic regression, n = 10": problems.logistic_regression(),
    "exponential decay": problems.exponential_decay(),
    "network (MLP), n = 49": problems.mlp_regression(),
}
RULES: dict[str, lx.LineSearch] = {
    "MoreThuente": lx.MoreThuente(),
    "HagerZhang": lx.HagerZhang(),
    "StrongWolfe": lx.StrongWolfe(),
    "Bisection": lx.Bisection(),
    "Armijo": lx.Armijo(),
    "Fixed": lx.Fixed(),
}
MAXFUN = 20_000


def ours(rule: lx.LineSearch) -> Callable[[problems.Problem, float], tuple[np.ndarray, int]]:
    def run(problem: problems.Problem, gtol: float) -> tuple[np.ndarray, int]:
        res = lx.minimize(
            problem.value_and_gradient, problem.x0, jac=True, gtol=gtol, maxfun=MAXFUN,
            method=lx.LBFGS(line_search=rule),
        )
        return res.x, res.nfev

    return run


def scipy_lbfgsb(problem: problems.Problem, gtol: float) -> tuple[np.ndarray, int]:
    from scipy.optimize import minimize

    options = {"maxcor": 10, "gtol": gtol, "ftol": 0.0, "maxfun": MAXFUN, "maxiter": MAXFUN}
    res = minimize(
        problem.value_and_gradient, problem.x0, jac=True, method="L-BFGS-B", options=options
    )
    return res.x, res.nfev


def torch_lbfgs(problem: problems.Problem, gtol: float) -> tuple[np.ndarray, int]:
    import torch

    x = torch.nn.Parameter(torch.tensor(problem.x0))
    optimizer = torch.optim.LBFGS(
        [x], max_iter=MAXFUN, max_eval=MAXFUN, tolerance_grad=gtol, tolerance_change=0.0,
        history_size=10, line_search_fn="strong_wolfe",
    )
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        value, gradient = problem.value_and_gradient(x.detach().numpy())
        x.grad = torch.asarray(gradient)
        return torch.asarray(value)

    optimizer.step(closure)
    return x.detach().numpy(), calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gtol", type=float, default=1e-6, help="on the largest component")
    gtol = parser.parse_args().gtol
    contenders = {name: ours(rule) for name, rule in RULES.items()}
    for name, run in {"SciPy L-BFGS-B": scipy_lbfgsb, "torch LBFGS": torch_lbfgs}.items():
        try:
            run(problems.beale(), gtol)
        except ImportError:
            print(f"{name}: not installed, skipped")
            continue
        contenders[name] = run
    rows = []
    for title, problem in PROBLEMS.items():
        row = [title]
        for run in contenders.values():
            x, calls = run(problem, gtol)
            reached = float(np.max(np.abs(problem.gradient(x)))) <= gtol
            row.append(str(calls) if reached else "-")
        rows.append(row)
    print_table(
        f"Evaluations until the largest component of the gradient is at most {gtol:g}",
        ["problem", *contenders], rows,
    )
    print_machine()


if __name__ == "__main__":
    main()
