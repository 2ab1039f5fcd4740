"""Running a tape on NumPy arrays, one cache-sized block at a time, on all cores."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.first_order.tape import Instruction, Tape

# Bytes per block. Smaller blocks would stay in closer caches, but the threads would then wait for
# the interpreter lock, which each operation acquires and releases.
_BLOCK = 2**19
# Leaves with at most this many elements are joined with others, since calls cost more than numbers.
SMALL = 2**14
# With more threads than this, they would only wait for the interpreter lock.
_MOST_THREADS = 8


class Leaf(NamedTuple):
    """The arrays of one leaf, all 1-d and of one dtype: the new x and slots, the old ones (which
    may be the same arrays), and the gradient."""

    outputs: Sequence[np.ndarray]
    inputs: Sequence[np.ndarray]
    g: np.ndarray


def run_together(tape: Tape, leaves: Sequence[Leaf], numbers: Sequence[float]) -> None:
    """Fill the outputs of several leaves of one dtype, joined end to end."""
    if len(leaves) == 1:
        run(tape, *leaves[0], numbers)
        return
    inputs = zip(*(leaf.inputs for leaf in leaves), strict=True)
    joined = [np.concatenate(parts) for parts in inputs]
    run(tape, joined, joined, np.concatenate([leaf.g for leaf in leaves]), numbers)
    start = 0
    for leaf in leaves:
        stop = start + leaf.g.shape[0]
        for output, new in zip(leaf.outputs, joined, strict=True):
            output[...] = new[start:stop]
        start = stop


def run(
    tape: Tape, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], g: np.ndarray,
    numbers: Sequence[float],
) -> None:
    """Fill `outputs` (x, then the slots), each of which may be the same array as its input; all are
    1-d and of one dtype."""
    n = g.shape[0]
    block = max(_BLOCK // g.itemsize, 1)
    blocks = -(-n // block)
    workers = min(_threads(), blocks)
    fresh = [(new, old) for new, old in zip(outputs, inputs, strict=True) if new is not old]
    work = functools.partial(_run_span, tape, outputs, fresh, g, tuple(numbers), block)
    if workers < 2:
        work(0, n)
        return
    edges = [block * (blocks * i // workers) for i in range(workers)] + [n]
    pool, spans = _pool(), list(zip(edges[1:-1], edges[2:], strict=True))
    try:
        others = [pool.submit(work, *span) for span in spans]
    except RuntimeError:  # the interpreter is shutting down and accepts no more work
        work(0, n)
        return
    try:
        work(edges[0], edges[1])
    finally:
        for other in others:
            other.result()


def _run_span(
    tape: Tape, outputs: Sequence[np.ndarray], fresh: list, g: np.ndarray,
    numbers: tuple[float, ...], block: int, start: int, stop: int,
) -> None:
    size = min(block, stop - start)
    scratch = [np.empty(size, bool if boolean else g.dtype) for boolean in tape.scratch]
    # The handling of warnings is separate for each thread.
    with np.errstate(all="ignore"):
        for i in range(start, stop, block):
            j = min(i + block, stop)
            for new, old in fresh:
                new[i:j] = old[i:j]
            parts = [output[i:j] for output in outputs]
            registers = [*parts, g[i:j], *numbers, *(s[: j - i] for s in scratch)]
            for instruction in tape.instructions:
                _operate(instruction, registers)


def _operate(instruction: Instruction, registers: list[Any]) -> None:
    operands = [registers[o] if type(o) is int else o for o in instruction.operands]
    out = registers[instruction.out]
    if instruction.operation == "where":
        mask, a, b = operands
        if b is not out:
            np.copyto(out, b)
        np.copyto(out, a, where=mask)
    else:
        _ufunc(instruction.operation)(*operands, out=out)


@functools.cache
def _ufunc(name: str) -> Callable:
    return getattr(np, name)


@functools.cache
def _threads() -> int:
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return min(int(told), _MOST_THREADS)
    available = getattr(os, "sched_getaffinity", None)
    return min(len(available(0)) if available else os.cpu_count() or 1, _MOST_THREADS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, "lbfgs_xp")


if hasattr(os, "register_at_fork"):
    # The threads of a pool do not exist in a forked process.
    os.register_at_fork(after_in_child=_pool.cache_clear)
