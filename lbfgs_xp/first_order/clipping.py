"""Clipping by the joint gradient norm of all leaves."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.first_order.leaves import as_vector


def clip_factor(clip: float | None, spaces: tuple[Space, ...], gs: list[Array]) -> Any:
    """min(1, clip / norm) for each problem, with the joint norm of all leaves; or None."""
    if clip is None:
        return None
    vectors = [as_vector(space, g) for space, g in zip(spaces, gs, strict=True)]
    total = _norm(list(zip(spaces, vectors, strict=True)))
    factor = clip / scalars.of(total).maximum(total, clip)
    return spaces[0].spread(factor)


def _norm(parts: Sequence[tuple[Space, Array]]) -> Any:
    """The joint Euclidean norm of several vectors, each with its space.

    A float if reading one is free or bits must be reproducible; otherwise the norm stays on the
    device. For a batch, an array (B,) in the small algebra.
    """
    space = parts[0][0]
    squares = [own.dot(vector, vector) for own, vector in parts]
    free = space.backend.reads_are_free or space.reproducible or space.sharded
    if not space.batched and free:
        read = space.read
        total = sum(read(*squares))
        if 0.0 < total < math.inf:
            return math.sqrt(total)
        # The squares are out of range, or all of them are 0.
        sizes = [
            own.max_abs(v) for own, v in parts if own.sharded or 0 not in v.shape
        ]
        unit = max(read(*sizes), default=0.0)
        if not 0.0 < unit < math.inf:
            return unit
        scaled = [(own, v * (1.0 / unit)) for own, v in parts]
        return unit * math.sqrt(sum(read(*(own.dot(v, v) for own, v in scaled))))
    widest = space.xp.result_type(*squares)    # leaves may differ in dtype
    total = functools.reduce(
        operator.add, (space.xp.astype(square, widest, copy=False) for square in squares)
    )
    if space.batched and space.small_on_host:
        # NumPy rounds its square root as IEEE 754 specifies; not every library does.
        return np.sqrt(space.fetch(total))
    return space.xp.sqrt(total)
