"""Residuals in blocks, such as those of an equation and of its boundary, each with a weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

from lbfgs_xp import checks
from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, is_array, namespace_of
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, flatten, leaf_name, shown_structure, unflatten
from lbfgs_xp.fits.losses import ResidualLoss


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Residuals as one vector: the blocks one after another, times the roots of their weights.

    fun : returns nested arrays (m_k,), for a batch (B, m_k).
    structure, lengths, weights : of what it returns: how it is nested; the m_k; a weight for each.
    """

    # See `Backend.jit`.
    wrapped_functions: ClassVar = ("fun",)

    fun: Any
    structure: Any
    lengths: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, fun: Callable, layout: Layout, args: tuple, weights: Any) -> Blocks:
        """The blocks that fun returns at the start; weights : a number, or nested like them."""
        if not callable(fun):
            raise TypeError(f"residuals is a {type(fun).__name__}; wanted a function of x")
        found, structure = flatten(fun(layout.to_tree(layout.start()), *args))
        axes = 1 + len(layout.batch)
        for i, block in enumerate(found):
            name = leaf_name(structure, i, "residuals")
            wanted = f"an array {(*layout.batch, 'm')}".replace("'", "")
            if not is_array(block) or block.ndim != axes or 0 in block.shape:
                raise TypeError(
                    f"{name} returned {returned.described(block)}; wanted, with weights, {wanted} "
                    "or nested ones"
                )
        given, of_weights = flatten(weights)
        if of_weights != structure:
            if not of_weights.is_leaf():
                raise ValueError(
                    f"weights has the structure {shown_structure(of_weights)}; wanted a number, or "
                    f"the structure of what residuals returned, {shown_structure(structure)}"
                )
            given = given * len(found)
        numbers = []
        for i, weight in enumerate(given):
            name = leaf_name(structure, i, "weights")
            numbers.append(checks.number(name, weight, least=0.0))
        lengths = tuple(block.shape[-1] for block in found)
        return cls(fun, structure, lengths, tuple(numbers))

    def __call__(self, params: Any, *args: Any) -> Array:
        found, structure = flatten(self.fun(params, *args))
        if structure != self.structure or not all(map(is_array, found)):
            raise ValueError(
                f"residuals returned the structure {structure}, and {self.structure} at the start; "
                "wanted the same arrays at every x"
            )
        parts = [
            block if weight == 1.0 else math.sqrt(weight) * block
            for block, weight in zip(found, self.weights, strict=True)
        ]
        return parts[0] if len(parts) == 1 else namespace_of(parts[0]).concat(parts, axis=-1)

    @property
    def left_out(self) -> int:
        """How many residuals have the weight 0."""
        pairs = zip(self.lengths, self.weights, strict=True)
        return sum(length for length, weight in pairs if weight == 0.0)

    def costs(self, loss: ResidualLoss, space: Space, residuals: Array) -> Any:
        """The cost of each block, nested like them, from the vector (..., m) of all residuals."""
        terms, costs, start = loss.terms(space.xp, residuals), [], 0
        for length in self.lengths:
            cost = space.xp.sum(terms[..., start : start + length], axis=-1)
            costs.append(float(cost) if cost.ndim == 0 else cost)
            start += length
        return unflatten(self.structure, costs)


@dataclasses.dataclass(frozen=True)
class JacobianOfBlocks:
    """A user's Jacobian of the blocks one after another, weighted as they are."""

    jac: Callable
    blocks: Blocks

    def __call__(self, params: Any, *args: Any) -> Any:
        found = self.jac(params, *args)
        if not is_array(found):
            raise TypeError(
                f"jac returned {returned.described(found)}; wanted, with weights, an array (m, p)"
            )
        xp, (start, parts) = namespace_of(found), (0, [])
        for length, weight in zip(self.blocks.lengths, self.blocks.weights, strict=True):
            parts.append(math.sqrt(weight) * found[..., start : start + length, :])
            start += length
        return xp.concat(parts, axis=-2)
