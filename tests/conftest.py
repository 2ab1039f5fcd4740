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


# Of a matrix of tests, each of the slow libraries runs every fifth case, and not the same ones.
_FIRST = {Backend.JAX: 0, Backend.STRICT: 1, Backend.STRICT_DEVICE: 2}


@pytest.hookimpl(tryfirst=True)  # before pytest drops what is marked thorough
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as thorough what the short round leaves out on slow libraries.

    That is, four in five cases of a test marked `sampled`, and the strict library on its default
    device if the test also runs on its other device, which forbids more.
    """
    cases: dict[tuple[str, Backend], list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        chosen = params.get("backend", params.get("backend_"))    # of the fixture, or of some only
        if chosen in _FIRST:
            cases[item.nodeid.partition("[")[0], chosen].append(item)
    for (test, chosen), group in cases.items():
        left_out = []
        if chosen is Backend.STRICT and (test, Backend.STRICT_DEVICE) in cases:
            left_out = group
        elif group[0].get_closest_marker("sampled") is not None:
            first = _FIRST[chosen] % len(group)
            left_out = [item for k, item in enumerate(group) if (k - first) % 5]
        for item in left_out:
            item.add_marker("thorough")


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
