"""Training a torch module with Adam, then L-BFGS."""

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

from lbfgs_xp.checks import count, flag, number, reject_foreign_keywords, shown
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
        For Adam, the loss on each batch before the step. For L-BFGS, the loss on all data, at the
        start and after each epoch.
    seconds : (entries,) NumPy array
        When each of these was known, counted from the start of the phase.
    status, message
        Why the phase ended.
    """

    loss: np.ndarray
    seconds: np.ndarray
    status: Status
    message: str

    def __repr__(self) -> str:
        return f"{len(self.loss)} losses in {max(self.seconds, default=0.0):.3g} s: {self.message}"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TrainingResult:
    """The outcome of `train_with_lbfgs`; the parameters are in the model.

    Attributes
    ----------
    loss : float
        The loss on all data for the final parameters of the model; nan if it was never computed.
    adam, lbfgs : PhaseHistory or None
        The history of each phase; None if it was skipped or not reached.
    success, status, message
        Whether the last phase succeeded, and why it ended.
    """

    loss: float
    adam: PhaseHistory | None
    lbfgs: PhaseHistory | None
    success: bool
    status: Status
    message: str

    def __repr__(self) -> str:
        return table(self)


@reject_foreign_keywords(
    **dict.fromkeys(("loss", "criterion"), "loss_fn"),
    **dict.fromkeys(("lr", "learning_rate"), "adam_lr"),
    **dict.fromkeys(("epochs", "num_epochs"), "max_epochs"),
    **dict.fromkeys(("maxiter", "iterations"), "max_iter"),
    steps="adam_steps",
    memory_size="history_size",
    line_search="line_search_fn",
)
def train_with_lbfgs(
    model: torch.nn.Module,
    loss_fn: Callable[..., Any],
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
    """Train with Adam for a fixed number of steps, then with L-BFGS until the loss has settled.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are changed in place; see `LBFGS` for what is allowed. Loss and model must
        give the same value when called again: with dropout, call `model.eval()` first.
    loss_fn : function
        Such as `torch.nn.MSELoss()`. How it is called depends on data.
    data : tensors, None, or an iterable
        A pair (inputs, targets) of tensors: loss_fn(model(inputs), targets).
        One tensor, such as collocation points: loss_fn(model, tensor).
        None: loss_fn(model).
        A list of such pairs or tensors, a DataLoader, or another iterable that can be iterated
        repeatedly: Adam takes one step on each item, and L-BFGS, which needs all data for every
        evaluation, accumulates over the items. Items are moved to the device of the model.
    tol : float
        L-BFGS ends when the loss changes by at most this in an epoch, or the largest component of
        the gradient is at most this; see `until`.
    adam_steps, adam_lr : int, float or schedule of `lx.schedules`
        With 0 steps, Adam is skipped. If Adam uses all data in each step, L-BFGS starts from the
        parameters with the lowest loss.
    max_epochs, max_iter : int
        The most epochs of L-BFGS, and the most iterations in each. With 0 epochs, L-BFGS is
        skipped.
    until : "either", "both", "loss" or "gradient"
        Which of the two must be at most tol.
    history_size, line_search_fn
        As in `LBFGS`, but a line search is required here.
    batch_size : int
        The number of rows, drawn without replacement, for each step of Adam; None: all rows. Not
        for iterables, whose items are the batches.
    chunk_size : int
        How many rows pass through the model at once when all rows are needed; None: all. This
        bounds the memory needed. Not for iterables, whose items are the chunks.
    reduction : "mean" or "sum"
        Whether loss_fn takes the mean or the sum over rows. None: as `loss_fn.reduction` says,
        which the losses of torch have; otherwise "mean".
    seed : int
        The seed for the order of the rows with a batch_size.
    progress : bool
        Whether to show a live line in the terminal.

    Returns
    -------
    TrainingResult
        Also after Ctrl-C; the model then has the best parameters so far. (If Adam uses batches,
        whose losses cannot be compared, it has those of the last step; and if the loss on a batch
        is not finite, Adam ends with those of the last batch whose loss was.)

    Raises
    ------
    TypeError, ValueError
        For invalid arguments; the message says what was passed and what is wanted.
    Exception
        Exceptions of model, loss_fn or data propagate; the model has the best parameters so far.

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
        raise ValueError("adam_steps and max_epochs are both 0; wanted at least one above 0")
    tol = _tolerance(tol)
    if until not in ("either", "both", "loss", "gradient"):
        raise ValueError(f"until is {until!r}; wanted 'either', 'both', 'loss' or 'gradient'")
    if line_search_fn is None:
        raise ValueError("line_search_fn is None; wanted the name of a rule, or a rule")
    progress = flag("progress", progress)
    flat = _parameters(model)
    _warn_of_noise(model)
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


def _tolerance(tol: Any) -> float:
    if isinstance(tol, Tensor) and tol.ndim:
        raise TypeError(
            f"tol is {shown(tol)}; wanted a number (inputs and targets are passed as a pair, "
            "data=(inputs, targets))"
        )
    return number("tol", tol, least=0.0)


def _parameters(model: Any) -> Flat:
    """The parameters of a model, as one vector."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module")
    flat = Flat(model.parameters())
    if not any(flat.sizes):
        raise ValueError(
            "the model has no parameter that requires a gradient and is not empty; wanted at least "
            "one"
        )
    return flat


def _warn_of_noise(model: torch.nn.Module) -> None:
    """Warn about layers that are random at each call, which a line search cannot handle."""
    noisy = sorted({
        type(layer).__name__ for layer in model.modules()
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0.0
    })
    if noisy:
        warnings.warn(
            f"the model is in training mode with {', '.join(noisy)}, so its loss differs from call "
            "to call and the line search of L-BFGS cannot work; call model.eval() first",
            stacklevel=4,
        )


class _Training:
    """One call of `train_with_lbfgs` in progress.

    lowest, best : the lowest loss seen on all data (inf before there is one), and the parameters
        with that loss (or None).
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
        """End Adam at a loss that is not finite. With batches, the model gets the parameters of the
        last batch whose loss was finite."""
        status = Status.DIVERGED if step > 1 else Status.NOT_FINITE
        message = _DIVERGED if step > 1 and self.best is None else None
        self.end(status, message)
        self.flat.write(finite if self.best is None else self.best)

    def restore(self) -> None:
        """Put the best parameters into the model, if they are known."""
        if self.best is not None:
            self.flat.write(self.best)

    def end(self, status: Status, message: str | None = None) -> None:
        """End the current phase."""
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
    "the loss is no longer finite: the learning rate may be too large; the parameters of the last "
    "batch with a finite loss are kept"
)
_FLAT = "the largest component of the gradient is at most tol"
_SETTLED = "the loss has changed by at most tol in an epoch"


def _line(seen: tuple[str, int, float, float]) -> str:
    phase, step, loss, gradient_norm = seen
    line = f"{phase} {step}  loss {loss:.9g}"
    return line if math.isnan(gradient_norm) else f"{line}  gradient {gradient_norm:.2e}"
