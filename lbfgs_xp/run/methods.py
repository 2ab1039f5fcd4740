"""The methods by name, and what an error says of a name or object that is not one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from lbfgs_xp import checks, first_order, line_search
from lbfgs_xp.solvers.bfgs import BFGS
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.newton import Newton
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient

METHODS: dict[str, Callable[[], Any]] = {
    "lbfgs": LBFGS,
    "bfgs": BFGS,
    "newton": Newton,
    "projected_gradient": ProjectedGradient,
    **first_order.NAMES,
}

# Methods of SciPy that have other names here, or none.
_OF_SCIPY = {
    ("l-bfgs-b", "tnc"): 'with bounds take "projected_gradient", without them "lbfgs"',
    ("cg",): '"lbfgs" needs about as little memory',
    ("newton-cg", "dogleg", "trust-ncg", "trust-exact", "trust-krylov"): 'take "newton"',
    ("slsqp", "cobyla", "cobyqa", "trust-constr"): (
        "for constraints there is lx.augmented_lagrangian"
    ),
    ("lm", "trf", "dogbox"): "for fits there are lx.curve_fit and lx.least_squares",
    ("nelder-mead", "powell"): 'all methods need gradients, of jac="3-point" if need be',
}


def method_named(method: Any, more: tuple[str, ...] = ()) -> Any:
    """The method object that `method` names, or `method` itself if it is one.

    more : further names, for the message.
    """
    if isinstance(method, str):
        if method not in METHODS:
            names = ", ".join(map(repr, [*METHODS, *more]))
            raise ValueError(
                f"method is {method!r}; wanted one of {names}, or an optimizer or solver object"
                + _hint(method)
            )
        return METHODS[method]()
    if isinstance(method, type) or not (_is_optimizer(method) or is_solver(method)):
        raise TypeError(
            f"method is {checks.shown(method)}; wanted a name, an optimizer such as lx.Adam() or "
            f"a solver such as lx.LBFGS(){_hint(method)}"
        )
    return method


def is_solver(method: Any) -> bool:
    """Whether it has what `lbfgs_xp.solvers.contract.Solver` asks for."""
    return all(hasattr(method, name) for name in ("init", "step"))


def _is_optimizer(method: Any) -> bool:
    """Whether it makes a solver for a layout of parameters."""
    return hasattr(method, "solver")


def _hint(method: Any) -> str:
    """What an error adds where the name of a method is nearly right, or where a method of SciPy, a
    line search or a class was passed for a method; else nothing."""
    if isinstance(method, str):
        name = method.lower()
        for names, ours in _OF_SCIPY.items():
            if name in names:
                return f"; {ours}"
        if rule := line_search.NAMES.get(name.replace("-", "_")):
            return _about_line_search(rule)
        near = difflib.get_close_matches(name.replace("-", ""), METHODS, 1, 0.6)
        return f"; did you mean {near[0]!r}?" if near else ""
    kind = method if isinstance(method, type) else type(method)
    if issubclass(kind, line_search.LineSearch) and not inspect.isabstract(kind):
        return _about_line_search(kind)
    if kind is method and issubclass(kind, Method):
        return f"; this is the class, and an object is {kind.__name__}()"
    return ""


def _about_line_search(rule: type) -> str:
    method = f"lx.LBFGS(line_search=lx.{rule.__name__}())"
    return f"; a line search is a setting of a method: method={method}"
