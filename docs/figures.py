"""Draw the pictures of the pages into docs/figures: python docs/figures.py [page.md ...]"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import lbfgs_xp as lx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from _common import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION  # noqa: E402

FOLDER = HERE / "figures"
# pages whose blocks draw pictures themselves
PAGES = ["curve_fit.md", "constraints.md", "jax.md", "checkpoints.md",
         "training.md", "pinns.md", "gpu.md"]
GREY = "#777777"
# With a fixed salt, the same numbers give the same file.
matplotlib.rcParams.update({
    "svg.hashsalt": "lbfgs_xp", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10.5,
})


def save(figure: Figure, file: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / file
    figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"picture: {path.relative_to(HERE.parent)}")


# --- the conditions of a line search -----------------------------------------------------------

END = 6.6


def phi(a: Any) -> Any:
    """The value along a direction, with two minima."""
    return 0.12 * (a - 3.2) ** 2 + 0.35 * np.cos(2.2 * a)


def slope(a: Any) -> Any:
    return 0.24 * (a - 3.2) - 0.77 * np.sin(2.2 * a)


def bars(axes: Any, a: np.ndarray, rows: list[tuple[str, np.ndarray, str]]) -> None:
    """Show where along `a` each condition holds, with one row of bars for each."""
    for row, (_, holds, color) in enumerate(rows):
        parts = [(left, right - left) for left, right in runs(a, holds)]
        axes.broken_barh(parts, (row - 0.32, 0.64), color=color, linewidth=0)
    axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
    axes.set_yticklabels([name for name, *_ in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def origin(axes: Any, value: float) -> None:
    axes.plot(0.0, value, "o", color=BLACK, markersize=5, zorder=5, clip_on=False)


def sufficient_decrease() -> None:
    a = np.linspace(0.0, END, 400)
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4.2, 1.3))
    axes.plot(a, phi(a), color=BLUE, linewidth=2.2)
    axes.annotate(r"$\phi(\alpha)$", (5.9, phi(5.9)), (-26, 6), textcoords="offset points",
                  color=BLUE, fontsize=13)
    near = a < 1.8
    axes.plot(a[near], phi(0.0) + slope(0.0) * a[near], ":", color=GREY, linewidth=1.5)
    axes.annotate(r"slope $\phi'(0)$", (1.3, phi(0.0) + 1.3 * slope(0.0)), (9, 0),
                  textcoords="offset points", color=GREY)
    rows = []
    for c1, color, style, at in ((0.1, GREEN, "-", 3.2), (0.4, PURPLE, "--", 3.4)):
        line = phi(0.0) + c1 * slope(0.0) * a
        shown = line > -0.3
        axes.plot(a[shown], line[shown], style, color=color, linewidth=1.6)
        axes.annotate(rf"$c_1 = {c1}$", (at, phi(0.0) + c1 * slope(0.0) * at), (4, 6),
                      textcoords="offset points", color=color)
        rows.append((rf"$c_1 = {c1}$", phi(a) <= line, color))
    origin(axes, phi(0.0))
    axes.set(xlim=(0.0, END), ylim=(-0.35, 1.75), ylabel="value")
    bars(below, a, rows)
    below.set(xlabel=r"step length $\alpha$")
    below.set_title("accepted", loc="left", color=GREY, fontsize=9.5, pad=2)
    save(figure, "sufficient_decrease.svg")


def wolfe() -> None:
    c1, c2 = 0.1, 0.5
    a = np.linspace(0.0, END, 400)
    start = slope(0.0)
    enough = phi(a) <= phi(0.0) + c1 * start * a
    risen, flat = slope(a) >= c2 * start, np.abs(slope(a)) <= -c2 * start
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2.6, 1.7))
    axes.plot(a, phi(a), color=BLUE, linewidth=2.2)
    axes.plot(a, phi(0.0) + c1 * start * a, color=GREEN, linewidth=1.5)
    axes.annotate(r"$\phi(0) + c_1 \alpha\, \phi'(0)$", (3.0, phi(0.0) + 3.0 * c1 * start), (6, 8),
                  textcoords="offset points", color=GREEN)
    axes.annotate(r"$\phi(\alpha)$", (5.9, phi(5.9)), (-26, 6), textcoords="offset points",
                  color=BLUE, fontsize=13)
    for left, right in runs(a, enough & flat):
        for panel in (axes, middle):
            panel.axvspan(left, right, color=VERMILION, alpha=0.13, linewidth=0)
    origin(axes, phi(0.0))
    axes.set(xlim=(0.0, END), ylim=(-0.35, 1.85), ylabel="value")

    middle.plot(a, slope(a), color=BLUE, linewidth=2.2)
    middle.axhline(0.0, color=GREY, linewidth=0.8)
    middle.axhline(c2 * start, color=ORANGE, linewidth=1.5, linestyle="--")
    middle.axhline(-c2 * start, color=VERMILION, linewidth=1.5, linestyle="-.")
    middle.annotate(r"$c_2\, \phi'(0)$", (END, c2 * start), (-52, -15), color="#A06E00",
                    textcoords="offset points")
    middle.annotate(r"$-c_2\, \phi'(0)$", (0.0, -c2 * start), (6, 5), color=VERMILION,
                    textcoords="offset points")
    origin(middle, start)
    middle.set(ylabel=r"slope $\phi'(\alpha)$", ylim=(-1.55, 1.6))
    bars(below, a, [
        ("sufficient decrease", enough, GREEN),
        ("weak Wolfe", enough & risen, ORANGE),
        ("strong Wolfe", enough & flat, VERMILION),
    ])
    below.set(xlabel=r"step length $\alpha$")
    save(figure, "wolfe.svg")


def runs(a: np.ndarray, holds: np.ndarray) -> list[tuple[float, float]]:
    """The intervals of the evenly spaced `a` on which `holds` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], holds.astype(int), [0]])))
    half = 0.5 * (a[1] - a[0])
    return [
        (float(a[i]) - half, float(a[j - 1]) + half)
        for i, j in zip(edges[::2], edges[1::2], strict=True)
    ]


def approximate_wolfe() -> None:
    """Draw a mean of squares in float32, along a line through its minimum."""
    rng = np.random.default_rng(5)
    A = rng.normal(size=(400, 3)).astype(np.float32)
    b = (A @ np.ones(3) + rng.normal(size=400)).astype(np.float32)
    best = np.linalg.lstsq(A.astype(float), b.astype(float), rcond=None)[0]
    d = np.asarray([2.6e-4, -1.2e-4, 1.0e-4])
    start = best - d

    def value_and_slope(a: float, dtype: Any) -> tuple[float, float]:
        x = (start + a * d).astype(dtype)
        r = A.astype(dtype) @ x - b.astype(dtype)
        half = dtype(0.5) * np.mean(r * r)
        return float(half), float((A.astype(dtype).T @ r / dtype(len(b))) @ d.astype(dtype))

    a = np.linspace(0.0, 2.3, 116)
    exact = np.asarray([value_and_slope(v, np.float64) for v in a])
    seen = np.asarray([value_and_slope(v, np.float32) for v in a])
    delta, sigma = lx.HagerZhang().delta, lx.HagerZhang().sigma
    phi0, dphi0 = seen[0]
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(2.8, 2.4, 1.2))
    ulp = float(np.spacing(np.float32(phi0)))
    axes.plot(a, (exact[:, 0] - exact[0, 0]) / ulp, color=GREY, linewidth=1.5, label="exact")
    axes.plot(a, (seen[:, 0] - phi0) / ulp, ".", color=BLUE, markersize=5, label="float32")
    line = delta * a * dphi0 / ulp
    axes.plot(a, line, color=GREEN, linewidth=1.5, linestyle="--", label="sufficient decrease")
    axes.set(ylabel="$\\phi(\\alpha) - \\phi(0)$,\nin units of the last digit", xlim=(0.0, 2.3))
    axes.legend(frameon=False, loc="upper center", ncols=3)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))

    scale = 1.0 / abs(dphi0)
    middle.plot(a, exact[:, 1] * scale, color=GREY, linewidth=1.5)
    middle.plot(a, seen[:, 1] * scale, ".", color=BLUE, markersize=5)
    middle.axhspan(-sigma, 1.0 - 2.0 * delta, color=ORANGE, alpha=0.22, linewidth=0)
    middle.annotate(r"$(2\delta - 1)\, \phi'(0)$", (0.0, 1.0 - 2.0 * delta), (6, -15),
                    textcoords="offset points", color="#A06E00")
    middle.annotate(r"$\sigma\, \phi'(0)$", (2.3, -sigma), (-40, 6),
                    textcoords="offset points", color="#A06E00")
    middle.set(ylabel=r"slope, $\phi'(\alpha)\ /\ |\phi'(0)|$")
    by_value = seen[:, 0] <= phi0 + delta * a * dphi0
    by_slope = (seen[:, 1] >= sigma * dphi0) & (seen[:, 1] <= (2.0 * delta - 1.0) * dphi0)
    bars(below, a, [("by values", by_value, GREEN), ("by slopes", by_slope, ORANGE)])
    below.set(xlabel=r"step length $\alpha$")
    below.set_title("accepted", loc="left", color=GREY, fontsize=9.5, pad=2)
    save(figure, "approximate_wolfe.svg")


# --- time beside that of peers --------------------------------------------------------------------


def performance() -> None:
    """The time of some tasks over that of a peer: figures of docs/performance.md."""
    rows = [
        ("an iteration, n = 100\nSciPy L-BFGS-B", 1.06),
        ("n = 10,000\nSciPy L-BFGS-B", 0.31),
        ("n = 1,000,000\nSciPy L-BFGS-B", 0.31),
        ("n = 1,000,000\ntorch.optim.LBFGS", 0.53),
        ("10,000 problems in 6 variables\nloop over SciPy", 1 / 44),
        ("the same within bounds\nloop over SciPy", 1 / 18),
        ("logistic regression with L1\nliblinear", 0.25),
        ("a step of Adam, 10,000,000 numbers\ntorch foreach", 0.75),
        ("10,000 profile intervals\nloop over MINOS", 1 / 50),
        ("5,000 fits of 200 points\nloop over SciPy curve_fit", 1 / 2.1),
        ("10,000,000 data, 3 parameters\nnlsq", 0.18),
        ("one fit of 200 points\nSciPy curve_fit", 4.2),
    ]
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    axes = figure.subplots()
    for at, (_, ratio) in enumerate(rows):
        axes.barh(at, ratio, color=BLUE if ratio <= 1.1 else VERMILION, height=0.6)
        axes.annotate(f" {ratio:.2g} ×", (ratio, at), va="center", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.axvline(1.0, color=BLACK, linewidth=1.0)
    axes.set(xscale="log", ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), xlim=(0.015, 16),
             xlabel="time here / time of the peer (logarithmic; 1: equally fast)")
    axes.set_yticklabels([name for name, _ in rows], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    save(figure, "performance.svg")


# --- the front page ----------------------------------------------------------------------------


def valley() -> None:
    """Draw what the program on the front page draws."""
    page = (HERE / "index.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    axes, res = names["ax"], names["res"]
    axes.set_title(f"Rosenbrock's valley: {res.nit} steps, {res.nfev} evaluations")
    axes.figure.set_size_inches(5.4, 4.2)
    axes.figure.set_layout_engine("constrained")
    save(axes.figure, "valley.png")


# --- the pictures that the pages draw ----------------------------------------------------------

# a block of Python, what it prints, and the picture that follows
BLOCK = re.compile(
    r"^```python\b([^\n]*)\n(.*?)^```(?:\n+```text\n.*?^```)?(?:\n+!\[[^]]*\]\(figures/([\w.]+)\))?",
    re.MULTILINE | re.DOTALL,
)


def drawn_by(page: str) -> None:
    """Run the blocks of the page, and save the `figure` of each that a picture follows."""
    names: dict[str, Any] = {"__name__": "__document__"}
    blocks = BLOCK.findall((HERE / page).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):    # they write files
        for info, block, file in blocks:
            if "no-run" in info:
                continue
            names.pop("figure", None)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, page, "exec"), names)
            if file and "figure" in names:
                save(names["figure"], file)


def main(pages: list[str]) -> None:
    """Draw the pictures of these pages, or all."""
    if pages:
        for page in pages:
            drawn_by(page)
        return
    for page in PAGES:
        drawn_by(page)
    sufficient_decrease()
    wolfe()
    approximate_wolfe()
    performance()
    valley()


if __name__ == "__main__":
    main(sys.argv[1:])
