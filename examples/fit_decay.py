"""Decay curves fitted to noisy data, with uncertainties: python examples/fit_decay.py

The model is y = A exp(-k t) + C with normal noise of known size; its parameters are a dict. The
function minimised is the negative log likelihood, so the inverse of its Hessian is the covariance
of the parameters. L-BFGS builds an estimate of it (`res.hess_inv`), which is compared with the
least-squares formula. Then twelve curves with a common k show the effect of the memory size and of
scaling the first step. The last start is so far away that only runs with clipped gradients return
from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _common as shared
import numpy as np

import lbfgs_xp as lx

SIGMA = 0.1
K = 1.3
MEMORIES = (3, 10, 20, 30)


class Data(NamedTuple):
    """Curves y (curves, samples) at t (samples,), the objective, and the true parameters."""

    lib: shared.Library
    t: Any
    y: Any
    fun: Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]
    truth: dict[str, Any]


class Run(NamedTuple):
    """The outcome of one minimisation: the result, and the curve of (evaluations, value)."""

    result: lx.Result
    curve: np.ndarray


def model(p: dict[str, Any], t: Any, xp: Any) -> Any:
    """The values of the model, (curves, samples)."""
    return p["A"][:, None] * xp.exp(-p["k"] * t) + p["C"][:, None]


def objective(lib: shared.Library, t: Any, y: Any) -> Callable:
    """Minus the log likelihood (up to a constant) with its gradient, a dict like the parameters."""
    xp = lib.xp

    @lib.compiled
    @np.errstate(over="ignore", invalid="ignore")    # trials that go too far are expected
    def value_and_gradient(p: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        r = (model(p, t, xp) - y) / SIGMA
        e = xp.exp(-p["k"] * t)
        slope = -p["A"][:, None] * t * e    # of the model with respect to k
        gradient = {"A": r @ e, "k": xp.sum(r * slope), "C": xp.sum(r, axis=1)}
        # asarray, because a NumPy sum is a scalar and not an array
        return 0.5 * xp.sum(r * r), {name: xp.asarray(g / SIGMA) for name, g in gradient.items()}

    return value_and_gradient


def measured(lib: shared.Library, A: Any, C: Any, samples: int = 40) -> Data:
    """Noisy curves with these A and C and the same k."""
    truth = {"A": np.asarray(A), "k": K, "C": np.asarray(C)}
    t = np.linspace(0.0, 4.0, samples)
    y = model(truth, t, np)
    y = y + np.random.default_rng(1).normal(scale=SIGMA, size=y.shape)
    t, y = lib.array(t), lib.array(y)
    return Data(lib, t, y, objective(lib, t, y), truth)


def start(data: Data, k: float) -> dict[str, Any]:
    ones = data.lib.array(np.ones(data.y.shape[0]))
    return {"A": ones, "k": data.lib.array(k), "C": 0.0 * ones}


def run(data: Data, x0: dict[str, Any], method: Any, **limits: Any) -> Run:
    curve = [(1, float(data.fun(x0)[0]))]
    res = lx.minimize(
        data.fun, x0, jac=True, method=method, **limits,
        callback=lambda record: curve.append((record.nfev, record.fun)),
    )
    return Run(res, np.asarray(curve))


# --- one curve, with uncertainties -------------------------------------------------------------


def jacobian(p: dict[str, Any], data: Data) -> Any:
    """The derivatives of one curve by A, C and k, in the order of hess_inv: (samples, 3)."""
    xp = data.lib.xp
    e = xp.exp(-p["k"] * data.t)
    return xp.stack([e, xp.ones_like(e), -p["A"] * data.t * e], axis=1)


def errors(run: Run) -> dict[str, float]:
    """Standard errors from the run's estimate of the inverse Hessian."""
    h = run.result.hess_inv
    return {name: shared.host(v).item() ** 0.5 for name, v in h.unravel(h.diagonal()).items()}


def uncertainties(data: Data, out: Path) -> None:
    """Fit one curve and show its standard errors for each memory size."""
    xp = data.lib.xp
    methods: dict[str, Any] = {f"memory {m}": lx.LBFGS(memory_size=m) for m in MEMORIES}
    methods["BFGS"] = lx.BFGS()
    runs = {name: run(data, start(data, 1.0), m, gtol=1e-6) for name, m in methods.items()}
    best = runs["memory 10"].result
    print(f"one curve: {best.nit} iterations, {best.nfev} evaluations, {best.status.name}")

    # Gauss-Newton: the Hessian is J' J / sigma^2 if the model is nearly linear in p.
    J = jacobian(best.x, data)
    covariance = SIGMA**2 * xp.linalg.inv(J.T @ J)
    formula = dict(zip("ACk", np.sqrt(np.diagonal(shared.host(covariance))), strict=True))
    print("   truth    fit  +- Jacobian  +- hess_inv:" + "".join(f"{name:>11}" for name in runs))
    for name in "AkC":
        found = "".join(f"{errors(r)[name]:11.3f}" for r in runs.values())
        truth, fit = float(np.squeeze(data.truth[name])), shared.host(best.x[name]).item()
        print(f"{name} {truth:6.3f} {fit:6.3f} {formula[name]:12.3f}{'':14}{found}")

    picture = shared.figure(11.0, 5.5)
    if picture is None:
        return
    fitted = model(best.x, data.t, xp)[0, :]
    # The variance of the fitted curve at each t: J H^-1 J'.
    variance = xp.sum((J @ best.hess_inv.todense()) * J, axis=1)
    drawn = (data.t, data.y[0, :], fitted, 2.0 * xp.sqrt(variance))
    t, y, fit, band = (shared.host(values) for values in drawn)
    truth = model(data.truth, t, np)[0]

    axes = picture.subplot_mosaic([["fit", "errors"], ["rest", "errors"]], height_ratios=(2, 1.4))
    grey = {"fmt": "o", "markersize": 3, "color": "#888888", "elinewidth": 0.8}
    for name, level in (("fit", 0.0), ("rest", fit)):
        ax = axes[name]
        ax.errorbar(t, y - level, yerr=SIGMA, label="measured", **grey)
        ax.fill_between(t, fit - band - level, fit + band - level, color=shared.BLUE, alpha=0.3,
                        linewidth=0, label="fit, ±2 standard errors")
        ax.plot(t, fit - level, color=shared.BLUE, linewidth=1.5)
        ax.plot(t, truth - level, "--", color=shared.VERMILION, linewidth=1.3, label="truth")
    axes["fit"].set(title="A exp(−k t) + C", ylabel="y")
    axes["fit"].legend(frameon=False)
    axes["rest"].set(xlabel="t", ylabel="y − fit")

    ax = axes["errors"]
    for i, (name, marker) in enumerate(zip("AkC", "osD", strict=True)):
        color, shift = shared.COLORS[i], 0.12 * (i - 1)
        ratios = [errors(r)[name] / formula[name] for r in runs.values()]
        ax.plot(np.arange(len(runs)) + shift, ratios, marker, color=color, label=name, markersize=8)
    ax.axhline(1.0, color="#888888", linewidth=0.8, zorder=0)
    ax.set_xticks(range(len(runs)), list(runs))
    ax.set(title="standard errors from hess_inv over those from the Jacobian", ylim=(0, None))
    ax.legend(frameon=False, loc="lower right")
    shared.save(picture, out, "fit_decay")


# --- convergence, side by side -----------------------------------------------------------------


class Panel(NamedTuple):
    """Methods to compare, on the same data and from the same start."""

    title: str
    data: Data
    k: float
    limits: dict[str, Any]
    methods: dict[str, Any]


def panels(one: Data, quick: bool) -> list[Panel]:
    levels = np.random.default_rng(2).uniform([[1.0], [0.2]], [[3.0], [0.8]], size=(2, 12))
    many = measured(one.lib, *levels)
    tight, short = {"gtol": 1e-6}, {"gtol": 1e-3, "maxiter": 250 if quick else 1000}
    clips: dict[str, dict] = {
        "no clipping": {}, "clip_norm=300": {"clip_norm": 300.0},
        "clip_value=300": {"clip_value": 300.0},
    }
    return [
        Panel("L-BFGS: memory, 12 curves with one k", many, 1.0, tight,
              {f"memory_size={m}": lx.LBFGS(memory_size=m) for m in MEMORIES}),
        Panel("L-BFGS: scaling of the first step, 12 curves", many, 1.0, tight,
              {f"scale_initial={on}": lx.LBFGS(scale_initial=on) for on in (True, False)}),
        # exp(-k t) grows instead of falling: the first gradient is a thousand times too large
        Panel("gradient descent from k = −1, one curve", one, -1.0, short,
              {name: lx.GradientDescent(1e-4, **clip) for name, clip in clips.items()}),
        Panel("Adam from k = −1, one curve", one, -1.0, short,
              {name: lx.Adam(0.05, **clip) for name, clip in clips.items()}),
    ]


def convergence(one: Data, quick: bool, out: Path) -> None:
    picture = shared.figure(11.0, 8.0)
    places = [None] * 4 if picture is None else picture.subplots(2, 2).flat
    for panel, ax in zip(panels(one, quick), places, strict=True):
        print(f"\n{panel.title}")
        runs = {}
        for name, method in panel.methods.items():
            shared.progress(f"{panel.title}: {name}")
            x0 = start(panel.data, panel.k)
            runs[name] = run(panel.data, x0, method, **panel.limits)
            res = runs[name].result
            shared.progress()
            print(f"  {name:20} {res.nit:4} iterations {res.nfev:5} evaluations  "
                  f"k {float(res.x['k']):9.4f}  {res.status.name}")
        if ax is not None:
            lowest = run(panel.data, start(panel.data, 1.0), lx.BFGS()).result.fun
            draw(ax, panel.title, runs, lowest)
    if picture is not None:
        shared.save(picture, out, "fit_decay_convergence")


def draw(ax: Any, title: str, runs: dict[str, Run], lowest: float) -> None:
    for (name, each), color, dash in zip(runs.items(), shared.COLORS, shared.DASHES, strict=False):
        evaluations, values = each.curve.T
        ax.semilogy(evaluations, np.maximum(values - lowest, 1e-9), color=color, linestyle=dash,
                    linewidth=1.6, label=f"{name}: {each.result.nfev}")
    ax.set(title=title, xlabel="evaluations", ylabel="value above the minimum", ylim=(1e-8, None))
    ax.legend(frameon=False, title="evaluations in all")


def main() -> None:
    options = shared.parser(__doc__).parse_args()
    one = measured(shared.array_library(options.backend), [2.5], [0.5])
    uncertainties(one, options.out)
    convergence(one, options.quick, options.out)


if __name__ == "__main__":
    main()
