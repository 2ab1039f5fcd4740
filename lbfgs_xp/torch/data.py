"""A loss over data that may exceed the memory: gradients are accumulated chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lbfgs_xp.arrays.tree import flatten, map_leaves
from lbfgs_xp.checks import count, optional
from lbfgs_xp.torch.flat import Flat


class ChunkedLoss:
    """The total loss of several chunks; its gradient is left in the parameters."""

    def __init__(self, model: torch.nn.Module, loss_fn: Callable, reduction: Any, flat: Flat):
        if reduction is None:
            reduction = getattr(loss_fn, "reduction", "mean")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; wanted 'mean' or 'sum'")
        if isinstance(loss_fn, type):
            raise TypeError(
                f"loss_fn is the class {loss_fn.__name__}; wanted a function: {loss_fn.__name__}()"
            )
        self.model, self.loss_fn, self.flat = model, loss_fn, flat
        self.mean = reduction == "mean"

    @torch.enable_grad()
    def __call__(self, chunks: Iterable[tuple]) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "train_with_lbfgs was called under torch.inference_mode, which forbids autograd; "
                "wanted a call outside it"
            )
        for p in self.flat.params:
            p.grad = None
        total: Any = None
        unit = weights = 0.0
        for chunk in chunks:
            # Weights are relative to the first chunk, so that a single chunk, or chunks of equal
            # size, have weight 1 and add no rounding.
            rows = _rows(chunk)
            if rows == 0:
                raise ValueError("data holds a batch without rows; wanted at least one row")
            unit = unit or rows
            weight = rows / unit if self.mean else 1.0
            loss = weight * self._of(chunk)
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
            weights += weight
        if self.mean and weights != 1.0:
            total = total / weights
            for p in self.flat.params:
                if p.grad is not None:
                    p.grad.div_(weights)
        return total

    def _of(self, chunk: tuple) -> Tensor:
        if len(chunk) == 2:
            loss = self.loss_fn(self.model(chunk[0]), chunk[1])
        else:
            try:
                loss = self.loss_fn(self.model, *chunk)
            except Exception as error:
                error.add_note(
                    "lbfgs_xp: called as loss_fn(model, tensor), because data gave one tensor; "
                    "pass pairs (inputs, targets) as a tuple, or as a list of tuples"
                    if chunk else "lbfgs_xp: called as loss_fn(model), because data is None"
                )
                raise
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn returned {what}; wanted a tensor with a single number (0-d)")
        if not loss.requires_grad:
            raise TypeError(
                "loss_fn returned a tensor that does not depend on the model through torch "
                "operations, so autograd finds no gradient; wanted one computed from its parameters"
            )
        return loss


class Source:
    """Data as chunks: tuples (inputs, targets), (points,) or (), on the device of the model.

    whole : whether each batch for Adam holds all data.
    """

    def __init__(
        self, data: Any, batch_size: int | None, chunk_size: int | None, seed: int, device: Any
    ):
        self.batch_size = optional(count)("batch_size", batch_size, 1)
        self.chunk_size = optional(count)("chunk_size", chunk_size, 1)
        self.seed, self.device = seed, device
        self.items: Any = None
        self.tensors: tuple[Tensor, ...] = ()
        if isinstance(data, Tensor) or (
            isinstance(data, tuple) and all(isinstance(each, Tensor) for each in data)
        ):
            self.tensors = _chunk(data)
            shapes = [tuple(tensor.shape) for tensor in self.tensors]
            if len({shape[:1] for shape in shapes}) > 1 or shapes[0][:1] in ((), (0,)):
                raise ValueError(
                    f"data has the shapes {shapes}; wanted the same number of rows (the first "
                    "axis) in all, and at least one row"
                )
        elif batch_size is not None or chunk_size is not None:
            raise ValueError(
                f"batch_size is {batch_size!r} and chunk_size is {chunk_size!r}, but data, a "
                f"{type(data).__name__}, has no rows to draw; wanted None for both, or tensors"
            )
        elif data is not None:
            if not isinstance(data, Iterable) or isinstance(data, Iterator):
                raise TypeError(
                    f"data is a {type(data).__name__}; wanted a tensor, a pair (inputs, targets) "
                    "of tensors, an iterable of these that can be iterated repeatedly, or None"
                )
            self.items = data
        self.whole = self.items is None and batch_size is None

    def chunks(self) -> Iterator[tuple]:
        """All data, once."""
        if self.items is not None:
            found: Any = self._each()
        elif self.tensors:
            size = self.chunk_size or len(self.tensors[0])
            found = zip(*(tensor.split(size) for tensor in self.tensors), strict=True)
        else:
            found = [()]
        return map(self._moved, found)

    def batches(self) -> Iterator[Iterable[tuple]]:
        """An endless sequence of batches for Adam, each as chunks."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self.items is not None:
                for chunk in self.chunks():
                    yield [chunk]
            elif self.batch_size is not None:
                order = torch.randperm(len(self.tensors[0]), generator=generator)
                for rows in order.split(self.batch_size):
                    yield [self._moved(tuple(t[rows.to(t.device)] for t in self.tensors))]
            else:
                yield self.chunks()

    def _each(self) -> Iterator[tuple]:
        empty = True
        for item in self.items:
            empty = False
            yield _chunk(item)
        if empty:
            raise ValueError(f"data, a {type(self.items).__name__}, gave nothing; wanted a batch")

    def _moved(self, chunk: tuple) -> tuple:
        return map_leaves(
            lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, chunk
        )


def _chunk(item: Any) -> tuple:
    """An item of a list or of a DataLoader, as a tuple."""
    if isinstance(item, (tuple, list)) and len(item) in (1, 2):
        return tuple(item)
    if isinstance(item, Tensor):
        return (item,)
    of = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
    raise TypeError(
        f"data holds a {type(item).__name__}{of}; wanted a tensor, or a pair (inputs, targets)"
    )


def _rows(chunk: tuple) -> int:
    """The length of the first axis of the first tensor; 1 if there is none."""
    leaves = (leaf for leaf in flatten(chunk)[0] if isinstance(leaf, Tensor) and leaf.ndim)
    return next((len(leaf) for leaf in leaves), 1)
