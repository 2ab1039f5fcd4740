"""The current device, on which some libraries make new arrays and run every operation."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from lbfgs_xp.arrays.backend import device_context, is_array
from lbfgs_xp.arrays.tree import flatten

P = ParamSpec("P")
R = TypeVar("R")


def on_device_of(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it runs with the device of one of its arguments current.

    argument : the name of an array, or of nested parameters, whose first array decides.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        place = list(inspect.signature(function).parameters).index(argument)

        @functools.wraps(function)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            given = args[place] if len(args) > place else keywords.get(argument)
            if type(given) is np.ndarray:
                return function(*args, **keywords)
            with _context(given):
                return function(*args, **keywords)

        return call

    return decorate


def _context(tree: Any) -> contextlib.AbstractContextManager[Any]:
    for leaf in [tree] if is_array(tree) else flatten(tree)[0]:
        if is_array(leaf):
            return device_context(leaf)
    return contextlib.nullcontext()
