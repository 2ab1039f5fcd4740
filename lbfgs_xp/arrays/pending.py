"""Numbers that are still elsewhere, because a read waits: for a device, or for other processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lbfgs_xp.arrays.backend import Backend


class Pending:
    """A number that arrives with the next read of its queue; `float` reads it at once."""

    __slots__ = ("_number", "_queue", "_value")

    def __init__(self, queue: Queue, number: Any):
        self._queue, self._number = queue, number
        self._value: float | None = None

    def __float__(self) -> float:
        if self._value is None:
            self._queue.read_with(())
        if self._value is None:    # another queue has taken it over
            self._queue.read_alone(self)
        assert self._value is not None
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class Queue:
    """The pending numbers of a run.

    read : the function from numbers to floats, of which each call waits.
    """

    def __init__(self, backend: Backend, read: Callable[[Sequence[Any]], list[float]]):
        self._backend, self._read = backend, read
        self._waiting: list[Pending] = []

    def add(self, numbers: Sequence[Any]) -> list[Pending]:
        """Numbers that are elsewhere, as pending ones."""
        new = [Pending(self, number) for number in numbers]
        self._waiting += new
        return new

    def take_over(self, other: Queue) -> None:
        """The pending numbers of another run, which this one continues."""
        self._waiting, other._waiting = [*self._waiting, *other._waiting], []

    def read_with(self, numbers: Sequence[Any], read: Any = None) -> list[float]:
        """These numbers as floats; those that are pending arrive with them.

        read : what to use instead of the function of the queue.
        """
        waiting, self._waiting = self._waiting, []
        with self._backend.current():
            found = (read or self._read)([*numbers, *(pending._number for pending in waiting)])
        for pending, value in zip(waiting, found[len(numbers) :], strict=True):
            pending._value = value
        return found[: len(numbers)]

    def read_alone(self, pending: Pending) -> None:
        with self._backend.current():
            (pending._value,) = self._read([pending._number])


def now(number: Any) -> Any:
    """A scalar, read if it is still pending."""
    return float(number) if isinstance(number, Pending) else number
