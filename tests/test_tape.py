"""Recorded formulas do what the formulas do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lbfgs_xp import scalars
from lbfgs_xp.first_order import blocks
from lbfgs_xp.first_order.tape import Recorder, record

N = 33
SLOTS = 3
NUMBERS = (0.75, -1.5)


def random_formula(seed: int) -> Any:
    """A formula of a dozen random operations on random operands, whose outputs are any values."""

    def formula(fn: Any, x: Any, g: Any, slots: Any, numbers: Any) -> Any:
        rng = np.random.default_rng(seed)
        values = [x, g, *slots]

        def pick(scalars_too: bool = True) -> Any:
            pool = [*values, *numbers, 0.5] if scalars_too else values
            return pool[rng.integers(len(pool))]

        for _ in range(12):
            a, b = pick(scalars_too=False), pick()
            match rng.integers(11):
                case 0:
                    new = a + b
                case 1:
                    new = b - a
                case 2:
                    new = a * b
                case 3:
                    new = b / (fn.abs(a) + 1.0)
                case 4:
                    new = -a
                case 5:
                    new = fn.sqrt(fn.abs(a))
                case 6:
                    new = fn.sign(a)
                case 7:
                    new = fn.maximum(a, b)
                case 8:
                    new = fn.clip(a, -1.0, 0.5)
                case 9:
                    new = fn.where(a > b, a, pick(scalars_too=False))
                case _:
                    new = fn.where(pick(scalars_too=False) < a, 0.0, a)
            values.append(new)
        outputs = [values[rng.integers(len(values))] for _ in range(SLOTS + 1)]
        return outputs[0], tuple(outputs[1:])

    return formula


@pytest.mark.parametrize("seed", range(300))
@pytest.mark.parametrize("in_place", [False, True])
def test_a_tape_computes_its_formula(seed: int, in_place: bool) -> None:
    formula = random_formula(seed)
    rng = np.random.default_rng(seed)
    x, g, *slots = rng.standard_normal((SLOTS + 2, N))
    expected_x, expected = formula(scalars.of(x), x, g, slots, NUMBERS)
    try:
        tape = record(formula, SLOTS, len(NUMBERS))
    except NotImplementedError:
        # two outputs that are each other's inputs
        return
    old = [array.copy() for array in (x, *slots)]
    new = old if in_place else [np.empty(N) for _ in old]
    blocks.run(tape, new, old, g, NUMBERS, [in_place] * len(old))
    for found, wanted in zip(new, (expected_x, *expected), strict=True):
        assert np.array_equal(found, wanted)


def test_outputs_that_are_inputs_change_places() -> None:
    tape = record(lambda fn, x, g, slots, numbers: (slots[0], (g, x + g)), 2, 0)
    x, g, a, b = np.arange(8.0).reshape(4, 2)
    blocks.run(tape, [x, a, b], [x, a, b], g, (), [True] * 3)
    assert np.array_equal(np.stack([x, a, b]), [[4.0, 5.0], [2.0, 3.0], [2.0, 4.0]])


def test_scratch_is_used_again() -> None:
    """Adam's formula needs one block of scratch, whatever its number of operations."""
    import lbfgs_xp as lx

    assert lx.Adam().tape.scratch == (False,)
    assert len(lx.Adam().tape.steps) == 12


def test_a_formula_has_no_branches() -> None:
    recorder = Recorder()
    with pytest.raises(TypeError, match="no branches"):
        bool(recorder.input() > recorder.input())
