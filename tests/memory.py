"""Limits the memory of test processes: what JAX has compiled outlives the test that needed it."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")
_PAGE = 4096
_MEGABYTE = 2**20
# A process may hold this many megabytes before it gives back what it does not need.
_LIMIT = 1200


class Diet:
    """Gives memory back after a test if the process has grown beyond a limit."""

    def __init__(self) -> None:
        self._limit = _LIMIT

    def keep(self) -> None:
        """Free what JAX has compiled, and return freed memory to the system. Linux only."""
        if _resident() <= self._limit or "jax" not in sys.modules:
            return
        sys.modules["jax"].clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        # What is left is needed; clearing again at once would only cost time.
        self._limit = max(_LIMIT, _resident() + _LIMIT // 2)


def _resident() -> int:
    """The memory of this process in megabytes, 0 if it is unknown."""
    if not _STATM.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return 0
    return int(_STATM.read_text().split()[1]) * _PAGE // _MEGABYTE
