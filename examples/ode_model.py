"""Lynx and hares, a model that solves differential equations: python examples/ode_model.py

The Hudson's Bay Company bought pelts of lynx and of hares for decades. The equations of Lotka and
Volterra describe how the numbers go up and down together, with four rates and two numbers at the
beginning, which are fitted to the years 1900 to 1920 (E. P. Odum 1953, Fundamentals of Ecology).
Errors are shares of the numbers, so logarithms are compared.

SciPy solves the equations by adaptive steps, to a tolerance. Such a model is noisy: its error jumps
from one value of a rate to the next, and differences over the usual short steps show little else.
`lx.curve_fit` measures the noise and chooses its steps for it: with a tolerance of 3e-4 it ends
where it ends with 1e-9. With SciPy's default tolerance, 1e-3, the jumps are so large that no
minimum can be found, and the fit says so. The rates agree, up to the priors, with those that Stan
found (B. Carpenter 2018, Predator-prey population dynamics).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as shared
import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import curve_fit

import lbfgs_xp as lx

HARES = [
    30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1, 40.3, 57.0, 76.6, 52.3, 19.5,
    11.2, 7.6, 14.6, 16.2, 24.7,
]    # in thousands
LYNX = [
    4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4, 8.0, 12.3, 19.5, 45.7, 51.1, 29.7,
    15.8, 9.7, 10.1, 8.6,
]
YEARS = np.arange(1900.0, 1921.0)
START = {"hares": 30.0, "lynx": 4.0, "birth": 0.5, "eaten": 0.02, "death": 0.9, "growth": 0.03}
# The means of the posterior by Stan.
PUBLISHED = {"birth": 0.545, "eaten": 0.028, "death": 0.80, "growth": 0.024}


def model_of(tolerance: float, method: str) -> Callable:
    """The logarithms of the numbers of hares in all years, followed by those of lynx."""

    def model(
        year: np.ndarray, hares: float, lynx: float, birth: float, eaten: float, death: float,
        growth: float,
    ) -> np.ndarray:
        def slope(_: float, n: np.ndarray) -> list[float]:
            return [n[0] * (birth - eaten * n[1]), n[1] * (growth * n[0] - death)]

        solved = solve_ivp(
            slope, (YEARS[0], year[-1]), [float(hares), float(lynx)], t_eval=year, rtol=tolerance,
            method=method,
        )
        if not solved.success:    # a trial that went too far
            return np.full(2 * year.size, np.nan)
        with np.errstate(all="ignore"):
            return np.log(solved.y.ravel())

    return model


def furthest(x: Any, errors: Any, precise: lx.CurveFit) -> tuple[float, float]:
    """How many standard errors the parameters are from those of the precise fit, at most; and the
    ratio of standard errors that is farthest from 1."""
    apart = [abs(x[name] - precise.x[name]) / precise.stderr[name] for name in START]
    ratios = [float(errors[name] / precise.stderr[name]) for name in START]
    return max(map(float, apart)), max(ratios, key=lambda ratio: abs(np.log(ratio)))


def draw(y: np.ndarray, fit: lx.CurveFit, out: Path) -> None:
    picture = shared.figure(11.0, 5.4)
    if picture is None:
        return
    axes = picture.subplot_mosaic(
        [["fit", "plane"], ["rest", "plane"]], width_ratios=[1.6, 1.0], height_ratios=[3.0, 1.0]
    )
    top, rest, right = axes["fit"], axes["rest"], axes["plane"]
    grid = np.linspace(YEARS[0], YEARS[-1], 240)
    curve, low, high = (
        np.exp(each).reshape(2, -1) for each in (fit.predict(grid), *fit.band(grid, 0.95))
    )
    data = np.exp(y).reshape(2, -1)
    scatter = np.sqrt(fit.reduced_chi2)
    for k, (name, color, marker) in enumerate(
        zip(("hares", "lynx"), (shared.BLUE, shared.VERMILION), "os", strict=True)
    ):
        top.plot(YEARS, data[k], marker, color=color, markersize=4.5, label=name)
        top.plot(grid, curve[k], color=color)
        top.fill_between(grid, low[k], high[k], color=color, alpha=0.25, linewidth=0)
        residuals = fit.residuals.reshape(2, -1)[k] / scatter
        rest.plot(YEARS, residuals, marker, color=color, markersize=3.5)
    rest.axhline(0.0, color="#888888", linewidth=0.9)
    top.set(ylabel="pelts (thousands)", title="fit with its 95 % band", ylim=(0.0, 110.0))
    top.tick_params(labelbottom=False)
    top.legend(frameon=False, ncols=2, loc="upper right")
    rest.set(xlabel="year", ylabel="residual / σ", ylim=(-3.5, 3.5))
    for ax in (top, rest):
        ax.set_xticks(np.arange(1900, 1921, 5))
    right.plot(*data, ".-", color="#777777", linewidth=0.7, label="data, year by year")
    right.plot(*curve, color=shared.GREEN, linewidth=1.8, label="orbit of the fit")
    right.set(xlabel="hares (thousands)", ylabel="lynx (thousands)", title="one against the other")
    right.legend(frameon=False, loc="center")
    shared.save(picture, out, "ode_model")


def main() -> None:
    options = shared.parser(__doc__, ["numpy"]).parse_args()
    y = np.log(np.asarray(HARES + LYNX))
    precise: Any = None
    ways = [(1e-9, "DOP853"), (3e-4, "RK45"), (1e-3, "RK45")]
    for tolerance, method in ways[: 2 if options.quick else 3]:
        model = model_of(tolerance, method)
        begin = time.perf_counter()
        fit = lx.curve_fit(model, YEARS, y, START, bounds=(0.0, None))
        precise = precise or fit
        apart, errors = furthest(fit.x, fit.stderr, precise)
        print(f"tolerance {tolerance:g}: {'converged' if fit.success else 'NOT CONVERGED'} "
              f"({fit.status.name}) in {fit.nfev} calls, {time.perf_counter() - begin:.1f} s; "
              f"{apart:.2f} standard errors from the first, its errors {errors:.2g} times those")
        if tolerance > 1e-8 and not options.quick:
            try:
                x, covariance = curve_fit(model, YEARS, y, list(START.values()))
            except RuntimeError as error:
                print(f"  scipy.optimize.curve_fit: {error}")
                continue
            found, own = (
                dict(zip(START, each, strict=True)) for each in (x, np.sqrt(np.diag(covariance)))
            )
            apart, errors = furthest(found, own, precise)
            print(f"  scipy.optimize.curve_fit: {apart:.2f} standard errors from it, its errors "
                  f"{errors:.2g} times those")
    print(f"the numbers scatter by {np.sqrt(precise.reduced_chi2):.0%} around the curve")
    print("against the published means of the posterior:")
    shared.against_truth(precise.x, precise.stderr, PUBLISHED, "published")
    for what, value in (("hares", "death"), ("lynx", "birth")):
        other = {"hares": "growth", "lynx": "eaten"}[what]
        number, error = precise.propagate(lambda p, a=value, b=other: p[a] / p[b])
        print(f"  {what} in equilibrium: {number:.1f} ± {error:.1f} thousand")
    draw(y, precise, options.out)


if __name__ == "__main__":
    main()
