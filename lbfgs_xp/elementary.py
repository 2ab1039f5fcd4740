"""Elementary functions of Python's numbers, and of the numbers of a program that is being compiled.

Schedules and rules compute with them and with operators. So the same lines run in Python, and as a
part of a program in which the step is not known yet. `arrays.scalars` does the same for the numbers
of runs, but schedules stand below the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Number = Any
"""A Python number, or an array () of the standard."""
Condition = Any
"""A Python bool, or a boolean array ()."""


def where(condition: Condition, a: Number, b: Number) -> Number:
    """`a` if the condition holds, else `b`."""
    if isinstance(condition, bool):
        return a if condition else b
    return condition.__array_namespace__().where(condition, a, b)


def either(condition: Condition, first: Callable[[], T], second: Callable[[], T]) -> T:
    """`first()` if the condition holds, else `second()`; a program computes both."""
    if isinstance(condition, bool):
        return first() if condition else second()
    return where(condition, first(), second())


def minimum(a: Number, b: Number) -> Number:
    """The smaller of two numbers."""
    xp = _namespace(a, b)
    return min(a, b) if xp is None else xp.minimum(a, b)


def maximum(a: Number, b: Number) -> Number:
    """The larger of two numbers."""
    xp = _namespace(a, b)
    return max(a, b) if xp is None else xp.maximum(a, b)


def sqrt(a: Number) -> Number:
    """The square root."""
    xp = _namespace(a)
    return math.sqrt(a) if xp is None else xp.sqrt(a)


def cos(a: Number) -> Number:
    """The cosine."""
    xp = _namespace(a)
    return math.cos(a) if xp is None else xp.cos(a)


def power(base: float, exponent: Number) -> Number:
    """base^exponent for a Python number `base` of at least 0; infinite if it overflows."""
    xp = _namespace(exponent)
    if xp is not None:
        # In float32 the base would be rounded, which a large exponent multiplies.
        return xp.exp(exponent * _log(base))
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def one_minus_power(base: float, exponent: Number) -> Number:
    """1 - base^exponent for a Python number `base` from 0 to 1 and an exponent above 0."""
    xp = _namespace(exponent)
    if xp is not None:
        # Without the cancellation, which in float32 leaves few digits.
        return -xp.expm1(exponent * _log(base))
    return 1.0 - base**exponent


def counted(step: Number) -> Number:
    """A traced step in the default type of integers, at most 1 less than the largest of them, so
    that there is a next one."""
    xp = step.__array_namespace__()
    kind = xp.__array_namespace_info__().default_dtypes()["integral"]
    last = xp.iinfo(kind).max - 1
    if xp.iinfo(step.dtype).max > last:
        step = xp.minimum(step, xp.asarray(last, dtype=step.dtype))
    return xp.astype(step, kind)


def following(step: Number) -> Number:
    """The step after this one; a program stays at the last one that its type holds."""
    if isinstance(step, int):
        return step + 1
    return step + (step < step.__array_namespace__().iinfo(step.dtype).max)


def largest(step: Number) -> int:
    """A step, or how large it can be in a program."""
    return step if isinstance(step, int) else step.__array_namespace__().iinfo(step.dtype).max


def _log(base: float) -> float:
    return math.log(base) if base > 0.0 else -math.inf


def _namespace(*numbers: Number) -> Any:
    """The namespace of the arrays among these; None if all are Python numbers."""
    for number in numbers:
        if not isinstance(number, (int, float)):
            return number.__array_namespace__()
    return None
