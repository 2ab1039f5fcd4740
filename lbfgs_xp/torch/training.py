"""Adam and then L-BFGS, for a module of torch."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from lbfgs_xp.checks import count, flag, number, shown
from lbfgs_xp.first_order import Adam
from lbfgs_xp.line_search import LineSearch
from lbfgs_xp.result import Status, table
from lbfgs_xp.run.progress import Live
from lbfgs_xp.torch.data import ChunkedLoss, Source
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.optimizer import LBFGS
from lbfgs_xp.typing import LineSearchName


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PhaseHistory:
    """One of the two phases of `train_with_lbfgs`.

    Attributes
    ----------
    loss : (entries,) NumPy array
        Of Adam the loss before each step, on its batch. Of L-BFGS that of all data, at the start
        and after each epoch.
    seconds : (entries,) NumPy array
        When each of these was known, from the start of the phase.
    status, message
        Why it ended.
    """

    loss: np.ndarray
    seconds: np.ndarray
    status: Status
    message: str

    def __repr__(self) -> str:
        return f"{len(self.loss)} losses in {max(self.seconds, default=0.0):.3g} s: {self.message}"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TrainingResult:
    """The outcome of `train_with_lbfgs`; the model has the parameters.

    Attributes
    ----------
    loss : float
        That of all data, with the parameters that the model is left with; nan where it was never
        computed for them.
    adam, lbfgs : PhaseHistory or None
        The history of each phase; None where it was not reached or not wanted.
    success, status, message
        Whether and why the run ended: those of its last phase.
    """

    loss: float
    adam: PhaseHistory | None
    lbfgs: PhaseHistory | None
    success: bool
    status: Status
    message: str

    def __repr__(self) -> str:
        return table(self)


def train_with_lbfgs(
    model: torch.nn.Module,
    loss_fn: Callable,
    data: Any = None,
    tol: float = 1e-9,
    adam_steps: int = 100_000,
    adam_lr: Any = 1e-3,
    max_epochs: int = 100,
    *,
    until: Literal["either", "both", "loss", "gradient"] = "either",
    max_iter: int = 20,
    history_size: int = 100,
    line_search_fn: LineSearchName | LineSearch = "strong_wolfe",
    batch_size: int | None = None,
    chunk_size: int | None = None,
    reduction: Literal["mean", "sum"] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TrainingResult:
    """Adam for a fixed number of steps, then L-BFGS on all data until the loss has settled.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are changed in place; see `LBFGS` for which it may have. Loss and model must
        give the same value when called again: with dropout, call `model.eval()` first.
    loss_fn : function
        Such as `torch.nn.MSELoss()`. How it is called depends on the data:
    data : what to train on
        a pair (inputs, targets) of tensors: loss_fn(model(inputs), targets);
        one tensor, such as points of collocation: loss_fn(model, tensor);
        None: loss_fn(model).
        A list of such pairs or tensors, a DataLoader, or another iterable that can be gone through
        again and again: Adam makes one step on each of its items, and L-BFGS, which needs all
        data for every evaluation, adds up over them. Items are moved to the device of the model.
    tol : float
        L-BFGS ends where the loss changes by at most this in an epoch, or where the largest
        component of the gradient is at most this; see `until`.
    adam_steps, adam_lr : int, float or schedule of `lx.schedules`
        0 steps: no Adam. On all data, L-BFGS begins where the loss was lowest.
    max_epochs, max_iter : int
        At most so many epochs of L-BFGS, each of at most max_iter iterations. 0 epochs: no L-BFGS.
    until : "either", "both", "loss" or "gradient"
        Which of the two has to be at most tol.
    history_size, line_search_fn
        See `LBFGS`; here there must be a line search.
    batch_size : int
        How many rows, drawn without replacement, Adam takes for a step; None: all. Not for
        iterables, whose items are the batches.
    chunk_size : int
        How many rows go through the model at once, where all are wanted; None: all. The memory
        needed is that of one chunk. Not for iterables, whose items are the chunks.
    reduction : "mean" or "sum"
        Whether loss_fn takes the mean or the sum over the rows of what it is given. None: what it
        says itself in `loss_fn.reduction`, as the losses of torch do, else "mean".
    seed : int
        For the order of the rows with a batch_size.
    progress : bool
        Show one live line in the terminal.

    Returns
    -------
    TrainingResult
        At a Ctrl-C as well; the model then has the best parameters so far. (Where Adam takes
        batches, their losses cannot be compared: then those of the last step. Where a loss of its
        batches is not finite, Adam ends with those of the last batch whose loss was.)

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What model, loss_fn or data raise goes through; the model has the best parameters.

    Examples
    --------
    >>> import torch
    >>> from lbfgs_xp.torch import train_with_lbfgs
    >>> x = torch.linspace(-1.0, 1.0, 50, dtype=torch.float64)[:, None]
    >>> model = torch.nn.Linear(1, 1, dtype=torch.float64)
    >>> res = train_with_lbfgs(model, torch.nn.MSELoss(), (x, 2.0 * x + 1.0), adam_steps=10)
    >>> res.success, round(model.weight.item(), 4), round(model.bias.item(), 4)
    (True, 2.0, 1.0)
    """
    adam_steps = count("adam_steps", adam_steps, 0)
    max_epochs = count("max_epochs", max_epochs, 0)
    seed = count("seed", seed, 0)
    if adam_steps == max_epochs == 0:
        raise ValueError("adam_steps and max_epochs are both 0; wanted one of them above 0")
    if isinstance(tol, Tensor) and tol.ndim:
        raise TypeError(
            f"tol is {shown(tol)}; wanted a number, and inputs and targets together: "
            "data=(inputs, targets)"
        )
    tol = number("tol", tol, least=0.0)
    if until not in ("either", "both", "loss", "gradient"):
        raise ValueError(f"until is {until!r}; wanted 'either', 'both', 'loss' or 'gradient'")
    if line_search_fn is None:
        raise ValueError("line_search_fn is None; wanted the name of a rule, or a rule")
    flag("progress", progress)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module")
    _warn_of_noise(model)
    flat = Flat(model.parameters())
    if not any(flat.sizes):
        raise ValueError(
            "the model has no parameter that requires a gradient and is not empty; wanted one at "
            "least"
        )
    optimizer = LBFGS(
        model.parameters(), max_iter=max_iter, history_size=history_size,
        line_search_fn=line_search_fn, tolerance_change=0.0,
        tolerance_grad=tol if until in ("either", "gradient") else 0.0,
    )
    source = Source(data, batch_size, chunk_size, seed, flat.params[0].device)
    loss = ChunkedLoss(model, loss_fn, reduction, flat)
    with Live(progress, _line) as live:
        run = _Training(flat, loss, source, live)
        try:
            if adam_steps:
                run.adam(Adam(adam_lr), adam_steps)
            if max_epochs:
                run.lbfgs(optimizer, max_epochs, tol, until)
        except KeyboardInterrupt:
            run.end(Status.INTERRUPTED)
        finally:
            run.restore()
    return run.result()


def _warn_of_noise(model: torch.nn.Module) -> None:
    """Warns of layers that draw anew at each call, which L-BFGS takes for the loss."""
    noisy = sorted({
        type(layer).__name__ for layer in model.modules()
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0.0
    })
    if noisy:
        warnings.warn(
            f"the model is in training mode with {', '.join(noisy)}, so that its loss is another "
            "one at each call, along which L-BFGS cannot search; call model.eval() before",
            stacklevel=3,
        )


class _Training:
    """One call of `train_with_lbfgs`, under way.

    lowest, best : the lowest loss of all data that was seen, and where; None before any was.
    """

    def __init__(self, flat: Flat, loss: ChunkedLoss, source: Source, live: Live):
        self.flat, self.loss, self.source, self.live = flat, loss, source, live
        self.lowest = math.inf
        self.best: Tensor | None = None
        self.phases: dict[str, PhaseHistory] = {}
        self._begin("Adam")

    def adam(self, optimizer: Adam, steps: int) -> None:
        finite = x = self.flat.read()
        memory = optimizer.init(x)
        for step, batch in zip(range(1, steps + 1), self.source.batches(), strict=False):
            value = float(self.loss(batch))
            self._note(step, value)
            if not math.isfinite(value):
                return self._diverged(step, finite)
            if self.source.whole:
                self._keep(value)
            else:
                finite = self.flat.read()
            x, memory = optimizer.update(
                x, self.flat.gradient(), memory, value=value, in_place=step > 1
            )
            self.flat.write(x)
        value = float(self.loss(self.source.chunks()))
        if not math.isfinite(value):
            return self._diverged(steps + 1, finite)
        self._keep(value)
        self.restore()
        self.end(Status.EPOCHS, f"all {steps} steps of Adam are done")

    def lbfgs(self, optimizer: LBFGS, epochs: int, tol: float, until: str) -> None:
        self._begin("L-BFGS")
        for epoch in range(1, epochs + 1):
            try:
                before = float(optimizer.step(lambda: self.loss(self.source.chunks())))
            finally:
                if optimizer.result is not None:
                    self._keep(optimizer.result.fun)
            now: Any = optimizer.result
            if epoch == 1:
                self._note(0, before)
            self._note(epoch, now.fun, now.gradient_norm)
            flat = now.gradient_norm <= tol
            settled = now.nit > 0 and abs(before - now.fun) <= tol
            enough = {"gradient": flat, "loss": settled, "both": flat and settled}
            if enough.get(until, flat or settled):
                reasons = [_FLAT] * flat + [_SETTLED] * settled
                status = Status.GRADIENT if flat else Status.VALUE
                return self.end(status, f"{', and '.join(reasons)} (tol={tol:g})")
            if now.status not in (Status.ITERATIONS, Status.EVALUATIONS):
                return self.end(now.status, now.message)
        self.end(Status.ITERATIONS, f"all {epochs} epochs are done, and tol={tol:g} is not reached")

    def _diverged(self, step: int, finite: Tensor) -> None:
        """Ends Adam at a loss that is not finite. With batches the model gets the parameters of
        the last loss that was."""
        status = Status.DIVERGED if step > 1 else Status.NOT_FINITE
        message = _DIVERGED if step > 1 and self.best is None else None
        self.end(status, message)
        self.flat.write(finite if self.best is None else self.best)

    def restore(self) -> None:
        """The best parameters, where they are known."""
        if self.best is not None:
            self.flat.write(self.best)

    def end(self, status: Status, message: str | None = None) -> None:
        """Ends the phase under way."""
        loss, seconds = np.asarray(self.seen, dtype=np.float64).reshape(-1, 2).T
        self.phases[self.phase] = PhaseHistory(loss, seconds, status, message or status.message)

    def result(self) -> TrainingResult:
        last = self.phases[self.phase]
        return TrainingResult(
            math.nan if self.best is None else self.lowest, self.phases.get("Adam"),
            self.phases.get("L-BFGS"), last.status.success, last.status, last.message,
        )

    def _begin(self, phase: str) -> None:
        self.phase, self.begun = phase, time.perf_counter()
        self.seen: list[tuple[float, float]] = []

    def _note(self, step: int, loss: float, gradient_norm: float = math.nan) -> None:
        self.seen.append((loss, time.perf_counter() - self.begun))
        self.live.show((self.phase, step, loss, gradient_norm))

    def _keep(self, loss: float) -> None:
        if loss < self.lowest:
            self.lowest, self.best = loss, self.flat.read()


_DIVERGED = (
    "the loss has ceased to be finite: the learning rate may be too large; the parameters of the "
    "last batch with a finite loss are kept"
)
_FLAT = "the largest component of the gradient is at most tol"
_SETTLED = "the loss has changed by at most tol in an epoch"


def _line(seen: tuple[str, int, float, float]) -> str:
    phase, step, loss, gradient_norm = seen
    line = f"{phase} {step}  loss {loss:.9g}"
    return line if math.isnan(gradient_norm) else f"{line}  gradient {gradient_norm:.2e}"
