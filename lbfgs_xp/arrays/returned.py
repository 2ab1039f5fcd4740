"""Checks of what a user's function returned; errors say what was returned and what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, check_local, is_array, library_of


def described(out: object) -> str:
    """What a user's function returned, for a message."""
    if is_array(out):
        return f"an array of shape {tuple(out.shape)}"  # type: ignore[attr-defined]
    if isinstance(out, tuple):
        return f"a tuple of {len(out)}"
    return f"a {type(out).__name__}"


def check_array(
    function: str, out: Any, backend: Backend, wanted: str, like: str = "x0"
) -> None:
    """Refuse anything but an array of the backend's library.

    like : the argument with that library, for the message.
    """
    if not is_array(out):
        raise TypeError(f"{function} returned {described(out)}; wanted {wanted}")
    check_local(out, f"what {function} returned")
    if (library := library_of(out)) != backend.name:
        raise TypeError(
            f"{function} returned an array of {library}; wanted an array of {backend.name}, "
            f"like {like}"
        )


def is_like(out: Any, like: Array) -> bool:
    """Whether an array has the type, the dtype and the shape of another, up to the length of the
    last axis: what the checks below look at, in less time."""
    return (
        type(out) is type(like) and out.dtype == like.dtype and out.ndim == like.ndim
        and out.shape[:-1] == like.shape[:-1]
    )


def check_real(function: str, out: Array, backend: Backend) -> None:
    """Refuse an array whose dtype is not real floating-point."""
    if not backend.xp.isdtype(out.dtype, "real floating"):
        raise TypeError(
            f"{function} returned dtype {out.dtype}; wanted a real floating-point dtype"
        )


def check_like(function: str, out: Any, like: Array) -> None:
    """Refuse anything but an array with the shape and dtype of the function's argument `like`."""
    if is_array(out) and (out.shape, out.dtype) == (like.shape, like.dtype):
        return
    what = f"{out.dtype} {tuple(out.shape)}" if is_array(out) else repr(out)
    raise ValueError(
        f"{function} returned {what}; wanted {like.dtype} {tuple(like.shape)}, like its argument"
    )


def check_precision(function: str, out: Any, backend: Backend, like: str = "x0") -> None:
    """Refuse numbers with too few digits for finite differences.

    like : the argument with that dtype, for the message.
    """
    xp = np if isinstance(out, np.generic) else backend.xp
    if xp.isdtype(out.dtype, "real floating") and xp.finfo(out.dtype).eps > backend.eps:
        raise TypeError(
            f"{function} returned {out.dtype}; wanted {backend.dtype}, like {like}: finite "
            f"differences with steps for {backend.dtype} are lost in the rounding errors of "
            f"{out.dtype}"
        )


def real_number(
    function: str, out: Any, backend: Backend, like: str = "x0", pair_if: str = "", hint: str = ""
) -> Any:
    """`out` if it is one real number: a float, or a 0-d array.

    pair_if : the arguments with which the function may return a pair, for the message.
    hint : what the message adds if `out` is an array with axes.
    """
    if isinstance(out, (bool, int, float, np.floating, np.integer)):
        return float(out)
    check_array(function, out, backend, f"a real number{_about_pairs(out, pair_if)}", like)
    if tuple(out.shape) != ():
        raise ValueError(
            f"{function} returned {described(out)}; wanted a single number (0-d){hint}"
        )
    check_real(function, out, backend)
    return out


def row_numbers(
    function: str, out: Any, backend: Backend, batch: tuple[int, ...], pair_if: str = ""
) -> Array:
    """`out` if it is an array of shape `batch`, one real number per row."""
    wanted = f"an array of shape {batch}{_about_pairs(out, pair_if)}"
    check_array(function, out, backend, wanted)
    if tuple(out.shape) != batch:
        raise ValueError(
            f"{function} returned {described(out)}; wanted {batch}, one value for each row of x0"
        )
    check_real(function, out, backend)
    return out


def pair(function: str, out: Any, condition: str, wanted: str) -> tuple[Any, Any]:
    """The two parts of what a function returned.

    condition, wanted : the argument that asks for a pair, and the pair, for the message.
    """
    try:
        first, second = out
    except (TypeError, ValueError):
        raise TypeError(
            f"{function} returned {described(out)}; wanted, with {condition}, the pair {wanted}"
        ) from None
    return first, second


def is_true(outcome: Any) -> bool:
    """Whether a callback returned anything that counts as true."""
    if is_array(outcome) and outcome.ndim > 0:
        raise TypeError(
            f"callback returned {described(outcome)}; wanted a true value to stop the run, or None"
        )
    return bool(outcome)


def stops(callback: Callable, record: Any, in_caller_context: Callable) -> bool:
    """Call a callback; whether it asks to stop, by a true value or by StopIteration."""
    try:
        return is_true(in_caller_context(callback, record))
    except StopIteration:
        return True


def _about_pairs(out: Any, pair_if: str) -> str:
    return f" ({pair_if} for a pair)" if isinstance(out, tuple) and pair_if else ""
