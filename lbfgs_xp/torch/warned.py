"""Warnings that point at the line of the user."""

from __future__ import annotations

import sys
import warnings

_OURS = (__name__.split(".")[0], "torch", "contextlib")


def warn(message: str) -> None:
    """Warn at the innermost line that belongs neither to this package nor to torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
