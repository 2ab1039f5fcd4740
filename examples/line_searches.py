"""Where each line search looks for a step: python examples/line_searches.py

Two functions of one variable that are hard to search, with the trials of every rule:

    bumps    a valley between small waves (Moré & Thuente 1994, eq. 5.3, beta = 0.01, l = 39),
             from a first trial that is too short and from one that is too long
    barrier  -alpha - 0.05 log(1 - alpha), which is NaN from 1 on, from a first trial beyond 1

The first function is nearly flat at 0, which makes the strong Wolfe conditions hard to meet. All
starts on one function form a batch, in which each search proceeds independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import _common as shared
import numpy as np

import lbfgs_xp as lx
from lbfgs_xp.line_search import ACCEPTED

RULES = (
    lx.Fixed(),
    lx.Armijo(),
    lx.Bisection(),
    lx.HagerZhang(),
    lx.StrongWolfe(),
    lx.MoreThuente(xtol=0.0),    # by default it gives up once its bracket is narrow
)


def bumps(alpha: Any, xp: Any) -> tuple[Any, Any]:
    beta, waves = 0.01, 39
    u, w = alpha - 1.0, 0.5 * waves * math.pi
    valley = xp.where(xp.abs(u) < beta, u * u / (2.0 * beta) + 0.5 * beta, xp.abs(u))
    slope = xp.where(xp.abs(u) < beta, u / beta, xp.sign(u))
    wave, wave_slope = xp.sin(w * alpha) / w, xp.cos(w * alpha)
    return valley + (1.0 - beta) * wave, slope + (1.0 - beta) * wave_slope


def barrier(alpha: Any, xp: Any) -> tuple[Any, Any]:
    left = xp.where(alpha < 1.0, 1.0 - alpha, math.nan)
    return -alpha - 0.05 * xp.log(left), -1.0 + 0.05 / left


class Case(NamedTuple):
    """A function, the grid on which it is drawn, and the first trials by the names of their
    pictures."""

    phi: Callable[[Any, Any], tuple[Any, Any]]
    grid: np.ndarray
    scale: str
    starts: dict[str, float]


CASES = {
    "bumps": Case(bumps, np.linspace(0.0, 3.2, 4001), "linear", {"short": 0.1, "long": 3.0}),
    "barrier": Case(barrier, np.geomspace(0.03, 6.0, 4001), "log", {"outside": 4.0}),
}


class Search(NamedTuple):
    """One search on the host: its trials (number, 3) with rows (alpha, phi, slope), and its end."""

    trials: np.ndarray
    alpha: float
    phi: float
    slope: float
    success: bool

    @property
    def end(self) -> str:
        count = len(self.trials)
        return f"{count} trial{'s'[: count > 1]}, {'' if self.success else 'not '}accepted"


def searches(phi: Callable, rule: lx.LineSearch, starts: Any) -> list[Search]:
    """One search from each of the starts, an array."""
    found = lx.line_search(phi, rule, starts)
    trials = np.asarray([[shared.host(part) for part in trial] for trial in found.trials])
    ends = (found.evaluations, found.alpha, found.phi, found.dphi, found.success)
    # Rows that are done repeat their last trial until all are done.
    counts, *rest = (shared.host(end).tolist() for end in ends)
    return [
        Search(trials[:count, :, row], *end)
        for row, (count, *end) in enumerate(zip(counts, *rest, strict=True))
    ]


def acceptable(phi: Callable, rule: lx.LineSearch, grid: Any) -> np.ndarray:
    """Where on the grid the rule accepts: a batch of searches, each with one trial."""
    begun = rule.begin(*phi(0.0 * grid), alpha0=grid)
    return shared.host(rule.advance(begun, *phi(grid)).status == ACCEPTED)


def draw(ax: Any, strip: Any, grid: np.ndarray, values: np.ndarray, accepts: np.ndarray,
         search: Search) -> None:
    """Draw the function with the trials on it, and below it the trials in order."""
    alphas, heights = search.trials[:, 0], search.trials[:, 1]
    numbers = np.arange(1, len(alphas) + 1)
    taken, lost = alphas == search.alpha, ~np.isfinite(heights)
    ax.plot(grid[accepts], values[accepts], ".", color=shared.SKY, markersize=7.0, zorder=0,
            label="where the rule accepts")
    ax.plot(grid, values, color="#777777", linewidth=1.0, zorder=1)
    strip.plot(alphas, numbers, color=shared.BLUE, linewidth=0.6)
    strip.plot(alphas[lost], numbers[lost], "x", color=shared.BLACK, markersize=8.0)
    for axes, y in ((ax, heights), (strip, numbers)):
        axes.plot(alphas[~lost], y[~lost], "o", color=shared.BLUE, markersize=5.0, label="trial")
        axes.plot(alphas[taken], y[taken], "*", color=shared.VERMILION, markersize=14.0,
                  label="the step taken")
        if np.isnan(values).any():
            axes.axvspan(grid[np.isnan(values)][0], grid[-1], color="#e6e6e6", zorder=-1,
                         label="not finite (trial: ×)")
    for alpha, number in zip(alphas, numbers, strict=True):
        strip.annotate(str(number), (alpha, number), (9, 0), textcoords="offset points",
                       va="center", fontsize=8,
                       bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.3})
    strip.set(ylim=(len(numbers) + 0.9, 0.1), yticks=[])


def main() -> None:
    options = shared.parser(__doc__).parse_args()
    lib = shared.array_library(options.backend)
    for name, case in CASES.items():
        grid = case.grid[:: 4 if options.quick else 1]
        firsts = dict(list(case.starts.items())[: 1 if options.quick else None])
        alphas, starts = lib.array(grid), lib.array(list(firsts.values()))

        def phi(alpha: Any, case: Case = case) -> tuple[Any, Any]:
            return case.phi(alpha, lib.xp)

        found, accepts = {}, {}
        for rule in RULES:
            title = type(rule).__name__
            shared.progress(f"{name}: {title}")
            found[title] = searches(phi, rule, starts)
            accepts[title] = acceptable(phi, rule, alphas)
        values = shared.host(phi(alphas)[0])
        shared.progress()

        for row, (start, first) in enumerate(firsts.items()):
            print(f"\n{name}, first trial {first:g}\n{'':12}    alpha      phi    slope")
            picture = shared.figure(13.0, 9.0)
            if picture is not None:
                axes = picture.subplots(4, 3, sharex=True, height_ratios=(3, 2, 3, 2))
                # Pairs of panels: the function, and below it the trials in order.
                places = axes.reshape(2, 2, 3).swapaxes(1, 2).reshape(6, 2)
            for i, title in enumerate(found):
                search = found[title][row]
                print(f"{title:12} {search.alpha:8.4f} {search.phi:8.4f} {search.slope:8.4f}"
                      f"   {search.end}")
                if picture is not None:
                    draw(*places[i], grid, values, accepts[title], search)
                    places[i, 0].set_title(f"{title}: {search.end}", fontsize=10)
            if picture is not None:
                picture.suptitle(f"{name}: first trial {first:g}")
                axes[0, 0].set(xscale=case.scale, xlim=(grid[0], grid[-1]))
                for ax in axes[3]:
                    ax.set_xlabel("step length α")
                for i in (0, 2):
                    axes[i, 0].set_ylabel("φ(α)")
                    axes[i + 1, 0].set_ylabel("trials in order")
                picture.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, frameon=False,
                               loc="outside lower center")
                shared.save(picture, options.out, f"line_searches_{name}_{start}")


if __name__ == "__main__":
    main()
