"""The checked settings and budgets of a fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.fits.losses import ResidualLoss
from lbfgs_xp.result import Status
from lbfgs_xp.run.progress import Live

if TYPE_CHECKING:
    from lbfgs_xp.fits.keeping import KeptFit, KeptFits

# The lower bound on the curvature of a robust loss, relative to weighted least squares.
_LEAST_BEND = 0.01


class FitSettings(NamedTuple):
    """What is constant during a fit; tolerances are as in `lx.least_squares`.

    accuracy : the relative error of the Jacobian, apart from rounding.
    own_scale : whether the scale of the parameters is given, instead of measured by the columns of
        the Jacobian.
    """

    loss: ResidualLoss
    factor: float
    gtol: float
    ftol: float
    xtol: float
    maxiter: int
    accuracy: float
    own_scale: bool

    @classmethod
    def checked(
        cls, backend: Backend, *, loss: Any, f_scale: Any, factor: Any, gtol: Any, ftol: Any,
        xtol: Any, maxiter: Any, accuracy: float, own_scale: bool,
    ) -> FitSettings:
        return cls(
            ResidualLoss.checked(loss, f_scale),
            checks.number("factor", factor, above=0.0),
            checks.tolerance("gtol", backend.eps**0.5 if gtol is None else gtol),
            checks.tolerance("ftol", ftol),
            checks.tolerance("xtol", xtol),
            _at_most(checks.budget("maxiter", maxiter, 0)),
            accuracy,
            own_scale,
        )

    def weights(self, space: Space, residuals: Array) -> tuple[Array, Array]:
        """Factors for Jacobian rows and residuals; see `ResidualLoss.weights`."""
        return self.loss.weights(space.xp, residuals, _LEAST_BEND)


class FitPlan(NamedTuple):
    """How to run a fit.

    scale : None, or 1 / x_scale (B, p).
    deadline : in the time of time.perf_counter().
    compact, callback, on_error : as in `lx.least_squares`.
    end : the status with which to end at once; None to run.
    live : the status line, or None.
    solver : as in `lx.least_squares`.
    on_host : whether the algebra runs on the host, also that of a batch.
    keeps : what saves the fit, or None.
    """

    settings: FitSettings
    scale: Any
    maxfun: float
    deadline: float
    compact: bool
    callback: Callable | None = None
    on_error: tuple[type[Exception], ...] = ()
    end: Status | None = None
    on_host: bool = False
    live: Live | None = None
    solver: str = "dense"
    keeps: KeptFit | None = None

    @classmethod
    def checked(
        cls, layout: Layout, *, x_scale: Any, maxfun: Any, maxtime: Any, compact: Any,
        callback: Any = None, on_error: Any = (), **settings: Any,
    ) -> FitPlan:
        if layout.backend.eps < 2.0**-53:
            raise TypeError(
                f"{layout.name} has dtype {layout.backend.dtype}, perhaps from the data; "
                "wanted float32 or float64, the only ones that factorizations of matrices take"
            )
        by_columns = x_scale is None or (isinstance(x_scale, str) and x_scale == "jac")
        scale = None if by_columns else layout.in_units(x_scale).scale
        if scale is not None:
            shape = (*layout.batch, layout.size) if layout.batched else (1, layout.size)
            scale = layout.xp.broadcast_to(1.0 / scale, shape)
        limit = checks.optional(checks.seconds)("maxtime", maxtime)
        return cls(
            FitSettings.checked(layout.backend, own_scale=scale is not None, **settings),
            scale,
            _at_most(checks.budget("maxfun", maxfun, 1)),
            time.perf_counter() + (math.inf if limit is None else limit),
            checks.flag("compact", compact),
            checks.callback(callback),
            checks.exceptions("on_error", on_error, layout.batched),
        )

    def kept_by(self, saves: KeptFits | None) -> FitPlan:
        """The same for the only fit of a call that is saved, or is not."""
        return self if saves is None else self._replace(keeps=saves.of_piece(0))

    def with_priors(self, count: int) -> FitPlan:
        """The same if the last `count` residuals are those of priors."""
        loss = self.settings.loss._replace(priors=count)
        return self._replace(settings=self.settings._replace(loss=loss))


def _at_most(limit: int | None) -> int:
    # Counts in a batch are 32-bit integers.
    unlimited = 2**31 - 1
    return unlimited if limit is None else min(limit, unlimited)
