"""The checks of arguments: what passes, in which form, and what errors say."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import checks
from tests.backends import Backend


def fails(call: Callable[[], Any], message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error and str(caught.value) == message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


NO_NUMBERS = [None, True, np.True_, "1", 1j, np.complex64(1.0), [1.0], np.ones(1), math.nan, object]


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=repr)
def test_what_is_no_number(bad: Any) -> None:
    fails(lambda: checks.number("a", bad), f"a is {bad!r}; wanted a finite number")
    fails(lambda: checks.tolerance("a", bad), f"a is {bad!r}; wanted a number of at least 0")
    fails(lambda: checks.count("a", bad, 1), f"a is {bad!r}; wanted an integer of at least 1")


@pytest.mark.parametrize("good", [2, 2.0, np.int8(2), np.float32(2.0), Fraction(2)], ids=repr)
def test_what_is_a_number(good: Any) -> None:
    for check in (checks.number, checks.tolerance, checks.seconds):
        assert check("a", good) == 2.0 and type(check("a", good)) is float
    assert checks.count("a", good, 2) == 2 and type(checks.count("a", good, 2)) is int


def test_numbers_of_every_library(backend: Backend) -> None:
    number, integer = backend.asarray(2.0), backend.asarray(2, "int64")
    assert checks.number("a", number) == 2.0 and checks.count("a", number, 1) == 2
    assert checks.count("a", integer, 1) == 2
    for bad in (backend.asarray(True, "bool"), backend.asarray([2.0]), backend.asarray([1, 2])):
        assert checks.real(bad) is checks.integer(bad) is None


def test_ranges() -> None:
    def wants(words: str, value: float, **limits: float) -> None:
        fails(lambda: checks.number("a", value, **limits), f"a is {value}; wanted {words}")

    wants("a finite number", math.inf)
    wants("a finite number of at least 0", -1.0, least=0.0)
    wants("a finite number above 0", 0.0, above=0.0)
    wants("a finite number below 0", 0.0, below=0.0)
    wants("a finite number at most 0", 1.0, most=0.0)
    wants("a number of at least 0 and below 1", 1.0, least=0.0, below=1.0)
    wants("a number above 0 and below 0.5", 0.0, above=0.0, below=0.5)
    wants("a number above 0 and at most 1", 0.0, above=0.0, most=1.0)
    wants("a number from 0 to 1", 1.1, least=0.0, most=1.0)
    assert checks.number("a", 0, least=0.0, most=1.0) == 0.0
    assert checks.number("a", 1, least=0.0, most=1.0) == 1.0


def test_counts_and_budgets() -> None:
    assert checks.count("a", 10**400, 1) == 10**400
    fails(lambda: checks.count("a", 2.5, 1), "a is 2.5; wanted an integer of at least 1")
    fails(lambda: checks.count("a", math.inf, 1), "a is inf; wanted an integer of at least 1")
    fails(lambda: checks.count("a", 0, 1), "a is 0; wanted an integer of at least 1")
    assert checks.budget("a", None, 1) is checks.budget("a", math.inf, 1) is None
    assert checks.budget("a", 3.0, 1) == 3
    fails(lambda: checks.budget("a", 0, 1), "a is 0; wanted an integer of at least 1, or None")
    assert checks.tolerance("a", math.inf) == checks.seconds("a", math.inf) == math.inf
    fails(lambda: checks.seconds("a", -1), "a is -1; wanted a number of seconds of at least 0")


def test_flags() -> None:
    assert checks.flag("a", True) is True and checks.flag("a", False) is False
    for bad in (1, None, "yes"):
        message = f"a is {bad!r}; wanted True or False"
        fails(lambda bad=bad: checks.flag("a", bad), message, TypeError)


@pytest.mark.parametrize("five", [5.0, np.float64(5.0), np.int64(5)], ids=repr)
def test_whole_floats_are_counts_everywhere(five: Any) -> None:
    assert repr(lx.LBFGS(memory_size=five)) == repr(lx.LBFGS(memory_size=5))
    assert repr(lx.ProjectedGradient(memory_size=five)) == repr(lx.ProjectedGradient(memory_size=5))
    assert repr(lx.Limits(maxiter=five, maxfun=five)) == repr(lx.Limits(maxiter=5, maxfun=5))
    assert lx.problems.chained_rosenbrock(five).n == 5
