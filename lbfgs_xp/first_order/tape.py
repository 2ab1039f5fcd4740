"""Recording an elementwise formula once, as a list of operations on a few registers.

A rule such as Adam is written as a formula over whole arrays. Run directly, each of its dozen
operations would pass through memory once and allocate a new array. Once recorded, the formula can
be run block by block, with blocks small enough for the cache, `out=`, and two or three blocks of
scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class Symbol:
    """A value of the formula while it is being recorded."""

    __slots__ = ("index", "recorder")

    def __init__(self, recorder: Recorder, index: int):
        self.recorder = recorder
        self.index = index

    def __add__(self, other: Any) -> Symbol:
        return self.recorder.note("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.recorder.note("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.recorder.note("subtract", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.recorder.note("subtract", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.recorder.note("multiply", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.recorder.note("multiply", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.recorder.note("divide", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.recorder.note("divide", other, self)

    def __neg__(self) -> Symbol:
        return self.recorder.note("negative", self)

    def __gt__(self, other: Any) -> Symbol:
        return self.recorder.note("greater", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return self.recorder.note("less", self, other)

    def __bool__(self) -> bool:
        raise TypeError("a formula has no branches; wanted `where`")


_BOOLEAN = ("greater", "less")


class Recorder:
    """Replaces the functions of `lbfgs_xp.arrays.scalars` while a formula is recorded."""

    def __init__(self) -> None:
        self.inputs = 0
        self.notes: list[tuple[str, tuple[Any, ...]]] = []

    def input(self) -> Symbol:
        self.inputs += 1
        return Symbol(self, self.inputs - 1)

    def note(self, operation: str, *operands: Any) -> Symbol:
        self.notes.append((operation, operands))
        return Symbol(self, self.inputs + len(self.notes) - 1)

    def sqrt(self, a: Any) -> Symbol:
        return self.note("sqrt", a)

    def abs(self, a: Any) -> Symbol:
        return self.note("absolute", a)

    def sign(self, a: Any) -> Symbol:
        return self.note("sign", a)

    def minimum(self, a: Any, b: Any) -> Symbol:
        return self.note("minimum", a, b)

    def maximum(self, a: Any, b: Any) -> Symbol:
        return self.note("maximum", a, b)

    def clip(self, value: Any, low: Any, high: Any) -> Symbol:
        return self.minimum(self.maximum(value, low), high)

    def where(self, mask: Any, a: Any, b: Any) -> Symbol:
        return self.note("where", mask, a, b)


def record(formula: Callable, slots: int, numbers: int) -> Tape:
    """The tape of formula(fn, x, g, slots, numbers) -> (x, slots)."""
    recorder = Recorder()
    x = recorder.input()
    old = tuple(recorder.input() for _ in range(slots))
    g = recorder.input()
    scalars = tuple(recorder.input() for _ in range(numbers))
    x, new = formula(recorder, x, g, old, scalars)
    return _allocate(recorder, [x, *new], slots, numbers)


def _allocate(recorder: Recorder, outputs: Sequence[Any], slots: int, numbers: int) -> Tape:
    """Assign a register to each value; a register is free after the last use of its value."""
    inputs, count = recorder.inputs, slots + 1
    end = inputs + len(recorder.notes)
    last: dict[int, int] = {}
    for i, (_, operands) in enumerate(recorder.notes, start=inputs):
        last.update({o.index: i for o in operands if isinstance(o, Symbol)})
    last.update({o.index: end for o in outputs if isinstance(o, Symbol)})

    home: dict[int, int] = {}  # value -> index of the output
    for k, output in enumerate(outputs):
        if isinstance(output, Symbol) and output.index >= inputs:
            home.setdefault(output.index, k)
    place = {i: i for i in range(inputs)}  # value -> register
    scratch: list[bool] = []
    free: list[int] = []
    instructions: list[Instruction] = []

    for i, (operation, operands) in enumerate(recorder.notes, start=inputs):
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
            boolean = operation in _BOOLEAN
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
    assert count + 1 + numbers == inputs
    return Tape(slots, numbers, tuple(instructions), tuple(scratch))


def _registers(operands: Sequence[Any], place: dict[int, int]) -> tuple[Operand, ...]:
    return tuple(place[o.index] if isinstance(o, Symbol) else float(o) for o in operands)
