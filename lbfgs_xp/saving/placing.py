"""Where the arrays of a state belong that was saved by a run with another library.

In a run on NumPy, vectors and small algebra are both arrays of NumPy. Elsewhere the vectors belong
to the library of x, and the small algebra to it or to NumPy; see `Space.small`.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, dtype_name, is_array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.saving.encoding import on_host

# What belongs to the small algebra, although it may be as long as x.
_SMALL = ("with_gradient", "squared", "inverse", "gram", "diagonal")
# What belongs to the library of x, although it may be a single number.
_OWN = ("lower", "upper")
# What belongs to the library of x, in a dtype that may be lower than that of x.
_ROWS = "rows"


def placed(value: Any, space: Space, size: int, like: Any = None, name: str = "") -> Any:
    """A nested state with the arrays that a run in this space would have.

    size : how many variables a problem has.
    like : a state of such a run, which may lack parts; None if there is none.
    name : of the value, in the tuple that holds it.
    """
    if isinstance(value, tuple):
        alike = type(like) is type(value) and len(like) == len(value)
        names = getattr(value, "_fields", ("",) * len(value))
        items = [
            placed(item, space, size, like[i] if alike else None, names[i])
            for i, item in enumerate(value)
        ]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if not is_array(value) or isinstance(value, np.generic):
        return value
    if name == _ROWS:
        return as_own(space.backend, value)
    if is_array(like):
        host, dtype = isinstance(like, np.ndarray), dtype_name(like.dtype)
    else:
        vector = value.ndim > space.batched and value.shape[-1] == size and name not in _SMALL
        host = space.small_on_host and not (vector or name in _OWN)
        dtype = dtype_name(value.dtype)
        if dtype.startswith("float"):
            dtype = "float64" if host else dtype_name(space.backend.dtype)
    found = np.asarray(on_host(value), dtype=dtype)
    return found if host else as_own(space.backend, found)


def as_own(backend: Backend, value: Any) -> Array:
    """An array of NumPy, or on another device, as one of this backend; anything else as it is."""
    if isinstance(value, np.ndarray):
        return backend.from_host(value, getattr(backend.xp, dtype_name(value.dtype)))
    if is_array(value) and not isinstance(value, np.generic) and not backend.holds(value):
        return compat.to_device(value, backend.device)
    return value
