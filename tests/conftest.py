"""Fixtures for all tests; see `backends.py` for the libraries they run on."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from backends import Backend

if importlib.util.find_spec("jax") is not None:
    import jax

    jax.config.update("jax_enable_x64", True)  # before the first array is made


def backend_params(backends: Any = Backend) -> list[Any]:
    """The backends as parameters; those on a GPU carry the marker `gpu`."""
    return [
        pytest.param(b, id=b.value, marks=[pytest.mark.gpu] if b.is_gpu else []) for b in backends
    ]


@pytest.fixture(params=backend_params())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every array library in turn; skipped, with the reason, where it cannot run."""
    chosen: Backend = request.param
    if chosen.missing:
        pytest.skip(chosen.missing)
    return chosen


@pytest.fixture
def xp(backend: Backend) -> Any:
    """The namespace of `backend`."""
    return backend.xp
