"""What `lx.diagnose` returns."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, NamedTuple

# How serious a finding is.
GOOD, NOTE, PROBLEM = "good", "note", "problem"
_WIDTH = 96


class Finding(NamedTuple):
    """One property of a function, and what to do about it.

    topic : "call", "value", "gradient", "repeats", "noise", "kinks", "domain", "conditioning",
        "precision", "transfers" or "time".
    severity : "good"; "note", if it costs time or digits; "problem", if it keeps L-BFGS from
        working.
    number : the number that the text is about; nan if there is none.
    text : what was seen, and what to do.
    """

    topic: str
    severity: str
    number: float
    text: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The outcome of `lx.diagnose`; printed, it is a short report.

    Attributes
    ----------
    fit : bool
        Whether nothing was found that keeps L-BFGS from working.
    findings : tuple of Finding
        Each with `topic`, `severity`, `number` and `text`.
    n : int
        The number of variables.
    library, device, dtype : str
        Those of x0.
    value, gradient_norm : float
        At x0; the norm is the largest component.
    gradient_error : float
        The largest difference between the gradient and differences of the value along a direction,
        relative to the slope there; nan if the gradient comes from differences itself.
    noise : float
        The standard deviation of the noise of the value; 0 if it is no more than rounding.
    condition : float
        The condition number of the Hessian at x0: the ratio of the largest to the smallest
        magnitude of its eigenvalues, or, with more than 60 variables, a lower bound of it.
    condition_scaled : float
        The same with each variable in units of `x_scale`; nan with more than 60 variables.
    x_scale : with the structure of x0, or None
        The change of each variable alone that changes the slope by as much as for the others, from
        the curvature along it; for `lx.minimize(..., x_scale=)`.
    seconds, first_seconds : float
        The median time for value and gradient, and the time of the first call.
    nfev : int
        How often fun was called.
    """

    fit: bool
    findings: tuple[Finding, ...]
    n: int
    library: str
    device: str
    dtype: str
    value: float
    gradient_norm: float
    gradient_error: float
    noise: float
    condition: float
    condition_scaled: float
    x_scale: Any
    seconds: float
    first_seconds: float
    nfev: int

    def __repr__(self) -> str:
        plural = "" if self.n == 1 else "s"
        lines = [f"{self.n} variable{plural}, {self.dtype}, {self.library} on {self.device}"]
        signs = {GOOD: "ok     ", NOTE: "note   ", PROBLEM: "PROBLEM"}
        for finding in self.findings:
            head = f"{signs[finding.severity]}  {finding.topic:<13}"
            lines += textwrap.wrap(
                finding.text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
            )
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        problems = sum(finding.severity == PROBLEM for finding in self.findings)
        if not problems:
            return "Fit for L-BFGS."
        what = "1 problem" if problems == 1 else f"{problems} problems"
        return f"Not fit for L-BFGS as it is: {what}, see above."
