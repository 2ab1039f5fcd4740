"""Bounds of parameter groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.projections import Box
from lbfgs_xp.torch.flat import Flat

_OPEN = (None, None)


def box_of(groups: list[dict[str, Any]], flat: Flat) -> Box | None:
    """The bounds of all parameters that require a gradient, as one vector; None without any.

    groups : each with `bounds`: None or (lower, upper), each None, a number, or an array that
        broadcasts to every parameter of the group.
    """
    sides, found = {}, False
    for i, group in enumerate(groups):
        if group["bounds"] is None:
            continue
        found = True
        pair = checks.bounds(group["bounds"])
        for p in group["params"]:
            sides[id(p)] = _spread(i, p, pair)
    if not found or not flat.params:
        return None
    vectors = []
    for side, missing in ((0, -math.inf), (1, math.inf)):
        pieces = []
        for p, size in zip(flat.params, flat.sizes, strict=True):
            piece = sides.get(id(p), _OPEN)[side]
            if piece is None:
                piece = torch.full((size,), missing, dtype=flat.dtype, device=p.device)
            pieces.append(piece)
        vectors.append(torch.cat(pieces))
    return Box(*vectors)


def _spread(group: int, p: Tensor, pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Lower and upper bounds of each number in a parameter of this group; None for no bound."""
    found: list[Tensor | None] = []
    for side, missing, name in zip(pair, (-math.inf, math.inf), ("lower", "upper"), strict=True):
        what = f"the {name} bound of group {group}"
        if side is None:
            found.append(None)
            continue
        if p.is_complex():
            raise TypeError(
                f"{what} was passed for a complex parameter; complex numbers have no order"
            )
        array = Backend.of(p.detach(), "a parameter").adopt(side, what)
        try:
            wide = torch.broadcast_to(array, p.shape)
        except RuntimeError:
            raise ValueError(
                f"{what} has shape {tuple(array.shape)}; wanted one that broadcasts to "
                f"{tuple(p.shape)}"
            ) from None
        if bool(torch.isnan(wide).any()) or bool((wide == -missing).any()):
            raise ValueError(f"{what} contains nan or {-missing}; wanted numbers, or {missing}")
        found.append(wide.reshape(-1))
    lower, upper = found
    if lower is not None and upper is not None and bool((above := lower > upper).any()):
        at = int(torch.argmax(above.to(torch.uint8)))
        index = tuple(map(int, np.unravel_index(at, tuple(p.shape)))) if p.ndim else ()
        place = f" at index {index[0] if len(index) == 1 else index}" if index else ""
        raise ValueError(
            f"the lower bound of group {group} is {float(lower[at])} and the upper one is "
            f"{float(upper[at])}{place}; wanted lower <= upper"
        )
    return lower, upper
