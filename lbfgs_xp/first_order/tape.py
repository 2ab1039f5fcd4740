"""Recording an elementwise formula once, as a list of operations on a few registers.

A rule such as Adam is written as a formula over whole arrays. Run directly, each of its dozen
operations would pass through memory once and allocate a new array. Once recorded, the formula can
be run block by block, with blocks small enough for the cache, `out=`, and two or three blocks of
scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lbfgs_xp.arrays.formula import BOOL, NUMBER, REAL, Recorder, Symbol

Operand = Any
"""The index of a register, or a Python float."""


class Instruction(NamedTuple):
    """registers[out] = operation(*operands); operands are register indices or floats."""

    operation: str
    operands: tuple[Operand, ...]
    out: int


class Tape(NamedTuple):
    """A recorded formula (x, g, slots, numbers) -> (x, slots).

    The registers are, in order: the outputs (x, then the slots), which at first hold the inputs; g;
    the numbers; scratch registers.

    slots, numbers : how many there are.
    instructions : the operations, in order.
    scratch : for each scratch register, whether it holds booleans.
    """

    slots: int
    numbers: int
    instructions: tuple[Instruction, ...]
    scratch: tuple[bool, ...]


def record(formula: Callable, slots: int, numbers: int) -> tuple[Recorder, list[Symbol]]:
    """What formula(fn, x, g, slots, numbers) -> (x, slots) does, and its outputs x and slots."""
    recorder = Recorder()
    x = recorder.input(REAL)
    old = tuple(recorder.input(REAL) for _ in range(slots))
    g = recorder.input(REAL)
    scalars = tuple(recorder.input(NUMBER) for _ in range(numbers))
    x, new = formula(recorder, x, g, old, scalars)
    return recorder, [x, *new]


def tape(recorder: Recorder, outputs: list[Symbol]) -> Tape:
    """The tape of a recorded formula: assign a register to each value. A register is free after the
    last use of its value."""
    inputs, slots = len(recorder.inputs), len(outputs) - 1
    numbers = inputs - slots - 2
    end = inputs + len(recorder.notes)
    last: dict[int, int] = {}
    for i, note in enumerate(recorder.notes, start=inputs):
        last.update({o.index: i for o in note.operands if isinstance(o, Symbol)})
    last.update({o.index: end for o in outputs})

    home: dict[int, int] = {}  # value -> index of the output
    for k, output in enumerate(outputs):
        if output.index >= inputs:
            home.setdefault(output.index, k)
    place = {i: i for i in range(inputs)}  # value -> register
    scratch: list[bool] = []
    free: list[int] = []
    instructions: list[Instruction] = []

    for i, (operation, operands, _, kind) in enumerate(recorder.notes, start=inputs):
        # `where` writes its third operand first, so it must not overwrite the other two.
        hot = operands[:2] if operation == "where" else ()
        kept = {o.index for o in hot if isinstance(o, Symbol)}
        dying = {o.index for o in operands if isinstance(o, Symbol) and last[o.index] == i}
        released = [place[v] for v in dying if place[v] >= inputs]
        free += [r for v in dying - kept if (r := place[v]) in released]
        k = home.get(i, -1)
        if k >= 0 and last.get(k, -1) <= i and k not in kept:
            out = k
        else:
            boolean = kind == BOOL
            fitting = [r for r in free if scratch[r - inputs] == boolean]
            if fitting:
                out = fitting[-1]
                free.remove(out)
            else:
                out = inputs + len(scratch)
                scratch.append(boolean)
        free += [place[v] for v in dying & kept if place[v] in released]
        place[i] = out
        instructions.append(Instruction(operation, _registers(operands, place), out))
    # Outputs that could not be written in place are copied at the end, never over a register that
    # is still to be copied.
    copies = {k: _registers((output,), place)[0] for k, output in enumerate(outputs)}
    copies = {k: register for k, register in copies.items() if register != k}
    while copies:
        k = next((k for k in copies if k not in copies.values()), -1)
        if k < 0:
            raise NotImplementedError("a formula that permutes its own outputs")
        instructions.append(Instruction("positive", (copies.pop(k),), k))
    return Tape(slots, numbers, tuple(instructions), tuple(scratch))


def _registers(operands: Sequence[Any], place: dict[int, int]) -> tuple[Operand, ...]:
    return tuple(place[o.index] if isinstance(o, Symbol) else float(o) for o in operands)
