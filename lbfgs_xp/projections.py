"""Projections onto convex sets: the nearest point, in the Euclidean norm, along the last axis.

Each set is a frozen dataclass and also a function of a vector (n,) or rows (..., n) of any library:
it returns the nearest points as an array of the same library, device and dtype. A point in the set
is returned unchanged, and so is a point that is outside only by rounding error (16 eps, relative to
the size of the set; a box is exact). Nothing is read back to the host, so a projection can be used
inside `jax.jit`.

Array settings may be lists, NumPy arrays, or arrays of x's library and device. They are copied, and
checked on the host once.

>>> import numpy as np
>>> from lbfgs_xp import projections
>>> projections.Box(lower=0.0, upper=[1.0, 2.0])(np.asarray([3.0, -1.0]))
array([1., 0.])
>>> projections.Simplex()(np.asarray([[1.0, 0.5], [0.25, 0.75]]))
array([[0.75, 0.25],
       [0.25, 0.75]])
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import array_api_compat as compat
import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.keyed import Keyed
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import number, setting

__all__ = ["Box", "Halfspace", "L1Ball", "L2Ball", "NonNegative", "Projection", "Simplex"]


@dataclasses.dataclass(frozen=True)
class Projection(Keyed, ABC):
    """A convex set, as the function that maps a point to the nearest point of the set.

    To write one, derive a frozen dataclass (this class defines equality, by the settings) and
    implement `project` with the reductions of the space.
    """

    takes_complex = False

    def __call__(self, x: Array) -> Array:
        """The nearest points to x (..., n).

        Raises
        ------
        TypeError, ValueError
            If x is not a floating-point array with at least one axis, is complex (which only
            `L2Ball` accepts), or does not fit the settings.
        """
        name = type(self).__name__
        if not is_array(x) or x.ndim == 0:
            what = "a 0-d array" if is_array(x) else f"a {type(x).__name__}"
            raise TypeError(f"{name} was given {what}; wanted an array (..., n)")
        backend = Backend.of(x, traced=True)
        if backend.complex and not self.takes_complex:
            raise TypeError(
                f"{name} was given dtype {x.dtype}; wanted real numbers, because complex ones have "
                "no order"
            )
        with backend.current(), np.errstate(all="ignore"):
            return self.nearest(Space(backend, batched=x.ndim > 1), x)

    def nearest(self, space: Space, x: Array) -> Array:
        """`project`, compiled if the library can and the space is not reproducible."""
        if space.reproducible:
            return self.project(space, x)
        return space.backend.jit(_project, self, space)(x)

    @abstractmethod
    def project(self, space: Space, x: Array) -> Array:
        """The nearest points to x (..., n), using the sums of `space`."""

    def of_rows(self, space: Space, count: int, here: Array) -> Projection:
        """The sets of the problems with the numbers `here`, out of `count`: settings (count, ...)
        have one row per problem."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own = {
            name: space.backend.take_from_any(value, space.send(here))
            for name, value in settings.items()
            if is_array(value) and value.ndim == 2 and value.shape[0] == count
        }
        return dataclasses.replace(self, **own) if own else self

    @functools.cached_property
    def _key(self) -> tuple:
        settings = vars(self).items()
        return tuple((name, fingerprint(value)) for name, value in settings)


@dataclasses.dataclass(frozen=True)
class Box(Projection):
    """lower <= x <= upper, component by component.

    lower, upper : None for no bound, a number, or an array that broadcasts to x; an infinity is no
        bound.

    >>> import numpy as np
    >>> Box(-1.0, 1.0)(np.asarray([-3.0, 0.5, 2.0]))
    array([-1. ,  0.5,  1. ])
    """

    lower: Any = None
    upper: Any = None

    def __post_init__(self) -> None:
        lower = _own(self, "lower", missing=-math.inf)
        upper = _own(self, "upper", missing=math.inf)
        try:
            empty = (lower > upper) | (lower == math.inf) | (upper == -math.inf)
        except ValueError:
            raise ValueError(
                f"lower has shape {lower.shape} and upper {upper.shape}; wanted shapes that "
                "broadcast"
            ) from None
        if np.any(empty):
            low, high = (side[empty] for side in np.broadcast_arrays(lower, upper))
            index = tuple(map(int, np.argwhere(empty)[0]))
            place = f" at index {index[0] if len(index) == 1 else index}" if index else ""
            raise ValueError(
                f"lower is {low[0]} and upper is {high[0]}{place}; wanted lower <= upper, "
                "lower < inf and upper > -inf"
            )

    def sides(self, space: Space, x: Array) -> tuple[Any, Any]:
        """The bounds as arrays that broadcast to x; None for a side without any."""
        # Arrays, because not every library's `maximum` takes Python numbers.
        lower = None if _is(self.lower, -math.inf) else like(space, self.lower, "lower", x)
        return lower, None if _is(self.upper, math.inf) else like(space, self.upper, "upper", x)

    def project(self, space: Space, x: Array) -> Array:
        lower, upper = self.sides(space, x)
        if lower is not None:
            x = space.xp.maximum(x, lower)
        return x if upper is None else space.xp.minimum(x, upper)


@dataclasses.dataclass(frozen=True)
class NonNegative(Projection):
    """x >= 0, component by component.

    >>> import numpy as np
    >>> NonNegative()(np.asarray([-3.0, 0.5]))
    array([0. , 0.5])
    """

    def project(self, space: Space, x: Array) -> Array:
        return space.xp.maximum(x, space.xp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class Simplex(Projection):
    """x >= 0, component by component, with sum `total`.

    total : float > 0.

    By sorting: Held, Wolfe & Crowder (1974); Duchi, Shalev-Shwartz, Singer & Chandra (2008).

    >>> import numpy as np
    >>> Simplex(total=2.0)(np.asarray([3.0, 2.0, -1.0]))
    array([1.5, 0.5, 0. ])
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        setting(self, "total", number, above=0.0)

    def project(self, space: Space, x: Array) -> Array:
        xp = space.xp
        excess = xp.abs(space.sum(x) * (1.0 / self.total) - 1.0)
        inside = (excess <= space.backend.noise) & ~xp.any(x < 0.0, axis=-1)
        return xp.where(inside[..., None], x, _onto_simplex(space, x, self.total))


@dataclasses.dataclass(frozen=True)
class L1Ball(Projection):
    """|x_1| + ... + |x_n| <= radius.

    radius : float > 0.

    The magnitudes are projected onto the simplex (Duchi et al. 2008, section 4).

    >>> import numpy as np
    >>> L1Ball()(np.asarray([1.5, -1.0, 0.1]))
    array([ 0.75, -0.25,  0.  ])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        setting(self, "radius", number, above=0.0)

    def project(self, space: Space, x: Array) -> Array:
        xp = space.xp
        sizes = xp.abs(x)
        inside = space.sum(sizes) * (1.0 / self.radius) - 1.0 <= space.backend.noise
        nearest = xp.sign(x) * _onto_simplex(space, sizes, self.radius)
        return xp.where(inside[..., None], x, nearest)


@dataclasses.dataclass(frozen=True)
class L2Ball(Projection):
    """The Euclidean distance of x from `center` is at most `radius`.

    radius : float > 0.
    center : None for the origin, a number, or an array that broadcasts to x.

    x may be complex, with |x - center|^2 the sum of |x_i - center_i|^2.

    >>> import numpy as np
    >>> L2Ball(radius=5.0)(np.asarray([6.0, 8.0]))
    array([3., 4.])
    """

    radius: float = 1.0
    center: Any = None

    takes_complex = True

    def __post_init__(self) -> None:
        setting(self, "radius", number, above=0.0)
        _finite("center", _own(self, "center", missing=0.0))

    def project(self, space: Space, x: Array) -> Array:
        xp = space.xp
        offset = x
        if not _is(self.center, 0.0):
            offset = x - like(space, self.center, "center", x)
        # In units of the largest component, so that no square overflows.
        unit = _unit(space, space.max_abs(offset))
        offset = offset * (1.0 / unit)[..., None]
        parts = xp.abs(offset)
        length = space.sqrt(space.dot(parts, parts))
        radius = space.backend.full((), self.radius)
        reach = radius / unit
        slack = space.backend.noise * reach
        nearest = offset * (radius / length)[..., None]
        if not _is(self.center, 0.0):
            center = like(space, self.center, "center", x)
            nearest = nearest + center
            # x - center has the rounding errors of both.
            size = space.max_abs(xp.broadcast_to(center, x.shape))
            slack = slack + space.backend.noise * (size / unit)
        inside = length <= reach + slack
        return xp.where(inside[..., None], x, nearest)


@dataclasses.dataclass(frozen=True)
class Halfspace(Projection):
    """normal . x <= offset.

    normal : array (n,), not all zero.
    offset : float.

    >>> import numpy as np
    >>> Halfspace(normal=[1.0, 1.0], offset=1.0)(np.asarray([1.0, 2.0]))
    array([0., 1.])
    """

    normal: Any
    offset: float

    def __post_init__(self) -> None:
        normal = _own(self, "normal")
        _finite("normal", normal)
        if normal.ndim != 1 or not np.any(normal):
            raise ValueError(
                f"normal is {self.normal!r}; wanted an array (n,) with a nonzero entry"
            )
        _finite("offset", _own(self, "offset"))
        if not isinstance(self.offset, float):
            raise ValueError(f"offset is {self.offset!r}; wanted a number")

    def project(self, space: Space, x: Array) -> Array:
        xp = space.xp
        if self.normal.shape != tuple(x.shape[-1:]):
            raise ValueError(
                f"normal has shape {self.normal.shape}; wanted {tuple(x.shape[-1:])}, like x"
            )
        normal = like(space, self.normal, "normal", x)
        # In units of the largest components, so that no product overflows.
        per_normal = 1.0 / _unit(space, space.max_abs(normal))
        unit = _unit(space, space.max_abs(x), least=1.0)
        normal = normal * per_normal
        level = self.offset * per_normal * (1.0 / unit)
        height = space.dot(xp.broadcast_to(normal, x.shape), x * (1.0 / unit)[..., None])
        excess = height - level
        # The rounding error of a sum is relative to the size of its terms.
        sizes = xp.abs(xp.broadcast_to(normal, x.shape)), xp.abs(x * (1.0 / unit)[..., None])
        terms = space.dot(*sizes)
        inside = excess <= space.backend.noise * (terms + xp.abs(level))
        step = excess * (1.0 / space.dot(normal, normal))
        nearest = x - (step[..., None] * normal) * unit[..., None]
        return xp.where(inside[..., None], x, nearest)


def _project(projection: Projection, space: Space, x: Array) -> Array:
    return projection.project(space, x)


def _onto_simplex(space: Space, x: Array, total: float) -> Array:
    """max(x - threshold, 0), whose sum is `total`.

    The threshold is the largest of t_k = (the sum of the k largest x - total) / k, because t_k
    grows with k as long as the next x is above it.
    """
    xp = space.xp
    descending = xp.sort(x, axis=-1, descending=True)
    largest = descending[..., :1]
    # In units of `total`, relative to the largest; entries more than 1 below it become 0.
    floor = xp.full_like(largest, -1.0)
    descending = xp.maximum((descending - largest) * (1.0 / total), floor)
    x = xp.maximum((x - largest) * (1.0 / total), floor)
    counts = xp.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=space.backend.creation_device)
    candidates = (space.cumulative_sum(descending) - 1.0) * (1.0 / counts)
    threshold = xp.max(candidates, axis=-1, keepdims=True)
    # Long sums have rounding errors, so correct the threshold with the entries that are left.
    left = xp.astype(x > threshold, x.dtype)
    above = xp.maximum(x - threshold, xp.zeros_like(x))
    threshold = threshold + ((space.sum(above) - 1.0) / space.sum(left))[..., None]
    return total * xp.maximum(x - threshold, xp.zeros_like(x))


# --- settings ----------------------------------------------------------------------------------


def _finite(name: str, host: np.ndarray) -> None:
    if not np.all(np.isfinite(host)):
        raise ValueError(f"{name} has entries that are not finite; wanted finite numbers")


def _own(projection: Projection, name: str, missing: float | None = None) -> np.ndarray:
    """Turn a setting into a float or a copied array, and return its numbers on the host."""
    value: Any = getattr(projection, name)
    if value is None:
        value = missing
    elif is_array(value) and not isinstance(value, (np.ndarray, np.generic)):
        if not compat.array_namespace(value).isdtype(value.dtype, "real floating"):
            raise TypeError(f"{name} has dtype {value.dtype}; wanted a real floating-point dtype")
        backend = Backend.of(value)
        host = backend.to_host(value).astype(np.float64)
        value = backend.own(value)
    if not is_array(value) or isinstance(value, (np.ndarray, np.generic)):
        host = Backend.of(np.zeros(1)).adopt(value, name)
        value = float(host) if host.ndim == 0 else host
    if np.any(np.isnan(host)):
        raise ValueError(f"{name} has entries that are nan; wanted numbers")
    object.__setattr__(projection, name, value)
    return host


def _is(setting: Any, number: float) -> bool:
    return isinstance(setting, float) and setting == number


def like(space: Space, setting: Any, name: str, x: Array) -> Array:
    """A setting as an array with the library, device and dtype of x that broadcasts to x."""
    if isinstance(setting, float):
        return space.backend.full((), setting)
    shape = tuple(setting.shape)
    theirs = tuple(x.shape)[-len(shape) :] if shape else ()
    if len(shape) > x.ndim or any(a not in (1, b) for a, b in zip(shape, theirs, strict=True)):
        raise ValueError(f"{name} has shape {shape}; wanted one that broadcasts to {x.shape}")
    return space.backend.adopt(setting, name)


def _unit(space: Space, size: Array, least: float = 0.0) -> Array:
    """Units to scale by: the sizes, limited to numbers whose reciprocals have full precision.

    Vectors are multiplied by the reciprocal, because some compilers turn a division into that
    product and others do not.
    """
    xp, full = space.xp, space.backend.full
    tiny = 4.0 * float(xp.finfo(size.dtype).smallest_normal)
    return xp.minimum(xp.maximum(size, full((), max(least, tiny))), full((), 1.0 / tiny))


def fingerprint(setting: Any) -> Any:
    """A key for a setting; arrays with equal backends, shapes and numbers have equal keys."""
    if not is_array(setting):
        return setting
    backend = Backend.of(setting)
    host = np.ascontiguousarray(backend.to_host(setting))
    return backend, host.shape, hashlib.sha256(host.tobytes()).hexdigest()
