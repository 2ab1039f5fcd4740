"""One small set of functions for Python floats and for arrays of any library.

A rule written with these functions works for one problem, whose scalars are Python floats, and for
a batch, whose scalars are arrays of shape ``(B,)``. Both perform the same IEEE operations in the
same order, so they give the same bits.

>>> fn = of(2.0)
>>> fn.where(True, 1.0, 2.0), fn.divide(1.0, 0.0)
(1.0, inf)
>>> import numpy as np
>>> fn = of(np.ones(3))
>>> fn.where(np.asarray([True, False, True]), 1.0, np.zeros(3))
array([1., 0., 1.])
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from array_api_compat import is_numpy_namespace

from lbfgs_xp.arrays.backend import Backend, class_of, kernels_of, namespace_of

__all__ = ["FLOATS", "Mask", "Scalar", "Scalars", "of"]

Scalar = Any
"""A Python float, or an array of shape ``(B,)``."""
Mask = Any
"""A Python bool, or a boolean array of shape ``(B,)``. Negate with ``logical_not``, not ``~``."""
T = TypeVar("T")

named = tuple.__new__
"""`named(T, (a, b))` is `T(a, b)` for a named tuple T in half the time, which matters for small
problems."""


def picked(kind: Any, state: Any) -> Any:
    """The attributes of a state that are fields of a named tuple, as that tuple."""
    return named(kind, [getattr(state, name) for name in kind._fields])


def map_tuple(function: Callable, tree: Any, *others: Any) -> Any:
    """`function` applied to the entries of (nested) named tuples with the same structure."""
    if isinstance(tree, tuple):
        columns = zip(tree, *others, strict=True)
        return named(type(tree), [map_tuple(function, *each) for each in columns])
    return function(tree, *others)


class _Fused(threading.local):
    """Whether this thread is within a call of `Scalars.fused`; those within it are part of it."""

    now = False


_FUSED = _Fused()


class Scalars:
    """The functions for arrays of the namespace ``xp``; subclasses adapt them to other scalars.

    Any argument of `where`, `minimum`, `maximum` and `clip` may be a Python number as long as one
    of the others is an array; the result has the dtype and device of that array.
    """

    picks = False
    """Whether `some` saves work, because rows can be picked at the cost of a copy only, or because
    compiled code skips what no row needs."""
    _fences = False
    """Whether the results of `fused` pass through `Backend.fence`."""
    _is_traced: Callable[[Any], bool] = staticmethod(Backend.is_traced)

    def __init__(self, xp: Any, backend: type[Backend] = Backend) -> None:
        """backend : the class of the backend of the arrays."""
        self.xp = xp
        self.picks = self.picks or backend.compiles
        self._fences = backend.compiles
        self._fence, self._branch = backend.fence, backend.branch
        self._is_traced = backend.is_traced
        self.abs: Callable[[Scalar], Scalar] = xp.abs
        self.sqrt: Callable[[Scalar], Scalar] = xp.sqrt
        self.sign: Callable[[Scalar], Scalar] = xp.sign
        self.isfinite: Callable[[Scalar], Mask] = xp.isfinite
        self.logical_not: Callable[[Mask], Mask] = xp.logical_not

    def full(self, value: Any, like: Scalar) -> Scalar:
        """`value` with the shape, library and device of `like`.

        A bool gives booleans, an int 32-bit integers, anything else the dtype of `like`.
        """
        xp = self.xp
        if isinstance(value, bool):
            return xp.full_like(like, value, dtype=xp.bool)
        if isinstance(value, int):
            return xp.full_like(like, value, dtype=xp.int32)
        if isinstance(value, float):
            return xp.full_like(like, value)
        if value.dtype != like.dtype:
            value = xp.astype(value, like.dtype)
        return value if value.shape == like.shape else xp.broadcast_to(value, like.shape)

    def _arrays(self, a: Scalar, b: Scalar) -> tuple[Scalar, Scalar]:
        # array-api-compat would transfer the number to the device of a torch tensor.
        if isinstance(a, (int, float)):
            a = self.xp.full_like(b, a)
        elif isinstance(b, (int, float)):
            b = self.xp.full_like(a, b)
        return a, b

    def where(self, mask: Mask, a: Scalar, b: Scalar) -> Scalar:
        """`a` where `mask` holds, else `b`."""
        return self.xp.where(mask, a, b)

    def minimum(self, a: Scalar, b: Scalar) -> Scalar:
        """The smaller of two scalars; NaN where either is NaN."""
        return self.xp.minimum(*self._arrays(a, b))

    def maximum(self, a: Scalar, b: Scalar) -> Scalar:
        """The larger of two scalars; NaN where either is NaN."""
        return self.xp.maximum(*self._arrays(a, b))

    def clip(self, value: Scalar, low: Scalar, high: Scalar) -> Scalar:
        """`value`, raised to `low` if it is below and then lowered to `high` if it is above."""
        return self.minimum(self.maximum(value, low), high)

    def divide(self, a: Scalar, b: Scalar) -> Scalar:
        """The IEEE quotient: division by zero gives infinity or NaN, never an error."""
        return a / b

    def every(self, mask: Mask) -> bool:
        """Whether the mask holds everywhere; always False if checking would wait for a device."""
        return False

    def select(self, cases: list[tuple[Mask, Callable[[], T]]], default: Callable[[], T]) -> T:
        """The result of the first case whose mask holds, else of `default`.

        For floats only that function is called, for arrays all that may be needed.
        """
        result = default()
        for mask, function in reversed(cases):
            result = self.choose(mask, function(), result)
        return result

    def choose(self, mask: Mask, new: T, old: T) -> T:
        """`where` for (nested) named tuples of scalars."""
        return map_tuple(lambda a, b: b if a is b else self.where(mask, a, b), new, old)

    def some(self, mask: Mask, function: Callable[..., T], told: tuple, old: T) -> T:
        """`function(*told)` in the rows where `mask` holds, and `old` in the others.

        All are (nested) named tuples of scalars. The function changes the first of its arguments,
        which equals `old` where `mask` holds. If rows can be picked, only those are computed.
        """
        return self._branch(mask, lambda mask: self.choose(mask, function(*told), old), old)

    def ordered(self, values: list[Scalar]) -> list[Scalar]:
        """Several scalars in ascending order; all nan if one of them is."""
        if self._is_traced(values[0]):
            # One operation instead of dozens, each of which would be compiled.
            xp, rows = self.xp, self.xp.stack(values)
            there = xp.any(xp.isnan(rows), axis=0)
            rows = xp.where(there, xp.full_like(rows, math.nan), xp.sort(rows, axis=0))
            return [rows[k, ...] for k in range(len(values))]
        ordered = list(values)
        for last in range(len(ordered) - 1, 0, -1):
            for i in range(last):
                a, b = ordered[i], ordered[i + 1]
                ordered[i], ordered[i + 1] = self.minimum(a, b), self.maximum(a, b)
        return ordered

    def fused(self, function: Callable[..., T], *arguments: Any) -> T:
        """function(self, *arguments): the result of a pure function of scalars.

        On a device whose library builds kernels, it is one operation; see `lbfgs_xp.arrays.fused`.
        The function is a global one, written with operators and the functions of its first
        argument. The others are settings, which can be hashed, or (nested) tuples of arrays and
        numbers; all arrays that it computes have one shape.
        """
        if _FUSED.now or not self._fences:
            return function(self, *arguments)
        _FUSED.now = True
        try:
            result = function(self, *arguments)
        finally:
            _FUSED.now = False
        return self._fence(result)

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        """A context without NumPy's warnings about NaN and infinity that `where` discards later."""
        return np.errstate(all="ignore")


_KINDS = {bool: np.bool_, int: np.int32}


class _Host(Scalars):
    """The same functions for NumPy arrays, which mix with Python numbers."""

    picks = True

    def __init__(self, xp: Any) -> None:
        super().__init__(xp)
        # Python numbers need not become arrays first, which saves time.
        vars(self).update(where=np.where, minimum=np.minimum, maximum=np.maximum)

    def full(self, value: Any, like: Scalar) -> Scalar:
        if isinstance(value, (bool, int, float)):
            kind = type(value)
            return np.full(like.shape, value, like.dtype if kind is float else _KINDS[kind])
        return super().full(value, like)

    def every(self, mask: Mask) -> bool:
        return bool(mask.all())

    def select(self, cases: list[tuple[Mask, Callable[[], T]]], default: Callable[[], T]) -> T:
        found = [(mask, function) for mask, function in cases if mask.any()]
        # If the cases cover all rows, the last of them serves as the default.
        rest = functools.reduce(np.logical_or, (mask for mask, _ in found), np.False_)
        result = found.pop()[1]() if np.all(rest) else default()
        for mask, function in reversed(found):
            result = self.choose(mask, function(), result)
        return result

    def some(self, mask: Mask, function: Callable[..., T], told: tuple, old: T) -> T:
        rows = np.flatnonzero(mask)
        if len(rows) == 0:
            return old
        if len(rows) == len(mask):
            return function(*told)
        picked = map_tuple(operator.itemgetter(rows), told)
        new = function(*picked)

        def put(old: Scalar, new: Scalar, told: Scalar) -> Scalar:
            if new is told:
                return old
            both = old.copy()
            both[rows] = new
            return both

        return map_tuple(put, old, new, picked[0])


def _full(value: Any, like: Scalar) -> Scalar:
    return value if isinstance(value, int) else float(value)


def _where(mask: Mask, a: Scalar, b: Scalar) -> Scalar:
    return a if mask else b


def _minimum(a: Scalar, b: Scalar) -> Scalar:
    return a if a < b or a != a else b


def _maximum(a: Scalar, b: Scalar) -> Scalar:
    return a if a > b or a != a else b


def _clip(value: Scalar, low: Scalar, high: Scalar) -> Scalar:
    value = value if value > low or value != value else low
    return value if value < high or value != value else high


def _sqrt(a: Scalar) -> Scalar:
    return math.sqrt(a) if a >= 0 else math.nan


def _sign(a: Scalar) -> Scalar:
    # Adding 0 makes -0 positive, as in every library; nan stays nan.
    return 1.0 if a > 0 else -1.0 if a < 0 else a + 0.0


def _divide(a: Scalar, b: Scalar) -> Scalar:
    if b != 0:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _logical_not(mask: Mask) -> Mask:
    return not mask


def _every(mask: Mask) -> bool:
    return mask


def _select(cases: list[tuple[Mask, Callable[[], T]]], default: Callable[[], T]) -> T:
    for mask, function in cases:
        if mask:
            return function()
    return default()


def _fused(function: Callable[..., T], *arguments: Any) -> T:
    return function(FLOATS, *arguments)


class _Floats(Scalars):
    """The same functions for Python floats and bools, stored as plain functions for speed."""

    def __init__(self) -> None:
        vars(self).update(
            abs=abs,
            sqrt=_sqrt,
            sign=_sign,
            isfinite=math.isfinite,
            logical_not=_logical_not,
            full=_full,
            where=_where,
            minimum=_minimum,
            maximum=_maximum,
            clip=_clip,
            divide=_divide,
            every=_every,
            select=_select,
            choose=_where,
            fused=_fused,
            quiet=contextlib.nullcontext,
        )


FLOATS: Scalars = _Floats()


@functools.cache
def _arrays_of(xp: Any, kernels: Callable | None, backend: type[Backend]) -> Scalars:
    if kernels is not None:
        from lbfgs_xp.arrays.fused import Fused

        return Fused(xp, kernels)
    return _Host(xp) if is_numpy_namespace(xp) else Scalars(xp, backend)


def of(value: Scalar) -> Scalars:
    """The functions for scalars like `value`: for floats if it is a Python number, else for arrays.

    Raises
    ------
    TypeError
        If `value` is neither a number nor an array of a known library.
    """
    if isinstance(value, (float, int)):
        return FLOATS
    if (recorder := getattr(value, "recorder", None)) is not None:
        return recorder    # a symbol of a function that is being recorded
    backend: Any = class_of(value)
    return _arrays_of(namespace_of(value), kernels_of(value), backend)
