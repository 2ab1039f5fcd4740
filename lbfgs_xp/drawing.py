"""Matplotlib, which is imported when a picture is drawn and not before."""

from __future__ import annotations

from typing import Any

# Okabe & Ito (2008): distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = (
    "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2))
)


def pyplot() -> Any:
    """matplotlib.pyplot; an ImportError says how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install 'lbfgs_xp[plot]'"
        ) from None
    return plt


def axes(ax: Any = None) -> Any:
    """The matplotlib Axes to draw into: `ax`, or those of a new figure."""
    return pyplot().figure(layout="constrained").add_subplot() if ax is None else ax
