"""The loop of `train` over epochs and batches."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, copy_of
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Partial, flatten_like, unflatten
from lbfgs_xp.checks import real
from lbfgs_xp.first_order import FirstOrder, update
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Status
from lbfgs_xp.run import metrics
from lbfgs_xp.run.compiled import Chunk
from lbfgs_xp.saving.placing import as_own
from lbfgs_xp.solvers.contract import completed
from lbfgs_xp.training.batches import Accumulated
from lbfgs_xp.training.growth import batches_together
from lbfgs_xp.training.loss import Loss
from lbfgs_xp.training.result import (
    BegunBatch,
    BestEpoch,
    History,
    SeenBatch,
    TrainRecord,
    TrainResult,
    TrainState,
)
from lbfgs_xp.training.updates import Updates, mixed

_DIVERGED = (
    "the loss or a parameter is not finite: the learning rate may be too large; the parameters "
    "returned are those at the start of that epoch"
)

# The parts of the history with an entry for each batch; the others have one for each epoch.
_OF_BATCHES = ("loss", "learning_rate")


def has_updates(method: Any) -> bool:
    """Whether the method is a first-order optimizer with a learning rate, which needs no solver."""
    return isinstance(method, FirstOrder) and method.learning_rate is not None


class Position(NamedTuple):
    """Where a run stands between two batches, to be saved.

    leaves, state : where it stands; the losses of the current epoch are in `seen`.
    kept_leaves, kept_state : the start of the epoch.
    history : as in `TrainingRun`, with the number of batches that count.
    first_epoch : the epoch with which the history begins.
    done : whether the run has ended, and with which status.
    """

    leaves: list[Array]
    state: TrainState
    seen: list
    kept_leaves: list[Array]
    kept_state: TrainState
    history: dict[str, list]
    batches: int
    noted: int
    first_epoch: int
    done: Status | None = None

    def counts(self) -> dict[str, Any]:
        """What a reader of the file may want to know."""
        return {"epoch": self.state.epoch, "updates": self.state.updates}


class TrainingRun:
    """One call of `train` in progress.

    leaves : the parameters; `structure` says how they are nested.
    epoch : the number of epochs done, including those of earlier runs.
    aux : what the loss returned with the last batch; its numbers may still be on a device.
    """

    def __init__(
        self, method: Any, loss: Loss, backends: list[Backend], updates_per_batch: int,
        reproducible: bool, deadline: float, epoch: int, average_decay: float | None,
        validate: Callable[[Any], Any] | None, updates: Updates | None, growth: float | None,
    ):
        self.method = method
        self.loss = loss
        self.structure = loss.structure
        self.backend = backends[0]
        self.spaces = tuple(Space(backend) for backend in backends)
        self._sums = tuple(map(FixedOrderSpace, backends)) if reproducible else self.spaces
        self.updates_per_batch = updates_per_batch
        self.reproducible = reproducible
        self.deadline = deadline
        self.average_decay, self.validate = average_decay, validate
        self._at_once, self._chunk = updates, Chunk(math.inf)
        self.growth = growth
        # Whether a call may run several epochs.
        self._spans = True
        self._advance = self._update if has_updates(method) else self._iterate
        # Batches whose loss or gradient is not finite are skipped.
        self.tolerant = getattr(method, "on_nonfinite", "") == "skip"
        self.status = Status.RUNNING
        self.history: dict[str, list[Any]] = {
            field.name: [] for field in dataclasses.fields(History)
        }
        # How much of it is valid; an interrupt may have left more.
        self._batches, self.first_epoch = 0, epoch

    def stand(self, leaves: list[Array], state: TrainState) -> None:
        """Start from the position of `state`, to which the run can return."""
        epoch, updates, seen, told, memory, begun, average, best, aux, together = state
        noted, at = list(seen), (leaves, state)
        if aux is not None:
            self._numbers(aux)    # later ones must be like it
        # A single statement, which no interrupt can split. Until the first update has made new
        # arrays, nothing is overwritten. So the arrays at the start of an epoch are kept at no
        # cost, and a state may serve several runs.
        (
            self.leaves, self._kept, self.epoch, self.updates, self.seen, self._told, self._memory,
            self._begun, self.average, self.best, self.aux, self.together, self._noted,
            self._overwrites, self._torn, self._kept_batches,
        ) = (
            leaves, at, epoch, updates, noted, told, memory, begun, average, best, aux, together,
            len(seen), False, False, self._batches,
        )

    # --- saving ----------------------------------------------------------------------------------

    def position(self, done: Status | None = None) -> Position:
        """Where the run stands."""
        begun = self._begun_here()
        state = TrainState(
            self.epoch, self.updates, (), self._told, self._memory,
            None if begun.loss is None else begun, self.average, self.best, self.aux,
            self.together,
        )
        return Position(
            self.leaves, state, self.seen, *self._kept, self.history, self._batches, self._noted,
            self.first_epoch, done,
        )

    def position_if_whole(self) -> Position | None:
        """Where the run stands; None in the middle of an update."""
        return None if self._torn else self.position()

    def restore(self, position: Position) -> None:
        """Stand where another run stood."""
        state = position.state._replace(seen=tuple(position.seen))
        self.stand(self._owned(position.leaves), self._with_own(state))
        self._kept = self._owned(position.kept_leaves), self._with_own(position.kept_state)
        self.history = {name: list(seen) for name, seen in position.history.items()}
        self._batches, self._noted = position.batches, position.noted
        self.first_epoch = position.first_epoch
        if position.done is not None and position.done is not Status.EPOCHS:
            self.status = position.done

    def _owned(self, leaves: list[Array]) -> list[Array]:
        backends = (space.backend for space in self.spaces)
        return [as_own(backend, leaf) for backend, leaf in zip(backends, leaves, strict=True)]

    def _with_own(self, state: TrainState) -> TrainState:
        """The state with arrays of this run's library."""
        average, best = state.average, state.best
        return state._replace(
            average=None if average is None else self._owned(average),
            best=None if best is None else best._replace(leaves=self._owned(best.leaves)),
        )

    # --- an epoch ------------------------------------------------------------------------------

    def run_epochs(self, batches: Any, visit: Callable[[], None], most: int) -> None:
        """Run one epoch, or the rest of it; if updates are compiled, perhaps more, up to `most`.

        visit : is called before each batch, or each call of what is compiled.
        """
        begin = time.perf_counter()
        if self._at_once is not None and not self._at_once.serves(self.leaves):
            self._at_once = None
        if self.growth is not None:
            self._grow(batches)
        if self._at_once is None:
            epochs = self._batch_by_batch(batches, visit)
        else:
            epochs = self._many_updates(self._at_once, visit, most)
        sizes = self._read_with_sizes()
        if epochs > 1 and not self._are_finite(sizes):
            # In which epoch this happened is found by running them one at a time.
            self.stand(*self._kept)
            self._spans = False
            return
        self._note_losses()
        if self.tolerant and not any(map(_is_finite, self.seen)):
            self.status = Status.DIVERGED
        if not self.tolerant and not self._are_finite(sizes):
            self.stand(*self._kept)
            self.status = Status.DIVERGED
        if self.status is not Status.RUNNING:
            return
        each = len(self.seen) // epochs
        parts = [_finite(self.seen[k * each : (k + 1) * each]) for k in range(epochs)]
        means = [_mean(part, [seen.loss for seen in part]) for part in parts]
        number = self.epoch - self.first_epoch
        self.history["epoch_loss"][number:] = means
        self.history["seconds"][number:] = epochs * [(time.perf_counter() - begin) / epochs]
        if self.loss.has_aux:
            self.history["metrics"][number:] = list(map(_mean_metrics, parts))
        best = self.best if self.validate is None else self._validated(self.validate, number)
        self.stand(
            self.leaves,
            TrainState(
                self.epoch + epochs, self.updates, (), means[-1], self._memory, None, self.average,
                best, self.aux, self.together,
            ),
        )

    def _grow(self, batches: Accumulated) -> None:
        """Choose how many batches an update takes, at the start of an epoch; see `growth`."""
        assert self.growth is not None
        arrays: Any = batches.batches
        together = self.together or batches.count
        if not self.seen and self._begun_here().loss is None:
            together = batches_together(
                self.loss, self._sums, self.leaves, arrays, self.epoch, together, self.growth
            )
        self.together = batches.count = together

    def _batch_by_batch(self, batches: Any, visit: Callable[[], None]) -> int:
        """Run one epoch; return 1, the number of epochs."""
        watches = self.backend.reads_are_free and not self.tolerant
        for batch, rows in batches.epoch(self.epoch, len(self.seen)):
            visit()
            if time.perf_counter() >= self.deadline:
                self.status = Status.TIME
                break
            advanced = self._advance(batch, rows)
            if advanced is None:
                self.status = Status.TIME
                break
            self.seen.append(advanced)
            if watches and not math.isfinite(advanced.loss):
                break
        return 1

    def _many_updates(self, run: Updates, visit: Callable[[], None], most: int) -> int:
        """Run updates in calls of a program until an epoch ends; return the number of epochs."""
        if self.validate is not None or run.is_told or not self._spans:
            most = 1
        if self._memory is None:
            self._memory = self.method.init(self.params)
        whole = run.per_epoch
        while True:
            visit()
            left = self.deadline - time.perf_counter()
            if left <= 0.0:
                self.status = Status.TIME
                return 1
            place, loss, done, step, numbers = self._begun_here()
            if done == run.each:    # in a run batch by batch that was stopped
                rate, _ = self.method.learning_rate.follow(self._memory.plateaus[0], step, None)
                self.seen.append(SeenBatch(loss, run.batches.rows(place), rate, numbers))
                place, done = place + 1, 0
            first = place * run.each + done
            if first == whole:
                return 1
            fitting = min(self._chunk.within(left), run.most)
            epochs = min(most, fitting // whole) if first == 0 else 1
            wanted = epochs * whole if epochs > 1 else min(whole - first, fitting)
            count = run.prepare(self._memory, self._told, wanted)
            epochs = max(1, min(epochs, count // whole))
            count = epochs * whole if epochs > 1 else count
            begin = time.perf_counter()
            is_finite = self._make(run, first, count, epochs > 1)
            self._chunk.took(count, time.perf_counter() - begin)
            if not is_finite or first + count >= whole:
                return epochs

    def _make(self, run: Updates, first: int, count: int, spans: bool) -> bool:
        """Make updates from the `first` of the epoch on; return whether their losses are finite.

        spans : whether they are those of several epochs. An interrupt before these are recorded
            leads back to their start.
        """
        each, begun, old = run.each, self._begun_here(), len(self.seen)
        self._torn = self._overwrites
        leaves, memory, average, losses, numbers, rates = run(
            self.leaves, self._memory, self.average, self.epoch, first, count, self._overwrites
        )

        def of(place: int) -> tuple[Any, Any]:
            at = place * each - first
            return (losses[at], numbers[at]) if at >= 0 else (begun.loss, begun.metrics)

        stop, done = divmod(first + count, each)
        seen = [
            SeenBatch(of(k)[0], run.batches.rows(k), rates[(k + 1) * each - 1 - first], of(k)[1])
            for k in range(old, stop)
        ]
        after, last = None, stop - 1
        if done:
            after, last = BegunBatch(stop, of(stop)[0], done, memory.step - 1, of(stop)[1]), stop
        aux = metrics.nested_like(run.aux, of(last)[1]) if self.loss.has_aux else None
        # A single statement, which no interrupt can split.
        (
            self.leaves, self._memory, self.updates, self._told, self._overwrites, self._begun,
            self.average, self.aux, self.seen, self._torn,
        ) = (
            leaves, memory, self.updates + count, None, True, after, average, aux,
            self.seen + seen, spans,
        )
        self.seen[old:] = [_as_floats(each) for each in seen]
        return all(map(_is_finite, self.seen[old:]))

    def _validated(self, validate: Callable[[Any], Any], number: int) -> BestEpoch | None:
        """The best epoch so far, with the current one, which is that `number` of this run."""
        leaves = self.leaves if self.average is None else self.average
        out = validate(self._nested(list(map(copy_of, leaves))))
        value = real(out)
        if value is None:
            raise TypeError(f"validate returned {returned.described(out)}; wanted a real number")
        self.history["validation"][number:] = [value]
        if self.best is not None and not value < self.best.value:
            return self.best
        if math.isnan(value):
            return None
        return BestEpoch(self.epoch + 1, value, list(map(copy_of, leaves)))

    def _averaged(self, leaves: list[Array]) -> list[Array] | None:
        """The averaged parameters after an update to these leaves."""
        if self.average_decay is None:
            return None
        if self.average is None:
            return list(map(copy_of, leaves))
        # A compiler may fuse the product with the sum, which rounds differently.
        mix = mixed if self.reproducible else self.backend.jit(mixed)
        return mix(self.average_decay, self.average, leaves)

    def _begun_here(self) -> BegunBatch:
        """What is done on the batch that comes after those seen."""
        begun, place = self._begun, len(self.seen)
        return begun if begun and begun.place == place else BegunBatch(place, None, 0, 0)

    def _update(self, batch: Any, rows: int) -> SeenBatch:
        """Update with a first-order optimizer."""
        if self._memory is None:
            self._memory = self.method.init(self.params)
        place, first, done, step, numbers = self._begun_here()
        while done < self.updates_per_batch:
            old = self._memory

            def on_batch(leaves: list[Array], spec: Any = old.spec) -> tuple[Any, ...]:
                value, gradients, aux = self.loss(leaves, batch)
                if not self.loss.differentiates:
                    gradients = update.checked_gradients(gradients, spec)
                return value, gradients, aux

            def fun(leaves: list[Array], on_batch: Any = on_batch) -> tuple[Any, ...]:
                return on_batch(leaves)[:2]

            value, gradients, aux = on_batch(self.leaves)
            done += 1
            if first is None:
                first, numbers = value, self._numbers(aux)
            else:
                aux = self.aux
            more = {"fun": fun, "batch_value": value} if self.method.needs_fun else {}
            leaves, memory = self._updated(gradients, old, more)
            step, moved = old.step, memory.step > old.step    # else the update was skipped
            updates = self.updates + moved
            told, overwrites = (None, True) if moved else (self._told, self._overwrites)
            begun = BegunBatch(place, first, done, step, numbers)
            average = self._averaged(leaves) if moved else self.average
            # A single statement, which no interrupt can split.
            (
                self.leaves, self._memory, self.updates, self._told, self._overwrites, self._begun,
                self.average, self.aux, self._torn,
            ) = leaves, memory, updates, told, overwrites, begun, average, aux, False
        rate, _ = self.method.learning_rate.follow(self._memory.plateaus[0], step, None)
        return SeenBatch(first, rows, rate, numbers)

    def _numbers(self, aux: Any) -> tuple[Any, ...] | None:
        """The numbers in aux."""
        return self.loss.metrics.of(aux) if self.loss.has_aux else None

    def _updated(
        self, gradients: list[Array], old: Any, more: dict[str, Any]
    ) -> tuple[list[Array], Any]:
        """The leaves and the memory after one update; `more` goes to the method."""
        self._torn = self._overwrites
        try:
            return self.method.update_leaves(
                self.leaves, gradients, old, value=self._told, in_place=self._overwrites,
                reproducible=self.reproducible, **more,
            )
        except FloatingPointError:
            # With on_nonfinite="raise", before anything is overwritten.
            self._torn = self._torn and self.method.on_nonfinite != "raise"
            raise

    def _nested_metrics(self, values: Sequence[Any]) -> Any:
        """These values for the numbers in aux, nested like aux; None without `has_aux`."""
        return metrics.nested_like(self.aux, values) if self.loss.has_aux else None

    def _iterate(self, batch: Any, rows: int) -> SeenBatch | None:
        """Run iterations of a solver, whose rate is the last step length; None if there was no time
        for all of them."""
        begun = self._begun_here()
        if begun.done >= self.updates_per_batch:
            return SeenBatch(begun.loss, rows, self._memory.solver_state.step, begun.metrics)
        first = [] if begun.loss is None else [(begun.loss, begun.metrics, self.aux)]
        called = False

        def fun(params: Any, batch: Any) -> tuple[Any, Any]:
            nonlocal called
            called = True
            value, gradients, aux = self.loss.of_params(params, batch)
            if not first:
                first.append((value, self._numbers(aux), aux))
            called = False
            return value, gradients

        resumes = completed(self.method).resumes
        res: Any = minimize(
            fun, self.params, (batch,), jac=True, method=self.method, gtol=0.0,
            maxiter=self.updates_per_batch - begun.done,
            maxtime=max(self.deadline - time.perf_counter(), 0.0), reproducible=self.reproducible,
            state=self._memory if resumes else None,
        )
        stopped = res.status is Status.INTERRUPTED
        value, numbers, aux = first[0] if first else (None, None, None)
        begun = begun._replace(loss=value, metrics=numbers)
        if stopped or res.status is Status.TIME:
            # Within the solver, an interrupt may have cost some of what it had learned, and looks
            # cannot be resumed: the batch is then repeated from its start.
            if resumes and called is stopped and not _looks(res.state):
                self._adopt(res, begun._replace(done=begun.done + res.nit), aux)
            if stopped:
                raise KeyboardInterrupt
            return None
        # It may be the gradient that is not finite.
        value = math.nan if res.status is Status.NOT_FINITE else value
        self._adopt(res, begun._replace(loss=value, done=self.updates_per_batch), aux)
        return SeenBatch(value, rows, res.state.solver_state.step, numbers)

    def _adopt(self, res: Any, begun: BegunBatch, aux: Any) -> None:
        """Go to where a solver has ended."""
        leaves, updates = flatten_like(res.x, self.structure)[0], self.updates + res.nit
        whole = begun.done >= self.updates_per_batch
        average = self._averaged(leaves) if whole else self.average
        self.leaves, self._memory, self.updates, self._begun, self.average, self.aux = (
            leaves, res.state, updates, begun, average, aux
        )

    def _read_losses(self, numbers: Sequence[Any] = ()) -> list[float]:
        """Read the losses and metrics, and the numbers, which it returns; with one transfer if they
        are on a device."""
        places = [k for k, seen in enumerate(self.seen) if type(seen.loss) is not float]
        waiting = [n for k in places for n in (self.seen[k].loss, *(self.seen[k].metrics or ()))]
        read = iter(self.backend.read_many([*waiting, *numbers]))
        for k in places:
            old = self.seen[k]
            loss, rest = next(read), old.metrics and tuple(next(read) for _ in old.metrics)
            self.seen[k] = old._replace(loss=loss, metrics=rest)
        return list(read)

    def _read_with_sizes(self) -> list[float]:
        """Read the losses, and the largest component of each parameter, which it returns."""
        return self._read_losses([] if self.tolerant else self._sizes())

    def _are_finite(self, sizes: list[float]) -> bool:
        return all(map(math.isfinite, sizes)) and all(map(_is_finite, self.seen))

    def _note_losses(self) -> None:
        """Record the losses that have been read."""
        new = self.seen[self._noted :]
        if not self.tolerant:
            # Losses after the first one that is not finite are meaningless.
            new = new[: next((i for i, seen in enumerate(new, 1) if not _is_finite(seen)), None)]
        self.history["loss"][self._batches :] = [seen.loss for seen in new]
        self.history["learning_rate"][self._batches :] = [seen.rate for seen in new]
        self._noted, self._batches = len(self.seen), self._batches + len(new)

    def _sizes(self) -> list[Any]:
        """The largest component of each parameter."""
        with np.errstate(all="ignore"):
            return self.backend.jit(_largest, self.spaces)(self.leaves)

    # --- the outcome ---------------------------------------------------------------------------

    @property
    def params(self) -> Any:
        """The parameters, nested as the user passed them."""
        return self._nested(self.leaves)

    def _nested(self, leaves: list[Array]) -> Any:
        if isinstance(self.structure, Partial):
            # So that the frozen tensors can be told from them.
            leaves = [leaf.detach().requires_grad_(True) for leaf in leaves]
        return unflatten(self.structure, leaves)

    def recover(self) -> None:
        """Go back to the start of the epoch if an update was stopped in the middle, or the record
        of several epochs."""
        if self._torn:
            batches = self._kept_batches
            self.stand(*self._kept)
            self._batches = batches

    def record(self) -> TrainRecord:
        return TrainRecord(
            self.epoch,
            self.updates,
            self.history["epoch_loss"][-1],
            self.history["learning_rate"][-1],
            self.history["validation"][-1] if self.history["validation"] else math.nan,
            self._nested_metrics(self.history["metrics"][-1] if self.loss.has_aux else ()),
            self._nested(list(map(copy_of, self.leaves))),
            self._kept[1],
        )

    def result(self) -> TrainResult:
        self._read_losses()
        self._note_losses()
        begun: Any = self._begun_here()
        if begun.loss is None:
            begun = None
        else:
            loss, *rest = self.backend.read_many([begun.loss, *(begun.metrics or ())])
            begun = begun._replace(loss=loss, metrics=begun.metrics and tuple(rest))
        state = TrainState(
            self.epoch, self.updates, tuple(self.seen), self._told, self._memory, begun,
            self.average, self.best, metrics.read(self.aux),
            self.together,
        )
        best = self.best
        epochs = self.epoch - self.first_epoch
        history = {
            name: np.asarray(seen[: self._batches if name in _OF_BATCHES else epochs])
            for name, seen in self.history.items() if name != "metrics"
        }
        count = len(self._numbers(self.aux) or ())
        means = np.asarray(self.history["metrics"][:epochs], dtype=np.float64)
        means = means.reshape(epochs, count).T
        return TrainResult(
            params=self.params,
            loss=float(history["epoch_loss"][-1]) if epochs else math.nan,
            aux=state.aux,
            average=None if self.average is None else self._nested(self.average),
            best_params=None if best is None else self._nested(best.leaves),
            best_epoch=0 if best is None else best.epoch,
            best_validation=math.nan if best is None else best.value,
            history=History(**history, metrics=self._nested_metrics(list(means))),
            epochs=self.epoch,
            updates=self.updates,
            success=self.status.success,
            status=self.status,
            message=_DIVERGED if self.status is Status.DIVERGED else self.status.message,
            state=state,
        )


def _looks(state: Any) -> bool:
    """Whether a run of `minimize` was stopped while it confirmed its end."""
    return state.solver_state.failed or state.progress.claim != Status.RUNNING


def _largest(spaces: tuple[Space, ...], leaves: list[Array]) -> list[Any]:
    """The largest component of each leaf."""
    sizes = []
    for space, leaf in zip(spaces, leaves, strict=True):
        if 0 not in leaf.shape:
            with space.backend.current():
                sizes.append(space.max_abs(space.backend.vector(leaf)))
    return sizes


def _is_finite(seen: SeenBatch) -> bool:
    return math.isfinite(seen.loss)


def _as_floats(seen: SeenBatch) -> SeenBatch:
    numbers = None if seen.metrics is None else tuple(map(float, seen.metrics))
    return seen._replace(loss=float(seen.loss), metrics=numbers)


def _finite(seen: Sequence[SeenBatch]) -> list[SeenBatch]:
    return list(filter(_is_finite, seen))


def _mean(seen: Sequence[SeenBatch], numbers: Sequence[float]) -> float:
    """The mean over all rows of numbers that the batches have."""
    return metrics.mean(numbers, [each.rows for each in seen])


def _mean_metrics(seen: Sequence[SeenBatch]) -> list[float]:
    table = zip(*(each.metrics or () for each in seen), strict=True)
    return [_mean(seen, numbers) for numbers in table]
