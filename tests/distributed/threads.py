"""Processes of one run as threads of this one, which start at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import lbfgs_xp as lx
from lbfgs_xp.arrays.backend import class_of


class Meeting:
    """Where threads exchange what they have."""

    def __init__(self, size: int):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60.0)
        # A thread may be one exchange ahead of the others.
        self.places: list[list[Any]] = [[None] * size, [None] * size]
        self.turns = [0] * size

    def exchange(self, rank: int, item: Any) -> list[Any]:
        places = self.places[self.turns[rank] % 2]
        self.turns[rank] += 1
        places[rank] = item
        self.barrier.wait()
        return list(places)


class ThreadEngine(lx.distributed.Engine):
    """One of the threads; `messages` holds the bytes of each message that it has sent."""

    def __init__(self, meeting: Meeting, rank: int, sharded: bool = True):
        self.meeting, self.rank, self.size, self.sharded = meeting, rank, meeting.size, sharded
        self.messages: list[int] = []

    def sum(self, array: Any) -> Any:
        found = self.meeting.exchange(self.rank, array)
        total = found[0]
        for other in found[1:]:
            total = total + other
        return total

    def collect(self, numbers: Any) -> np.ndarray:
        host = np.array(class_of(numbers).to_host(numbers))
        self.messages.append(host.nbytes)
        found = self.meeting.exchange(self.rank, host)
        assert len({each.shape for each in found}) == 1, "processes read different numbers"
        return np.stack(found)

    def gather(self, item: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, item)


def together(size: int, work: Callable[[ThreadEngine], Any], sharded: bool = True) -> list[Any]:
    """What `work` returns, or raises, in each of so many threads."""
    meeting, found = Meeting(size), [None] * size

    def run(rank: int) -> None:
        engine = ThreadEngine(meeting, rank, sharded)
        try:
            found[rank] = work(engine)
        except BaseException as error:
            found[rank] = error
            if isinstance(error, threading.BrokenBarrierError):
                raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
