"""Fixtures for all tests; see `backends.py` for the libraries they run on."""

from __future__ import annotations

import collections
import importlib.util
import signal
from typing import Any

import pytest

from tests.backends import Backend, or_skip, parameters, watch_reads
from tests.memory import Diet

if importlib.util.find_spec("jax") is not None:
    import jax

    jax.config.update("jax_enable_x64", True)  # before the first array is made


# A shell ignores it for jobs in the background, and so would this process and its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest drops what is marked thorough
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled`, leave slow libraries one case in five; mark the rest thorough."""
    seen: collections.Counter[tuple[str, Backend]] = collections.Counter()
    for item in items:
        if item.get_closest_marker("sampled") is None:
            continue
        chosen = item.callspec.params["backend"]  # type: ignore[attr-defined]
        if chosen in (Backend.JAX, Backend.STRICT, Backend.STRICT_DEVICE):
            case = item.nodeid.partition("[")[0], chosen
            if seen[case] % 5:
                item.add_marker("thorough")
            seen[case] += 1


_DIET = Diet()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    _DIET.keep()


@pytest.fixture(params=parameters())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every array library in turn; skipped, with the reason, if it cannot run."""
    return or_skip(request.param)


@pytest.fixture
def xp(backend: Backend) -> Any:
    """The namespace of `backend`."""
    return backend.xp


@pytest.fixture
def reads(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all that `backend` reads from the device, as it goes."""
    return watch_reads(backend, monkeypatch)
