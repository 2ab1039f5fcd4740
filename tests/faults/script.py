"""A run that saves itself, and what happens to it: script.py WHAT PATH."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from typing import Any

import numpy as np

import lbfgs_xp as lx

METHOD = [lx.Adam(1e-2).until(maxiter=20), lx.LBFGS(line_search=lx.Armijo())]


def well(x: Any) -> Any:
    """Value and gradient of a quartic function."""
    d = x - 1.0
    return float((d**4 + d**2).sum()), 4.0 * d**3 + 2.0 * d


def solve(path: Any = None, fun: Any = well) -> str:
    """The outcome of the run, which goes on from a file if there is one."""
    checkpoint = None if path is None else lx.Checkpoint(path, every=2)
    start = np.linspace(-3.0, 4.0, 30)
    res = lx.minimize(fun, start, jac=True, method=METHOD, checkpoint=checkpoint)
    return f"{res.x.tobytes().hex()} {res.nfev} {res.status.name}"


def strike(name: str) -> None:
    """Send a signal to this process in the middle of a save."""
    saves, replace = 0, os.replace

    def hit(*args: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 7:
            os.kill(os.getpid(), getattr(signal, name))
        replace(*args)

    os.replace = hit  # type: ignore[assignment]


def in_child(queue: Any) -> None:
    queue.put(solve())


def child() -> int:
    """The number of a forked process that sleeps."""
    ready, told = os.pipe()
    number = os.fork()
    if number == 0:
        os.write(told, b"0")
        os.closerange(0, 3)
        time.sleep(8.0)
        os._exit(0)
    os.read(ready, 1)  # Python forgets the signals that arrive before it runs in the new process
    return number


def with_children(path: str) -> None:
    """A run whose fun forks two processes: one that it terminates, and one that outlives it."""
    calls = 0

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            child()
            first = child()
            os.kill(first, signal.SIGTERM)
            _, status = os.waitpid(first, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return well(x)

    solve(path, fun)


def main(what: str, path: str) -> None:
    if what == "children":
        with_children(path)
    if what.startswith("SIG"):
        strike(what)
    if what == "limit":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    if what in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(what)
        queue, before = context.Queue(), solve()
        child = context.Process(target=in_child, args=(queue,))
        child.start()
        print(queue.get(timeout=60) == before)
        child.join()
        return
    print(solve(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
