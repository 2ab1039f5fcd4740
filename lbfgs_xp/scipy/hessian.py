"""The Hessian as a matrix, from what users of SciPy's "Newton-CG" pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.scipy.evaluate import Evaluate, complex_steps

_CENTRAL = float(np.finfo(np.float64).eps ** (1 / 3))


def hessian_of(hess: Any, hessp: Any, evaluate: Evaluate) -> Callable[[np.ndarray], np.ndarray]:
    """x -> (n, n), from a function, from products with vectors, or from differences of gradients.

    hess, hessp : as in `scipy.optimize.minimize`.
    """
    if not callable(evaluate.jac):
        raise ValueError(
            "jac is not given; wanted True or a function, because Newton's method needs the "
            "gradient itself"
        )
    args = evaluate.args
    if callable(hess):
        return lambda x: _dense("hess", hess(np.copy(x), *args), (x.size, x.size))
    if not (hess is None or (isinstance(hess, str) and hess in ("2-point", "3-point", "cs"))):
        raise ValueError(
            f"hess is {hess!r}; wanted a function, '2-point', '3-point', 'cs' or None"
        )
    if callable(hessp) and hess is None:
        return lambda x: _symmetric(np.stack([
            _dense("hessp", hessp(np.copy(x), unit, *args), (x.size,)) for unit in np.eye(x.size)
        ]))
    if hessp is not None and hess is None:
        raise TypeError(f"hessp is {hessp!r}; wanted a function of x and a vector, or None")
    if hess == "cs":
        return lambda x: _from_complex_steps(evaluate, x)
    return lambda x: _from_differences(evaluate, x, hess == "3-point")


def second_derivatives(
    hess: Any, hessp: Any, evaluate: Evaluate, products: bool
) -> dict[str, Any]:
    """The arguments hess and hessp of `lx.minimize`.

    products : whether the method only needs products with the Hessian.
    """
    given: dict[str, Any] = {"hess": hessian_of(hess, hessp, evaluate)}
    if not products or hess is not None:
        return given
    if hessp is None:
        return {}

    def product(x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        return _dense("hessp", hessp(np.copy(x), vector, *evaluate.args), (x.size,))

    return {"hessp": product}


def _from_differences(evaluate: Evaluate, x: np.ndarray, central: bool) -> np.ndarray:
    steps = (_CENTRAL if central else evaluate.eps) * np.maximum(1.0, np.abs(x))
    here = None if central else evaluate.gradient(x)
    rows = []
    for unit, step in zip(np.eye(x.size), steps, strict=True):
        ahead, behind = x + step * unit, x - step * unit
        if central:
            change, width = evaluate.gradient(ahead) - evaluate.gradient(behind), ahead - behind
        else:
            change, width = evaluate.gradient(ahead) - here, ahead - x
        rows.append(change / (width @ unit))
    return _symmetric(np.stack(rows))


def _from_complex_steps(evaluate: Evaluate, x: np.ndarray) -> np.ndarray:
    rows = []
    for unit, step in zip(np.eye(x.size), complex_steps(x), strict=True):
        found = evaluate.gradient(x + 1j * step * unit)
        if not np.iscomplexobj(found):
            raise ValueError(
                "jac returned real numbers for complex x; wanted complex numbers for "
                'hess="cs", which needs a gradient that is analytic'
            )
        rows.append(found.imag / step)
    return _symmetric(np.stack(rows))


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)


def _dense(name: str, found: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What the user's function returned as an array, also from a sparse matrix."""
    found = found.toarray() if hasattr(found, "toarray") else found
    try:
        found = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} returned a {type(found).__name__}; wanted numbers of shape {shape}"
        ) from None
    if found.shape == shape or (len(shape) == 1 and found.size == shape[0]):
        return found.reshape(shape)
    raise ValueError(f"{name} returned an array of shape {found.shape}; wanted {shape}")
