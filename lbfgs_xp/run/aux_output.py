"""What a function returns besides its value; in a batch, kept for the best point of each row."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import library_of
from lbfgs_xp.arrays.rows import belongs_to_rows
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten, unflatten


class AuxOutput(NamedTuple):
    """An auxiliary output.

    value : as the function returned it, of any structure.
    places : the positions of the leaves that have an entry for each row of the batch.
    """

    value: Any
    places: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Any, space: Space, count: int) -> AuxOutput:
        """The output for a batch of `count` rows."""
        libraries = {space.backend.name, "numpy"}
        leaves, _ = flatten(value)
        return cls(value, tuple(
            place for place, leaf in enumerate(leaves)
            if belongs_to_rows(leaf, count) and library_of(leaf) in libraries
        ))

    def followed_by(self, value: Any, space: Space, count: int) -> AuxOutput:
        """The next output of the run. A leaf that keeps its length when rows leave did not belong
        to them."""
        (leaves, after), (known, before) = flatten(value), flatten(self.value)
        if after != before:
            raise ValueError(
                f"fun returned aux of the structure {after}; wanted {before}, as before, because "
                "each row keeps the aux of its best point"
            )
        found = self.of(value, space, count).places
        if any(leaves[place] is None or known[place] is None for place in {*found, *self.places}):
            raise ValueError(
                "fun returned aux with None instead of an array, or vice versa; wanted the same "
                "leaves as before, because each row keeps the aux of its best point"
            )
        return AuxOutput(value, tuple(place for place in self.places if place in found))

    def rows(self) -> tuple:
        """The leaves that have an entry for each row."""
        leaves, _ = flatten(self.value)
        return tuple(leaves[place] for place in self.places)

    def with_rows(self, rows: tuple) -> AuxOutput:
        """The same output with other leaves in these places."""
        leaves, structure = flatten(self.value)
        for place, leaf in zip(self.places, rows, strict=True):
            leaves[place] = leaf
        return self._replace(value=unflatten(structure, leaves))
