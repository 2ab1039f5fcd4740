"""The outcome of `lx.least_squares`."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.result import Status, table


@dataclasses.dataclass(frozen=True)
class LeastSquaresResult:
    """The outcome of `lx.least_squares`; for a batch see `lx.BatchLeastSquaresResult`.

    Attributes
    ----------
    x : like x0
        The point with the lowest cost, with the structure, library, device and dtype of x0.
    cost : float
        Half the sum of the squares of the residuals, or of their losses.
    fun : array (m,)
        The residuals at x.
    jac : array (m, p)
        Their Jacobian, with columns in the order of the leaves of x0.
    optimality : float
        |Q^T r| / |r|, with Q an orthonormal basis of the columns of the Jacobian (without those of
        parameters held at a bound): the share of the residuals that a change of the parameters
        could still remove.
    nit : int
        Steps taken.
    nfev, njev : int
        Calls of the residuals, including those for finite differences, and evaluations of the
        Jacobian.
    success, status, message
        Whether the run succeeded, and why it ended; see `lx.Status`. `GRADIENT` means
        optimality <= gtol.
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

    The attributes are those of `lx.LeastSquaresResult`, but `cost`, `optimality`, `nit`, `success`
    and `status` are arrays (B,) of the library of x0, `fun` and `jac` have shapes (B, m) and
    (B, m, p), and `message` is a list of B strings. `status` holds the integers of `lx.Status`.
    """

    cost: Any
    optimality: Any
    nit: Any
    success: Any
    status: Any
    message: list[str]  # type: ignore[assignment]
