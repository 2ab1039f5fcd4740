"""Settings and data as plain values that are only compared: what must not differ between a run and
the one that goes on from it.

Data are known by a fingerprint. A digest would refuse data that were computed again, by another
library or with other threads, and differ in the last bits. Sums with weights by place do not, and
still see rows in another order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, dtype_name, is_array
from lbfgs_xp.arrays.tree import flatten, leaf_name
from lbfgs_xp.saving.encoding import on_host

# The most elements that are looked at, evenly spaced; and how far sums may differ, as a power of
# eps, relative to the sum of the sizes.
_MOST, _SAME = 2**16, 0.6
_LARGEST = 1e290
# The most characters of a description in an error.
_LONGEST = 100


def kind_of(array: Array) -> str:
    """The dtype and the shape of an array, as in "float64 [3, 2]"."""
    return f"{dtype_name(array.dtype)} {list(array.shape)}"


def kinds_of(leaves: list[Array], structure: Any, name: str) -> dict[str, str]:
    """`kind_of` for the leaves of nested parameters, by their paths; `name` names the whole."""
    return {leaf_name(structure, i, name): kind_of(leaf) for i, leaf in enumerate(leaves)}


def described(value: Any) -> Any:
    """Settings as plain data that can be compared with those in a file.

    Arrays become digests. A function is known by its name only.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return repr(value)
    if is_array(value):
        host = on_host(value)
        digest = hashlib.sha256(host.tobytes()).hexdigest()[:16]
        return f"{host.dtype} {list(value.shape)} {digest}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "class": type(value).__name__,
            **{
                field.name: described(getattr(value, field.name))
                for field in dataclasses.fields(value)
            },
        }
    if isinstance(value, (tuple, list)):
        return [described(item) for item in value]
    if isinstance(value, dict):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, Described):
        return value.description
    if callable(value):
        named = getattr(value, "__qualname__", None) or type(value).__qualname__
        return f"function {getattr(value, '__module__', '')}.{named}"
    return f"{type(value).__name__}"


class Described:
    """Settings that are known by their description only; equal to all settings that have it."""

    def __init__(self, description: Any):
        self.description = description

    def __eq__(self, other: object) -> bool:
        return described(other) == self.description

    __hash__ = None  # type: ignore[assignment]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two descriptions, as "path is old there and new here"."""
    if _is_fingerprint(old) and _is_fingerprint(new) and _short(old) == _short(new):
        return [f"{path} has other values here than there"] if _are_other(old, new) else []
    if _is_fingerprint(old) or _is_fingerprint(new):
        return [f"{path} is {_short(old)} there and {_short(new)} here"]
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        found = []
        for key in {**old, **new}:
            where = f"{path}.{key}" if path else key
            found += differences(old.get(key), new.get(key), where)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [text for i, (a, b) in pairs for text in differences(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path} is {_short(old)} there and {_short(new)} here"]


def _short(description: Any) -> str:
    """A description in a few words: of settings, their class."""
    if isinstance(description, list):
        return f"[{', '.join(map(_short, description))}]"
    named = description if isinstance(description, dict) else {}
    # The method of a phase, and the optimizer by which a method steps.
    if inner := named.get("method") or named.get("optimizer"):
        return _short(inner)
    text = named.get("class") or named.get("fingerprint") or str(description)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


# --- data ---------------------------------------------------------------------------------------


def fingerprints(data: Any, name: str) -> dict[str, Any]:
    """What is known of the arrays in nested data, by their paths; `name` names the whole."""
    leaves, structure = flatten(data)
    return {
        leaf_name(structure, i, name): fingerprint(leaf)
        for i, leaf in enumerate(leaves) if is_array(leaf)
    }


def fingerprint(array: Array) -> dict[str, Any]:
    """The kind of an array and, for numbers, the weighted sum of elements that are evenly spaced,
    with the sum of their sizes, how many are not finite, and eps; for text, a digest."""
    dtype = dtype_name(array.dtype)
    # Integers have other widths in other libraries.
    family = dtype.rstrip("0123456789") if "int" in dtype else dtype
    found: dict[str, Any] = {"fingerprint": f"{family} {list(array.shape)}"}
    if not dtype.startswith(("bool", "int", "uint", "float", "bfloat", "complex", "str")):
        return found
    host = np.asarray(on_host(_spaced(array)))
    if host.dtype.kind in "SU":
        return {**found, "sums": hashlib.sha256(host.tobytes()).hexdigest()}
    if host.dtype.kind == "c":
        host = np.stack([host.real, host.imag])
    eps = float(np.finfo(host.dtype).eps) if host.dtype.kind == "f" else 0.0
    # As long as their sum is finite.
    numbers = np.clip(host.astype(np.float64).reshape(-1), -_LARGEST, _LARGEST)
    finite = np.isfinite(host.reshape(-1))
    weights = np.random.default_rng(0).uniform(-1.0, 1.0, numbers.size)
    terms = weights * np.where(finite, numbers, 0.0)
    sums = [math.fsum(terms), math.fsum(np.abs(terms)), float(numbers.size - finite.sum()), eps]
    return {**found, "sums": sums}


def _spaced(array: Array) -> Array:
    """At most about `_MOST` elements: slices of every axis, which are views."""
    step, places = max(math.prod(array.shape), 1) / _MOST, []
    for length in array.shape:
        here = min(math.ceil(step), max(length, 1))
        places.append(slice(None, None, here))
        step /= here
    return array[tuple(places)] if array.ndim else array


def _is_fingerprint(description: Any) -> bool:
    return isinstance(description, dict) and "fingerprint" in description


def _are_other(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether these are fingerprints of other values, for arrays of the same kind."""
    before, now = old.get("sums"), new.get("sums")
    if not (isinstance(before, list) and isinstance(now, list)):
        return before != now
    (total, size, lost, eps), (here, size_here, lost_here, eps_here) = before, now
    margin = max(eps, eps_here, 2.0**-52) ** _SAME * max(size, size_here)
    return lost != lost_here or abs(total - here) > margin
