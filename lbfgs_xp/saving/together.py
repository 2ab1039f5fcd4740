"""Checkpoints of one run in many processes.

If all processes walk the same steps, the first one writes the file, and tells the others what it
has read. If each has its piece of the variables, each writes a file of its own, and the first one
then writes a header that names them: by the number of the save, which is in their names, and by
their digests. So a header never refers to pieces of different iterations, and while new pieces are
written, those of the last header stay.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lbfgs_xp.saving import file
from lbfgs_xp.saving.checkpoint import Checkpoint, Keeper, Terminated, keeping
from lbfgs_xp.saving.encoding import Encoder


def keeping_together(
    checkpoint: Checkpoint | None, describe: Callable[[], dict[str, Any]], library: str, team: Any
) -> contextlib.AbstractContextManager[Keeper | None]:
    """`keeping` in the processes of a team, for a checkpoint that was checked; None: in one process
    alone."""
    if checkpoint is None or team is None:
        return keeping(checkpoint, describe, library)
    kind = PiecesKeeper if team.engine.sharded else TogetherKeeper
    return kind(checkpoint, describe(), library, team)


class TeamKeeper(Keeper):
    """Saves a run in one of many processes.

    A SIGTERM in one of them ends all after the same evaluation, because the messages of the run say
    so.

    team : the processes, as in `lbfgs_xp.distributed.team`.
    """

    def __init__(self, checkpoint: Checkpoint, problem: dict[str, Any], library: str, team: Any):
        super().__init__(checkpoint, problem, library)
        self._team, self._engine = team, team.engine

    def visit(self, position: Any, advanced: int) -> None:
        self._since += advanced
        ends = self._team.is_terminated()
        if self._is_due() or ends:
            self.save(position)
        if ends:
            self._current = lambda: None
            raise Terminated

    def _receive(self) -> None:
        """Note a SIGTERM, and let the next message say so."""
        self.terminated = self._team.terminated = True


class TogetherKeeper(TeamKeeper):
    """Saves a run whose processes walk the same steps: the first one has the file."""

    def _open(self) -> None:
        told: Any = None
        if self._engine.rank == 0:
            told = _tried(super()._open)
        told, saved = self._engine.broadcast((told, self.saved))
        if told is not None:
            raise told
        if saved is not None and self._engine.rank > 0:
            # An engine may pass the same arrays to all.
            self.saved = saved._replace(arrays=[array.copy("K") for array in saved.arrays])

    def _is_due(self) -> bool:
        return self._engine.rank == 0 and super()._is_due()

    def save(self, position: Any) -> None:
        if self._engine.rank == 0:
            super().save(position)


class PiecesKeeper(TeamKeeper):
    """Saves a run of which each process has its piece of the variables.

    All save after the same evaluation: which one, the messages of the run say.
    """

    def __init__(self, checkpoint: Checkpoint, problem: dict[str, Any], library: str, team: Any):
        super().__init__(checkpoint, problem, library, team)
        # The number of the last save, and those to which headers refer, the newest first.
        self._number, self._kept = 0, [0]
        self._headers: list[dict[str, Any]] = []

    # --- files ---------------------------------------------------------------------------------

    def _piece(self, number: int, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}-{rank}of{self._engine.size}")

    def _remove_others(self) -> None:
        """Remove the pieces of this process to which no header refers, and what is left of some."""
        own = f"{self._engine.rank}of{self._engine.size}"
        piece = re.compile(rf"\.?{re.escape(self.path.name)}\.(\d+)-{own}(\.[^.]+\.part)?")
        for path in self.path.parent.iterdir():
            match = piece.fullmatch(path.name)
            if match and (match[2] or int(match[1]) not in (self._number, *self._kept)):
                with contextlib.suppress(OSError):
                    path.unlink()

    # --- when a run begins, and when it ends ---------------------------------------------------

    def _open(self) -> None:
        """Take the path in the first process; then read the same save in all."""
        told, headers = None, []
        if self._engine.rank == 0:
            told, headers = _tried(super()._open), self._headers
        told, headers = self._engine.broadcast((told, headers))
        if told is None:
            told = self._find_pieces(headers)
        if told is not None:
            raise told
        self._remove_others()

    def _find(self) -> None:
        """Collect the headers, the newest first."""
        for path, header, _ in self._whole_files():
            self._check_header(path, header)
            self._headers.append(header)

    def _check_header(self, path: Path, header: dict[str, Any]) -> None:
        size = self._engine.size
        if "processes" not in header:
            raise ValueError(
                f"{path} holds a run whose variables are in one piece; wanted that of a run with "
                "sharded=True, or another path"
            )
        if header["processes"] != size:
            raise ValueError(
                f"{path} was saved by {header['processes']} processes, and here are {size}; wanted "
                "as many, each with the same piece of the variables, or another path"
            )

    def _find_pieces(self, headers: list[dict[str, Any]]) -> Exception | None:
        """Read the piece of this process in the newest save that is whole in all; return an error,
        the same in all, if there is none."""
        damaged: Exception | None = None
        for header in headers:
            told = _tried(functools.partial(self._read_piece, header))
            errors = [error for error in self._engine.gather(told) if error is not None]
            if not errors:
                if damaged is not None:
                    warnings.warn(
                        f"{damaged}; the run goes on from the save before it", RuntimeWarning,
                        stacklevel=2,
                    )
                self._kept = [each["save"] for each in headers]
                self._number = max(self._kept)
                return None
            self.saved = None
            if others := [error for error in errors if not isinstance(error, file.Damaged)]:
                return others[0]
            damaged = damaged or errors[0]
        return None if damaged is None else ValueError(
            f"{damaged}; wanted the files that a run has saved, or none, to begin anew"
        )

    def _read_piece(self, header: dict[str, Any]) -> None:
        rank = self._engine.rank
        path = self._piece(header["save"], rank)
        try:
            own, arrays = file.read(path)
        except FileNotFoundError:
            raise file.Damaged(f"{path} is missing, the piece of process {rank}") from None
        if own["digest"] != header["digests"][rank]:
            raise file.Damaged(f"{path} is not the piece to which {self.path} refers")
        self._check(path, own)
        self._take(own, arrays)

    # --- while it runs -------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return self._team.is_due(super()._is_due())

    def save_if_intact(self) -> None:
        self.save_last(self._current())

    def save_last(self, position: Any) -> None:
        super().save_last(position)
        with contextlib.suppress(Exception):    # a process may have ended
            self._kept = self._engine.broadcast(self._kept)
            self._remove_others()

    def save(self, position: Any) -> None:
        """Save the position if all processes are at the same one."""
        began = time.perf_counter()
        self._team.due = False
        told = None
        try:
            found = self._engine.gather(None if position is None else position.counts())
            if any(counts is None or counts != found[0] for counts in found):
                return
            told = self._save_together(position)
        except Exception as error:    # in an exchange with a process that has ended
            told = f"{type(error).__name__}: {error}"
        if told is not None:
            self._warn(told)
        self._wait(time.perf_counter() - began)

    def _save_together(self, position: Any) -> str | None:
        """Write the pieces, and then the header; return what went wrong in any process."""
        number, rank = self._number + 1, self._engine.rank
        path, digest = self._piece(number, rank), ""

        def write() -> None:
            nonlocal digest
            encoder = Encoder()
            data = encoder(position, "the run")
            digest = file.write(
                path, {**self._header(position), "position": data}, encoder.arrays
            )

        told = _tried(write)
        found = self._engine.gather((told and f"{type(told).__name__}: {told}", digest, self._kept))
        # Those of the first process, which knows whether its headers could be written.
        self._kept = found[0][2]
        if failed := [text for text, *_ in found if text is not None]:
            with contextlib.suppress(OSError):
                path.unlink()
            return failed[0]
        self._number = number
        self._remove_others()
        if rank == 0:
            header = {
                **self._header(position), "save": number, "processes": self._engine.size,
                "digests": [digest for _, digest, _ in found],
            }
            file.write(self.path, header, (), self.settings.keep)
            self._kept = [number, *self._kept][: self.settings.keep]
        return None


def _tried(function: Callable[[], None]) -> Exception | None:
    """What a function raises; None if it does not."""
    try:
        function()
    except Exception as error:
        return error
    return None
