"""A function with penalty terms for its constraints, for `minimize`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.scalars import FLOATS
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.run import differences


class Multipliers(NamedTuple):
    """Lagrange multipliers: arrays (m,), or None if there are no such constraints.

    inequality : at least 0, and 0 where the constraint is inactive.
    equality : of either sign.
    """

    inequality: Any
    equality: Any


class PenalisedProblem:
    """fun with penalty terms for its constraints, as a function for `minimize`."""

    def __init__(
        self, fun: Callable, x0: Any, inequality: Any, equality: Any, jac: Any,
        inequality_jac: Any, equality_jac: Any, reproducible: bool,
    ):
        functions = {"inequality": inequality, "equality": equality}
        jacobians = {"inequality_jac": inequality_jac, "equality_jac": equality_jac}
        for name, value in {"fun": fun, **functions, **jacobians}.items():
            if not callable(value) and (value is not None or name == "fun"):
                raise TypeError(f"{name} is a {type(value).__name__}; wanted a function of x")
        if inequality is None and equality is None:
            raise ValueError("no constraints were passed; wanted inequality=, equality= or both")
        differences.check_jac(jac)
        explicit = jac is True or callable(jac)
        for name, function in functions.items():
            jacobian = jacobians[f"{name}_jac"]
            if jacobian is None and explicit and function is not None:
                raise ValueError(
                    f"{name}_jac is missing; wanted the Jacobian of {name}, because jac is "
                    f"{'True' if jac is True else 'a function'}"
                )
            if jacobian is not None and not (explicit and function is not None):
                why = "jac is neither True nor a function" if function else f"{name} was not"
                raise ValueError(f"{name}_jac was passed, but {why}; wanted both or neither")
        self.layout = Layout(x0, batched=False)
        self.backend = self.layout.backend
        self.space = (FixedOrderSpace if reproducible else Space)(self.backend)
        self.fun = fun
        self.fun_jac = jac
        self.jac: Any = True if explicit else jac
        self.functions = (inequality, equality)
        self.jacobians = (inequality_jac, equality_jac)
        self.merit: Callable = self.evaluate
        given = [f for f in (fun, inequality, equality) if f is not None]
        if jac is None and all(map(self.backend.is_compiled, given)):
            self.merit = self.backend.jit(self.merit)

    def evaluate(self, x: Any, multipliers: Multipliers, penalty: float, *args: Any) -> Any:
        """((value, (value of fun, constraints)), gradient); without a gradient, the first part."""
        f, gradient = self.fun(x, *args), None
        if self.fun_jac is True:
            f, gradient = returned.pair("fun", f, "jac=True", "(value, gradient)")
        elif callable(self.fun_jac):
            gradient = self.fun_jac(x, *args)
        f = returned.real_number("fun", f, self.backend, pair_if="jac=True")
        if gradient is not None:
            gradient = self.layout.to_vector(gradient, "the gradient")
        value: Any = f
        found: list[Any] = []
        for name, function, jacobian, multiplier in zip(
            Multipliers._fields, self.functions, self.jacobians, multipliers, strict=True
        ):
            if function is None:
                found.append(None)
                continue
            c = self._numbers(function(x, *args), name)
            matrix = None if jacobian is None else jacobian(x, *args)
            found.append(c)
            # Trials that overflow are normal.
            with np.errstate(all="ignore"):
                change = self.change(name, c, multiplier, penalty)
                weights = multiplier + change
                terms = self.space.dot(change, multiplier + weights)
                value = value + (0.5 / penalty) * terms
                if matrix is not None:
                    matrix = self._matrix(matrix, c, f"{name}_jac")
                    gradient = gradient + self.space.combine(weights, matrix)
        out = value, (f, *found)
        return out if gradient is None else (out, self.layout.to_tree(gradient))

    def change(self, name: str, c: Array, multiplier: Any, penalty: float) -> Array:
        """The change from these multipliers to the next ones: rho c; for an inequality, whose
        multiplier must not be negative, max(0, multiplier + rho c) - multiplier.

        It is 0 exactly where c = 0 or, for an inequality, where c <= 0, multiplier >= 0 and one of
        the two is 0.
        """
        change = penalty * c
        if name == "equality":
            return change
        return self.space.xp.maximum(change, self.space.xp.zeros_like(change) - multiplier)

    def measure(
        self, aux: tuple, multipliers: Multipliers, penalty: float
    ) -> tuple[float, float, float, Multipliers]:
        """The value of fun; the violation; the largest change of a multiplier, divided by rho; and
        the next multipliers."""
        f, *found = aux
        xp, max_abs = self.space.xp, self.space.max_abs
        sizes: list[Any] = []
        after: list[Any] = []
        for name, c, multiplier in zip(Multipliers._fields, found, multipliers, strict=True):
            if c is None:
                sizes += [0.0, 0.0]
                after.append(None)
                continue
            change = self.change(name, c, multiplier, penalty)
            beyond = xp.maximum(c, xp.zeros_like(c)) if name == "inequality" else c
            sizes += [max_abs(beyond), max_abs(change)]
            after.append(multiplier + change)
        value, *sizes = self.space.read(f, *sizes)
        violation = FLOATS.maximum(*sizes[::2])  # nan if one of them is
        change = FLOATS.maximum(*sizes[1::2]) / penalty
        return value, violation, change, Multipliers(*after)

    def _numbers(self, out: Any, name: str) -> Array:
        """What a constraint function returned, as an array (m,)."""
        out = self._adopted(out, name)
        if out.ndim > 1 or 0 in out.shape:
            raise ValueError(
                f"{name} returned {returned.described(out)}; wanted (m,), or one number"
            )
        return self._reshaped(out, (-1,))

    def _matrix(self, out: Any, c: Array, name: str) -> Array:
        """What a Jacobian returned, as an array (m, n)."""
        out = self._adopted(out, name)
        wanted = (c.shape[0], self.layout.size)
        if tuple(out.shape) != wanted and (wanted[0] != 1 or tuple(out.shape) != wanted[1:]):
            raise ValueError(f"{name} returned {returned.described(out)}; wanted {wanted}")
        return self._reshaped(out, wanted)

    def _adopted(self, out: Any, name: str) -> Array:
        """What a function returned, as an array of the library of x0."""
        if not is_array(out):
            out = self.backend.adopt(out, name)
        returned.check_array(name, out, self.backend, "an array")
        if self.backend.xp.isdtype(out.dtype, "complex floating"):
            raise TypeError(f"{name} returned dtype {out.dtype}; wanted real numbers")
        return out

    def _reshaped(self, out: Array, shape: tuple[int, ...]) -> Array:
        xp = self.space.xp
        return xp.reshape(xp.astype(out, self.backend.dtype, copy=False), shape)
