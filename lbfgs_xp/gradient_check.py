"""`check_gradient`: the user's gradient against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.run.objective import Objective
from lbfgs_xp.typing import Jacobian


class GradientCheck(NamedTuple):
    """The outcome of `lx.check_gradient`.

    error : float
        The largest |jac - differences|, divided by max(1, largest |differences|). If f or the
        units of x make all gradients small, compare `jac` with `differences` yourself.
    where : int
        The index of that component in the flattened x.
    jac, differences : arrays (n,)
        The gradient as given, and by central differences.
    """

    error: float
    where: int
    jac: Array
    differences: Array

    def __repr__(self) -> str:
        return f"GradientCheck(error={self.error:.2e}, where={self.where})"


@checks.reject_foreign_keywords()
@on_device_of("x")
def check_gradient(
    fun: Callable[..., Any], x: Any, jac: Jacobian = None, args: Any = (), *,
    has_aux: bool = False,
) -> GradientCheck:
    """Compare the gradient with central differences of the value, in all n variables.

    It takes 2 n evaluations of fun. With more than some thousand variables use `lx.diagnose`, which
    compares along a few directions.

    Parameters
    ----------
    fun, jac, args, has_aux
        As in `lx.minimize`.
    x : array or nested parameters
        Where to compare. float64 reveals the most: there, errors of about 1e-10 are only rounding,
        whereas float32 shows nothing below 1e-4.

    Returns
    -------
    GradientCheck
        `error` is relative; for a correct gradient it is near eps^(2/3).

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> check = lx.check_gradient(lambda x: np.sum(x**3), np.asarray([1.0, 2.0]), lambda x: 2 * x)
    >>> check.error > 0.1, check.where
    (True, 1)
    """
    has_aux = checks.flag("has_aux", has_aux)
    layout = Layout(x, batched=False, name="x")
    vector = layout.to_vector(x, "x")
    _, given, _ = Objective(fun, args, jac, has_aux, layout).evaluate(vector)
    alone = value_alone(fun, jac, has_aux)
    _, numeric, _ = Objective(alone, args, "3-point", False, layout).evaluate(vector)
    difference = layout.backend.to_host(given - numeric)
    size = float(np.max(np.abs(layout.backend.to_host(numeric))))
    index = int(np.argmax(np.abs(difference)))
    return GradientCheck(abs(float(difference[index])) / max(1.0, size), index, given, numeric)


def value_alone(fun: Callable[..., Any], jac: Any, has_aux: bool) -> Callable[..., Any]:
    """fun without the gradient and aux that it returns besides the value."""
    if jac is not True and not has_aux:
        return fun

    def value(x: Any, *args: Any) -> Any:
        out = fun(x, *args)
        out = out[0] if jac is True else out
        return out[0] if has_aux else out

    return value
