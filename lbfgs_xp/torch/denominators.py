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
from torch.nn.modules.loss import _Loss

_WITH_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)


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
            return output.numel() / output.shape[0 if output.ndim == 1 else 1]
        counted = target[target != self.ignore_index]
        return counted.numel() if self.weight is None else float(self.weight[counted].sum())


def _known(loss_fn: Any) -> _Known | None:
    """A loss of torch, if its class computes what it does there."""
    if isinstance(loss_fn, _Loss):
        kind: Any = next(c for c in type(loss_fn).__mro__ if c.__module__ == _Loss.__module__)
        if type(loss_fn).forward is not kind.forward or "reduction" not in vars(loss_fn):
            return None
        bare = copy.copy(loss_fn)
        bare.reduction = "none"
        classes = isinstance(loss_fn, _WITH_CLASSES)
        return _Known(functools.partial(getattr, loss_fn), loss_fn.reduction, bare, classes)
    settings: dict[str, Any] = {}
    if isinstance(loss_fn, functools.partial):
        if loss_fn.args:
            return None
        settings, loss_fn = loss_fn.keywords, loss_fn.func
    if getattr(loss_fn, "__module__", None) != functional.__name__:
        return None
    if "reduction" not in inspect.signature(loss_fn).parameters or "reduce" in settings:
        return None
    classes = loss_fn in (functional.cross_entropy, functional.nll_loss)
    reduction = settings.get("reduction", "mean")
    unreduced = functools.partial(loss_fn, **settings | {"reduction": "none"})
    return _Known(settings.get, reduction, unreduced, classes)
