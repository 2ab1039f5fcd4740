"""A thousand decay curves fitted at once: python examples/batch_of_fits.py

Each row of x is a problem of its own, with its own memory, line search and status. The same code
runs on a GPU: make `t`, `y` and `x0` there.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import lbfgs_xp as lx

SIGMA = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=1000)
    count = parser.parse_args().problems

    rng = np.random.default_rng(0)
    truth = rng.uniform([1.0, 0.5, 0.0], [4.0, 2.0, 1.0], size=(count, 3))
    t = np.linspace(0.0, 4.0, 50)
    y = truth[:, :1] * np.exp(-truth[:, 1:2] * t) + truth[:, 2:]
    y = y + rng.normal(scale=SIGMA, size=y.shape)

    def fun(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 3) -> values (B,) and gradients (B, 3)."""
        a, b, c = x[:, :1], x[:, 1:2], x[:, 2:]
        e = np.exp(-b * t)
        r = a * e + c - y
        slopes = [(r * e).sum(-1), (-a * t * e * r).sum(-1), r.sum(-1)]
        return 0.5 * (r * r).sum(-1), np.stack(slopes, axis=-1)

    start = time.perf_counter()
    res = lx.minimize(fun, np.ones((count, 3)), jac=True, batched=True, gtol=1e-5)
    seconds = time.perf_counter() - start

    print(f"{count} fits in {seconds:.2f} s; {int(res.success.sum())} of them succeeded")
    for code in np.unique(res.status):
        status = lx.Status(int(code))
        print(f"  {int((res.status == code).sum()):5}  {status.name}: {status}")
    print(f"iterations: {res.nit.min()} to {res.nit.max()}, median {np.median(res.nit):.0f}")
    print(f"median error of a, b, c: {np.median(np.abs(res.x - truth), axis=0).round(4)}")


if __name__ == "__main__":
    main()
