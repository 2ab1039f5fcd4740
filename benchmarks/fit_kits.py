"""Fits of counts, with priors and ties, against lmfit and iminuit: results and times.

    pip install lmfit iminuit; python benchmarks/fit_kits.py

A peak over a background of less than one count in each bin (Poisson, one fit and a loop of them), a
decay with a normal prior, a sum of two lines with tied widths and distance, and the intervals of
many decays and of many spectra by profile likelihood, compared with MINOS in a loop. Without peers:
how often intervals hold the truth, and low counts beside the Cramér-Rao bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lbfgs_xp as lx

BINS = np.linspace(-4.0, 4.0, 80)
ROWS, LOOP = 2000, 50
NAMES = ("a", "center", "width", "ground")
BOX = ([0.0, -4.0, 0.1, 1e-6], [200.0, 4.0, 4.0, 50.0])


def peak(x: Any, a: Any, center: Any, width: Any, ground: Any) -> Any:
    return a * np.exp(-(((x - center) / width) ** 2)) + ground


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = function()
    return found, time.perf_counter() - start


def minuit_of(y: np.ndarray, start: list[float]) -> Any:
    from iminuit import Minuit

    def minus_two_log(a: float, center: float, width: float, ground: float) -> float:
        mean = peak(BINS, a, center, width, ground)
        return 2.0 * float(np.sum(mean - y * np.log(mean)))

    minuit = Minuit(minus_two_log, *start)
    minuit.errordef = 1.0
    minuit.limits = list(zip(*BOX, strict=True))
    minuit.strategy = 1
    minuit.tol = 1e-3
    return minuit.migrad()


def counts() -> None:
    rng = np.random.default_rng(0)
    truth, start = [6.0, 0.3, 0.8, 0.5], [3.0, 0.0, 1.0, 1.0]
    y = rng.poisson(peak(BINS, *truth), size=(ROWS, BINS.size)).astype(float)
    how = {"likelihood": "poisson", "bounds": BOX}
    many, whole = timed(lambda: lx.curve_fit(peak, BINS, y, start, batched=True, **how))
    one, single = timed(lambda: [lx.curve_fit(peak, BINS, row, start, **how) for row in y[:LOOP]])
    theirs, loop = timed(lambda: [minuit_of(row, start) for row in y[:LOOP]])
    valid = np.asarray([m.valid for m in theirs])
    values = np.asarray([list(m.values) for m in theirs])
    errors = np.asarray([list(m.errors) for m in theirs])
    lower = np.asarray([m.fval for m in theirs])
    mean = np.stack([peak(BINS, *row) for row in many.x[:LOOP]])
    ours = 2.0 * np.sum(mean - y[:LOOP] * np.log(mean), axis=-1)
    inside = valid & (np.abs(lower - ours) < 1e-2) & (many.x[:LOOP, 3] > 1e-3)
    apart = np.abs(values - many.x[:LOOP])[inside] / many.stderr[:LOOP][inside]
    print(f"counts, {ROWS} fits: success {int(many.success.sum())}, iminuit valid {valid.sum()} of "
          f"{LOOP}")
    print(f"  largest distance in standard errors where both are at the same minimum: "
          f"{apart.max():.1e} ({inside.sum()} fits)")
    print(f"  median ratio of errors (expected information here, observed there): "
          f"{np.median(errors[inside] / many.stderr[:LOOP][inside], axis=0).round(3)}")
    print(f"  -2 log L above iminuit's: {np.max(ours - lower):.1e}, below: "
          f"{np.max(lower - ours):.1e}")
    print(f"  time for a fit: batch {1e3 * whole / ROWS:.2f} ms, alone "
          f"{1e3 * single / LOOP:.1f} ms, iminuit {1e3 * loop / LOOP:.1f} ms")
    pulls = (many.x - truth) / many.stderr
    print(f"  pulls: mean {pulls.mean(0).round(3)}, deviation {pulls.std(0).round(3)}")
    assert len(one) == LOOP


def ties_and_priors() -> None:
    import lmfit

    rng = np.random.default_rng(1)
    x = np.linspace(-4.0, 4.0, 120)

    def lines(x: Any, a1: Any, a2: Any, c1: Any, c2: Any, w1: Any, w2: Any) -> Any:
        return a1 * np.exp(-(((x - c1) / w1) ** 2)) + a2 * np.exp(-(((x - c2) / w2) ** 2))

    y = lines(x, 2.0, 1.0, -0.8, 1.1, 0.9, 0.9) + 0.05 * rng.normal(size=120)
    start = {"a1": 1.0, "a2": 1.0, "c1": -1.0, "c2": 0.0, "w1": 1.0, "w2": 0.0}
    ties = {"c2": lambda p: p["c1"] + 1.9, "w2": lambda p: p["w1"]}
    fit, ours = timed(lambda: lx.curve_fit(lines, x, y, start, ties=ties, sigma=0.05,
                                           absolute_sigma=True))
    model = lmfit.Model(lines)
    params = model.make_params(**start)
    params["c2"].expr, params["w2"].expr = "c1 + 1.9", "w1"
    theirs, other = timed(lambda: model.fit(y, params, x=x, weights=1.0 / 0.05, scale_covar=False))
    apart = max(abs(fit.x[n] - theirs.params[n].value) / fit.stderr[n] for n in start)
    ratio = [theirs.params[n].stderr / fit.stderr[n] for n in start]
    print(f"ties: {apart:.1e} standard errors from lmfit, errors within "
          f"{max(abs(np.asarray(ratio) - 1.0)):.1e}; {1e3 * ours:.1f} ms, lmfit "
          f"{1e3 * other:.1f} ms")

    from iminuit import Minuit
    from iminuit.cost import LeastSquares, NormalConstraint

    t = np.linspace(0.0, 4.0, 50)

    def decay(t: Any, a: Any, k: Any, c: Any) -> Any:
        return a * np.exp(-k * t) + c

    y = decay(t, 2.5, 0.6, 0.5) + 0.05 * rng.normal(size=50)
    fit, ours = timed(lambda: lx.curve_fit(
        decay, t, y, {"a": 1.0, "k": 1.0, "c": 0.0}, sigma=0.05, absolute_sigma=True,
        priors={"k": (0.55, 0.05), ("a", "c"): ([2.5, 0.5], [[0.01, -0.004], [-0.004, 0.01]])},
    ))
    cost = LeastSquares(t, y, 0.05, decay) + NormalConstraint("k", 0.55, 0.05) + NormalConstraint(
        ["a", "c"], [2.5, 0.5], [[0.01, -0.004], [-0.004, 0.01]]
    )
    minuit, other = timed(lambda: Minuit(cost, a=1.0, k=1.0, c=0.0).migrad())
    minuit.hesse()
    apart = max(abs(fit.x[n] - minuit.values[n]) / fit.stderr[n] for n in "akc")
    ratio = [minuit.errors[n] / fit.stderr[n] for n in "akc"]
    total = fit.chi2 + fit.chi2_priors
    print(f"priors: {apart:.1e} standard errors from iminuit, errors within "
          f"{max(abs(np.asarray(ratio) - 1.0)):.1e}, chi2 with priors {total:.6f} and "
          f"{minuit.fval:.6f}; {1e3 * ours:.1f} ms, iminuit {1e3 * other:.1f} ms")


def minos_of(minuits: list[Any]) -> tuple[np.ndarray, float]:
    """The ends (fits, parameters, 2) that MINOS finds, and its processor time for each fit."""
    begin = time.thread_time()
    for minuit in minuits:
        minuit.minos()
    seconds = (time.thread_time() - begin) / len(minuits)
    ends = [
        [[value + error.lower, value + error.upper]
         for value, error in zip(m.values, m.merrors.values(), strict=True)] for m in minuits
    ]
    return np.asarray(ends), seconds


def compared(title: str, fit: Any, truth: np.ndarray, minuits: Callable[[], list[Any]]) -> None:
    """Intervals of a batch beside MINOS: medians of rounds in which both take turns."""
    ours, theirs = [], []
    for _ in range(5):
        begin = time.thread_time()
        low, high = fit.intervals()
        ours.append((time.thread_time() - begin) / len(low))
        ends, seconds = minos_of(minuits())
        theirs.append(seconds)
    per, other = np.median(ours), np.median(theirs)
    mine = np.stack([low, high], axis=-1)[: len(ends)]
    apart = np.abs(ends - mine) / fit.stderr[: len(ends), :, None]
    held = np.mean((low < truth) & (truth < high), axis=0)
    print(f"intervals of {len(low)} {title}: {1e6 * per:.0f} us a fit, MINOS {1e6 * other:.0f}, "
          f"{other / per:.1f} times")
    print(f"  apart by at most {apart.max():.1e} standard errors; without an end "
          f"{int(np.sum(~np.isfinite(low) | ~np.isfinite(high)))}; they hold the truth in "
          f"{', '.join(f'{share:.1%}' for share in held)}")


def intervals(count: int = 10_000) -> None:
    from iminuit import Minuit
    from iminuit.cost import LeastSquares

    rng, t = np.random.default_rng(2), np.linspace(0.0, 4.0, 50)

    def decay(t: Any, a: Any, k: Any, c: Any) -> Any:
        return a * np.exp(-k * t) + c

    truth, start = rng.uniform([1.0, 0.5, 0.0], [3.0, 2.0, 0.5], size=(count, 3)), [2.0, 1.0, 0.2]
    y = decay(t, *truth.T[..., None]) + 0.05 * rng.normal(size=(count, t.size))

    def of_decays() -> list[Any]:
        found = [Minuit(LeastSquares(t, row, 0.05, decay), *start) for row in y[:LOOP]]
        for minuit in found:
            minuit.tol = 1e-3
            minuit.migrad()
        return found

    fit = lx.curve_fit(decay, t, y, start, sigma=0.05, absolute_sigma=True, batched=True)
    compared("decays, 50 points, 3 parameters", fit, truth, of_decays)
    truth, start = np.asarray([60.0, 0.3, 0.8, 5.0]), [30.0, 0.0, 1.0, 1.0]
    counts = rng.poisson(peak(BINS, *truth), size=(count, BINS.size)).astype(float)
    fit = lx.curve_fit(
        peak, BINS, counts, start, batched=True, likelihood="poisson", bounds=BOX
    )
    compared("spectra, 80 bins, 4 parameters", fit, truth, lambda: [
        minuit_of(row, start) for row in counts[:LOOP]
    ])


def coverage(count: int = 40_000) -> None:
    t, truth = np.linspace(0.0, 4.0, 50), np.asarray([2.5, 1.3, 0.5])

    def decay(t: Any, a: Any, k: Any, c: Any) -> Any:
        return a * np.exp(-k * t) + c

    y = decay(t, *truth) + 0.05 * np.random.default_rng(7).normal(size=(count, t.size))
    fit = lx.curve_fit(decay, t, y, [2.0, 1.0, 0.2], sigma=0.05, absolute_sigma=True, batched=True)
    low, high = fit.intervals()
    held = np.mean((low < truth) & (truth < high), axis=0)
    print(f"intervals of {count} decays hold the truth in "
          f"{', '.join(f'{share:.1%}' for share in held)}, nominally in 68.3%")


def low_counts(count: int = 10_000) -> None:
    x, truth = np.linspace(0.0, 5.0, 60), np.asarray([4.0, 1.0])

    def rate(x: Any, a: Any, k: Any) -> Any:
        return a * np.exp(-k * x)

    mean = rate(x, *truth)
    y = np.random.default_rng(7).poisson(mean, size=(count, x.size)).astype(float)
    fit = lx.curve_fit(rate, x, y, [3.0, 0.7], likelihood="poisson", batched=True,
                       bounds=([1e-6, 1e-3], [1e3, 1e2]))
    slopes = np.stack([mean / truth[0], -x * mean], axis=-1)
    bound = np.sqrt(np.diag(np.linalg.inv(slopes.T @ (slopes / mean[:, None]))))
    ends = np.quantile(fit.x, [0.15865, 0.84135], axis=0)
    middle, error = 0.5 * (ends[1] - ends[0]) / bound, np.median(fit.stderr, axis=0) / bound
    print(f"counts, {np.mean(mean < 1.0):.0%} of the bins expect less than one: "
          f"{int(fit.success.sum())} of {count} fits succeed;")
    print(f"  over the Cramer-Rao bound: half the middle 68.27% {middle.round(3)}, deviation "
          f"{(fit.x.std(axis=0) / bound).round(3)}, median error {error.round(3)}")


if __name__ == "__main__":
    coverage()
    low_counts()
    counts()
    ties_and_priors()
    intervals()
