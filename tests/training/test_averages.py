"""`lx.train` with averaged parameters and validation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

RNG = np.random.default_rng(3)
X = RNG.normal(size=(23, 3))
Y = X @ np.asarray([1.0, -2.0, 0.5]) + 0.3 * RNG.normal(size=23)


def squares(p: Any, batch: Any) -> tuple[Any, Any]:
    inputs, wanted = batch
    r = inputs @ p - wanted
    return (r @ r) / r.shape[0], (2.0 / r.shape[0]) * (r @ inputs)


def test_the_average_and_the_best_are_those_of_a_loop(backend: Backend) -> None:
    data = backend.asarray(X), backend.asarray(Y)
    opt = lx.SGD(0.2, momentum=0.5)
    res = lx.train(
        squares, backend.asarray(np.zeros(3)), data, jac=True, method=opt, batch_size=6, epochs=4,
        reproducible=True, average_decay=0.9, validate=lambda p: abs(float(p[0]) - 0.7),
    )
    x, state = np.zeros(3), opt.init(np.zeros(3))
    average: Any = None
    best: Any = math.inf, 0, None
    validations = []
    for epoch in range(4):
        order = np.random.default_rng([0, epoch]).permutation(23)
        for start in range(0, 23, 6):
            rows = order[start : start + 6]
            _, g = squares(x, (X[rows], Y[rows]))
            x, state = opt.update(x, g, state, reproducible=True)
            average = x if average is None else 0.9 * average + (1.0 - 0.9) * x
        validations.append(abs(float(average[0]) - 0.7))
        if validations[-1] < best[0]:
            best = validations[-1], epoch + 1, average
    assert np.allclose(backend.to_numpy(res.params), x, rtol=1e-12)
    assert np.allclose(backend.to_numpy(res.average), average, rtol=1e-12)
    assert np.allclose(res.history.validation, validations, rtol=1e-9)
    assert res.best_epoch == best[1] and res.best_validation == min(res.history.validation)
    assert np.allclose(backend.to_numpy(res.best_params), best[2], rtol=1e-12)


@pytest.mark.parametrize("method", [lx.Adam(0.1), lx.LBFGS(memory_size=3)])
def test_they_go_on_exactly(method: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "jac": True, "method": method, "batch_size": 10, "average_decay": 0.8,
        "validate": lambda p: abs(p[0] - 0.7),
    }
    start, data = np.zeros(3), (X, Y)
    whole = lx.train(squares, start, data, epochs=5, **settings)
    first = lx.train(squares, start, data, epochs=2, **settings)
    second = lx.train(squares, first.params, data, epochs=3, state=first.state, **settings)
    path = lx.Checkpoint(tmp_path / "run.npz", every=1)

    def stop(record: Any) -> bool:
        assert record.validation >= 0.0
        raise KeyboardInterrupt

    lx.train(squares, start, data, epochs=5, checkpoint=path, callback=stop, **settings)
    third = lx.train(squares, start, data, epochs=5, checkpoint=path, **settings)
    for res in (second, third):
        assert (res.average == whole.average).all() and (res.params == whole.params).all()
        assert (res.best_params == whole.best_params).all()
        assert (res.best_epoch, res.best_validation) == (whole.best_epoch, whole.best_validation)


def test_without_them_and_wrong_ones() -> None:
    res = lx.train(squares, np.zeros(3), (X, Y), jac=True)
    assert res.average is None and res.best_params is None and math.isnan(res.best_validation)
    assert res.history.validation.size == 0
    nan = lx.train(squares, np.zeros(3), (X, Y), jac=True, validate=lambda p: math.nan)
    assert nan.best_params is None and math.isnan(nan.history.validation[0])
    with pytest.raises(ValueError, match="average_decay is 1.0; wanted"):
        lx.train(squares, np.zeros(3), (X, Y), jac=True, average_decay=1.0)
    with pytest.raises(TypeError, match="validate is a int; wanted a function of params"):
        lx.train(squares, np.zeros(3), (X, Y), jac=True, validate=3)  # type: ignore[arg-type]
    for out, shown in ((None, "a NoneType"), ("1.5", "a str"), (X, "an array of shape")):
        with pytest.raises(TypeError, match=f"validate returned {shown}.*; wanted a real number"):
            lx.train(squares, np.zeros(3), (X, Y), jac=True, validate=lambda p, out=out: out)
