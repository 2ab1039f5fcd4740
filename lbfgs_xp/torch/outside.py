"""Leaves of a loss that require a gradient, but are not trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lbfgs_xp.arrays.tree import flatten
from lbfgs_xp.torch.warned import warn


@contextlib.contextmanager
def inputs_of(model: torch.nn.Module) -> Iterator[list[Tensor] | None]:
    """A list that fills with the tensors that a model, or a part of it, is called with; None if
    they cannot be known, as with a compiled module."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        yield None
        return
    found: list[Tensor] = []
    depth = 0

    def before(_: Any, args: Any, keywords: Any) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            leaves, _ = flatten([args, keywords])
            found.extend(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def after(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    hooks: list[Any] = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def warn_of_leaves_outside(
    loss: Tensor, trained: Iterable[Tensor], inputs: Iterable[Tensor] | None
) -> None:
    """Warn of leaves that the loss depends on, such as an unknown coefficient that is no parameter
    of the model.

    inputs : what the model was called with. Leaves from which it was computed are points or data,
        unless they are `torch.nn.Parameter`s. None: any leaf may be.
    """
    known = {id(p) for p in trained}
    data = {id(leaf) for x in inputs or () for leaf in _leaves(x)}
    outside = [
        leaf for leaf in _leaves(loss)
        if id(leaf) not in known
        and (isinstance(leaf, torch.nn.Parameter) or (inputs is not None and id(leaf) not in data))
    ]
    if outside:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in outside[:5])
        more = f" and {len(outside) - 5} more" if len(outside) > 5 else ""
        warn(
            f"the loss depends on {len(outside)} tensor{'s' * (len(outside) > 1)} of shape "
            f"{shapes}{more} that require a gradient but belong neither to the model nor to "
            "params, so they are not trained; pass them as params=, or detach them",
        )


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The leaves that require a gradient and that a tensor was computed from, each once."""
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    found: list[Tensor] = []
    seen, waiting = {tensor.grad_fn}, [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found
