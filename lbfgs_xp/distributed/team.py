"""How processes that minimise together agree: one sum for each evaluation.

The sum holds the value and the gradient and, before them, what each process has to say: that it has
failed, was interrupted, is out of time, or that its callback wants to stop. So all processes take
each decision after the same evaluation, and no process waits for one that has ended.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, class_of, is_array, namespace_of
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.checks import shown
from lbfgs_xp.distributed.parts import Tree

_FAILED, _INTERRUPTED, _LATE, _STOPPED, _ENDED, _DUE, _TERMINATED = range(7)
_NOTICES = 7
# Numbers below this are exact in float32.
_SPLIT = 2**20


class ProcessFailed(RuntimeError):
    """Raised in the other processes when one has failed; the message is that of its exception."""


class Engine(ABC):
    """What connects the processes.

    rank, size : the number of this process, from 0, and how many there are.
    sharded : whether the variables are divided among the processes.
    team : those of the run that is in progress, if its variables are; else None.
    """

    rank: int
    size: int
    sharded: bool = False
    team: Any = None

    @abstractmethod
    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all processes, which have the same shape; the same bits in
        each."""

    @abstractmethod
    def gather(self, item: Any) -> list[Any]:
        """What each process has passed, by rank."""

    def broadcast(self, item: Any) -> Any:
        """What the process of rank 0 has passed."""
        return self.gather(item if self.rank == 0 else None)[0]

    def collect(self, numbers: Array) -> np.ndarray:
        """The numbers (k,) that each process has passed, by rank, on the host: (size, k).

        They may be nan. With `sharded` this is the message of every iteration; here it is a sum of
        arrays that are 0 but for the numbers of this process.
        """
        host = class_of(numbers).to_host(numbers)
        own = np.zeros((self.size, *host.shape), host.dtype)
        own[self.rank] = host
        return np.asarray(self.sum(own))

    def fixed_sum(self, terms: Array) -> float:
        """The sum of the terms of all processes in an order that depends only on how many there
        are: with the bits of `lx.fixed_sum` of all of them in one array, by rank.

        Every process must call it. So the value of a function of variables that are divided among
        processes has the same bits for any number of them: let the process of rank 0 return this
        sum as its share, and the others 0.0.

        Parameters
        ----------
        terms : array (k,) of any library; k may differ between the processes.
        """
        if not is_array(terms) or terms.ndim != 1:
            raise TypeError(f"terms is {shown(terms)}; wanted a 1-d array")
        backend = Backend.of(terms, "terms")
        numbers = np.asarray(divmod(terms.shape[0], _SPLIT), dtype=np.float64)
        if self.team is None:
            counts = self.collect(backend.from_host(numbers))
        else:
            counts = self.team.collect(numbers)
        tree = Tree([int(a) * _SPLIT + int(b) for a, b in counts], self.rank)
        sent = backend.xp.reshape(tree.sent(backend, terms), (-1,))
        return float(tree.whole(self.collect(sent), ()))


def on_host(sum_of: Callable[[np.ndarray], np.ndarray], array: Array) -> Array:
    """`Engine.sum` by a function that takes the sum of arrays of NumPy, which it may overwrite."""
    total = sum_of(np.array(class_of(array).to_host(array)))
    if isinstance(array, np.ndarray):
        return total
    return namespace_of(array).asarray(total, device=array.device)


class _Failure:
    """What a process gathers whose arguments are wrong: why."""

    def __init__(self, text: str):
        self.text = text


@contextlib.contextmanager
def set_up_together(engine: Any) -> Iterator[None]:
    """A context that tells the others, who wait to compare their settings, of an error."""
    try:
        yield
    except Exception as error:
        if isinstance(engine, Engine):
            engine.gather(_Failure(_said(error)))
        raise


class Team:
    """The processes of one run, seen from one of them.

    Processes hear of each other at every evaluation: an exception of the callback, and Ctrl-C
    outside of fun and the callback, wait until then.

    engine : an `Engine`.
    layout : returns the layout of the problems that are in the batch.
    late, stopped, due, terminated : what this process says with the next sum.
    """

    def __init__(self, engine: Any, layout: Callable[[], Layout]):
        if not isinstance(engine, Engine):
            raise TypeError(
                f"distributed is {shown(engine)}; wanted lx.distributed.torch() or "
                "lx.distributed.mpi(), or None"
            )
        self.engine, self._layout_here = engine, layout
        self.late = self.stopped = self.due = self.terminated = False
        self._heard = [0.0] * _NOTICES
        # Whether a step waits for its first numbers.
        self.in_first_message = False
        # Whether a function of the user is running, and what waits for the next evaluation.
        self._in_function = False
        self._held: BaseException | None = None
        # Whether this process has left the run, and whether any process has left it by an error.
        self._over = self._broken = False

    @property
    def _layout(self) -> Layout:
        return self._layout_here()

    def check_equal(
        self, what: str, item: Any, wanted: str = "the same in all processes (only the data differ)"
    ) -> None:
        """Refuse a run whose processes were called in different ways; in all of them."""
        found = self.engine.gather(item)
        if failed := [(rank, each.text) for rank, each in enumerate(found)
                      if isinstance(each, _Failure)]:
            self._over = True
            raise ProcessFailed(_told(failed))
        for rank, other in enumerate(found):
            if other != found[0]:
                raise ValueError(
                    f"{what}{_where(found[0], other)} differs between process 0 and process {rank}"
                    f"; wanted {wanted}"
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

    def is_due(self, due: bool) -> bool:
        """Whether any process was due to save the run at the last evaluation; `due`: whether this
        is."""
        self.due = due
        return self._heard[_DUE] > 0.0

    def is_terminated(self) -> bool:
        """Whether any process had received SIGTERM before the last evaluation."""
        return self._heard[_TERMINATED] > 0.0

    def shared(self, evaluate: Callable) -> Callable:
        """`evaluate`, whose value and gradient are summed over the processes."""

        def evaluate_together(x: Array) -> tuple[Any, Array, Any]:
            try:
                value, gradient, aux = self._calling(evaluate, x)
            except BaseException as error:
                self.leave(error)
                raise
            return (*self._sum(value, gradient), aux)

        return evaluate_together

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function of the user returns; False if it raises, which then waits."""
        try:
            return self._calling(function)
        except BaseException as error:
            self._held = error
            return False

    def _calling(self, function: Callable, *args: Any) -> Any:
        if self._held is not None:
            raise self._held
        self._in_function = True
        try:
            return function(*args)
        finally:
            self._in_function = False

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """A context in which Ctrl-C stops functions of the user at once, and everything else with
        the next evaluation."""
        before: Any = None
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
        if not callable(before):
            yield
            return

        def interrupt(number: int, frame: Any) -> None:
            try:
                before(number, frame)
            except BaseException as error:
                if self._in_function or self._over:
                    raise
                self._held = error

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def leave(self, error: BaseException) -> None:
        """Tell the others, unless they know it, that this process ends because of an error."""
        if self._over:
            return
        self._over = True
        interrupted = isinstance(error, KeyboardInterrupt)
        found = self._exchange(_INTERRUPTED if interrupted else _FAILED, None, None)
        # What else the others say does not change how this process ends.
        if self._read(found)[_FAILED]:
            self._broken = True
            self._gather_failures(None if interrupted else error)

    def meet(self) -> None:
        """Exchange what the processes have to say, without an evaluation."""
        if self._held is not None:
            raise self._held
        self._listen(self._exchange(None, None, None))

    def end(self) -> None:
        """End together with the others; raise if one of them has failed in the meantime."""
        if self._held is not None:
            raise self._held
        if not self._over:
            self._over = True
            self._listen(self._exchange(_ENDED, None, None))

    def _sum(self, value: Any, gradient: Array) -> tuple[Any, Array]:
        """The sums of the values and the gradients of all processes."""
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
        count = math.prod(layout.batch)
        if value is None:
            value, gradient = backend.zeros((count,)), backend.zeros((count * layout.size,))
        elif isinstance(value, float):
            value = backend.full((1,), value)
        said = backend.from_host(np.asarray(self._notices(notice)))
        parts = [said, *(layout.xp.reshape(part, (-1,)) for part in (value, gradient))]
        try:
            return self.engine.sum(backend.join(parts))
        except BaseException:
            self._over = True    # nobody listens any more
            raise

    def _notices(self, notice: int | None) -> list[float]:
        """What this process says: 1.0 for what is so, and for the notice."""
        notices = [0.0] * _NOTICES
        notices[_LATE], notices[_STOPPED] = float(self.late), float(self.stopped)
        notices[_DUE], notices[_TERMINATED] = float(self.due), float(self.terminated)
        if notice is not None:
            notices[notice] = 1.0
        return notices

    def _listen(self, found: Any) -> None:
        """Take note of what the others said; raise if one has failed or ended."""
        self._heard = heard = self._read(found)
        if heard[_FAILED]:
            self._over = self._broken = True
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

    def _read(self, found: Any) -> list[float]:
        return self._layout.backend.read([found[i] for i in range(_NOTICES)])

    def _gather_failures(self, error: BaseException | None) -> str:
        """What the processes that have failed say, the first one in front."""
        found = self.engine.gather(None if error is None else _said(error))
        return _told([(rank, text) for rank, text in enumerate(found) if text])


def _where(old: Any, new: Any) -> str:
    """The first key, if these are dicts, whose items differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    return f": {next(key for key in {**old, **new} if old.get(key) != new.get(key))}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _told(failed: list[tuple[int, str]]) -> str:
    return "; ".join(f"process {rank} failed: {text}" for rank, text in failed)
