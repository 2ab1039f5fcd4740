"""The methods by name, and error messages for names and objects that are not methods."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from lbfgs_xp import checks
from lbfgs_xp.first_order import NAMES as OPTIMIZERS
from lbfgs_xp.line_search import NAMES as RULES
from lbfgs_xp.line_search import LineSearch
from lbfgs_xp.solvers.bfgs import BFGS
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.newton import Newton
from lbfgs_xp.solvers.newton_cg import NewtonCG
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient
from lbfgs_xp.solvers.self_scaled import SSBFGS, SSBroyden
from lbfgs_xp.solvers.trust_ncg import TrustNCG

METHODS: dict[str, Callable[[], Any]] = {
    "lbfgs": LBFGS,
    "bfgs": BFGS,
    "ssbfgs": SSBFGS,
    "ssbroyden": SSBroyden,
    "newton": Newton,
    "newton-cg": NewtonCG,
    "trust-ncg": TrustNCG,
    "projected_gradient": ProjectedGradient,
    **OPTIMIZERS,
}

# Methods of SciPy that have another name here, or none.
_OF_SCIPY = {
    ("l-bfgs-b", "tnc"): 'use "lbfgs", which takes bounds',
    ("cg",): 'use "lbfgs", which needs about as little memory',
    ("trust-krylov",): 'use "trust-ncg"',
    ("dogleg", "trust-exact"): 'use "newton"',
    ("slsqp", "cobyla", "cobyqa", "trust-constr"): (
        "use lx.augmented_lagrangian for constraints"
    ),
    ("lm", "trf", "dogbox"): "use lx.curve_fit or lx.least_squares for fits",
    ("nelder-mead", "powell"): 'all methods need gradients, if necessary by jac="3-point"',
}


def method_named(method: Any, more: tuple[str, ...] = ()) -> Any:
    """The method object that `method` names, or `method` itself if it is one.

    more : further names to list in the message.
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
    """Whether it has the methods that `lbfgs_xp.solvers.contract.Solver` requires."""
    return all(hasattr(method, name) for name in ("init", "step"))


def _is_optimizer(method: Any) -> bool:
    """Whether it makes solvers for layouts of parameters."""
    return hasattr(method, "solver")


def _hint(method: Any) -> str:
    """What an error adds if the name of a method is nearly right, or if a method of SciPy, a line
    search or a class was passed instead of a method; otherwise nothing."""
    if isinstance(method, str):
        name = method.lower()
        for names, ours in _OF_SCIPY.items():
            if name in names:
                return f"; {ours}"
        if rule := RULES.get(name.replace("-", "_")):
            return _about_line_search(rule)
        near = difflib.get_close_matches(name.replace("-", ""), METHODS, 1, 0.6)
        return f"; did you mean {near[0]!r}?" if near else ""
    kind = method if isinstance(method, type) else type(method)
    if issubclass(kind, LineSearch) and not inspect.isabstract(kind):
        return _about_line_search(kind)
    if kind is method and issubclass(kind, Method):
        return f"; this is the class: pass an object such as {kind.__name__}()"
    return ""


def _about_line_search(rule: type) -> str:
    method = f"lx.LBFGS(line_search=lx.{rule.__name__}())"
    return f"; a line search is a setting of a method: method={method}"
