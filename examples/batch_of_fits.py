"""A thousand decay curves fitted at once: python examples/batch_of_fits.py

Each row of x is a separate problem, with its own curvature, line search and status. Fits that are
done leave the batch, and their data leave with them. The function minimised is the negative log
likelihood, so the inverse Hessian that each fit estimates gives its standard errors. With a
thousand fits these can be checked: the errors, in units of their standard errors, should be
normally distributed with a spread of 1.
"""

from __future__ import annotations

import time
from typing import Any

import _common as shared
import numpy as np

import lbfgs_xp as lx

SIGMA = 0.02


def likelihood(lib: shared.Library, t: Any) -> Any:
    """x (k, 3), y (k, samples) -> -log likelihood (k,) and its gradient (k, 3)."""
    xp = lib.xp

    @lib.compiled
    def value_and_gradient(x: Any, y: Any) -> tuple[Any, Any]:
        a, b, c = x[:, :1], x[:, 1:2], x[:, 2:]
        e = xp.exp(-b * t)
        r = (a * e + c - y) / SIGMA
        slopes = [r * e, -a * t * e * r, r]
        gradient = xp.stack([xp.sum(s, axis=-1) / SIGMA for s in slopes], axis=-1)
        return 0.5 * xp.sum(r * r, axis=-1), gradient

    return value_and_gradient


def draw(pulls: np.ndarray, iterations: np.ndarray) -> Any:
    picture = shared.figure(11.0, 4.5)
    if picture is None:
        return None
    left, right = picture.subplots(1, 2)
    edges = np.linspace(-4.0, 4.0, 33)
    for i, name in enumerate("abc"):
        left.hist(pulls[:, i], edges, histtype="step", density=True, linewidth=1.6, label=name,
                  color=shared.COLORS[i], linestyle=shared.DASHES[i])
    left.plot(edges, np.exp(-0.5 * edges**2) / np.sqrt(2.0 * np.pi), color="#777777",
              linewidth=1.0, label="normal")
    left.set(xlabel="(fit − truth) / standard error", ylabel="density", title="errors of the fits")
    left.legend(frameon=False)
    right.hist(iterations, np.arange(iterations.min(), iterations.max() + 2) - 0.5,
               color=shared.SKY, edgecolor="white")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="iterations", ylabel="fits", title="each fit ends when it is done")
    return picture


def main() -> None:
    parser = shared.parser(__doc__)
    parser.add_argument("--problems", type=int, help="how many; default: 1000, or 200 if quick")
    options = parser.parse_args()
    count = options.problems or (200 if options.quick else 1000)
    lib = shared.array_library(options.backend)

    rng = np.random.default_rng(0)
    truth = rng.uniform([1.0, 0.5, 0.0], [4.0, 2.0, 1.0], size=(count, 3))
    t = np.linspace(0.0, 4.0, 50)
    y = truth[:, :1] * np.exp(-truth[:, 1:2] * t) + truth[:, 2:]
    y = y + rng.normal(scale=SIGMA, size=y.shape)

    fun, x0 = likelihood(lib, lib.array(t)), lib.array(np.ones((count, 3)))
    shared.progress(f"{count} fits")
    start = time.perf_counter()
    res = lx.minimize(fun, x0, (lib.array(y),), jac=True, batched=True, gtol=1e-3)
    x = shared.host(res.x)    # waits for the device
    seconds = time.perf_counter() - start
    shared.progress()

    status, iterations = shared.host(res.status), shared.host(res.nit)
    print(f"{count} fits in {seconds:.2f} s; {int(shared.host(res.success).sum())} succeeded")
    for code in np.unique(status):
        reason = lx.Status(int(code))
        print(f"  {int((status == code).sum()):5}  {reason.name}: {reason}")
    least, middle, most = np.quantile(iterations, (0.0, 0.5, 1.0))
    print(f"iterations: {least:.0f} to {most:.0f}, median {middle:.0f}")
    pulls = (x - truth) / np.sqrt(shared.host(res.hess_inv.diagonal()))
    for name, error, pull in zip("abc", np.abs(x - truth).T, pulls.T, strict=True):
        print(f"{name}: median error {np.median(error):.4f}; "
              f"spread in units of the standard error {np.std(pull):.2f}")
    picture = draw(pulls, iterations)
    if picture is not None:
        shared.save(picture, options.out, "batch_of_fits")


if __name__ == "__main__":
    main()
