"""A spectrum of six Voigt lines with shared widths: python examples/voigt_spectrum.py

X-ray photoelectrons of sulphur in three chemical states. Each state gives two lines, whose distance
and areas are known from the spin of the electron: 1.18 eV apart, 2 : 1. All lines have the width of
the instrument (Gaussian) and of the hole's lifetime (Lorentzian) in common. `ties` says so, and of
26 parameters 10 are free. The data are counts, so the likelihood is that of Poisson; they are
simulated, and the result is compared with the truth. Another fit, in which each state has widths of
its own, shows what the ties are worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _common as shared
import numpy as np
from scipy.special import voigt_profile

import lbfgs_xp as lx

STATES = ("sulphide", "thiol", "sulphone")
COLORS = (shared.BLUE, shared.ORANGE, shared.GREEN)
LEAST = {"area": 0.0, "gauss": 0.01, "lorentz": 1e-3}
SPLITTING, RATIO = 1.18, 0.5
TRUTH = {
    "sulphide.area": 900.0, "sulphide.center": 161.6, "sulphide.gauss": 0.34,
    "sulphide.lorentz": 0.16, "thiol.area": 1500.0, "thiol.center": 163.5, "sulphone.area": 600.0,
    "sulphone.center": 165.6, "level": 60.0, "slope": 1.5,
}


def line(energy: np.ndarray, area: Any, center: Any, gauss: Any, lorentz: Any) -> np.ndarray:
    """A Voigt line (counts), with a Gaussian of this standard deviation and a Lorentzian of this
    half width at half maximum (both in eV)."""
    return area * voigt_profile(energy - center, gauss, lorentz)


def model(energy: np.ndarray, level: Any, slope: Any, **lines: Any) -> np.ndarray:
    """The expected counts: a background, and lines with their parameters by name."""
    total = level + slope * (energy - 164.0)
    for each in lines.values():
        total = total + line(energy, **each)
    return total


def start() -> dict[str, Any]:
    """First guesses, as read off the spectrum; those of tied parameters are not used."""
    guess: dict[str, Any] = {"level": 50.0, "slope": 0.0}
    for state, center in zip(STATES, (161.5, 163.4, 165.8), strict=True):
        alike = {"area": 800.0, "center": center, "gauss": 0.3, "lorentz": 0.3}
        guess |= {state: alike, f"{state}_partner": dict(alike)}
    return guess


def ties(own_widths: bool) -> dict[str, Any]:
    """What one line says about the others."""
    found: dict[str, Any] = {}
    for state in STATES[1:] if not own_widths else ():
        for width in ("gauss", "lorentz"):
            found[f"{state}.{width}"] = lambda p, width=width: p["sulphide"][width]
    for state in STATES:
        partner = f"{state}_partner"
        found[f"{partner}.area"] = lambda p, state=state: RATIO * p[state]["area"]
        found[f"{partner}.center"] = lambda p, state=state: p[state]["center"] + SPLITTING
        for width in ("gauss", "lorentz"):
            found[f"{partner}.{width}"] = lambda p, state=state, width=width: p[state][width]
    return found


def simulated() -> tuple[np.ndarray, np.ndarray]:
    energy = np.arange(158.5, 169.5, 0.05)
    parameters = start() | {"level": TRUTH["level"], "slope": TRUTH["slope"]}
    for state in STATES:
        parameters[state] = {
            "area": TRUTH[f"{state}.area"], "center": TRUTH[f"{state}.center"],
            "gauss": TRUTH["sulphide.gauss"], "lorentz": TRUTH["sulphide.lorentz"],
        }
        own = parameters[state]
        parameters[f"{state}_partner"] = own | {
            "area": RATIO * own["area"], "center": own["center"] + SPLITTING
        }
    return energy, np.random.default_rng(2).poisson(model(energy, **parameters)).astype(float)


def fitted(energy: np.ndarray, counts: np.ndarray, own_widths: bool) -> lx.CurveFit:
    tied = ties(own_widths)
    least = {
        state: {name: low for name, low in LEAST.items() if f"{state}.{name}" not in tied}
        for state in STATES
    }
    return lx.curve_fit(
        model, energy, counts, start(), likelihood="poisson", ties=tied, bounds=(least, None)
    )


def number(tree: Any, name: str) -> float:
    """The number in nested parameters with a name such as "thiol.center"."""
    for part in name.split("."):
        tree = tree[part]
    return float(tree)


def draw(energy: np.ndarray, counts: np.ndarray, fits: dict[str, lx.CurveFit], out: Path) -> None:
    picture = shared.figure(11.0, 6.0)
    if picture is None:
        return
    axes = picture.subplot_mosaic(
        [["fit", "widths"], ["rest", "widths"]], width_ratios=[2.6, 1.0], height_ratios=[3.0, 1.0]
    )
    fit = fits["shared"]
    top, rest, right = axes["fit"], axes["rest"], axes["widths"]
    top.plot(energy, counts, ".", color="#555555", markersize=3, label="counts", zorder=3)
    base = model(energy, fit.x["level"], fit.x["slope"])
    for state, color in zip(STATES, COLORS, strict=True):
        pair = [line(energy, **fit.x[name]) for name in (state, f"{state}_partner")]
        top.fill_between(energy, base, base + pair[0] + pair[1], color=color, alpha=0.35,
                         linewidth=0, label=state)
        for each in pair:
            top.plot(energy, base + each, color=color, linewidth=1.0)
    mean = fit.predict()
    top.plot(energy, mean, color=shared.VERMILION, linewidth=1.6, label="fit")
    top.set(ylabel="counts", title="S 2p: three states, six lines", ylim=(0.0, None))
    top.tick_params(labelbottom=False)
    top.legend(frameon=False)
    rest.axhline(0.0, color=shared.VERMILION, linewidth=1.0)
    rest.plot(energy, (counts - mean) / np.sqrt(mean), ".", color="#555555", markersize=3)
    rest.set(xlabel="binding energy (eV)", ylabel="residual / σ", ylim=(-4.5, 4.5))
    for ax in (top, rest):
        ax.set_xlim(energy[-1], energy[0])    # as is usual for binding energies

    own = fits["own"]
    right.axvline(TRUTH["sulphide.lorentz"], color="#888888", linestyle="--", label="truth")
    for k, (state, color) in enumerate(zip(STATES, COLORS, strict=True)):
        name = f"{state}.lorentz"
        right.errorbar(number(own.x, name), 3.0 - k, xerr=number(own.stderr, name), fmt="o",
                       color=color, capsize=3)
    name = "sulphide.lorentz"
    right.errorbar(number(fit.x, name), 0.0, xerr=number(fit.stderr, name), fmt="s",
                   color=shared.VERMILION, capsize=3)
    right.set_yticks([3.0, 2.0, 1.0, 0.0], [*STATES, "shared"])
    right.set(xlabel="half width from the lifetime (eV)", ylim=(-0.6, 3.6),
              title="a width for each state, or for all")
    right.legend(frameon=False)
    shared.save(picture, out, "voigt_spectrum")


def main() -> None:
    options = shared.parser(__doc__, ["numpy"]).parse_args()
    energy, counts = simulated()
    fits = {"shared": fitted(energy, counts, False), "own": fitted(energy, counts, True)}
    fit, own = fits["shared"], fits["own"]
    print(f"shared widths: {len(fit.names)} parameters, {fit.n_free} of them free; "
          f"{fit.nit} steps, {fit.status.name}")
    found = {name: number(fit.x, name) for name in TRUTH}
    shared.against_truth(found, {name: number(fit.stderr, name) for name in TRUTH}, TRUTH)
    print(f"deviance {fit.deviance:.1f} of {fit.n_data} counts, {fit.dof} degrees of freedom")
    low, high = fit.intervals()
    name = "sulphide.lorentz"
    print(f"interval of the lifetime width: {number(low, name):.4f} to {number(high, name):.4f} eV")
    ratio = number(own.stderr, name) / number(fit.stderr, name)
    print(f"widths of its own for each state: the error is {ratio:.1f} times as large, "
          f"BIC {own.bic - fit.bic:+.1f}")
    draw(energy, counts, fits, options.out)


if __name__ == "__main__":
    main()
