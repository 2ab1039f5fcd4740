"""The status line of a fit, for `progress=True`."""

from __future__ import annotations

from typing import Any

from lbfgs_xp.run.progress import Live


class QuestionLine(Live):
    """The line of a question to a fit, such as a contour: how many steps its fits have taken.

    question : what the line calls it.
    """

    def __init__(self, shown: bool, question: str):
        super().__init__(shown, self._text)
        self._question, self._steps = question, 0

    def _text(self, record: Any) -> str:
        self._steps += 1
        return f"{self._question}  steps {self._steps}"


class FitLine(Live):
    """The line; for a batch that is fitted in pieces, it counts the fits of those that are done.

    total : how many fits there are.
    """

    def __init__(self, shown: bool, total: int):
        super().__init__(shown, self._text)
        self._total, self._done = total, 0

    def count(self, fits: int) -> None:
        """Count fits that are done."""
        self._done = min(self._done + fits, self._total)

    def _text(self, record: Any) -> str:
        if isinstance(record.cost, float):
            return f"step {record.nit}  calls {record.nfev}  cost {record.cost:.9g}"
        here = record.cost.shape[0]
        text = f"{here} of {self._total} fits" if here < self._total else f"{here} fits"
        done = f"  {self._done} done" if self._done else ""
        return f"{text}  steps {int(record.nit.max())}  calls {record.nfev}{done}"
