"""Training: a loss over batches of data, epoch after epoch."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.backend import Backend, is_true
from lbfgs_xp.batches import batches_of
from lbfgs_xp.first_order import FirstOrder, OptimizerState
from lbfgs_xp.loss import Loss
from lbfgs_xp.methods import METHODS, hint
from lbfgs_xp.minimize import minimize
from lbfgs_xp.progress import Live
from lbfgs_xp.result import Status, attach, table
from lbfgs_xp.space import Space
from lbfgs_xp.tree import backends_of, flatten, map_leaves, unflatten


class TrainRecord(NamedTuple):
    """What a callback is given after each epoch.

    epoch, updates : how many are done, those of the runs that this one goes on from included.
    loss : the mean loss of the epoch, see `History`.
    learning_rate : that of its last update.
    params : a copy of the parameters.
    state : `TrainResult.state`, to save and to go on from.
    """

    epoch: int
    updates: int
    loss: float
    learning_rate: float
    params: Any
    state: TrainState


class TrainState(NamedTuple):
    """All that is needed to go on: `lx.train(..., state=res.state)`.

    epoch, updates : how many are done.
    seen : (loss, rows, learning rate) of each batch that is done of the epoch under way.
    told : the mean loss of the last epoch, where the learning rate has not been told of it yet.
    memory : what the method remembers; None before it has begun.
    """

    epoch: int
    updates: int
    seen: tuple[tuple[float, int, float], ...]
    told: float | None
    memory: Any


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class History:
    """What was seen on the way, as NumPy arrays of float64.

    Attributes
    ----------
    loss : (batches,)
        Of each batch the loss before the updates on it.
    learning_rate : (batches,)
        Of the last update on each batch; of a solver its step length.
    epoch_loss : (epochs,)
        The mean of `loss` over each epoch that is done, weighted by the rows of the batches.
    seconds : (epochs,)
        What each of these epochs took.
    """

    loss: np.ndarray
    learning_rate: np.ndarray
    epoch_loss: np.ndarray
    seconds: np.ndarray

    def __repr__(self) -> str:
        return f"losses of {len(self.loss)} batches and {len(self.epoch_loss)} epochs"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TrainResult:
    """The outcome of `lx.train`.

    Attributes
    ----------
    params : of the structure, library, devices and dtypes of the parameters given
        Those after the last update; where the loss has ceased to be finite (`DIVERGED`), those
        that the epoch began with.
    loss : float
        The mean loss of the last epoch that was done; nan where none was.
    history : History
        Of this run alone.
    epochs, updates : int
        How many are done, those of the runs that this one goes on from included.
    success, status, message
        Whether and why the run ended; see `lx.Status`. The end of the last epoch is a success.
    state : TrainState
        Pass it as `state=` to go on.
    """

    params: Any = dataclasses.field(repr=False)
    loss: float
    history: History
    epochs: int
    updates: int
    success: bool
    status: Status
    message: str
    state: TrainState = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return table(self)


@checks.called_here(
    **dict.fromkeys(("optimizer", "opt"), "method"),
    **dict.fromkeys(("lr", "learning_rate"), "a setting of the method, such as lx.Adam(1e-2)"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs"), "epochs"),
)
def train(
    loss: Callable,
    params: Any,
    data: Any,
    *,
    method: Any = "adam",
    jac: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    updates_per_batch: int = 1,
    maxtime: float | None = None,
    reproducible: bool = False,
    compile: bool = True,
    callback: Callable[[TrainRecord], Any] | Sequence[Callable[[TrainRecord], Any]] = (),
    progress: bool = False,
    state: TrainState | None = None,
) -> TrainResult:
    """Minimise a loss over data, a batch at a time.

    Parameters
    ----------
    loss : function
        loss(params, batch) -> a real number or 0-d array, such as a mean over the batch.
    params : array, or nested dict, list, tuple or dataclass of arrays, float or complex
        The start; the arrays themselves stay as they are.
    data : arrays, or an iterable of batches
        An array, or a tuple, dict or dataclass of arrays (nested ones too) of the library and
        device of params, whose first axes count the same rows: a batch is nested like data and
        holds some of the rows. Anything else that can be iterated gives the batches of an epoch
        each time it is: a list of batches, a DataLoader of torch. They go to the loss as they are,
        and batch_size, shuffle and seed are not for them.
    method : str, optimizer or solver
        "adam", or another first-order optimizer such as `lx.SGD(0.1, momentum=0.9)`. Or a solver
        such as "lbfgs" or `lx.LBFGS()`, which takes iterations of `lx.minimize` on each batch and
        keeps its curvature from batch to batch. A `ReduceOnPlateau` as learning rate is told the
        mean loss at the end of each epoch.
    jac : None, True or function
        None: automatic differentiation (PyTorch, JAX). True: loss returns (value, gradient). A
        function: jac(params, batch) -> gradient, of the structure of params. For complex leaves
        the gradient is df/d(re) + i df/d(im).
    batch_size : int
        How many rows a batch has; the last one of an epoch has those that are left. None: all
        rows in one batch, in the order in which they lie.
    epochs : int
        How often to go through the data. An epoch that an earlier run has left unfinished counts.
    shuffle : bool
        Whether each epoch takes the rows in another order. The order depends on seed, epoch and
        the number of rows alone, and not on the library. Without it batches are slices: views,
        where the library has such.
    seed : int
        At least 0.
    updates_per_batch : int
        Updates, or iterations of a solver, on each batch.
    maxtime : float
        Seconds after which no other batch is begun. None for no limit.
    reproducible : bool
        The same bits on every library, if loss does its part (see `lx.fixed_sum`). Nothing is
        compiled.
    compile : bool
        Whether JAX compiles loss and gradient, once for each shape of batch; then loss must be a
        pure function that JAX can trace. Elsewhere without effect.
    callback : function, or several
        callback(record) after each epoch, with a `TrainRecord`; returning True stops the run.
    progress : bool
        Show one live line in the terminal.
    state : TrainState
        `res.state` of an earlier run, to go on from with its params. Two epochs and then three are
        the same, to the bit, as five.

    Returns
    -------
    TrainResult

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What loss, jac, callback or data raise goes through, with the parameters so far attached as
        the attribute `result` of the exception.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> X = np.linspace(-1.0, 1.0, 100)
    >>> y = 2.0 * X + 1.0
    >>> def loss(p, batch):
    ...     X, y = batch
    ...     r = p[0] * X + p[1] - y
    ...     return np.mean(r * r), np.stack([2.0 * np.mean(r * X), 2.0 * np.mean(r)])
    >>> res = lx.train(loss, np.zeros(2), (X, y), method=lx.SGD(0.1), jac=True, batch_size=10,
    ...                epochs=100)
    >>> res.status.name, bool(np.allclose(res.params, [2.0, 1.0]))
    ('EPOCHS', True)
    """
    leaves, structure = flatten(params)
    backends = backends_of(leaves, "params")
    if len({getattr(leaf, "requires_grad", None) for leaf in leaves}) > 1:
        raise ValueError(
            "params holds frozen tensors (requires_grad=False) beside others; wanted those that "
            "are trained alone, such as {k: p for k, p in model.named_parameters() if "
            "p.requires_grad}"
        )
    for name, value in (
        ("shuffle", shuffle), ("reproducible", reproducible), ("compile", compile),
        ("progress", progress),
    ):
        checks.flag(name, value)
    epochs = checks.count("epochs", epochs, 1)
    batches = batches_of(
        data,
        checks.optional(checks.count)("batch_size", batch_size, 1),
        shuffle,
        checks.count("seed", seed, 0),
        epochs,
        backends[0],
    )
    seconds = checks.optional(checks.seconds)("maxtime", maxtime)
    deadline = time.perf_counter() + (math.inf if seconds is None else seconds)
    callbacks = _callbacks(callback)
    run = _Run(
        _method(method),
        Loss(loss, jac, compile and not reproducible, backends[0]),
        backends,
        checks.count("updates_per_batch", updates_per_batch, 1),
        reproducible,
        deadline,
    )
    own = unflatten(structure, [b.own(x) for b, x in zip(backends, leaves, strict=True)])
    state = _checked(state, run.method)
    batches.check([rows for _, rows, _ in state.seen])
    run.stand(own, state)
    last = run.epoch + epochs
    with Live(progress, _line) as live:
        try:
            while run.status is Status.RUNNING:
                run.go_through(batches)
                if run.status is not Status.RUNNING:
                    break
                if run.epoch == last:
                    run.status = Status.EPOCHS
                if not callbacks and not progress:
                    continue
                record = run.record()
                live.show(record)
                stops = [is_true(call(record)) for call in callbacks]
                if any(stops) and run.status is Status.RUNNING:
                    run.status = Status.CALLBACK
        except KeyboardInterrupt:
            run.interrupt()
        except Exception as error:
            result = run.result()
            attach(error, result, f"the parameters after {result.updates} updates")
            raise
    return run.result()


class _Run:
    """One call of `train`, under way."""

    def __init__(
        self, method: Any, loss: Loss, backends: list[Backend], count: int, reproducible: bool,
        deadline: float,
    ):
        self.method = method
        self.loss = loss
        self.backend = backends[0]
        self.spaces = tuple(Space(backend) for backend in backends)
        self.count = count
        self.reproducible = reproducible
        self.deadline = deadline
        self.advance = self._update if _has_updates(method) else self._iterate
        # Batches whose loss or gradient is not finite are passed over.
        self.tolerant = getattr(method, "on_nonfinite", "") == "skip"
        self.status = Status.RUNNING
        self.history: dict[str, list[float]] = {
            field.name: [] for field in dataclasses.fields(History)
        }

    def stand(self, params: Any, state: TrainState) -> None:
        """Takes up its place where `state` is, which it can come back to."""
        self.params, self.kept = params, (params, state)
        self.epoch, self.updates, seen, self.told, self.memory = state
        self.seen: list[tuple[Any, int, float]] = list(seen)
        self.noted = len(seen)
        # The arrays stay as they are until the first update has made others. So those that an
        # epoch begins with are kept, at no cost, and a state may serve several runs.
        self.overwrites = False
        self.torn = False

    # --- an epoch ------------------------------------------------------------------------------

    def go_through(self, batches: Any) -> None:
        """One epoch, or what is left of it."""
        begin = time.perf_counter()
        watches = self.backend.reads_are_free and not self.tolerant
        for batch, rows in batches.epoch(self.epoch, len(self.seen)):
            if time.perf_counter() >= self.deadline:
                self.status = Status.TIME
                break
            value, rate = self.advance(batch)
            self.seen.append((value, rows, rate))
            if watches and not math.isfinite(value):
                break
        self._read()
        if self.tolerant and not any(map(_is_finite, self.seen)):
            self.status = Status.DIVERGED
        if not self.tolerant and not self._finite():
            self.stand(*self.kept)
            self.status = Status.DIVERGED
        if self.status is not Status.RUNNING:
            return
        mean = _mean(self.seen)
        self.history["epoch_loss"].append(mean)
        self.history["seconds"].append(time.perf_counter() - begin)
        self.stand(
            self.params, TrainState(self.epoch + 1, self.updates, (), mean, self.memory)
        )

    def _update(self, batch: Any) -> tuple[Any, float]:
        """Updates of a first-order optimizer: the loss before them, the last learning rate."""
        first: Any = None
        if self.memory is None:
            self.memory = self.method.init(self.params)
        for _ in range(self.count):
            value, gradients = self.loss(self.params, batch)
            first = value if first is None else first
            old = self.memory
            self.torn = self.overwrites
            self.params, self.memory = self.method.update(
                self.params, gradients, old, value=self.told, in_place=self.overwrites,
                reproducible=self.reproducible,
            )
            self.torn = False
            if self.memory.step > old.step:  # else the update was skipped
                self.told, self.overwrites = None, True
                self.updates += 1
        rate, _ = self.method.learning_rate.follow(self.memory.plateaus[0], old.step, None)
        return first, rate

    def _iterate(self, batch: Any) -> tuple[Any, float]:
        """Iterations of a solver: the loss before them, the last step length."""
        first: list[Any] = []

        def fun(params: Any, batch: Any) -> tuple[Any, Any]:
            value, gradients = self.loss(params, batch)
            if not first:
                first.append(value)
            return value, gradients

        res = minimize(
            fun, self.params, (batch,), jac=True, method=self.method, gtol=0.0,
            maxiter=self.count, maxtime=max(self.deadline - time.perf_counter(), 0.0),
            reproducible=self.reproducible,
            state=self.memory if hasattr(self.method, "check_state") else None,
        )
        self.params, self.memory = res.x, res.state
        self.updates += res.nit
        if res.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        # The gradient may be what is not finite.
        value = math.nan if res.status is Status.NOT_FINITE else first[0]
        return value, res.state.solver.step

    def _read(self) -> None:
        """Notes the losses, with one wait where they are on a device."""
        losses = self.backend.read_many([value for value, _, _ in self.seen])
        self.seen = [(x, n, rate) for x, (_, n, rate) in zip(losses, self.seen, strict=True)]
        new, self.noted = self.seen[self.noted :], len(self.seen)
        if not self.tolerant:
            # What comes after the first loss that is not finite tells nothing.
            new = new[: next((i for i, seen in enumerate(new, 1) if not _is_finite(seen)), None)]
        self.history["loss"] += [x for x, _, _ in new]
        self.history["learning_rate"] += [rate for _, _, rate in new]

    def _finite(self) -> bool:
        """Whether all losses of the epoch and all parameters are."""
        if not all(map(_is_finite, self.seen)):
            return False
        leaves, _ = flatten(self.params)
        with np.errstate(all="ignore"):
            sizes = self.backend.jit(_largest, self.spaces)(leaves)
        return all(map(math.isfinite, self.backend.read_many(sizes)))

    # --- what comes of it ----------------------------------------------------------------------

    def interrupt(self) -> None:
        if self.torn:
            # In the midst of an update the arrays may be half old, half new.
            self.stand(*self.kept)
        self.status = Status.INTERRUPTED

    def record(self) -> TrainRecord:
        return TrainRecord(
            self.epoch,
            self.updates,
            self.history["epoch_loss"][-1],
            self.history["learning_rate"][-1],
            map_leaves(Backend.copy, self.params),
            self.kept[1],
        )

    def result(self) -> TrainResult:
        self._read()
        state = TrainState(
            self.epoch, self.updates, tuple(self.seen), self.told, self.memory
        )
        return TrainResult(
            params=self.params,
            loss=([math.nan] + self.history["epoch_loss"])[-1],
            history=History(**{name: np.asarray(seen) for name, seen in self.history.items()}),
            epochs=self.epoch,
            updates=self.updates,
            success=self.status.success,
            status=self.status,
            message=_DIVERGED if self.status is Status.DIVERGED else self.status.message,
            state=state,
        )


_DIVERGED = (
    "the loss or a parameter is not finite: the learning rate may be too large; the parameters are "
    "those that the epoch began with"
)


def _largest(spaces: tuple[Space, ...], leaves: list[Any]) -> list[Any]:
    """The largest component of each leaf."""
    return [
        space.max_abs(space.backend.vector(leaf))
        for space, leaf in zip(spaces, leaves, strict=True)
        if 0 not in leaf.shape
    ]


def _is_finite(seen: tuple[float, int, float]) -> bool:
    return math.isfinite(seen[0])


def _mean(seen: Sequence[tuple[float, int, float]]) -> float:
    """The mean over all rows of the batches whose loss is finite, rounded once."""
    finite = list(filter(_is_finite, seen))
    rows = sum(n for _, n, _ in finite)
    return math.fsum(x * n for x, n, _ in finite) / rows if rows else math.nan


def _line(record: TrainRecord) -> str:
    return (
        f"epoch {record.epoch}  updates {record.updates}  loss {record.loss:.9g}  "
        f"learning rate {record.learning_rate:.3g}"
    )


# --- the arguments -----------------------------------------------------------------------------


def _method(method: Any) -> Any:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"method is {method!r}; wanted one of {', '.join(map(repr, sorted(METHODS)))}, "
                f"or an optimizer or solver object{hint(method)}"
            )
        method = METHODS[method]()
    if isinstance(method, type) or not (
        isinstance(method, FirstOrder) or all(hasattr(method, name) for name in ("init", "step"))
    ):
        raise TypeError(
            f"method is {method!r}; wanted a name, an optimizer such as lx.Adam() or a solver such "
            f"as lx.LBFGS(){hint(method)}"
        )
    if getattr(method, "needs_hessian", False):
        raise ValueError(f"method is {method!r}; wanted one that needs no Hessian")
    return method


def _has_updates(method: Any) -> bool:
    """Whether it is an optimizer that updates parameters without looking at the loss again."""
    return isinstance(method, FirstOrder) and method.learning_rate is not None


def _callbacks(given: Any) -> list[Callable]:
    calls = list(given) if isinstance(given, Iterable) else [] if given is None else [given]
    for call in calls:
        if not callable(call):
            raise TypeError(
                f"callback is a {type(call).__name__}; wanted a function, or several in a list"
            )
    return calls


def _checked(state: Any, method: Any) -> TrainState:
    if state is None:
        return TrainState(0, 0, (), None, None)
    if not isinstance(state, TrainState):
        raise TypeError(f"state is a {type(state).__name__}; wanted the `state` of a TrainResult")
    updated = isinstance(state.memory, OptimizerState)
    if state.memory is not None and updated != _has_updates(method):
        raise ValueError(
            "state comes from a run with another kind of method; wanted one of "
            f"{type(method).__name__}"
        )
    return state
