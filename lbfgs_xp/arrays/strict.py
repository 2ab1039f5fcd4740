"""array-api-strict: only the standard, with a second device that NumPy cannot read directly."""

from __future__ import annotations

from typing import Any

import array_api_strict as strict
import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend


class StrictBackend(Backend):
    mutable = True

    @staticmethod
    def to_host(array: Array) -> np.ndarray:
        return np.asarray(array.to_device(strict.Device("CPU_DEVICE")))

    @staticmethod
    def samples(library: Any) -> list[tuple[str, Array]]:
        return [
            (str(d), strict.asarray([1.0, 1.0], dtype=strict.float64, device=strict.Device(d)))
            for d in ("CPU_DEVICE", "device1")
        ]
