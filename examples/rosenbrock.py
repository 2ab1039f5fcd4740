"""Rosenbrock's valley with the arrays of any library: python examples/rosenbrock.py torch"""

from __future__ import annotations

import argparse
from typing import Any

import array_api_compat
import numpy as np

import lbfgs_xp as lx

LIBRARIES = ("numpy", "torch", "jax", "cupy", "array_api_strict")


def value_and_gradient(x: Any) -> tuple[Any, Any]:
    """100 (x1 - x0^2)^2 + (1 - x0)^2 and its gradient, for arrays of any library."""
    xp = array_api_compat.array_namespace(x)
    t, u = x[1] - x[0] * x[0], 1.0 - x[0]
    return 100.0 * t * t + u * u, xp.stack([-400.0 * x[0] * t - 2.0 * u, 200.0 * t])


def start(library: str) -> Any:
    """The usual start (-1.2, 1) as an array of that library."""
    if library == "torch":
        import torch

        return torch.tensor([-1.2, 1.0], dtype=torch.float64)
    if library == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)  # float64; JAX has float32 unless told
        return jax.numpy.asarray([-1.2, 1.0])
    if library == "cupy":
        import cupy

        return cupy.asarray([-1.2, 1.0])
    if library == "array_api_strict":
        import array_api_strict

        return array_api_strict.asarray([-1.2, 1.0])
    return np.asarray([-1.2, 1.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", nargs="?", default="numpy", choices=LIBRARIES)
    x0 = start(parser.parse_args().library)
    print(lx.minimize(value_and_gradient, x0, jac=True))


if __name__ == "__main__":
    main()
