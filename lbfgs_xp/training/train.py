"""`train`, which minimises a loss over batches of data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.returned import is_true
from lbfgs_xp.arrays.tree import backends_of, flatten_parameters, without_frozen
from lbfgs_xp.first_order import OptimizerState, update
from lbfgs_xp.result import Status, attach
from lbfgs_xp.run.methods import method_named
from lbfgs_xp.run.progress import Live
from lbfgs_xp.saving.checkpoint import Checkpoint, Keeper, Terminated, keeping
from lbfgs_xp.saving.descriptions import described, kinds_of
from lbfgs_xp.training.batches import Accumulated, ArrayBatches, batches_of
from lbfgs_xp.training.loss import Loss
from lbfgs_xp.training.result import (
    BegunBatch,
    SeenBatch,
    TrainRecord,
    TrainResult,
    TrainState,
)
from lbfgs_xp.training.run import TrainingRun, has_updates
from lbfgs_xp.training.updates import updates_of
from lbfgs_xp.typing import Method


@checks.reject_foreign_keywords(
    **checks.OF_THE_METHOD,
    **dict.fromkeys(("optimizer", "opt"), "method"),
    **dict.fromkeys(
        ("num_epochs", "n_epochs", "max_epochs", "maxiter", "max_iter", "iterations"), "epochs"
    ),
    callbacks="callback",
)
@on_device_of("params")
def train(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    method: Method = "adam",
    jac: Callable[..., Any] | Literal[True] | None = None,
    has_aux: bool = False,
    batch_size: int | None = None,
    epochs: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    updates_per_batch: int = 1,
    accumulate: int = 1,
    grow_batches: float | None = None,
    average_decay: float | None = None,
    validate: Callable[[Any], Any] | None = None,
    maxtime: float | None = None,
    reproducible: bool = False,
    compile: bool = True,
    callback: Callable[[TrainRecord], Any] | Sequence[Callable[[TrainRecord], Any]] = (),
    progress: bool = False,
    state: TrainState | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Minimise a loss over data, one batch at a time.

    Parameters
    ----------
    loss : function
        loss(params, batch) -> a real number or 0-d array, such as a mean over the batch.
    params : array, or nested dict, list, tuple or dataclass of arrays, float or complex
        The start; the arrays themselves are not changed. Tensors with requires_grad=False among
        others that require a gradient are frozen: they stay as they are, and those trained then
        require a gradient in the result, too.
    data : arrays, or an iterable of batches
        An array, or a (nested) tuple, dict or dataclass of arrays, in the library and on the
        device of params, all with the same number of rows along the first axis: a batch is nested
        like data and holds some of the rows. Any other iterable, such as a list of batches or a
        DataLoader of torch, is iterated once per epoch; its items are passed to the loss as
        batches, unchanged, and batch_size, shuffle and seed do not apply.
    method : str, optimizer or solver
        "adam", or another first-order optimizer such as `lx.SGD(0.1, momentum=0.9)`. Or a solver
        such as "lbfgs" or `lx.LBFGS()`, which runs iterations of `lx.minimize` on each batch and
        keeps its curvature from batch to batch. If the learning rate is a `ReduceOnPlateau`, it
        receives the mean loss at the end of each epoch.
    jac : None, True or function
        None: automatic differentiation (PyTorch, JAX). True: loss returns (value, gradient). A
        function: jac(params, batch) -> gradient, in the structure of params. For complex leaves
        the gradient is df/d(re) + i df/d(im).
    has_aux : bool
        Whether loss returns (value, aux) instead of value (with jac=True, ((value, aux),
        gradient)). The numbers in aux, such as an accuracy or the terms of the loss, are averaged
        over each epoch, in `res.history.metrics` and in records; `res.aux` is that of the last
        batch. All batches must give aux the same structure.
    batch_size : int
        Rows per batch; the last batch of an epoch has the rows that are left. None: all rows in
        one batch, in their original order.
    epochs : int
        How often to go through the data. An epoch left unfinished by an earlier run counts as one.
    shuffle : bool
        Whether each epoch takes the rows in a new order. The order depends only on seed, epoch and
        the number of rows, not on the library. Without shuffling, batches are slices, which are
        views if the library has them.
    seed : int
        The seed for shuffling, at least 0.
    updates_per_batch : int
        Updates, or iterations of a solver, on each batch.
    accumulate : int
        How many batches an update takes together: the loss is the mean over all their rows, of
        which only one batch at a time passes through the model. An epoch may end with fewer.
        (Each batch counts by its rows, as is right for a loss that is a mean over them.)
    grow_batches : float
        Above 0: updates take more batches together, up to twice as many in each epoch, as soon as
        the standard deviation of the gradient exceeds this multiple of its norm (the norm test;
        Bollapragada et al. 2018). For this, each epoch begins with the gradients of eight batches,
        or of as many as an update takes. 1 is a good value; a smaller one grows earlier. Only for
        arrays as data; `accumulate` is the number to begin with.
    average_decay : float in [0, 1)
        If given, an exponential moving average of the parameters is kept: after each update (for a
        solver, after each batch) a ← average_decay a + (1 - average_decay) x, beginning with the
        first x.
    validate : function
        validate(params) -> a number, such as the loss on other data, called after each epoch, with
        the averaged parameters if they are averaged. The parameters of the epoch with the lowest
        number are kept. It must not change them.
    maxtime : float
        Seconds after which no further batch is started; a solver stops within a batch, too. None
        for no limit.
    reproducible : bool
        Whether to give the same bits on every library, provided that loss does its part (see
        `lx.fixed_sum`). Nothing is compiled then.
    compile : bool
        Whether JAX compiles loss and gradient, once for each batch shape; loss must then be a pure
        function that JAX can trace. With arrays as data, many updates of a first-order optimizer
        run as one program. No effect with other libraries.
    callback : function, or several
        callback(record) after each epoch, with a `TrainRecord`; returning a true value stops the
        run.
    progress : bool
        Whether to show a live line in the terminal.
    state : TrainState
        `res.state` of an earlier run, to continue from with its params. Two epochs followed by
        three give the same bits as five, and so does a run that was stopped anywhere.
    checkpoint : None or Checkpoint
        Where the run saves itself from time to time, `lx.Checkpoint("run.npz")`. If there is such
        a file, the run goes on from it, instead of params and state, up to `epochs` from the start
        of the run that began it. Random numbers that loss itself draws are not saved.

    Returns
    -------
    TrainResult

    Raises
    ------
    TypeError, ValueError
        For invalid arguments; the message says what was passed and what is wanted.
    Exception
        Exceptions of loss, jac, callback or data propagate, with the result so far attached as the
        attribute `result`.

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
    leaves, structure = without_frozen(*flatten_parameters(params))
    backends = backends_of(leaves, structure, "params")
    shuffle, reproducible, compile, progress, has_aux = checks.flags(
        shuffle=shuffle, reproducible=reproducible, compile=compile, progress=progress,
        has_aux=has_aux,
    )
    epochs = checks.count("epochs", epochs, 1)
    batch_size = checks.optional(checks.count)("batch_size", batch_size, 1)
    seed = checks.count("seed", seed, 0)
    batches = batches_of(data, batch_size, shuffle, seed, epochs, backends[0])
    accumulate = checks.count("accumulate", accumulate, 1)
    grow_batches = checks.optional(checks.number)("grow_batches", grow_batches, above=0.0)
    if grow_batches is not None and not isinstance(batches, ArrayBatches):
        raise ValueError(
            f"grow_batches is {grow_batches}, but data, a {type(data).__name__}, gives its own "
            "batches; wanted None, or arrays as data"
        )
    grows = grow_batches is not None
    together = Accumulated(batches, accumulate) if accumulate > 1 or grows else batches
    seconds = checks.optional(checks.seconds)("maxtime", maxtime)
    deadline = time.perf_counter() + (math.inf if seconds is None else seconds)
    callbacks = _callbacks(callback)
    average_decay = checks.optional(checks.number)(
        "average_decay", average_decay, least=0.0, below=1.0
    )
    if validate is not None and not callable(validate):
        raise TypeError(
            f"validate is a {type(validate).__name__}; wanted a function of params, or None"
        )
    method = _checked_method(method)
    state = _checked_state(state, method, params, structure, has_aux)
    checked_loss = Loss(loss, jac, has_aux, compile and not reproducible, backends[0], structure)
    updates_per_batch = checks.count("updates_per_batch", updates_per_batch, 1)
    run = TrainingRun(
        method,
        checked_loss,
        backends,
        updates_per_batch,
        reproducible,
        deadline,
        state.epoch,
        average_decay,
        validate,
        updates_of(method, checked_loss, together, updates_per_batch, average_decay),
        grow_batches,
    )
    if isinstance(together, Accumulated) and grows:
        together.count = state.together or accumulate
    together.check([seen.rows for seen in state.seen])
    run.stand([_own(b, x) for b, x in zip(backends, leaves, strict=True)], state)
    with (
        Live(progress, _line) as live,
        keeping(
            checkpoint, lambda: _described(run, together, leaves), backends[0].name
        ) as keeper,
    ):
        if keeper is not None and keeper.saved is not None:
            run.restore(keeper.saved.position(backends[0], params))
        try:
            _carry_on(run, together, run.first_epoch + epochs, callbacks, live, keeper)
        except (KeyboardInterrupt, Terminated) as stop:
            # A run within another one has not received the signal itself.
            if keeper is None and isinstance(stop, Terminated):
                raise
            if keeper is not None:
                keeper.save_if_intact()
            run.recover()
            run.status = Status.INTERRUPTED
        except Exception as error:
            if keeper is not None:
                keeper.save_if_intact()
            run.recover()
            result = run.result()
            attach(error, result, f"the parameters after {result.updates} updates")
            raise
    return run.result()


def _own(backend: Backend, leaf: Array) -> Array:
    """A copy of the leaf in row-major order, as all later ones: sums of the loss may round
    differently in another order."""
    return backend.xp.reshape(backend.own(backend.xp.reshape(leaf, (-1,))), leaf.shape)


def _described(run: TrainingRun, batches: Any, leaves: list[Any]) -> dict[str, Any]:
    """What must not differ between a run and the one that goes on from it."""
    return {
        "kind": "train",
        "params": kinds_of(leaves, run.structure, "params"),
        "method": described(run.method),
        "updates_per_batch": run.updates_per_batch,
        "reproducible": run.reproducible,
        "average_decay": run.average_decay,
        "has_aux": run.loss.has_aux,
        "grow_batches": run.growth,
        **batches.described(),
    }


def _carry_on(
    run: TrainingRun, batches: Any, last: int, callbacks: list[Callable], live: Live,
    keeper: Keeper | None,
) -> None:
    """Run epochs up to `last`, or until a callback stops the run."""

    def visit(advanced: int = 0) -> None:
        if keeper is not None:
            keeper.visit(run.position(), advanced)

    def most(left: int) -> int:
        """How many epochs may run at once."""
        return 1 if callbacks else left if keeper is None else keeper.within(left)

    if keeper is not None:
        keeper.follow(run.position_if_whole)
    if run.epoch >= last and run.status is Status.RUNNING:
        run.status = Status.EPOCHS
    while run.status is Status.RUNNING:
        before = run.epoch
        run.run_epochs(batches, visit, most(last - before))
        if run.status is Status.TIME:
            if keeper is not None:
                keeper.save_last(run.position())
            return
        if run.status is not Status.RUNNING:
            break
        if run.epoch == last:
            run.status = Status.EPOCHS
        else:
            visit(advanced=run.epoch - before)
        if run.epoch == before or not callbacks and not live.shown:
            continue
        record = run.record()
        live.show(record)
        stops = [is_true(call(record)) for call in callbacks]
        if any(stops) and run.status is Status.RUNNING:
            run.status = Status.CALLBACK
            if keeper is not None:
                keeper.save_last(run.position())
            return
    if keeper is not None:
        keeper.save_last(run.position(done=run.status))


def _line(record: TrainRecord) -> str:
    return (
        f"epoch {record.epoch}  updates {record.updates}  loss {record.loss:.9g}  "
        f"learning rate {record.learning_rate:.3g}"
    )


# --- the arguments -----------------------------------------------------------------------------


def _checked_method(method: Any) -> Any:
    method = method_named(method)
    if getattr(method, "needs_hessian", False) or getattr(method, "needs_products", False):
        raise ValueError(f"method is {method!r}; wanted one that needs no Hessian")
    return method


def _callbacks(given: Any) -> list[Callable]:
    calls = list(given) if isinstance(given, Iterable) else [] if given is None else [given]
    for call in calls:
        if not callable(call):
            raise TypeError(
                f"callback is a {type(call).__name__}; wanted a function, or several in a list"
            )
    return calls


def _checked_state(
    state: Any, method: Any, params: Any, structure: Any, has_aux: bool
) -> TrainState:
    if state is None:
        return TrainState(0, 0, (), None, None)
    if not isinstance(state, TrainState):
        raise TypeError(f"state is a {type(state).__name__}; wanted the `state` of a TrainResult")
    checks.count("state.epoch", state.epoch, 0)
    checks.count("state.updates", state.updates, 0)
    seen = state.seen
    if not isinstance(seen, tuple) or not all(isinstance(each, SeenBatch) for each in seen):
        raise TypeError(
            f"state.seen is {seen!r}; wanted (loss, rows, learning rate, metrics), a SeenBatch, "
            "for each finished batch of the current epoch"
        )
    if not isinstance(state.begun, BegunBatch | None):
        raise TypeError(f"state.begun is {state.begun!r}; wanted None or a BegunBatch")
    unfinished: list[Any] = [*seen, *([] if state.begun is None else [state.begun])]
    for each in unfinished:
        if (each.metrics is not None) != has_aux:
            raise ValueError(
                f"has_aux is {has_aux}, but state is in the middle of an epoch with "
                f"has_aux={not has_aux}; wanted the same"
            )
    updated = isinstance(state.memory, OptimizerState)
    if state.memory is not None and updated != has_updates(method):
        raise ValueError(
            "state comes from a run with another kind of method; wanted a state of "
            f"{type(method).__name__}"
        )
    if updated:
        spec = update.checked_spec(method, state.memory)
        update.checked_leaves(params, spec, "params")
        if spec.structure != structure:
            raise ValueError(
                "params has other frozen tensors (requires_grad=False) than in the run of state; "
                "wanted the same"
            )
    return state if has_aux else state._replace(aux=None)
