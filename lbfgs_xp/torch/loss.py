"""A loss over data that may exceed the memory: gradients are accumulated chunk by chunk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.checks import number, shown
from lbfgs_xp.run.metrics import Metrics, copied, joined
from lbfgs_xp.torch.data import NO_DATA, halves, rows_of
from lbfgs_xp.torch.denominators import denominator_of, reduction_of
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.outside import inputs_of, warn_of_leaves_outside
from lbfgs_xp.torch.together import Together
from lbfgs_xp.torch.warned import warn


class Part(NamedTuple):
    """The loss on a chunk.

    loss : its mean or, if `summed`, its sum.
    aux : what else loss_fn returned, with numbers as floats; None without `has_aux`.
    divisor : what the mean divides by; None if that is not known.
    inputs : what the model was called with, as `warn_of_leaves_outside` takes it.
    """

    loss: Tensor
    aux: Any
    divisor: float | None
    summed: bool
    inputs: list[Tensor] | None

    @property
    def weight(self) -> float:
        """Its weight in a mean over chunks, 1 if nobody knows."""
        return 1.0 if self.divisor is None else self.divisor


class ChunkedLoss:
    """The total loss of several chunks; its gradient is left in the parameters.

    pass_model : whether loss_fn takes the model and the batch even if that is a pair.
    aux : with `has_aux`, what else loss_fn returned in the last call: the means of the numbers over
        all rows (or what loss_fn counts), and the last of anything else.
    together : the processes over whose chunks the total is taken; None: this one alone.
    empty : whether the last call found nothing that counts, such as targets that are all
        ignored; the loss is then nan, as in torch, without a gradient.
    """

    def __init__(
        self, model: torch.nn.Module, loss_fn: Callable, reduction: Any, flat: Flat,
        pass_model: bool, together: Together | None = None, has_aux: bool = False,
    ):
        if isinstance(loss_fn, type):
            raise TypeError(
                f"loss_fn is the class {loss_fn.__name__}; wanted a function: {loss_fn.__name__}()"
            )
        if not callable(loss_fn):
            raise TypeError(
                f"loss_fn is {shown(loss_fn)}; wanted a function, such as torch.nn.MSELoss()"
            )
        self.mean = reduction_of(loss_fn, reduction) == "mean"
        self.denominator = denominator_of(loss_fn)
        self.model, self.loss_fn, self.flat, self.pass_model = model, loss_fn, flat, pass_model
        self.empty, self.has_aux, self.aux = False, has_aux, None
        self.metrics = Metrics("loss_fn")
        # What is looked at once: the leaves of the loss, and whether it can be split.
        self._knows_leaves = False
        self._knows_rows = self.denominator is not None
        self._of_all = None if together is None else together.summed(self._share)

    @torch.enable_grad()
    def __call__(self, chunks: Iterable[Any]) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "train_with_lbfgs was called under torch.inference_mode, which forbids autograd; "
                "wanted a call outside it"
            )
        if self._of_all is None:
            total, weights, *_ = self._accumulated(chunks)
        else:
            total, gradient, weights = self._of_all(chunks)
            self.flat.write_gradient(gradient)
        self.empty = weights == 0.0 and not total
        if self.empty:
            self._clear()
            return torch.full_like(total, math.nan)
        if self.mean and weights != 1.0:
            total = total / weights
            for p in self.flat.params:
                if p.grad is not None:
                    p.grad.div_(weights)
        return total

    def _share(self, chunks: Iterable[Any]) -> tuple[Tensor, Tensor, float, int]:
        """The part of this process in the sums over all: the loss, the gradient, what a mean
        divides by, and the number of chunks with rows."""
        total, weights, unit, count = self._accumulated(chunks)
        return unit * total, unit * self.flat.gradient(), unit * weights, count

    def _accumulated(self, chunks: Iterable[Any]) -> tuple[Tensor, float, float, int]:
        """The sum of the losses of the chunks times their weights, the sum of the weights, the unit
        of these, and the number of chunks. The gradient of the sum of the losses is left in the
        parameters. One process of many skips chunks without rows."""
        self._clear()
        total: Any = None
        waiting: list[Any] = []
        outputs: list[tuple[Any, float]] = []
        unit = weights = 0.0
        count, alone = 0, self._of_all is None
        for chunk in chunks:
            if not alone and rows_of(chunk) == 0:
                continue
            count += 1
            part = self._part(chunk)
            if not self._knows_rows:
                waiting.append((chunk, part))
                if count > 1 or not alone:
                    self._check_split(waiting)
            # Weights are relative to the first chunk, so that a single chunk, or chunks of equal
            # size, have weight 1 and add no rounding.
            divisor = part.weight if self.mean else 1.0
            outputs.append((part.aux, part.weight))
            if divisor == 0.0 and not part.summed:    # nothing in it counts, and its mean is nan
                continue
            unit = unit or divisor or 1.0
            loss = part.loss / unit if part.summed else (divisor / unit) * part.loss
            if not self._knows_leaves:
                self._knows_leaves = True
                warn_of_leaves_outside(loss, self.flat.params, part.inputs)
            self._add_gradient(loss)
            total = loss.detach() if total is None else total + loss.detach()
            weights += divisor / unit
        self._knows_rows = self._knows_rows or count > int(alone)
        self.aux = self._joined(outputs)
        if total is None:
            return torch.zeros_like(self.flat.read()[0]), 0.0, 1.0, count
        if all(p.grad is None for p in self.flat.params):
            raise TypeError(
                "loss_fn returned a tensor that depends on none of the parameters, so there is "
                "nothing to train; wanted one computed from those of the model or from params"
            )
        return total, weights, unit, count

    def _add_gradient(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those in the parameters."""
        if self._of_all is None:
            loss.backward()
            return
        # backward() would run the hooks of a DistributedDataParallel, which average gradients.
        found = torch.autograd.grad(loss, self.flat.params, allow_unused=True)
        for p, gradient in zip(self.flat.params, found, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient

    def _clear(self) -> None:
        for p in self.flat.params:
            p.grad = None

    @torch.enable_grad()
    def output(self, chunks: Iterable[Any]) -> Any:
        """`aux` for these chunks, without gradients."""
        parts = (self._part(chunk) for chunk in chunks)
        self.aux = self._joined([(part.aux, part.weight) for part in parts])
        return self.aux

    def _joined(self, outputs: list[tuple[Any, float]]) -> Any:
        """The auxiliary outputs of chunks, and their weights, as one."""
        if not self.has_aux:
            return None
        for aux, _ in outputs:
            self.metrics.of(aux)    # all are alike
        if len(outputs) == 1:
            return outputs[0][0]
        counted = [each for each in outputs if each[1] > 0.0] or outputs
        whole = sum(weight for _, weight in counted) or 1.0
        return joined([aux for aux, _ in counted], [weight / whole for _, weight in counted])

    def _part(self, chunk: Any) -> Part:
        """The loss on a chunk, checked."""
        if rows_of(chunk) == 0:
            raise ValueError("data holds a batch without rows; wanted at least one row")
        watched: Any = contextlib.nullcontext() if self._knows_leaves else inputs_of(self.model)
        with watched as inputs:
            out, divisor = self._called(chunk)
        aux = None
        if self.has_aux:
            out, aux = returned.pair("loss_fn", out, "has_aux=True", "(loss, aux)")
            aux = copied(map_leaves(_detached, aux))
        summed = isinstance(out, tuple) and len(out) == 2
        if summed:
            out, count = out
            divisor = number("the count that loss_fn returned with a sum", count, least=0.0)
        if not isinstance(out, Tensor) or out.ndim > 0:
            what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(
                f"loss_fn returned {what}; wanted a tensor with a single number (0-d), or the pair "
                "(sum, count)"
            )
        if out.is_complex():
            raise TypeError(f"loss_fn returned {out.dtype}; wanted a real number")
        if not out.requires_grad:
            raise TypeError(
                "loss_fn returned a tensor that does not depend on the model through torch "
                "operations, so autograd finds no gradient; wanted one computed from its parameters"
            )
        # Without a mean, a count does not matter.
        return Part(out, aux, divisor, summed and self.mean, inputs)

    def _called(self, chunk: Any) -> tuple[Any, float | None]:
        """What loss_fn returns for a chunk, and what a mean over it divides by."""
        if isinstance(chunk, (tuple, list)) and len(chunk) == 2 and not self.pass_model:
            inputs, targets = chunk
            with _explained(
                "" if isinstance(inputs, Tensor) else
                f"called as model(inputs) with {_described(inputs)}; for a model with several "
                "inputs or outputs, use pass_model=True and loss_fn(model, batch)"
            ):
                output = self.model(inputs)
            with _explained(
                "" if isinstance(output, Tensor) else
                "called as loss_fn(output, target), where the output of the model is "
                f"{_described(output)}; wanted a loss_fn that takes that, or pass_model=True and "
                "loss_fn(model, batch)"
            ):
                out = self.loss_fn(output, targets)
            if self.denominator is not None and self.mean:
                return out, self.denominator(output, targets)
            return out, rows_of(chunk)
        given = () if chunk is NO_DATA else (chunk,)
        if isinstance(chunk, (tuple, list)) and len(chunk) == 1:
            given = tuple(chunk)
        if not given:
            note = "called as loss_fn(model), because data is None"
        else:
            note = f"called as loss_fn(model, batch) with {_described(given[0])}, as data gave it"
            if not self.pass_model:
                note += (
                    "; for loss_fn(model(inputs), targets), pass pairs (inputs, targets) as a "
                    "tuple, or as a list of tuples"
                )
        with _explained(note):
            return self.loss_fn(self.model, *given), rows_of(chunk)

    # --- whether a mean or a sum can be put together from chunks -------------------------------

    def _check_split(self, parts: list[tuple[Any, Part]]) -> None:
        """Refuse chunks whose share is not known, and warn, once, of a loss that mixes rows."""
        while parts:
            chunk, part = parts.pop()
            if (self.mean or self.has_aux) and part.divisor is None:
                raise ValueError(
                    f"data gave {_described(chunk)} with tensors of different lengths, so its "
                    "share in the mean is not known; wanted loss_fn to return (sum, count)"
                )
            if not (part.summed or self._knows_rows):
                self._knows_rows = self._warn_if_rows_mix(chunk, part)

    def _warn_if_rows_mix(self, chunk: Any, part: Part) -> bool:
        """Compare a chunk with its halves."""
        two = [(rows, float(self._part(half).loss.detach())) for rows, half in halves(chunk)]
        whole = float(part.loss.detach())
        rows = sum(count for count, _ in two)
        joined = sum((count / rows if self.mean else 1.0) * value for count, value in two)
        size = max([abs(whole), *(abs(value) for _, value in two)])
        tolerance = torch.finfo(part.loss.dtype).eps ** 0.4 * size
        if not two or not math.isfinite(size) or abs(joined - whole) <= tolerance:
            return False
        kind = "mean" if self.mean else "sum"
        warn(
            f"loss_fn is not a {kind} over rows: for a chunk it is {whole:.6g}, but from the "
            f"halves of that chunk {joined:.6g}. So the loss in chunks is not that of all data; "
            "let loss_fn return (sum, count), or pass all data in one chunk",
        )
        return True


@contextlib.contextmanager
def _explained(note: str) -> Any:
    """Add a note, if there is one, to an exception."""
    try:
        yield
    except Exception as error:
        if note:
            error.add_note(f"lbfgs_xp: {note}")
        raise


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _described(item: Any) -> str:
    if isinstance(item, Tensor):
        return "a tensor"
    of = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
    return f"a {type(item).__name__}{of}"
