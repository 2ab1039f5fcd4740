"""The lowest value that differences and looks have seen, wherever it was."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, Backend, is_array


class Lowest(NamedTuple):
    """The lowest value of each problem (...) and the point at which it was (..., n)."""

    value: Any
    x: Array


def followed(backend: Backend, known: Lowest | None, x: Array, value: Any) -> Lowest | None:
    """The lowest value, now that this one was seen at x. A NaN is none."""
    free = backend.reads_are_free
    if x.ndim == 1 and free:
        number = float(value)
        return Lowest(number, x) if number < (inf if known is None else known.value) else known
    value = value if is_array(value) else backend.full((), value)
    if known is None:
        known = nothing(Lowest(value, x))
    lower = value < known.value
    if free and not backend.to_host(lower).any():
        return known
    return picked(backend, lower, Lowest(value, x), known)


def nothing(known: Lowest) -> Lowest:
    """No value yet, for as many problems."""
    return Lowest(abs(known.value) * 0.0 + inf, known.x)


def picked(backend: Backend, rows: Any, new: Lowest, old: Lowest) -> Lowest:
    """The new lowest values in these rows, (...), and the old ones elsewhere."""
    xp = backend.xp
    return Lowest(
        xp.where(rows, new.value, old.value), xp.where(rows[..., None], new.x, old.x)
    )
