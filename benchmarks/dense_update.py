"""The update of a dense inverse Hessian: its time beside that of reading and writing the matrix.

For each library, one update of `lx.SSBroyden` and one of `lx.BFGS` for n variables in float64, the
two products of H with a vector that a step also needs, and the floor: multiplying H by a number in
place.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from _common import print_machine, print_table

import lbfgs_xp as lx

jax.config.update("jax_enable_x64", True)


def least(function: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of processor time."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        jax.block_until_ready(function())
        seconds.append(time.process_time() - began)
    return 1e3 * min(seconds)


class Matrix:
    """A matrix that each update replaces."""

    def __init__(self, space: lx.Space, matrix: Any):
        self.space, self.held = space, space.own_matrices(matrix)

    def squares(self, u: Any, v: Any) -> Any:
        self.held = self.space.add_products(0.999, self.held, (u, -u), (v, v))
        return self.held

    def pair(self, u: Any, v: Any) -> Any:
        self.held = self.space.add_outer(0.999, self.held, u, v)
        return self.held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args()
    repeats = 3 if options.quick else 15
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    host = rng.normal(size=(options.n, options.n))
    host = 0.5 * (host + host.T)
    vectors = 1e-3 * rng.normal(size=(2, options.n))
    scaled = jax.jit(lambda h: 0.999 * h, donate_argnums=0)
    for name, asarray in (
        ("NumPy", np.array), ("PyTorch", torch.asarray), ("JAX", jax.numpy.asarray),
    ):
        u, v = map(asarray, vectors)
        ours = Matrix(lx.Space(u), asarray(host))
        own = Matrix(lx.Space(u), asarray(host))
        plain = [own.held]

        def floor(plain: list = plain, name: str = name) -> Any:
            if name == "JAX":
                plain[0] = scaled(plain[0])
            else:
                plain[0] *= 0.999
            return plain[0]

        floor(), ours.squares(u, v), ours.pair(u, v)    # compiles
        times = [
            least(floor, repeats),
            least(lambda m=ours, u=u, v=v: m.squares(u, v), repeats),
            least(lambda m=ours, u=u, v=v: m.pair(u, v), repeats),
            least(lambda m=ours, u=u, v=v: (m.held @ u, m.held @ v), repeats),
        ]
        rows.append([name, *(f"{each:.1f}" for each in times), f"{times[1] / times[0]:.2f}"])
    print_table(
        f"Milliseconds of processor time for n = {options.n}",
        ["", "read and write", "SSBroyden", "BFGS", "two products", "SSBroyden / read and write"],
        rows,
    )
    print_machine()


if __name__ == "__main__":
    main()
