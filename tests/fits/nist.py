"""The nonlinear NIST Statistical Reference Datasets, read from tests/data/nist.

Each file holds the data, two starts, and parameters and standard deviations certified to 11 digits.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "data" / "nist"


@dataclasses.dataclass(frozen=True)
class Reference:
    """One data set: y, x (m,) or (k, m), starts (2, p), and certified results."""

    name: str
    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    parameters: np.ndarray
    deviations: np.ndarray
    sum_of_squares: float

    def model(self, xp: Any) -> Callable:
        """model(x, *parameters), with the functions of the namespace xp."""

        def model(x: Any, *b: Any) -> Any:
            return (MODELS | MORE)[self.name](xp, x, *b)

        return model


def read(name: str) -> Reference:
    text = (FOLDER / f"{name}.dat").read_text(encoding="latin-1")
    rows = re.findall(r"^\s*b\d+ =((?:\s+[-+.\dE]+){4})\s*$", text, re.MULTILINE)
    table = np.asarray([[float(number) for number in row.split()] for row in rows])
    total = re.search(r"Residual Sum of Squares:\s+(\S+)", text)
    assert total is not None and len(table) > 0
    data = np.asarray(
        [
            [float(number) for number in line.split()]
            for line in text[text.rindex("Data:") :].splitlines()[1:]
            if line.strip()
        ]
    )
    y, x = data[:, 0], data[:, 1:].T
    return Reference(
        name,
        x[0] if len(x) == 1 else x,
        np.log(y) if name == "Nelson" else y,
        table[:, :2].T,
        table[:, 2],
        table[:, 3],
        float(total[1]),
    )


def chwirut(xp: Any, x: Any, b1: Any, b2: Any, b3: Any) -> Any:
    return xp.exp(-b1 * x) / (b2 + b3 * x)


def gauss(xp: Any, x: Any, b1: Any, b2: Any, *peaks: Any) -> Any:
    y = b1 * xp.exp(-b2 * x)
    for height, middle, width in (peaks[:3], peaks[3:]):
        y = y + height * xp.exp(-((x - middle) ** 2) / width**2)
    return y


def lanczos(xp: Any, x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any, b6: Any) -> Any:
    return b1 * xp.exp(-b2 * x) + b3 * xp.exp(-b4 * x) + b5 * xp.exp(-b6 * x)


def enso(xp: Any, x: Any, b1: Any, *b: Any) -> Any:
    y = b1 + b[0] * xp.cos(2 * math.pi * x / 12) + b[1] * xp.sin(2 * math.pi * x / 12)
    for period, even, odd in (b[2:5], b[5:8]):
        angle = 2 * math.pi * x / period
        y = y + even * xp.cos(angle) + odd * xp.sin(angle)
    return y


def hahn(xp: Any, x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any, b6: Any, b7: Any) -> Any:
    above = b1 + b2 * x + b3 * x**2 + b4 * x**3
    return above / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def kirby(xp: Any, x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any) -> Any:
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def mgh17(xp: Any, x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any) -> Any:
    return b1 + b2 * xp.exp(-x * b4) + b3 * xp.exp(-x * b5)


def roszman(xp: Any, x: Any, b1: Any, b2: Any, b3: Any, b4: Any) -> Any:
    return b1 - b2 * x - xp.atan(b3 / (x - b4)) / math.pi


MODELS: dict[str, Callable] = {
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": lambda xp, x, b1, b2: b1 * x**b2,
    "ENSO": enso,
    "Gauss1": gauss,
    "Gauss2": gauss,
    "Gauss3": gauss,
    "Hahn1": hahn,
    "Kirby2": kirby,
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Lanczos3": lanczos,
    "MGH17": mgh17,
    "Misra1a": lambda xp, x, b1, b2: b1 * (1 - xp.exp(-b2 * x)),
    "Misra1b": lambda xp, x, b1, b2: b1 * (1 - (1 + b2 * x / 2) ** -2),
    "Misra1c": lambda xp, x, b1, b2: b1 * (1 - (1 + 2 * b2 * x) ** -0.5),
    "Misra1d": lambda xp, x, b1, b2: b1 * b2 * x / (1 + b2 * x),
    "Nelson": lambda xp, x, b1, b2, b3: b1 - b2 * x[0, ...] * xp.exp(-b3 * x[1, ...]),
    "Roszman1": roszman,
}
# For NumPy alone.
MORE: dict[str, Callable] = {
    "Bennett5": lambda xp, x, b1, b2, b3: b1 * (b2 + x) ** (-1 / b3),
    "Eckerle4": lambda xp, x, b1, b2, b3: b1 / b2 * xp.exp(-0.5 * ((x - b3) / b2) ** 2),
    "Thurber": hahn,
}
