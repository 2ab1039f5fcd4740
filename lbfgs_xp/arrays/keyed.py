"""Equality by a key: what is compiled for one object serves every other with an equal key."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat


class Keyed:
    """Objects of one type are equal if their `_key` is, which has to be hashable."""

    _key: Any

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        # In the class's own dict, or a dataclass would write others.
        cls.__eq__, cls.__hash__ = cls.__eq__, cls.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def key_of(setting: Any) -> Any:
    """A setting as part of a key: arrays, and all else that cannot be hashed, count as the same
    setting only if they are the same object."""
    if compat.is_array_api_obj(setting):
        return id(setting)
    try:
        hash(setting)
    except TypeError:
        return id(setting)
    return setting
