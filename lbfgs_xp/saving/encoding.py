"""States as plain data and arrays, and back.

The plain data is what JSON holds: numbers, strings, lists, and dicts with one key, which says what
the value stands for. Classes are those of this package only, so reading a file runs no code from
it.
"""

from __future__ import annotations

import enum
import importlib
import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, class_of, dtype_name, is_array, namespace_of
from lbfgs_xp.arrays.pending import Pending

_PACKAGE = __name__.partition(".")[0]
# What a value in a file may stand for; each has a method of `Decoder`.
_KINDS = (
    "float", "bytes", "scalar", "host", "array", "bfloat16", "tuple", "list", "dict", "enum",
    "named", "saved",
)
# The kinds of dtypes of NumPy that a file may hold: not objects, nor what has to be a pickle.
_DTYPES = "biufcSU"


class Unsaved(TypeError):
    """Something that has no form in a file; the message says where it is."""


# --- encoding ----------------------------------------------------------------------------------


class Encoder:
    """Nested states as plain data.

    arrays : the arrays met so far, as they are; the data refers to them by their positions.
    """

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._places: dict[int, int] = {}

    def __call__(self, value: Any, path: str = "state") -> Any:
        """The plain data of a value; an array that occurs twice is kept once."""
        if isinstance(value, Pending):
            value = float(value)
        if isinstance(value, enum.Enum):
            return {"enum": [_class_name(type(value), path), value.value]}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, np.generic):
            return {"scalar": self._place(np.asarray(value))}
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if is_array(value):
            kind = "host" if isinstance(value, np.ndarray) else "array"
            if (name := dtype_name(value.dtype)) == "bfloat16" and kind == "array":
                kind = name
            elif kind == "host" and value.dtype.kind not in _DTYPES:
                raise Unsaved(
                    f"{path} is an array of dtype {value.dtype}; wanted numbers, booleans or "
                    "strings"
                )
            return {kind: self._place(value)}
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if hasattr(type(value), "to_saved"):
            return {"saved": [_class_name(type(value), path), self(value.to_saved(), path)]}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = zip(value._fields, value, strict=True)
            items = {name: self(item, f"{path}.{name}") for name, item in fields}
            return {"named": [_class_name(type(value), path), items]}
        if isinstance(value, (tuple, list)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self(item, f"{path}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, dict):
            return {
                "dict": [[self(k, path), self(v, f"{path}[{k!r}]")] for k, v in value.items()]
            }
        raise Unsaved(
            f"{path} is a {type(value).__name__}; wanted arrays, numbers, strings, None, and "
            "tuples, lists and dicts of them"
        )

    def _place(self, array: Array) -> int:
        place = self._places.setdefault(id(array), len(self.arrays))
        if place == len(self.arrays):
            self.arrays.append(array)
        return place


def _class_name(cls: type, path: str) -> str:
    if cls.__module__.partition(".")[0] != _PACKAGE:
        raise Unsaved(
            f"{path} is a {cls.__module__}.{cls.__qualname__}; wanted plain tuples, lists and "
            "dicts, as only the classes of this package are known to a file"
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def on_host(array: Array) -> np.ndarray:
    """A copy or view of an array in NumPy; one of bfloat16, which NumPy lacks, in float32."""
    if isinstance(array, np.ndarray):
        return array
    if dtype_name(array.dtype) == "bfloat16":
        xp = namespace_of(array)
        array = xp.astype(array, xp.float32)
    return class_of(array).to_host(array)


# --- decoding ----------------------------------------------------------------------------------


class Decoder:
    """Plain data as nested states again.

    Classes whose objects refer to more than arrays have `to_saved`, which returns a tuple, and
    `from_saved`, which takes that tuple and this decoder.

    arrays : the arrays of the file, on the host.
    backend : of the arrays to make.
    library : the library of the run that has written the file.
    like : nested parameters, like those of that run.
    """

    def __init__(
        self, arrays: list[np.ndarray], backend: Backend, library: str, like: Any = None
    ):
        self.arrays, self.backend, self.library, self.like = arrays, backend, library, like
        self._made: dict[int, Array] = {}

    def __call__(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        ((kind, content),) = data.items()
        if kind not in _KINDS:
            raise ValueError(f"the file holds a {kind!r}; wanted one of {', '.join(_KINDS)}")
        return getattr(self, f"_{kind}")(content)

    def _float(self, text: str) -> float:
        return float(text)

    def _bytes(self, text: str) -> bytes:
        return bytes.fromhex(text)

    def _scalar(self, place: int) -> Any:
        return self.arrays[place][()]

    def _host(self, place: int) -> np.ndarray:
        return self.arrays[place]

    def _array(self, place: int) -> Array:
        if place not in self._made:
            host = self.arrays[place]
            dtype = getattr(self.backend.xp, dtype_name(host.dtype))
            self._made[place] = self.backend.from_host(host, dtype)
        return self._made[place]

    def _bfloat16(self, place: int) -> Array:
        dtype = getattr(self.backend.xp, "bfloat16", None)
        if dtype is None:
            raise ValueError(
                f"the file holds arrays of bfloat16, which {self.backend.name} lacks; wanted "
                "parameters of a library that has it, such as PyTorch"
            )
        return self.backend.xp.astype(self._array(place), dtype)

    def _tuple(self, items: list) -> tuple:
        return tuple(map(self, items))

    def _list(self, items: list) -> list:
        return list(map(self, items))

    def _dict(self, items: list) -> dict:
        return {self(key): self(value) for key, value in items}

    def _enum(self, content: list) -> Any:
        name, value = content
        return _class_named(name, enum.Enum)(value)

    def _named(self, content: list) -> Any:
        name, items = content
        cls = _class_named(name, tuple)
        if [*items] != [*getattr(cls, "_fields", ())]:
            raise ValueError(f"{name} has other fields in the version that has written the file")
        return cls._make(map(self, items.values()))

    def _saved(self, content: list) -> Any:
        name, data = content
        return _class_named(name, object).from_saved(self(data), self)


def _class_named(name: str, base: type) -> Any:
    module, _, qualname = name.partition(":")
    if module.partition(".")[0] != _PACKAGE:
        raise ValueError(f"the class {name} is not of {_PACKAGE}")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise ValueError(
            f"there is no {name}, unlike in the version that has written the file"
        ) from None
    # Not a class that a module of ours has only imported.
    own = isinstance(found, type) and found.__module__.partition(".")[0] == _PACKAGE
    if not (own and issubclass(found, base)):
        raise ValueError(f"{name} is no class of states")
    return found
