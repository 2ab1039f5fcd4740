"""The checked settings of the optimizer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from lbfgs_xp.checks import count, flag, number, optional, real, setting, shown
from lbfgs_xp.line_search import Fixed, rule_of
from lbfgs_xp.solvers import lbfgs


def _tolerance(name: str, value: Any) -> float:
    """Any number, as in torch: below 0 a tolerance is never met."""
    found = real(value)
    if found is None or math.isnan(found):
        raise ValueError(f"{name} is {shown(value)}; wanted a number")
    return found


def learning_rate(name: str, value: Any) -> float:
    """A number of at least 0, also in a tensor with one element."""
    single = isinstance(value, Tensor) and value.numel() == 1
    return number(name, float(value) if single else value, least=0.0)


def shared(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the first group of parameters, which all others must have too."""
    first, *others = groups
    for other in others:
        for name, value in first.items():
            if (odd := other[name]) != value:
                raise ValueError(
                    f"{name} is {value!r} in one group of parameters and {odd!r} in another; "
                    "wanted the same in all, because one step moves them together"
                )
    return first


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The settings, which must be the same for all parameter groups."""

    lr: Any
    max_iter: int
    max_eval: Any
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    line_search_fn: Any
    maximize: bool
    clip_norm: float | None
    clip_value: float | None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the dataclass is frozen
        setting(self, "lr", learning_rate)
        for name in ("tolerance_grad", "tolerance_change"):
            setting(self, name, _tolerance)
        setting(self, "max_iter", count, least=1)
        if self.max_eval is None:
            set_(self, "max_eval", max(self.max_iter * 5 // 4, 1))
        setting(self, "max_eval", count, least=1)
        setting(self, "history_size", count, least=1)
        if self.line_search_fn is not None:
            rule_of(self.line_search_fn, "line_search_fn")
        setting(self, "maximize", flag)
        for name in ("clip_norm", "clip_value"):
            setting(self, name, optional(number), above=0.0)

    @classmethod
    def of(cls, groups: list[dict[str, Any]]) -> OptimizerSettings:
        found = [
            cls(**{field.name: group[field.name] for field in dataclasses.fields(cls)})
            for group in groups
        ]
        shared([vars(each) for each in found])
        return found[0]

    @property
    def fixed(self) -> bool:
        return self.line_search_fn is None

    def solver(self) -> lbfgs.LBFGS:
        rule = Fixed() if self.fixed else rule_of(self.line_search_fn)
        # The first inverse Hessian is the identity, as in torch.
        return lbfgs.LBFGS(
            self.history_size, rule, initial_inverse_hessian=1.0, clip_norm=self.clip_norm,
            clip_value=self.clip_value,
        )
