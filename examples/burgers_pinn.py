"""A physics-informed network for Burgers' equation: python examples/burgers_pinn.py --quick

    u_t + u u_x = nu u_xx  for -1 < x < 1 and 0 < t < 1, with nu = 0.01 / pi,
    u(x, 0) = -sin(pi x),  u(-1, t) = u(1, t) = 0.

The network (Raissi, Perdikaris & Karniadakis 2019) is trained with Adam and then L-BFGS, and with
Adam alone for the same number of evaluations. The relative L2 error is measured against the
solution in the file given by --data (burgers_shock.mat of that paper), or without it against the
Cole-Hopf formula. Without --quick it runs for several minutes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import lbfgs_xp as lx

NU = 0.01 / math.pi
WITH, ALONE = "Adam, then L-BFGS", "Adam alone"
COLORS = {WITH: "#0072B2", ALONE: "#D55E00"}    # Okabe & Ito: distinct for colour-blind eyes


class Solution(NamedTuple):
    """u(x, t) on a grid: x (nx,), t (nt,), u (nx, nt)."""

    x: np.ndarray
    t: np.ndarray
    u: np.ndarray


class Run(NamedTuple):
    """The outcome of one training: the network's u, and the curve of (evaluations, loss)."""

    result: lx.Result
    seconds: float
    u: np.ndarray
    curve: np.ndarray


# --- the reference -----------------------------------------------------------------------------


def cole_hopf(x: np.ndarray, t: np.ndarray, nodes: int = 100) -> Solution:
    """The solution by the transform of Cole (1951) and Hopf (1950).

    u = -int sin(pi y) w dz / int w dz, with y = x - sqrt(4 nu t) z and
    w = exp(-cos(pi y) / (2 pi nu) - z^2), by Gauss-Hermite quadrature.
    """
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    y = x[:, None, None] - np.sqrt(4.0 * NU * t)[:, None] * z
    exponent = -np.cos(np.pi * y) / (2.0 * np.pi * NU)
    w = weights * np.exp(exponent - exponent.max(-1, keepdims=True))    # without overflow
    return Solution(x, t, -np.sum(np.sin(np.pi * y) * w, -1) / np.sum(w, -1))


def reference(data: Path | None) -> Solution:
    if data is None:
        return cole_hopf(np.linspace(-1.0, 1.0, 256), np.linspace(0.0, 0.99, 100))
    from scipy.io import loadmat

    content = loadmat(data)
    return Solution(content["x"].ravel(), content["t"].ravel(), content["usol"])


# --- the network -------------------------------------------------------------------------------


def initial(widths: list[int], dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """Layers with weights initialised after Glorot & Bengio (2010)."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "weight": math.sqrt(2.0 / (m + n))
            * torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype),
            "bias": torch.zeros(n, dtype=dtype),
        }
        for m, n in zip(widths, widths[1:], strict=False)
    ]


def u(params: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The solution at (k,), (k,); it meets the initial and boundary values for any parameters."""
    h = torch.stack([x, 2.0 * t - 1.0], dim=-1)
    for layer in params[:-1]:
        h = torch.tanh(h @ layer["weight"] + layer["bias"])
    network = (h @ params[-1]["weight"] + params[-1]["bias"])[:, 0]
    return -torch.sin(math.pi * x) + t * (1.0 - x * x) * network


def residual(points: int, dtype: torch.dtype) -> Callable[[Any], torch.Tensor]:
    """The loss: the mean square of u_t + u u_x - nu u_xx at fixed points."""
    s, t = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(points).T
    s = 2.0 * s - 1.0
    # Denser near x = 0, where a shock forms.
    x = (torch.sign(s) * torch.abs(s) ** 1.5).to(dtype).requires_grad_()
    t = t.to(dtype).requires_grad_()

    def loss(params: Any) -> torch.Tensor:
        value = u(params, x, t)
        u_x, u_t = torch.autograd.grad(value.sum(), (x, t), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        return ((u_t + value * u_x - NU * u_xx) ** 2).mean()

    return loss


def train(method: Any, quick: bool, evaluations: int, dtype: torch.dtype, at: Solution) -> Run:
    curve: list[tuple[int, float]] = []
    begin = time.perf_counter()
    res = lx.minimize(
        residual(1024 if quick else 2048, dtype),
        initial([2, 16, 16, 16, 1] if quick else [2, 20, 20, 20, 20, 1], dtype),
        method=method, maxfun=evaluations, gtol=0.0,
        callback=lambda record: curve.append((record.nfev, record.fun)),
    )
    seconds = time.perf_counter() - begin
    x, t = (torch.as_tensor(g.ravel(), dtype=dtype) for g in np.meshgrid(at.x, at.t, indexing="ij"))
    found = u(res.x, x, t).numpy().astype(np.float64).reshape(at.u.shape)
    return Run(res, seconds, found, np.asarray(curve))


# --- the output --------------------------------------------------------------------------------


def error(found: np.ndarray, at: Solution) -> float:
    return float(np.linalg.norm(found - at.u) / np.linalg.norm(at.u))


def draw(runs: dict[str, Run], at: Solution, title: str, path: Path) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    (left, right), (below, curves) = figure.subplots(2, 2)
    shown = left.pcolormesh(at.t, at.x, runs[WITH].u, cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    left.set(title=f"u(x, t): {WITH}", xlabel="t", ylabel="x")
    figure.colorbar(shown, ax=left)
    for axes, name in ((right, WITH), (below, ALONE)):
        away = np.maximum(np.abs(runs[name].u - at.u), 1e-12)
        shown = axes.pcolormesh(at.t, at.x, away, cmap="cividis", norm=LogNorm(1e-6, 1.0))
        axes.set(
            title=f"|error|: {name} (relative L2 {error(runs[name].u, at):.1e})",
            xlabel="t", ylabel="x",
        )
        figure.colorbar(shown, ax=axes)
    for (name, run), style in zip(runs.items(), ("-", "--"), strict=True):
        label = f"{name}: {run.result.fun:.1e}"
        curves.semilogy(*run.curve.T, style, color=COLORS[name], linewidth=1.4, label=label)
    curves.axvline(runs[WITH].result.phases[0].nfev, color="#999999", linewidth=0.8, zorder=0)
    curves.set(title="loss", xlabel="evaluations", ylabel="mean squared residual")
    curves.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller network, fewer evaluations")
    parser.add_argument("--dtype", choices=("float64", "float32"), help="default: both in turn")
    parser.add_argument("--evaluations", type=int, help="default: 1600 if quick, else 6000")
    parser.add_argument("--data", type=Path, metavar="FILE.mat", help="a solution: x, t and usol")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="folder for the pictures"
    )
    options = parser.parse_args()
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data}: no such file")
    evaluations = options.evaluations or (1600 if options.quick else 6000)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)    # the arrays are small

    exact = reference(options.data)
    adam = lx.Adam(5e-3)
    methods: dict[str, Any] = {
        WITH: [adam.until(maxfun=evaluations // 4), lx.LBFGS(memory_size=50)],
        ALONE: adam,
    }
    for dtype in (options.dtype,) if options.dtype else ("float64", "float32"):
        runs = {
            name: train(method, options.quick, evaluations, getattr(torch, dtype), exact)
            for name, method in methods.items()
        }
        for name, run in runs.items():
            res = run.result
            print(
                f"{dtype}  {name:17}  {res.nfev} evaluations, {run.seconds:.0f} s  "
                f"loss {res.fun:.2e}  relative L2 error {error(run.u, exact):.2e}"
            )
            for phase in res.phases:
                print(f"    {phase.nit} iterations, until {phase.status.name}: {phase.message}")
        picture = options.out / f"burgers_{dtype}.png"
        draw(runs, exact, f"Burgers' equation, {dtype}", picture)
        print(f"    picture: {picture}")


if __name__ == "__main__":
    main()
