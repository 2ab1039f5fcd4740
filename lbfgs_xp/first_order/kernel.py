"""A tape as the C++ source of an elementwise kernel, for libraries that compile such source."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lbfgs_xp.first_order.tape import Tape

_OPERATIONS: dict[str, Callable[..., str]] = {
    "add": "{} + {}".format,
    "subtract": "{} - {}".format,
    "multiply": "{} * {}".format,
    "divide": "{} / {}".format,
    "negative": "-{}".format,
    "positive": "{}".format,
    "greater": "{} > {}".format,
    "less": "{} < {}".format,
    "sqrt": "sqrt({})".format,
    "absolute": "{0} < (T)0 ? -{0} : {0}".format,
    # nan is neither above nor below 0, so it is kept
    "sign": "{0} > (T)0 ? (T)1 : {0} < (T)0 ? (T)-1 : {0}".format,
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}".format,
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}".format,
    "where": "{} ? {} : {}".format,
}


class Kernel(NamedTuple):
    """The parts of an elementwise kernel; T is the type of the arrays.

    inputs : declarations of the old x and slots, of g and of the numbers.
    outputs : declarations of the new x and slots.
    body : the statements for each element.
    """

    inputs: str
    outputs: str
    body: str


def kernel(tape: Tape) -> Kernel:
    """The kernel for a tape, with the same arguments in the same order."""
    arrays = range(tape.slots + 1)
    g, first = tape.slots + 1, tape.slots + 2
    numbers = range(first, first + tape.numbers)
    scratch = enumerate(tape.scratch, start=first + tape.numbers)
    lines = [f"T r{i} = i{i};" for i in (*arrays, g)]
    lines += [f"T r{i} = (T)n{i};" for i in numbers]
    lines += [f"{'bool' if boolean else 'T'} r{i};" for i, boolean in scratch]
    for instruction in tape.instructions:
        operands = [f"r{o}" if isinstance(o, int) else f"(T){o!r}" for o in instruction.operands]
        lines.append(f"r{instruction.out} = {_OPERATIONS[instruction.operation](*operands)};")
    lines += [f"o{i} = r{i};" for i in arrays]
    inputs = [f"T i{i}" for i in (*arrays, g)] + [f"float64 n{i}" for i in numbers]
    return Kernel(", ".join(inputs), ", ".join(f"T o{i}" for i in arrays), "\n".join(lines))
