"""Equality by a key: what is compiled for one object serves all others with an equal key."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat


class Keyed:
    """Objects of the same type are equal if their `_key`, which must be hashable, is equal."""

    _key: Any

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        # In the class's own dict, so that the dataclass decorator does not generate others.
        cls.__eq__, cls.__hash__ = cls.__eq__, cls.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def key_of(setting: Any) -> Any:
    """A setting as part of a key; arrays and unhashable settings are compared by identity."""
    if compat.is_array_api_obj(setting):
        return id(setting)
    try:
        hash(setting)
    except TypeError:
        return id(setting)
    return setting
