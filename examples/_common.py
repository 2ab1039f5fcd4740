"""Code shared by the examples: arguments, the array library, a progress line, pictures."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Okabe & Ito (2008): distinct for colour-blind readers. Vary the dashes or markers of curves too.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000",
)
COLORS = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2))]

BACKENDS = ("numpy", "torch", "jax", "cupy")


class Library(NamedTuple):
    """An array library: its name and its array API namespace."""

    name: str
    xp: Any

    def array(self, values: Any, dtype: str = "float64") -> Any:
        """The values as an array of the library; for CuPy, on the GPU."""
        return self.xp.asarray(values, dtype=getattr(self.xp, dtype))

    def compiled(self, function: Any) -> Any:
        """The function, compiled on JAX and unchanged for other libraries."""
        return importlib.import_module("jax").jit(function) if self.name == "jax" else function


def host(array: Any) -> np.ndarray:
    """The array as a NumPy array, for pictures and tables."""
    return np.asarray(array.get() if hasattr(array, "get") else array)    # CuPy has `get`


def parser(doc: str, backends: Sequence[str] = BACKENDS) -> argparse.ArgumentParser:
    """A parser with --quick, --out and, unless there is one backend only, --backend; an example
    adds its own arguments."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    if len(backends) > 1:
        made.add_argument("--backend", choices=backends, default="numpy", help="default: numpy")
    made.add_argument("--quick", action="store_true", help="a smaller version: some seconds")
    made.add_argument(
        "--out", type=Path, default=Path("pictures"), metavar="FOLDER",
        help="folder for the pictures, if matplotlib is installed; default: pictures",
    )
    return made


def array_library(name: str) -> Library:
    """The array library of that name; exit if it is not installed."""
    if name == "jax":
        os.environ.setdefault("JAX_ENABLE_X64", "1")    # float64, as in the other libraries
    try:
        module = importlib.import_module("jax.numpy" if name == "jax" else name)
    except ImportError:
        sys.exit(f"--backend {name}: {name} is not installed")
    if name == "torch":
        module = importlib.import_module("array_api_compat.torch")
    elif name == "cupy":
        module = importlib.import_module("array_api_compat.cupy")
    return Library(name, module)


def against_truth(
    found: Mapping[str, float], errors: Mapping[str, float], truth: Mapping[str, float],
    called: str = "truth",
) -> None:
    """Print fitted parameters beside those with which the data were simulated, with their distance
    in standard errors."""
    width = max(map(len, truth))
    for name, value in truth.items():
        pull = (found[name] - value) / errors[name]
        print(f"  {name:<{width}}  {found[name]:11.5g} ± {errors[name]:<8.2g} {called} "
              f"{value:9.5g}   {pull:+.2f} standard errors")


def progress(text: str = "") -> None:
    """Show one live line, on a terminal only. Without text, erase it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def figure(width: float, height: float) -> Any:
    """A matplotlib figure, or None if matplotlib is not installed."""
    try:
        made = importlib.import_module("matplotlib.figure")
    except ImportError:
        print("matplotlib is not installed: no picture")
        return None
    return made.Figure(figsize=(width, height), layout="constrained")


def save(picture: Any, folder: Path, name: str) -> None:
    """Write the picture to folder/name.png and print its path."""
    progress()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    picture.savefig(path, dpi=110)
    print(f"picture: {path}")
