"""loss and jac, however they are given, as one function: (leaves, batch) -> (value, gradients)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.tree import flatten, flatten_like, unflatten
from lbfgs_xp.training.batches import Parts


class Loss:
    """The value and the gradients of a loss.

    Parameters
    ----------
    loss, jac, compile
        As in `lx.train`.
    backend : Backend
        The backend of the parameters.
    structure
        How the leaves of the parameters are nested.

    Attributes
    ----------
    differentiates : bool
        Whether the gradients come from automatic differentiation, and so need no checks.
    """

    def __init__(
        self, loss: Callable, jac: Any, compile: bool, backend: Backend, structure: Any
    ):
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
        self.differentiates = jac is None
        self.compiled = compile and backend.compiles
        self.backend = backend
        self.structure = structure

    def __call__(self, leaves: list[Array], batch: Any) -> tuple[Any, Any]:
        """(value, gradients): a float or 0-d array; and the gradients, as leaves if they come from
        automatic differentiation, otherwise as the user returned them."""
        if isinstance(batch, Parts):
            return self._mean(leaves, batch)
        if self.differentiates:
            return self._automatic(leaves, batch)
        params = unflatten(self.structure, leaves)
        if self.jac is True:
            value, gradients = returned.pair(
                "loss", self.loss(params, batch), "jac=True", "(value, gradient)"
            )
        else:
            value, gradients = self.loss(params, batch), self.jac(params, batch)
        return self._kept(_checked(value, self.backend)), gradients

    def _mean(self, leaves: list[Array], parts: Parts) -> tuple[Any, Any]:
        """The mean over all rows of several batches."""
        whole = sum(rows for _, rows in parts)
        value: Any = None
        total: list[Array] = []
        for batch, rows in parts:
            found, gradients = self(leaves, batch)
            own = gradients
            if not self.differentiates:
                own, _ = flatten_like(gradients, self.structure)
            if len(parts) == 1:
                return found, gradients
            share = rows / whole
            if value is None:
                value, total = share * found, [share * g for g in own]
            else:
                value = value + share * found
                total = [a + share * g for a, g in zip(total, own, strict=True)]
        return value, total if self.differentiates else unflatten(self.structure, total)

    def of_params(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """(value, gradients) for nested parameters; the gradients are nested in the same way."""
        leaves, _ = flatten_like(params, self.structure)
        value, gradients = self(leaves, batch)
        return value, unflatten(self.structure, gradients) if self.differentiates else gradients

    def _automatic(self, leaves: list[Array], batch: Any) -> tuple[Array, list[Array]]:
        nesting = None
        if self.compiled:
            # A compiled function takes lists of arrays, whatever containers the user has.
            batch, nesting = flatten(batch)
        differentiated = self.backend.value_and_gradients(
            self.compiled, evaluate, self.loss, self.backend, self.structure, nesting
        )
        value, gradients = differentiated(leaves, batch)
        return self._kept(value), gradients

    def _kept(self, value: Any) -> Any:
        """The value, copied if later updates could change it: it may be a view of the parameters or
        of a buffer of the user."""
        if self.backend.reads_are_free:
            return self.backend.read([value])[0]
        return self.backend.own(value) if is_array(value) else value


def evaluate(
    loss: Callable, backend: Backend, structure: Any, nesting: Any, leaves: list[Array], batch: Any
) -> Any:
    """The checked loss for parameters that are given as leaves."""
    if nesting is not None:
        batch = unflatten(nesting, batch)
    return _checked(loss(unflatten(structure, leaves), batch), backend)


def _checked(value: Any, backend: Backend) -> Any:
    return returned.real_number(
        "loss", value, backend, like="params", pair_if="jac=True", hint=", such as the mean"
    )
