"""What a loss returns besides its value: the numbers in it are averaged over each epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lbfgs_xp.arrays.backend import Backend, copy_of, dtype_name, is_array, library_of
from lbfgs_xp.arrays.pending import Pending
from lbfgs_xp.arrays.tree import flatten, map_leaves, unflatten

_REAL = ("bool", "int", "uint", "float", "bfloat")


class Metrics:
    """Which leaves of the auxiliary output of a loss are numbers, in all batches alike.

    function : the name of the loss, for messages.
    """

    def __init__(self, function: str):
        self.function = function
        self._known: tuple[Any, tuple[int, ...]] | None = None

    def of(self, aux: Any) -> tuple[Any, ...]:
        """The numbers in aux."""
        leaves, structure = flatten(aux)
        places = tuple(i for i, leaf in enumerate(leaves) if is_number(leaf))
        if self._known is None:
            self._known = structure, places
        if self._known != (structure, places):
            raise ValueError(
                f"{self.function} returned aux of the structure {structure}, with numbers as its "
                f"leaves {list(places)}; wanted {self._known[0]} and {list(self._known[1])}, as "
                "before, because these numbers are averaged"
            )
        return tuple(leaves[place] for place in places)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is one real number: of Python, or with a dtype and without axes."""
    if isinstance(leaf, (bool, int, float, Pending)):
        return True
    dtype = getattr(leaf, "dtype", None)
    return (
        dtype is not None and tuple(getattr(leaf, "shape", (0,))) == ()
        and dtype_name(dtype).startswith(_REAL)
    )


def kept(aux: Any, backend: Backend) -> Any:
    """The auxiliary output without graphs, and copied, because later updates could change it. Its
    numbers are floats if reading them costs nothing, else floating-point arrays."""
    if aux is None:
        return None
    aux = map_leaves(backend.detach, aux)
    if backend.reads_are_free:
        return copied(aux)

    def keep(leaf: Any) -> Any:
        if not is_number(leaf) or not is_array(leaf) or library_of(leaf) != backend.name:
            return copied(leaf)
        is_real = backend.xp.isdtype(leaf.dtype, "real floating")
        return backend.own(leaf) if is_real else backend.xp.astype(leaf, backend.dtype)

    return map_leaves(keep, aux)


def copied(aux: Any) -> Any:
    """aux with its numbers as floats, and copies of its arrays."""
    return map_leaves(lambda leaf: copy_of(leaf) if is_array(leaf) else leaf, read(aux))


def joined(parts: Sequence[Any], shares: Sequence[float]) -> Any:
    """The output for several batches as one: weighted means of the numbers, and of anything else
    the last."""
    def join(*leaves: Any) -> Any:
        if not all(map(is_number, leaves)):
            return leaves[-1]
        total = shares[0] * leaves[0]
        for share, leaf in zip(shares[1:], leaves[1:], strict=True):
            total = total + share * leaf
        return total

    return map_leaves(join, *parts)


def nested_like(aux: Any, values: Sequence[Any]) -> Any:
    """These values in the places of the numbers in aux, and None in the others."""
    leaves, structure = flatten(aux)
    rest = iter(values)
    return unflatten(structure, [next(rest, None) if is_number(leaf) else None for leaf in leaves])


def read(aux: Any) -> Any:
    """aux with its numbers as floats."""
    return map_leaves(lambda leaf: float(leaf) if is_number(leaf) else leaf, aux)


def mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """The weighted mean, rounded once; nan if nothing has a weight."""
    whole = sum(weights)
    products = [value * weight for value, weight in zip(values, weights, strict=True)]
    total = math.fsum(products) if all(map(math.isfinite, products)) else sum(products)
    return total / whole if whole else math.nan
