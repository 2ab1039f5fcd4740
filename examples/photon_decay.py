"""Decays of fluorescence from a few hundred photons: python examples/photon_decay.py

Photons are counted by the time after a flash, in 60 bins, most of which stay nearly empty. The
likelihood of such data is that of Poisson. Least squares with the square roots of the counts as
errors gives too short lifetimes, because bins that happen to be low count most. A thousand decays
are fitted in both ways, as one batch each. Their intervals by profile likelihood hold the truth as
often as they say, and a background below a photon per bin, which may not be negative, has intervals
too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import _common as shared
import numpy as np

import lbfgs_xp as lx

EDGES = np.linspace(0.0, 15.0, 61)    # ns
NAMES = ("photons", "lifetime", "ground")
TRUTH = {"photons": 250.0, "lifetime": 2.4, "ground": 0.4}    # of photons, ns, photons per bin
ONE = 0.6827


def model_of(xp: Any) -> Any:
    """The expected counts in bins, from their edges."""

    def model(edges: Any, photons: Any, lifetime: Any, ground: Any) -> Any:
        left = xp.exp(-edges / lifetime)
        return photons * (left[..., :-1] - left[..., 1:]) + ground

    return model


def simulated(count: int) -> np.ndarray:
    """Counts (count, 60) of photons that are drawn one by one."""
    rng, found = np.random.default_rng(1), []
    for _ in range(count):
        times = rng.exponential(TRUTH["lifetime"], rng.poisson(TRUTH["photons"]))
        others = rng.uniform(0.0, EDGES[-1], rng.poisson(TRUTH["ground"] * (EDGES.size - 1)))
        found.append(np.histogram(np.concatenate([times, others]), EDGES)[0])
    return np.asarray(found, dtype=float)


def draw(
    counts: np.ndarray, one: Any, curve: np.ndarray, band: list[np.ndarray],
    lifetimes: dict[str, np.ndarray], out: Path,
) -> None:
    picture = shared.figure(11.0, 4.6)
    if picture is None:
        return
    left, middle, right = picture.subplots(1, 3, width_ratios=[1.25, 1.0, 0.9])
    centers = 0.5 * (EDGES[1:] + EDGES[:-1])
    left.stairs(counts, EDGES, color="#555555", label="photons")
    left.plot(centers, curve, color=shared.VERMILION, label="fit")
    left.fill_between(centers, *band, color=shared.VERMILION, alpha=0.3, linewidth=0,
                      label="68 % band")
    # On the scale of square roots, the noise of counts is the same everywhere.
    left.set_yscale("function", functions=(np.sqrt, np.square))
    left.set(ylim=(0.0, 40.0), xlabel="time (ns)", ylabel="photons in a bin (scale: square root)",
             title=f"{int(counts.sum())} photons", yticks=[0, 1, 2, 5, 10, 20, 30, 40])
    left.legend(frameon=False)
    bins = np.linspace(1.3, 3.2, 39)
    for (name, values), color in zip(
        lifetimes.items(), (shared.BLUE, shared.ORANGE), strict=True
    ):
        middle.hist(values, bins, histtype="stepfilled", alpha=0.45, color=color,
                    label=f"{name}, {np.mean(values):.2f} ns")
    middle.axvline(TRUTH["lifetime"], color=shared.BLACK, linestyle="--", linewidth=1.0,
                   label=f"truth, {TRUTH['lifetime']:.2f} ns")
    middle.set(xlabel="lifetime (ns)", ylabel="fits", title=f"{len(values)} fits in each way")
    middle.set_ylim(0.0, 1.35 * middle.get_ylim()[1])
    middle.legend(loc="upper left", framealpha=1.0, edgecolor="white")
    profile = one.profile("ground", size=41)
    right.plot(profile.values, profile.delta, color=shared.VERMILION, label="profile")
    parabola = ((profile.values - one.x[2]) / one.stderr[2]) ** 2
    right.plot(profile.values, parabola, "--", color=shared.BLACK, linewidth=1.0,
               label="from the standard error")
    low, high = one.intervals(ONE)
    right.axvspan(low[2], high[2], color=shared.SKY, alpha=0.35, linewidth=0, label="68 % interval")
    right.axhline(1.0, color="#888888", linewidth=0.8)
    right.set(xlabel="background (photons per bin)", ylabel="rise of −2 log L", ylim=(0.0, 8.0),
              title="the background of one decay")
    right.legend(frameon=False, loc="upper left", fontsize=9)
    shared.save(picture, out, "photon_decay")


def main() -> None:
    parser = shared.parser(__doc__)
    parser.add_argument("--decays", type=int, help="how many; default: 1000, or 300 if quick")
    options = parser.parse_args()
    count = options.decays or (300 if options.quick else 1000)
    lib = shared.array_library(options.backend)
    counts = simulated(count)
    model, edges = lib.compiled(model_of(lib.xp)), lib.array(EDGES)
    start = np.stack([counts.sum(axis=1), np.full(count, 2.0), np.full(count, 0.5)], axis=-1)
    bounds = ([1.0, 0.1, 0.0], [np.inf, 20.0, np.inf])

    begin = time.perf_counter()
    fits = lx.curve_fit(
        model, edges, lib.array(counts), lib.array(start), likelihood="poisson", bounds=bounds,
        batched=True,
    )
    success = int(shared.host(fits.success).sum())
    print(f"{count} fits with the likelihood of counts: {success} succeeded, "
          f"{time.perf_counter() - begin:.2f} s")
    weighted = lx.curve_fit(
        model, edges, lib.array(counts), lib.array(start), bounds=bounds, batched=True,
        sigma=lib.array(np.sqrt(np.maximum(counts, 1.0))), absolute_sigma=True,
    )
    ways = {"likelihood": fits, "weights": weighted}
    lifetimes = {name: shared.host(fit.x)[:, 1] for name, fit in ways.items()}
    for name, fit in ways.items():
        values, errors = lifetimes[name], shared.host(fit.stderr)[:, 1]
        print(f"  {name:10} lifetime {values.mean():.3f} ns on average, truth "
              f"{TRUTH['lifetime']:.3f}; scatter {values.std():.3f}, median error "
              f"{np.median(errors):.3f}")
    begin = time.perf_counter()
    found = fits.intervals(ONE)
    low, high = (shared.host(side) for side in found)
    print(f"intervals of 68.27 %: {int(shared.host(found.success).sum())} found, "
          f"{time.perf_counter() - begin:.2f} s")
    truth = np.asarray([TRUTH[name] for name in NAMES])
    inside = ((low <= truth) & (truth <= high)).mean(axis=0)
    for name, share in zip(NAMES, inside, strict=True):
        print(f"  {name:9} holds the truth in {100.0 * share:.1f} %")

    one = lx.curve_fit(
        model_of(np), EDGES, counts[0], start[0], likelihood="poisson", bounds=bounds
    )
    draw(counts[0], one, one.predict(), list(one.band()), lifetimes, options.out)


if __name__ == "__main__":
    main()
