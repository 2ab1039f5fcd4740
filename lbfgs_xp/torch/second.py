"""The second phase of `train_with_lbfgs`: L-BFGS as a torch optimizer, or another method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Status
from lbfgs_xp.run.methods import method_named
from lbfgs_xp.solvers.contract import completed
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.optimizer import LBFGS


class ByOptimizer:
    """Epochs of L-BFGS.

    result : of the last epoch, with fun, gradient_norm, nit, status and message.
    looks : whether the verdict on a failed search is left to `minimize`.
    """

    looks = True

    def __init__(self, optimizer: LBFGS):
        self.optimizer = optimizer
        # The loss here does clear the gradients, which it then adds up itself.
        optimizer.trust_to_clear()

    @property
    def result(self) -> Any:
        return self.optimizer.result

    @property
    def settings(self) -> dict[str, Any]:
        return self.optimizer.param_groups[0]

    def step(self, evaluate: Callable[[], Tensor], flat: Flat) -> float:
        """Run one epoch from the parameters of the model; return the loss before it."""
        return float(self.optimizer.step(evaluate))

    def memory(self) -> Any:
        """What has been learned, to be saved."""
        return map_leaves(_as_number, self.optimizer.state_dict())

    def load(self, memory: Any) -> None:
        """Continue with what `memory` returned."""
        self.optimizer.load_state_dict(map_leaves(_as_tensor, memory))


class ByMethod:
    """Epochs of another method; see `ByOptimizer`. The settings that they share are those of an
    optimizer."""

    looks = False
    result: Any = None

    def __init__(self, method: Any, optimizer: LBFGS):
        self.method = method_named(method)
        if getattr(self.method, "needs_hessian", False):
            raise ValueError(f"method is {self.method!r}; wanted one that needs no Hessian")
        self.settings: dict[str, Any] = optimizer.param_groups[0]
        self.resumes = completed(self.method).resumes
        self._state: Any = None

    def step(self, evaluate: Callable[[], Tensor], flat: Flat) -> float:
        first: list[float] = []

        def fun(x: Tensor) -> tuple[float, Tensor]:
            flat.write(x)
            value = float(evaluate())
            if not first:
                first.append(value)
            return value, flat.gradient()

        self.result = None
        # Curvature is kept from epoch to epoch, but the gradient is that of the current points.
        res: Any = minimize(
            fun, flat.read(), jac=True, method=self.method, gtol=self.settings["tolerance_grad"],
            maxiter=self.settings["max_iter"], state=self._state,
        )
        flat.write(res.x)
        self.result, self._state = res, res.state if self.resumes else None
        if res.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return first[0]

    def memory(self) -> Any:
        return self._state

    def load(self, memory: Any) -> None:
        self._state = memory


def _as_number(value: Any) -> Any:
    """A tensor on the host as an array of NumPy, so that it is on the host again when loaded."""
    on_host = isinstance(value, Tensor) and value.device.type == "cpu"
    return value.numpy() if on_host else value


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
