"""The command line: python -m lbfgs_xp demo | info | check."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import lbfgs_xp as lx
from lbfgs_xp.arrays import inventory
from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.demo import console, demo

_ASIDE = ("array-api-compat", "array-api-extra", "optree", "rich", "matplotlib", "scipy")
# What an extra installs, and what it is for.
_EXTRAS = {
    "torch": ("torch", "automatic differentiation, GPUs, lbfgs_xp.torch"),
    "jax": ("jax", "automatic differentiation, compiled loops, GPUs"),
    "cupy": ("cupy", "NumPy's functions on NVIDIA's GPUs"),
    "plot": ("matplotlib", "lbfgs_xp.plot and fit.plot()"),
    "distributed": ("mpi4py", "lx.distributed.mpi()"),
}
# Seconds for one probe.
_PATIENCE = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lbfgs_xp",
        description="L-BFGS for arrays of any library.",
    )
    parser.add_argument("--version", action="version", version=f"lbfgs_xp {lx.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    shown = commands.add_parser(
        "demo",
        help="solve reference problems with every installed array library, and draw a picture",
        description="Minimise Rosenbrock's function and train a small network with every installed "
        "array library, on each device, in default and in reproducible mode; compare the iterates "
        "with those of NumPy; and draw how the line searches differ.",
    )
    shown.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR",
        help="folder for lbfgs_xp_demo.png (default: the current folder)",
    )
    shown.add_argument("--quick", action="store_true", help="smaller problems, fewer iterations")
    commands.add_parser(
        "info",
        help="show which array libraries and devices are available, and what works on each",
        description="List what is installed, and test what works on each device.",
    )
    examined = commands.add_parser(
        "check",
        help="say whether a function is fit for L-BFGS: gradient, noise, kinks, scales, time",
        description="Run lx.diagnose on a function in a file, which is imported. x0 is the "
        "variable of that name in the file, unless --x0 gives it. The exit code is 0 if the "
        "function is fit for L-BFGS, 1 if not, and 2 if the call is wrong.",
    )
    examined.add_argument("function", metavar="FILE:function", help="such as model.py:loss")
    examined.add_argument(
        "--x0", metavar="START",
        help="the name of a variable in the file, or numbers such as '[1.0, 2.0]'",
    )
    examined.add_argument(
        "--jac", metavar="HOW", help="the name of the gradient in the file; or True if the "
        "function returns (value, gradient), which is the default for functions that return a "
        "pair; or 2-point or 3-point",
    )
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    # Enable float64 in JAX, unless the user has decided; JAX reads this when it is first imported.
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    # The thread pools of several libraries in one process compete for the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if chosen.command == "demo":
        return demo(chosen.out, chosen.quick)
    if chosen.command == "check":
        return check(parser.error, chosen.function, chosen.x0, chosen.jac)
    return info()


# --- check -------------------------------------------------------------------------------------


def check(refuse: Callable[[str], NoReturn], where: str, start: str | None, how: str | None) -> int:
    """Diagnose a function in a file, and return the exit code.

    refuse : ends the program with a message.
    """
    file, colon, name = where.rpartition(":")
    if not colon or not name.isidentifier():
        refuse(f"{where} names no function; wanted FILE:function, such as model.py:loss")
    path = Path(file)
    if not path.is_file():
        refuse(f"{file} is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        refuse(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)

    def known(name: str, option: str) -> Any:
        if not hasattr(module, name):
            refuse(f"{file} has no {name}{option}")
        return getattr(module, name)

    fun = known(name, "")
    if start is not None and not start.isidentifier():
        try:
            x0: Any = np.asarray(json.loads(start), dtype=np.float64)
        except ValueError:
            refuse(f"--x0 is {start!r}; wanted a name in {file}, or numbers such as '[1.0, 2.0]'")
    else:
        x0 = known(start or "x0", "" if start else "; wanted the start of that name, or --x0")
    jac: Any = how
    if how is None:
        jac = True if _returns_a_pair(fun, x0) else None
    elif how == "True":
        jac = True
    elif how not in ("2-point", "3-point"):
        jac = known(how, " for --jac")
    diagnosis = lx.diagnose(fun, x0, jac=jac)
    print(diagnosis)
    return 0 if diagnosis.fit else 1


def _returns_a_pair(fun: Callable, x0: Any) -> bool:
    try:
        out = fun(x0)
    except Exception:    # which the diagnosis reports
        return False
    return isinstance(out, tuple) and len(out) == 2


# --- info --------------------------------------------------------------------------------------


def info() -> int:
    """Show what is installed, and what works on each device."""
    from rich.table import Table

    out = console()
    out.print(
        f"lbfgs_xp {lx.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )
    out.print(", ".join(f"{name} {_version(name)}" for name in _ASIDE), style="dim")
    probes: dict[str, Callable[[Backend], bool]] = {
        "autodiff": _differentiates,
        "in place": _writes_in_place,
        "compiles": _compiles,
        "batched": _solves_batches,
        "reproducible": _repeats_numpy,
    }
    table = Table()
    for heading in ("library", "version", "device", "dtype", *probes):
        table.add_column(heading)
    for name, version in inventory.installed().items():
        for device, array in inventory.samples(name):
            here = Backend.of(array)
            marks = [_try(probe, here) for probe in probes.values()]
            table.add_row(name, version, device, str(here.dtype).split(".")[-1], *marks)
    out.print(table)
    out.print(
        "Each mark comes from a small run. autodiff: jac= is not needed. in place: buffers are "
        "overwritten, not copied. compiles: functions are compiled. batched: many problems are "
        "solved at once. reproducible: the same bits as NumPy.",
        style="dim",
    )
    for extra, (name, use) in _EXTRAS.items():
        if importlib.util.find_spec(name) is None:
            out.print(
                f"{name} is not installed, for {use}: pip install 'lbfgs_xp[{extra}]'",
                markup=False, soft_wrap=True,
            )
    return 0


def _try(probe: Callable[[Backend], bool], here: Backend) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "[green]yes[/]" if probe(here) else "no"
    except TimeoutError:
        return "too slow"
    except Exception as error:  # how a probe fails is part of the answer
        return f"[red]no ({type(error).__name__})[/]"


def _differentiates(here: Backend) -> bool:
    start = here.full((3,), 2.0)
    with contextlib.suppress(ValueError):  # raised if a gradient must be passed
        return lx.minimize(lambda x: ((x - 1.0) ** 2).sum(), start).success
    return False


def _writes_in_place(here: Backend) -> bool:
    buffer = here.zeros((2, 3))
    after = here.write_row(buffer, 1, here.full((3,), 1.0))
    assert here.to_host(after).tolist() == [[0.0] * 3, [1.0] * 3]
    with contextlib.suppress(RuntimeError):  # a donated buffer
        return bool(here.to_host(buffer)[1, 0] == 1.0)
    return False


def _compiles(here: Backend) -> bool:
    calls = []

    def double(x: Any) -> Any:
        calls.append(x)
        return x + x

    compiled = here.jit(double)
    for value in (1.0, 2.0):
        assert here.to_host(compiled(here.full((2,), value))).tolist() == [2.0 * value] * 2
    return len(calls) == 1


def _solves_batches(here: Backend) -> bool:
    problem = lx.problems.rosenbrock(2, xp=here.xp, dtype=here.dtype, device=here.device)
    for _ in range(2):  # the first run may spend its time on compilation
        res = lx.minimize(
            problem.value_and_gradient, problem.starts(3), jac=True, batched=True, maxiter=100,
            maxtime=_PATIENCE,
        )
        status = here.to_host(res.status)
        if not np.any(status == int(lx.Status.TIME)):
            return bool(here.to_host(res.success).all())
    raise TimeoutError


def _repeats_numpy(here: Backend) -> bool:
    ends = []
    for xp, device in ((here.xp, here.device), (np, None)):
        problem = lx.problems.rosenbrock(
            6, xp=xp, dtype=str(here.dtype).split(".")[-1], device=device, reproducible=True
        )
        res = lx.minimize(
            problem.value_and_gradient, problem.x0, jac=True, reproducible=True, maxiter=8
        )
        ends.append(Backend.of(problem.x0).to_host(res.x).tobytes())
    return ends[0] == ends[1]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
