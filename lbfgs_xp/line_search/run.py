"""`line_search`, which runs a rule on a given function."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.scalars import FLOATS, Scalar, Scalars
from lbfgs_xp.checks import number, reject_foreign_keywords
from lbfgs_xp.line_search.armijo import Armijo
from lbfgs_xp.line_search.base import ACCEPTED, SEARCHING, LineSearch, Point
from lbfgs_xp.line_search.bisection import Bisection
from lbfgs_xp.line_search.fixed import Fixed
from lbfgs_xp.line_search.hager_zhang import HagerZhang
from lbfgs_xp.line_search.more_thuente import MoreThuente
from lbfgs_xp.line_search.strong_wolfe import StrongWolfe
from lbfgs_xp.typing import LineSearchName

NAMES: dict[str, type[LineSearch]] = {
    "fixed": Fixed,
    "armijo": Armijo,
    "bisection": Bisection,
    "strong_wolfe": StrongWolfe,
    "more_thuente": MoreThuente,
    "hager_zhang": HagerZhang,
}
"""The rules, by the names that may be passed instead of them."""


class LineSearchResult(NamedTuple):
    """The result of `line_search`: Python numbers, or arrays of shape (B,) for a batch.

    alpha, phi, dphi: the accepted step, or else the best trial, with its value and slope; 0.0 and
    the value and slope there if no trial was lower.
    success: whether the rule accepted the step.
    evaluations: the number of trials, not counting the evaluation at 0.
    trials: all trials as (alpha, phi, dphi), in order. Rows of a batch that are done repeat their
    last step.
    """

    alpha: Scalar
    phi: Scalar
    dphi: Scalar
    success: Any
    evaluations: Any
    trials: list[tuple[Scalar, Scalar, Scalar]]


def rule_of(rule: str | LineSearch, name: str = "line_search") -> LineSearch:
    """The rule with that name, with its default constants, or the rule itself.

    name: the name of the argument, for error messages.

    Raises
    ------
    ValueError
        If there is no rule with that name.
    TypeError
        If `rule` is neither a name nor a rule.

    >>> rule_of("armijo").max_evaluations
    30
    """
    if isinstance(rule, LineSearch):
        return rule
    if not isinstance(rule, str):
        raise TypeError(f"{name} is {rule!r}; wanted a name or a LineSearch object")
    if rule not in NAMES:
        near = difflib.get_close_matches(rule.lower().replace("-", "_"), NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name} is {rule!r}; {hint}wanted one of {', '.join(map(repr, NAMES))}")
    return NAMES[rule]()


@reject_foreign_keywords(
    **dict.fromkeys(
        ("c1", "c2", "amax", "alpha_max", "maxiter", "max_iter", "max_evaluations"),
        "a constant of the rule, such as lx.MoreThuente(c2=0.1)",
    ),
)
@on_device_of("alpha0")
def line_search(
    phi: Callable[[Scalar], tuple[Scalar, Scalar]],
    rule: LineSearchName | LineSearch,
    alpha0: Scalar = 1.0,
    *,
    noise: Scalar = 0.0,
) -> LineSearchResult:
    """Search along `phi` from 0 for a step that `rule` accepts.

    phi: maps a step to (value, slope); for a batch, an array (B,) to two arrays (B,). Rows are
    independent.
    rule: a name from `NAMES` or an object such as ``MoreThuente(c2=0.1)``.
    alpha0: the first trial, positive: a Python number, or an array of shape (B,) for a batch.
    noise: how far apart two values may be through rounding alone, such as 1e-15 |phi(0)|.

    Raises
    ------
    ValueError
        If the rule is unknown, or alpha0 is a number that is not positive and finite.
    TypeError
        If `phi` does not return a pair of real scalars, or alpha0 is an array that is not of real
        floats.

    >>> from lbfgs_xp.line_search import line_search
    >>> result = line_search(lambda a: ((a - 3.0) ** 2, 2.0 * (a - 3.0)), "hager_zhang", 0.1)
    >>> result.alpha, result.phi, result.success
    (0.5, 6.25, True)
    """
    if not callable(phi):
        raise TypeError(f"phi is a {type(phi).__name__}; wanted a function of the step length")
    rule = rule_of(rule, "rule")
    if not getattr(noise, "shape", ()):
        noise = number("noise", noise, least=0.0)
    if not getattr(alpha0, "shape", ()):
        alpha0 = number("alpha0", alpha0, above=0.0)
    fn = scalars.of(alpha0)
    if fn is not FLOATS and not fn.xp.isdtype(alpha0.dtype, "real floating"):
        raise TypeError(f"alpha0 has dtype {alpha0.dtype}; wanted real floats")
    start = Point(fn.full(0.0, alpha0), *_evaluate(fn, phi, fn.full(0.0, alpha0)))
    search = rule.begin(start.phi, start.dphi, alpha0, noise)

    trials: list[Point] = []
    while _any(fn, search.status == SEARCHING):
        trials.append(Point(search.alpha, *_evaluate(fn, phi, search.alpha)))
        search = rule.advance(search, trials[-1].phi, trials[-1].dphi)

    success = search.status == ACCEPTED
    alpha = fn.where(success, search.alpha, search.best_alpha)
    end = start
    for trial in trials:
        end = fn.choose(trial.alpha == alpha, trial, end)
    return LineSearchResult(*end, success, search.evaluations, [tuple(t) for t in trials])


def _any(fn: Scalars, mask: Any) -> bool:
    return mask if fn is FLOATS else bool(fn.xp.any(mask))


def _evaluate(fn: Scalars, phi: Callable[[Scalar], Any], alpha: Scalar) -> tuple[Scalar, Scalar]:
    pair = phi(alpha)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"phi returned a {type(pair).__name__}; wanted the pair (value, slope)")
    if fn is not FLOATS:
        for name, value in zip(("value", "slope"), pair, strict=True):
            if getattr(value, "shape", None) != alpha.shape:
                raise TypeError(
                    f"phi returned the {name} {value!r}; wanted an array of shape "
                    f"{tuple(alpha.shape)}"
                )
        return pair[0], pair[1]
    try:
        return float(pair[0]), float(pair[1])
    except (TypeError, ValueError) as error:
        raise TypeError(f"phi returned {pair!r}; wanted two real scalars") from error
