"""Kernels compiled by g++, as NVRTC compiles them for a GPU."""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILER = shutil.which("g++")
# Not from <cmath>, which takes longer to read than a kernel to compile.
_FUNCTIONS = """
static inline double sqrt(double x) { return __builtin_sqrt(x); }
static inline float sqrt(float x) { return __builtin_sqrtf(x); }
static inline double fabs(double x) { return __builtin_fabs(x); }
static inline float fabs(float x) { return __builtin_fabsf(x); }
"""


@functools.cache
def library(text: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The compiled source, in which sqrt and fabs are known; it is kept for later runs."""
    if COMPILER is None:
        raise RuntimeError(
            "g++ was not found, with which the stand-ins for a GPU compile kernels; install it (on "
            "Debian and Ubuntu: apt-get install g++)"
        )
    text = _FUNCTIONS + text
    name = hashlib.sha256("\n".join([text, *options]).encode()).hexdigest()[:20]
    built = _folder() / f"{name}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            source, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text(text)
            command = [COMPILER, "-O1", "-shared", "-fPIC", *options, str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ could not compile a kernel:\n{done.stderr}\n{text}")
            made.rename(built)    # in one step, because other processes may load it
    return ctypes.CDLL(str(built))


def _folder() -> Path:
    """A folder for compiled kernels that only this user can write to."""
    folder = Path(tempfile.gettempdir()) / f"lbfgs_xp-kernels-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user")
    return folder
