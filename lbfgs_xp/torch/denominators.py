"""What the losses of torch divide by when they take a mean, so that the means of chunks can be put
together."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def reduction_of(loss_fn: Callable, given: Any) -> str:
    """"mean" or "sum": as `given` or, if that is None, as the loss says."""
    known = _known(loss_fn)
    own = getattr(loss_fn, "reduction", None) if known is None else known.reduction
    own = "mean" if own in (None, "batchmean") else own
    found = own if given is None else given
    if found not in ("mean", "sum"):
        raise ValueError(f"reduction is {found!r}; wanted 'mean' or 'sum'")
    if known is not None and found != own:
        raise ValueError(f"reduction is {found!r}, but that of loss_fn is {own!r}; wanted the same")
    return found


def denominator_of(loss_fn: Callable) -> Callable[[Any, Any], float] | None:
    """A function (output, target) -> what the mean of a loss of torch divides by; None if that is
    not known."""
    known = _known(loss_fn)
    return None if known is None else known.denominator


class _Known:
    """A loss of torch: a module, or a function with settings.

    bare : the same loss, not reduced.
    classes : whether its targets may be classes.
    """

    def __init__(self, settings: Any, reduction: str, bare: Callable, classes: bool):
        self.weight = settings("weight", None)
        self.ignore_index = settings("ignore_index", -100)
        self.reduction, self.bare, self.classes = reduction, bare, classes

    def denominator(self, output: Tensor, target: Tensor) -> float:
        if self.reduction == "batchmean":
            return len(output)
        if not self.classes:
            return self.bare(output.detach(), target).numel()
        if target.is_floating_point():    # probabilities
            return target.numel() / target.shape[0 if target.ndim == 1 else 1]
        counted = target if self.ignore_index is None else target[target != self.ignore_index]
        return counted.numel() if self.weight is None else float(self.weight[counted].sum())


def _known(loss_fn: Any) -> _Known | None:
    """A loss of torch, if its class computes what it does there."""
    if isinstance(loss_fn, nn.Module):
        kind = next(c for c in type(loss_fn).__mro__ if getattr(nn, c.__name__, None) is c)
        if type(loss_fn).forward is not kind.forward or "reduction" not in vars(loss_fn):
            return None
        bare: Any = copy.copy(loss_fn)
        reduction, bare.reduction = bare.reduction, "none"
        classes = hasattr(loss_fn, "ignore_index")
        return _Known(functools.partial(getattr, loss_fn), reduction, bare, classes)
    settings: dict[str, Any] = {}
    if isinstance(loss_fn, functools.partial):
        if loss_fn.args:
            return None
        settings, loss_fn = loss_fn.keywords, loss_fn.func
    if getattr(loss_fn, "__module__", None) != functional.__name__:
        return None
    known = inspect.signature(loss_fn).parameters
    if "reduction" not in known or "reduce" in settings:
        return None
    classes = "ignore_index" in known
    reduction = settings.get("reduction", "mean")
    unreduced = functools.partial(loss_fn, **settings | {"reduction": "none"})
    return _Known(settings.get, reduction, unreduced, classes)
