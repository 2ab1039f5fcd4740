"""Residuals whose Jacobian is used by its products with vectors, or row by row."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.returned import described
from lbfgs_xp.arrays.tree import Layout, flatten, unflatten
from lbfgs_xp.fits.jacobian import Products, Sources
from lbfgs_xp.fits.residuals import Residuals, evaluate_residuals

_WANTED = "an array (m, p), a sparse matrix, or an operator with matvec and rmatvec"
# How far a residual of its own row may be from that of all rows, as a power of eps.
_SAME = 0.5


class ByProducts(Residuals):
    """`Residuals` whose `columns` are `Products`.

    Parameters
    ----------
    lengths : None, or how many residuals each block has, of which each depends on args only through
        its own row of the arrays whose first axis has the length of the block.
    """

    def __init__(
        self, fun: Callable, args: tuple, jac: Any, layout: Layout, compiled: bool,
        lengths: tuple[int, ...] | None,
    ):
        backend = layout.backend
        if isinstance(jac, str) or (jac is None and not backend.differentiates):
            raise ValueError(
                f"jac is {jac!r} and solver is not \"dense\"; wanted, for products with a Jacobian "
                f"and its transpose, a library that differentiates (PyTorch, JAX) and jac=None, or "
                f"a function that returns {_WANTED}"
            )
        super().__init__(fun, args, jac, layout, compiled)
        self.lengths = lengths if self.jac is None else None
        if self.jac is None:
            self._linearized = backend.jacobian_products(
                compiled, evaluate_residuals, fun, layout, False
            )
        if self.lengths is not None:
            self._gradients = [
                backend.row_gradients(compiled, _evaluate_row, fun, layout, *self._places(block))
                for block in range(len(self.lengths))
            ]

    def columns(self, x: Array, residuals: Array) -> Any:
        """The Jacobian (m, p) at x (p,), as `Products`."""
        self.calls.njev += 1
        return Products(self.backend, (residuals.shape[-1], x.shape[-1]), self._sources(x))

    def _sources(self, x: Array) -> Sources:
        backend = self.backend
        if self.jac is None:
            push, pull = self._linearized(self.args, self._completed(x))
            rows = None if self.lengths is None else functools.partial(self._rows, x)
            return Sources(
                lambda v: backend.detach(push(v)), lambda u: backend.detach(pull(u)), rows
            )
        try:
            found = self.jac(self.layout.to_tree(x), *self.args)
        except self.forgiven:
            m, p, full = self._count, x.shape[-1], backend.full
            return Sources(
                lambda v: full((*v.shape[:-1], m), math.nan),
                lambda u: full((*u.shape[:-1], p), math.nan),
            )
        if is_array(found):
            wanted = (self._count, self.layout.size)
            matrix = backend.detach(self.layout.check(found, 0, "the Jacobian", wanted))
            matrix = backend.own(matrix)
            transposed = self.layout.xp.matrix_transpose(matrix)
            return Sources(lambda v: matrix @ v, lambda u: transposed @ u, matrix=matrix)
        return self._of_operator(found)

    def _of_operator(self, found: Any) -> Sources:
        """The products by an operator, as in SciPy, or by a sparse matrix."""
        if hasattr(found, "matvec") and hasattr(found, "rmatvec"):
            push, pull = found.matvec, found.rmatvec
        elif hasattr(found, "T") and hasattr(type(found), "__matmul__"):
            push, pull = found.__matmul__, found.T.__matmul__
        else:
            raise TypeError(f"jac returned {described(found)}; wanted {_WANTED}")

        def checked(product: Callable, size: int, name: str) -> Callable:
            def one(vector: Array) -> Array:
                return self.backend.detach(
                    self.layout.check(product(vector), 0, f"the product {name}", (size,))
                )

            def each(vectors: Array) -> Array:
                if vectors.ndim == 1:
                    return one(vectors)
                return self.layout.xp.stack([one(vectors[i, :]) for i in range(vectors.shape[0])])

            return each

        return Sources(
            checked(push, self._count, "J v"), checked(pull, self.layout.size, "J^T u")
        )

    # --- rows -----------------------------------------------------------------------------------

    def _places(self, block: int) -> tuple[int, Any, tuple[int, ...]]:
        """The block; the structure of args; the places among their leaves of those with its rows.
        """
        assert self.lengths is not None
        leaves, structure = flatten(self.args)
        length = self.lengths[block]
        return block, structure, tuple(
            i for i, leaf in enumerate(leaves) if _has_rows(leaf, (length,))
        )

    def _rows(self, x: Array, start: int, stop: int) -> Array:
        """These rows of the Jacobian at x (p,), (k, p)."""
        assert self.lengths is not None
        parts, offset = [], 0
        for block, length in enumerate(self.lengths):
            first, last = max(start - offset, 0), min(stop - offset, length)
            if first < last:
                fixed, moving = self._split(block, first, last)
                parts.append(self._gradients[block](fixed, moving, self._completed(x)))
            offset += length
        found = parts[0] if len(parts) == 1 else self.layout.xp.concat(parts)
        return found[:, : x.shape[-1]]

    def _split(self, block: int, first: int, last: int) -> tuple[list[Any], list[Array]]:
        """The leaves of args without those that belong to the rows, which are 0, and these."""
        assert self.lengths is not None
        _, _, places = self._places(block)
        leaves, _ = flatten(self.args)
        moving = [leaves[i][first:last, ...] for i in places]
        fixed = [
            0.0 if i in places else leaf[:1, ...] if _has_rows(leaf, self.lengths) else leaf
            for i, leaf in enumerate(leaves)
        ]
        return fixed, moving

    def check_rows(self, x: Array, residuals: Array) -> None:
        """Refuse residuals that do not depend on their own row alone, as far as some of them show.
        """
        if self.lengths is None:
            return
        backend, offset = self.backend, 0
        known = backend.to_host(residuals)
        size = float(np.abs(known).max())
        for block, length in enumerate(self.lengths):
            name = f"residual {{}} of block {block}" if len(self.lengths) > 1 else "residual {}"
            _, structure, places = self._places(block)
            if not places:
                raise ValueError(
                    f"pointwise is True, but no array in args has a first axis of length {length}, "
                    "the number of residuals; wanted the points of the residuals as args"
                )
            for i in sorted({0, length // 2, length - 1}):
                fixed, moving = self._split(block, i, i + 1)
                found = _evaluate_row(
                    self.fun, self.layout, block, structure, places, fixed,
                    [row[0, ...] for row in moving], self._completed(x),
                )
                alone, among = float(backend.to_host(found)), float(known[offset + i])
                if abs(alone - among) > backend.eps**_SAME * size:
                    raise ValueError(
                        f"pointwise is True, but {name.format(i)} is {among} among all rows of "
                        f"args and {alone} for its row alone; wanted residuals that depend on args "
                        "only through their own rows"
                    )
            offset += length


def _has_rows(leaf: Any, lengths: tuple[int, ...]) -> bool:
    return is_array(leaf) and leaf.ndim > 0 and leaf.shape[0] in lengths


def _evaluate_row(
    fun: Callable, layout: Layout, block: int, structure: Any, places: tuple[int, ...],
    fixed: list[Any], moving: list[Array], x: Array,
) -> Array:
    """The residual of a block for one row of the arrays at these places, a 0-d array."""
    leaves = list(fixed)
    for place, row in zip(places, moving, strict=True):
        leaves[place] = row[None, ...]
    found = evaluate_residuals(fun, layout, False, unflatten(structure, leaves), x)
    return found[block]
