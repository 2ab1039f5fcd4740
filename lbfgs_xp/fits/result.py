"""The outcome of `lx.least_squares`."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.result import Status, table


@dataclasses.dataclass(frozen=True)
class LeastSquaresResult:
    """The outcome of `lx.least_squares`; that of a batch is a `lx.BatchLeastSquaresResult`.

    Attributes
    ----------
    x : of the structure, library, device and dtype of x0
        The point with the lowest cost.
    cost : float
        Half the sum of the losses of the residuals; of their squares, without a loss.
    fun : array (m,)
        The residuals at x.
    jac : array (m, p)
        Their Jacobian, in the order in which the leaves of x0 lie in a row.
    optimality : float
        |Q^T r| / |r|, with Q an orthonormal basis of the columns of the Jacobian (those of
        parameters that rest at a bound left out): the share of the residuals that a change of the
        parameters could still take away.
    nit : int
        Steps taken.
    nfev, njev : int
        Calls of residuals (those for differences included), and of the Jacobian.
    success, status, message
        Whether and why the run ended; see `lx.Status`. `GRADIENT` means optimality <= gtol.
    """

    x: Any
    cost: float
    fun: Any = dataclasses.field(repr=False)
    jac: Any = dataclasses.field(repr=False)
    optimality: float
    nit: int
    nfev: int
    njev: int
    success: bool
    status: Status
    message: str

    def __repr__(self) -> str:
        return table(self)


@dataclasses.dataclass(frozen=True, repr=False)
class BatchLeastSquaresResult(LeastSquaresResult):
    """The outcome of `lx.least_squares` with batched=True, for B problems.

    The attributes of `lx.LeastSquaresResult`, of which `cost`, `optimality`, `nit`, `success` and
    `status` are arrays (B,) of the library of x0, `fun` and `jac` have the shapes (B, m) and
    (B, m, p), and `message` is a list of B sentences. `status` holds the integers of `lx.Status`.
    """

    cost: Any
    optimality: Any
    nit: Any
    success: Any
    status: Any
    message: list[str]  # type: ignore[assignment]
