"""Functions of scalars as single kernels: they compute what the functions do as written."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import array_api_compat.numpy as compat_numpy
import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.formula import BOOL, INT32, NUMBER, REAL, WHOLE, Recorder, source
from lbfgs_xp.arrays.fused import Fused
from lbfgs_xp.line_search import Fixed
from lbfgs_xp.line_search.run import NAMES
from lbfgs_xp.problems import rosenbrock
from tests.backends import Backend, or_skip, parameters
from tests.first_order.test_nvrtc import (
    ARCHITECTURES,
    needs_nvrtc,
    nvrtc,
    ptx,
    rounded_otherwise,
)
from tests.standins.compiler import COMPILER
from tests.transfers import counting

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(params=parameters([Backend.CUPY, Backend.TORCH, Backend.TORCH_CUDA]))
def backend(request: pytest.FixtureRequest) -> Backend:
    """The libraries with kernels; within `kernels`, torch on the CPU has them, too."""
    return or_skip(request.param)


@contextlib.contextmanager
def kernels(backend: Backend) -> Iterator[None]:
    with counting(backend) if backend is Backend.TORCH else contextlib.nullcontext():
        yield


def on_host(backend: Backend, tree: Any) -> Any:
    """A tree with NumPy arrays instead of those of the backend."""
    if isinstance(tree, tuple):
        return scalars.named(type(tree), [on_host(backend, each) for each in tree])
    return backend.to_numpy(tree) if hasattr(tree, "dtype") else tree


def assert_same(found: Any, wanted: Any, name: str) -> None:
    """Two trees are the same in every bit."""
    if isinstance(wanted, tuple):
        assert type(found) is type(wanted) and len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b, name)
    elif hasattr(wanted, "dtype"):
        assert found.dtype == wanted.dtype, name
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    else:
        assert found == wanted, name


@contextlib.contextmanager
def compared(backend: Backend) -> Iterator[set[str]]:
    """Within it, each function that runs as a kernel also runs in NumPy, as it is written there for
    a device, with the same result. (PyTorch itself does not round all square roots correctly.)

    Yields the names of the functions.
    """
    plain, fused = scalars.Scalars(compat_numpy), Fused.fused
    seen: set[str] = set()

    def checked(self: Fused, function: Callable, *arguments: Any) -> Any:
        found = fused(self, function, *arguments)
        seen.add(function.__name__)
        with (
            mock.patch.object(scalars, "_arrays_of", lambda *namespace: plain),
            np.errstate(all="ignore"),
        ):
            wanted = function(plain, *on_host(backend, arguments))
        assert_same(on_host(backend, found), wanted, function.__name__)
        assert all(each is not None for each in self._recordings.values()), function.__name__
        return found

    with kernels(backend), mock.patch.object(Fused, "fused", checked):
        yield seen


# --- line searches and whole runs ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_a_line_search_is_one_operation(backend: Backend, name: str, dtype: str) -> None:
    """With every outcome among the rows: lower, higher, hidden by rounding, nan, no descent."""
    rule, rng = NAMES[name](), np.random.default_rng(0)
    phi0, dphi0 = rng.normal(size=60), -rng.uniform(0.1, 3.0, 60)
    dphi0[::9] *= -1.0
    bends = rng.uniform(0.1, 4.0, 60)
    bends[::7] = 1e-18

    with compared(backend):
        start, slope, first = (backend.asarray(v, dtype) for v in (phi0, dphi0, bends))
        search = rule.begin(start, slope, first, 1e-6)
        for step in range(1, 9):
            a = backend.to_numpy(search.alpha).astype(float)
            phi = phi0 + dphi0 * a + bends * a**2 * np.sin(a)
            phi[5 * step] = np.nan
            dphi = dphi0 + 2.0 * bends * a
            search = rule.advance(search, backend.asarray(phi, dtype), backend.asarray(dphi, dtype))
        status = backend.to_numpy(search.status)
    with kernels(backend), counting(backend) as crossed:
        rule.advance(search, search.phi0, search.dphi0)
    assert crossed.launches in (None, 1)
    assert set(status) >= {1, 2}


def a_batch(backend: Backend, method: Any, **more: Any) -> Any:
    p = rosenbrock(4, xp=backend.xp, device=backend.device, dtype="float64")
    return lx.minimize(
        p.value_and_gradient, p.starts(20), jac=True, batched=True, method=method, maxiter=40,
        **more,
    )


def a_fit(backend: Backend, **more: Any) -> Any:
    xp, t = backend.xp, backend.asarray(np.linspace(0.0, 4.0, 30))
    noise = np.cos(40.0 * np.linspace(0.0, 4.0, 30) + np.arange(10.0)[:, None])
    y = 3.0 * xp.exp(-0.5 * t) + 0.01 * backend.asarray(noise)
    return lx.curve_fit(
        lambda t, a, k: a * xp.exp(-k * t), t, y, [1.0, 1.0], batched=True, jac="2-point", **more
    )


RUNS: dict[str, Callable[[Backend], Any]] = {
    "lbfgs": lambda b: a_batch(b, "lbfgs"),
    "lbfgs, xtol": lambda b: a_batch(b, lx.LBFGS(learning_rate=0.5), xtol=1e-12),
    "bfgs": lambda b: a_batch(b, "bfgs"),
    "ssbroyden": lambda b: a_batch(b, "ssbroyden"),
    "gradient_descent": lambda b: a_batch(b, "gradient_descent"),
    "fit": a_fit,
    "fit, bounds": lambda b: a_fit(b, bounds=([0.0, 0.0], [2.5, 1.0])),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_functions_of_a_run_compute_what_is_written(backend: Backend, name: str) -> None:
    with compared(backend) as seen:
        RUNS[name](backend)
    assert len(seen) >= 5


# --- what is recorded ----------------------------------------------------------------------------


def doubled(fn: Any, setting: Any, pair: Any, count: Any, scale: Any) -> Any:
    a, b = pair
    new = fn.where(a > b, scale * a, b) if setting == "double" else a
    return (new, b), fn.where(a > b, count + 1, count), fn.full(False, a), 7


def test_what_is_not_computed_is_passed_through(backend: Backend) -> None:
    with kernels(backend):
        a, b = backend.asarray([1.0, 5.0]), backend.asarray([2.0, 3.0])
        count = backend.asarray([4, 4], "int32")
        fn = scalars.of(a)
        with counting(backend) as crossed:
            (new, same), more, no, seven = fn.fused(doubled, "double", (a, b), count, 2)
        assert crossed.launches in (None, 1)
        assert same is b and seven == 7
        assert backend.to_numpy(new).tolist() == [2.0, 10.0]
        assert backend.to_numpy(more).tolist() == [4, 5] and more.dtype == count.dtype
        assert backend.to_numpy(no).tolist() == [False, False]
        (new, _), _, _, _ = fn.fused(doubled, "double", (a, b), count, np.int64(2))
        assert backend.to_numpy(new).tolist() == [2.0, 10.0]
        (new, same), _, _, _ = fn.fused(doubled, "", (a, b), count, 2)
        assert new is a


def test_shapes_are_broadcast(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    host = rng.normal(size=(5, 6)), rng.normal(size=5)

    def between(fn: Any, mask: Any, u: Any, v: Any, factor: Any) -> Any:
        return fn.where(mask, u, factor * v), u - v

    def arguments(xp_matrix: Any, xp_vector: Any) -> tuple[Any, ...]:
        return xp_vector[:, None] > 0.0, xp_matrix[:, ::2], xp_vector[:, None], 0.1

    wanted = between(scalars.of(host[0]), *arguments(*host))
    with kernels(backend):
        device = tuple(backend.asarray(array) for array in host)
        found = scalars.of(device[0]).fused(between, *arguments(*device))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(a), b)


def branching(fn: Any, a: Any) -> Any:
    return a + 1.0 if bool((a > 0.0).all()) else a


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnRule(Fixed):
    """A rule of a user that is not written with the functions of `scalars`."""

    def accepts(self, fn: Any, search: Any, phi: Any, dphi: Any) -> Any:
        return phi == phi if bool((phi == phi).all()) else phi != phi


def test_what_cannot_be_recorded_runs_as_written(backend: Backend) -> None:
    with kernels(backend):
        a = backend.asarray([1.0, 2.0])
        fn = scalars.of(a)
        for _ in range(2):
            assert backend.to_numpy(fn.fused(branching, a)).tolist() == [2.0, 3.0]
        with pytest.raises(ZeroDivisionError):
            fn.fused(lambda fn, a: a + 1 // 0, a)
        narrow = backend.asarray([0.5, 0.5], "float32")
        mixed = fn.fused(lambda fn, a, b: a * b, a, narrow)
        assert backend.to_numpy(mixed).tolist() == [0.5, 1.0]
        search = OwnRule().begin(a, -a, 1.0)
        search = OwnRule().advance(search, 0.0 * a, -a)
        assert backend.to_numpy(search.status).tolist() == [1, 1]


def test_numbers_beyond_32_bits_are_compared_as_they_are() -> None:
    recorder = Recorder()
    count: Any = recorder.input(INT32)
    limit = recorder.input(WHOLE)
    assert "(long long)i0 > (long long)i1" in source(recorder, [count > limit]).body


def test_operations_that_cpp_defines_otherwise_run_as_written(backend: Backend) -> None:
    """Integers are divided as floats, and `&` of integers is not that of masks."""
    with kernels(backend):
        a, count = backend.asarray([1.0, -7.5]), backend.asarray([-5, 7], "int32")
        fn = scalars.of(a)

        def computed(function: Callable, *more: Any) -> list[Any]:
            return backend.to_numpy(fn.fused(function, *more)).tolist()

        assert computed(lambda fn, n: n / 2, count) == [-2.5, 3.5]
        assert computed(lambda fn, n: n & 6, count) == [2, 6]
        assert computed(lambda fn, n: n % 3, count) == [1, 1]
        assert computed(lambda fn, n: n % -3, count) == [-2, -2]
        assert computed(lambda fn, a: a % 2.0, a) == [1.0, 0.5]


def test_literals_are_those_of_cpp() -> None:
    recorder = Recorder()
    a: Any = recorder.input(REAL)
    two = enum.IntEnum("Two", {"TWO": 2}).TWO
    body = source(recorder, [(a + np.float64(0.1)) * two]).body
    assert "(T)0.1;" in body and "(T)2;" in body


@pytest.mark.parametrize(("kinds", "message"), [
    ((INT32, REAL), "integers and floats"), ((INT32, NUMBER), "integers and floats"),
])
def test_integers_and_floats_do_not_mix(kinds: tuple[str, str], message: str) -> None:
    recorder = Recorder()
    a: Any = recorder.input(kinds[0])
    b = recorder.input(kinds[1])
    with pytest.raises(TypeError, match=message):
        a + b
    with pytest.raises(TypeError, match="a list was used"):
        recorder.where(recorder.input(BOOL), a, [])


def test_cupy_has_no_kernels_on_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if Backend.CUPY.missing:
        pytest.skip(Backend.CUPY.missing)
    wanted = a_batch(Backend.CUPY, "lbfgs").x
    monkeypatch.setattr(Backend.CUPY.xp.cuda.runtime, "is_hip", True)  # type: ignore[union-attr]
    assert scalars.kernels_of(Backend.CUPY.asarray([1.0])) is None
    assert bool((a_batch(Backend.CUPY, "lbfgs").x == wanted).all())


# --- the kernels for torch -----------------------------------------------------------------------


def test_a_kernel_for_torch_refuses_other_arguments() -> None:
    import torch

    with counting(Backend.TORCH):
        build = scalars.kernels_of(torch.ones(3))
        assert build is not None
        kernel = build("T x, int32 m, float64 n", "T y", "y = x + (T)m + (T)n;")
        x, k = torch.ones(3), torch.ones(3, dtype=torch.int32)
        assert kernel(x, k, 0.5).tolist() == [2.5] * 3
        assert kernel(x, k, torch.tensor(0.5, dtype=torch.float64)).tolist() == [2.5] * 3
        out = torch.empty(3)
        assert kernel(x, k, 0.5, out) is out and out.tolist() == [2.5] * 3
        imaginary = torch.imag(torch.ones(3, dtype=torch.complex64).mul(1j).conj())
        assert imaginary.is_neg()
        assert kernel(imaginary, k, 0.0).tolist() == [0.0] * 3
        for wrong in ((k, k, 0.5), (x, k.long(), 0.5), (x, k, x), (x, k.to("meta"), 0.5)):
            with pytest.raises((TypeError, KeyError)):
                kernel(*wrong)
        with pytest.raises(ValueError, match="shape"):
            kernel(x, k, 0.5, torch.empty(2))
        out = torch.zeros(6)
        kernel(x, k, 0.5, out[::2])    # not contiguous
        assert out.tolist() == [2.5, 0.0] * 3
        assert kernel(torch.empty(0), k[:0], 0.5).shape == (0,)


def test_without_nvrtc_torch_runs_operation_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from lbfgs_xp.arrays import torch_kernels

    if torch.cuda.is_available():
        pytest.skip("kernels can be built here")
    works, device = torch_kernels._works.__wrapped__, torch.device("cuda:0")
    monkeypatch.setattr(torch_kernels, "_refused", set())
    monkeypatch.setattr(torch.version, "cuda", None)    # as on an AMD GPU
    assert not works(device)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.warns(RuntimeWarning, match="kernels cannot be used on cuda:0"):
        assert not works(device)


def test_a_kernel_that_cannot_run_is_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, the functions that compile and launch fail; one warning says so."""
    import torch

    from lbfgs_xp.arrays import torch_kernels
    from tests.standins import remote_torch

    x, g = torch.ones(4), torch.tensor([1.0, -2.0, 0.0, 4.0])
    adam = lx.Adam(0.1, clip_norm=1.0)
    wanted, _ = adam.update(x, g, adam.init(x))
    monkeypatch.setattr(torch_kernels, "_refused", set())
    monkeypatch.setattr(remote_torch._Kernel, "_launch", torch_kernels.Kernel._launch)
    with kernels(Backend.TORCH), pytest.warns(RuntimeWarning, match="kernels cannot") as warned:
        found, state = adam.update(x, g, adam.init(x))
        adam.update(found.clone(), g, state, in_place=True)
        res = a_batch(Backend.TORCH, "lbfgs")
    assert len(warned) == 1
    torch.testing.assert_close(found, wanted)
    assert torch_kernels.kernels_on(torch.device("cpu")) is None
    assert bool((res.fun == a_batch(Backend.TORCH, "lbfgs").fun).all())


@pytest.mark.thorough
@needs_nvrtc
def test_kernels_for_torch_compile_and_round_once() -> None:
    """The sources that NVRTC would get on a GPU, for each architecture."""
    from tests.standins import remote_torch

    sources: set[str] = set()
    launch = remote_torch._Kernel._launch

    def watched(self: Any, device: Any, form: Any, *more: Any) -> None:
        sources.add(self.source(form))
        launch(self, device, form, *more)

    with mock.patch.object(remote_torch._Kernel, "_launch", watched), kernels(Backend.TORCH):
        for run in RUNS.values():
            run(Backend.TORCH)
        for rule in NAMES.values():
            one = Backend.TORCH.asarray([1.0])
            rule().advance(rule().begin(one, -one, one), one, one)
    assert len(sources) >= 40
    for text in sources:
        for architecture in ARCHITECTURES:
            assembly = ptx(text, ("--fmad=false", f"-arch={architecture}"))
            assert not rounded_otherwise(assembly), text


@pytest.mark.thorough
@needs_nvrtc
def test_code_for_a_gpu_is_a_binary_unless_nvrtc_is_older() -> None:
    import torch

    from lbfgs_xp.arrays.torch_cuda import compiled
    from lbfgs_xp.arrays.torch_kernels import Kernel, _Form

    recorder = Recorder()
    x: Any = recorder.input(REAL)
    y: Any = recorder.input(REAL)
    z: Any = recorder.input(REAL)
    out = x * y + recorder.where(z > -math.inf, math.nan, z)
    kernel = Kernel(*source(recorder, [out]))
    text = kernel.source(_Form(torch.float32, 1, (True, True, False)))
    assert compiled(nvrtc(), text, 90).startswith(b"\x7fELF")
    newer = compiled(nvrtc(), text, 999).decode()
    assert ".version" in newer and not rounded_otherwise(newer)
    assert "0fFF800000" in newer and re.search("0f[7F]F[CF]", newer)    # -inf and nan
    with pytest.raises(RuntimeError, match="NVRTC refused a kernel"):
        compiled(nvrtc(), text.replace("i0 * i1", "i0 * )"), 90)
