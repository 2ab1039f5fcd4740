"""A lock on a file, which the system releases when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

try:
    import fcntl
except ImportError:    # on Windows, where nothing stops a second run
    fcntl = None  # type: ignore[assignment]

# The handles of the locks that this process holds.
_HELD: set[int] = set()


def _leave_to_parent() -> None:
    """Close the handles in a process that has been forked, which may live longer."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """The right to write the file at a path, for one run at a time.

    Raises
    ------
    RuntimeError
        On entry, if another run holds it.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path.with_name(f"{path.name}.lock")
        self._for = path
        self._handle: int | None = None

    def __enter__(self) -> Self:
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not self._is_taken(handle):
                os.close(handle)
                raise RuntimeError(
                    f"{self._for} is in use by {self._holder()}; wanted one run for each path"
                )
            # Whoever held it before may have removed the file in the meantime.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                    break
            os.close(handle)
        with contextlib.suppress(OSError):    # on a full disk the lock has no text
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()}".encode())
        self._handle = handle
        _HELD.add(handle)
        return self

    def __exit__(self, *exception: object) -> None:
        handle, self._handle = self._handle, None
        if handle is not None and handle in _HELD:
            _HELD.remove(handle)
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            os.close(handle)

    @staticmethod
    def _is_taken(handle: int) -> bool:
        """Take the lock; whether that succeeded, or the file system knows no locks."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            return self.path.read_text() or "another run"
        return "another run"
