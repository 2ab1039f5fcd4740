"""Two data sets with parameters in common: python examples/shared_parameters.py

The rate of an enzyme is measured without an inhibitor, at twelve concentrations of its substrate,
and with one, at nine others, by another instrument with other noise. Both depend on the highest
rate and on the Michaelis constant, and only the second on the strength of the inhibitor. One fit of
both sets takes x as a dict of arrays of different lengths, and y and sigma one after the other. It
determines the shared parameters better than a fit of one set does. The data are simulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _common as shared
import numpy as np

import lbfgs_xp as lx

TRUTH = {"highest": 42.0, "michaelis": 18.0, "inhibition": 6.5}    # nmol/s, µmol/l, µmol/l
START = {"highest": 30.0, "michaelis": 10.0, "inhibition": 3.0}
INHIBITOR = 10.0    # µmol/l
FREE = np.asarray([2.0, 4.0, 6.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0])
INHIBITED = np.asarray([5.0, 10.0, 20.0, 35.0, 50.0, 80.0, 120.0, 180.0, 250.0])


def rate(substrate: Any, highest: Any, michaelis: Any, inhibition: Any, inhibitor: float) -> Any:
    """Competitive inhibition (Michaelis and Menten)."""
    return highest * substrate / (michaelis * (1.0 + inhibitor / inhibition) + substrate)


def model_of(xp: Any) -> Any:
    """The rates of both sets, one after the other."""

    def model(x: Any, highest: Any, michaelis: Any, inhibition: Any) -> Any:
        parts = [
            rate(x["free"], highest, michaelis, inhibition, 0.0),
            rate(x["inhibited"], highest, michaelis, inhibition, INHIBITOR),
        ]
        return xp.concat(parts, axis=-1)

    return model


def draw(
    y: np.ndarray, sigma: np.ndarray, curves: list[tuple], borders: dict[str, Any],
    out: Path,
) -> None:
    picture = shared.figure(11.0, 4.8)
    if picture is None:
        return
    left, right = picture.subplots(1, 2, width_ratios=[1.35, 1.0])
    n = FREE.size
    parts = {"without inhibitor": (FREE, slice(n)), "with inhibitor": (INHIBITED, slice(n, None))}
    for (name, (x, part)), curve, color, marker in zip(
        parts.items(), curves, (shared.BLUE, shared.VERMILION), "os", strict=True
    ):
        grid, middle, low, high = curve
        left.errorbar(x, y[part], sigma[part], fmt=marker, color=color, markersize=4, label=name)
        left.plot(grid, middle, color=color)
        left.fill_between(grid, low, high, color=color, alpha=0.25, linewidth=0)
    left.set(xlabel="substrate (µmol/l)", ylabel="rate (nmol/s)", ylim=(0.0, 45.0),
             title="one fit of both sets, with its 95 % band")
    left.legend(frameon=False, loc="lower right")
    for (name, border), color, dash in zip(
        borders.items(), (shared.BLUE, shared.GREEN), ("--", "-"), strict=True
    ):
        right.plot(*border.T, dash, color=color, linewidth=1.8, label=name)
    right.plot(TRUTH["highest"], TRUTH["michaelis"], "*", color=shared.BLACK, markersize=11,
               label="truth")
    right.set(xlabel="highest rate (nmol/s)", ylabel="Michaelis constant (µmol/l)",
              title="68 % regions of the shared parameters")
    right.legend(frameon=False, loc="upper left")
    shared.save(picture, out, "shared_parameters")


def main() -> None:
    options = shared.parser(__doc__).parse_args()
    lib = shared.array_library(options.backend)
    coordinates = {"free": FREE, "inhibited": INHIBITED}
    exact = model_of(np)(coordinates, **TRUTH)
    sigma = np.concatenate([np.full(FREE.size, 0.8), np.full(INHIBITED.size, 0.4)])
    y = exact + sigma * np.random.default_rng(4).normal(size=exact.size)

    x = {name: lib.array(values) for name, values in coordinates.items()}
    both = lx.curve_fit(
        lib.compiled(model_of(lib.xp)), x, lib.array(y), START, sigma=lib.array(sigma),
        absolute_sigma=True,
    )
    n = FREE.size
    alone = lx.curve_fit(
        lambda x, highest, michaelis: rate(x, highest, michaelis, 1.0, 0.0), x["free"],
        lib.array(y[:n]), {name: START[name] for name in ("highest", "michaelis")},
        sigma=lib.array(sigma[:n]), absolute_sigma=True,
    )
    print(f"both sets, {both.n_data} data: {both.status.name}, chi2 {both.chi2:.1f} for "
          f"{both.dof} degrees of freedom, p = {both.p_value:.2f}")
    found, errors = ({name: float(tree[name]) for name in TRUTH} for tree in (both.x, both.stderr))
    shared.against_truth(found, errors, TRUTH)
    print("the first set alone:")
    names = ("highest", "michaelis")
    found, own = ({name: float(tree[name]) for name in names} for tree in (alone.x, alone.stderr))
    shared.against_truth(found, own, {name: TRUTH[name] for name in names})
    ratios = [own[name] / errors[name] for name in names]
    print(f"its errors are {ratios[0]:.2f} and {ratios[1]:.2f} times those of both sets")

    low, high = both.intervals(0.95)
    print(f"95 % interval of the inhibition constant: {float(low['inhibition']):.2f} to "
          f"{float(high['inhibition']):.2f} µmol/l")
    curves, grids = [], (np.linspace(0.0, 90.0, 200), np.linspace(0.0, 260.0, 200))
    for name, grid in zip(coordinates, grids, strict=True):
        at = x | {name: lib.array(grid)}
        part = slice(grid.size) if name == "free" else slice(n, None)
        each = (both.predict(at), *both.band(at, 0.95))
        curves.append((grid, *(shared.host(values)[part] for values in each)))
    borders = {
        name: shared.host(fit.contour("highest", "michaelis"))
        for name, fit in (("first set alone", alone), ("both sets", both))
    }
    draw(y, sigma, curves, borders, options.out)


if __name__ == "__main__":
    main()
