"""The certified NIST reference sets, from both of their starts, on every library."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import CPU, GPU, Backend, parameters
from tests.fits import nist

# The residuals of Lanczos1 are rounding errors in the 14th digit of its data, so that rounding the
# data and the model to float64 leaves only three digits of them.
DIGITS_OF_DEVIATIONS = {"Lanczos1": 2.5}


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    """The number of digits to which the worst number agrees."""
    return float(-np.log10(np.max(np.abs(found - certified) / np.abs(certified)) + 1e-16))


def fit(backend: Backend, name: str, start: int) -> tuple[lx.CurveFit, nist.Reference]:
    reference = nist.read(name)
    formula = reference.model(backend.xp)

    def model(x: Any, *parameters: Any) -> Any:
        # Trials may overflow far away.
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


@pytest.mark.sampled
@pytest.mark.parametrize("backend", parameters(LIBRARIES), indirect=True)
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


# Small sets of the same collection: y, x, model, the two starts, certified parameters and
# deviations.
SHORT: dict[str, tuple] = {
    "BoxBOD": (
        [109, 149, 149, 191, 213, 224], [1, 2, 3, 5, 7, 10],
        lambda x, a, b: a * (1.0 - np.exp(-b * x)),
        [[1.0, 1.0], [100.0, 0.75]],
        [2.1380940889e2, 5.4723748542e-1], [1.2354515176e1, 1.0455993237e-1],
    ),
    "MGH09": (
        [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
        [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
        lambda x, a, b, c, d: a * (x * x + b * x) / (x * x + c * x + d),
        [[25.0, 39.0, 41.5, 39.0], [0.25, 0.39, 0.415, 0.39]],
        [1.9280693458e-1, 1.9128232873e-1, 1.2305650693e-1, 1.3606233068e-1],
        [1.1435312227e-2, 1.9633220911e-1, 8.0842031232e-2, 9.0025542308e-2],
    ),
    # From the first start, the scale of a falls by forty decades and recovers.
    "MGH10": (
        [
            34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427,
            3820, 3307, 2872,
        ],
        range(50, 126, 5),
        lambda x, a, b, c: a * np.exp(b / (x + c)),
        [[2.0, 4e5, 25000.0], [0.02, 4000.0, 250.0]],
        [5.6096364710e-3, 6.1813463463e3, 3.4522363462e2],
        [1.5687892471e-4, 2.3309021107e1, 7.8486103508e-1],
    ),
    "Rat42": (
        [8.93, 10.8, 18.59, 22.33, 39.35, 56.11, 61.73, 64.62, 67.08],
        [9, 14, 21, 28, 42, 57, 63, 70, 79],
        lambda x, a, b, c: a / (1.0 + np.exp(b - c * x)),
        [[100.0, 1.0, 0.1], [75.0, 2.5, 0.07]],
        [7.2462237576e1, 2.6180768402, 6.7359200066e-2],
        [1.7340283401, 8.8295217536e-2, 3.4465663377e-3],
    ),
    "Rat43": (
        [
            16.08, 33.83, 65.80, 97.20, 191.55, 326.20, 386.87, 520.53, 590.03, 651.92, 724.93,
            699.56, 689.96, 637.56, 717.41,
        ],
        range(1, 16),
        lambda x, a, b, c, d: a / (1.0 + np.exp(b - c * x)) ** (1.0 / d),
        [[100.0, 10.0, 1.0, 1.0], [700.0, 5.0, 0.75, 1.3]],
        [6.9964151270e2, 5.2771253025, 7.5962938329e-1, 1.2792483859],
        [1.6302297817e1, 2.0828735829, 1.9566123451e-1, 6.8761936385e-1],
    ),
}


for _name in nist.MORE:
    _read = nist.read(_name)
    SHORT[_name] = (
        _read.y, _read.x, _read.model(np), _read.starts, _read.parameters, _read.deviations
    )


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", SHORT)
def test_certified_too(name: str, start: int) -> None:
    y, x, model, starts, parameters, deviations = SHORT[name]
    data = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    with np.errstate(all="ignore"):
        res = lx.curve_fit(model, *data, starts[start], jac="3-point")
    assert res.success, res
    assert digits(res.x, np.asarray(parameters)) >= 6
    assert digits(res.stderr, np.asarray(deviations)) >= 4
