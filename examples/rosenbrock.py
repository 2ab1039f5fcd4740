"""Rosenbrock's valley with the arrays of any library: python examples/rosenbrock.py"""

from __future__ import annotations

import argparse
from typing import Any

import _common as shared
import array_api_compat

import lbfgs_xp as lx


def value_and_gradient(x: Any) -> tuple[Any, Any]:
    """100 (x1 - x0^2)^2 + (1 - x0)^2 and its gradient, for arrays of any library."""
    xp = array_api_compat.array_namespace(x)
    t, u = x[1] - x[0] * x[0], 1.0 - x[0]
    return 100.0 * t * t + u * u, xp.stack([-400.0 * x[0] * t - 2.0 * u, 200.0 * t])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    libraries = (*shared.BACKENDS, "array_api_strict")
    parser.add_argument("--backend", choices=libraries, default="numpy", help="default: numpy")
    x0 = shared.array_library(parser.parse_args().backend).array([-1.2, 1.0])
    print(lx.minimize(value_and_gradient, x0, jac=True))


if __name__ == "__main__":
    main()
