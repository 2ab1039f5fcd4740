"""Many evaluations of a run as one compiled program.

The program is a loop over `after_evaluation` and the user's function, so it takes the same steps as
the loop in Python. It serves functions that the user has compiled, and which are therefore pure; a
solver that can be compiled; and runs that nobody watches. One problem runs in it as a batch of one.

A call makes as many evaluations as a fraction of a second allows, so that interrupts and `maxtime`
are noticed, and rows that are done leave the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.pending import Pending
from lbfgs_xp.arrays.scalars import map_tuple, named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten, unflatten
from lbfgs_xp.result import Status
from lbfgs_xp.run.iteration import Standing, after_evaluation
from lbfgs_xp.run.objective import Evaluation
from lbfgs_xp.run.stopping import Criteria
from lbfgs_xp.solvers.contract import Solver

_RUNNING = int(Status.RUNNING)
# How long a call may take, and by which factor its number of evaluations may grow. The first call
# is sized by the evaluation of the start, which may take less than what a step adds to it.
_SECONDS, _FIRST, _GROWTH = 0.1, 0.2, 8
_MOST = 2**20
# Larger arrays than a vector, with more numbers than this, hold what the solver has learned. They
# are overwritten instead of copied.
_LARGE = 2**14


class Chunk:
    """How many evaluations the next call makes.

    seconds : how long the evaluation of the start took.
    """

    def __init__(self, seconds: float):
        self.evaluations = self._fitting(_FIRST, seconds)

    def took(self, evaluations: int, seconds: float) -> None:
        """Note how long a call took. (The first one includes compiling.)"""
        fitting = self._fitting(_SECONDS, seconds / max(evaluations, 1))
        self.evaluations = min(fitting, _GROWTH * self.evaluations)

    def within(self, seconds: float) -> int:
        """The number for a call that ends in about this many seconds, at least 1."""
        return max(1, int(self.evaluations * min(1.0, seconds / _SECONDS)))

    @staticmethod
    def _fitting(seconds: float, each: float) -> int:
        return max(1, min(_MOST, int(seconds / max(each, 1e-9))))


def advance(
    space: Space, solver: Solver, measure_steps: bool, evaluation: Evaluation, standing: Standing,
    criteria: Criteria, args: tuple, aux: Any, places: tuple[int, ...], most: int, least: int,
) -> tuple[Standing, Any, int]:
    """The standing and the aux of the best point after at most `most` evaluations, and how many
    there were. It ends once at most `least` problems are running.

    args : of the user's function.
    places : the positions of the leaves of aux that have an entry for each row of the batch.
    """
    numbers = math.prod(standing.best.x.shape)
    limits, settings = (np.int32(most), np.int32(least)), (space, solver, measure_steps, evaluation)

    def is_large(array: Array) -> bool:
        return math.prod(array.shape) > max(numbers, _LARGE)

    jit = functools.partial(space.backend.jit, donate=(len(settings) + 1,), steps=numbers)
    if space.batched:
        large = map_tuple(lambda a: a if is_array(a) and is_large(a) else None, standing)
        rest = map_tuple(lambda a, b: a if b is None else None, standing, large)
        run = jit(_advance_rows, *settings, places)
        standing, aux, made = run(large, rest, criteria, args, aux, limits)
        return standing, aux, int(space.backend.to_host(made))
    floats: list[float] = []
    integers: list[int] = []
    arrays: list[Array] = []
    kinds = _taken_apart(standing, floats, integers, arrays)
    large = [array if is_large(array) else None for array in arrays]
    rest = [array if one is None else None for array, one in zip(arrays, large, strict=True)]
    run = jit(_advance_one, *settings, kinds)
    *scalars, arrays, aux = run(
        large, rest, np.asarray(floats, dtype=space.backend.dtype),
        np.asarray(integers, dtype=np.int32), criteria, args, aux, limits,
    )
    floats, integers = (space.backend.to_host(each).tolist() for each in scalars)
    return _joined(kinds, floats, integers[:-1], arrays), aux, integers[-1]


def _advance_rows(
    space: Space, solver: Solver, measure_steps: bool, evaluation: Evaluation,
    places: tuple[int, ...], large: Any, rest: Any, *more: Any,
) -> tuple[Standing, Any, Any]:
    """`advance` for a batch, to be compiled.

    large, rest : the standing in two parts, the first of which may be overwritten.
    """
    standing = map_tuple(lambda a, b: a if b is None else b, large, rest)
    return _advance(space, solver, measure_steps, evaluation, places, standing, *more)


def _advance(
    space: Space, solver: Solver, measure_steps: bool, evaluation: Callable,
    places: tuple[int, ...], standing: Standing, criteria: Criteria, args: tuple, aux: Any,
    limits: tuple[Any, Any],
) -> tuple[Standing, Any, Any]:
    xp, (most, least) = space.xp, limits

    def unfinished(carry: tuple) -> Any:
        standing, _, made = carry
        running = xp.astype(standing.progress.status == _RUNNING, xp.int32)
        return (xp.sum(running) > least) & (made < most)

    def step(carry: tuple) -> tuple:
        standing, aux, made = carry
        trial = standing.solver_state.trial
        value, gradient, new = evaluation(args, trial)
        value = solver.penalised(space, trial, value)
        standing, better = after_evaluation(
            solver, space, measure_steps, standing, criteria, value, gradient, 1
        )
        return standing, _kept(space, better, new, aux, places), made + 1

    return space.backend.while_loop(unfinished, step, (standing, aux, xp.zeros_like(most)))


def _kept(space: Space, better: Array, new: Any, old: Any, places: tuple[int, ...]) -> Any:
    """The aux of the best point of each row."""
    if not places:
        return new
    leaves, structure = flatten(new)
    before, _ = flatten(old)
    for place in places:
        leaves[place] = space.pick_rows(better, leaves[place], before[place])
    return unflatten(structure, leaves)


# --- one problem, as a batch of one -------------------------------------------------------------
#
# On the host its scalars are Python numbers, which travel in two arrays.

_ARRAY = "array"


def _advance_one(
    space: Space, solver: Solver, measure_steps: bool, evaluation: Evaluation, kinds: Any,
    large: list, rest: list, floats: Array, integers: Array, criteria: Criteria, args: tuple,
    aux: Any, limits: tuple[Any, Any],
) -> tuple[Array, Array, list[Array], Any]:
    """`advance` for one problem, to be compiled; the last integer is the number of evaluations.

    large, rest : the arrays in two parts, the first of which may be overwritten.
    """
    xp, backend = space.xp, space.backend
    arrays = [a if b is None else b for a, b in zip(large, rest, strict=True)]
    leaves, _ = flatten(aux)
    places = tuple(place for place, leaf in enumerate(leaves) if leaf is not None)

    def with_axis(aux: Any) -> Any:
        return _each(lambda leaf: leaf[None, ...], aux)

    def of_row(args: tuple, x: Array) -> tuple[Array, Array, Any]:
        value, gradient, aux = evaluation(args, x[0, ...])
        return xp.reshape(value, (1,)), gradient[None, ...], with_axis(aux)

    standing = _joined(
        kinds, _rows(floats), _rows(integers), [array[None, ...] for array in arrays]
    )
    standing, aux, made = _advance(
        Space(backend, batched=True), solver, measure_steps, of_row, places, standing, criteria,
        args, with_axis(aux), limits,
    )
    floats_, integers_, arrays = _split(kinds, standing)
    return (
        xp.concat([xp.astype(each, backend.dtype) for each in floats_]),
        xp.concat([xp.astype(each, xp.int32) for each in [*integers_, made[None]]]),
        [array[0, ...] for array in arrays],
        _each(lambda leaf: leaf[0, ...], aux),
    )


def _rows(numbers: Array) -> list[Array]:
    """The numbers as scalars of a batch of one."""
    return [numbers[i : i + 1] for i in range(numbers.shape[0])]


def _each(function: Callable, aux: Any) -> Any:
    leaves, structure = flatten(aux)
    return unflatten(structure, [leaf if leaf is None else function(leaf) for leaf in leaves])


def _taken_apart(tree: Any, floats: list, integers: list, arrays: list) -> Any:
    """For each entry of nested named tuples: float, int, bool, "array" or None. The entries are
    added to the lists (bools to the integers). All in one pass, because it takes as long as a few
    evaluations of a small function."""
    kind = type(tree)
    if kind is float:
        floats.append(tree)
    elif kind is int or kind is bool:
        integers.append(tree)
    elif tree is None:
        return None
    elif isinstance(tree, tuple):
        return named(kind, [_taken_apart(each, floats, integers, arrays) for each in tree])
    elif is_array(tree):
        arrays.append(tree)
        return _ARRAY
    elif isinstance(tree, Pending):
        floats.append(float(tree))
        return float
    else:    # a subclass, such as a member of an enum
        kind = next(kind for kind in (int, float) if isinstance(tree, kind))
        return _taken_apart(kind(tree), floats, integers, arrays)
    return kind


def _split(kinds: Any, tree: Any) -> tuple[list, list, list[Array]]:
    """The floats, the integers (and bools), and the arrays of a tree of these kinds."""
    floats: list[Any] = []
    integers: list[Any] = []
    arrays: list[Array] = []
    where = {float: floats, int: integers, bool: integers, _ARRAY: arrays}

    def sort(kind: Any, entry: Any) -> None:
        if kind is not None:
            where[kind].append(entry)

    map_tuple(sort, kinds, tree)
    return floats, integers, arrays


def _joined(kinds: Any, floats: list, integers: list, arrays: list[Array]) -> Any:
    """The inverse of `_split`."""
    numbers = iter(integers)
    rest = {float: iter(floats), int: numbers, bool: numbers, _ARRAY: iter(arrays)}

    def entry(kind: Any) -> Any:
        if kind is None:
            return None
        found = next(rest[kind])
        return found != 0 if kind is bool else found

    return map_tuple(entry, kinds)
