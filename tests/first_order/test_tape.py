"""Recorded formulas compute the same as the formulas themselves."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.formula import REAL, Recorder
from lbfgs_xp.first_order import blocks
from lbfgs_xp.first_order.tape import record, tape
from tests.first_order.test_first_order import ALL

N = 33
FORMULAS = 300
SLOTS = 3
NUMBERS = (0.75, -1.5)


def random_formula(seed: int) -> Any:
    """A formula of a dozen random operations on random operands, with random values as outputs."""

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


@functools.cache
def refused() -> list[int]:
    """The formulas with outputs that permute the inputs."""
    found = []
    for seed in range(FORMULAS):
        try:
            tape(*record(random_formula(seed), SLOTS, len(NUMBERS)))
        except NotImplementedError as error:
            assert "permutes" in str(error)
            found.append(seed)
    return found


def test_few_formulas_are_refused() -> None:
    assert len(refused()) <= 0.05 * FORMULAS


@pytest.mark.parametrize("seed", range(FORMULAS))
@pytest.mark.parametrize("in_place", [False, True])
def test_a_tape_computes_its_formula(seed: int, in_place: bool) -> None:
    formula = random_formula(seed)
    rng = np.random.default_rng(seed)
    x, g, *slots = rng.standard_normal((SLOTS + 2, N))
    expected_x, expected = formula(scalars.of(x), x, g, slots, NUMBERS)
    if seed in refused():
        return
    recorded = tape(*record(formula, SLOTS, len(NUMBERS)))
    old = [array.copy() for array in (x, *slots)]
    new = old if in_place else [np.empty(N) for _ in old]
    blocks.run(recorded, new, old, g, NUMBERS)
    for found, wanted in zip(new, (expected_x, *expected), strict=True):
        assert np.array_equal(found, wanted)


def test_outputs_that_are_inputs_change_places() -> None:
    recorded = tape(*record(lambda fn, x, g, slots, numbers: (slots[0], (g, x + g)), 2, 0))
    x, g, a, b = np.arange(8.0).reshape(4, 2)
    blocks.run(recorded, [x, a, b], [x, a, b], g, ())
    assert np.array_equal(np.stack([x, a, b]), [[4.0, 5.0], [2.0, 3.0], [2.0, 4.0]])


def test_scratch_is_used_again() -> None:
    """Adam's dozen operations need two blocks of scratch."""
    assert lx.Adam().tape.scratch == (False, False)
    assert len(lx.Adam().tape.instructions) == 12


def test_a_formula_has_no_branches() -> None:
    recorder = Recorder()
    with pytest.raises(TypeError, match="no branches"):
        bool(recorder.input(REAL) > recorder.input(REAL))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_compute_what_the_tapes_do(dtype: str, tmp_path: Path) -> None:
    """The source that the compiler for a GPU would get, compiled for this processor."""
    optimizers = [
        getattr(lx, name)(0.02, weight_decay=0.1, clip_value=0.7, clip_norm=1.0) for name in ALL
    ]
    optimizers.append(lx.Adam(amsgrad=True, maximize=True))
    optimizers.append(lx.RMSProp(centered=True, momentum=0.5))
    functions = []
    for i, opt in enumerate(optimizers):
        made = opt.kernel
        args = [part.split() for part in made.inputs.split(", ")]
        ins = [name for kind, name in args if kind == "T"]
        numbers = [name for kind, name in args if kind == "float64"]
        outs = [part.split()[1] for part in made.outputs.split(", ")]
        load = [f"T {name} = in[{k}][j];" for k, name in enumerate(ins)]
        load += [f"double {name} = numbers[{k}];" for k, name in enumerate(numbers)]
        load += [f"T {name};" for name in outs]
        store = [f"out[{k}][j] = {name};" for k, name in enumerate(outs)]
        functions.append(
            f"extern \"C\" void f{i}(long n, T **in, double *numbers, T **out) {{\n"
            "for (long j = 0; j < n; j++) {\n" + "\n".join([*load, made.body, *store]) + "}}\n"
        )
    c_type = {"float32": "float", "float64": "double"}[dtype]
    source, library = tmp_path / "kernels.cpp", tmp_path / "kernels.so"
    source.write_text(
        f"#include <cmath>\nusing std::sqrt;\ntypedef {c_type} T;\n" + "".join(functions)
    )
    flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    compiled = ctypes.CDLL(str(library))
    rng = np.random.default_rng(0)
    pointer = ctypes.c_void_p
    for i, opt in enumerate(optimizers):
        recorded = opt.tape
        x, g, *slots = rng.standard_normal((recorded.slots + 2, 40)).astype(dtype)
        g[:3] = 0.0, np.nan, np.inf
        slots = [np.abs(s) for s in slots]
        numbers = rng.uniform(0.1, 0.9, recorded.numbers)
        expected = [np.empty_like(x) for _ in (x, *slots)]
        blocks.run(recorded, expected, [x, *slots], g, numbers.tolist())
        found = [np.empty_like(x) for _ in expected]
        ins = (pointer * (len(slots) + 2))(*(a.ctypes.data for a in (x, *slots, g)))
        outs = (pointer * len(found))(*(a.ctypes.data for a in found))
        getattr(compiled, f"f{i}")(ctypes.c_long(40), ins, pointer(numbers.ctypes.data), outs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=type(opt).__name__)
