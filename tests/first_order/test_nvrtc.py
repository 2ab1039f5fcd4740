"""The kernels of all first-order rules compile under NVRTC, and round as the rules do.

NVRTC needs no GPU. A source is wrapped as CuPy's `ElementwiseKernel` wraps it and compiled with
the options that CuPy adds to ours, for one architecture after another.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lbfgs_xp.first_order import NAMES, FirstOrder
from tests.backends import Backend

pytestmark = pytest.mark.thorough

# What `cupy.ElementwiseKernel` of CuPy 14 adds: -ftz lets float32 flush subnormal numbers to zero.
CUPY_ADDS = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
TYPES = {"float32": "float", "float64": "double"}

# As in CuPy: arrays are passed by value as an object with their pointer, and an element is a
# reference, so that one array may be both read and written.
PREAMBLE = """
template <typename T> struct CArray {
  T* data; ptrdiff_t size;
  __device__ const T& operator[](ptrdiff_t i) const { return data[i]; }
  __device__ T& operator[](ptrdiff_t i) { return data[i]; }
};
#define CUPY_FOR(i, n) \\
  for (ptrdiff_t i = static_cast<ptrdiff_t>(blockIdx.x) * blockDim.x + threadIdx.x; \\
       i < (n); i += static_cast<ptrdiff_t>(blockDim.x) * gridDim.x)
"""


# --- which kernels there are -------------------------------------------------------------------


def settings(rule: type[FirstOrder]) -> Iterator[dict[str, Any]]:
    """Every combination of the settings that switch a part of the rule on or off."""
    choices: dict[str, tuple[Any, ...]] = {}
    for field in dataclasses.fields(rule):
        if field.name in ("clip_norm", "clip_value"):
            choices[field.name] = (None, 0.75)
        elif isinstance(field.default, bool):
            choices[field.name] = (False, True)
        elif field.name == "weight_decay" or (
            isinstance(field.default, float) and field.default == 0.0
        ):
            choices[field.name] = (0.0, 0.1)
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


@functools.cache
def kernels() -> dict[tuple[str, str, str], str]:
    """Every distinct kernel, with the rule and the settings that first make it."""
    found: dict[tuple[str, str, str], str] = {}
    for name, rule in NAMES.items():
        for chosen in settings(rule):
            try:
                made = rule(**chosen).kernel
            except ValueError:  # settings that exclude each other, such as nesterov alone
                continue
            on = ", ".join(f"{key}={value}" for key, value in chosen.items() if value)
            found.setdefault(tuple(made), f"{name}({on})")
    return found


# --- compiling ---------------------------------------------------------------------------------


def our_options() -> tuple[str, ...]:
    """The options with which the library builds its kernels on CuPy."""
    assert Backend.CUPY.xp is not None  # the stand-in, if CuPy is not here
    from lbfgs_xp.arrays import cupy as library

    with mock.patch.object(library.cupy, "ElementwiseKernel") as made:
        library._elementwise.__wrapped__("T x", "T y", "y = x;")
    return tuple(made.call_args.kwargs["options"])


def wrapped(source: tuple[str, str, str], name: str) -> str:
    """The function that `cupy.ElementwiseKernel` makes of a source."""
    inputs, outputs, body = source
    parameters, elements = [], []
    for const, declared in (("const ", inputs), ("", outputs)):
        for kind, parameter in (each.split() for each in declared.split(", ")):
            if kind == "T":
                parameters.append(f"{const}CArray<T> _raw_{parameter}")
                elements.append(f"{const}T &{parameter} = _raw_{parameter}[_ind];")
            else:
                parameters.append(f"{const}double {parameter}")
    return f"""
extern "C" __global__ void {name}({", ".join(parameters)}, const ptrdiff_t _size) {{
  #pragma unroll 1
  CUPY_FOR(_ind, _size) {{
    {" ".join(elements)}
    {body};
  }}
}}
"""


@functools.cache
def library() -> Path | None:
    """The shared library of NVRTC, if its package is installed."""
    for name in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob("lib/libnvrtc.so.*")):
                return path
    return None


@functools.cache
def nvrtc() -> ctypes.CDLL:
    return ctypes.CDLL(str(library()))


def ptx(text: str, options: tuple[str, ...]) -> str:
    """The assembly of a source; an AssertionError with the compiler's log if it does not compile.

    As in CuPy, an architecture such as sm_90 makes NVRTC assemble the binary as well.
    """
    program = ctypes.c_void_p()
    made = nvrtc().nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None
    )
    assert made == 0
    given = [option.encode() for option in options]
    status = nvrtc().nvrtcCompileProgram(
        program, len(given), (ctypes.c_char_p * len(given))(*given)
    )
    log = _text(program, "ProgramLog")
    assert status == 0, log
    # A rule need not use all of its numbers, and infinity is written as a product that overflows.
    assert set(re.findall(r"warning #(\S+):", log)) <= {"177-D", "222-D"}, log
    assembly = _text(program, "PTX")
    assert _size(program, "CUBIN") > 1
    nvrtc().nvrtcDestroyProgram(ctypes.byref(program))
    return assembly


def _size(program: ctypes.c_void_p, what: str) -> int:
    size = ctypes.c_size_t()
    assert getattr(nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    return size.value


def _text(program: ctypes.c_void_p, what: str) -> str:
    buffer = ctypes.create_string_buffer(_size(program, what))
    assert getattr(nvrtc(), f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.value.decode()


def rounded_otherwise(assembly: str) -> list[str]:
    """The operations on floats that do not round once, to nearest.

    Without .rn an addition or a product may still be contracted when the PTX is assembled.
    """
    operations = re.findall(
        r"^\s*(?:@!?%p\d+\s+)?((?:fma|mad|add|sub|mul|div|sqrt|rcp|rsqrt)\.[\w.]*f(?:32|64))\b",
        assembly, re.MULTILINE,
    )
    return sorted({
        each for each in operations
        if each.startswith(("fma.", "mad.", "rsqrt.")) or ".rn." not in each
    })


# --- the tests ---------------------------------------------------------------------------------


def test_the_settings_switch_every_part_on_and_off() -> None:
    assert len(kernels()) >= 250
    bodies = [body for _, _, body in kernels()]
    for operation in (" / ", "sqrt(", " ? ", " > ", " < "):
        assert any(operation in body for body in bodies)


needs_nvrtc = pytest.mark.skipif(
    library() is None, reason="nvidia-cuda-nvrtc-cu12 is not installed"
)


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TYPES)
def test_all_kernels_compile_and_round_once(dtype: str, architecture: str) -> None:
    options = (*our_options(), *CUPY_ADDS, f"-arch={architecture}")
    parts = [wrapped(source, f"kernel_{i}") for i, source in enumerate(kernels())]
    assembly = ptx(
        f"typedef {TYPES[dtype]} T;\n{PREAMBLE}" + "".join(parts), options
    )
    functions = re.split(r"^\.visible \.entry ", assembly, flags=re.MULTILINE)[1:]
    assert len(functions) == len(kernels())
    for made, function in zip(kernels().values(), functions, strict=True):
        assert not rounded_otherwise(function), f"{made}: {rounded_otherwise(function)}"
    kind = {"float32": r"\.rn\.ftz\.f32", "float64": r"\.rn\.f64"}[dtype]
    for operation in ("add", "mul", "div", "sqrt"):
        assert re.search(operation + kind, assembly)


@needs_nvrtc
def test_the_check_finds_other_roundings() -> None:
    text = 'extern "C" __global__ void f(float *x) { x[0] = x[1] * x[2] + x[3] / sqrtf(x[4]); }'
    found = rounded_otherwise(ptx(text, ("--use_fast_math", "-arch=sm_80")))
    assert {each.partition(".")[0] for each in found} >= {"fma"} and len(found) >= 2
    assert rounded_otherwise(ptx(text, ("-arch=sm_80",))) == ["fma.rn.f32"]
    assert rounded_otherwise(ptx(text, ("--fmad=false", "-arch=sm_80"))) == []
