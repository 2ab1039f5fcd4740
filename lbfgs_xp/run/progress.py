"""The live status line of `progress=True`: in a terminal, or in the output of a notebook's cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

from lbfgs_xp.result import Record


class Live:
    """One line that follows a run; nothing if `shown` is False.

    line : from a record to the text of the line; by default, the progress of `minimize`.
    """

    def __init__(self, shown: bool, line: Callable[[Any], str] | None = None):
        self.shown = shown
        self._line = line or _line
        self._live: Any = None
        self._next = 0.0
        if shown:
            # Imported here because rich takes longer to import than this library.
            from rich.console import Console
            from rich.live import Live as RichLive

            console = Console()
            # In a notebook, rich's own needs ipywidgets.
            self._live = _Cell() if console.is_jupyter else RichLive(
                console=console, auto_refresh=False
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            console = getattr(self._live, "console", None)
            if console is not None and not console.is_terminal:
                console.line()    # rich ends the line only on a terminal

    def show(self, record: Any) -> None:
        if self._live is None:
            return
        self._live.update(self._line(record))
        # Drawing the line costs more than a small iteration.
        if time.perf_counter() >= self._next:
            self._live.refresh()
            self._next = time.perf_counter() + 0.1


class _Cell:
    """A line of text in the output of a notebook's cell; it has the methods of rich's `Live`."""

    def __init__(self) -> None:
        self._text = ""
        self._shown: Any = None

    def start(self) -> None:
        from IPython.display import display

        self._shown = display({"text/plain": self._text}, raw=True, display_id=True)

    def update(self, text: str) -> None:
        self._text = text

    def refresh(self) -> None:
        self._shown.update({"text/plain": self._text}, raw=True)

    def stop(self) -> None:
        """The line stays."""


def _line(record: Record) -> str:
    if isinstance(record.fun, float):
        return (
            f"iteration {record.nit}  evaluations {record.nfev}  value {record.fun:.9g}  "
            f"gradient {record.gradient_norm:.2e}  step {record.step:.2e}"
        )
    done = [float(number.max()) for number in (record.nit, record.nfev)]
    return f"{record.fun.shape[0]} problems  iterations {done[0]:.0f}  evaluations {done[1]:.0f}"
