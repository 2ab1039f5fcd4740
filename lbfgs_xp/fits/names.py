"""The names of the numbers that a fit determines, in the order in which its results list them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.tree import Layout, Partial, flatten, unflatten

_FUNCTION = type(lambda: None)
# How many names a message lists.
_NAMED = 10


def listed_order(layout: Layout) -> np.ndarray:
    """For each number, in the order in which x lists them, its place in the vector (p,): leaves of
    a dict come in the order of their keys in the dict, whereas the vector sorts the keys."""
    structure = layout.structure
    if structure.is_leaf():
        return np.arange(layout.size)
    leaves = np.split(np.arange(layout.size), np.cumsum(layout.sizes)[:-1])
    if isinstance(structure, Partial):
        structure = structure.frozen_in(None)
    if hasattr(structure, "leaves_of"):    # whose leaves are in their order
        return np.concatenate(leaves)
    listed = _listed(unflatten(structure, leaves))
    return np.concatenate([leaf for leaf in listed if leaf is not None])


def sorted_places(layout: Layout) -> tuple[int, ...] | None:
    """For each number of the vector (p,), its place among those that x lists; None if the order is
    the same."""
    places = np.argsort(listed_order(layout))
    return None if (places == np.arange(layout.size)).all() else tuple(map(int, places))


def names_of(model: Callable, layout: Layout) -> tuple[str, ...]:
    """The names of the p numbers in their listed order: the keys of a dict, joined by dots if it is
    nested; otherwise the names of the model's arguments, or x[0], x[1], ... A leaf of several
    numbers has a name for each: "peaks[0]". ValueError if a p0 without names holds more or fewer
    numbers than the model takes."""
    each = [shape[len(layout.batch) :] for shape in layout.shapes]
    if layout.plain:
        positional = _arguments(model, layout.size)
        if not positional:
            _check_count(model, layout.size)
        return positional or tuple(f"x[{i}]" for i in range(layout.size))
    paths = [".".join(map(str, path)) for path in layout.structure.paths()]
    if all(path.isdecimal() for path in paths):    # a tuple of arrays
        paths = list(_arguments(model, len(paths))) or [f"x[{path}]" for path in paths]
    names: list[str] = []
    for path, shape in zip(paths, each, strict=True):
        names += [path + (str(list(map(int, k))) if k else "") for k in np.ndindex(*shape)]
    return tuple(names[i] for i in listed_order(layout))


def free_names(names: tuple[str, ...], layout: Layout) -> list[str]:
    """The names of the numbers of a vector of the layout; names : as from `names_of`, or () for
    those of the start."""
    if not names:
        return layout.number_names(layout.name)
    listed = np.argsort(listed_order(layout.whole))
    free = getattr(layout, "free", range(layout.size))
    return [names[listed[place]] for place in free]


def shortened(names: list[str]) -> str:
    """These names in a message."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def places_of(
    names: tuple[str, ...], parameter: str | int, what: str = "parameter is"
) -> list[int]:
    """The listed places of a parameter: of all numbers of a leaf, or of one, by name or number.

    what : how an error begins.
    """
    if isinstance(parameter, str):
        if parameter in names:
            return [names.index(parameter)]
        inside = tuple(parameter + sign for sign in "[.")
        if found := [i for i, name in enumerate(names) if name.startswith(inside)]:
            return found
        raise ValueError(
            f"{what} {parameter!r}; wanted one of {', '.join(map(repr, names))}"
        )
    place = checks.integer(parameter)
    if place is None or not -len(names) <= place < len(names):
        raise ValueError(
            f"{what} {checks.shown(parameter)}; wanted a name, one of "
            f"{', '.join(map(repr, names))}, or a number below {len(names)}"
        )
    return [place % len(names)]


def place_of(names: tuple[str, ...], parameter: str | int) -> int:
    """The listed place of one number."""
    places = places_of(names, parameter)
    if len(places) > 1:
        raise ValueError(
            f"parameter is {parameter!r}, which holds {len(places)} numbers; wanted one of them: "
            + ", ".join(repr(names[i]) for i in places)
        )
    return places[0]


def row_of(name: str, value: Any, count: int) -> int:
    """The number of a fit in a batch; `name` is what the user calls it."""
    number = checks.count(name, value, 0)
    if number >= count:
        raise ValueError(f"{name} is {number}; wanted the number of a fit below {count}")
    return number


def _arguments(model: Callable, count: int) -> tuple[str, ...]:
    """The names of the arguments of a model after x, if there are `count` of them."""
    code = getattr(model, "__code__", None) if type(model) is _FUNCTION else None
    if code is not None and code.co_argcount == count + 1 and not vars(model):
        return code.co_varnames[1 : count + 1]
    return next((tuple(each) for each in _positional(model) if len(each) == count), ())


def _signature(model: Callable) -> list[inspect.Parameter]:
    """The arguments of a model after x; none if it does not tell them."""
    try:
        return list(inspect.signature(model).parameters.values())[1:]
    except (TypeError, ValueError):
        return []


def _positional(model: Callable) -> tuple[list[str], list[str]]:
    """The names of the arguments of a model after x, of all and of those without a default; both
    empty if there may be any number."""
    found = _signature(model)
    if any(each.kind is each.VAR_POSITIONAL for each in found):
        return [], []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [each for each in found if each.kind in kinds]
    required = [each.name for each in named if each.default is each.empty]
    return [each.name for each in named], required


def _check_count(model: Callable, count: int) -> None:
    named, required = _positional(model)
    if named and not len(required) <= count <= len(named):
        least, most = max(len(required), 1), len(named)
        wanted = f"{most}" if least == most else f"{least} to {most}"
        raise ValueError(
            f"p0 holds {count} number{'s' if count > 1 else ''}; wanted {wanted}: the model takes "
            f"{', '.join(named)} after x"
        )


def check_keys(model: Callable, p0: dict) -> None:
    """Refuse names in p0 that the model does not take, and a p0 without those that it needs."""
    code = getattr(model, "__code__", None) if type(model) is _FUNCTION else None
    if code is not None and p0.keys() == {*code.co_varnames[1 : code.co_argcount]}:
        return
    found = _signature(model)
    named = [each for each in found if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    wanted = f"the model takes {', '.join(each.name for each in named)} after x"
    if not any(each.kind is each.VAR_KEYWORD for each in found):
        unknown = [key for key in p0 if key not in {each.name for each in named}]
        if named and unknown:
            raise ValueError(f"p0 names {', '.join(map(repr, unknown))}; {wanted}")
    missing = [each.name for each in named if each.default is each.empty and each.name not in p0]
    if missing:
        raise ValueError(f"p0 is without {', '.join(map(repr, missing))}; {wanted}")


def _listed(tree: Any) -> list[Any]:
    """The leaves in the order in which the tree lists them; `flatten` sorts the keys of a dict."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    elif not isinstance(tree, (list, tuple)):
        return flatten(tree)[0]
    return [leaf for part in tree for leaf in _listed(part)]
