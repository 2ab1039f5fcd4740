"""One run whose variables are divided among processes.

Each process holds its piece of x, of the gradient and of everything else that is as long as x. What
a solver reads of vectors are a few numbers, of which each process knows a part. The parts of all
numbers that are read together travel in one message, with what the processes have to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.pending import Queue
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.distributed.parts import LARGEST, SUM, Part, Tree
from lbfgs_xp.distributed.team import Engine, ProcessFailed, Team

# How many numbers the first message after an evaluation has room for: the value, its slope, and the
# slope at the start of the search.
_ROOM = 3


class ShardedSpace(Space):
    """The space of vectors that are divided among the processes of a team."""

    sharded = True

    def __init__(self, backend: Backend, team: ShardedTeam):
        super().__init__(backend, batched=False)
        self.team = team
        self._key = backend, False, team.engine.size, team.engine.rank
        # Numbers are read by messages, from the host, whose small algebra is the same everywhere.
        self.remote, self.small_on_host, self.small = False, True, np
        self.scalars = scalars.of(0.0)
        self.queue = Queue(backend, self._read)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "the state of a run with sharded=True cannot be pickled or copied; wanted its x, which "
            "lx.save writes in each process"
        )

    # --- parts ---------------------------------------------------------------------------------

    def dot(self, u: Array, v: Array) -> Any:
        return Part(((), super().dot(u, v), SUM))

    def sum(self, u: Array) -> Any:
        return Part(((), super().sum(u), SUM))

    def products(self, rows: Array, vector: Array) -> Any:
        return Part((tuple(rows.shape[:-1]), super().products(rows, vector), SUM))

    def products_in_full(self, rows: Array, *vectors: Array) -> list[Any]:
        found = super().products_in_full(rows, *vectors)
        return [Part(((rows.shape[0],), own, SUM)) for own in found]

    def gram(self, rows: Array) -> Any:
        return Part(((rows.shape[-2],) * 2, super().gram(rows), SUM))

    def max_abs(self, u: Array) -> Any:
        return Part(((), super().max_abs(u) if u.shape[-1] else 0.0, LARGEST))

    # --- whole numbers -------------------------------------------------------------------------

    def read(self, *numbers: Any) -> Sequence[Any]:
        return self.queue.read_with(numbers)

    def later(self, *numbers: Any) -> Sequence[Any]:
        return self.queue.add(numbers)

    def fetch(self, array: Any) -> Array:
        return self.fetch_each(array)[0] if isinstance(array, Part) else super().fetch(array)

    def fetch_each(self, *arrays: Any) -> list[Array]:
        found: list[Array] = []

        def read(numbers: Sequence[Any]) -> list[float]:
            whole = self.team.whole(self.backend, [*arrays, *numbers])
            found.extend(whole[: len(arrays)])
            return [float(number) for number in whole[len(arrays) :]]

        self.queue.read_with((), read)
        return found

    def _read(self, numbers: Sequence[Any]) -> list[float]:
        if any(isinstance(number, Part) for number in numbers):
            numbers = self.team.whole(self.backend, numbers)
        return [float(number) for number in numbers]

    def equal(self, u: Any, v: Any) -> bool:
        if u is v or isinstance(u, float):
            return super().equal(u, v)
        differs = Part(((), 0.0 if super().equal(u, v) else 1.0, LARGEST))
        return self.read(differs)[0] == 0.0

    def cumulative_sum(self, u: Array) -> Array:
        raise NotImplementedError("a cumulative sum of variables that are divided among processes")


class ShardedFixedOrderSpace(ShardedSpace, FixedOrderSpace):
    """The same with all sums in the order of `lx.fixed_sum`, over the pieces of all processes."""

    def dot(self, u: Array, v: Array) -> Any:
        return self._tree((), u * v)

    def sum(self, u: Array) -> Any:
        return self._tree((), u)

    def products(self, rows: Array, vector: Array) -> Any:
        return self._tree(tuple(rows.shape[:-1]), rows * vector[..., None, :])

    def products_in_full(self, rows: Array, *vectors: Array) -> list[Any]:
        return FixedOrderSpace.products_in_full(self, rows, *vectors)

    def gram(self, rows: Array) -> Any:
        return self._tree((rows.shape[-2],) * 2, rows[..., :, None, :] * rows[..., None, :, :])

    def _tree(self, shape: tuple[int, ...], terms: Array) -> Part:
        tree = self.team.tree
        return Part((shape, tree.sent(self.backend, terms), tree))


class ShardedTeam(Team):
    """The processes of one run, each with its piece of the variables.

    A process that fails cannot know which numbers the others will read next. Therefore the first
    message after each evaluation has a fixed length, and it is there that processes hear of each
    other.
    """

    def __init__(self, engine: Engine, layout: Callable[[], Layout]):
        super().__init__(engine, layout)
        self._first = False
        self.tree = Tree([0] * engine.size, engine.rank)
        self._room = _ROOM

    def measure(self, reproducible: bool) -> None:
        """Learn how long the pieces of all processes are."""
        if reproducible:
            lengths = self.engine.gather(self._layout.size)
            self.tree = Tree(lengths, self.engine.rank)
            self._room = 1 + (_ROOM - 1) * self.tree.size(())

    # --- evaluations ---------------------------------------------------------------------------

    def _sum(self, value: Any, gradient: Array) -> tuple[Any, Array]:
        """The value as a part, and the gradient, which is that of the piece."""
        self._first = True
        return Part(((), value, SUM)), gradient

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """As before; `Engine.fixed_sum` then speaks through this team."""
        outer, self.engine.team = self.engine.team, self
        try:
            with super().patient():
                yield
        finally:
            self.engine.team = outer

    # --- messages ------------------------------------------------------------------------------

    def whole(self, backend: Backend, numbers: Sequence[Any]) -> list[np.ndarray]:
        """Numbers from their parts, with at most two messages; others as they are."""
        sent = [
            (term, i) for i, part in enumerate(numbers) if isinstance(part, Part)
            for term in part.terms
        ]
        flat = self._joined(backend, [array for (_, array, _), _ in sent])
        length = flat.shape[0]
        room = self._room if self._first else length
        # Until its first numbers have been read, nothing depends on an evaluation.
        self.in_first_message, self._first = self._first, False
        if length <= room:
            found = self._message(backend, flat, room)
        else:
            pieces = (flat[:room], room), (flat[room:], length - room)
            found = np.concat([self._message(backend, *piece) for piece in pieces], axis=1)
        self.in_first_message = False
        whole: list[Any] = [0.0 if isinstance(n, Part) else np.asarray(n) for n in numbers]
        start = 0
        for (shape, _, rule), i in sent:
            stop = start + rule.size(shape)
            whole[i] = whole[i] + rule.whole(found[:, start:stop], shape)
            start = stop
        return whole

    def collect(self, numbers: np.ndarray) -> np.ndarray:
        """Two numbers of each process, by rank, for `Engine.fixed_sum` in a function of the user.

        The message is like the first one after an evaluation, so that a process that has failed
        before it in its own function is heard.
        """
        backend = self._layout.backend
        own = backend.from_host(numbers, backend.dtype)
        return self._message(backend, own, self._room)[:, : numbers.size]

    def _message(self, backend: Backend, numbers: Array, length: int) -> np.ndarray:
        """These numbers of all processes, by rank, after they have been heard."""
        heard, found = self._send(backend, None, numbers, length)
        self._listen(heard)
        return found

    def _send(
        self, backend: Backend, notice: int | None, numbers: Any, length: int
    ) -> tuple[list[float], np.ndarray]:
        """How many processes say what, and the numbers of all, padded to this length."""
        if self._broken:
            raise ProcessFailed(
                "the run has failed in another process; its hess_inv cannot be multiplied by"
            )
        said = sum(2**k for k, is_so in enumerate(self._notices(notice)) if is_so)
        parts = [backend.full((1,), float(said))]
        if numbers is not None:
            parts.append(numbers)
        if (missing := length - (0 if numbers is None else numbers.shape[0])) > 0:
            parts.append(backend.zeros((missing,)))
        try:
            found = self.engine.collect(backend.join(parts))
        except BaseException:
            self._over = True    # nobody listens any more
            raise
        notices, numbers = found[:, 0].astype(np.int64), found[:, 1:]
        heard = [np.count_nonzero(notices >> k & 1) for k in range(len(self._heard))]
        return list(map(float, heard)), numbers

    def _joined(self, backend: Backend, arrays: Sequence[Any]) -> Array:
        flat = [backend.full((1,), a) if isinstance(a, float) else a for a in arrays]
        return backend.join(flat)

    def _exchange(self, notice: int | None, value: Any, gradient: Any) -> Any:
        backend = self._layout.backend
        return self._send(backend, notice, None, self._room)[0]

    def _read(self, found: Any) -> list[float]:
        return found
