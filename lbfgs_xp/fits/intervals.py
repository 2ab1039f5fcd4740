"""What intervals, profiles and contours of a fit return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lbfgs_xp.result import Reason


class IntervalStatus(Reason):
    """What an end of an interval is; `status.message` is a sentence."""

    FOUND = 0, True, "chi2 has risen here as far as the level says"
    BOUND = (
        1,
        True,
        "the bound of the parameter, or the last value for which the model is finite, or that a "
        "tied parameter can take nearby; chi2 has risen by less than the level says",
    )
    OPEN = (
        2,
        True,
        "chi2 does not rise as far as the level says within 10,000 standard errors: there is "
        "no end",
    )
    FIXED = 3, True, "the parameter is fixed"
    LOWER = (
        4,
        False,
        "a point with a lower chi2 was found (see `better`): the fit is not at the minimum, and "
        "has no intervals",
    )
    FAILED = (
        5,
        False,
        "no end was found, or the fit itself has failed, or has too few data for a scale of errors",
    )


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The outcome of `fit.intervals()`; unpacked, it is `low, high`.

    Attributes
    ----------
    low, high : like p0
        The ends of the interval of each parameter: for `BOUND` the bound, for `OPEN` -inf or inf,
        for `LOWER` and `FAILED` nan.
    low_status, high_status : like p0, integers
        What each end is; see `lx.IntervalStatus`.
    level : float
        As passed.
    success : bool, or (B,) for a batch
        Whether the status of every end is one of success.
    better : like p0, or None
        Where the lowest chi2 was found, if it is lower than that of the fit: a start for another
        one. In a batch, the rows of other fits hold their x. None if there is no such point.
    """

    low: Any
    high: Any
    low_status: Any
    high_status: Any
    level: float
    success: Any
    better: Any

    def __iter__(self) -> Iterator[Any]:
        return iter((self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Profile:
    """The outcome of `fit.profile()`: how far chi2 rises with one parameter held at values.

    Attributes
    ----------
    name : str
        The parameter.
    values : array (n,), or (B, n) for a batch
        The values at which it was held.
    delta : array like values
        chi2 with all other parameters fitted, minus that of the fit, in units of the scale of the
        errors: 1 at a distance of one standard error, z^2 at those of z, if the model were linear.
        nan if no fit succeeded there.
    x : like p0, with an axis (n,) more, after that of a batch
        All parameters there.
    """

    name: str
    values: Any
    delta: Any
    x: Any = dataclasses.field(repr=False)
