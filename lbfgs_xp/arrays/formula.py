"""Recording a function of scalars or elements once, as a list of operations.

The function is written with operators and the functions of `lbfgs_xp.arrays.scalars`. It is called
once with symbols instead of numbers, and what it did can then be run in other ways: as one kernel
(`source`; see `lbfgs_xp.arrays.fused`), or block by block (`lbfgs_xp.first_order.tape`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lbfgs_xp.arrays.scalars import Scalars

REAL, BOOL, INT32, INT64 = "T", "bool", "int32", "int64"
"""Kinds of arrays; T is the dtype of the real ones."""
NUMBER, WHOLE = "float64", "integer"
"""Kinds of Python numbers, which take on the kind of an array that they meet."""

C_TYPES = {
    REAL: "T", BOOL: "bool", INT32: "int", INT64: "long long", NUMBER: "double",
    WHOLE: "long long",
}
_RANK = [BOOL, WHOLE, INT32, INT64, NUMBER, REAL]

_OPERATIONS: dict[str, Callable[..., str]] = {
    "add": "{} + {}".format,
    "subtract": "{} - {}".format,
    "multiply": "{} * {}".format,
    "divide": "{} / {}".format,
    # With the sign of the divisor, as in Python.
    "remainder": "({0} % {1} + {1}) % {1}".format,
    "negative": "-{}".format,
    "positive": "{}".format,
    "full": "{0}".format,
    "greater": "{} > {}".format,
    "greater_equal": "{} >= {}".format,
    "less": "{} < {}".format,
    "less_equal": "{} <= {}".format,
    "equal": "{} == {}".format,
    "not_equal": "{} != {}".format,
    "logical_and": "{} && {}".format,
    "logical_or": "{} || {}".format,
    "logical_not": "!{}".format,
    # Infinity minus itself is nan.
    "isfinite": "{0} - {0} == {0} - {0}".format,
    "sqrt": "sqrt({})".format,
    "absolute": "fabs({})".format,
    # nan is neither above nor below 0, so it is kept.
    "sign": "{0} > (T)0 ? (T)1 : {0} < (T)0 ? (T)-1 : {0}".format,
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}".format,
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}".format,
    "where": "{} ? {} : {}".format,
}
_TESTS = {
    "greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "isfinite",
    "logical_and", "logical_or", "logical_not",
}
# Operations that C++ defines otherwise for operands of any other kind.
_ONLY = {
    "divide": (NUMBER, REAL), "sqrt": (NUMBER, REAL), "remainder": (WHOLE, INT32, INT64),
    "logical_and": (BOOL,), "logical_or": (BOOL,),
}


class Note(NamedTuple):
    """One operation on operands of one kind (apart from the mask of `where`), and the kind of its
    result."""

    operation: str
    operands: tuple[Any, ...]
    of: str
    kind: str


class Symbol:
    """A value of a function that is being recorded: an input, or the result of a note."""

    __slots__ = ("index", "kind", "recorder")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recorder: Recorder, index: int, kind: str):
        self.recorder, self.index, self.kind = recorder, index, kind

    def __neg__(self) -> Symbol:
        return self.recorder.note("negative", self)

    def __bool__(self) -> bool:
        raise TypeError("a recorded function has no branches; wanted `where`")


def _operator(operation: str, swapped: bool) -> Callable:
    def operate(self: Symbol, other: Any) -> Symbol:
        operands = (other, self) if swapped else (self, other)
        return self.recorder.note(operation, *operands)

    return operate


for _name, _operation in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "mod": "remainder",
    "and": "logical_and", "or": "logical_or",
}.items():
    setattr(Symbol, f"__{_name}__", _operator(_operation, False))
    setattr(Symbol, f"__r{_name}__", _operator(_operation, True))
for _name, _operation in {
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal",
    "ne": "not_equal",
}.items():
    setattr(Symbol, f"__{_name}__", _operator(_operation, False))


class Recorder(Scalars):
    """The functions of `lbfgs_xp.arrays.scalars` for symbols.

    inputs : the kinds of the inputs, in order.
    notes : the operations, in order. A symbol's index counts the inputs first, then the notes.
    """

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.notes: list[Note] = []

    def input(self, kind: str) -> Symbol:
        """A new input; all inputs come before the first note."""
        self.inputs.append(kind)
        return Symbol(self, len(self.inputs) - 1, kind)

    def note(self, operation: str, *operands: Any) -> Symbol:
        """The result of an operation; a TypeError if a kernel cannot compute it as written."""
        of = _common(operands[1:] if operation == "where" else operands)
        if of not in _ONLY.get(operation, _RANK):
            raise TypeError(f"{operation} of {of} was used in a recorded function")
        if operation in _TESTS and of == INT32:
            of = INT64    # a Python number may be larger than any of the array
        return self._noted(Note(operation, operands, of, BOOL if operation in _TESTS else of))

    def _noted(self, note: Note) -> Symbol:
        self.notes.append(note)
        return Symbol(self, len(self.inputs) + len(self.notes) - 1, note.kind)

    def abs(self, a: Any) -> Any:
        return self.note("absolute", a)

    def sqrt(self, a: Any) -> Any:
        return self.note("sqrt", a)

    def sign(self, a: Any) -> Any:
        return self.note("sign", a)

    def isfinite(self, a: Any) -> Any:
        return self.note("isfinite", a) if isinstance(a, Symbol) else math.isfinite(a)

    def logical_not(self, mask: Any) -> Any:
        return self.note("logical_not", mask) if isinstance(mask, Symbol) else not mask

    def minimum(self, a: Any, b: Any) -> Any:
        return self.note("minimum", a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return self.note("maximum", a, b)

    def where(self, mask: Any, a: Any, b: Any) -> Any:
        return self.note("where", mask, a, b)

    def full(self, value: Any, like: Any) -> Any:
        kind = _kind(value)
        wanted = BOOL if kind == BOOL else INT32 if kind in (WHOLE, INT32) else REAL
        if isinstance(value, Symbol) and kind == wanted:
            return value
        return self._noted(Note("full", (value, like), wanted, wanted))

    def used(self, outputs: Sequence[Symbol]) -> list[int]:
        """The inputs that the outputs depend on; also those that only say what shape they have."""
        return sorted(i for i in self.needed(outputs) if i < len(self.inputs))

    def needed(self, outputs: Sequence[Symbol]) -> set[int]:
        """The indices of all values that the outputs depend on."""
        count = len(self.inputs)
        needed = {output.index for output in outputs}
        for index in range(count + len(self.notes) - 1, count - 1, -1):
            if index in needed:
                operands = self.notes[index - count].operands
                needed |= {operand.index for operand in operands if isinstance(operand, Symbol)}
        return needed


class Source(NamedTuple):
    """The C++ source of an elementwise kernel; T is the type of the real arrays.

    inputs, outputs : their declarations, such as "T i0, bool i1".
    body : the statements for each element.
    """

    inputs: str
    outputs: str
    body: str


def source(
    recorder: Recorder, outputs: Sequence[Symbol], inputs: Sequence[int] | None = None
) -> Source:
    """The source of a recorded function with these outputs.

    inputs : the indices of its inputs, all by default.
    """
    count, lines = len(recorder.inputs), []

    def shown(operand: Any, kind: str) -> str:
        if not isinstance(operand, Symbol):
            return _literal(operand, kind)
        name = f"{'i' if operand.index < count else 'v'}{operand.index}"
        return name if operand.kind == kind else f"({C_TYPES[kind]}){name}"

    needed = recorder.needed(outputs)
    for index, note in enumerate(recorder.notes, start=count):
        if index not in needed:
            continue
        if note.operation == "where":
            mask, *rest = note.operands
            operands = [shown(mask, BOOL), *(shown(o, note.of) for o in rest)]
        else:
            operands = [shown(o, note.of) for o in note.operands]
        result = _OPERATIONS[note.operation](*operands)
        lines.append(f"{C_TYPES[note.kind]} v{index} = {result};")
    results = []
    for k, output in enumerate(outputs):
        kind = {NUMBER: REAL, WHOLE: INT32}.get(output.kind, output.kind)
        results.append(f"{kind} o{k}")
        lines.append(f"o{k} = {shown(output, kind)};")
    kinds = dict(enumerate(recorder.inputs))
    declared = [
        f"{INT64 if kinds[i] == WHOLE else kinds[i]} i{i}"
        for i in (kinds if inputs is None else inputs)
    ]
    return Source(", ".join(declared), ", ".join(results), "\n".join(lines))


def _kind(value: Any) -> str:
    if isinstance(value, Symbol):
        return value.kind
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"a {type(value).__name__} was used in a recorded function")
    return BOOL if isinstance(value, bool) else WHOLE if isinstance(value, int) else NUMBER


def _common(operands: Sequence[Any]) -> str:
    """The kind in which operands meet: Python numbers take on that of an array."""
    kinds = {_kind(operand) for operand in operands}
    if not kinds.isdisjoint((INT32, INT64)) and not kinds.isdisjoint((NUMBER, REAL)):
        raise TypeError("integers and floats were mixed in a recorded function")
    return max(kinds, key=_RANK.index)


def _literal(value: Any, kind: str) -> str:
    if kind == BOOL:
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        # Products that overflow, because a kernel has no macros for these.
        infinite = "1e308 * 10.0" if value > 0.0 else "-1e308 * 10.0"
        return f"({C_TYPES[kind]})({infinite if value == value else '0.0 * (1e308 * 10.0)'})"
    # Subclasses, such as numpy.float64 and enumerations, have a `repr` of their own.
    number = int(value) if isinstance(value, int) else float(value)
    return f"({C_TYPES[kind]}){number!r}"
