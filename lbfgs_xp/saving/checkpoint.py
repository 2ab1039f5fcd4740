"""Checkpoints: when a run saves itself, and how it finds what it has saved."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.checks import Settings
from lbfgs_xp.saving import file
from lbfgs_xp.saving.descriptions import differences
from lbfgs_xp.saving.encoding import Decoder, Encoder
from lbfgs_xp.saving.lock import Lock

_LOG = logging.getLogger("lbfgs_xp")
# Saving takes at most this part of the time of a run.
_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Checkpoint(Settings):
    """Where and how often a run saves itself, to go on after the process has ended.

    Pass it as `checkpoint=` to `lx.minimize`, `lx.train`, `lx.curve_fit` or `lx.least_squares`. A
    run with the same path goes on from the file there, and ends as if it had never stopped: with
    the same bits in the same library (on GPUs, as far as their own sums repeat), and in every
    library with reproducible=True. What was computed since the last save is computed again. A run
    that had ended returns its result at once; a run that ended because a budget was spent goes on
    if the budget is larger now. The logger "lbfgs_xp" of Python's logging tells, at the level INFO,
    if a run goes on from a file, and where.

    A file is written under another name, flushed to the disk and then renamed, so there is a whole
    one at all times (path, or path.1 with `keep`), even if the process or the machine dies. It is
    an npz file with a JSON header, holds no pickles, and is checked by a digest when it is read. A
    run that fails to write it, say because the disk is full, warns and continues. On SIGTERM a run
    in the main thread saves itself, and the process then ends as it would have; an exception or
    Ctrl-C also saves it first.

    Parameters
    ----------
    path : str or path
        The file. Its folder must exist. While a run uses it, there is a file path.lock beside it.
        To begin anew, remove the file.
    seconds : float
        How long to wait, at least, after each save. If a save takes more than 1 % of that, the
        next one comes later, so that saving takes no more than 1 % of the time of the run.
    every : None or int
        Save after this many iterations instead (for a batch, evaluations; in `lx.train`, epochs; in
        fits, trials of a step and pieces of a batch).
    keep : int
        How many files to keep: path, and the ones before it as path.1, path.2, ... If the newest
        is damaged, a run goes on from the one before it.

    Raises
    ------
    ValueError
        When a run begins: if the file was written by a run with other settings or variables; the
        message says what differs. Budgets may differ, and so may the library and the device, and
        another x0 is only warned of. Or if fun has another value where the run stopped.
    RuntimeError
        If another run is using the same path.
    OSError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> problem = lx.problems.rosenbrock(10)
    >>> def solve(maxiter):
    ...     return lx.minimize(problem.value_and_gradient, problem.x0, jac=True, maxiter=maxiter,
    ...                        checkpoint=lx.Checkpoint(path, seconds=10.0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/run.npz"
    ...     first = solve(maxiter=20)     # a process that ends too early
    ...     second = solve(maxiter=1000)  # another one, with the same path
    >>> first.nit, second.status.name
    (20, 'GRADIENT')
    """

    path: Any
    seconds: float = 60.0
    every: int | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        checks.path("path", self.path)
        checks.setting(self, "seconds", checks.seconds)
        checks.setting(self, "every", checks.optional(checks.count), least=1)
        checks.setting(self, "keep", checks.count, least=1)


class Saved(NamedTuple):
    """What a file holds of a run: the data of its position, its arrays on the host, and the library
    of the run."""

    data: Any
    arrays: list[np.ndarray]
    library: str

    def position(self, backend: Backend, like: Any = None) -> Any:
        """The position, with arrays of this backend; `like` as for `Decoder`."""
        return Decoder(self.arrays, backend, self.library, like)(self.data)


class Terminated(BaseException):
    """Raised in a run that has received SIGTERM."""


class Keeper:
    """Saves one run.

    problem : what must be the same in the run that goes on, as returned by `described`. If "start",
        a fingerprint, is another one, this is only warned of.
    library : the name of the array library, for the header.
    saved : what the file holds, if there is one.
    """

    def __init__(self, checkpoint: Checkpoint, problem: dict[str, Any], library: str):
        self.settings = checkpoint
        self.path = checks.path("path", checkpoint.path)
        self.problem, self.library = problem, library
        self.saved: Saved | None = None
        self._due = time.perf_counter() + checkpoint.seconds
        self._since = 0
        self._warned = False
        self.terminated = False
        # Where the run stands; None while it cannot be saved.
        self._current: Callable[[], Any] = lambda: None
        self._lock = Lock(self.path)
        # The process of the run, and what received SIGTERM there before.
        self._process = os.getpid()
        self._before: Any = None

    # --- when a run begins, and when it ends ---------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._lock.__exit__()
            raise
        if _receives_signals():
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: self._handle())
        return self

    def _open(self) -> None:
        """Take the path, and read what is there."""
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {self.path.parent} for the checkpoint; wanted one that exists"
            )
        try:
            self._lock.__enter__()
        except PermissionError as error:
            raise PermissionError(
                f"{self.path.parent} cannot be written ({error.strerror}), where the checkpoint "
                "and its lock belong; wanted another folder"
            ) from None
        file.remove_parts(self.path)
        self._find()

    def __exit__(self, *exception: object) -> None:
        if _receives_signals():
            self._give_back_signal()
        self._lock.__exit__()
        if self.terminated:
            # As if it arrived only now.
            os.kill(os.getpid(), signal.SIGTERM)

    def _find(self) -> None:
        """Read the newest file that is whole, and check that it belongs to this run."""
        for path, header, arrays in self._whole_files():
            self._check(path, header)
            self._take(header, arrays)
            return

    def _whole_files(self) -> Iterator[tuple[Path, dict[str, Any], list[np.ndarray]]]:
        """The path, header and arrays of each file that is whole, the newest first. Damaged ones
        before it are warned of; if there are only such, they are refused."""
        damaged, found = None, False
        for number in range(self.settings.keep):
            path = file.earlier(self.path, number)
            try:
                header, arrays = file.read(path)
            except FileNotFoundError:
                continue
            except file.Damaged as error:
                damaged = damaged or error
                continue
            if damaged is not None and not found:
                warnings.warn(
                    f"{damaged}; the run goes on from the file before it", RuntimeWarning,
                    stacklevel=2,
                )
            found = True
            yield path, header, arrays
        if damaged is not None and not found:
            raise ValueError(
                f"{damaged}; wanted a file that a run has saved, or none, to begin anew"
            )

    def _take(self, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
        """Go on from a file."""
        counts = ", ".join(f"{name} {count}" for name, count in header["counts"].items())
        _LOG.info("%s: the run goes on from what was saved there (%s)", self.path, counts)
        self.saved = Saved(header["position"], arrays, header["library"])

    def _check(self, path: Path, header: dict[str, Any]) -> None:
        if "problem" not in header:
            raise ValueError(
                f"{path} holds what lx.save has written; wanted the checkpoint of a run, or none"
            )
        found = differences(header["problem"], self.problem)
        if other := [text for text in found if not text.startswith("start ")]:
            raise ValueError(
                f"{path} was saved by another run: {'; '.join(other)}; wanted the same settings, "
                "or another path"
            )
        if found:
            warnings.warn(
                f"{path} was saved by a run with another start, and this one goes on from there; "
                "use another path, or remove the file, to begin anew", RuntimeWarning, stacklevel=2,
            )

    # --- while it runs -------------------------------------------------------------------------

    def follow(self, current: Callable[[], Any]) -> None:
        """Begin to keep a run.

        current : returns where it stands, a named tuple with a method `counts` for the header;
            None in the middle of a step.
        """
        self._current = current

    def within(self, iterations: int) -> int:
        """The same number of iterations, or fewer if the run is to be saved before."""
        every = self.settings.every
        return iterations if every is None else min(iterations, max(1, every - self._since))

    def visit(self, position: Any, advanced: int) -> None:
        """Save a run between two evaluations if it is time.

        position : where it stands.
        advanced : how many iterations have ended since the last visit.
        """
        self._since += advanced
        if self.terminated:
            raise Terminated
        if self._is_due():
            self.save(position)

    def _is_due(self) -> bool:
        every = self.settings.every
        return time.perf_counter() >= self._due if every is None else self._since >= every

    def save_if_intact(self) -> None:
        """Save a run that was interrupted, unless this happened in the middle of a step: the last
        file then stands for it."""
        position = self._current()
        if position is not None:
            self.save_last(position)

    def save_last(self, position: Any) -> None:
        """Save a run that ends."""
        self._current = lambda: None
        self.save(position)

    def save(self, position: Any) -> None:
        """Write the file; if that fails, warn."""
        began = time.perf_counter()
        try:
            self._write(position)
        except Exception as error:    # whatever it is, it does not end the run
            self._warn(f"{type(error).__name__}: {error}")
        self._wait(time.perf_counter() - began)

    def _wait(self, taken: float) -> None:
        """Be due again after a while; `taken`: the seconds that the last save took."""
        self._since = 0
        self._due = time.perf_counter() + max(self.settings.seconds, taken / _SHARE)

    def _write(self, position: Any) -> None:
        encoder = Encoder()
        data = encoder(position, "the run")
        header = {**self._header(position), "position": data}
        file.write(self.path, header, encoder.arrays, self.settings.keep)

    def _header(self, position: Any) -> dict[str, Any]:
        return {
            "library": self.library, "problem": self.problem, "counts": position.counts(),
        }

    def _warn(self, told: str) -> None:
        """Warn that a save has failed, once."""
        if not self._warned:
            warnings.warn(
                f"{self.path} could not be written ({told}); the run continues, and tries again "
                "later", RuntimeWarning, stacklevel=3,
            )
        self._warned = True

    # --- SIGTERM -------------------------------------------------------------------------------

    def _handle(self) -> None:
        """Receive a SIGTERM. A process that fun has forked ends as if there were no checkpoint."""
        if os.getpid() == self._process:
            self._receive()
        else:
            self._give_back_signal()
            os.kill(os.getpid(), signal.SIGTERM)

    def _receive(self) -> None:
        """Note a SIGTERM; stop at once if nothing is lost by that. Another one, which may come
        while the run saves itself, changes nothing."""
        is_first, self.terminated = not self.terminated, True
        if is_first and self._current() is not None:
            raise Terminated

    def _give_back_signal(self) -> None:
        # None if it was not set by Python.
        before = signal.SIG_DFL if self._before is None else self._before
        signal.signal(signal.SIGTERM, before)


def _receives_signals() -> bool:
    """Whether this is the main thread, which alone can receive them."""
    return threading.current_thread() is threading.main_thread()


def checked(checkpoint: Any) -> Checkpoint | None:
    """The argument `checkpoint` of a run."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(
            f"checkpoint is {checks.shown(checkpoint)}; wanted lx.Checkpoint(path, ...), or None"
        )
    return checkpoint


def keeping(
    checkpoint: Checkpoint | None, describe: Callable[[], dict[str, Any]], library: str
) -> contextlib.AbstractContextManager[Keeper | None]:
    """A context with the `Keeper` of a run; with None if there is no checkpoint.

    describe : returns `Keeper.problem`.
    """
    checkpoint = checked(checkpoint)
    if checkpoint is None:
        return contextlib.nullcontext()
    return Keeper(checkpoint, describe(), library)
