"""Fits as text: parameters with their errors as a paper prints them, and tables of many fits."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.arrays.tree import Layout, flatten_like
from lbfgs_xp.fits.distributions import chi2_above
from lbfgs_xp.fits.intervals import Intervals, IntervalStatus
from lbfgs_xp.fits.names import listed_order
from lbfgs_xp.result import Status

# The significant digits of an error, and the most of a value with its errors.
_DIGITS, _MOST_DIGITS = 2, 17
# Errors that are fewer times the rounding of their value do not add digits to it.
_SHOWN = 10.0
# From which power of ten on, and below which, numbers are printed with an exponent.
_LARGE, _SMALL = 6, -4
# The bins of a histogram of pulls, in standard deviations, and its blocks from empty to full.
_BINS = np.linspace(-4.0, 4.0, 17)
_BLOCKS = " ▁▂▃▄▅▆▇█"


def measured(value: float, *errors: float) -> str:
    """A value with its error, or the errors upwards and downwards, rounded to the digits that the
    smaller one determines.

    >>> measured(2.583635, 0.135412), measured(1.4649, 0.158, 0.147), measured(6.62607e-34, 8e-41)
    ('2.58 ± 0.14', '1.46 +0.16 -0.15', '(6.62607000 ± 0.00000080)e-34')
    """
    value, errors = float(value) + 0.0, tuple(map(float, errors))    # and no -0.0
    known = [error for error in errors if math.isfinite(error) and error > 0.0]
    if not math.isfinite(value) or not known:
        text = f"{value:.6g}"
        return text if not errors else f"{text} " + _with_signs([f"{e:.2g}" for e in errors])
    smallest = min(known)
    if smallest < _SHOWN * sys.float_info.epsilon * abs(value):    # more digits than a number has
        return f"{value:.15g} " + _with_signs([f"{error:.2g}" for error in errors])
    last = _exponent(smallest, _DIGITS) - (_DIGITS - 1)
    size = _exponent(max(abs(value), *known), _DIGITS)
    shift = size if size >= _LARGE or (size < _SMALL and last < _SMALL) else 0
    if last > 0 and not shift:
        shift = size    # digits before the point would say too much
    places = max(shift - last, 0)
    if size - last > _MOST_DIGITS:
        return f"{value:.6g} " + _with_signs([f"{error:.2g}" for error in errors])

    def shown(number: float) -> str:
        # A power of ten of the smallest numbers is no float.
        scaled = Decimal(number).scaleb(-shift) if shift else number
        return f"{scaled:.{places}f}" if math.isfinite(number) else str(number)

    text = f"{shown(value)} {_with_signs([shown(error) for error in errors])}"
    return f"({text})e{shift:+03d}" if shift else text


def _with_signs(errors: Sequence[str]) -> str:
    return f"± {errors[0]}" if len(errors) == 1 else f"+{errors[0]} -{errors[1]}"


def _exponent(number: float, digits: int) -> int:
    """The power of ten of a number that is rounded to these digits."""
    return int(f"{number:.{digits - 1}e}".partition("e")[2])


def listed(fit: Any, tree: Any) -> np.ndarray:
    """The numbers of a tree like p0 in the order of `names`, (p,) or (B, p), on the host."""
    layout = Layout(fit.x, isinstance(fit.message, list))
    leaves = flatten_like(tree, layout.structure)[0]
    shape = (*layout.batch, -1)
    host = [np.reshape(layout.backend.to_host(leaf), shape) for leaf in leaves]
    return np.concatenate(host, axis=-1)[..., listed_order(layout)]


def summary(fit: Any, level: float | None, limit: float, analysis: Any) -> str:
    """See `CurveFit.summary`."""
    limit = checks.number("limit", limit, least=0.0)
    intervals = None if level is None else fit.intervals(level)
    if isinstance(fit.message, list):
        return _of_many(fit, intervals, analysis)
    return _of_one(fit, intervals, limit, analysis)


def _of_one(fit: Any, intervals: Intervals | None, limit: float, analysis: Any) -> str:
    state = "converged" if fit.success else "NOT CONVERGED"
    lines = [
        f"{fit.n_data} data, {fit.n_free} free parameters, {state} in {fit.nit} steps "
        f"({fit.status.name})"
    ]
    if not fit.success:
        lines.append(f"  {fit.message}")
    x, stderr = listed(fit, fit.x), listed(fit, fit.stderr)
    # Without degrees of freedom, nothing is left that measures the errors of the data.
    unscaled = not fit.absolute_sigma and math.isnan(fit.reduced_chi2)
    lost = "error unknown" if unscaled else "not determined"
    # All errors of a perfect fit are 0, too.
    fixed = np.count_nonzero(stderr == 0.0) <= len(x) - fit.n_free
    texts = [_with_error(*pair, fixed, lost) for pair in zip(x, stderr, strict=True)]
    if analysis is not None:
        pressed = analysis.at_bounds(fit.x)[0]
        texts = [
            f"{text} (at its bound)" if there else text
            for text, there in zip(texts, pressed, strict=True)
        ]
    columns = [list(fit.names), texts]
    if intervals is not None:
        ends = [listed(fit, side) for side in intervals]
        status = [listed(fit, side) for side in (intervals.low_status, intervals.high_status)]
        columns.append([
            _with_ends(*each) for each in zip(x, *ends, *status, strict=True)
        ])
    lines += _table(columns)
    if intervals is not None:
        how = "profile likelihood" + ("" if fit.absolute_sigma else " and Student's t")
        lines.append(f"  (intervals by {how}, {100.0 * intervals.level:.4g} %)")
    priors = f" + {fit.chi2_priors:.6g} (priors)" if fit.n_priors else ""
    quality = f"chi2 = {fit.chi2:.6g}{priors}, dof = {fit.dof}, chi2 / dof = {fit.reduced_chi2:.4g}"
    if math.isfinite(fit.p_value):
        quality += f", p = {fit.p_value:.2g}"
    if fit.deviance != fit.chi2:
        quality = f"deviance = {fit.deviance:.6g}, " + quality
    lines.append(quality)
    if not fit.absolute_sigma:
        lines.append("errors are scaled by chi2 / dof (absolute_sigma=False)")
    if math.isfinite(fit.log_likelihood):
        lines.append(f"AIC = {fit.aic:.6g}, BIC = {fit.bic:.6g}")
    return "\n".join([*lines, *_correlations(fit, limit)])


def _with_error(value: float, error: float, fixed: bool, lost: str) -> str:
    if error == 0.0:
        return f"{value:.6g} (fixed)" if fixed else f"{value:.6g} ± 0"
    if not math.isfinite(error):
        return f"{value:.6g} ({lost})"
    return measured(value, error)


def _with_ends(value: float, low: float, high: float, below: int, above: int) -> str:
    if below == above == IntervalStatus.FIXED:
        return ""
    words = {
        IntervalStatus.BOUND: "bound", IntervalStatus.OPEN: "open",
        IntervalStatus.LOWER: "lower minimum elsewhere", IntervalStatus.FAILED: "not found",
    }
    text = measured(value, high - value, value - low)
    if math.isnan(low) and math.isnan(high):
        text = ""
    said = [
        f"{side}: {words[code]}"    # type: ignore[index]
        for side, code in (("high", int(above)), ("low", int(below))) if code in words
    ]
    return f"{text} ({', '.join(said)})".strip() if said else text


def _table(columns: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    return [
        ("  " + "   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
        .rstrip()
        for row in zip(*columns, strict=True)
    ]


def _correlations(fit: Any, limit: float) -> list[str]:
    backend = Backend.of(fit.covariance)
    matrix = np.asarray(backend.to_host(fit.correlation))
    first, second = np.triu_indices(len(fit.names), 1)
    found = matrix[first, second]
    order = np.argsort(-np.abs(np.where(np.isnan(found), 0.0, found)), kind="stable")
    pairs = [
        (f"{fit.names[first[i]]}, {fit.names[second[i]]}", f"{found[i]:+.3f}")
        for i in order if abs(found[i]) > limit
    ]
    if not pairs:
        return []
    texts = [list(each) for each in zip(*pairs, strict=True)]
    return [f"correlations beyond {limit:g}:", *_table(texts)]


# --- many fits -----------------------------------------------------------------------------------


def _of_many(fit: Any, intervals: Intervals | None, analysis: Any) -> str:
    backend = Backend.of(fit.covariance)
    good = np.asarray(backend.to_host(fit.success))
    status = np.asarray(backend.to_host(fit.status))
    lines = [f"{good.size} fits, {int(good.sum())} converged"]
    names = {int(each): each for each in Status}
    for code in np.unique(status):
        count = int(np.sum(status == code))
        what = "" if names[int(code)].success else f": {names[int(code)].message}"
        lines.append(f"  {count} x {names[int(code)].name}{what}")
    if not good.any():
        return "\n".join(lines)
    x, stderr = listed(fit, fit.x)[good], listed(fit, fit.stderr)[good]
    spread = np.quantile(x, [0.15865, 0.84135], axis=0)
    header = ["", "median", "scatter", "median error"]
    rows = [
        [
            name, f"{np.median(x[:, i]):.6g}", f"{0.5 * (spread[1, i] - spread[0, i]):.3g}",
            f"{np.median(stderr[:, i]):.3g}",
        ]
        for i, name in enumerate(fit.names)
    ]
    if intervals is not None:
        header += ["median of the ends", "without end or failed"]
        ends = np.stack([listed(fit, side)[good] for side in intervals])
        for i, row in enumerate(rows):
            finite = np.isfinite(ends[:, :, i]).all(axis=0)
            away = np.abs(ends[:, finite, i] - x[finite, i])
            low, high = np.median(away, axis=1) if finite.any() else (math.nan, math.nan)
            row += [f"+{high:.3g} -{low:.3g}", str(int(np.sum(~finite)))]
    lines += _table([list(each) for each in zip(header, *rows, strict=True)])
    lines.append("  scatter: half the width of the middle 68.27 % of the fits")
    reduced = np.asarray(backend.to_host(fit.reduced_chi2))[good]
    low, middle, high = np.quantile(reduced, [0.05, 0.5, 0.95])
    lines.append(f"chi2 / dof: median {middle:.4g}, 90 % between {low:.4g} and {high:.4g}")
    if analysis is not None:
        lines += _pulls(fit, analysis, good)
    return "\n".join(lines)


def _pulls(fit: Any, analysis: Any, good: np.ndarray) -> list[str]:
    """A histogram of all residuals in units of their standard deviation."""
    pulls = analysis.pulls(fit)[good]
    pulls = pulls[np.isfinite(pulls)]
    if pulls.size == 0:
        return []
    counts, _ = np.histogram(np.clip(pulls, _BINS[0], _BINS[-1]), _BINS)
    heights = np.ceil(counts / counts.max() * (len(_BLOCKS) - 1)).astype(int)
    beyond = 100.0 * np.mean(np.abs(pulls) > 3.0)
    wanted = 100.0 * float(chi2_above(np.asarray(9.0), np.asarray(1)))
    return [
        f"pulls: mean {np.mean(pulls):+.3f}, deviation {np.std(pulls):.3f}, {beyond:.2g} % beyond "
        f"3 (of normal errors {wanted:.2g} %)",
        f"  -4 |{''.join(_BLOCKS[height] for height in heights)}| 4   residuals in units of their "
        "standard deviation",
    ]
