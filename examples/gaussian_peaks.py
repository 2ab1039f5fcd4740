"""A hundred thousand noisy peaks fitted at once: python examples/gaussian_peaks.py

Single-molecule microscopy sees each molecule as a blurred spot of a few pixels, and locates it with
a fit: a Gaussian with 5 parameters (position x and y, photons, background, width) on 15 x 15 pixels
with counting noise. The standard deviations are the square roots of the expected counts. No
unbiased estimate can scatter less than the Cramer-Rao bound, the inverse of the Fisher information.

With --backend torch or jax the library differentiates the model; otherwise the derivatives are
written by hand. For comparison, a loop over scipy.optimize.curve_fit fits some of the peaks, with
the same model and derivatives.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _common as shared
import numpy as np

import lbfgs_xp as lx

SIZE = 15
PIXELS = SIZE * SIZE
NAMES = ("x", "y", "photons", "background", "width")
UNITS = ("px", "px", "relative", "photons/px", "px")
LEVELS = (500, 1000, 2000, 4000, 8000)
# The remaining step is then at most 1.5e-3 standard errors; see `lx.least_squares`.
GTOL = 1e-4


class Peaks(NamedTuple):
    """Images (B, 225), true parameters and first guess (B, 5), standard deviations (B, 225)."""

    images: np.ndarray
    truth: np.ndarray
    guess: np.ndarray
    sigma: np.ndarray


def model_of(xp: Any) -> Callable:
    """The expected counts of an image, row by row, as a function of the coordinates t (15,)."""

    def model(t: Any, x: Any, y: Any, photons: Any, background: Any, width: Any) -> Any:
        u, v = (t - x) / width, (t - y) / width
        across, along = xp.exp(-0.5 * (u * u)), xp.exp(-0.5 * (v * v)) / (width * width)
        height = along * (photons / (2.0 * math.pi))
        image = height[..., :, None] * across[..., None, :]
        return xp.reshape(image, (*image.shape[:-2], PIXELS)) + background

    return model


def derivatives_of(xp: Any) -> Callable:
    """The derivatives of the model with respect to its parameters, (..., 225, 5).

    Each is a sum of two products of a column and a row: matrices of inner size 2.
    """

    def derivatives(t: Any, x: Any, y: Any, photons: Any, background: Any, width: Any) -> Any:
        u, v = (t - x) / width, (t - y) / width
        a, b = xp.exp(-0.5 * (u * u)), xp.exp(-0.5 * (v * v)) / (2.0 * math.pi * width * width)
        h = b * (photons / width)
        zero, one = xp.zeros_like(a), xp.ones_like(a)
        columns = xp.stack([
            xp.stack([h, h * v, b, one, h], axis=-2),
            xp.stack([zero, zero, zero, zero, h * (v * v - 1.0)], axis=-2),
        ], axis=-1)
        rows = xp.stack([
            xp.stack([a * u, a, a, one, a * (u * u - 1.0)], axis=-2),
            xp.stack([zero, zero, zero, zero, a], axis=-2),
        ], axis=-2)
        images = columns @ rows
        return xp.matrix_transpose(xp.reshape(images, (*images.shape[:-2], PIXELS)))

    return derivatives


T = np.arange(float(SIZE))
MODEL, DERIVATIVES = model_of(np), derivatives_of(np)


def columns_of(parameters: np.ndarray) -> list[np.ndarray]:
    return [parameters[:, i, None] for i in range(5)]


def simulate(count: int, seed: int = 0) -> Peaks:
    """Peaks of five brightnesses, with counting noise, and first guesses from the images alone."""
    rng = np.random.default_rng(seed)
    truth = np.stack([
        rng.uniform(6.0, 8.0, count),
        rng.uniform(6.0, 8.0, count),
        np.resize(np.asarray(LEVELS, dtype=float), count),
        rng.uniform(5.0, 15.0, count),
        rng.uniform(1.2, 1.6, count),
    ], axis=-1)
    images = np.empty((count, PIXELS))
    for start in range(0, count, 1000):    # in pieces, to save memory
        part = slice(start, start + 1000)
        images[part] = rng.poisson(MODEL(T, *columns_of(truth[part])))
    guess = first_guess(images)
    # Weights from the counts themselves would favour pixels that happen to be low.
    smooth = MODEL(T, *columns_of(guess))
    return Peaks(images, truth, guess, np.sqrt(np.maximum(smooth, 1.0)))


def first_guess(images: np.ndarray) -> np.ndarray:
    """Background from the border, photons from the sum, position from the central centroid."""
    square = images.reshape(-1, SIZE, SIZE)
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    inside[1:-1, 1:-1] = True
    background = square[:, ~inside].mean(axis=1)
    photons = np.maximum(images.sum(axis=1) - PIXELS * background, 100.0)
    light = np.maximum(square[:, 3:-3, 3:-3] - background[:, None, None], 0.0)
    total = np.maximum(light.sum(axis=(1, 2)), 1.0)
    middle = T[3:-3]
    x = light.sum(axis=1) @ middle / total
    y = light.sum(axis=2) @ middle / total
    return np.stack([x, y, photons, background, np.full_like(x, 1.4)], axis=-1)


def bounds_of(truth: np.ndarray) -> np.ndarray:
    """The Cramer-Rao bound (B, 5): the smallest standard deviation of each parameter."""
    found = np.empty_like(truth)
    for start in range(0, len(truth), 1000):
        part = slice(start, start + 1000)
        columns = columns_of(truth[part])
        slopes = DERIVATIVES(T, *columns)
        # Fisher information of independent Poisson counts
        information = slopes.swapaxes(-1, -2) @ (slopes / MODEL(T, *columns)[..., None])
        inverse = np.linalg.inv(information)
        found[part] = np.sqrt(np.diagonal(inverse, axis1=-2, axis2=-1))
    return found


class Fitter:
    """Fits of peaks by `lx.curve_fit`, with one array library."""

    def __init__(self, library: shared.Library, dtype: str, threads: int):
        self.arrays, self.dtype, self.threads = library, dtype, threads
        xp = library.xp
        self.model, self.derivatives = model_of(xp), derivatives_of(xp)
        if library.name == "jax":
            import jax

            self.model = jax.jit(self.model)
        if library.name in ("torch", "jax"):
            self.derivatives = None    # automatic differentiation

    def fit(self, peaks: Peaks) -> tuple[lx.CurveFit, float]:
        """The fits and their time in seconds, without the transfer of the data to the device."""
        t, images, guess, sigma = (
            self.arrays.array(values, self.dtype)
            for values in (T, peaks.images, peaks.guess, peaks.sigma)
        )
        start = time.perf_counter()
        fits = lx.curve_fit(
            self.model, t, images, guess, sigma=sigma, absolute_sigma=True, jac=self.derivatives,
            batched=True, gtol=GTOL, threads=self.threads,
        )
        self.host(fits.x)    # waits for the device
        return fits, time.perf_counter() - start

    def host(self, array: Any) -> np.ndarray:
        if self.arrays.name == "cupy":
            array = array.get()
        return np.asarray(array, dtype=float)


def head(peaks: Peaks, count: int) -> Peaks:
    return Peaks(*(part[:count] for part in peaks))


def loop_over_scipy(peaks: Peaks) -> tuple[np.ndarray, float]:
    """The same fits by SciPy, one after the other: the parameters, and the seconds per fit."""
    from scipy.optimize import curve_fit

    found = []
    start = time.perf_counter()
    for image, guess, sigma in zip(peaks.images, peaks.guess, peaks.sigma, strict=True):
        found.append(
            curve_fit(
                MODEL, T, image, guess, sigma=sigma, absolute_sigma=True, jac=DERIVATIVES
            )[0]
        )
    return np.asarray(found), (time.perf_counter() - start) / len(found)


class Scatter(NamedTuple):
    """Root mean squares over the peaks of one brightness, for each parameter (5,).

    actual, least : of the errors, and of the Cramer-Rao bound.
    by_bound, by_stderr : of the errors divided by the bound, and by the reported standard errors.
    """

    actual: np.ndarray
    least: np.ndarray
    by_bound: np.ndarray
    by_stderr: np.ndarray


def scatter_of(peaks: Peaks, x: np.ndarray, stderr: np.ndarray, good: np.ndarray) -> list[Scatter]:
    bound, error = bounds_of(peaks.truth), x - peaks.truth
    found = []
    for level in LEVELS:
        chosen = good & (peaks.truth[:, 2] == level)
        e, b, s = error[chosen], bound[chosen], stderr[chosen]
        found.append(Scatter(rms(e), rms(b), rms(e / b), rms(e / s)))
    return found


def rms(values: np.ndarray) -> np.ndarray:
    """The root mean square over the peaks, which includes systematic errors."""
    return np.sqrt((values * values).mean(axis=0))


def report(scatters: list[Scatter]) -> None:
    print("\nroot mean square of error / Cramer-Rao bound  (of error / standard error reported)")
    print("photons   " + "".join(f"{name:>16}" for name in NAMES))
    for level, scatter in zip(LEVELS, scatters, strict=True):
        cells = (
            f"{a:.3f} ({b:.3f})"
            for a, b in zip(scatter.by_bound, scatter.by_stderr, strict=True)
        )
        print(f"{level:7}   " + "".join(f"{cell:>16}" for cell in cells))


def draw(
    peaks: Peaks, x: np.ndarray, scatters: list[Scatter], speeds: list[tuple[int, float]],
    loop: float | None, label: str, folder: Path,
) -> None:
    figure = shared.figure(12.0, 8.0)
    if figure is None:
        return
    left, right = figure.subfigures(1, 2, width_ratios=[1.0, 1.6])
    left.suptitle("peaks, and their fits", fontsize=11)
    grid = left.subplots(len(LEVELS), 3)
    for i, (level, row) in enumerate(zip(LEVELS, grid, strict=True)):
        image = peaks.images[i].reshape(SIZE, SIZE)
        fitted = MODEL(T, *x[i]).reshape(SIZE, SIZE)
        pulls = (image - fitted) / np.sqrt(fitted)
        scale: Any = dict(vmin=0.0, vmax=image.max(), cmap="viridis")
        row[0].imshow(image, **scale)
        row[1].imshow(fitted, **scale)
        for axes, (px, py) in ((row[0], peaks.truth[i, :2]), (row[1], x[i, :2])):
            axes.plot(px, py, "+", color="white", markersize=9)
        row[2].imshow(pulls, vmin=-4.0, vmax=4.0, cmap="PuOr")
        row[0].set_ylabel(f"{level} photons", fontsize=9)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], ("counts", "fit", "difference / σ"), strict=True):
        axes.set_title(title, fontsize=9)

    top, bottom = right.subplots(2, 1)
    marks = "os^Dv"
    for k in (0, 2, 3, 4):
        color = shared.COLORS[k]
        relative = np.asarray(LEVELS, dtype=float) ** (NAMES[k] == "photons")
        name = f"{NAMES[k]} ({UNITS[k]})"
        top.plot(LEVELS, [s.least[k] for s in scatters] / relative, "-", color=color)
        top.plot(
            LEVELS, [s.actual[k] for s in scatters] / relative, marks[k], color=color,
            markerfacecolor="none", markersize=8, label=name,
        )
    top.set(
        xscale="log", yscale="log", xlabel="photons", ylabel="standard deviation",
        title="errors (marks) and the Cramér-Rao bound (lines)",
    )
    top.set_xticks(LEVELS, [str(level) for level in LEVELS])
    top.minorticks_off()
    top.legend(frameon=False, ncols=2, fontsize=9)

    counts, rates = zip(*speeds, strict=True)
    bottom.plot(counts, rates, "o-", color=shared.BLUE, label=label)
    if loop is not None:
        bottom.axhline(1.0 / loop, color=shared.VERMILION, linestyle="--", label="SciPy in a loop")
    bottom.set(
        xscale="log", yscale="log", xlabel="fits at once", ylabel="fits per second",
        title="throughput",
    )
    bottom.yaxis.set_minor_formatter("")
    bottom.legend(frameon=False)
    shared.save(figure, folder, "gaussian_peaks")


def main() -> None:
    parser = shared.parser(__doc__)
    parser.add_argument("--peaks", type=int, help="default: 100000, or 2000 with --quick")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1,
        help="threads that fit pieces of the batch, for NumPy; default: one for each core",
    )
    options = parser.parse_args()
    count = options.peaks or (2000 if options.quick else 100_000)
    if count < 10 * len(LEVELS):
        parser.error(f"--peaks {count}; wanted at least {10 * len(LEVELS)}")
    library = shared.array_library(options.backend)
    fitter = Fitter(library, options.dtype, options.threads if library.name == "numpy" else 1)
    peaks = simulate(count)

    sizes = sorted({min(10**k, count) for k in range(1, 6)} | {count})
    if library.name == "jax":
        sizes = [count]    # each size would be compiled separately
    fitter.fit(head(peaks, sizes[0]))    # imports, compiles
    speeds = []
    for size in sizes:
        shared.progress(f"{size} peaks at once")
        fits, seconds = fitter.fit(head(peaks, size))
        speeds.append((size, size / seconds))
    shared.progress()
    x, stderr = fitter.host(fits.x), fitter.host(fits.stderr)
    good = fitter.host(fits.success) > 0
    label = f"lbfgs_xp, {library.name}, {options.dtype}"
    print(f"{label}: {count} fits of 5 parameters on {SIZE} x {SIZE} pixels in {seconds:.2f} s")
    print(f"  {speeds[-1][1]:.0f} fits per second; {100.0 * good.mean():.3f} % succeeded")
    print(f"  steps: median {np.median(fitter.host(fits.nit)):.0f}, most {fits.nit.max()}")
    try:
        sample = head(peaks, 50 if options.quick else 300)
        found, loop = loop_over_scipy(sample)
    except ImportError:
        print("SciPy is not installed: no loop to compare with")
        loop = None
    else:
        away = np.max(np.abs(found - x[: len(found)]) / stderr[: len(found)])
        print(f"SciPy in a loop over {len(found)} peaks: {1.0 / loop:.0f} fits per second")
        print(f"  ratio {loop * speeds[-1][1]:.1f}; largest difference {away:.1e} standard errors")
    scatters = scatter_of(peaks, x, stderr, good)
    report(scatters)
    draw(peaks, x, scatters, speeds, loop, label, options.out)


if __name__ == "__main__":
    main()
