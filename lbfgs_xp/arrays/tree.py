"""Conversion between nested parameters and one real vector (..., n), built on optree."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
import numbers
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optree

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import (
    Array,
    Backend,
    check_local,
    classes_in_use,
    is_array,
    library_of,
    take,
)
from lbfgs_xp.arrays.keyed import Keyed

_NAMESPACE = "lbfgs_xp"
_WEIGHTS = "finite numbers of at least 0"
# The structure of a single array, the most frequent case.
_LEAF = optree.treespec_leaf(none_is_leaf=True, namespace=_NAMESPACE)


class Layout(Keyed):
    """The layout of the parameters of one problem (or of B problems) in a real vector.

    A complex leaf takes up two stretches, its real and its imaginary part, so that all code behind
    this class works with real numbers and the inner product is Re<a, b>.

    Parameters
    ----------
    x0 : array, number, or nested dict, list, tuple or dataclass of arrays
    batched : bool
        Whether the first axis of every leaf counts the problems.
    name : str
        What errors call x0.
    traced : bool
        Whether the leaves may be traced, because a function is being compiled.
    is_piece : bool
        Whether the parameters are a piece of those of many processes, which may be empty.

    Attributes
    ----------
    scale : None, or an array that broadcasts to the vector
        The vector holds x / scale; see `in_units`.
    scale_key : None, or the scale as something that can be compared
    """

    scale: Any = None
    scale_key: Any = None
    name = "x0"

    def __init__(
        self, x0: Any, batched: bool, name: str = "x0", traced: bool = False,
        is_piece: bool = False,
    ):
        leaves, self.structure = without_frozen(*flatten_parameters(_as_parameters(x0, name)))
        self.batched, self.name = batched, name
        if batched and isinstance(self.structure, Partial):
            raise ValueError(
                f"{self.structure.frozen_name(name)} is frozen (requires_grad=False); wanted, with "
                "batched=True, all tensors trainable or none"
            )
        backends = _check_leaves(leaves, self.structure, batched, name, traced)
        self.backend = backends[0]
        self.leaves = leaves
        self.shapes = [tuple(leaf.shape) for leaf in leaves]
        self.complex = [backend.complex for backend in backends]
        self.batch = self.shapes[0][:1] if batched else ()
        self.sizes = [
            math.prod(shape[len(self.batch) :]) * (2 if c else 1)
            for shape, c in zip(self.shapes, self.complex, strict=True)
        ]
        self.size = sum(self.sizes)
        if (self.size == 0 and not is_piece) or 0 in self.batch:
            raise ValueError(f"{name} is empty (shapes {self.shapes}); wanted at least one number")
        # The common case, one real array that already is the vector, costs nothing.
        self.plain = (
            self.structure is _LEAF
            and not self.complex[0]
            and len(self.shapes[0]) == 1 + len(self.batch)
        )
        self.shape = (*self.batch, self.size)

    @property
    def xp(self) -> Any:
        return self.backend.xp

    @property
    def _key(self) -> tuple:
        dtypes = tuple(str(leaf.dtype) for leaf in self.leaves)
        parts = self.structure, tuple(self.shapes), dtypes, self.batched, self.backend
        return parts if self.scale is None else (*parts, self.scale_key)

    def in_units(self, x_scale: Any) -> Layout:
        """The layout whose vector holds x / x_scale.

        x_scale : None for 1, or as `tree` of `spread`, with numbers above 0. They are rounded to
            powers of 2, so that scaling rounds nothing, except overflow.
        """
        if x_scale is None:
            return self
        wanted = "finite numbers above 0"
        # Of these sizes the inverse is a normal number of the dtype, too.
        least = float(self.xp.finfo(self.backend.dtype).smallest_normal)
        if isinstance(x_scale, str):
            raise ValueError(f"x_scale is {x_scale!r}; wanted {wanted}")
        found = self.spread(x_scale, "x_scale", 1.0)
        sizes = np.asarray(self.backend.to_host(found) if is_array(found) else found, dtype=float)
        good = (sizes >= least) & (sizes <= 0.5 / least)
        if not good.all():
            raise ValueError(
                f"x_scale contains {sizes[~good].ravel()[0]}; wanted {wanted}, from {least:.2g} to "
                f"{0.5 / least:.2g} in {self.backend.dtype}"
            )
        sizes = np.exp2(np.round(np.log2(sizes)))
        if sizes.ndim == 2 and (sizes == sizes[:1]).all():
            sizes = sizes[0]
        layout = copy.copy(self)
        layout.plain = False
        sizes = np.broadcast_to(sizes, sizes.shape or (self.size,))
        layout.scale, layout.scale_key = self.backend.adopt(sizes, "x_scale"), sizes.tobytes()
        return layout

    @property
    def whole(self) -> Layout:
        """The layout of all numbers, for a layout whose vector holds only some of them."""
        return self

    def completed(self, vector: Array) -> Array:
        """The vector with the numbers that `to_tree` needs beside those that it holds."""
        return vector

    def number_names(self, what: str) -> list[str]:
        """What messages call each number of the vector, such as "x0.weights[3]"; real leaves."""
        names = []
        for i, shape in enumerate(self.shapes):
            name = leaf_name(self.structure, i, what)
            inner = shape[len(self.batch) :]
            names += [name + (str(list(map(int, k))) if k else "") for k in np.ndindex(*inner)]
        return names

    def take(self, indices: Array) -> Layout:
        """The layout, with its start, of these problems of a batch."""
        layout = self.of_rows(indices.shape[0], indices)
        layout.leaves = [take(leaf, indices) for leaf in self.leaves]
        return layout

    def of_rows(self, count: int, indices: Any = None) -> Layout:
        """The layout of a batch of `count` of the problems, those with these indices, (count,)."""
        layout = copy.copy(self)
        layout.batch = (count,)
        layout.shapes = [(count, *shape[1:]) for shape in self.shapes]
        layout.shape = (count, self.size)
        if self.scale is not None and self.scale.ndim == 2 and indices is not None:
            layout.scale = take(self.scale, indices)
            layout.scale_key = self.backend.to_host(layout.scale).tobytes()
        return layout

    def starting_at(self, vector: Array) -> Layout:
        """The layout with this start, a vector without a scale."""
        layout = copy.copy(self)
        layout.leaves = [vector] if self.plain else flatten_like(
            self._split(vector), self.structure
        )[0]
        return layout

    def of_many(self, count: int) -> Layout:
        """The layout of a batch of `count` problems like this single one."""
        layout = copy.copy(self)
        layout.batched, layout.batch = True, (count,)
        layout.shapes = [(count, *shape) for shape in self.shapes]
        layout.shape = (count, self.size)
        return layout

    def for_traced(self) -> Layout:
        """The same layout, for arrays inside a function that is being compiled."""
        layout = copy.copy(self)
        layout.backend = self.backend.for_traced()
        return layout

    def without_values(self) -> Layout:
        """The same layout, which does not keep the arrays of x0."""
        layout = copy.copy(self)
        layout.leaves = [_Like(leaf.dtype) for leaf in self.leaves]
        return layout

    def start(self) -> Array:
        """The vector of x0, which no one else can change."""
        vector = self.leaves[0] if self.plain else self._join(self.leaves)
        return self.backend.own(vector) if self.scale is None else vector / self.scale

    def gradient_vector(self, tree: Any) -> Array:
        """The gradient with respect to the vector, given that with respect to x."""
        vector = self.to_vector(tree, "the gradient")
        return vector if self.scale is None else vector * self.scale

    def to_vector(self, tree: Any, what: str) -> Array:
        """The numbers of `tree`, which errors call `what`, as a vector, without a scale."""
        if self.backend.on_host and self.structure.is_leaf() and isinstance(tree, (list, tuple)):
            tree = _as_parameters(tree)
        leaves, structure = flatten_like(tree, self.structure)
        if structure != self.structure:
            raise ValueError(
                f"{what} has the structure {shown_structure(structure)}; wanted that of "
                f"{self.name}, {shown_structure(self.structure)}"
            )
        leaves = self._checked(leaves, what)
        return leaves[0] if self.plain else self._join(leaves)

    def sides(self, bounds: Any) -> tuple[Any, Any]:
        """`bounds` as (lower, upper) for all variables, each as returned by `spread`."""
        lower, upper = checks.bounds(bounds, self.name)
        if any(self.complex):
            raise TypeError(
                f"bounds were passed, but {self.name} is complex; complex numbers have no order"
            )
        lower = self.spread(lower, "the lower bound", -math.inf)
        upper = self.spread(upper, "the upper bound", math.inf)
        return (lower, upper) if self.scale is None else (lower / self.scale, upper / self.scale)

    def weights(self, l1: Any) -> Any:
        """The weights of a penalty for all variables, as returned by `spread`; None if all are 0.

        l1 : as for `spread`, but for a batch a leaf with one axis holds a number for each problem.
        """
        if l1 is None:
            return None
        if isinstance(l1, (str, bool)):
            raise TypeError(f"l1 is {l1!r}; wanted {_WEIGHTS}")
        if any(self.complex):
            raise TypeError("l1 was passed, but x0 is complex; wanted real x0")
        if isinstance(l1, numbers.Real):
            _check_weights("l1", np.asarray(l1, dtype=float))
        found = self.spread(l1, "l1", 0.0, self._weight)
        if not np.any(self.backend.to_host(found) if is_array(found) else found):
            return None
        return found if self.scale is None else found * self.scale

    def _weight(self, leaf: int, array: Array) -> Array:
        """The weights of a leaf, checked and, for a batch, with an axis for the problems."""
        name, shape = leaf_name(self.structure, leaf, "l1"), self.shapes[leaf]
        _check_weights(name, self.backend.to_host(array))
        if not self.batch or array.ndim != 1:
            return array
        if tuple(array.shape) != self.batch:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}; wanted {self.batch}, a number for each "
                f"problem (x0 of shape {shape} holds {shape[0]}), or {len(shape)} axes that "
                f"broadcast to {shape}"
            )
        return self.xp.reshape(array, (*self.batch, *(1 for _ in shape[1:])))

    def spread(
        self, tree: Any, what: str, missing: float,
        adapted: Callable[[int, Array], Array] | None = None,
    ) -> Any:
        """Numbers for all variables: one float, or an array that broadcasts to the vector.

        tree : None for `missing`, a number, or a tree with the structure of x0 whose leaves are
            None, numbers, or arrays that broadcast to those of x0. Its dicts need not name
            everything; what they do not name is `missing`.
        adapted : a function of the number of a leaf and its array to what takes the array's place.
        """
        if tree is None:
            return missing
        if isinstance(tree, numbers.Real) and not isinstance(tree, bool):
            return float(tree)
        if isinstance(tree, dict):
            whole = _whole(self.structure)
            tree = _completed(
                tree, unflatten(whole, [None] * whole.num_leaves), what, self.name
            )
        leaves, structure = flatten_like(tree, self.structure)
        if structure != self.structure:
            lists = _with_lists(tree, self.structure)
            if lists is None:
                raise ValueError(
                    f"{what} has the structure {shown_structure(structure)}; wanted None, a "
                    f"number, or the structure of {self.name}, {shown_structure(self.structure)}"
                )
            leaves = lists
        arrays = []
        for i, (leaf, shape) in enumerate(zip(leaves, self.shapes, strict=True)):
            array = self._adopted(missing if leaf is None else leaf, i, what)
            if adapted is not None:
                array = adapted(i, array)
            try:
                arrays.append(self.xp.broadcast_to(array, shape))
            except (ValueError, RuntimeError):
                where = leaf_name(self.structure, i, what)
                several = not self.batch and array.ndim > 0 and what == "l1"
                raise ValueError(
                    f"{where} has shape {tuple(array.shape)}; wanted one that broadcasts to {shape}"
                    + (f" (batched=True and x0 of shape {(array.shape[0], *shape)} solve with "
                       "several weights)" if several else "")
                ) from None
        pieces = []
        for array, is_complex in zip(arrays, self.complex, strict=True):
            # The real and the imaginary part of a complex leaf have the same number.
            pieces += [self.xp.reshape(array, (*self.batch, -1))] * (2 if is_complex else 1)
        return pieces[0] if len(pieces) == 1 else self.xp.concat(pieces, axis=-1)

    def _adopted(self, leaf: Any, index: int, what: str) -> Array:
        with contextlib.suppress(TypeError, ValueError):
            return self.backend.adopt(leaf, what)
        # Once more with the name, which takes longer than the rest.
        return self.backend.adopt(leaf, leaf_name(self.structure, index, what))

    def _join(self, leaves: list[Array]) -> Array:
        xp = self.xp
        pieces = []
        for leaf, is_complex in zip(leaves, self.complex, strict=True):
            parts = (xp.real(leaf), xp.imag(leaf)) if is_complex else (leaf,)
            pieces += [xp.reshape(part, (*self.batch, -1)) for part in parts]
        return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=-1)

    def to_tree(self, vector: Array) -> Any:
        """The nested parameters that `vector` holds."""
        if self.plain:
            return vector
        return self._split(vector if self.scale is None else vector * self.scale)

    def numbers_tree(self, vector: Array) -> Any:
        """Numbers for all variables, without a scale, in the structure of x."""
        vector = self.backend.adopt(vector, "the vector")
        if tuple(vector.shape) != self.shape:
            raise ValueError(
                f"the vector has shape {tuple(vector.shape)}; wanted {self.shape}, a number for "
                "each variable"
            )
        return vector if self.plain else self._split(vector)

    def _split(self, vector: Array) -> Any:
        xp = self.xp
        leaves = []
        for piece, like, shape, size, is_complex in zip(
            self.backend.pieces(vector, self.sizes), self.leaves, self.shapes, self.sizes,
            self.complex, strict=True,
        ):
            if is_complex:
                half = size // 2
                re = xp.astype(piece[..., :half], like.dtype)
                piece = re + xp.astype(piece[..., half:], like.dtype) * 1j
            leaves.append(self.backend.with_dense_gradient(xp.reshape(piece, shape)))
        return unflatten(self.structure, leaves)

    def gradient_tree(self, gradient: Array) -> Any:
        """The nested gradient that `gradient` holds: 0 for frozen tensors."""
        return self.with_frozen(gradient if self.scale is None else gradient / self.scale)

    def with_frozen(self, numbers: Array) -> Any:
        """Numbers for all variables, without a scale, in the structure of x: 0 for frozen tensors.
        """
        tree = numbers if self.plain else self._split(numbers)
        if not isinstance(self.structure, Partial):
            return tree
        xp, dtype = self.xp, numbers.dtype
        zeros = {
            i: xp.zeros_like(leaf, dtype=dtype) for i, leaf in self.structure.frozen.items()
        }
        return unflatten(
            Partial(self.structure.whole, zeros), flatten_like(tree, self.structure)[0]
        )

    def keep_frozen(self, tree: Any) -> None:
        """Let the tensors of a result require a gradient if others are frozen, so that a run from
        the result leaves those alone, too."""
        if isinstance(self.structure, Partial):
            for leaf in flatten_like(tree, self.structure)[0]:
                leaf.requires_grad_(True)

    def _checked(self, leaves: list[Any], what: str) -> list[Array]:
        """The leaves of a tree that errors call `what`, each checked."""
        with contextlib.suppress(TypeError, ValueError):
            return [self.check(leaf, i, what) for i, leaf in enumerate(leaves)]
        # Once more with the names, which take longer than the rest.
        return [
            self.check(leaf, i, leaf_name(self.structure, i, what))
            for i, leaf in enumerate(leaves)
        ]

    def check(
        self, leaf: Any, index: int, what: str, shape: tuple[int, ...] | None = None
    ) -> Array:
        """`leaf` as an array like leaf `index` of x0 (with `shape`, if given), or a clear error."""
        like = self.leaves[index]
        if not is_array(leaf):
            if self.backend.name != "numpy":
                raise TypeError(
                    f"{what} is of type {type(leaf).__name__}; wanted an array of "
                    f"{self.backend.name}, like {self.name}"
                )
            leaf = np.asarray(leaf)
        _refuse_subclass(leaf, what)
        check_local(leaf, what)
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufc":
            raise TypeError(
                f"{what} has dtype {leaf.dtype}; wanted {like.dtype}, like {self.name}"
            )
        if type(leaf) is not type(like) and (other := library_of(leaf)) != self.backend.name:
            raise TypeError(
                f"{what} is an array of {other}; wanted an array of {self.backend.name}, like "
                f"{self.name}"
            )
        if tuple(leaf.shape) != (self.shapes[index] if shape is None else shape):
            wanted = f"{self.shapes[index]}, like {self.name}" if shape is None else shape
            raise ValueError(f"{what} has shape {tuple(leaf.shape)}; wanted {wanted}")
        self.backend.check_device(leaf, what, self.name)
        leaf = self.backend.dense(leaf)
        if leaf.dtype != like.dtype:
            if self.xp.isdtype(leaf.dtype, "complex floating") and not self.complex[index]:
                raise TypeError(f"{what} is complex; wanted {like.dtype}, like {self.name}")
            with np.errstate(all="ignore"):    # overflow gives inf, as in any trial
                leaf = self.xp.astype(leaf, like.dtype)
        return leaf


class _Like(NamedTuple):
    """What a layout needs to know of a leaf besides its shape."""

    dtype: Any


class Partial(Keyed):
    """The structure of nested parameters some leaves of which are frozen.

    Parameters
    ----------
    whole
        The structure of all leaves.
    frozen : dict
        The frozen leaves (or None), by their position among all leaves.
    """

    def __init__(self, whole: Any, frozen: dict[int, Any]):
        self.whole, self.frozen = whole, frozen

    @property
    def _key(self) -> tuple:
        return self.whole, tuple(self.frozen)

    def __repr__(self) -> str:
        return repr(self.whole)

    def is_leaf(self) -> bool:
        return False

    def paths(self) -> list[Any]:
        """The paths of the leaves that are not frozen."""
        return self.others(self.whole.paths())

    def others(self, leaves: list[Any]) -> list[Any]:
        """Those of all leaves that are not frozen."""
        return [leaf for i, leaf in enumerate(leaves) if i not in self.frozen]

    def frozen_in(self, leaves: list[Any] | None) -> Partial:
        """The same structure with the frozen ones of these leaves, or with none."""
        return Partial(self.whole, {i: leaves[i] if leaves else None for i in self.frozen})

    def joined_with(self, leaves: list[Any]) -> list[Any]:
        """All leaves, given those that are not frozen."""
        rest = iter(leaves)
        count = len(leaves) + len(self.frozen)
        return [self.frozen[i] if i in self.frozen else next(rest) for i in range(count)]

    def frozen_name(self, what: str) -> str:
        """What errors call the first frozen leaf."""
        return leaf_name(self.whole, min(self.frozen), what)


def without_frozen(leaves: list[Any], structure: Any) -> tuple[list[Any], Any]:
    """The leaves to be changed, and the structure that keeps the others: PyTorch's tensors that
    require no gradient, if others do."""
    required = [getattr(leaf, "requires_grad", None) for leaf in leaves]
    if not (True in required and False in required):
        return leaves, structure
    part = Partial(
        structure, {i: leaves[i] for i, needed in enumerate(required) if needed is False}
    )
    return part.others(leaves), part


def _check_weights(name: str, weights: np.ndarray) -> None:
    good = np.isfinite(weights) & (weights >= 0.0)
    if not good.all():
        at = tuple(map(int, np.argwhere(~good)[0]))
        place = f" at index {at[0] if len(at) == 1 else at}" if at else ""
        raise ValueError(f"{name}{place} is {weights[at]}; wanted {_WEIGHTS}")


def _whole(structure: Any) -> Any:
    return structure.whole if isinstance(structure, Partial) else structure


def _completed(tree: Any, like: Any, what: str, name: str) -> Any:
    """`tree`, with what its dicts do not name taken from `like`, as is None in place of a part;
    name : of `like`, for errors."""
    if tree is None:
        return like
    if not (isinstance(tree, dict) and isinstance(like, dict)):
        return tree
    if unknown := [key for key in tree if key not in like]:
        raise ValueError(
            f"{what} names {', '.join(map(repr, unknown))}; wanted names of {name}: "
            + ", ".join(map(repr, like))
        )
    whole = copy.copy(like)
    for key, part in tree.items():
        whole[key] = _completed(part, like[key], f"{what}.{key}", name)
    return whole


def flatten_like(tree: Any, structure: Any) -> tuple[list[Any], Any]:
    """`flatten`, without the leaves that are frozen in `structure` if `tree` has it."""
    if hasattr(structure, "leaves_of"):
        try:
            return structure.leaves_of(tree), structure
        except ValueError:
            return flatten_parameters(tree)
    leaves, found = flatten(tree)
    if isinstance(structure, Partial) and found == structure.whole:
        return structure.others(leaves), structure
    return leaves, found


def map_leaves(function: Callable, tree: Any, *others: Any) -> Any:
    """`function` applied to the leaves of trees with the same structure."""
    leaves, structure = flatten(tree)
    rest = [flatten(other)[0] for other in others]
    mapped = [function(*each) for each in zip(leaves, *rest, strict=True)]
    return unflatten(structure, mapped)


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of nested parameters, and their structure."""
    if is_array(tree):
        return [tree], _LEAF
    while True:
        leaves, structure = optree.tree_flatten(tree, namespace=_NAMESPACE, none_is_leaf=True)
        classes = {type(leaf) for leaf in leaves if _is_plain_dataclass(leaf)}
        if not classes:
            return leaves, structure
        for cls in classes:
            _register(cls)


def flatten_parameters(tree: Any) -> tuple[list[Any], Any]:
    """`flatten`; if something is not an array, by the registry of the library that has its own."""
    leaves, structure = flatten(tree)
    if all(map(is_array, leaves)):
        return leaves, structure
    found = [backend.flatten(tree) for backend in classes_in_use()]
    return next((each for each in found if each is not None), (leaves, structure))


def _with_lists(tree: Any, structure: Any) -> list[Any] | None:
    """The parts of `tree` in place of the leaves of the structure, some of which are lists of
    numbers; None if it has another structure."""
    if not hasattr(structure, "flatten_up_to"):
        return None
    try:
        parts = structure.flatten_up_to(tree)
    except ValueError:
        return None
    nested = (part for part in parts if not optree.tree_is_leaf(part, none_is_leaf=True))
    return parts if all(isinstance(part, (list, tuple)) for part in nested) else None


def shown_structure(structure: Any) -> str:
    """A structure as errors show it, with a star for each leaf."""
    wrapped = r"^PyTreeSpec\((.*?)(, NoneIsLeaf)?(, namespace=[^=]*)?\)$"
    return re.sub(wrapped, r"\1", str(structure))


def unflatten(structure: Any, leaves: list[Any]) -> Any:
    """The nested parameters with these leaves."""
    if isinstance(structure, Partial):
        structure, leaves = structure.whole, structure.joined_with(leaves)
    if hasattr(structure, "leaves_of"):
        return structure.unflatten(leaves)
    return optree.tree_unflatten(structure, leaves)


def paths(structure: Any) -> list[str]:
    """The path of each leaf, such as "layers.0.bias"; "" for a single array."""
    return [".".join(map(str, path)) for path in structure.paths()]


def leaf_name(structure: Any, index: int, what: str) -> str:
    """What errors call a leaf, such as "x0.layers.0.bias"; `what` names the whole."""
    path = paths(structure)[index]
    return f"{what}.{path}" if path else what


def _register(cls: type) -> None:
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(node: Any) -> tuple[list[Any], Any, Any]:
        return [getattr(node, name) for name in names], None, names

    def unflatten(_: Any, leaves: Any) -> Any:
        # Not through __init__, which may check or convert its arguments.
        node: Any = object.__new__(cls)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(node, name, leaf)
        return node

    optree.register_pytree_node(cls, flatten, unflatten, namespace=_NAMESPACE)


def _is_plain_dataclass(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type) and not is_array(leaf)


def _as_parameters(x0: Any, name: str = "x0") -> Any:
    """x0 itself, or as a NumPy array if it is a number or a (nested) list of numbers; in a dict of
    only numbers, each becomes an array."""
    if is_array(x0):
        return x0
    if isinstance(x0, dict) and all(isinstance(v, (int, float, complex)) for v in x0.values()):
        return {name: np.asarray(value) for name, value in x0.items()}
    leaves, _ = flatten(x0)
    if isinstance(x0, (list, tuple, int, float, complex, np.generic)) and all(
        isinstance(leaf, (int, float, complex, np.generic)) for leaf in leaves
    ):
        try:
            return np.asarray(x0)
        except ValueError as error:
            raise ValueError(
                f"{name} is a ragged list ({error}); wanted an array, or arrays in a container"
            ) from None
    return x0


def _refuse_subclass(leaf: Any, what: str) -> None:
    """Refuse arrays whose operations are not those of an array."""
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array; wanted a plain one, such as {what}.data")
    if isinstance(leaf, np.matrix):
        raise TypeError(f"{what} is a numpy.matrix; wanted an array, such as np.asarray({what})")


def backends_of(
    leaves: list[Any], structure: Any, what: str, traced: bool = False
) -> list[Backend]:
    """The backend of each leaf; `what` names the parameters in errors; `traced` as in `Layout`."""
    if not leaves:
        raise ValueError(f"{what} holds no arrays; wanted at least one")
    for i, leaf in enumerate(leaves):
        if type(leaf) is not np.ndarray:
            _refuse_subclass(leaf, leaf_name(structure, i, what))
        if not is_array(leaf):
            name = leaf_name(structure, i, what)
            place = f" at {name}" if name != what else ""
            raise TypeError(
                f"{what} holds a {type(leaf).__name__}{place}; wanted arrays of NumPy, PyTorch, "
                "JAX, CuPy or another library that follows the array API standard"
                + _of_a_module(leaf)
            )
    names = {library_of(leaf) for leaf in leaves}
    if len(names) > 1:
        raise TypeError(f"{what} mixes arrays of {', '.join(sorted(names))}; wanted one library")
    with contextlib.suppress(TypeError, ValueError):
        return [Backend.of(leaf, what, traced) for leaf in leaves]
    # Once more with the names, which take longer than the rest.
    return [
        Backend.of(leaf, leaf_name(structure, i, what), traced) for i, leaf in enumerate(leaves)
    ]


def _of_a_module(leaf: Any) -> str:
    """The hint of an error if a module, its `parameters()` or a function was passed."""
    if callable(leaf) and not hasattr(leaf, "named_parameters"):
        return (
            "; pass only the arrays, as from equinox.partition(module, equinox.is_inexact_array), "
            "and keep functions in the function to be minimised"
        )
    if not (hasattr(leaf, "named_parameters") or inspect.isgenerator(leaf)):
        return ""
    return (
        "; for a module, pass dict(module.named_parameters()) and use torch.func.functional_call "
        "in the function, or see lbfgs_xp.torch"
    )


def _check_leaves(
    leaves: list[Any], structure: Any, batched: bool, name: str, traced: bool
) -> list[Backend]:
    backends = backends_of(leaves, structure, name, traced)
    for what, error in (("device", ValueError), ("dtype", TypeError)):
        # Devices are compared, because those of CuPy have no hash.
        first = getattr(backends[0], what)
        for i, backend in enumerate(backends):
            other = getattr(backend, what)
            if other != first and not (traced and None in (first, other)):
                one, two = (leaf_name(structure, j, name) for j in (0, i))
                raise error(f"{one} has {what} {first} and {two} {other}; wanted one {what}")
    if batched:
        firsts = {tuple(leaf.shape[:1]) for leaf in leaves}
        if len(firsts) > 1 or firsts == {()}:
            shapes = ", ".join(
                f"{leaf_name(structure, i, name)} has shape {tuple(leaf.shape)}"
                for i, leaf in enumerate(leaves)
            )
            raise ValueError(
                f"{shapes}; wanted, with batched=True, the same first axis B in all of them"
            )
    return backends
