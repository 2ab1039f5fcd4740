"""Dose-response curves of hundreds of compounds at once: python examples/dose_response.py

A screen measures the response to each compound at ten doses, three times each, with known noise.
The curve has four parameters: bottom, top, slope, and the dose of half the effect, as its logarithm
`ic50`. All compounds are one batch, and so are their intervals by profile likelihood. If the doses
do not reach far enough, such an interval is wide on one side, which a standard error cannot show.
The data are simulated, so one can count how many intervals hold the truth.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import _common as shared
import numpy as np

import lbfgs_xp as lx

NAMES = ("bottom", "top", "slope", "ic50")
DOSES = np.linspace(-9.0, -4.5, 10)    # log10 of mol/l
REPEATS, NOISE = 3, 6.0
LEVEL = 0.95


def model_of(xp: Any) -> Any:
    """The response (%) at the logarithm of a dose."""

    def model(dose: Any, bottom: Any, top: Any, slope: Any, ic50: Any) -> Any:
        return bottom + (top - bottom) / (1.0 + xp.exp(2.302585 * slope * (dose - ic50)))

    return model


def simulated(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Doses (30,), responses (count, 30) and the true parameters (count, 4)."""
    rng = np.random.default_rng(5)
    truth = np.stack([
        rng.normal(5.0, 4.0, count), rng.normal(100.0, 6.0, count), rng.uniform(0.7, 1.6, count),
        rng.uniform(-8.2, -4.6, count),
    ], axis=-1)
    dose = np.tile(DOSES, REPEATS)
    mean = model_of(np)(dose, *(truth[:, i, None] for i in range(4)))
    return dose, mean + NOISE * rng.normal(size=mean.shape), truth


def draw(
    dose: np.ndarray, y: np.ndarray, truth: np.ndarray, x: np.ndarray, low: np.ndarray,
    high: np.ndarray, curves: np.ndarray, grid: np.ndarray, out: Path,
) -> None:
    picture = shared.figure(12.0, 6.2)
    if picture is None:
        return
    left, right = picture.subfigures(1, 2, width_ratios=[1.45, 1.0])
    panels = left.subplots(3, 4, sharex=True, sharey=True)
    # From the most effective to the least.
    chosen = np.argsort(truth[:, 3])[np.linspace(0, len(truth) - 1, 12).astype(int)]
    for ax, i in zip(panels.flat, chosen, strict=True):
        ax.axvspan(max(low[i], -9.3), min(high[i], -4.2), color=shared.SKY, alpha=0.35, linewidth=0)
        ax.plot(dose, y[i], ".", color="#555555", markersize=4)
        ax.plot(grid, curves[i], color=shared.VERMILION, linewidth=1.6)
        ax.axvline(truth[i, 3], color=shared.BLACK, linewidth=0.9, linestyle="--")
        ax.set(xlim=(-9.3, -4.2), ylim=(-20.0, 130.0), title=f"compound {i}")
        ax.title.set_fontsize(9)
    left.supxlabel("log₁₀ dose (mol/l)")
    left.supylabel("response (%)")
    left.suptitle(f"fits, their {100 * LEVEL:.0f} % intervals of ic50, and the truth (dashed)")

    ax = right.subplots()
    inside = (low <= truth[:, 3]) & (truth[:, 3] <= high)
    for keep, color, name in (
        (inside, shared.BLUE, "truth inside"), (~inside, shared.VERMILION, "truth outside"),
    ):
        ax.vlines(truth[keep, 3], low[keep], high[keep], color=color, linewidth=0.7, alpha=0.6)
        ax.plot(truth[keep, 3], x[keep, 3], "o", color=color, markersize=2.5,
                label=f"{name}: {keep.sum()}")
    ax.plot([-8.3, -4.5], [-8.3, -4.5], color=shared.BLACK, linewidth=0.9, linestyle="--")
    ax.set(xlabel="true ic50", ylabel="fitted ic50, with its interval", ylim=(-9.2, -3.5))
    ax.axhline(DOSES[-1], color="#888888", linewidth=0.8, linestyle=":")
    ax.annotate("highest dose", (-8.3, DOSES[-1]), (0, 3), textcoords="offset points", fontsize=8)
    ax.legend(frameon=False, loc="upper left")
    shared.save(picture, out, "dose_response")


def main() -> None:
    parser = shared.parser(__doc__)
    parser.add_argument("--compounds", type=int, help="how many; default: 600, or 200 if quick")
    options = parser.parse_args()
    count = options.compounds or (200 if options.quick else 600)
    lib = shared.array_library(options.backend)
    dose, y, truth = simulated(count)
    guess = np.stack([
        y.min(axis=1), y.max(axis=1), np.ones(count), np.full(count, DOSES.mean()),
    ], axis=-1)
    start = time.perf_counter()
    fits = lx.curve_fit(
        lib.compiled(model_of(lib.xp)), lib.array(dose), lib.array(y), lib.array(guess),
        sigma=NOISE, absolute_sigma=True, batched=True,
        bounds=([-50.0, 50.0, 0.2, -10.0], [50.0, 150.0, 5.0, -2.0]),
    )
    success = shared.host(fits.success)
    seconds = time.perf_counter() - start
    print(f"{count} fits in {seconds:.2f} s; {int(success.sum())} succeeded")
    start = time.perf_counter()
    found = fits.intervals(LEVEL)
    low, high, x = (shared.host(each) for each in (found.low, found.high, fits.x))
    seconds = time.perf_counter() - start
    print(f"their intervals in {seconds:.2f} s; {int(shared.host(found.success).sum())} found")
    for i, name in enumerate(NAMES):
        inside = (low[:, i] <= truth[:, i]) & (truth[:, i] <= high[:, i])
        status = np.stack([shared.host(s)[:, i] for s in (found.low_status, found.high_status)])
        print(f"  {name:7} holds the truth in {100.0 * inside.mean():5.1f} % of the fits; "
              f"a bound is an end in {int((status == lx.IntervalStatus.BOUND).any(axis=0).sum())}")
    shown = lib.array(np.linspace(-9.3, -4.2, 120))
    curves = shared.host(fits.predict(shown))
    draw(dose, y, truth, x, low[:, 3], high[:, 3], curves, shared.host(shown), options.out)


if __name__ == "__main__":
    main()
