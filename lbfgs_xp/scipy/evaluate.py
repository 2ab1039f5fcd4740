"""A user's function with SciPy's conventions: the value, the gradient, and finite differences."""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
from typing import Any

import numpy as np

from lbfgs_xp.arrays.returned import described

# SciPy's own sentences, for callers that look for them.
_OTHER_LENGTH = "The number of bounds is not compatible with the length of `x0`."


class Evaluate:
    """x -> (value, gradient), and how often fun and jac were called.

    Parameters
    ----------
    fun, args
        As in `scipy.optimize.minimize`.
    jac : function, None or "cs"
        The gradient; SciPy's forward differences; or differences along the imaginary axis.
    eps : numbers (n,)
        The steps of the forward differences.
    lower, upper : numbers (n,)
        Between which forward differences call fun.
    """

    def __init__(
        self, fun: Any, jac: Any, args: tuple[Any, ...], eps: np.ndarray,
        lower: np.ndarray, upper: np.ndarray,
    ):
        if not callable(fun):
            raise TypeError(f"fun is a {type(fun).__name__}; wanted a function of x")
        self.fun, self.jac, self.args = fun, jac, args
        self.eps, self.lower, self.upper = eps, lower, upper
        self.nfev = self.njev = 0

    def __call__(self, x: np.ndarray) -> tuple[Any, np.ndarray]:
        value = self.value(x)
        if callable(self.jac):
            return value, self.gradient(x)
        if self.jac == "cs":
            return value, self.complex_differences(x)
        return value, self.differences(x, value)

    def value(self, x: np.ndarray) -> Any:
        """The value at x, one real number."""
        value = self._called(x)
        if not isinstance(value, numbers.Real):
            # With SciPy's own sentence, for callers that look for it.
            raise ValueError(
                f"fun returned {described(value)}; wanted a single real number: The user-provided "
                "objective function must return a scalar value."
            )
        return value

    def gradient(self, x: np.ndarray) -> Any:
        """The gradient from jac; a column or a row of n numbers is flattened, as in SciPy."""
        self.njev += 1
        found = self.jac(np.copy(x), *self.args)
        if isinstance(found, (list, tuple, numbers.Real)):
            found = np.asarray(found, dtype=np.float64)
        if isinstance(found, np.ndarray) and found.size == x.size:
            return np.reshape(found, x.shape)
        return found

    def differences(self, x: np.ndarray, value: Any) -> np.ndarray:
        """Forward differences, or backward ones if a bound is in the way; 0 for fixed variables.

        SciPy's own, with the absolute steps that its users know as eps.
        """
        from scipy.optimize import approx_fprime

        before, ahead = x - self.lower, self.upper - x
        steps = np.where(ahead >= np.minimum(before, self.eps), ahead, -before)
        steps = np.clip(steps, -self.eps, self.eps)
        free = steps != 0.0
        gradient = np.zeros_like(x)

        def value_at(part: np.ndarray) -> Any:
            point = np.copy(x)
            point[free] = part
            # SciPy also asks for the value at x itself, which is known.
            return value if np.array_equal(point, x) else self.value(
                np.clip(point, self.lower, self.upper)
            )

        if free.any():
            gradient[free] = approx_fprime(x[free], value_at, steps[free])
        return gradient

    def complex_differences(self, x: np.ndarray) -> np.ndarray:
        """Im f(x + i h) / h for each variable, which no rounding spoils; fun must be analytic."""
        gradient = np.empty_like(x)
        for i, step in enumerate(complex_steps(x)):
            point = x.astype(np.complex128)
            point[i] += 1j * step
            value = self._called(point)
            if not isinstance(value, numbers.Complex) or isinstance(value, numbers.Real):
                raise ValueError(
                    f'fun returned {described(value)} for complex x; wanted a complex number for '
                    'jac="cs", which needs a function that is analytic'
                )
            gradient[i] = value.imag / step
        return gradient

    def _called(self, x: np.ndarray) -> Any:
        self.nfev += 1
        value = self.fun(np.copy(x), *self.args)
        return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def takes_result(callback: Any) -> bool:
    """Whether a callback takes SciPy's intermediate result instead of x."""
    try:
        names = set(inspect.signature(callback).parameters)
    except ValueError:    # a function in C
        return False
    return names == {"intermediate_result"}


def are_bounds(lower: np.ndarray, upper: np.ndarray) -> bool:
    """Whether any of these limits is finite."""
    return bool(np.any(np.isfinite(lower)) or np.any(np.isfinite(upper)))


def complex_steps(x: np.ndarray) -> np.ndarray:
    """Steps along the imaginary axis: tiny, because nothing cancels, but far from underflow."""
    return 1e-30 * np.maximum(np.abs(x), 1e-30)


def positive(name: str, value: Any, n: int) -> np.ndarray:
    """A number above 0 for each variable, (n,), from one for all or from n."""
    found = None
    with contextlib.suppress(TypeError, ValueError):
        found = np.broadcast_to(np.asarray(value, dtype=np.float64), (n,))
    if found is None or not np.all((found > 0.0) & (found < math.inf)):
        raise ValueError(
            f"{name} is {value!r}; wanted a number above 0, or {n} of them, one for each variable"
        )
    return found


def sides(bounds: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper bounds (n,), from SciPy's `Bounds` or from n pairs."""
    if bounds is None:
        bounds = [(None, None)] * n
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        lower, upper = bounds.lb, bounds.ub
    else:
        try:
            pairs = [tuple(pair) for pair in bounds]
        except TypeError:
            pairs = []
        if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"bounds is {bounds!r}; wanted scipy.optimize.Bounds(...) or {n} pairs "
                f"(low, high), one for each variable: {_OTHER_LENGTH}"
            )
        lower = [-math.inf if low is None else low for low, _ in pairs]
        upper = [math.inf if high is None else high for _, high in pairs]
    return limits(lower, upper, n)


def limits(lower: Any, upper: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds as arrays (n,); each a number or n of them."""
    found = []
    for name, side in (("lower", lower), ("upper", upper)):
        try:
            found.append(np.broadcast_to(np.asarray(side, dtype=np.float64), (n,)))
        except (TypeError, ValueError):
            raise ValueError(
                f"the {name} bound is {side!r}; wanted a number, or {n} of them, one for each "
                f"variable: {_OTHER_LENGTH}"
            ) from None
    low, high = found
    # An interval must hold a number: neither nan nor infinity on the wrong side.
    wrong = ~((low <= high) & (low < math.inf) & (high > -math.inf))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"the bounds of variable {i} are {low[i]} and {high[i]}; wanted a lower bound that is "
            "at most the upper bound: An upper bound is less than the corresponding lower bound."
        )
    return low, high
