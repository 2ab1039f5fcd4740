"""Ordinary fits, compared with SciPy's curve_fit and with the floor: the time inside the model.

Processor time of one thread, in medians of rounds in which all contenders take turns:

- one fit: a damped oscillation, 200 points, 5 parameters, by finite differences;
- many such fits at once, compared with a loop over SciPy; also in two threads, by wall time;
- Gaussian peaks on 15 x 15 pixels, weighted, with the model as one would write it;
- very many points, in chunks.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/fits.py
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from _common import print_machine, print_table

import lbfgs_xp as lx

LOOP = 100    # fits of SciPy's loop, whose time per fit is known from so many


class Timed:
    """A model that counts its calls and the processor time inside it."""

    def __init__(self, model: Callable):
        self.model, self.calls, self.seconds = model, 0, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time.thread_time()
        found = self.model(*arguments)
        self.seconds += time.thread_time() - start
        # Rows of a batch count like calls for one fit.
        self.calls += 1 if found.ndim == 1 else found.shape[0]
        return found


class Row(NamedTuple):
    """Seconds per fit, inside the model and altogether, and calls of the model for each fit."""

    floor: float
    total: float
    calls: float


def measured(
    contenders: dict[str, tuple[Callable, Callable, int]], rounds: int
) -> dict[str, Row]:
    """The medians of contenders that take turns: name -> (solve, model, fits).

    The total is measured without counting what happens inside the model.
    """
    totals: dict[str, list[float]] = {name: [] for name in contenders}
    inside: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, (solve, model, fits) in contenders.items():
            start = time.thread_time()
            solve(model)
            total = time.thread_time() - start
            timed = Timed(model)
            solve(timed)
            if round_:    # the first one imports, compiles and fills caches
                totals[name].append(total / fits)
                inside[name].append((timed.seconds / fits, timed.calls / fits))
    found = {}
    for name in contenders:
        seconds, calls = np.median(inside[name], axis=0)
        found[name] = Row(float(seconds), float(np.median(totals[name])), float(calls))
    return found


def show(title: str, found: dict[str, Row]) -> None:
    base = next(iter(found.values())).total
    rows = [
        [name, f"{row.total * 1e6:.0f}", f"{row.floor * 1e6:.0f}", f"{row.calls:.3g}",
         f"{base / row.total:.2f}"]
        for name, row in found.items()
    ]
    print_table(
        title, ["", "us / fit", "in the model", "calls / fit", "rate / SciPy's"], rows
    )


def oscillation(xp: Any) -> Callable:
    def model(x: Any, a: Any, g: Any, w: Any, phase: Any, c: Any) -> Any:
        return a * xp.exp(-g * x) * xp.cos(w * x + phase) + c

    return model


def scipy_fit() -> Callable:
    from scipy.optimize import curve_fit

    return curve_fit


def one_fit(rounds: int) -> None:
    x, model = np.linspace(0.0, 10.0, 200), oscillation(np)
    y = model(x, 2.0, 0.3, 3.0, 0.5, 0.1) + 0.05 * np.random.default_rng(0).normal(size=200)
    start, scipy, times = [1.5, 0.2, 3.0, 0.4, 0.0], scipy_fit(), 10

    def repeated(fit: Callable) -> Callable:
        def solve(model: Callable) -> None:
            for _ in range(times):
                fit(model)

        return solve

    show("one fit, 200 points, 5 parameters", measured({
        "SciPy": (repeated(lambda f: scipy(f, x, y, start)), model, times),
        **{
            f'lbfgs_xp, "{jac}"': (
                repeated(lambda f, jac=jac: lx.curve_fit(f, x, y, start, jac=jac)), model, times
            )
            for jac in ("2-point", "3-point")
        },
    }, rounds))


def oscillations(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates, data and starts of many damped oscillations."""
    x, model, rng = np.linspace(0.0, 10.0, 200), oscillation(np), np.random.default_rng(0)
    low, high = [1.0, 0.1, 2.0, 0.0, -0.2], [3.0, 0.5, 4.0, 1.0, 0.2]
    truth = rng.uniform(low, high, size=(count, 5))
    y = model(x, *truth.T[..., None]) + 0.05 * rng.normal(size=(count, 200))
    start = truth * rng.uniform(0.8, 1.2, size=(count, 5))
    start[:, 2] = truth[:, 2] * rng.uniform(0.97, 1.03, count)
    return x, y, start


def many_fits(count: int, rounds: int) -> None:
    x, y, start = oscillations(count)
    model, scipy = oscillation(np), scipy_fit()

    def loop(model: Callable) -> None:
        for row, p0 in zip(y[:LOOP], start, strict=False):
            scipy(model, x, row, p0)

    contenders: dict[str, tuple[Callable, Callable, int]] = {
        "SciPy, a loop": (loop, model, min(LOOP, count)),
        "lbfgs_xp, NumPy": (
            lambda f: lx.curve_fit(f, x, y, start, jac="2-point", batched=True), model, count
        ),
        # About the accuracy of SciPy's default ftol, which is relative to chi2.
        "lbfgs_xp, NumPy, gtol=1e-4": (
            lambda f: lx.curve_fit(f, x, y, start, jac="2-point", batched=True, gtol=1e-4),
            model, count,
        ),
    }
    try:
        import torch
    except ImportError:
        print("torch: not installed, skipped")
    else:
        torch.set_num_threads(1)
        data = [torch.asarray(array) for array in (x, y, start)]
        contenders["lbfgs_xp, torch, automatic"] = (
            lambda f: lx.curve_fit(f, *data, batched=True), oscillation(torch), count
        )
    show(f"{count} fits at once", measured(contenders, rounds))


def in_threads(count: int, rounds: int) -> None:
    """Wall time, of which other work on the machine may take much: the least of all rounds."""
    x, y, start = oscillations(count)
    model, scipy = oscillation(np), scipy_fit()

    def loop() -> None:
        for row, p0 in zip(y[:LOOP], start, strict=False):
            scipy(model, x, row, p0)

    def batch(threads: int) -> Callable[[], object]:
        return lambda: lx.curve_fit(
            model, x, y, start, jac="2-point", batched=True, threads=threads
        )

    contenders = {
        "SciPy, a loop": (loop, min(LOOP, count)), "NumPy": (batch(1), count),
        "NumPy, threads=2": (batch(2), count),
    }
    least = dict.fromkeys(contenders, np.inf)
    for _ in range(rounds):
        for name, (solve, fits) in contenders.items():
            begin = time.perf_counter()
            solve()
            least[name] = min(least[name], (time.perf_counter() - begin) / fits)
    base = least["SciPy, a loop"]
    print_table(f"{count} fits at once, wall time", ["", "us / fit", "rate / SciPy's"], [
        [name, f"{seconds * 1e6:.0f}", f"{base / seconds:.2f}"]
        for name, seconds in least.items()
    ])


def peaks(count: int, rounds: int) -> None:
    size, rng = 15, np.random.default_rng(0)
    u, v = (axis.ravel() for axis in np.meshgrid(np.arange(float(size)), np.arange(float(size))))

    def model(at: Any, x: Any, y: Any, photons: Any, background: Any, width: Any) -> Any:
        u, v = at
        radius = ((u - x) ** 2 + (v - y) ** 2) / width**2
        return photons / (2.0 * np.pi * width**2) * np.exp(-0.5 * radius) + background

    low, high = [6.0, 6.0, 500.0, 5.0, 1.2], [8.0, 8.0, 8000.0, 15.0, 1.6]
    truth = rng.uniform(low, high, size=(count, 5))
    mean = model((u, v), *truth.T[..., None])
    counts = rng.poisson(mean).astype(float)
    start = truth + rng.normal(size=(count, 5)) * [0.3, 0.3, 50.0, 1.0, 0.1]
    sigma, scipy = np.sqrt(mean), scipy_fit()

    def loop(model: Callable) -> None:
        for row, p0, deviations in zip(counts[:LOOP], start, sigma, strict=False):
            scipy(model, (u, v), row, p0, sigma=deviations, absolute_sigma=True)

    show(f"{count} Gaussian peaks on 15 x 15 pixels at once, weighted, gtol=1e-4", measured({
        "SciPy, a loop": (loop, model, min(LOOP, count)),
        "lbfgs_xp, NumPy": (
            lambda f: lx.curve_fit(
                f, (u, v), counts, start, sigma=sigma, absolute_sigma=True, jac="2-point",
                batched=True, gtol=1e-4,
            ), model, count,
        ),
    }, rounds))


def large(points: int) -> None:
    x, rng = np.linspace(0.0, 4.0, points), np.random.default_rng(0)
    y = 2.5 * np.exp(-1.3 * x) + 0.5
    for start in range(0, points, 10**6):
        part = y[start : start + 10**6]
        part += 0.05 * rng.normal(size=part.size)
    timed = Timed(lambda x, a, k, c: a * np.exp(-k * x) + c)
    begin = time.thread_time()
    fit = lx.curve_fit(timed, x, y, [1.0, 1.0, 1.0], jac="2-point")
    seconds = time.thread_time() - begin
    tracemalloc.start()
    lx.curve_fit(timed.model, x, y, [1.0, 1.0, 1.0], jac="2-point", maxiter=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    data = x.nbytes + y.nbytes
    print(
        f"\n{points} points, 3 parameters: {seconds:.2f} s, {timed.seconds:.2f} s of it inside the "
        f"model; {fit.nit} steps, {fit.nfev} calls for each point;\nmemory at most "
        f"{(data + peak) / data:.2f} times the data"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=5000, help="fits at once")
    parser.add_argument("--points", type=int, default=10_000_000, help="points of the large fit")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    one_fit(arguments.rounds)
    many_fits(arguments.fits, arguments.rounds)
    in_threads(arguments.fits, arguments.rounds)
    peaks(arguments.fits, arguments.rounds)
    large(arguments.points)
    print_machine()


if __name__ == "__main__":
    main()
