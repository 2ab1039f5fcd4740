"""Small unconstrained problems of CUTEst, as far as the package sif2jax is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize


class Smooth(NamedTuple):
    """A function with its gradient and Hessian, in float64, and a start."""

    name: str
    both: Callable[[np.ndarray], tuple[float, np.ndarray]]
    hessian: Callable[[np.ndarray], np.ndarray]
    start: np.ndarray

    def lowest(self, x: np.ndarray) -> float:
        """The lowest value near x, by Newton's method in a trust region."""
        value = self.both(x)[0]
        if not np.isfinite(value):
            return np.inf
        try:
            res = scipy.optimize.minimize(
                self.both, x, jac=True, hess=self.hessian, method="trust-exact",
                options={"gtol": 1e-12, "maxiter": 500},
            )
        except (ValueError, np.linalg.LinAlgError):
            return value
        return min(value, float(res.fun))


def is_installed() -> bool:
    try:
        import sif2jax  # noqa: F401
    except ImportError:
        return False
    return True


def problems(count: int, largest: int = 10) -> Iterator[Smooth]:
    """So many problems with at most `largest` variables, in the order of the package."""
    import jax
    import sif2jax

    jax.config.update("jax_enable_x64", True)
    for problem in sif2jax.unconstrained_minimisation_problems:
        start = np.asarray(problem.y0, dtype=np.float64)
        if count == 0 or start.ndim != 1 or start.size > largest:
            continue
        count -= 1

        def fun(x: Any, problem: Any = problem) -> Any:
            return problem.objective(x, problem.args)

        both, hessian = jax.jit(jax.value_and_grad(fun)), jax.jit(jax.hessian(fun))

        def on_host(x: np.ndarray, both: Any = both) -> tuple[float, np.ndarray]:
            value, gradient = both(x)
            return float(value), np.array(gradient)

        yield Smooth(problem.name, on_host, lambda x, hessian=hessian: np.array(hessian(x)), start)
