"""loss and jac, however they are given, as one function of (leaves, batch), which returns (value,
gradients, aux)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.tree import flatten, flatten_like, unflatten
from lbfgs_xp.run import metrics
from lbfgs_xp.training.batches import Parts


class Loss:
    """The value and the gradients of a loss.

    Parameters
    ----------
    loss, jac, has_aux, compile
        As in `lx.train`.
    backend : Backend
        The backend of the parameters.
    structure
        How the leaves of the parameters are nested.

    Attributes
    ----------
    differentiates : bool
        Whether the gradients come from automatic differentiation, and so need no checks.
    metrics : Metrics
        Which leaves of aux are numbers.
    """

    def __init__(
        self, loss: Callable, jac: Any, has_aux: bool, compile: bool, backend: Backend,
        structure: Any,
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
        self.jac, self.has_aux = jac, has_aux
        self.metrics = metrics.Metrics("loss")
        self.differentiates = jac is None
        self.compiled = compile and backend.compiles
        self.backend = backend
        self.structure = structure

    def __call__(self, leaves: list[Array], batch: Any) -> tuple[Any, Any, Any]:
        """(value, gradients, aux): a float or 0-d array; the gradients, as leaves if they come from
        automatic differentiation, otherwise as the user returned them; and what else the loss
        returned, or None."""
        if isinstance(batch, Parts):
            return self._mean(leaves, batch)
        if self.differentiates:
            return self._automatic(leaves, batch)
        params = unflatten(self.structure, leaves)
        if self.jac is True:
            value, gradients = returned.pair(
                "loss", self.loss(params, batch), "jac=True",
                "((value, aux), gradient)" if self.has_aux else "(value, gradient)",
            )
        else:
            value, gradients = self.loss(params, batch), self.jac(params, batch)
        value, aux = _checked(value, self.has_aux, self.backend)
        return self._kept(value), gradients, metrics.kept(aux, self.backend)

    def _mean(self, leaves: list[Array], parts: Parts) -> tuple[Any, Any, Any]:
        """The mean over all rows of several batches."""
        whole = sum(rows for _, rows in parts)
        value: Any = None
        total: list[Array] = []
        outputs, shares = [], []
        for batch, rows in parts:
            found, gradients, aux = self(leaves, batch)
            own = gradients
            if not self.differentiates:
                own, _ = flatten_like(gradients, self.structure)
            if len(parts) == 1:
                return found, gradients, aux
            share = rows / whole
            if self.has_aux:
                self.metrics.of(aux)    # all are alike
            outputs.append(aux)
            shares.append(share)
            if value is None:
                value, total = share * found, [share * g for g in own]
            else:
                value = value + share * found
                total = [a + share * g for a, g in zip(total, own, strict=True)]
        gradients = total if self.differentiates else unflatten(self.structure, total)
        return value, gradients, metrics.joined(outputs, shares) if self.has_aux else None

    def of_params(self, params: Any, batch: Any) -> tuple[Any, Any, Any]:
        """The same for nested parameters; the gradients are nested in the same way."""
        leaves, _ = flatten_like(params, self.structure)
        value, gradients, aux = self(leaves, batch)
        if self.differentiates:
            gradients = unflatten(self.structure, gradients)
        return value, gradients, aux

    def _automatic(self, leaves: list[Array], batch: Any) -> tuple[Array, list[Array], Any]:
        nesting = None
        if self.compiled:
            # A compiled function takes lists of arrays, whatever containers the user has.
            batch, nesting = flatten(batch)
        differentiated = self.backend.value_and_gradients(
            self.compiled, evaluate, self.loss, self.has_aux, self.backend, self.structure, nesting
        )
        value, gradients, aux = differentiated(leaves, batch)
        return self._kept(value), gradients, metrics.kept(aux, self.backend)

    def _kept(self, value: Any) -> Any:
        """The value, copied if later updates could change it: it may be a view of the parameters or
        of a buffer of the user."""
        if self.backend.reads_are_free:
            return self.backend.read([value])[0]
        return self.backend.own(value) if is_array(value) else value


def evaluate(
    loss: Callable, has_aux: bool, backend: Backend, structure: Any, nesting: Any,
    leaves: list[Array], batch: Any,
) -> tuple[Any, Any]:
    """The checked loss for parameters that are given as leaves, and aux, or None."""
    if nesting is not None:
        batch = unflatten(nesting, batch)
    return _checked(loss(unflatten(structure, leaves), batch), has_aux, backend)


def _checked(out: Any, has_aux: bool, backend: Backend) -> tuple[Any, Any]:
    value, aux = out, None
    if has_aux:
        value, aux = returned.pair("loss", out, "has_aux=True", "(value, aux)")
    pair_if = "" if has_aux else "jac=True or has_aux=True"
    value = returned.real_number(
        "loss", value, backend, like="params", pair_if=pair_if, hint=", such as the mean"
    )
    return value, aux
