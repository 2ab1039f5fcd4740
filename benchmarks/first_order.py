"""One step of Adam on 10,000,000 parameters, compared with torch.optim and optax.

    python benchmarks/first_order.py [--size N] [--repeats K]

All contenders take turns in one process. Parameters and state are overwritten in place, as in
torch; on JAX they are donated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from _optax import adam_step

import lbfgs_xp as lx

jax.config.update("jax_enable_x64", True)


def ours(x: Any, g: Any) -> Callable[[], Any]:
    opt = lx.Adam(1e-3)
    held = [x, opt.init(x)]

    def step() -> Any:
        held[:] = opt.update(held[0], g, held[1], in_place=True)
        return held[0]

    return step


def of_torch(x: torch.Tensor, g: torch.Tensor, **how: bool) -> Callable[[], Any]:
    x = torch.nn.Parameter(x)
    x.grad = g
    return torch.optim.Adam([x], 1e-3, **how).step


def candidates(x: np.ndarray, g: np.ndarray) -> dict[str, Callable[[], Any]]:
    tensors = [lambda a=a: torch.asarray(a.copy()) for a in (x, g)]
    arrays = [lambda a=a: jax.device_put(a.copy()) for a in (x, g)]
    return {
        "torch foreach": of_torch(*(make() for make in tensors), foreach=True),
        "torch fused": of_torch(*(make() for make in tensors), fused=True),
        "optax jitted": adam_step(*(make() for make in arrays)),
        "ours, NumPy": ours(x.copy(), g),
        "ours, torch": ours(*(make() for make in tensors)),
        "ours, JAX": ours(*(make() for make in arrays)),
    }


def measure(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            if repeat >= 2:  # the first two compile and touch new memory
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x, g = (rng.standard_normal(options.size).astype(dtype) for _ in range(2))
        found = measure(candidates(x, g), options.repeats)
        print(f"Adam, n = {options.size:,}, {np.dtype(dtype).name}: milliseconds per step")
        for name, seconds in found.items():
            peers = ("torch foreach", "torch fused", "optax jitted")
            ratios = ", ".join(f"{seconds / found[p]:.2f} x {p}" for p in peers if p != name)
            print(f"  {name:15}{1e3 * seconds:8.1f}   {ratios}")


if __name__ == "__main__":
    main()
