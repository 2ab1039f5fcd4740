"""The data of `curve_fit`: y, sigma, the start, and the residuals of the model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from lbfgs_xp import checks
from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, is_array, library_of
from lbfgs_xp.arrays.tree import (
    Layout,
    Partial,
    flatten,
    flatten_parameters,
    leaf_name,
    unflatten,
)
from lbfgs_xp.fits.complex_data import complex_dtype, is_complex, parts_of, parts_of_sigma
from lbfgs_xp.fits.covariance import inverse_factor
from lbfgs_xp.fits.likelihoods import Custom, SplitNormal, counts_of
from lbfgs_xp.fits.names import check_keys, names_of, sorted_places
from lbfgs_xp.fits.parameters import free_layout
from lbfgs_xp.fits.priors import priors_of
from lbfgs_xp.fits.residuals import Residuals, chosen

# Up to this length, the first axis of x may count coordinates.
_COORDINATES = 64


def residuals_of(
    model: Any, x: Any, y: Any, p0: Any, sigma: Any, jac: Any, batched: bool, compact: bool, *,
    fixed: Any, ties: Any, likelihood: Any, trials: Any, priors: Any, traced: bool = False,
) -> Residuals:
    """The residuals of a model, from the arguments of `lx.curve_fit`.

    traced : whether arrays may be traced, because a function is being compiled; they are then not
        checked by their values.
    """
    if not callable(model):
        raise TypeError(f"model is a {type(model).__name__}; wanted a function of x and parameters")
    if isinstance(p0, dict):
        check_keys(model, p0)
    # Without the deviations of normal errors, weights only say which data count.
    apart = isinstance(sigma, tuple) and len(sigma) == 2
    normal = not apart and likelihood == "gaussian"
    x, y, own = _without_mask(_unwrapped(x), y, sigma if normal else None, batched)
    y = _data(y, batched)
    whole_shape, parts = tuple(y.shape), 1
    if is_complex(y):
        if not normal:
            raise TypeError(
                f"y has dtype {y.dtype}; wanted real numbers for a likelihood, or for a sigma with "
                "two sides"
            )
        own, y, parts = parts_of_sigma(own, whole_shape), parts_of(y), 2
    backend = Backend.of(y, "y", traced)
    x, jac = coordinates(x, backend), chosen(jac, backend)
    start = _start(p0, backend, y.shape[:1] if batched else None)
    layout = Layout(start, batched, name="p0", traced=traced)
    if isinstance(layout.structure, Partial):
        raise ValueError(
            f"{layout.structure.frozen_name('p0')} is frozen (requires_grad=False); wanted only "
            "parameters to be fitted, and the others as constants of the model"
        )
    weights = (
        _unchecked_weights(own, y, backend) if traced else _weights(own, y, backend, batched)
    )
    y = without_left_out(weights, y)
    whole = compact and batched and _is_whole(model, x, layout, whole_shape)
    names = names_of(model, layout)
    free = free_layout(layout, names, fixed, ties)
    curve = Curve(model, batched, backend, isinstance(jac, str), not normal, parts == 2)
    residuals = Residuals(
        curve,
        (x, y, weights if normal else None),
        Slopes(jac, batched, sorted_places(layout)) if callable(jac) else jac,
        free,
        not traced and backend.is_compiled(model),
        fresh=callable(jac) and batched and normal and weights is not None,
        data=(
            dataclasses.replace(curve, predicts=True),
            backend.xp.reshape(in_units_of_sigma(weights, y), (-1, y.shape[-1])),
        ) if normal else None,
        shared=whole_shape[1:] if parts == 1 else (whole_shape[-1], *y.shape[1:]),
        whole=(0,) if whole else (),
        priors=priors_of(priors, free, names),
    )
    residuals.names = names
    if apart:
        residuals.likelihood = _split_normal(sigma, y, weights, backend, batched)
    elif callable(likelihood):
        start = backend.xp.reshape(free.start(), (-1, free.size))
        predictions = backend.xp.reshape(residuals.predictions(start), y.shape)
        residuals.likelihood = Custom.of(likelihood, y, weights, predictions)
    elif not normal:
        residuals.likelihood = counts_of(likelihood, y, weights, trials, backend)
    return residuals


def _split_normal(
    sigma: tuple[Any, Any], y: Array, kept: Any, backend: Backend, batched: bool
) -> SplitNormal:
    """The likelihood of sigma=(low, high)."""
    if y.shape[-1] == 2 and all(np.ndim(side) == 0 for side in sigma if not is_array(side)):
        raise ValueError(
            f"sigma is {sigma!r} for two data; wanted a list of their deviations, or (low, high) "
            "as two arrays"
        )
    sides = []
    for side in sigma:
        weights = _weights(side, y, backend, batched)
        if weights is None:
            raise TypeError(f"sigma is {sigma!r}; wanted deviations on both sides")
        if are_correlated(weights, y):
            raise ValueError("sigma is a pair of matrices; wanted one covariance, or (low, high)")
        sides.append(weights)
    low, high = sides
    out = (low == 0.0) | (high == 0.0)
    if kept is not None:
        out = out | (kept == 0.0)
    xp = backend.xp
    if not xp.any(out):
        return SplitNormal(y, None, low, high)
    kept = xp.where(out, backend.full(y.shape, 0.0), 1.0)
    return SplitNormal(xp.where(out, backend.zeros(y.shape), y), kept, low, high)


def coordinates(x: Any, backend: Backend) -> Any:
    """x as the model gets it: numbers and arrays of NumPy as arrays of the backend."""
    if isinstance(x, Iterator):
        raise TypeError(
            "x is an iterator, which a model can read once; wanted what the model can read again "
            "and again, such as an array, or for chunks of data a function that returns them"
        )
    return adopted(_unwrapped(x), backend, "x")


def adopted(x: Any, backend: Backend, name: str) -> Any:
    """x with its lists and NumPy arrays of numbers as arrays of the backend, also those in a tuple
    or a dict."""
    if isinstance(x, dict):
        return {key: _inside(part, backend, f"{name}.{key}") for key, part in x.items()}
    if type(x) is tuple:
        return tuple(_inside(part, backend, f"{name}.{i}") for i, part in enumerate(x))
    return _numbers(x, backend, name) if isinstance(x, (list, np.ndarray)) else x


def _numbers(x: Any, backend: Backend, name: str) -> Array:
    """Numbers of NumPy, or in a list, as an array of the backend; complex ones stay complex."""
    if not np.ma.isMaskedArray(x):
        with contextlib.suppress(ValueError):    # a ragged list
            if is_complex(host := np.asarray(x)):
                return backend.from_host(host, complex_dtype(backend.xp, backend.dtype))
    return backend.adopt(x, name)


def _inside(x: Any, backend: Backend, name: str) -> Any:
    x = _unwrapped(x)
    if isinstance(x, (list, np.ndarray)):
        with contextlib.suppress(ValueError):    # a ragged list
            if np.asarray(x).dtype.kind in "iufc":
                return _numbers(x, backend, name)
        return x
    return adopted(x, backend, name)


def _unwrapped(x: Any) -> Any:
    """x as an array if it is a 1-d object that holds one, such as a Series of pandas."""
    if is_array(x) or not hasattr(x, "__array__") or getattr(x, "ndim", 1) != 1:
        return x
    return np.asarray(x)


def _without_mask(x: Any, y: Any, sigma: Any, batched: bool) -> tuple[Any, Any, Any]:
    """x, y and sigma without masks, with an infinite sigma for the points that were masked."""
    given = {"x": x, "y": y, "sigma": sigma}
    masked = {name: array for name, array in given.items() if np.ma.isMaskedArray(array)}
    if not masked:
        if any(map(np.ma.isMaskedArray, flatten(x)[0])):
            raise TypeError(
                "x holds a masked array; wanted plain ones, and the points to leave out masked in y"
            )
        return x, y, sigma
    shape = np.shape(y)
    mask: np.ndarray = np.zeros(shape, dtype=bool)
    for name, array in masked.items():
        here = np.ma.getmaskarray(array)
        if name == "x" and here.shape != shape and here.ndim > 1:
            # All coordinates of a point share the last axis.
            here = np.asarray(here.any(axis=tuple(range(here.ndim - 1))))
        try:
            mask = mask | np.broadcast_to(here, shape)
        except ValueError:
            raise ValueError(
                f"{name} is a masked array of shape {array.shape}, and y has shape {shape}; wanted "
                "the points to leave out masked in y"
            ) from None
    if mask.size and mask.all():
        raise ValueError("all data are masked; wanted some that are not")
    if "x" in masked:
        # Any coordinates at which the model has a value.
        first = np.argmin(mask.reshape(-1, shape[-1]).any(axis=0))
        x = np.where(np.ma.getmaskarray(x), np.ma.getdata(x)[..., first : first + 1], x.data)
    if "y" in masked:
        y = np.where(mask, np.zeros_like(y.data), y.data)
    if mask.any():
        if is_array(sigma) and not isinstance(sigma, np.ndarray):
            raise TypeError(
                f"{', '.join(masked)} is masked, and sigma is an array of {library_of(sigma)}; "
                "wanted one of NumPy, or an infinite sigma instead of the mask"
            )
        sigma = np.ma.getdata(1.0 if sigma is None else sigma)
        if not batched and sigma.shape in (2 * shape, tuple(2 * n for n in 2 * shape)):
            raise ValueError(
                "data are masked, and sigma is a covariance; wanted both without these points"
            )
        out = complex(np.inf, np.inf) if np.iscomplexobj(sigma) else np.inf
        sigma = np.where(mask, out, sigma)
    elif "sigma" in masked:
        sigma = np.ma.getdata(sigma)
    return x, y, sigma


def _is_whole(model: Callable, x: Any, layout: Layout, shape: tuple[int, ...]) -> bool:
    """Whether an x (k, ...) beside a batch of k curves holds coordinates that all of them share.

    Then one curve needs all of x, and not only its own row, for the values that it has among all.
    Only small batches are looked at, because there are not many coordinates.
    """
    count = shape[0]
    if not (is_array(x) and x.ndim > 1 and x.shape[0] == count and 1 < count <= _COORDINATES):
        return False
    # Parameters that are 0 would hide differences.
    tiny = math.sqrt(layout.backend.eps)
    start = layout.start()
    xp = layout.xp
    for vector in (start, xp.where(start == 0.0, xp.full_like(start, tiny), start)):
        everywhere = _values(model, x, layout, vector)
        if everywhere is None or everywhere.shape != shape:
            return False
        for i in (0, count - 1):
            one = layout.of_rows(1)
            alone = vector[i : i + 1, ...]
            wanted = everywhere[i : i + 1]
            if not _agree(_values(model, x[i : i + 1, ...], one, alone), wanted, layout):
                return _agree(_values(model, x, one, alone), wanted, layout)
    return False


def _values(model: Callable, x: Any, layout: Layout, vector: Array) -> Any:
    """The values of the model on the host, or None if it cannot be called in this way."""
    positional, named = _arguments(layout.to_tree(vector), True)
    try:
        with np.errstate(all="ignore"):
            return np.array(layout.backend.to_host(model(x, *positional, **named)))
    except Exception:
        return None


def _agree(found: Any, wanted: np.ndarray, layout: Layout) -> bool:
    if found is None or found.shape != wanted.shape:
        return False
    close = 64.0 * layout.backend.eps
    scale = float(np.max(np.abs(np.where(np.isfinite(wanted), wanted, 0.0))))
    return bool(np.allclose(found, wanted, rtol=close, atol=close * scale, equal_nan=True))


def _data(y: Any, batched: bool) -> Array:
    wanted = "(B, m)" if batched else "(m,)"
    if not is_array(y):
        try:
            host = np.asarray(y)
        except ValueError as error:
            raise ValueError(
                f"y is a ragged list ({error}); wanted an array {wanted} of real numbers"
            ) from None
        if host.ndim == 0:
            raise TypeError(f"y is {checks.shown(y)}; wanted an array {wanted} of real numbers")
        y = host
    if isinstance(y, np.ndarray) and y.dtype.kind not in "biufc":
        raise TypeError(f"y has dtype {y.dtype}; wanted real numbers")
    if isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        y = y.astype(np.float64)
    shape = tuple(y.shape)
    if len(shape) != 1 + batched or 0 in shape:
        hint = "; batched=True takes (B, m)" if len(shape) == 2 and not batched else ""
        raise ValueError(f"y has shape {shape}; wanted {wanted}, not empty{hint}")
    return y


def _start(p0: Any, backend: Backend, batch: tuple[int, ...] | None) -> Any:
    """p0 with arrays of the backend as leaves; for a batch, with one row for each problem."""

    def adopt(leaf: Any, least: int, axes: int = 0, name: str = "p0") -> Array:
        leaf = backend.adopt(leaf, name)
        if leaf.ndim < axes:
            leaf = backend.xp.reshape(leaf, (1,))
        if batch is None:
            return leaf
        if leaf.ndim < least:
            leaf = backend.xp.broadcast_to(leaf, (*batch, *leaf.shape))
        if tuple(leaf.shape[:1]) != tuple(batch):
            raise ValueError(
                f"p0 has an array of shape {tuple(leaf.shape)}; wanted a first axis of length "
                f"{batch[0]}, like y"
            )
        return leaf

    if isinstance(p0, dict):
        leaves, structure = flatten_parameters(p0)
        return unflatten(structure, [
            adopt(leaf, 1, name=leaf_name(structure, i, "p0")) for i, leaf in enumerate(leaves)
        ])
    if isinstance(p0, (list, tuple)) and any(
        getattr(leaf, "ndim", 0) > 0 and is_array(leaf) for leaf in p0
    ):
        return tuple(adopt(leaf, 1) for leaf in p0)
    leaf = adopt(p0, 2, 1)
    if 0 in leaf.shape:
        raise ValueError(f"p0 has shape {tuple(leaf.shape)}; wanted at least one number")
    if leaf.ndim != (1 if batch is None else 2):
        wanted = "(p,)" if batch is None else "(p,) or (B, p)"
        raise ValueError(f"p0 has shape {tuple(leaf.shape)}; wanted numbers {wanted}, or a dict")
    return leaf


def _weights(sigma: Any, y: Array, backend: Backend, batched: bool) -> Any:
    """1 / sigma, broadcast to y; for a covariance (m, m) its inverse Cholesky factor; or None."""
    if sigma is None:
        return None
    sigma = backend.adopt(sigma, "sigma")
    shape = tuple(y.shape)
    if not batched and tuple(sigma.shape) == (*shape, *shape):
        host = backend.to_host(sigma).astype(np.float64)
        return backend.from_host(inverse_factor(host, "sigma is", " of the data"))
    sigma = _like_y(sigma, y, backend, batched)
    host = np.asarray(backend.to_host(sigma))
    if not np.all(host > 0.0):
        place = tuple(map(int, np.argwhere(~(host > 0.0))[0]))
        raise ValueError(
            f"sigma is {host[place]} at {place}, which is not above 0; wanted positive deviations "
            "(infinite ones leave their points out)"
        )
    none = np.isinf(host).all(axis=-1)
    if none.any():
        row = f" in row {int(np.argmax(none))}" if batched else ""
        raise ValueError(
            f"sigma is inf for all data{row}, which leaves every point out; wanted finite "
            "deviations for some"
        )
    with np.errstate(all="ignore"):
        weights = 1.0 / sigma
    if not np.all(np.isfinite(backend.to_host(weights))):
        raise ValueError(f"sigma has entries too small for {backend.dtype}: 1 / sigma overflows")
    return weights


def pure_weights(sigma: Any, y: Array, backend: Backend) -> Any:
    """`_weights` of a sigma that has been checked, as a function that can be differentiated."""
    if sigma is None:
        return None
    sigma = backend.adopt(sigma, "sigma")
    if y.ndim == 1 and tuple(sigma.shape) == (*y.shape, *y.shape):
        return backend.linalg("inv")(backend.linalg("cholesky")(sigma))
    return 1.0 / _like_y(sigma, y, backend, y.ndim > 1)


def _like_y(sigma: Array, y: Array, backend: Backend, batched: bool) -> Array:
    """Deviations, broadcast to y."""
    shape = tuple(y.shape)
    try:
        return backend.xp.broadcast_to(sigma, shape)
    except (ValueError, RuntimeError):
        wanted = f"a shape that broadcasts to {shape}, that of y"
        if not batched:
            wanted += f", or a covariance of shape {(*shape, *shape)}"
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; wanted {wanted}") from None


def _unchecked_weights(sigma: Any, y: Array, backend: Backend) -> Any:
    """`_weights` without an error: nan where the sigma would be refused for its values."""
    weights = pure_weights(sigma, y, backend)
    if weights is None or are_correlated(weights, y):
        return weights
    xp = backend.xp
    right = (weights >= 0.0) & xp.any(weights > 0.0, axis=-1, keepdims=True)
    return xp.where(right, weights, xp.full_like(weights, math.nan))


def without_left_out(weights: Any, y: Array) -> Array:
    """y, 0 for the points that an infinite sigma leaves out."""
    if weights is None or are_correlated(weights, y):
        return y
    xp = array_namespace(y)
    return xp.where(weights > 0.0, y, xp.zeros_like(y))


def in_units_of_sigma(weights: Any, residuals: Array) -> Array:
    """Residuals in units of sigma; for correlated data, of their uncorrelated combinations."""
    if weights is None:
        return residuals
    return weights @ residuals if are_correlated(weights, residuals) else weights * residuals


def are_correlated(weights: Array, residuals: Array) -> bool:
    return bool(weights.ndim == 2 and residuals.ndim == 1)


def in_units_of_data(weights: Any, residuals: Array, backend: Backend) -> Array:
    if weights is None:
        return residuals
    if are_correlated(weights, residuals):
        return backend.linalg("solve")(weights, residuals)
    return residuals / weights


# --- the model -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Curve:
    """The residuals of a model, as a function of parameters and data.

    backend : the backend of the data.
    differs : whether finite differences are taken, for which the model must return full precision.
    predicts : whether the data are not subtracted, so that fun is the model in units of sigma.
    complex : whether the data are complex, and y holds their parts.
    """

    # See `Backend.jit`.
    wrapped_functions: ClassVar = ("model",)

    model: Callable
    batched: bool
    backend: Backend
    differs: bool
    predicts: bool = False
    complex: bool = False

    def predicted(self, params: Any, x: Any) -> Any:
        """What the model returns at the coordinates x."""
        positional, named = _arguments(params, self.batched)
        return self.model(x, *positional, **named)

    def __call__(self, params: Any, x: Any, y: Array, weights: Any) -> Array:
        found = self.predicted(params, x)
        if self.complex:
            found = self._parts(found, y)
        if not returned.is_like(found, y) or found.shape != y.shape:
            self._check(found, y)
        if weights is None and self.predicts:
            return found
        with np.errstate(all="ignore"):
            return in_units_of_sigma(weights, found if self.predicts else found - y)

    def _parts(self, found: Any, y: Array) -> Array:
        shape = (*y.shape[:-1], y.shape[-1] // 2)
        wanted = f"an array of shape {shape}, like y"
        returned.check_array("model", found, self.backend, wanted, like="y")
        if tuple(found.shape) != shape:
            raise ValueError(f"model returned {returned.described(found)}; wanted {wanted}")
        return parts_of(found)

    def _check(self, found: Any, y: Array) -> None:
        wanted = f"an array of shape {tuple(y.shape)}, like y"
        returned.check_array("model", found, self.backend, wanted, like="y")
        if tuple(found.shape) != tuple(y.shape):
            raise ValueError(f"model returned {returned.described(found)}; wanted {wanted}")
        returned.check_real("model", found, self.backend)
        if self.differs:
            returned.check_precision("model", found, self.backend, like="y")


@dataclasses.dataclass(frozen=True)
class Slopes:
    """The Jacobian of the residuals, from the Jacobian of the model.

    places : where the columns of the Jacobian of the residuals stand in that of the model; None if
        at the same places.
    """

    jac: Callable
    batched: bool
    places: tuple[int, ...] | None = None

    def __call__(self, params: Any, x: Any, y: Array, weights: Any) -> Array:
        positional, named = _arguments(params, self.batched)
        found = self.jac(x, *positional, **named)
        if not is_array(found) or found.ndim != y.ndim + 1:
            return found  # a wrong shape is reported by a later check
        if is_complex(found):
            found = parts_of(found, -2)
        if self.places is not None and found.shape[-1] == len(self.places):
            columns = [found[..., place] for place in self.places]
            found = array_namespace(found).stack(columns, axis=-1)
        if weights is None:
            return found
        if are_correlated(weights, y):
            return weights @ found
        # Stored column by column, the order in which the fit uses them.
        transpose = array_namespace(found).matrix_transpose
        return transpose(weights[..., None, :] * transpose(found))


def _arguments(params: Any, batched: bool) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments of the model."""
    if type(params) is np.ndarray and not batched:
        return list(params), {}
    if is_array(params):
        each = range(params.shape[-1])
        return [params[:, i, None] if batched else params[i] for i in each], {}
    if batched:
        leaves, structure = flatten_parameters(params)
        params = unflatten(structure, [leaf[:, None, ...] for leaf in leaves])
    return ([], params) if isinstance(params, dict) else (list(params), {})
