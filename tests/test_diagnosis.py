"""Diagnoses: each fault is seen and named, and a sound function has none."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.__main__ import main
from tests.backends import Backend, or_skip

RNG = np.random.default_rng(1)
A = np.diag(np.arange(1.0, 6.0))


def topics(diagnosis: lx.Diagnosis, severity: str) -> list[str]:
    return [each.topic for each in diagnosis.findings if each.severity == severity]


def text(diagnosis: lx.Diagnosis, topic: str) -> str:
    return " ".join(each.text for each in diagnosis.findings if each.topic == topic)


def bowl(x: Any) -> tuple[float, Any]:
    return float(0.5 * x @ A @ x), A @ x


def test_a_sound_function_on_every_library(backend: Backend) -> None:
    problem = lx.problems.rosenbrock(4, xp=backend.xp, dtype="float64", device=backend.device)
    seen = lx.diagnose(problem.value_and_gradient, problem.x0, jac=True)
    assert seen.fit and not set(topics(seen, "note")) - {"time"}, seen
    assert seen.n == 4 and seen.dtype == "float64" and seen.value == pytest.approx(48.4)
    assert seen.gradient_error < 1e-5 and seen.noise == 0.0 and seen.nfev > 100
    # Each pair of variables has the Hessian [[1330, 480], [480, 200]].
    wanted = np.linalg.cond(np.asarray([[1330.0, 480.0], [480.0, 200.0]]))
    assert 1.0 <= seen.condition_scaled <= seen.condition
    assert seen.condition == pytest.approx(wanted, rel=1e-3)
    assert "Fit for L-BFGS." in repr(seen)


def test_nested_parameters_and_automatic_derivatives() -> None:
    backend = or_skip(Backend.TORCH)
    x0 = {"w": backend.asarray([[1.0, 2.0]]), "b": backend.asarray([3.0])}

    def fun(p: Any, scale: float) -> Any:
        return 1e8 * ((p["w"] - 0.5) ** 2).sum() + scale * ((p["b"] - 1.0) ** 2).sum(), "aux"

    seen = lx.diagnose(fun, x0, 2.0, has_aux=True)
    assert seen.fit and topics(seen, "note") == ["conditioning"], seen
    assert seen.condition == pytest.approx(5e7, rel=1e-3)
    assert seen.condition_scaled == pytest.approx(1.0, rel=1e-6)
    ratio = seen.x_scale["b"] / seen.x_scale["w"][0, 0]
    assert float(ratio) == pytest.approx(math.sqrt(5e7), rel=1e-3)
    assert "x0.b[0]" in text(seen, "conditioning") and "x_scale" in text(seen, "conditioning")
    res = lx.minimize(fun, x0, 2.0, has_aux=True, x_scale=seen.x_scale)
    assert res.success and res.nit <= 8


def test_differences_if_there_is_no_gradient() -> None:
    seen = lx.diagnose(lambda x: float(x @ A @ x), np.ones(5))
    assert seen.fit and math.isnan(seen.gradient_error)
    assert topics(seen, "note") == ["gradient"] and "10 evaluations" in text(seen, "gradient")
    assert seen.condition == pytest.approx(5.0, rel=1e-3)
    large = lx.diagnose(lambda x: float(x @ x), np.ones(5000))
    assert large.nfev < 500 and large.fit


def random(x: Any) -> tuple[float, Any]:
    return float(x @ x) + 1e-3 * RNG.normal(), 2.0 * x


def noisy(x: Any) -> tuple[float, Any]:
    chance = np.random.default_rng(zlib.crc32(x.tobytes())).normal()
    return float(x @ x) * (1.0 + 1e-4 * chance), 2.0 * x


def in_float32(x: Any) -> tuple[float, Any]:
    y = x.astype(np.float32) - np.float32(0.3)
    return float(np.sum(y * y)), (2.0 * y).astype(np.float64)


def steps(x: Any) -> tuple[float, Any]:
    return float(x @ x + 0.1 * np.floor(4.0 * x[0])), 2.0 * x


def kinked(x: Any) -> tuple[float, Any]:
    return float(np.sum(np.abs(x - 0.7))), np.sign(x - 0.7)


def slightly_kinked(x: Any) -> tuple[float, Any]:
    return float(x @ A @ x + np.sum(np.abs(x - 0.7))), 2.0 * A @ x + np.sign(x - 0.7)


def wrong(x: Any) -> tuple[float, Any]:
    return float(0.5 * x @ A @ x), A @ x * np.asarray([1.0, 1.0, 1.05, 1.0, 1.0])


def raising(x: Any) -> tuple[float, Any]:
    if x[0] > 1.1:
        raise np.linalg.LinAlgError("singular matrix")
    return bowl(x)


def with_logarithm(x: Any) -> tuple[float, Any]:
    return float(np.sum(x - np.log(x - 0.6))), 1.0 - 1.0 / (x - 0.6)


def flat(x: Any) -> tuple[float, Any]:
    return 3.0, 0.0 * x


def with_constant(x: Any) -> tuple[float, Any]:
    return 1e10 + bowl(x)[0], A @ x


def unused(x: Any) -> tuple[float, Any]:
    return float(x[0] ** 2), np.asarray([2.0 * x[0], 0.0, 0.0, 0.0, 0.0])


def hard(x: Any) -> tuple[float, Any]:
    hilbert = 1.0 / (1.0 + np.arange(5.0) + np.arange(5.0)[:, None])
    return float(0.5 * x @ hilbert @ x), hilbert @ x


@pytest.mark.parametrize(
    ("fun", "severity", "topic", "says"),
    [
        (random, "problem", "repeats", "must not draw new random numbers"),
        (wrong, "problem", "gradient", "the worst component is that of x0[2]"),
        (noisy, "note", "noise", "noise of"),
        (in_float32, "note", "noise", "may compute in float32"),
        (steps, "problem", "kinks", "The value jumps by 0.1 "),
        (kinked, "problem", "kinks", "l1=weight"),
        (slightly_kinked, "note", "kinks", "a kink"),
        (raising, "note", "domain", "LinAlgError: singular matrix"),
        (with_logarithm, "note", "domain", "not finite at"),
        (flat, "problem", "value", "the same at all points"),
        (with_constant, "note", "precision", "9 digits"),
        (unused, "note", "conditioning", "4 of 5 variables do not change fun at x0"),
        (hard, "note", "conditioning", "Units of the variables do not explain it"),
    ],
)
def test_faults_are_named(fun: Callable, severity: str, topic: str, says: str) -> None:
    seen = lx.diagnose(fun, np.ones(5), jac=True)
    assert topic in topics(seen, severity) and says in text(seen, topic), seen
    assert seen.fit is (severity == "note")
    assert says.split()[0] in repr(seen)


def test_numbers_of_faults() -> None:
    assert lx.diagnose(noisy, np.ones(5), jac=True).noise == pytest.approx(5e-4, rel=0.9)
    assert lx.diagnose(wrong, np.ones(5), jac=True).gradient_error > 5e-3
    hilbert = 1.0 / (1.0 + np.arange(5.0) + np.arange(5.0)[:, None])
    found = lx.diagnose(hard, np.ones(5), jac=True).condition
    assert found == pytest.approx(np.linalg.cond(hilbert), rel=0.05)


def test_a_start_that_is_stationary() -> None:
    seen = lx.diagnose(bowl, np.zeros(5), jac=True)
    assert "a run ends there at once" in text(seen, "gradient") and not topics(seen, "problem")
    assert "noise" not in topics(seen, "note")


def test_many_variables() -> None:
    spectrum = np.geomspace(1.0, 1e6, 500)
    seen = lx.diagnose(
        lambda x: (0.5 * float(x @ (spectrum * x)), spectrum * x), np.ones(500), jac=True
    )
    assert seen.fit and 10.0 < seen.condition <= 1.001e6 and seen.nfev < 300


def test_float32_is_told() -> None:
    problem = lx.problems.rosenbrock(4, dtype="float32")
    seen = lx.diagnose(problem.value_and_gradient, problem.x0, jac=True)
    assert seen.fit and "precision" in topics(seen, "note") and seen.dtype == "float32"
    assert "float64" in text(seen, "precision")


def test_starts_that_say_nothing() -> None:
    def boom(x: Any) -> Any:
        raise ZeroDivisionError("no luck")

    seen = lx.diagnose(boom, np.ones(2), jac=True)
    assert not seen.fit and "ZeroDivisionError: no luck" in repr(seen)
    seen = lx.diagnose(lambda x: (math.nan, x), np.ones(2), jac=True)
    assert not seen.fit and topics(seen, "problem") == ["value"]
    half = np.asarray([1.0, math.nan])
    seen = lx.diagnose(lambda x: (1.0, half), np.ones(2), jac=True)
    assert not seen.fit and "1 of 2 components" in text(seen, "gradient")
    assert "x0[1]" in text(seen, "gradient")


def test_values_on_the_host() -> None:
    backend = or_skip(Backend.CUPY)
    seen = lx.diagnose(
        lambda x: (float(backend.xp.sum(x * x)), 2.0 * x), backend.asarray([1.0, 2.0]), jac=True
    )
    assert seen.fit and "waits for the device" in text(seen, "transfers")


def test_wrong_calls() -> None:
    with pytest.raises(TypeError, match="fun is a int; wanted a function of x"):
        lx.diagnose(3, np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="jac is .4-point"):
        lx.diagnose(bowl, np.ones(2), jac="4-point")  # type: ignore[arg-type]


MODEL = """
import numpy as np
x0 = np.ones(3)
other = np.ones(2)
def good(x):
    return np.sum(x**2), 2.0 * x
def bad(x):
    return np.sum(x**2), x
def value(x):
    return np.sum(x**2)
def slope(x):
    return 2.0 * x
"""


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        (["good"], 0, "3 variables"),
        (["good", "--x0", "other"], 0, "2 variables"),
        (["good", "--x0", "[1, 2, 3, 4]"], 0, "4 variables"),
        (["bad"], 1, "disagrees"),
        (["value", "--jac", "slope"], 0, "agrees"),
        (["value"], 0, "does not differentiate"),
    ],
)
def test_command_line(
    call: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model_of_a_user.py"
    file.write_text(MODEL)
    assert main(["check", f"{file}:{call[0]}", *call[1:]]) == code
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (["FILE"], "wanted FILE:function"),
        (["nowhere.py:good"], "is no file"),
        (["FILE:goood"], "has no goood"),
        (["FILE:good", "--x0", "[1,"], "--x0 is '[1,'"),
        (["FILE:good", "--jac", "slopes"], "has no slopes for --jac"),
    ],
)
def test_wrong_command_lines(
    call: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model_of_a_user.py"
    file.write_text(MODEL)
    with pytest.raises(SystemExit) as error:
        main(["check", *(part.replace("FILE", str(file)) for part in call)])
    assert error.value.code == 2 and says in capsys.readouterr().err


def test_a_steep_variable_does_not_hide_a_wrong_gradient_of_another() -> None:
    scale = np.asarray([1e6, 1.0, 1.0])

    def fun(x, factor):
        z = scale * x - 1.0
        return z @ z, 2.0 * z * scale * np.asarray([1.0, factor, 1.0])

    wrong = lx.diagnose(fun, np.zeros(3), (1.5,), jac=True)
    assert not wrong.fit and "x0[1]" in str(wrong)
    assert lx.diagnose(fun, np.zeros(3), (1.0,), jac=True).gradient_error < 1e-4
