"""One run of L-BFGS over several processes: seconds and bytes for each iteration.

The function costs about as much for each variable as a logistic loss. Its data are divided among
the processes of torch.distributed (gloo, one thread each); "divided" means that the variables are,
too (`sharded=True`), and "in each" that every process has all of them and half, or a quarter, of
the terms. Seconds are medians over the iterations of process 0: in fun, in messages (which includes
waiting for the slower ones), and in the algebra of the solver. "CPU" is the processor time of the
slowest process, which other programs on the machine disturb less. Bytes are those that a process
passes to the messages of an iteration.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY = 10


def run(rank: int, size: int, n: int, divided: bool, iterations: int, store: str) -> None:
    """One process; rank 0 prints its row."""
    import numpy as np
    import torch

    import lbfgs_xp as lx

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size
    )
    spent, sent = {"fun": 0.0, "messages": 0.0}, [0]
    team = lx.distributed.torch(sharded=divided)

    def timed(kind: str, function: Any) -> Any:
        def call(array: Any) -> Any:
            began = time.perf_counter()
            found = function(array)
            spent[kind] += time.perf_counter() - began
            if kind == "messages":
                sent[0] += array.nbytes
            return found

        return call

    team.sum = timed("messages", team.sum)
    team.collect = timed("messages", team.collect)
    here = slice(n * rank // size, n * (rank + 1) // size)
    scales = np.exp(np.linspace(-2.0, 2.0, n)[here])
    centres = np.sin(np.arange(n, dtype=float)[here])

    def piece(x: Any) -> Any:
        t = np.exp(centres - x)
        t *= scales
        value = float(np.sum(np.log1p(t)) + 0.05 * (x @ x))
        gradient = t / (1.0 + t)
        return value, np.subtract(0.1 * x, gradient, out=gradient)

    def whole(x: Any) -> Any:
        value, part = piece(x[here])
        gradient = np.zeros_like(x)
        gradient[here] = part
        return value, gradient

    marks: list[tuple[float, ...]] = []

    def callback(record: Any) -> None:
        marks.append((
            time.perf_counter(), spent["fun"], spent["messages"], time.process_time(),
            float(sent[0]), float(record.nfev),
        ))

    start = np.zeros(here.stop - here.start if divided else n)
    lx.minimize(
        timed("fun", piece if divided else whole), start, jac=True, distributed=team,
        method=lx.LBFGS(memory_size=MEMORY), maxiter=iterations + 3, gtol=0.0, callback=callback,
    )
    steps = [
        [b - a for a, b in zip(one, other, strict=True)]
        for one, other in zip(marks[2:], marks[3:], strict=False)
    ]
    wall, fun, messages, cpu, nbytes, nfev = (
        statistics.median(step[i] for step in steps) for i in range(6)
    )
    slowest = max(team.gather(cpu))
    if rank == 0:
        print(*(f"{number:.9g}" for number in (wall, fun, messages, slowest, nbytes, nfev)))
    torch.distributed.destroy_process_group()


def measured(size: int, n: int, divided: bool, iterations: int) -> list[float]:
    """What rank 0 of so many processes prints."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        environment |= dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
        )
        arguments = [size, n, int(divided), iterations, Path(folder) / "store"]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--process", str(rank), *map(str, arguments)],
                stdout=subprocess.PIPE, text=True, env=environment,
            )
            for rank in range(size)
        ]
        outputs = [process.communicate()[0] for process in processes]
    return [float(number) for number in outputs[0].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--iterations", type=int, default=9)
    options = parser.parse_args()
    from _common import print_machine, print_table

    headings = (
        "processes", "seconds", "in fun", "messages", "algebra", "faster", "CPU", "less CPU",
        "bytes", "evaluations",
    )
    for n in map(int, options.sizes):
        for divided in (True, False):
            rows, first = [], None
            for size in options.processes:
                wall, fun, messages, cpu, nbytes, nfev = measured(
                    size, n, divided, options.iterations
                )
                first = first or (wall, cpu)
                rows.append((
                    str(size), f"{wall:.3f}", f"{fun:.3f}", f"{messages:.3f}",
                    f"{wall - fun - messages:.3f}", f"{first[0] / wall:.2f}", f"{cpu:.3f}",
                    f"{first[1] / cpu:.2f}", f"{nbytes:.0f}", f"{nfev:.0f}",
                ))
            where = "divided" if divided else "in each process"
            print_table(f"n = {n:,}, variables {where}, {MEMORY} pairs", headings, rows)
    print_machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        number, *rest = sys.argv[2:]
        count, length, is_divided, most, path = rest
        run(int(number), int(count), int(length), bool(int(is_divided)), int(most), path)
    else:
        main()
