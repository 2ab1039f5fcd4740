"""Many updates of `train` as one compiled program.

The program is a loop over the loss, its gradient and the rule. What depends on the step alone, such
as the learning rate and the rows of the batch, is computed on the host for all updates of a call
and passed in tables. So one program serves all epochs and schedules, and every number of updates.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, copy_of, is_array, namespace_of
from lbfgs_xp.arrays.pending import Pending, Queue
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten, unflatten
from lbfgs_xp.first_order import FirstOrder, OptimizerState, update
from lbfgs_xp.run.metrics import is_number
from lbfgs_xp.training.batches import ArrayBatches
from lbfgs_xp.training.loss import Loss, evaluate

# How many updates a call makes at most, and how many numbers of rows are passed to it.
_UPDATES, _ROWS = 1024, 2**17


def updates_of(
    method: Any, loss: Loss, batches: Any, each: int, average_decay: float | None
) -> Updates | None:
    """The updates of a run of `lx.train`; None if they have to be made one by one."""
    serves = (
        loss.compiled and loss.differentiates and isinstance(batches, ArrayBatches)
        # Not a method that updates in its own way, nor one that looks at the gradients.
        and getattr(type(method), "update_leaves", None) is FirstOrder.update_leaves
        and method.on_nonfinite == "ignore"
    )
    return Updates(method, loss, batches, each, average_decay) if serves else None


class Numbers(NamedTuple):
    """What the host computes for an update.

    step : its number in the run, from 0.
    own : the numbers of the rule, for each group of settings.
    rate : the learning rate, for the record.
    carried, plateaus : as in `OptimizerState`, after the update.
    """

    step: int
    own: list[tuple]
    rate: float
    carried: tuple
    plateaus: tuple


class Made(NamedTuple):
    """What a call leaves: the new parameters, and for each update the loss before it, the metrics
    that belong to it (None without aux), and its rate."""

    leaves: list[Array]
    memory: OptimizerState
    average: list[Array] | None
    losses: list[Pending]
    metrics: list[tuple[Pending, ...] | None]
    rates: list[float]


class Updates:
    """The updates of a run, many at a time.

    each : how many updates each batch is for.
    average_decay : as in `lx.train`.

    aux : the outline of what the loss returns besides its value; None if it returns nothing else.
    """

    aux: Any = None

    def __init__(
        self, method: Any, loss: Loss, batches: ArrayBatches, each: int,
        average_decay: float | None,
    ):
        self.method, self.loss, self.batches, self.each = method, loss, batches, each
        self.average_decay = average_decay
        # Whether a learning rate is told the mean loss of each epoch.
        self.is_told = any(rule.learning_rate.init() is not None for rule in method.variants)
        self.per_epoch = batches.count * each
        self.step = min(batches.batch_size, batches.size)
        self.most = min(_UPDATES, max(1, _ROWS // self.step)) if batches.is_drawn else _UPDATES
        self._ahead: collections.deque[Numbers] = collections.deque()
        self._queue = Queue(loss.backend, self._read)

    def serves(self, leaves: list[Array]) -> bool:
        """Whether all that the loss returns besides its value are numbers (and None), which alone
        leave the program."""
        loss, batches = self.loss, self.batches
        if loss.has_aux and self.aux is None:
            function = functools.partial(
                evaluate, loss.loss, True, loss.backend, loss.structure, batches.structure
            )
            batch = loss.backend.span(batches.leaves, None, 0, self.step)
            _, self.aux = loss.backend.explained(loss.backend.outline)(function, leaves, batch)
        return all(leaf is None or is_number(leaf) for leaf in flatten(self.aux)[0])

    def prepare(self, memory: OptimizerState, told: Any, count: int) -> int:
        """Compute the numbers of the next `count` updates, and return how many there are: fewer if
        a function of the user, such as a schedule, raises an exception; if there is none, it
        propagates.

        told : the value for a `ReduceOnPlateau`, or None.
        """
        ahead = self._ahead
        if told is not None or (ahead and ahead[0].step != memory.step):
            ahead.clear()
        carried, plateaus = memory.carried, memory.plateaus
        if ahead:
            carried, plateaus = ahead[-1].carried, ahead[-1].plateaus
        for step in range(memory.step + len(ahead), memory.step + count):
            try:
                own, carried, plateaus, rate = update.numbers_of(
                    self.method.variants, step, carried, plateaus, told
                )
            except Exception:
                if not ahead:
                    raise
                break
            ahead.append(Numbers(step, own, rate, carried, plateaus))
            told = None
        return min(count, len(ahead))

    def __call__(
        self, leaves: list[Array], memory: OptimizerState, average: list[Array] | None, epoch: int,
        first: int, count: int, in_place: bool,
    ) -> Made:
        """Make `count` updates, which have been prepared, from the `first` of an epoch on.

        in_place : whether the arrays may be overwritten.
        """
        numbers = [self._ahead.popleft() for _ in range(count)]
        decays = () if self.average_decay is None else (self.average_decay,)
        table = [[*decays, *(n for own in each.own for n in own)] for each in numbers]
        if decays and average is None:
            # A decay of 0 gives the parameters themselves.
            average, table[0][0] = list(map(copy_of, leaves)), 0.0
        places, whole = self._places(epoch, first, count)
        run = self._program(memory, numbers[0].own)
        held = (leaves, memory.slots, average if decays else [])
        if not in_place:
            held = self.loss.backend.jit(_copied)(held)
        (leaves, slots, average), losses = run(
            held, self.batches.leaves, self._padded(table, float), places, whole, np.int32(count)
        )
        memory = OptimizerState(
            memory.step + count, slots, numbers[-1].carried, numbers[-1].plateaus, memory.spec
        )
        average = average if decays else None
        waiting, found = self._waiting(losses, count)
        return Made(leaves, memory, average, waiting, found, [each.rate for each in numbers])

    def _waiting(self, losses: Array, count: int) -> tuple[list[Pending], list[Any]]:
        """The losses and the metrics of `count` updates."""
        if not self.loss.has_aux:
            return self._queue.add([(losses, k) for k in range(count)]), count * [None]
        width = losses.shape[1]
        rows = [
            self._queue.add([(losses, (k, i)) for i in range(width)]) for k in range(count)
        ]
        return [row[0] for row in rows], [tuple(row[1:]) for row in rows]

    def _program(self, memory: OptimizerState, own: list[tuple]) -> Any:
        loss, batches, spec = self.loss, self.batches, memory.spec
        layout = "all" if self.step == batches.size else "drawn" if batches.is_drawn else "slices"
        program = _Program(
            rules=tuple(self.method.variants[i].rule for i in spec.variants),
            groups=spec.variants,
            counts=tuple(map(len, own)),
            spaces=spec.spaces,
            clip=self.method.clip_norm,
            averages=self.average_decay is not None,
            loss=loss.loss,
            metrics=len(_numbers_in(self.aux)) if loss.has_aux else None,
            backend=loss.backend,
            structure=loss.structure,
            nesting=batches.structure,
            rows=(self.step, batches.size % self.step),
            layout=layout,
        )
        return loss.backend.explained(loss.backend.jit(_run, program, donate=(1,)))

    def _places(self, epoch: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For each update the rows of its batch, or the first of them; and whether the batch is a
        whole one, and not what is left at the end of an epoch."""
        batches, step = self.batches, self.step
        later, number = np.divmod(np.arange(first, first + count) // self.each, batches.count)
        if batches.is_drawn:
            orders = [
                np.resize(batches.order(epoch + k), (batches.count, step))
                for k in range(later[-1] + 1)
            ]
            places = np.concatenate([rows[number[later == k]] for k, rows in enumerate(orders)])
        else:
            places = step * number
        whole = (number + 1) * step <= batches.size
        return self._padded(places, np.int32), self._padded(whole, bool)

    def _padded(self, rows: Any, dtype: Any) -> np.ndarray:
        """The rows, and as many more that are not used as make a table for the longest call."""
        rows = np.asarray(rows, dtype=dtype)
        table = np.zeros((self.most, *rows.shape[1:]), dtype=dtype)
        table[: len(rows)] = rows
        return table

    def _read(self, numbers: Sequence[tuple[Array, Any]]) -> list[float]:
        arrays = {id(losses): losses for losses, _ in numbers}
        read = {key: self.loss.backend.to_host(losses) for key, losses in arrays.items()}
        return [float(read[id(losses)][k]) for losses, k in numbers]


@dataclasses.dataclass(frozen=True)
class _Program:
    """What the program depends on besides the shapes and dtypes of its arguments.

    rules : for each leaf, without the learning rate; `groups` are the numbers of their settings.
    counts : how many numbers each group of settings takes.
    averages : whether the parameters are averaged.
    metrics : how many numbers are in aux; None if the loss returns only its value.
    nesting : how the arrays of the data are nested.
    rows : in a whole batch, and in the last one of an epoch if it is shorter, else 0.
    layout : "all" rows in one batch, "drawn" ones, or "slices".
    """

    rules: tuple
    groups: tuple[int, ...]
    counts: tuple[int, ...]
    spaces: tuple[Space, ...]
    clip: float | None
    averages: bool
    loss: Any
    metrics: int | None
    backend: Backend
    structure: Any
    nesting: Any
    rows: tuple[int, int]
    layout: str

    wrapped_functions: ClassVar = ("loss",)

    def batch(self, data: list[Array], place: Array, count: int) -> list[Array]:
        if self.layout == "all":
            return data
        if self.layout == "drawn":
            return self.backend.span(data, place[:count], 0, count)
        return self.backend.span(data, None, place, count)

    def record(self, value: Array, aux: Any, dtype: Any) -> Array:
        """What is recorded of an update: the loss, and with aux the numbers in it."""
        xp = self.backend.xp
        if self.metrics is None:
            return xp.astype(value, dtype)
        return xp.stack([xp.asarray(n, dtype=dtype) for n in (value, *_numbers_in(aux))])

    def numbers(self, row: Array) -> tuple[Any, list[tuple]]:
        """The decay of the average, and the numbers of the rule of each leaf."""
        each = iter([row[i] for i in range(row.shape[0])])
        decay = next(each) if self.averages else None
        own = [tuple(next(each) for _ in range(count)) for count in self.counts]
        return decay, [own[group] for group in self.groups]


def _run(
    program: _Program, held: Any, data: list[Array], table: Array, places: Array, whole: Array,
    count: Any,
) -> tuple[Any, Array]:
    """The parameters, slots and averages after `count` updates, and the losses before each, with
    aux in rows (1 + numbers); to be compiled."""
    backend, xp = program.backend, program.backend.xp
    differentiated = backend.value_and_gradients(
        False, evaluate, program.loss, program.metrics is not None, backend, program.structure,
        program.nesting,
    )
    full, rest = program.rows

    def step(carry: tuple) -> tuple:
        k, (leaves, slots, average), losses = carry

        def on_batch(rows: int) -> Any:
            value, gradients, aux = differentiated(
                leaves, program.batch(data, places[k, ...], rows)
            )
            return program.record(value, aux, losses.dtype), gradients

        record, gradients = backend.either(
            whole[k], lambda: on_batch(full), lambda: on_batch(rest)
        ) if rest else on_batch(full)
        decay, numbers = program.numbers(table[k, ...])
        leaves, slots = update.apply_at_once(
            program.rules, program.spaces, program.clip, leaves, gradients, slots, numbers
        )
        if program.averages:
            average = mixed(decay, average, leaves)
        losses = backend.write_row(losses, k, record)
        return k + 1, (leaves, slots, average), losses

    losses = xp.zeros_like(table[:, 0])
    if program.metrics is not None:
        losses = xp.zeros((table.shape[0], 1 + program.metrics), dtype=table.dtype)
    start = xp.zeros_like(count), held, losses
    _, held, losses = backend.while_loop(lambda carry: carry[0] < count, step, start)
    return held, losses


def _numbers_in(aux: Any) -> list[Any]:
    return [leaf for leaf in flatten(aux)[0] if leaf is not None]


def mixed(decay: Any, average: list[Array], leaves: list[Array]) -> list[Array]:
    """The averages after another update, in the dtypes of the leaves."""
    new = []
    for a, x in zip(average, leaves, strict=True):
        old, share = decay, 1.0 - decay
        if is_array(decay):
            xp = namespace_of(x)
            kind = xp.real(x).dtype
            old, share = xp.astype(old, kind), xp.astype(share, kind)
        new.append(old * a + share * x)
    return new


def _copied(arrays: Any) -> Any:
    leaves, structure = flatten(arrays)
    return unflatten(structure, [copy_of(leaf) for leaf in leaves])
