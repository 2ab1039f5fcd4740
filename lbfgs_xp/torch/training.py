"""Training a torch module with Adam, then L-BFGS."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.arrays.returned import is_true
from lbfgs_xp.arrays.tree import flatten, leaf_name
from lbfgs_xp.checks import count, flags, number, reject_foreign_keywords, shown
from lbfgs_xp.distributed.team import Engine, set_up_together
from lbfgs_xp.first_order import Adam
from lbfgs_xp.line_search import LineSearch
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Status, table
from lbfgs_xp.run.metrics import nested_like
from lbfgs_xp.run.progress import Live
from lbfgs_xp.saving.checkpoint import Checkpoint, Keeper, Saved, Terminated
from lbfgs_xp.saving.checkpoint import checked as checked_checkpoint
from lbfgs_xp.saving.descriptions import described, fingerprints, kind_of
from lbfgs_xp.saving.together import keeping_together
from lbfgs_xp.solvers import lbfgs
from lbfgs_xp.torch.closure import CHANGES
from lbfgs_xp.torch.data import Draws, Source
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.layers import warn_of_layers
from lbfgs_xp.torch.loss import ChunkedLoss
from lbfgs_xp.torch.optimizer import LBFGS
from lbfgs_xp.torch.second import ByMethod, ByOptimizer
from lbfgs_xp.torch.together import Together, module_of
from lbfgs_xp.torch.warned import warn
from lbfgs_xp.typing import LineSearchName, Method


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
    metrics : nested like aux
        With `has_aux`, arrays (entries,) in the places of its numbers, which belong to these
        losses, and None in other places. None without `has_aux`.
    status, message
        Why the phase ended.
    """

    loss: np.ndarray
    seconds: np.ndarray
    metrics: Any = dataclasses.field(repr=False)
    status: Status
    message: str

    def __repr__(self) -> str:
        return f"{len(self.loss)} losses in {max(self.seconds, default=0.0):.3g} s: {self.message}"


class TrainingRecord(NamedTuple):
    """The record that `train_with_lbfgs` passes to a callback.

    phase : "Adam" or "L-BFGS", which stands for the second phase whatever its method.
    epoch : how many steps of Adam, or epochs of the second phase, are done.
    loss : before the last step of Adam, or after the epoch.
    gradient_norm : the largest component of the gradient after the epoch; nan for Adam.
    seconds : since the phase began.
    metrics : with `has_aux`, the numbers in aux that belong to the loss, nested like aux.
    """

    phase: str
    epoch: int
    loss: float
    gradient_norm: float
    seconds: float
    metrics: Any = None


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TrainingResult:
    """The outcome of `train_with_lbfgs`; the parameters are in the model.

    Attributes
    ----------
    loss : float
        The loss on all data for the final parameters of the model; nan if it was never computed.
    aux
        With `has_aux`, what else loss_fn returns there, or None if the loss was never computed.
        Numbers are floats: their means over all rows.
    adam, lbfgs : PhaseHistory or None
        The history of each phase; None if it was skipped or not reached. `lbfgs` is the second
        phase, whatever its method.
    success, status, message
        Whether the last phase succeeded, and why it ended.
    """

    loss: float
    aux: Any = dataclasses.field(repr=False)
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
    params: Any = None,
    pass_model: bool = False,
    has_aux: bool = False,
    until: Literal["either", "both", "loss", "gradient"] = "either",
    max_iter: int = 20,
    history_size: int = 100,
    line_search_fn: LineSearchName | LineSearch = "strong_wolfe",
    batch_size: int | None = None,
    chunk_size: int | None = None,
    reduction: Literal["mean", "sum"] | None = None,
    seed: int = 0,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    method: Method | None = None,
    resample: Callable[[int], Any] | None = None,
    resample_every: int = 1,
    callback: Callable[[TrainingRecord], Any] | None = None,
    distributed: Engine | None = None,
) -> TrainingResult:
    """Train with Adam for a fixed number of steps, then with L-BFGS until the loss has settled.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are changed in place; see `LBFGS` for what is allowed. Loss and model must
        give the same value when called again: with dropout or batch normalisation, call
        `model.eval()` first.
    loss_fn : function
        Such as `torch.nn.MSELoss()`. How it is called depends on data. It returns one number, or
        the pair (sum, count), whose loss on all data is the sum of the sums divided by that of the
        counts.
    data : tensors, None, or an iterable
        A pair (inputs, targets): loss_fn(model(inputs), targets).
        One tensor, such as collocation points, or any other (nested) tuple, dict or dataclass of
        tensors, which all have the same number of rows: loss_fn(model, data).
        None: loss_fn(model).
        A list of such pairs, tensors or anything else, a DataLoader, or another iterable that can
        be iterated repeatedly: Adam takes one step on each item, and L-BFGS, which needs all data
        for every evaluation, accumulates over the items. Items are moved to the device of the
        model.
    tol : float
        L-BFGS ends when the loss changes by at most this in an epoch, or the largest component of
        the gradient is at most this; see `until`.
    adam_steps, adam_lr : int, float or schedule of `lx.schedules`
        With 0 steps, Adam is skipped. A batch in which nothing counts, such as one whose targets
        are all ignored, changes nothing. If Adam uses all data in each step, L-BFGS starts from the
        parameters with the lowest loss.
    max_epochs, max_iter : int
        The most epochs of L-BFGS, and the most iterations in each. With 0 epochs, L-BFGS is
        skipped.
    params : tensors, or nested dict, list or tuple of tensors
        What is trained besides the parameters of the model, such as unknown coefficients of an
        equation. A warning says if the loss depends on other tensors that require a gradient.
    pass_model : bool
        Whether pairs, too, are passed as loss_fn(model, batch), as for a model with several inputs
        or outputs.
    has_aux : bool
        Whether loss_fn returns (loss, aux), where loss is what it would return otherwise. `res.aux`
        belongs to the final parameters. The numbers in aux, such as the terms of the loss, are in
        records and histories; over chunks they are averaged, weighted by rows or by the count of
        (sum, count). Each epoch of the second phase takes one more pass through the model for them.
        Not with `distributed`.
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
        which the losses of torch have; otherwise "mean". The mean of a loss of torch may have
        weights or leave targets out (`weight`, `ignore_index`); any other loss is taken to be a
        mean over rows, and a warning says if it is not.
    seed : int
        The seed for the order of the rows with a batch_size.
    progress : bool
        Whether to show a live line in the terminal.
    checkpoint : None or lx.Checkpoint
        Where the run saves itself from time to time: between the steps of Adam and between the
        epochs of L-BFGS (`every` counts both). If there is such a file, the run goes on from it,
        with the parameters saved there.
    method : None, str or solver
        Another method for the second phase, such as `lx.SSBroyden()` or "newton-cg" (with products
        by differences of gradients). history_size and line_search_fn do not apply then, and an
        epoch is max_iter iterations of `lx.minimize`.
    resample : function
        resample(k) -> data, the points of draw k = 0, 1, 2, ..., instead of data. It should depend
        on k alone, as through the seed of a generator, because a run that goes on from a file draws
        again. Losses on different points cannot be compared: what counts as best is of the current
        draw, and so is the loss that is returned. What the second phase has learned of the
        curvature is kept.
    resample_every : int
        After how many epochs of max_iter iterations new points are drawn; max_iter steps of Adam
        count as one.
    callback : function
        callback(record) after every epoch of the second phase, and every max_iter steps of Adam,
        with a `TrainingRecord`; the parameters are in the model. Returning a true value stops the
        run.
    distributed : None, lx.distributed.torch() or lx.distributed.mpi()
        The processes that train together, each with its own data, or its own resample. The number
        of rows may differ, and be 0 in some of them. The loss is that of the data of all: means are
        weighted by their rows, or by the counts that loss_fn returns, as for chunks; sums are added
        up (reduction="sum"). With data=None it is the mean of the losses. The parameters must be
        the same in all processes at the start, and stay so, bit for bit. Only data, resample,
        batch_size, chunk_size, seed, progress and callback may differ. A step of Adam takes a batch
        from each process. A model in DistributedDataParallel is replaced by its module. Buffers are
        not exchanged. A callback that returns a true value in one process stops all of them; so do
        Ctrl-C and exceptions, as in `lx.minimize`.

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
    with set_up_together(distributed):
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
        progress, pass_model, has_aux = flags(
            progress=progress, pass_model=pass_model, has_aux=has_aux
        )
        if has_aux and distributed is not None:
            raise ValueError(
                "has_aux is True, and distributed was passed; wanted only one of them, because aux "
                "is that of one process"
            )
        model = module_of(model, distributed)
        max_iter = count("max_iter", max_iter, 1)
        draws = Draws(data, resample, count("resample_every", resample_every, 1) * max_iter)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback is a {type(callback).__name__}; wanted a function, or None")
        checked_checkpoint(checkpoint)
        flat = _parameters(model, params)
        together = None if distributed is None else Together(distributed, flat)
        source = Source(
            draws.first, batch_size, chunk_size, seed, flat.params[0].device,
            may_be_empty=together is not None,
        )
        loss = ChunkedLoss(model, loss_fn, reduction, flat, pass_model, together, has_aux)
        steady = not warn_of_layers(model)
        optimizer = LBFGS(
            flat.params, max_iter=max_iter, history_size=history_size,
            line_search_fn=line_search_fn, tolerance_change=0.0,
            tolerance_grad=tol if until in ("either", "gradient") else 0.0,
        )
        second = ByMethod(method, optimizer) if method is not None else ByOptimizer(optimizer)
        first_order = Adam(adam_lr)
        problem = {
            "kind": "train_with_lbfgs",
            "parameters": list(map(kind_of, flat.params)),
            "adam_lr": described(adam_lr), "history_size": history_size, "max_iter": max_iter,
            "line_search_fn": described(line_search_fn), "until": until, "tol": repr(tol),
            "reduction": "mean" if loss.mean else "sum",
            "loss_fn": type(loss_fn).__name__ if isinstance(loss_fn, torch.nn.Module)
            else "a function",
            "method": described(getattr(second, "method", None)), "resample_every": resample_every,
            "has_aux": has_aux,
        }
        here = {
            "batch_size": batch_size, "chunk_size": chunk_size, "seed": seed,
            **fingerprints(draws.first, "data"),
        }
    if together is None:
        problem |= here
    else:
        settings = {
            **problem, "adam_steps": adam_steps, "max_epochs": max_epochs,
            "whether there is a batch_size or an iterable": not source.whole,
            "whether points are drawn": resample is not None,
        }
        together.check(settings, model, flat, checkpoint, callback is not None)
        problem["processes"] = together.by_process(here)
    team = None if together is None else together.team
    with (
        Live(progress, _line) as live,
        contextlib.nullcontext() if team is None else team.patient(),
        keeping_together(checkpoint, lambda: problem, "torch", team) as keeper,
    ):
        run = _Training(
            flat, loss, source, live, steady, keeper, draws, callback, max_iter, together
        )
        try:
            goes_on = keeper is None or keeper.saved is None or run.go_on(keeper.saved, second)
            if adam_steps and goes_on and run.phase == "Adam":
                run.adam(first_order, adam_steps)
            if max_epochs and goes_on and not run.stopped:
                run.second(second, max_epochs, tol, until, draws.of_steps(adam_steps))
            if team is not None:
                team.end()
            if keeper is not None:
                keeper.save_last(run.end_position())
        except (KeyboardInterrupt, Terminated) as stop:
            if team is not None:
                team.leave(stop)
            if keeper is not None:
                keeper.save_if_intact()
            elif isinstance(stop, Terminated):
                raise
            run.end(Status.INTERRUPTED)
        except Exception as error:
            if team is not None:
                team.leave(error)
            if keeper is not None:
                keeper.save_if_intact()
            raise
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


def _parameters(model: torch.nn.Module, others: Any) -> Flat:
    """The parameters of a model, and others, as one vector."""
    flat = Flat([*model.parameters(), *_others(others)])
    if not any(flat.sizes):
        raise ValueError(
            "the model has no parameter that requires a gradient and is not empty; wanted at least "
            "one"
        )
    return flat


def _others(params: Any) -> list[Tensor]:
    """The tensors in `params`."""
    if params is None:
        return []
    leaves, structure = flatten(list(params) if isinstance(params, Iterator) else params)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            what = f"a {type(leaf).__name__}"
        elif not leaf.is_leaf:
            what = "a tensor computed from others"
        else:
            continue
        raise TypeError(
            f"{leaf_name(structure, i, 'params')} is {what}; wanted tensors that require a gradient"
        )
    if not any(leaf.requires_grad for leaf in leaves):
        raise ValueError("no tensor in params requires a gradient; wanted requires_grad=True")
    return leaves


class _Position(NamedTuple):
    """Where a run stands between two steps of Adam or two epochs of L-BFGS, to be saved.

    done : whether the run has ended.
    step : how many steps or epochs of the phase are done.
    x : the parameters, a vector.
    memory : the state of Adam, or that of L-BFGS.
    known, moved, finite : see `_Training.adam` and `_Training.second`.
    length : how many items an iterable gave.
    phases : the fields of the phases that have ended, by name.
    The others are those of `_Training`.
    """

    done: bool
    phase: str
    step: int
    x: Tensor
    memory: Any
    known: float
    moved: bool
    finite: Tensor | None
    length: int | None
    lowest: float
    best: Tensor | None
    steady: bool
    seen: list[tuple[float, float, tuple]]
    phases: dict[str, tuple]
    drawn: int

    def counts(self) -> dict[str, Any]:
        """What a reader of the file may want to know."""
        return {"phase": self.phase, "step": self.step, "done": self.done}


class _Training:
    """One call of `train_with_lbfgs` in progress.

    lowest, best : the lowest loss seen on all data (inf before there is one), and the parameters
        with that loss (or None).
    standing : complete parameters, while those of the model are overwritten.
    steady : whether the loss is so far known to depend on the parameters alone.
    walled : whether this epoch of the second phase has met a loss that is not finite.
    drawn : the number of the current draw of points.
    seen : (loss, seconds, numbers in aux) of the current phase.
    opening : aux where the second phase begins.
    stopped : whether the callback has stopped the run.
    together : the processes of the run; None for one alone.
    """

    def __init__(
        self, flat: Flat, loss: ChunkedLoss, source: Source, live: Live, steady: bool,
        keeper: Keeper | None, draws: Draws, callback: Callable | None, each: int,
        together: Together | None,
    ):
        self.keeper, self.draws, self.callback, self.each = keeper, draws, callback, each
        self.drawn, self.stopped, self.together = 0, False, together
        # What `position` returns; None in the middle of a step. And what a file said.
        self._at: _Position | None = None
        self.seen: list[tuple[float, float, tuple]] = []
        self.opening: Any = None
        self._from: _Position | None = None
        self.flat, self.loss, self.source, self.live = flat, loss, source, live
        self.lowest = math.inf
        self.best: Tensor | None = None
        self.standing: Tensor | None = None
        self.steady = steady
        self.walled = False
        self.phases: dict[str, PhaseHistory] = {}
        self._begin("Adam")

    # --- saving --------------------------------------------------------------------------------

    def position(self) -> _Position | None:
        return self._at

    def end_position(self) -> _Position:
        """The position at the end, from where a run with larger budgets goes on."""
        at, last = self._at, self.phases[self.phase]
        if at is not None and last.status in (Status.EPOCHS, Status.ITERATIONS, Status.CALLBACK):
            return at
        return self._position(0, None)._replace(done=True)

    def _position(
        self, step: int, memory: Any, x: Tensor | None = None, known: float = math.nan,
        moved: bool = False, finite: Tensor | None = None,
    ) -> _Position:
        phases = {
            name: (phase.loss, phase.seconds, phase.metrics, int(phase.status), phase.message)
            for name, phase in self.phases.items()
        }
        return _Position(
            False, self.phase, step, self.flat.read() if x is None else x, memory, known, moved,
            finite, self.source.length, self.lowest, self.best, self.steady, self.seen, phases,
            self.drawn,
        )

    def _visit(self, step: int, memory: Any, last: bool, **more: Any) -> None:
        """Note where the run stands, if it is kept, and save it if it is time and not the end."""
        if self.keeper is not None:
            self._at = self._position(step, memory, **more)
            self.keeper.follow(self.position)
            if not last:
                self.keeper.visit(self._at, advanced=True)

    def go_on(self, saved: Saved, second: Any) -> bool:
        """Stand where another run stood; return whether there is anything left to do."""
        x = self.flat.read()
        at: _Position = saved.position(Backend.of(x, "the parameters"), x)
        self._from = self._at = at
        self.lowest, self.best, self.steady = at.lowest, at.best, at.steady
        # The first process has written the file, and the data of the others differ from its own.
        if self.together is None or self.together.team.engine.rank == 0:
            self.source.length = at.length
        self.phase, self.seen = at.phase, list(at.seen)
        self.phases = {
            name: PhaseHistory(*known, Status(status), message)  # type: ignore[call-arg]
            for name, (*known, status, message) in at.phases.items()
        }
        self.flat.write(at.x)
        if at.phase == "L-BFGS" and at.memory is not None:
            second.load(at.memory)
        self.drawn = at.drawn
        if at.drawn:
            self.source.renew(self.draws.resample(at.drawn))
        return not at.done

    def _draw(self, number: int) -> bool:
        """Go to this draw of points; return whether it is a new one."""
        if self.draws.resample is None or number == self.drawn:
            return False
        self.source.renew(self.draws.resample(number))
        self.drawn, self.lowest, self.best = number, math.inf, None
        return True

    def _told(self, step: int, gradient_norm: float = math.nan) -> bool:
        """Call the callback; return whether it stops the run."""
        loss, _, numbers = self.seen[-1]
        seconds = time.perf_counter() - self.begun
        record = TrainingRecord(
            self.phase, step, loss, gradient_norm, seconds, self._nested(numbers)
        )

        @torch.enable_grad()
        def stops() -> bool:
            return self.callback is not None and is_true(self.callback(record))

        self.stopped = stops() if self.together is None else self.together.stops(stops)
        return self.stopped

    def _resumed(self) -> _Position | None:
        """Where a file said that the current phase stands."""
        at, self._from = self._from, None
        if at is not None:
            self.begun -= self.seen[-1][1] if self.seen else 0.0
        return at

    # --- the phases ----------------------------------------------------------------------------

    def adam(self, optimizer: Adam, steps: int) -> None:
        x = self.flat.read()
        finite: Any = x
        moved, done = False, 0
        memory = optimizer.init(x)
        if at := self._resumed():
            memory, moved, finite, done = at.memory, at.moved, at.finite, at.step
        numbered = zip(range(done + 1, steps + 1), self.source.batches(done), strict=False)
        for step, batch in numbered:
            self._visit(step - 1, memory, last=False, x=x, moved=moved, finite=finite)
            value = float(self.loss(batch))
            self._note(step, value, self.loss.aux)
            if self.loss.empty and not self.source.whole:
                continue
            if not math.isfinite(value):
                return self._diverged(moved, finite)
            if self.source.whole:
                self._keep(value)
            else:
                finite = self.flat.read()
            self._at = None
            x, memory = optimizer.update(
                x, self.flat.gradient(), memory, value=value, in_place=moved
            )
            self.standing, moved = finite, True
            self.flat.write(x)
            self.standing = None
            if step % self.each == 0 and step < steps and self._told(step):
                steps = step
                break
            if step < steps:    # before the next batch is made
                self._draw(self.draws.before(step))
        self._visit(steps, memory, last=True, x=x, moved=moved, finite=finite)
        value = float(self.loss(self.source.chunks()))
        if not math.isfinite(value):
            return self._diverged(moved, finite)
        self._keep(value)
        self.restore()
        if self.stopped:
            return self.end(Status.CALLBACK)
        self.end(Status.EPOCHS, f"all {steps} steps of Adam are done")

    def second(self, method: Any, epochs: int, tol: float, until: str, draw: int) -> None:
        """The phase after Adam, by a `ByOptimizer` or a `ByMethod`; `draw` is its first draw."""
        if at := self._resumed():
            known, done = at.known, at.step
        else:
            self._begin("L-BFGS")
            known, done = self.lowest, 0
        for epoch in range(done + 1, epochs + 1):
            self._visit(epoch - 1, self._memory(method), last=False, known=known)
            if self._draw(self.draws.before((epoch - 1) * self.each, draw)):
                known = math.nan
            self.walled = False
            try:
                before = method.step(self._evaluate, self.flat)
            finally:
                if method.result is not None:
                    self._keep(method.result.fun)
            now: Any = method.result
            self._compare(known, before)
            if epoch == 1:
                self._note(0, before, self.opening)
            status, message, known = now.status, now.message, now.fun
            flat = now.gradient_norm <= tol and status is not Status.NOT_FINITE
            settled = now.nit > 0 and abs(before - now.fun) <= tol
            # At a wall, behind which the loss is not finite, it changes little, too.
            stuck = status is Status.EVALUATIONS and (now.nit == 0 or (settled and self.walled))
            settled = settled and not self.walled and status is not Status.LINE_SEARCH
            enough = {"gradient": flat, "loss": settled, "both": flat and settled}
            done = enough.get(until, flat or settled)
            fails = status is Status.LINE_SEARCH and message != CHANGES
            if not done and (stuck or fails) and method.looks:
                status, message = self._look(method.settings, now.fun)
                known = self.lowest
            self._note(epoch, known, self._output(), now.gradient_norm)
            if done:
                reasons = [_FLAT] * flat + [_SETTLED] * settled
                status = Status.GRADIENT if flat else Status.VALUE
                return self.end(status, f"{', and '.join(reasons)} (tol={tol:g})")
            if status not in (Status.ITERATIONS, Status.EVALUATIONS):
                return self.end(status, message)
            if self._told(epoch, now.gradient_norm):
                self._visit(epoch, self._memory(method), last=True, known=known)
                return self.end(Status.CALLBACK)
        self._visit(epochs, self._memory(method), last=True, known=known)
        self.end(Status.ITERATIONS, f"all {epochs} epochs are done, and tol={tol:g} is not reached")

    def _memory(self, method: Any) -> Any:
        """What the method has learned, if it is needed."""
        return method.memory() if self.keeper is not None else None

    def _evaluate(self) -> Tensor:
        """The loss on all data; its gradient is left in the parameters."""
        loss = self.loss(self.source.chunks())
        self.opening = self.loss.aux if self.opening is None else self.opening
        self.walled = self.walled or not math.isfinite(loss)
        return loss

    def _output(self) -> Any:
        """aux on all data for the parameters of the model; None without `has_aux`."""
        return self.loss.output(self.source.chunks()) if self.loss.has_aux else None

    def _nested(self, values: Any) -> Any:
        """These values for the numbers in aux, nested like aux; None without `has_aux`."""
        return nested_like(self.loss.aux, values) if self.loss.has_aux else None

    def _compare(self, known: float, value: float) -> None:
        """Warn, once, if the loss of the same parameters has changed."""
        tolerance = 4.0 * torch.finfo(self.flat.dtype).eps ** 0.5 * max(abs(known), abs(value))
        if self.steady and math.isfinite(known) and not abs(value - known) <= tolerance:
            self.steady = False
            warn(
                f"the loss for the same parameters was {known:.9g} and is now {value:.9g}, so it "
                "depends on something else, such as data that are drawn anew, and the line search "
                "of L-BFGS cannot work; wanted the same value whenever it is called"
            )

    def _look(self, settings: dict[str, Any], lowest: float) -> tuple[Status, str]:
        """Continue with `minimize` after a failed search, and return how it ends. It measures the
        rounding of the loss, for which the optimizer may not call the closure.

        settings, lowest : those of the optimizer, and the loss where its search failed.
        """
        known = [lowest]

        def fun(x: Tensor) -> tuple[float, Tensor]:
            self.flat.write(x)
            value = float(self.loss(self.source.chunks()))
            if known:    # the first evaluation is where the optimizer has ended
                self._compare(known.pop(), value)
            return value, self.flat.gradient()

        method = lbfgs.LBFGS(settings["history_size"], settings["line_search_fn"])
        try:
            res = minimize(
                fun, self.flat.read(), jac=True, method=method, gtol=settings["tolerance_grad"],
                maxiter=settings["max_iter"],
            )
            self.flat.write(res.x)
            self._keep(res.fun)
        finally:
            self.restore()
        if res.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if res.status is Status.GRADIENT:
            return res.status, f"{_FLAT} (tol={settings['tolerance_grad']:g})"
        return res.status, res.message

    def _diverged(self, moved: bool, finite: Tensor) -> None:
        """End Adam at a loss that is not finite. With batches, the model gets the parameters of the
        last batch whose loss was finite."""
        status = Status.DIVERGED if moved else Status.NOT_FINITE
        message = _DIVERGED if moved and self.best is None else None
        self.end(status, message)
        self.flat.write(finite if self.best is None else self.best)

    def restore(self) -> None:
        """Put the best parameters into the model, if they are known, or complete ones."""
        if self.best is not None:
            self.flat.write(self.best)
        elif self.standing is not None:
            self.flat.write(self.standing)

    def end(self, status: Status, message: str | None = None) -> None:
        """End the current phase."""
        rows = [(loss, seconds, *numbers) for loss, seconds, numbers in self.seen]
        table = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1 if rows else 2).T
        self.phases[self.phase] = PhaseHistory(
            table[0], table[1], table[2:], status, message or status.message
        )

    def result(self) -> TrainingResult:
        last = self.phases[self.phase]
        aux = None if self.best is None else self._output()
        phases = {
            name: dataclasses.replace(phase, metrics=self._nested(list(phase.metrics)))
            for name, phase in self.phases.items()
        }
        return TrainingResult(
            math.nan if self.best is None else self.lowest, aux, phases.get("Adam"),
            phases.get("L-BFGS"), last.status.success, last.status, last.message,
        )

    def _begin(self, phase: str) -> None:
        self.phase, self.begun = phase, time.perf_counter()
        self.seen = []

    def _note(
        self, step: int, loss: float, aux: Any, gradient_norm: float = math.nan
    ) -> None:
        numbers = self.loss.metrics.of(aux) if self.loss.has_aux else ()
        self.seen.append((loss, time.perf_counter() - self.begun, numbers))
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
