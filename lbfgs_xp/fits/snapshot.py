"""Where a fit stands between two trials, so that another process can go on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import is_array
from lbfgs_xp.arrays.rows import Rows
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits.jacobian import Products
from lbfgs_xp.result import Status
from lbfgs_xp.saving.encoding import on_host

if TYPE_CHECKING:
    from lbfgs_xp.fits.loop import Fit
    from lbfgs_xp.fits.sharpening import Sharpening

_RUNNING, _ITERATIONS = int(Status.RUNNING), int(Status.ITERATIONS)
# By how much residuals may differ where a fit goes on, as a power of eps, relative to their norm;
# and how many times larger than an estimate of it their rounding error may be.
_SAME, _ROUNDED = 0.4, 100.0


class FitSnapshot(NamedTuple):
    """Where a fit stands between two trials.

    rows : the rows of a batch that are left.
    state : an `LMState`. If its Jacobian has no array, `columns` is None, and `linear` only holds
        the scale: both are made again.
    steps : what the steps remember.
    of_all, of_rows : what is known of the residuals: of all rows, and of those that are left.
    sharpening : what its looks know.
    sizes : what decides when rows leave.
    transfers : the arrays that are known on the host and on the device.
    maxiter : the budget of the fit.
    """

    rows: Rows
    state: lm.LMState
    steps: Any
    of_all: tuple
    of_rows: tuple | None
    sharpening: tuple
    sizes: tuple[float, float]
    transfers: list
    maxiter: int


def taken(fit: Fit, sharpening: Sharpening) -> FitSnapshot:
    """Where a fit stands. The arrays are those of the fit, which never writes into them."""
    state, steps = fit.state, None
    if isinstance(state.columns, Products):
        steps = fit.steps.memory_at(state.linear)
        state = state._replace(columns=None, linear=(state.linear.scale,))
    whole = fit.here is fit.objective
    return FitSnapshot(
        fit.rows, state, steps, fit.objective.memory, None if whole else fit.here.memory,
        sharpening.memory, fit.sizes.memory, fit.transfers, fit.plan.settings.maxiter,
    )


def restore(
    fit: Fit, sharpening: Sharpening, saved: FitSnapshot, same_library: bool, said: str
) -> None:
    """Bring a fit that has not begun to where another one stood.

    In another library it begins again with the parameters that the other one has reached, because
    algebra that runs on the host for one may run on the device for the other.

    said : what the user calls the residuals.
    """
    if not same_library:
        _begin_again(fit, saved)
        return
    fit.objective.memory, state = saved.of_all, saved.state
    if saved.rows.here is not None:
        fit.stay_with(saved.rows)
    _check_residuals(fit, state, said)
    if state.columns is None:
        columns = fit.columns_at(state.x, state.residuals)
        linear = fit.steps.linearize_again(state, columns, state.linear[0], saved.steps)
        state = state._replace(columns=columns, linear=linear)
    # Once more, because what was called above has changed it.
    fit.objective.memory = saved.of_all
    if saved.of_rows is not None:
        fit.here.memory = saved.of_rows
    fit.transfers = saved.transfers
    fit.sizes.memory, sharpening.memory = saved.sizes, saved.sharpening
    maxiter, status = fit.plan.settings.maxiter, state.status
    if maxiter != saved.maxiter:
        more = (status == _ITERATIONS) & (state.nit < maxiter)
        state = state._replace(status=fit.space.scalars.where(more, _RUNNING, status))
    fit.move_to(state, None)


def _begin_again(fit: Fit, saved: FitSnapshot) -> None:
    """Begin with the parameters that another fit has reached, and count on."""
    groups: list[tuple[Any, Any]] = list(saved.rows.left)
    x, nit = on_host(saved.state.x), saved.state.nit
    if groups:
        groups = [(which, state) for which, (state, _) in groups]
        groups.append((saved.rows.here, saved.state))
        order = np.argsort(np.concatenate([on_host(which) for which, _ in groups]))
        x, nit = (
            np.concatenate([on_host(getattr(each, name)) for _, each in groups])[order]
            for name in ("x", "nit")
        )
    nit = on_host(nit) if is_array(nit) else nit
    calls, (nfev, njev) = fit.objective.calls, saved.of_all[-1]
    fit.begin_at(x, nit)
    calls.nfev, calls.njev = calls.nfev + nfev, calls.njev + njev


def _check_residuals(fit: Fit, state: lm.LMState, said: str) -> None:
    """Refuse to go on with residuals that are others at the iterate."""
    eps, m = fit.space.backend.eps, state.residuals.shape[-1]

    def rows(array: Any, width: int = 1) -> np.ndarray:
        host = on_host(array) if is_array(array) else array
        return np.reshape(np.asarray(host, dtype=float), (-1, width))

    found, known = rows(fit.residuals(state.x), m), rows(state.residuals, m)
    finite = np.isfinite(known)
    with np.errstate(all="ignore"):
        apart = np.linalg.norm(np.where(finite, found - known, 0.0), axis=-1)
        size = np.linalg.norm(np.where(finite, known, 0.0), axis=-1)
        margin = eps**_SAME * size
        if state.columns is not None:
            of_x = fit.space.sum(state.linear.norms * fit.space.xp.abs(state.x))
            margin = margin + _ROUNDED * eps * rows(of_x)[:, 0]
        margin = margin + _ROUNDED * rows(state.noise)[:, 0] * m**0.5
        other = ~(apart <= margin) & np.isfinite(size) & np.isfinite(margin)
    if other.any():
        where = f" in {np.count_nonzero(other)} rows" if other.size > 1 else ""
        raise ValueError(
            f"{said} has other values{where} at the point where the checkpoint goes on; wanted the "
            "same functions and data as in the fit that has saved it, or another path"
        )
