"""The state of `torch.optim.LBFGS`, to continue from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbfgs_xp.torch.flat import Flat

# The smallest s . y for which torch keeps a pair.
_LEAST = 1e-10


def is_of_torch(saved: dict[str, Any]) -> bool:
    """Whether this is what `torch.optim.LBFGS` keeps for its first parameter."""
    return {"func_evals", "n_iter"} <= saved.keys() and "pairs" not in saved


def taken_over(saved: dict[str, Any], flat: Flat) -> dict[str, Any] | None:
    """The curvature in a state of torch, for `pairs_of`; None if there is none.

    steps, changes : (k, n), the pairs, the oldest first.
    gamma : the scale of the initial inverse Hessian.
    last, gradient : (n,), the last step, and the gradient before it. The pair of this step is
        complete only with the gradient of the next evaluation.
    """
    if saved.get("prev_flat_grad") is None:
        return None
    last = saved["d"] * saved["t"]
    steps = [*saved["old_stps"], last]
    changes = [*saved["old_dirs"], saved["prev_flat_grad"]]
    *steps, last = (flat.picked(vector) for vector in steps)
    *changes, gradient = (flat.picked(vector) for vector in changes)
    none = last.new_zeros((0, len(last)))
    return {
        "steps": torch.stack(steps) if steps else none,
        "changes": torch.stack(changes) if changes else none,
        "gamma": float(saved["H_diag"]), "last": last, "gradient": gradient,
    }


def pairs_of(taken: dict[str, Any], gradient: Tensor, room: int, most: int) -> dict[str, Any]:
    """The fields of `Pairs` as tensors, with the pair of the last step, whose end has this
    gradient.

    room, most : for how many pairs there is room, and how many are kept.

    R^-1 and Y'Y are computed at once (see `solvers/lbfgs/curvature.py`).
    """
    steps, changes, last, before = (
        taken[name].to(gradient) for name in ("steps", "changes", "last", "gradient")
    )
    gamma, y = taken["gamma"], gradient - before
    if (product := float(last @ y)) > _LEAST:
        steps, changes = torch.cat([steps, last[None]]), torch.cat([changes, y[None]])
        gamma = product / float(y @ y)
    steps, changes = steps[-most:], changes[-most:]
    k, n = steps.shape
    m = max(room, k)
    S, Y = (rows.to("cpu", torch.float64) for rows in (steps, changes))
    upper = torch.triu(S @ Y.T)
    rows = gradient.new_zeros((2 * m, n))
    rows[:k], rows[m : m + k] = steps, changes
    inverse, gram = torch.zeros((2, m, m), dtype=torch.float64)
    inverse[:k, :k], gram[:k, :k] = torch.linalg.inv(upper), Y @ Y.T
    diagonal = torch.zeros(m, dtype=torch.float64)
    diagonal[:k] = torch.diagonal(upper)
    return {
        "rows": rows, "inverse": inverse, "gram": gram, "diagonal": diagonal, "gamma": gamma,
        "slot": k % m, "count": k,
    }
