"""Complex data and residuals as real ones: the real parts of all, followed by the imaginary parts.

Parameters are real. The sum of the squares of both parts is that of the absolute values, so least
squares of the parts are least squares of complex numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, is_array, namespace_of


def is_complex(array: Any) -> bool:
    """Whether an array, or a list of numbers, is complex."""
    if isinstance(array, np.ndarray) or not is_array(array):
        return bool(np.iscomplexobj(np.asarray(array)))
    return bool(namespace_of(array).isdtype(array.dtype, "complex floating"))


def parts_of(array: Array, axis: int = -1) -> Array:
    """The real parts along an axis, followed by the imaginary ones, which are 0 for a real array.
    """
    xp = namespace_of(array)
    if is_complex(array):
        return xp.concat([xp.real(array), xp.imag(array)], axis=axis)
    return xp.concat([array, xp.zeros_like(array)], axis=axis)


def complex_dtype(xp: Any, real: Any) -> Any:
    """The complex dtype whose parts have this one."""
    return xp.complex64 if real == xp.float32 else xp.complex128


def joined(parts: Array, axis: int = -1) -> Array:
    """The complex array with these parts."""
    xp = namespace_of(parts)
    half = parts.shape[axis] // 2
    kind = complex_dtype(xp, parts.dtype)
    places: list[Any] = [slice(None)] * parts.ndim
    places[axis] = slice(half)
    real = parts[tuple(places)]
    places[axis] = slice(half, None)
    return xp.astype(real, kind) + xp.astype(parts[tuple(places)], kind) * 1j


def parts_of_sigma(sigma: Any, shape: tuple[int, ...]) -> Any:
    """The deviations of both parts, from sigma for complex data of this shape: real ones are those
    of both parts, and complex ones have a part for each. A covariance of all parts stays as it is.
    """
    if sigma is None:
        return None
    if not is_array(sigma):
        sigma = np.asarray(sigma)
    both = 2 * shape[-1]
    if len(shape) == 1 and tuple(sigma.shape) == (both, both) and not is_complex(sigma):
        return sigma
    xp = namespace_of(sigma)
    try:
        sigma = xp.broadcast_to(sigma, shape)
    except (ValueError, RuntimeError):
        covariance = ""
        if len(shape) == 1:
            covariance = (
                f", or a real covariance of shape {(both, both)}: of all real parts, followed by "
                "the imaginary parts"
            )
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; wanted a shape that broadcasts to {shape}, "
            f"that of y{covariance}"
        ) from None
    return parts_of(sigma) if is_complex(sigma) else xp.concat([sigma, sigma], axis=-1)
