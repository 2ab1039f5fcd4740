"""Solutions as differentiable functions of the numbers that define their problem.

At a solution x the gradient g(x, a) of the free variables is 0, whatever the parameters a. So, by
the implicit function theorem (Blondel et al. 2022, Efficient and modular implicit differentiation,
section 2),

    H dx = -(dg/da) da,

with the Hessian H of the free variables. Variables at a bound stay there. H is never formed: its
products with vectors are derivatives of the gradient, and the system is solved by conjugate
gradients, with the inverse Hessian of the run as preconditioner.

How the two libraries that differentiate call this is in `arrays/jax_implicit.py` and
`arrays/torch_implicit.py`.
"""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, class_of, is_array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten
from lbfgs_xp.result import Result
from lbfgs_xp.run import conjugate_gradients
from lbfgs_xp.run.loop import Run

SINGULAR = (
    "the Hessian at the solution is singular or not positive definite, so the solution has no "
    "derivative: conjugate gradients met a curvature that is not above 0, or did not converge; "
    "wanted a function with a single minimum here, such as one with a small term added in all "
    "variables"
)
FAILED = (
    "the run did not succeed, so the derivative of its x, which holds at a minimum, is not to be "
    "trusted"
)


class Point(NamedTuple):
    """A solution, as arrays.

    x : the vector (..., n).
    free : a mask of the variables that are not held (..., n); None for all.
    learned : what the preconditioner consists of.
    success : whether the run succeeded, (...).
    """

    x: Array
    free: Any
    learned: Any
    success: Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """The problem whose solution is differentiated.

    evaluation : (args, x) -> (value, gradient, aux), a function that can be differentiated; see
        `lbfgs_xp.run.objective.Evaluation`.
    space : of the vectors.
    precondition : (space, learned, v) -> M v, a global function.
    compiled : whether JAX may compile the evaluation.
    """

    # See `Backend.jit`.
    wrapped_functions = ("evaluation",)

    evaluation: Any
    space: Space
    precondition: Callable
    compiled: bool

    def free_part(self, point: Point, vector: Array) -> Array:
        """The vector, 0 for the variables that are held."""
        if point.free is None:
            return vector
        xp = self.space.xp
        return xp.where(point.free, vector, xp.zeros_like(vector))

    def completed(self, product: Callable, point: Point) -> Callable:
        """v -> H v, from a function with these products for the free variables; for the variables
        that are held, the identity."""
        if point.free is None:
            return product
        xp = self.space.xp

        def whole(v: Array) -> Array:
            return xp.where(point.free, product(self.free_part(point, v)), v)

        return whole

    def solve(self, product: Callable, point: Point, b: Array) -> tuple[Array, Array]:
        """The solution of H x = b, and where it was found, (...)."""

        def precondition(v: Array) -> Array:
            inner = self.precondition(self.space, point.learned, self.free_part(point, v))
            if point.free is None:
                return inner
            return self.space.xp.where(point.free, inner, v)

        return conjugate_gradients.solve(self.space, product, precondition, b)

    def is_regular(self, product: Callable, point: Point) -> Array:
        """Where H is positive definite, (...).

        A right-hand side with a part along every eigenvector shows the small eigenvalues that the
        one of a derivative may not meet.
        """
        xp, n = self.space.xp, point.x.shape[-1]
        # Numbers without any pattern: the fractional parts of multiples of the golden ratio.
        numbers = np.modf(np.arange(1, n + 1) * 0.6180339887498949)[0] - 0.5
        probe = self.space.backend.from_host(numbers)
        _, probe = self.space.backend.alike(point.x, xp.broadcast_to(probe, point.x.shape))
        return self.solve(product, point, self.free_part(point, probe))[1]

    @staticmethod
    def check(regular: np.ndarray) -> None:
        """Raise an error if the only problem has no derivative; warn of rows that have none."""
        if not regular.all():
            if regular.ndim == 0:
                raise np.linalg.LinAlgError(SINGULAR)
            rows = ", ".join(map(str, np.flatnonzero(~regular)[:5]))
            warnings.warn(f"rows {rows}: {SINGULAR}", RuntimeWarning, stacklevel=2)

    @staticmethod
    def warn(regular: np.ndarray, success: np.ndarray) -> None:
        """Warn of problems without a derivative, and of runs that have failed."""
        for good, message in ((regular, SINGULAR), (success, FAILED)):
            if not good.all():
                warnings.warn(f"lbfgs_xp: {message}", RuntimeWarning, stacklevel=2)


class Found(NamedTuple):
    """The end of a run, ready to be differentiated.

    result : what the user gets, without derivatives.
    problem, point : what was solved, and its solution.
    leading : arguments of the evaluation before args.
    completed : (result, x, value, gradient, aux) -> the result with these, which can be
        differentiated.
    """

    result: Any
    problem: Problem
    point: Point
    leading: tuple
    completed: Callable


def is_wanted(asked: bool, x0: Any) -> bool:
    """Whether a result must be differentiable: because it was asked for, which not every library
    can do, or because the call is being differentiated."""
    library = _library_of(x0)
    if asked and (library is None or not library.differentiates):
        raise ValueError(
            "differentiable is True, and the library of x0 has no automatic differentiation; "
            "wanted x0 as a PyTorch tensor or a JAX array"
        )
    return library is not None and (asked or library.is_transformed())


def solved(
    find: Callable, functions: dict[str, Any], x0: Any, args: Any, *, like: Any = None,
    carried: tuple = (), **constants: Any,
) -> Any:
    """The result of a run as a differentiable function of args, and of what the functions hold.

    find : (functions, x0, args, *carried) -> Found.
    functions : the functions of the user, by their names.
    like : an array of the library, if x0 may hold others.
    carried : what shapes the way to the solution, like x0.
    constants : arguments with respect to which there are no derivatives.
    """
    library = _library_of(x0 if like is None else like)
    args = args if isinstance(args, tuple) else (args,)
    for name, value in constants.items():
        if any(map(library.may_vary, flatten(value)[0])):
            raise TypeError(
                f"{name} is traced or requires a gradient; wanted constants there: a compiled "
                "function must know it, and a solution is differentiated with respect to args"
            )
    return library.solution(find, functions, x0, args, carried)


def _library_of(tree: Any) -> Any:
    """The class of the backend of the first array in nested arrays; None without arrays."""
    leaves = [tree] if is_array(tree) else flatten(tree)[0]
    return next((class_of(leaf) for leaf in leaves if is_array(leaf)), None)


def found_of(run: Run, result: Result) -> Found:
    """The end of a run of `minimize`, to be differentiated."""
    objective, whole, (space, inner, best) = run.objective, run.solver, run.at_end()
    # With a penalty, on the side of 0 where each variable is; those at 0 stay there.
    solver, _ = whole.around(space, best.x, best.gradient)
    if objective.differs:
        raise ValueError(
            f"jac is {'2' if objective.forward else '3'}-point, and finite differences cannot be "
            "differentiated; wanted None, True or a function for a differentiable solution"
        )
    if solver.projects and solver.box is None and getattr(solver, "projection", True) is not None:
        raise ValueError(
            f"{run.method} has a projection, whose solutions are not differentiated; wanted "
            "bounds, or no constraint"
        )
    free = None
    if solver.box is not None:
        lower, upper = solver.box.sides(space, best.x)
        for side, held in ((lower, operator.le), (upper, operator.ge)):
            if side is not None:
                inside = ~held(best.x, side)
                free = inside if free is None else free & inside
    hess_inv = solver.inverse_hessian(space, inner)
    precondition, learned = (_plain, ()) if hess_inv is None else hess_inv.as_function()
    evaluation = objective.evaluation()
    # It may outlive the program whose arrays x0 holds.
    evaluation = dataclasses.replace(evaluation, layout=evaluation.layout.without_values())
    problem = Problem(evaluation, space, precondition, objective.pure() is not None)

    def completed(result: Result, x: Array, value: Any, gradient: Array, aux: Any) -> Result:
        layout = evaluation.layout.for_traced()
        return dataclasses.replace(
            result, x=layout.to_tree(x), fun=whole.penalised(space, x, value),
            jac=layout.gradient_tree(gradient), aux=aux,
        )

    warn_of_failure(space, result.success)
    rows = objective.args[:1] if objective.passes_rows else ()
    return Found(result, problem, Point(best.x, free, learned, result.success), rows, completed)


def warn_of_failure(space: Space, success: Any) -> None:
    """Warn if a run has failed, as far as that is known before it is compiled."""
    if space.backend.is_traced(success):
        return
    if not np.all(space.backend.to_host(success) if space.batched else success):
        warnings.warn(FAILED, RuntimeWarning, stacklevel=3)


def _plain(space: Space, learned: Any, v: Array) -> Array:
    """The preconditioner of a run that has learned nothing."""
    return v
