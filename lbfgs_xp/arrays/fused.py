"""Functions of scalars as single operations, for libraries that build kernels from C++ source.

A function that is passed to `Fused.fused` runs once with symbols (see `lbfgs_xp.arrays.formula`);
from then on, its recording runs as one kernel. So a batch takes as long as its vectors need, not as
long as it takes to launch hundreds of operations on a few hundred numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lbfgs_xp.arrays.backend import KernelError
from lbfgs_xp.arrays.formula import (
    BOOL,
    INT32,
    INT64,
    NUMBER,
    REAL,
    WHOLE,
    Recorder,
    Symbol,
    source,
)
from lbfgs_xp.arrays.scalars import Scalars, named

T = TypeVar("T")

_KINDS = {
    "bool": BOOL, "int32": INT32, "int64": INT64, "float32": REAL, "float64": REAL,
}
_NUMBERS = {float: NUMBER, int: WHOLE}
_OTHER = ""


class _Fixed(NamedTuple):
    """An argument that is part of the recording: a setting, and its type, since True == 1."""

    kind: type
    value: Any


class _Recording(NamedTuple):
    """A recorded function.

    kernel : a function of the inputs at the places `used`; None if there is nothing to compute.
    outcome : its result, in which symbols stand for inputs and for outputs of the kernel.
    places : for the index of each symbol computed by the kernel, which output it is.
    """

    kernel: Callable | None
    used: Sequence[int]
    outcome: Any
    places: dict[int, int]


class Fused(Scalars):
    """The functions for arrays of a library with kernels.

    build : `Backend.kernels` of the arrays.
    """

    def __init__(self, xp: Any, build: Callable):
        super().__init__(xp)
        self._build = build
        self._recordings: dict[Any, _Recording | None] = {}
        # dtype -> its name and its kind
        self._kinds: dict[Any, tuple[str, str]] = {}

    def fused(self, function: Callable[..., T], *arguments: Any) -> T:
        inputs: list[Any] = []
        reals: set[str] = set()
        form = tuple(self._form(argument, inputs, reals) for argument in arguments)
        recording = None
        # If dtypes mix, each library has rules of its own.
        if len(reals) <= 1 and _OTHER not in reals:
            recording = self._recording(function, form)
        if recording is None:
            return function(self, *arguments)
        outputs: Any = ()
        if recording.kernel is not None:
            try:
                outputs = recording.kernel(*(inputs[i] for i in recording.used))
            except KernelError:
                return function(self, *arguments)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return _filled(recording.outcome, inputs, outputs, recording.places)

    def _form(self, tree: Any, inputs: list[Any], reals: set[str]) -> Any:
        """The form of an argument, by which recordings are found; its arrays and numbers are added
        to `inputs`, the dtypes of its real arrays to `reals`."""
        if isinstance(tree, np.generic):
            tree = tree.item()
        kind: Any = type(tree)
        if kind in _NUMBERS:
            inputs.append(tree)
            return _NUMBERS[kind]
        if isinstance(tree, tuple):
            return (kind, *[self._form(each, inputs, reals) for each in tree])
        dtype = getattr(tree, "dtype", None)
        if dtype is None:
            return _Fixed(kind, tree)
        if dtype not in self._kinds:
            name = str(dtype).rpartition(".")[2]
            self._kinds[dtype] = name, _KINDS.get(name, _OTHER)
        name, found = self._kinds[dtype]
        if found in (REAL, _OTHER):
            reals.add(name if found == REAL else _OTHER)
        inputs.append(tree)
        return found

    def _recording(self, function: Callable, form: tuple) -> _Recording | None:
        """The recording, or None if the function cannot be recorded, such as a user's line search
        that is not written with the functions of `Scalars`."""
        key = function, form
        try:
            if key in self._recordings:
                return self._recordings[key]
        except TypeError:    # a setting that cannot be hashed
            return None
        recorder = Recorder()
        try:
            outcome = function(recorder, *(_symbols(each, recorder) for each in form))
        except Exception:
            # A true error appears when the function runs as written.
            self._recordings[key] = None
            return None
        self._recordings[key] = recording = self._made(recorder, outcome)
        return recording

    def _made(self, recorder: Recorder, outcome: Any) -> _Recording | None:
        outputs: list[Symbol] = []
        places: dict[int, int] = {}
        _collect(outcome, len(recorder.inputs), places, outputs)
        if not outputs:
            return _Recording(None, (), outcome, places)
        if any(output.kind in (NUMBER, WHOLE) for output in outputs):
            return None
        used = recorder.used(outputs)
        return _Recording(self._build(*source(recorder, outputs, used)), used, outcome, places)


def _symbols(form: Any, recorder: Recorder) -> Any:
    """An argument of this form, with symbols as its arrays and numbers."""
    if isinstance(form, str):
        return recorder.input(form)
    if isinstance(form, _Fixed):
        return form.value
    kind, *entries = form
    return named(kind, [_symbols(each, recorder) for each in entries])


def _collect(
    tree: Any, inputs: int, places: dict[int, int], outputs: list[Symbol]
) -> None:
    """Number the symbols in the outcome that are not inputs."""
    if isinstance(tree, tuple):
        for each in tree:
            _collect(each, inputs, places, outputs)
    elif isinstance(tree, Symbol) and tree.index >= inputs and tree.index not in places:
        places[tree.index] = len(outputs)
        outputs.append(tree)


def _filled(
    tree: Any, inputs: Sequence[Any], outputs: Sequence[Any], places: dict[int, int]
) -> Any:
    """The outcome with arrays in place of symbols."""
    if isinstance(tree, tuple):
        return named(type(tree), [_filled(each, inputs, outputs, places) for each in tree])
    if not isinstance(tree, Symbol):
        return tree
    place = places.get(tree.index)
    return inputs[tree.index] if place is None else outputs[place]
