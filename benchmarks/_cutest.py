"""Small problems of CUTEst, free or within bounds, as far as the package sif2jax is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

Both = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Smooth(NamedTuple):
    """A function with its gradient and Hessian, in float64, and a start."""

    name: str
    both: Both
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


class Bounded(NamedTuple):
    """A function with its gradient, in float64, within bounds, and a start."""

    name: str
    both: Both
    lower: np.ndarray
    upper: np.ndarray
    start: np.ndarray

    def lowest(self, x: np.ndarray) -> float:
        """The lowest value near x, by three methods of SciPy."""
        value = self.both(x)[0]
        if not np.isfinite(value):
            return np.inf
        found = [value]
        for method in ("L-BFGS-B", "TNC", "SLSQP"):
            options = {"ftol": 0.0} | ({} if method == "SLSQP" else {"gtol": 0.0})
            res = scipy.optimize.minimize(
                self.both, x, jac=True, method=method, options=options,
                bounds=scipy.optimize.Bounds(self.lower, self.upper),
            )
            inside = np.all(res.x >= self.lower) and np.all(res.x <= self.upper)
            found.append(float(res.fun) if inside else value)
        return float(np.nanmin(found))


def is_installed() -> bool:
    try:
        import sif2jax  # noqa: F401
    except ImportError:
        return False
    return True


def problems(count: int, largest: int = 10) -> Iterator[Smooth]:
    """So many problems with at most `largest` variables, in the order of the package."""
    import jax

    for problem, start in _some("unconstrained_minimisation_problems", count, largest):
        hessian = jax.jit(jax.hessian(_objective(problem)))
        yield Smooth(
            problem.name, _on_host(problem), lambda x, hessian=hessian: np.array(hessian(x)), start
        )


def bounded(count: int, largest: int = 50) -> Iterator[Bounded]:
    """So many problems within bounds, with at most `largest` variables."""
    for problem, start in _some("bounded_minimisation_problems", count, largest):
        lower, upper = (np.array(side, dtype=np.float64) for side in problem.bounds)
        yield Bounded(problem.name, _on_host(problem), lower, upper, start)


def _some(kind: str, count: int, largest: int) -> Iterator[tuple[Any, np.ndarray]]:
    import jax
    import sif2jax

    jax.config.update("jax_enable_x64", True)
    for problem in getattr(sif2jax, kind):
        start = np.array(problem.y0, dtype=np.float64)
        if count == 0 or start.ndim != 1 or start.size > largest:
            continue
        count -= 1
        yield problem, start


def _objective(problem: Any) -> Callable[[Any], Any]:
    return lambda x: problem.objective(x, problem.args)


def _on_host(problem: Any) -> Both:
    import jax

    both = jax.jit(jax.value_and_grad(_objective(problem)))

    def on_host(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = both(x)
        return float(value), np.array(gradient)

    return on_host
