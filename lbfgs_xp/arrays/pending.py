"""Numbers that are still on the device, because a read waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lbfgs_xp.arrays.backend import Array, Backend


class Pending:
    """A number that arrives with the next `read_with` of its queue; `float` reads it at once."""

    __slots__ = ("_array", "_backend", "_value")

    def __init__(self, backend: Backend, array: Array):
        self._backend, self._array = backend, array
        self._value: float | None = None

    def __float__(self) -> float:
        if self._value is None:
            with self._backend.current():
                (self._value,) = self._backend.read([self._array])
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class Queue:
    """The pending numbers of a run."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._waiting: list[Pending] = []

    def add(self, arrays: Sequence[Array]) -> list[Pending]:
        """0-d arrays as pending numbers."""
        new = [Pending(self._backend, array) for array in arrays]
        self._waiting += new
        return new

    def take_over(self, other: Queue) -> None:
        """The pending numbers of another run, which this one continues."""
        self._waiting, other._waiting = [*self._waiting, *other._waiting], []

    def read_with(self, numbers: Sequence[Any]) -> list[float]:
        """0-d arrays as floats; those that are pending arrive in the same transfer."""
        waiting, self._waiting = self._waiting, []
        found = self._backend.read([*numbers, *(pending._array for pending in waiting)])
        for pending, value in zip(waiting, found[len(numbers) :], strict=True):
            pending._value = value
        return found[: len(numbers)]


def now(number: Any) -> Any:
    """A scalar, read from the device if it is still pending."""
    return float(number) if isinstance(number, Pending) else number
