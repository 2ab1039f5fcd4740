"""What type checkers know of the keywords: the same names and types as in the functions themselves.

`tests/typing/usage.py` shows what type checkers say of calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

import lbfgs_xp as lx
from lbfgs_xp import typing
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.method import Method

# The classes that lbfgs_xp.typing imports for type checkers only, and its types of such classes.
NAMES = {
    **vars(typing), "Checkpoint": lx.Checkpoint, "Engine": lx.distributed.Engine,
    "FitRecord": lx.FitRecord, "OwnMethod": Method, "Phase": lx.Phase, "Record": lx.Record,
    "Solver": Solver, "State": lx.State,
}
NAMES["Method"] = eval(typing.Method, NAMES)
NAMES["PhasesOf"] = eval(typing.PhasesOf, NAMES)
FUNCTIONS = [
    (lx.minimize, typing.MinimizeSettings),
    (lx.curve_fit, typing.CurveFitSettings),
    (lx.least_squares, typing.LeastSquaresSettings),
]


@pytest.mark.parametrize(("function", "settings"), FUNCTIONS, ids=lambda each: each.__name__)
def test_keywords_are_those_of_the_function(function: Callable[..., Any], settings: type) -> None:
    own = inspect.unwrap(function)
    known = get_type_hints(settings, localns=NAMES)
    types = get_type_hints(own, localns=NAMES)
    keywords = {
        name for name, parameter in inspect.signature(own).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    where = f"{settings.__name__} of lbfgs_xp/typing.py and {own.__name__}"
    assert {*known, "batched"} == keywords, where
    for name, type_ in known.items():
        assert type_ == types[name], f"{name} in {where}"
