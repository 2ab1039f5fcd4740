"""The array libraries and devices of this machine, for the command line."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

from lbfgs_xp.arrays.backend import OWN_WAYS, Array, class_for

# What to import if it is not named like the library.
_MODULES = {"dask": "dask.array"}


def installed() -> dict[str, str]:
    """The array libraries that can be imported, with their versions."""
    found = {}
    for name in (*OWN_WAYS, "dask"):
        try:
            importlib.import_module(_MODULES.get(name, name))
        except ImportError:
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # CuPy's wheels carry the CUDA version in their name.
            found[name] = getattr(sys.modules[name], "__version__", "unknown")
    return found


def samples(name: str) -> list[tuple[str, Array]]:
    """One small array of floats on each device of library `name`, with the device's name."""
    library = importlib.import_module(_MODULES.get(name, name))
    return class_for(name).samples(library)
