"""The closure of a step: what it returns, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lbfgs_xp.torch.flat import Flat

CHANGES = (
    "closure changes the parameters, such as by clamping them in the loss: its value is not that "
    "of the trial; wanted one that leaves them alone (the optimizer takes bounds)"
)
_FORGETS = (
    "function and gradient disagree: closure adds the gradient to those of its earlier calls; "
    "wanted opt.zero_grad() before loss.backward()"
)
_SILENT = (
    "closure left no gradients, so nothing was moved; wanted one that calls loss.backward() on a "
    "loss that depends on the parameters"
)
# A gradient is the sum of two others if it differs from that by less than this part of one of them.
_CLOSE = 1e-3


class Evaluation(NamedTuple):
    """The loss and the gradient that a closure has left, or what is wrong with them.

    place : the parameters that it has left, as a vector.
    """

    value: float
    gradient: Tensor
    place: Tensor
    fault: str


class Closure:
    """A closure, called with the parameters at a vector.

    loss : what it returned first.
    calls : how often it was called.
    clears : whether it is known to clear the gradients of earlier calls.
    """

    def __init__(self, function: Callable, flat: Flat, sign: float, clears: bool):
        self.function = torch.enable_grad()(function)
        self.flat, self.sign, self.clears = flat, sign, clears
        self.loss: Any = None
        self.calls = 0

    def __call__(self, x: Tensor) -> Evaluation:
        """Evaluate where the parameters are, at x."""
        old = [p.grad for p in self.flat.params]
        watched = None if self.clears or all(g is None for g in old) else _Incoming(self.flat)
        try:
            loss = self.function()
        finally:
            if watched:
                watched.end()
        self.calls += 1
        if self.calls == 1:
            self.loss = loss
        value, gradient, place = _number(loss), self.flat.gradient(), self.flat.read()
        fault = "" if torch.equal(place, x) or bool(x.isnan().any()) else CHANGES
        if all(p.grad is None for p in self.flat.params):
            fault = _SILENT
        elif watched is not None and self._adds(watched, gradient):
            fault = _FORGETS
        if self.sign < 0.0:
            value, gradient = -value, -gradient
        return Evaluation(value, gradient, place, fault)

    def _adds(self, watched: _Incoming, gradient: Tensor) -> bool:
        """Whether the gradient contains those of earlier calls. Once it does not, this is not
        checked again."""
        fresh, stale = watched.vector(), watched.before
        size = _CLOSE * stale.abs().max()
        if bool((gradient - fresh).abs().max() <= size) and bool(size > 0.0):
            self.clears = True
        return bool(((gradient - fresh - stale).abs().max() <= size) & (size > 0.0))


class _Incoming:
    """The gradients that backward passes add while this watches.

    before : the gradient before them.
    """

    def __init__(self, flat: Flat):
        self.flat, self.before = flat, flat.gradient()
        self.sums: dict[int, Tensor] = {}
        self.hooks = [
            p.register_hook(lambda g, i=i: self._add(i, g)) for i, p in enumerate(flat.params)
        ]

    def _add(self, i: int, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.sums[i] = self.sums[i] + gradient if i in self.sums else gradient.clone()

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def vector(self) -> Tensor:
        return self.flat.joined([self.sums.get(i) for i in range(len(self.flat.params))])


def _number(loss: Any) -> float:
    """The loss that a closure has returned."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or loss.is_complex():
            raise TypeError(
                f"closure returned a tensor of {loss.dtype} and shape {tuple(loss.shape)}; wanted "
                "the loss as a real number or a tensor with one element"
            )
        return float(loss)
    try:
        if isinstance(loss, (str, bytes)):
            raise TypeError
        return float(loss)
    except (TypeError, ValueError):
        raise TypeError(
            f"closure returned a {type(loss).__name__}; wanted the loss as a real number or a "
            "tensor with one element"
        ) from None
