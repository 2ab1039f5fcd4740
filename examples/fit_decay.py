"""A decay curve fitted to noisy data, with uncertainties: python examples/fit_decay.py

The model is y = a exp(-b t) + c with normal noise of known size. The function minimised is
-log likelihood, so the inverse of its Hessian is the covariance of the parameters. L-BFGS gathers
an estimate of it (`res.hess_inv`), here set beside that of the least-squares formula.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import lbfgs_xp as lx

TRUTH = {"a": 2.5, "b": 1.3, "c": 0.5}
SIGMA = 0.05


def model(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    a, b, c = x
    return a * np.exp(-b * t) + c


def model_slopes(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The derivatives of the model by a, b, c: (3, samples)."""
    a, b, _ = x
    e = np.exp(-b * t)
    return np.stack([e, -a * t * e, np.ones_like(t)])


def fit(t: np.ndarray, y: np.ndarray) -> lx.Result:
    """The most likely parameters."""

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        r = (model(x, t) - y) / SIGMA
        return 0.5 * float(r @ r), model_slopes(x, t) @ r / SIGMA

    return lx.minimize(fun, np.asarray([1.0, 1.0, 0.0]), jac=True, gtol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save a picture (matplotlib)")
    options = parser.parse_args()

    t = np.linspace(0.0, 4.0, 60)
    noise = np.random.default_rng(1).normal(scale=SIGMA, size=t.shape)
    y = model(np.asarray(list(TRUTH.values())), t) + noise
    res = fit(t, y)
    print(f"{res.message} ({res.nit} iterations, {res.nfev} evaluations)\n")

    gathered = np.sqrt(res.hess_inv.diagonal())
    # Gauss-Newton: the Hessian is J J' / sigma^2 where the model is nearly linear in x.
    J = model_slopes(res.x, t)
    formula = SIGMA * np.sqrt(np.diagonal(np.linalg.inv(J @ J.T)))
    print("     truth     fit   +- from hess_inv   +- from the Jacobian")
    for row in zip(TRUTH, TRUTH.values(), res.x, gathered, formula, strict=True):
        print("{}    {:6.3f}  {:6.3f}   {:16.3f}   {:20.3f}".format(*row))

    if options.plot is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(
            t, y, yerr=SIGMA, fmt="o", markersize=3, color="#999999", elinewidth=0.8,
            label="measured",
        )
        axes.plot(t, model(res.x, t), color="#0072B2", linewidth=2, label="fit")
        axes.set(xlabel="t", ylabel="y", title="a exp(-b t) + c")
        axes.legend(frameon=False)
        figure.savefig(options.plot, dpi=150)
        print(f"\npicture: {options.plot}")


if __name__ == "__main__":
    main()
