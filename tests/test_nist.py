"""Certified fits: the reference sets of NIST, from both of their starts, on every library."""

from __future__ import annotations

import functools
from typing import Any

import nist
import numpy as np
import pytest
from backends import CPU, GPU, Backend
from conftest import backend_params

import lbfgs_xp as lx

# The residuals of Lanczos1 are rounding errors of its data in the 14th digit, so that the rounding
# of the data and of the model to float64 leaves three digits of their size.
DIGITS_OF_DEVIATIONS = {"Lanczos1": 2.5}


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    """How many digits of the worst number agree."""
    return float(-np.log10(np.max(np.abs(found - certified) / np.abs(certified)) + 1e-16))


def fit(backend: Backend, name: str, start: int) -> tuple[lx.CurveFit, nist.Reference]:
    reference = nist.read(name)
    formula = reference.model(backend.xp)

    def model(x: Any, *parameters: Any) -> Any:
        # Trials far away may overflow.
        with np.errstate(all="ignore"):
            return formula(x, *parameters)

    if backend.is_jax:
        model = compiled(name)
    res = lx.curve_fit(
        model,
        backend.asarray(reference.x),
        backend.asarray(reference.y),
        backend.asarray(reference.starts[start]),
        jac=None if backend.has_autodiff else "3-point",
    )
    return res, reference


@functools.cache
def compiled(name: str) -> Any:
    import jax

    return jax.jit(nist.read(name).model(jax.numpy))


LIBRARIES = [Backend.NUMPY, Backend.STRICT, *(b for b in [*CPU, *GPU] if b.has_autodiff)]


@pytest.mark.parametrize("backend", backend_params(LIBRARIES), indirect=True)
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", nist.MODELS)
def test_certified(backend: Backend, name: str, start: int) -> None:
    res, reference = fit(backend, name, start)
    assert res.success, res
    assert digits(backend.to_numpy(res.x), reference.parameters) >= 6
    wanted = DIGITS_OF_DEVIATIONS.get(name, 4)
    assert digits(backend.to_numpy(res.stderr), reference.deviations) >= wanted
    error = abs(res.chi2 - reference.sum_of_squares)
    assert error < reference.sum_of_squares * (1e-2 if name in DIGITS_OF_DEVIATIONS else 1e-8)
