"""The examples of fits: what they print agrees with the truth from which their data come."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> Iterator[Run]:
    """A function that runs an example with --quick, checks its picture and returns its output."""
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(name: str, *arguments: str) -> str:
        command = [f"{name}.py", "--quick", "--out", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
        return capsys.readouterr().out

    yield call
    sys.modules.pop("_common", None)


def pulls(shown: str) -> np.ndarray:
    """The distances of parameters from the truth, in standard errors."""
    return np.asarray(re.findall(r"([+-]\d+\.\d+) standard errors$", shown, re.M), dtype=float)


def number(pattern: str, shown: str) -> float:
    found = re.search(pattern, shown)
    assert found is not None, (pattern, shown)
    return float(found[1])


def check_pulls(shown: str, count: int) -> None:
    found = pulls(shown)
    assert found.shape == (count,)
    assert np.abs(found).max() < 3.0 and np.sqrt(np.mean(found**2)) < 1.5


def test_voigt_spectrum(run: Run) -> None:
    shown = run("voigt_spectrum")
    check_pulls(shown, 10)
    assert "26 parameters, 10 of them free" in shown
    # The other widths agree, so one for all is better known, and the simpler model is better.
    assert number(r"the error is (\S+) times", shown) > 1.2
    assert number(r"BIC ([+-]\S+)", shown) > 5.0
    assert number(r"deviance (\S+) of", shown) < 210.0 + 3.0 * np.sqrt(420.0)
    low, high = re.search(r"lifetime width: (\S+) to (\S+) eV", shown).groups()  # type: ignore
    assert float(low) < 0.16 < float(high)


def test_dose_response(run: Run) -> None:
    shown = run("dose_response")
    assert "200 fits" in shown and "200 succeeded" in shown and "200 found" in shown
    shares = re.findall(r"truth in +(\S+) % of the fits", shown)
    # Four times 200 intervals of 95 %: the standard deviation of such a share is 1.5 %.
    assert len(shares) == 4 and all(90.0 < float(share) < 99.5 for share in shares)


def test_impedance(run: Run) -> None:
    shown = run("impedance")
    check_pulls(shown, 6)
    assert "71 frequencies, 142 real data, 6 parameters" in shown
    assert 0.01 < number(r"p = (\S+)", shown) < 0.99
    value, error, truth = map(
        float, re.search(r"time (\S+) ± (\S+) ms, truth (\S+) ms", shown).groups()  # type: ignore
    )
    assert abs(value - truth) < 3.0 * error
    pytest.importorskip("torch")
    other = run("impedance", "--backend", "torch")
    np.testing.assert_allclose(pulls(other), pulls(shown), atol=0.02)


def test_photon_decay(run: Run) -> None:
    shown = run("photon_decay")
    assert "300 succeeded" in shown and "300 found" in shown
    mean, scatter = np.asarray(
        re.findall(r"lifetime (\S+) ns .*scatter (\S+),", shown), dtype=float
    ).T
    # The likelihood has a bias of a few percent of the scatter, weights one of its own size.
    assert abs(mean[0] - 2.4) < 4.0 * scatter[0] / np.sqrt(300.0) and mean[1] < 2.4 - scatter[1]
    shares = re.findall(r"truth in (\S+) %", shown)
    assert len(shares) == 3 and all(59.0 < float(share) < 77.0 for share in shares)


def test_ode_model(run: Run) -> None:
    shown = run("ode_model")
    check_pulls(shown, 4)
    assert shown.count(": converged") == 2
    apart = re.findall(r"(\S+) standard errors from the first", shown)
    assert len(apart) == 2 and float(apart[1]) < 0.1


def test_shared_parameters(run: Run) -> None:
    shown = run("shared_parameters")
    check_pulls(shown, 5)
    ratios = re.search(r"errors are (\S+) and (\S+) times", shown).groups()  # type: ignore
    assert all(float(ratio) > 1.5 for ratio in ratios)
    low, high = re.search(r"constant: (\S+) to (\S+) µmol", shown).groups()  # type: ignore
    assert float(low) < 6.5 < float(high)
