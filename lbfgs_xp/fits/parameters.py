"""Fixed and tied parameters: the map between the free numbers of a fit and all its parameters."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, is_array, take
from lbfgs_xp.arrays.tree import Layout, unflatten
from lbfgs_xp.fits.names import listed_order, places_of
from lbfgs_xp.run.differences import Differences

_SEEN = "a tie sees the ties before it; itself and those after it are None, or nan"


class Tie(NamedTuple):
    """A parameter that is a function of others.

    name : what errors call it.
    places : where its numbers are in the vector of all parameters.
    shape : of its value, without the axis of a batch.
    """

    name: str
    places: np.ndarray
    shape: tuple[int, ...]
    function: Callable[[Any], Any]


def free_layout(layout: Layout, names: tuple[str, ...], fixed: Any, ties: Any) -> Layout:
    """The layout of the parameters that are neither fixed nor tied, or a clear error.

    names : as from `names_of`.
    fixed, ties : as in `lx.curve_fit`.
    """
    fixed = () if fixed is None else fixed
    if isinstance(fixed, str) or checks.integer(fixed) is not None:
        fixed = (fixed,)
    if not isinstance(fixed, (tuple, list, set, frozenset)):
        raise TypeError(
            f"fixed is {checks.shown(fixed)}; wanted a tuple of names or positions in p0"
        )
    if not (ties is None or isinstance(ties, dict)):
        raise TypeError(
            f"ties is {checks.shown(ties)}; wanted a dict of functions, by names or positions in p0"
        )
    order = listed_order(layout)
    held = {place for key in fixed for place in order[places_of(names, key, "fixed names")]}
    tied, seen = [], set(held)
    for key, function in (ties or {}).items():
        tie = _tie(layout, names, key, function)
        if seen & {*tie.places}:
            raise ValueError(
                f"{key!r} is in ties and in fixed, or twice in ties; wanted one of them"
            )
        seen |= {*tie.places}
        tied.append(tie)
    if not seen:
        return layout
    if len(seen) == layout.size:
        raise ValueError("fixed and ties name all parameters; wanted at least one that is free")
    free = FreeLayout(layout, np.asarray(sorted(held), dtype=int), tuple(tied))
    _check_start(free, names)
    return free


def _check_start(layout: FreeLayout, listed: tuple[str, ...]) -> None:
    """Refuse ties that are not finite at the start, such as those that need later ones."""
    if not layout.ties or layout.backend.is_traced(layout.values):
        return
    try:
        found = layout.all_of(layout.start())
    except (KeyError, IndexError) as error:
        # Of the tie, whose note says which one it is.
        names = ", ".join(map(repr, listed))
        error.add_note(f"lbfgs_xp: the parameters are {names}")
        raise
    values = np.isfinite(layout.backend.to_host(found))
    for tie in layout.ties:
        if not values[..., tie.places].all():
            raise ValueError(
                f"ties[{tie.name}] is not finite at p0; wanted finite numbers: {_SEEN}"
            )


def _tie(layout: Layout, names: tuple[str, ...], key: Any, function: Any) -> Tie:
    places = listed_order(layout)[places_of(names, key, "ties names")]
    if not callable(function):
        raise TypeError(
            f"ties[{key!r}] is {checks.shown(function)}; wanted a function of the parameters"
        )
    shape: tuple[int, ...] = ()
    if len(places) > 1:
        ends = list(np.cumsum(layout.sizes))
        end = int(places[-1]) + 1
        if end not in ends or layout.sizes[ends.index(end)] != len(places):
            raise ValueError(
                f"ties names {key!r}, a branch of several parameters; wanted one of them"
            )
        shape = layout.shapes[ends.index(end)][len(layout.batch) :]
    return Tie(repr(key), places, shape, function)


class _Leaf(NamedTuple):
    """A leaf of all parameters, or a number of a plain vector.

    places : where its numbers are among the free and the fixed ones and those of the ties.
    shape : without the axis of a batch.
    after : the number of ties after which it is known.
    in_part : whether some of its numbers are tied, and others not.
    is_run : whether the places follow one another.
    """

    places: np.ndarray
    shape: tuple[int, ...]
    after: int
    in_part: bool
    is_run: bool

    def of(self, xp: Any, vector: Array, batch: tuple[int, ...]) -> Array:
        first, last = int(self.places[0]), int(self.places[-1])
        if self.is_run:
            piece = vector[..., first : last + 1]
        else:
            piece = xp.stack([vector[..., i] for i in self.places], axis=-1)
        return xp.reshape(piece, (*batch, *self.shape))


class FreeLayout(Layout):
    """The layout of parameters some of which are fixed or tied: its vector holds the free ones.

    Parameters
    ----------
    whole : the layout of all of them.
    fixed : (f,), the places of the fixed ones in the vector of `whole`.
    ties : the tied ones, in the order in which they are computed.
    """

    def __init__(self, whole: Layout, fixed: np.ndarray, ties: tuple[Tie, ...]):
        vars(self).update(vars(whole))
        self._whole, self.fixed, self.ties = whole, fixed, ties
        gone = np.concatenate([fixed, *(tie.places for tie in ties)])
        self.free = np.setdiff1d(np.arange(whole.size), gone)
        # Where each number of the vector of all of them is in (free, fixed, tied).
        self._order = np.argsort(np.concatenate([self.free, gone]), kind="stable")
        self.size, self.plain = self.free.size, False
        self.shape = (*whole.batch, self.size)
        self.values = self._at(whole.start(), fixed)
        self._leaves = self._leaves_of_ties()
        # The leaves that change once a tie is known.
        self._changes, first = [], self.free.size + fixed.size
        for i, tie in enumerate(ties):
            own = range(first, first + tie.places.size)
            self._changes.append([
                k for k, leaf in enumerate(self._leaves)
                if leaf.after == i + 1 or (leaf.in_part and np.isin(leaf.places, own).any())
            ])
            first += tie.places.size

    def _leaves_of_ties(self) -> list[_Leaf]:
        """The leaves that a tie sees: of a plain vector, its numbers."""
        whole = self._whole
        shapes = [shape[len(whole.batch) :] for shape in whole.shapes]
        sizes = whole.sizes
        if whole.plain:
            shapes, sizes = [()] * whole.size, [1] * whole.size
        after = np.zeros(whole.size, dtype=int)
        for i, tie in enumerate(self.ties):
            after[tie.places] = i + 1
        ends = np.cumsum(sizes)
        leaves = []
        for shape, size, end in zip(shapes, sizes, ends, strict=True):
            places = self._order[end - size : end]
            own = after[end - size : end]
            in_part, is_run = own.min() == 0 < own.max(), (np.diff(places) == 1).all()
            leaves.append(_Leaf(places, shape, int(own.max()), bool(in_part), bool(is_run)))
        return leaves

    @property
    def whole(self) -> Layout:
        return self._whole

    @property
    def _key(self) -> tuple:
        functions = tuple((tie.name, tie.function) for tie in self.ties)
        return self._whole._key, self.fixed.tobytes(), functions

    def _at(self, vector: Array, places: np.ndarray) -> Array:
        return self.xp.take(vector, self.backend.index_array(places), axis=-1)

    def start(self) -> Array:
        return self._at(self._whole.start(), self.free)

    def to_vector(self, tree: Any, what: str) -> Array:
        return self._at(self._whole.to_vector(tree, what), self.free)

    def completed(self, vector: Array) -> Array:
        """The free numbers, followed by the fixed ones."""
        return self.xp.concat([vector, self.values], axis=-1)

    def to_tree(self, vector: Array) -> Any:
        """All parameters; vector : the free numbers, or what `completed` makes of them."""
        return self._whole.to_tree(self.all_of(vector))

    def all_of(self, vector: Array) -> Array:
        """The vector of all parameters, from a vector as in `to_tree`."""
        if vector.shape[-1] != self.free.size + self.fixed.size:
            vector = self.completed(vector)
        if not self.ties:
            return self._at(vector, self._order)
        xp, batch = self.xp, tuple(vector.shape[:-1])
        found = [vector]

        def read(leaf: _Leaf) -> Array:
            return leaf.of(xp, xp.concat([*found, unknown], axis=-1), batch)

        unknown = self.backend.full((*batch, self._whole.size - vector.shape[-1]), math.nan)
        leaves = [
            read(leaf) if leaf.in_part else None if leaf.after else leaf.of(xp, vector, batch)
            for leaf in self._leaves
        ]
        for i, tie in enumerate(self.ties):
            value = self._tied(leaves, i, batch)
            found.append(xp.reshape(value, (*batch, -1)))
            unknown = unknown[..., tie.places.size :]
            for k in self._changes[i]:
                leaf = self._leaves[k]
                if leaf.places.size == tie.places.size:
                    leaves[k] = xp.reshape(value, (*batch, *leaf.shape))
                else:
                    leaves[k] = read(leaf)
        return self._at(xp.concat(found, axis=-1), self._order)

    def _tied(self, leaves: list[Any], index: int, batch: tuple[int, ...]) -> Array:
        """The numbers of a tie, from the leaves of all parameters: None for unknown ones."""
        tie, xp, backend = self.ties[index], self.xp, self.backend
        tree: Any = tuple(leaves)
        if not self._whole.plain:
            tree = unflatten(self._whole.structure, list(leaves))
        try:
            value = tie.function(tree)
        except Exception as error:
            unknown = any(leaf is None for leaf in leaves)
            if unknown and isinstance(error, TypeError) and "NoneType" in str(error):
                raise TypeError(
                    f"ties[{tie.name}] met None ({error}); wanted a tie of parameters that are "
                    f"known by then: {_SEEN}"
                ) from error
            error.add_note(f"lbfgs_xp: raised by ties[{tie.name}]; {_SEEN}")
            raise
        what, shape = f"ties[{tie.name}]", (*batch, *tie.shape)
        if value is None:
            raise TypeError(f"{what} returned None; wanted numbers: {_SEEN}")
        if not is_array(value):
            value = backend.adopt(value, f"what {what} returned")
        if tuple(value.shape) != shape:
            try:
                value = xp.broadcast_to(value, shape)
            except (ValueError, RuntimeError):
                raise ValueError(
                    f"{what} returned an array of shape {tuple(value.shape)}; wanted {shape}"
                ) from None
        return xp.astype(value, backend.dtype, copy=False)

    def slopes(self, x: Array) -> Array:
        """The derivatives of all parameters with respect to the free ones, (B, all, p), at
        x (B, p)."""
        backend = self.backend
        units = np.zeros((self._whole.size, self.size))
        units[self.free, np.arange(self.size)] = 1.0
        if self.ties:
            return derivatives(self, functools.partial(all_of, self), x)
        return self.xp.broadcast_to(backend.from_host(units), (*x.shape[:-1], *units.shape))

    def number_names(self, what: str) -> list[str]:
        names = self._whole.number_names(what)
        return [names[i] for i in self.free]

    def sides(self, bounds: Any) -> tuple[Any, Any]:
        """`Layout.sides` for the free numbers; fixed ones must lie within their bounds, and tied
        ones must have none."""
        whole = self._whole.sides(bounds)
        to_host, names = self.backend.to_host, self._whole.number_names("p0")
        low, high = (
            np.broadcast_to(to_host(side) if is_array(side) else side, self._whole.shape)
            for side in whole
        )
        for tie in self.ties:
            for i in tie.places:
                if np.isfinite(low[..., i]).any() or np.isfinite(high[..., i]).any():
                    raise ValueError(
                        f"bounds has a finite bound for {names[i]}, which is tied; wanted bounds "
                        "of the parameters that it depends on (a dict may name only some)"
                    )
        values = to_host(self.values)
        outside = (values < low[..., self.fixed]) | (values > high[..., self.fixed])
        if outside.any():
            number = int(np.argwhere(outside)[0][-1])
            value = float(values[outside].ravel()[0])
            raise ValueError(
                f"{names[self.fixed[number]]} is {value:g}, fixed outside its bounds; wanted a "
                "value inside"
            )
        low, high = (
            self._at(side, self.free) if is_array(side) else side for side in whole
        )
        return low, high

    def in_units(self, x_scale: Any) -> FreeLayout:
        scaled = self._whole.in_units(x_scale)
        layout = copy.copy(self)
        if scaled.scale is not None:
            layout.scale = self._at(scaled.scale, self.free)
        return layout

    def of_rows(self, count: int, indices: Any = None) -> Layout:
        layout = copy.copy(self)
        layout._whole = self._whole.of_rows(count, indices)
        layout.batch, layout.shapes = layout._whole.batch, layout._whole.shapes
        layout.shape = (count, self.size)
        if indices is not None:
            layout.values = take(self.values, indices)
        return layout

    def starting_at(self, vector: Array) -> Layout:
        layout = copy.copy(self)
        layout._whole = self._whole.starting_at(self.all_of(vector))
        layout.leaves = layout._whole.leaves
        return layout

    def for_traced(self) -> Layout:
        layout = copy.copy(self)
        layout._whole = self._whole.for_traced()
        layout.backend = layout._whole.backend
        return layout

    def take(self, indices: Array) -> Layout:
        layout = self.of_rows(indices.shape[0], indices)
        assert isinstance(layout, FreeLayout)
        layout._whole = self._whole.take(indices)
        layout.leaves = layout._whole.leaves
        return layout


def all_of(layout: Layout, x: Array) -> Array:
    """The numbers of all parameters (B, all), from the free ones (B, p); also for one problem."""
    if not isinstance(layout, FreeLayout):
        return x
    if layout.batched or x.ndim == 1:
        return layout.all_of(x)
    return layout.all_of(x[0, ...])[None, ...]


def slopes_of(layout: Layout, x: Array) -> Array:
    """Their derivatives (B, all, p) with respect to the free ones."""
    if isinstance(layout, FreeLayout):
        return layout.slopes(x)
    units = layout.backend.from_host(np.eye(layout.size))
    return layout.xp.broadcast_to(units, (*x.shape[:-1], *units.shape))


def derivatives(layout: Layout, function: Callable[[Array], Array], x: Array) -> Array:
    """The derivatives (B, t, p) of a function of the parameters (B, p) -> (B, t): automatic, or by
    central differences if the library has no automatic ones."""
    backend, xp = layout.backend, layout.xp
    if backend.differentiates:
        return backend.detach(backend.jacobian(False, function)(x))
    value = function(x)
    variation = xp.max(xp.abs(value), axis=-1)
    differences = Differences(backend, function, least=0.0)
    return xp.stack(differences(x, value, variation, True), axis=-1)
