"""A function of the user as a function of NumPy vectors, which counts, times and forgives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Backend, dtype_name
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.gradient_check import value_alone
from lbfgs_xp.run.objective import Objective

# Up to how many variables differences give a gradient.
_MANY = 1000


class Probe:
    """fun and its gradient on the host; an exception away from x0 counts as nan.

    layout : of the variables.
    by_differences : whether the gradient comes from differences of values.
    without_jac : whether that is because nothing else gives it.
    errors : what fun has raised away from x0.
    seconds : the duration of each evaluation.
    """

    def __init__(self, fun: Callable, x0: Any, jac: Any, args: Any, has_aux: bool):
        self.layout = Layout(x0, batched=False, name="x0")
        self.without_jac = jac is None and not self.backend.differentiates
        self.by_differences = self.without_jac or jac in ("2-point", "3-point")
        jac = "3-point" if self.by_differences else jac
        self.objective = Objective(fun, args, jac, has_aux, self.layout)
        self.alone = Objective(value_alone(fun, jac, has_aux), args, "3-point", False, self.layout)
        self.errors: list[str] = []
        self.seconds: list[float] = []

    @property
    def backend(self) -> Backend:
        return self.layout.backend

    @property
    def nfev(self) -> int:
        return self.objective.nfev + self.alone.nfev

    def start(self) -> np.ndarray:
        """x0 as a vector, in float64."""
        return self._host(self.layout.start())

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.backend.dtype)

    def first(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; what fun raises is passed on. The gradient is nan if it would take
        too many evaluations."""
        began = time.perf_counter()
        if self.by_differences and x.size > _MANY:
            found = self._value(x), np.full(x.shape, np.nan)
        else:
            value, gradient, _ = self.objective.evaluate(self._there(x))
            found = float(self._host(value)), self._host(gradient)
        self.seconds.append(time.perf_counter() - began)
        return found

    def both(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient at x."""
        try:
            return self.first(x)
        except Exception as error:
            self._note(error)
            return np.nan, np.full(x.shape, np.nan)

    def value(self, x: np.ndarray) -> float:
        """The value alone."""
        try:
            return self._value(x)
        except Exception as error:
            self._note(error)
            return np.nan

    def raw_value(self) -> Any:
        """What fun returns as its value, as it is; None if it raises."""
        try:
            return self.alone.fun(self.layout.to_tree(self.layout.start()), *self.alone.args)
        except Exception:
            return None

    @property
    def is_compiled(self) -> bool:
        """Whether the user has compiled fun."""
        return self.backend.is_compiled(self.objective.fun)

    def name(self, index: int) -> str:
        """What messages call one of the variables."""
        if any(self.layout.complex):
            return f"number {index} of x0"
        return self.layout.number_names("x0")[index]

    def nested(self, vector: np.ndarray) -> Any:
        """Numbers for all variables, with the structure of x0."""
        return self.layout.numbers_tree(self._there(vector))

    def _value(self, x: np.ndarray) -> float:
        return float(self._host(self.alone.value(self._there(x))))

    def _there(self, x: np.ndarray) -> Any:
        return self.backend.from_host(x, self.backend.dtype)

    def _host(self, array: Any) -> np.ndarray:
        # A Python number stays as it is.
        array = self.backend.to_host(array) if hasattr(array, "dtype") else array
        return np.asarray(array, dtype=np.float64)

    def _note(self, error: Exception) -> None:
        self.errors.append(f"{type(error).__name__}: {error}".strip())
