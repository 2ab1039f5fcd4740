"""loss and jac, of whatever form, as one function: (params, batch) -> (value, gradients)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.backend import Array, Backend, described, is_array
from lbfgs_xp.tree import flatten, unflatten


class Loss:
    """Value and gradients of a loss.

    Parameters
    ----------
    loss, jac, compile
        As in `lx.train`.
    backend : Backend
        That of the parameters.
    """

    def __init__(self, loss: Callable, jac: Any, compile: bool, backend: Backend):
        if not callable(loss):
            raise TypeError(f"loss is a {type(loss).__name__}; wanted a function (params, batch)")
        if jac is not None and jac is not True and not callable(jac):
            raise ValueError(
                f"jac is {jac!r}; wanted None (automatic differentiation), True or a function "
                "(params, batch) -> gradient"
            )
        if jac is None and not backend.differentiates:
            raise ValueError(
                f"{backend.name} has no automatic differentiation: give jac= a function "
                "(params, batch) -> gradient; or jac=True, loss then returning (value, gradient)"
            )
        self.loss = loss
        self.jac = jac
        self.compiled = compile and backend.compiles
        self.backend = backend

    def __call__(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """(value, gradients): a float or 0-d array, and what is nested like params."""
        if self.jac is None:
            return self._automatic(params, batch)
        if self.jac is True:
            out = self.loss(params, batch)
            try:
                value, gradients = out
            except (TypeError, ValueError):
                raise TypeError(
                    f"loss returned {described(out)}; wanted, with jac=True, the pair "
                    "(value, gradient)"
                ) from None
        else:
            value, gradients = self.loss(params, batch), self.jac(params, batch)
        return self._kept(_checked(value, self.backend)), gradients

    def _automatic(self, params: Any, batch: Any) -> tuple[Array, Any]:
        leaves, structure = flatten(params)
        nesting = None
        if self.compiled:
            # What is compiled takes lists of arrays, whatever containers the user has.
            batch, nesting = flatten(batch)
        differentiated = self.backend.value_and_gradients(
            self.compiled, _evaluate, self.loss, self.backend, structure, nesting
        )
        value, gradients = differentiated(leaves, batch)
        return self._kept(value), unflatten(structure, gradients)

    def _kept(self, value: Any) -> Any:
        """A value that no later update changes: it may be a part of the parameters, or a buffer of
        the user's."""
        if self.backend.reads_are_free:
            return self.backend.read([value])[0]
        return self.backend.own(value) if is_array(value) else value


def _evaluate(
    loss: Callable, backend: Backend, structure: Any, nesting: Any, leaves: list[Array], batch: Any
) -> Any:
    """The checked loss of parameters given as their leaves."""
    if nesting is not None:
        batch = unflatten(nesting, batch)
    return _checked(loss(unflatten(structure, leaves), batch), backend)


def _checked(value: Any, backend: Backend) -> Any:
    """`value` where it is one real number, a float or a 0-d array."""
    if isinstance(value, (int, float, np.floating, np.integer)):
        return float(value)
    if not is_array(value):
        hint = " (jac=True takes a pair)" if isinstance(value, tuple) else ""
        raise TypeError(f"loss returned {described(value)}; wanted a real number{hint}")
    if (library := backend.name_of(value)) != backend.name:
        raise TypeError(f"loss returned an array of {library}; wanted {backend.name}, like params")
    if tuple(value.shape) != ():
        raise ValueError(
            f"loss returned an array of shape {tuple(value.shape)}; wanted a single number (0-d), "
            "such as the mean"
        )
    if not backend.xp.isdtype(value.dtype, "real floating"):
        raise TypeError(f"loss returned dtype {value.dtype}; wanted a real floating-point dtype")
    return value
