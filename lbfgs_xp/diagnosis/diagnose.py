"""`diagnose`: is a function fit for L-BFGS?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.diagnosis import looks
from lbfgs_xp.diagnosis.probe import Probe
from lbfgs_xp.diagnosis.result import GOOD, PROBLEM, Diagnosis, Finding
from lbfgs_xp.typing import Jacobian


@checks.reject_foreign_keywords()
@on_device_of("x0")
def diagnose(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, jac: Jacobian = None, has_aux: bool = False
) -> Diagnosis:
    """Look at a function around x0, and say whether it is fit for L-BFGS, and what to do if not.

    It checks that fun returns the same finite value each time; compares the gradient with
    differences along a few directions; measures the noise of the value (Moré & Wild 2011); looks
    for kinks, jumps and the end of the domain within half of |x0|; estimates the condition number
    of the Hessian, and whether units of the variables would lower it; and takes the time. That
    takes about 150 evaluations, and 2n more with up to 60 variables. What it sees is local, and no
    proof.

    Parameters
    ----------
    fun, x0, args, jac, has_aux
        As in `lx.minimize`. If the library does not differentiate and there is no `jac`,
        differences are used.

    Returns
    -------
    Diagnosis
        Printed, it is a report. `fit` is the verdict; `findings` and the other fields have the
        numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return 1e6 * x[0] ** 2 + (x[1] - 1.0) ** 2, np.asarray([2e6 * x[0], 2.0 * (x[1] - 1.0)])
    >>> diagnosis = lx.diagnose(fun, np.asarray([1.0, 2.0]), jac=True)
    >>> diagnosis.fit, round(diagnosis.condition), round(diagnosis.condition_scaled)
    (True, 1000000, 1)
    >>> wrong = lx.diagnose(lambda x: (x @ x, x), np.asarray([1.0, 2.0]), jac=True)
    >>> wrong.fit, [each.topic for each in wrong.findings if each.severity == "problem"]
    (False, ['gradient'])
    """
    has_aux = checks.flag("has_aux", has_aux)
    probe = Probe(fun, x0, jac, args, has_aux)
    with np.errstate(all="ignore"):
        return _Patient(probe).examined()


class _Patient:
    """One diagnosis in progress."""

    def __init__(self, probe: Probe):
        self.probe = probe
        self.findings: list[Finding] = []
        self.numbers: dict[str, Any] = dict(
            value=math.nan, gradient_norm=math.nan, gradient_error=math.nan, noise=math.nan,
            condition=math.nan, condition_scaled=math.nan, x_scale=None, seconds=math.nan,
        )

    def examined(self) -> Diagnosis:
        """All that can be said."""
        probe, numbers = self.probe, self.numbers
        try:
            point, findings = looks.at_start(probe)
        except Exception as error:
            self.findings.append(Finding("call", PROBLEM, math.nan, (
                f"fun(x0) raised {type(error).__name__}: {error}"
            )))
            return self._result()
        self.findings += findings
        numbers.update(value=point.value, gradient_norm=float(np.max(np.abs(point.gradient))))
        if any(finding.severity == PROBLEM for finding in findings):
            return self._result()
        same = looks.repeats(probe, point)
        self.findings += same
        if same[0].severity == PROBLEM:
            # Everything else would show this once more.
            return self._result()
        numbers["noise"], noisy = looks.noise_of(probe, point)
        numbers["gradient_error"], gradient = looks.gradient(probe, point, numbers["noise"])
        self.findings += [*gradient, *noisy, *looks.kinks(probe, point, numbers["noise"])]
        smooth = all(each.severity == GOOD for each in self.findings if each.topic == "kinks")
        if smooth and all(each.severity != PROBLEM for each in self.findings):
            seen = looks.conditioning(probe, point)
            numbers.update(condition=seen.condition, condition_scaled=seen.scaled)
            if seen.scale is not None:
                numbers["x_scale"] = probe.nested(seen.scale)
            self.findings += seen.findings
        self.findings += looks.precision(probe, point)
        numbers["seconds"], time = looks.time_of(probe)
        self.findings += [*looks.transfers(probe), *time]
        return self._result()

    def _result(self) -> Diagnosis:
        probe = self.probe
        return Diagnosis(
            fit=all(finding.severity != PROBLEM for finding in self.findings),
            findings=tuple(self.findings), n=probe.layout.size, library=probe.backend.name,
            device=str(probe.backend.device), dtype=probe.dtype_name,
            first_seconds=probe.seconds[0] if probe.seconds else math.nan, nfev=probe.nfev,
            **self.numbers,
        )
