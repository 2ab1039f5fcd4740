"""Fixtures for all tests; see `backends.py` for the libraries they run on."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.backends import Backend, parameters, watch_reads

if importlib.util.find_spec("jax") is not None:
    import jax

    jax.config.update("jax_enable_x64", True)  # before the first array is made


@pytest.fixture(params=parameters())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every array library in turn; skipped, with the reason, if it cannot run."""
    chosen: Backend = request.param
    if chosen.missing:
        pytest.skip(chosen.missing)
    return chosen


@pytest.fixture
def xp(backend: Backend) -> Any:
    """The namespace of `backend`."""
    return backend.xp


@pytest.fixture
def reads(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all that `backend` reads from the device, as it goes."""
    return watch_reads(backend, monkeypatch)
