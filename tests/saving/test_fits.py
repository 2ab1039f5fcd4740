"""Checkpoints of fits: a fit that is stopped anywhere ends as if it had never stopped."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.fits import pieces
from tests.backends import Backend, or_skip
from tests.saving.test_checkpoint import Stopped, stopping, until_it_ends

X = np.linspace(0.0, 4.0, 24)
RATES = np.linspace(0.3, 2.2, 40)[:, None]
NOISE = 0.01 * np.cos(np.outer(np.arange(40.0) + 1.0, 7.0 * X))
CURVES = 2.0 * np.exp(-RATES * X) + NOISE
COUNTS = np.round(50.0 * np.exp(-RATES * X))


def decay(x: Any, a: Any, k: Any) -> Any:
    return a * ((-k * x).exp() if hasattr(x, "exp") else np.exp(-k * x))


def decay_slopes(x: Any, a: Any, k: Any) -> Any:
    first = np.exp(-k * x)
    return np.stack([first, -a * x * first], axis=-1)


def of_one(calls: int, model: Any = decay, backend: Backend = Backend.NUMPY, **more: Any) -> Any:
    y = backend.asarray(CURVES[3])
    return lx.curve_fit(stopping(model, calls), backend.asarray(X), y, [0.5, 3.0], **more)


def of_batch(calls: int, backend: Backend = Backend.NUMPY, data: Any = CURVES, **more: Any) -> Any:
    return lx.curve_fit(
        stopping(decay, calls), backend.asarray(X), backend.asarray(data), [1.0, 2.0],
        batched=True, **more,
    )


def of_residuals(calls: int, **more: Any) -> Any:
    def residuals(p: Any) -> Any:
        return p[:, :1] * np.exp(-p[:, 1:] * X) - CURVES

    return lx.least_squares(
        stopping(residuals, calls), np.tile([1.0, 2.0], (40, 1)), batched=True, **more
    )


def by_products(calls: int, solver: str, **more: Any) -> Any:
    torch = or_skip(Backend.TORCH).xp

    def residuals(p: Any, x: Any) -> Any:
        return torch.concat([p[1:] - p[:-1] ** 2, torch.sin(p[:4]) - x])

    x = torch.linspace(0.0, 0.5, 4, dtype=torch.float64)
    start = torch.linspace(0.1, 1.5, 12, dtype=torch.float64)
    return lx.least_squares(stopping(residuals, calls), start, (x,), solver=solver, **more)


FITS: dict[str, tuple[Callable[..., Any], int, dict[str, Any]]] = {
    "one": (of_one, 9, {}),
    "torch": (of_one, 9, {"backend": Backend.TORCH}),
    "3-point": (of_one, 14, {"jac": "3-point"}),
    "noise": (of_one, 30, {"model": lambda x, a, k: np.round(decay(x, a, k), 4)}),
    "bounds": (of_one, 9, {"bounds": ([0.1, 0.1], [1.9, 5.0])}),
    # A start that is far off takes three more calls before it can be saved.
    "slopes": (of_one, 7, {"jac": decay_slopes, "loss": "soft_l1", "f_scale": 0.01}),
    "chunks": (of_one, 40, {"chunk_size": 7}),
    "starts": (of_one, 35, {"starts": np.asarray([[2.0, 0.5], [3.0, 1.0]])}),
    "batch": (of_batch, 9, {"callback": lambda record: None}),
    "torch batch": (of_batch, 9, {"callback": lambda record: None, "backend": Backend.TORCH}),
    "pieces": (of_batch, 25, {}),
    "threads": (of_batch, 50, {"threads": 2}),
    "counts": (of_batch, 40, {"data": COUNTS, "likelihood": "poisson"}),
    "residuals": (of_residuals, 9, {"compact": False}),
    "dual": (by_products, 9, {"solver": "dual"}),
    "cg": (by_products, 6, {"solver": "cg"}),
}


def assert_same_fit(found: Any, wanted: Any) -> None:
    def host(value: Any) -> Any:
        return np.asarray(value.detach() if hasattr(value, "detach") else value)

    assert type(found) is type(wanted)
    for field in dataclasses.fields(wanted):
        mine, other = getattr(found, field.name), getattr(wanted, field.name)
        if field.name.startswith("_") or hasattr(mine, "matvec"):
            continue
        if dataclasses.is_dataclass(mine):
            assert_same_fit(mine, other)
        elif mine is None or isinstance(mine, (str, list)):
            assert mine == other, field.name
        else:
            np.testing.assert_array_equal(host(mine), host(other), err_msg=field.name)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_size", lambda backend, rows, numbers, threads: 9)


@pytest.mark.parametrize("name", FITS)
def test_bits_of_a_fit_that_never_stopped(name: str, tmp_path: Path) -> None:
    fit, calls, settings = FITS[name]
    path = tmp_path / "fit.npz"
    found, stops = until_it_ends(
        lambda: fit(calls, checkpoint=lx.Checkpoint(path, every=1), **settings)
    )
    assert stops > 0
    wanted = fit(10**6, **settings)
    assert_same_fit(found, wanted)
    # Started again, it only repeats its last looks.
    assert_same_fit(fit(calls, checkpoint=lx.Checkpoint(path), **settings), wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["fit.npz"]


def test_pieces_that_have_ended_are_not_fitted_again(tmp_path: Path) -> None:
    seen: list[int] = []

    def model(x: Any, a: Any, k: Any) -> Any:
        seen.append(a.shape[0])
        return decay(x, a, k)

    def fit(calls: int) -> Any:
        return lx.curve_fit(
            stopping(model, calls), X, CURVES, [1.0, 2.0], batched=True,
            checkpoint=lx.Checkpoint(tmp_path / "fit.npz", seconds=0.0),
        )

    wanted = fit(10**6)
    seen.clear()
    assert_same_fit(fit(5), wanted)
    assert 9 not in seen


@pytest.mark.parametrize("name", ["batch", "pieces", "one"])
@pytest.mark.parametrize("back", [False, True])
def test_another_library_goes_on(name: str, back: bool, tmp_path: Path) -> None:
    fit, _, settings = FITS[name]
    path, torch = tmp_path / "fit.npz", or_skip(Backend.TORCH)
    first, second = (torch, Backend.NUMPY) if back else (Backend.NUMPY, torch)
    settings = {**settings, "jac": "3-point"}
    with pytest.raises(Stopped):
        fit(30, backend=first, checkpoint=lx.Checkpoint(path, every=1), **settings)
    found = fit(10**6, backend=second, checkpoint=lx.Checkpoint(path), **settings)
    wanted = fit(10**6, backend=second, **settings)
    np.testing.assert_allclose(
        second.to_numpy(found.covariance), second.to_numpy(wanted.covariance), rtol=1e-6
    )
    assert np.all(second.to_numpy(found.success) if name != "one" else found.success)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"data": CURVES[::-1]}, r"data\.y has other values here than there"),
        ({"data": CURVES[:, :20]}, r"data\.y is float64 \[40, 24\] there and float64 \[40, 20\]"),
        ({"p0": {"a": 1.0, "k": 2.0}}, r"parameters\.start is float64 \[40, 2\] there and None"),
        ({"gtol": 1e-3}, "gtol is None there and 0.001 here"),
        ({"fixed": (0,)}, "fixed is None there and"),
        ({"bounds": (0.0, 3.0)}, "bounds is None there and"),
        ({"jac": "2-point"}, "jac is 3-point there and 2-point here"),
        ({"model": lambda x, a, k: decay(x, a, k) + 1.0}, r"the model has other values in \d+"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_fit_is_refused(other: dict[str, Any], says: str, tmp_path: Path) -> None:
    def fit(**more: Any) -> None:
        settings = {
            "model": decay, "data": CURVES, "p0": [1.0, 2.0], "jac": "3-point",
            "checkpoint": lx.Checkpoint(tmp_path / "fit.npz"), "callback": lambda record: None,
            **more,
        }
        data = settings.pop("data")
        model, p0 = settings.pop("model"), settings.pop("p0")
        lx.curve_fit(model, X[: data.shape[1]], data, p0, batched=True, **settings)

    fit()
    with pytest.raises(ValueError, match=says):
        fit(**other)


@pytest.mark.parametrize(
    "ends",
    [{"maxiter": 3}, {"maxfun": 14}, {"maxtime": 0.0}, {"callback": lambda record: True}],
    ids=lambda ends: next(iter(ends)),
)
@pytest.mark.parametrize("name", ["one", "batch", "pieces"])
def test_a_fit_that_was_ended_goes_on(name: str, ends: dict[str, Any], tmp_path: Path) -> None:
    fit, _, settings = FITS[name]
    checkpoint = lx.Checkpoint(tmp_path / "fit.npz")
    ended = fit(10**6, checkpoint=checkpoint, **{**settings, **ends})
    wanted = fit(10**6, **settings)
    assert not np.any(ended.success)
    if name == "pieces" and "callback" in ends:
        return    # a batch with a callback is fitted as a whole
    assert_same_fit(fit(10**6, checkpoint=checkpoint, **settings), wanted)


def test_an_interrupt_saves_the_fit(tmp_path: Path) -> None:
    def interrupted(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 60:
            signal.raise_signal(signal.SIGINT)
        return decay(*args)

    def fit(model: Any) -> Any:
        checkpoint = lx.Checkpoint(tmp_path / "fit.npz")
        return lx.curve_fit(model, X, CURVES, [1.0, 2.0], batched=True, checkpoint=checkpoint)

    calls: list[None] = []
    stopped = fit(interrupted)
    assert (np.asarray(stopped.status) == lx.Status.INTERRUPTED).any()
    assert (np.asarray(stopped.status) == lx.Status.GRADIENT).any()
    assert_same_fit(fit(lambda *args: decay(*args)), of_batch(10**6))


SCRIPT = """
import os, signal, sys
import numpy as np
import lbfgs_xp as lx
calls = []
def model(x, a, k):
    calls.append(None)
    if len(calls) == 15 and sys.argv[2] != "nothing":
        os.kill(os.getpid(), signal.SIGTERM)
    return a * np.exp(-k * x)
x = np.linspace(0.0, 4.0, 24)
fit = lx.curve_fit(model, x, 2.0 * np.exp(-0.5 * x) + 0.01 * np.cos(9.0 * x), [0.5, 3.0],
                   checkpoint=lx.Checkpoint(sys.argv[1]))
print(fit.x.tobytes().hex(), fit.nfev)
"""


def test_a_process_that_is_terminated(tmp_path: Path) -> None:
    def start(path: str, how: str) -> Any:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / path), how]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start("fit.npz", "terminated").returncode == -signal.SIGTERM
    found, wanted = start("fit.npz", "nothing"), start("other.npz", "nothing")
    assert found.stdout == wanted.stdout
    assert len(found.stdout.split()) == 2, found.stderr


def test_what_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint was passed with method='lbfgs'"):
        of_one(10**6, method="lbfgs", checkpoint=lx.Checkpoint(tmp_path / "fit.npz"))
    with pytest.raises(TypeError, match="wanted lx.Checkpoint"):
        of_one(10**6, checkpoint=str(tmp_path / "fit.npz"))
