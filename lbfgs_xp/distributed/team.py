"""How processes that minimise together agree: one sum for each evaluation.

The sum holds the value and the gradient and, before them, what each process has to say: that it has
failed, was interrupted, is out of time, or that its callback wants to stop. So all processes take
each decision after the same evaluation, and no process waits for one that has ended.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, class_of, namespace_of
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.checks import shown

_FAILED, _INTERRUPTED, _LATE, _STOPPED, _ENDED = range(5)
_NOTICES = 5


class ProcessFailed(RuntimeError):
    """Raised in the other processes when one has failed; the message is that of its exception."""


class Engine(ABC):
    """What connects the processes.

    rank, size : the number of this process, from 0, and how many there are.
    """

    rank: int
    size: int

    @abstractmethod
    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all processes, which have the same shape; the same bits in
        each."""

    @abstractmethod
    def gather(self, item: Any) -> list[Any]:
        """What each process has passed, by rank."""


def on_host(sum_of: Callable[[np.ndarray], np.ndarray], array: Array) -> Array:
    """`Engine.sum` by a function that takes the sum of arrays of NumPy, which it may overwrite."""
    total = sum_of(np.array(class_of(array).to_host(array)))
    if isinstance(array, np.ndarray):
        return total
    return namespace_of(array).asarray(total, device=array.device)


class Team:
    """The processes of one run, seen from one of them.

    engine : an `Engine`.
    layout : returns the layout of the problems that are in the batch.
    late, stopped : what this process says with the next sum.
    """

    def __init__(self, engine: Any, layout: Callable[[], Layout]):
        if not isinstance(engine, Engine):
            raise TypeError(
                f"distributed is {shown(engine)}; wanted lx.distributed.torch() or "
                "lx.distributed.mpi(), or None"
            )
        self.engine, self._layout_here = engine, layout
        self.late = self.stopped = False
        self._heard = [0.0] * _NOTICES
        self._over = False

    @property
    def _layout(self) -> Layout:
        return self._layout_here()

    def check_equal(self, what: str, item: Any) -> None:
        """Refuse a run whose processes were called in different ways; in all of them."""
        found = self.engine.gather(item)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise ValueError(
                    f"{what} differs between process 0 and process {rank}; wanted the same in all "
                    "processes (only the data differ)"
                )

    def is_late(self, late: bool) -> bool:
        """Whether any process was out of time at the last evaluation; `late`: whether this is."""
        self.late = late
        return self._heard[_LATE] > 0.0

    def is_stopped(self, stopped: bool) -> bool:
        """Whether the callback of any process wanted to stop before the last evaluation;
        `stopped`: whether that of this one wants to."""
        self.stopped = self.stopped or stopped
        return self._heard[_STOPPED] > 0.0

    def shared(self, evaluate: Callable) -> Callable:
        """`evaluate`, whose value and gradient are summed over the processes."""

        def evaluate_together(x: Array) -> tuple[Any, Array, Any]:
            try:
                value, gradient, aux = evaluate(x)
            except BaseException as error:
                self.leave(error)
                raise
            summed = self._sum(value, gradient)
            return (*summed, aux)

        return evaluate_together

    def leave(self, error: BaseException) -> None:
        """Tell the others, unless they know it, that this process ends because of an error."""
        if self._over:
            return
        self._over = True
        interrupted = isinstance(error, KeyboardInterrupt)
        found = self._exchange(_INTERRUPTED if interrupted else _FAILED, None, None)
        # What else the others say does not change how this process ends.
        if self._read(found)[_FAILED]:
            self._gather_failures(None if interrupted else error)

    def end(self) -> None:
        """End together with the others; raise if one of them has failed in the meantime."""
        if not self._over:
            self._over = True
            self._listen(self._exchange(_ENDED, None, None))

    def _sum(self, value: Any, gradient: Array) -> tuple[Any, Array]:
        xp, layout = self._layout.xp, self._layout
        found = self._exchange(None, value, gradient)
        self._listen(found)
        count = math.prod(gradient.shape[:-1])
        values = found[_NOTICES : _NOTICES + count]
        gradient = xp.reshape(found[_NOTICES + count :], tuple(gradient.shape))
        if layout.batch:
            return values, gradient
        return (float(values[0]) if layout.backend.reads_are_free else values[0]), gradient

    def _exchange(self, notice: int | None, value: Any, gradient: Any) -> Array:
        """The sum of what all processes say, of their values and their gradients."""
        backend, layout = self._layout.backend, self._layout
        notices = [0.0] * _NOTICES
        notices[_LATE], notices[_STOPPED] = float(self.late), float(self.stopped)
        if notice is not None:
            notices[notice] = 1.0
        count = math.prod(layout.batch)
        if value is None:
            value, gradient = backend.zeros((count,)), backend.zeros((count * layout.size,))
        elif isinstance(value, float):
            value = backend.full((1,), value)
        said = layout.xp.asarray(notices, dtype=backend.dtype, device=backend.creation_device)
        parts = [said, *(layout.xp.reshape(part, (-1,)) for part in (value, gradient))]
        try:
            return self.engine.sum(backend.join(parts))
        except BaseException:
            self._over = True    # nobody listens any more
            raise

    def _listen(self, found: Array) -> None:
        """Take note of what the others said; raise if one has failed or ended."""
        self._heard = heard = self._read(found)
        if heard[_FAILED]:
            self._over = True
            raise ProcessFailed(self._gather_failures(None))
        if heard[_INTERRUPTED]:
            self._over = True
            raise KeyboardInterrupt
        if heard[_ENDED] and not (self._over and heard[_ENDED] == self.engine.size):
            self._over = True
            raise ProcessFailed(
                "another process has ended its run before this one; wanted the same arguments in "
                "all processes, and a fun that depends on x and its data only"
            )

    def _read(self, found: Array) -> list[float]:
        return self._layout.backend.read([found[i] for i in range(_NOTICES)])

    def _gather_failures(self, error: BaseException | None) -> str:
        """What the processes that have failed say, the first one in front."""
        said = None if error is None else f"{type(error).__name__}: {error}"
        found = self.engine.gather(said)
        texts = [f"process {rank} failed: {text}" for rank, text in enumerate(found) if text]
        return "; ".join(texts)
