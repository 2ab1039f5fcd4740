"""The impedance of an electrode, a complex spectrum: python examples/impedance.py

A solution, a charge transfer with diffusion, a double layer that is not quite a capacitor, and a
cable: a circuit of six parameters, whose impedance is complex. `lx.curve_fit` takes complex data as
they are: the real and the imaginary part of each count as data. The spectrum covers seven decades
of frequency, and its noise is 1 % of its absolute value. The measurement is simulated, so the fit
can be compared with the truth.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import _common as shared
import numpy as np

import lbfgs_xp as lx

# Ohm, ohm, s^n / ohm, 1, ohm / s^0.5, H
TRUTH = {
    "solution": 12.0, "transfer": 180.0, "layer": 2.4e-5, "power": 0.86, "diffusion": 55.0,
    "cable": 4e-7,
}
START = {
    "solution": 5.0, "transfer": 100.0, "layer": 1e-5, "power": 1.0, "diffusion": 20.0,
    "cable": 1e-7,
}
NOISE = 0.01


def model_of(xp: Any) -> Any:
    """The impedance (ohm) at angular frequencies (1/s)."""

    def power_of_iw(w: Any, n: Any) -> Any:
        """(i w)^n"""
        angle = 0.5 * math.pi * n
        size = xp.exp(n * xp.log(w))
        return size * xp.cos(angle) + 1j * (size * xp.sin(angle))

    def model(
        w: Any, solution: Any, transfer: Any, layer: Any, power: Any, diffusion: Any, cable: Any
    ) -> Any:
        faradaic = transfer + diffusion / power_of_iw(w, 0.5 + 0.0 * power)
        electrode = 1.0 / (layer * power_of_iw(w, power) + 1.0 / faradaic)
        return solution + electrode + 1j * (w * cable)

    return model


def draw(
    w: np.ndarray, z: np.ndarray, grid: np.ndarray, curve: np.ndarray, band: Any,
    rest: np.ndarray, out: Path,
) -> None:
    picture = shared.figure(11.0, 6.2)
    if picture is None:
        return
    left, right = picture.subfigures(1, 2, width_ratios=[1.15, 1.0])
    plane, near = left.subplots(2, height_ratios=[1.1, 1.0])
    size, phase, below = right.subplots(3, sharex=True, height_ratios=[1.0, 1.0, 0.7])
    data = dict(marker="o", linestyle="", color="#444444", markersize=3.5, markerfacecolor="none")
    places = {
        0.1: "0.1 Hz", 1e2: "100 Hz", 1e3: "1 kHz", 1e4: "10 kHz", 1e5: "100 kHz", 1e6: "1 MHz",
    }
    for ax in (plane, near):
        ax.plot(z.real, -z.imag, label="data", **data)
        ax.plot(curve.real, -curve.imag, color=shared.VERMILION, label="fit")
        for hertz, text in places.items():
            at = np.argmin(np.abs(w - 2.0 * np.pi * hertz))
            if (ax is near) == (hertz > 5e3):
                ax.annotate(text, (z[at].real, -z[at].imag), (10, -10), fontsize=8,
                            textcoords="offset points")
        ax.set(xlabel="Re Z (Ω)", ylabel="−Im Z (Ω)", aspect="equal", adjustable="datalim")
    plane.set(title="in the complex plane")
    plane.set(xlim=(0.0, 285.0))
    near.set(xlim=(8.0, 20.0), ylim=(-3.0, 3.5), title="its corner at high frequencies")
    plane.legend(frameon=False, loc="upper left")
    hertz, curves = w / (2.0 * np.pi), grid / (2.0 * np.pi)
    size.loglog(hertz, np.abs(z), **data)
    size.loglog(curves, np.abs(curve), color=shared.VERMILION)
    phase.semilogx(hertz, np.degrees(np.angle(z)), **data)
    phase.semilogx(curves, np.degrees(np.angle(curve)), color=shared.VERMILION)
    below.axhline(0.0, color=shared.VERMILION, linewidth=1.0)
    below.semilogx(hertz, rest.real, "o", color=shared.BLUE, markersize=3, label="real part")
    below.semilogx(hertz, rest.imag, "s", color=shared.ORANGE, markersize=3, label="imaginary")
    low, high = ((side - curve) / (NOISE * np.abs(curve)) for side in band)
    below.fill_between(curves, low.real, high.real, color=shared.BLUE, alpha=0.25, linewidth=0)
    below.fill_between(curves, low.imag, high.imag, color=shared.ORANGE, alpha=0.25, linewidth=0)
    below.legend(frameon=False, ncols=2, fontsize=8, loc="upper center")
    size.set(ylabel="|Z| (Ω)", title="against frequency")
    phase.set(ylabel="phase (°)")
    below.set(xlabel="frequency (Hz)", ylabel="residual / σ", ylim=(-4.0, 5.5))
    shared.save(picture, out, "impedance")


def main() -> None:
    options = shared.parser(__doc__).parse_args()
    lib = shared.array_library(options.backend)
    w = 2.0 * np.pi * np.logspace(-1.0, 6.0, 71)
    exact = model_of(np)(w, **TRUTH)
    rng, sigma = np.random.default_rng(3), NOISE * np.abs(exact)
    z = exact + sigma * (rng.normal(size=w.size) + 1j * rng.normal(size=w.size))

    fit = lx.curve_fit(
        lib.compiled(model_of(lib.xp)), lib.array(w), lib.array(z, "complex128"), START,
        sigma=lib.array(sigma), absolute_sigma=True, bounds=({"power": 0.5}, {"power": 1.0}),
    )
    print(f"{w.size} frequencies, {fit.n_data} real data, {fit.n_free} parameters: {fit.nit} "
          f"steps, {fit.status.name}")
    x, errors = ({name: float(tree[name]) for name in TRUTH} for tree in (fit.x, fit.stderr))
    shared.against_truth(x, errors, TRUTH)
    print(f"chi2 {fit.chi2:.1f} for {fit.dof} degrees of freedom, p = {fit.p_value:.2f}")
    value, error = fit.propagate(
        lambda p: (p["layer"] * p["transfer"]) ** (1.0 / p["power"])
    )
    exact_time = (TRUTH["layer"] * TRUTH["transfer"]) ** (1.0 / TRUTH["power"])
    print(f"relaxation time {1e3 * value:.3f} ± {1e3 * error:.3f} ms, truth "
          f"{1e3 * exact_time:.3f} ms")
    grid = np.geomspace(w[0], w[-1], 400)
    at = lib.array(grid)
    band = [shared.host(side) for side in fit.band(at)]
    rest = shared.host(fit.residuals) / sigma
    draw(w, z, grid, shared.host(fit.predict(at)), band, rest, options.out)


if __name__ == "__main__":
    main()
