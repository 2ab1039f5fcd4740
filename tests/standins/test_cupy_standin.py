"""The stand-in for CuPy has nothing that CuPy lacks, refuses what CuPy refuses, and counts."""

import copy
import inspect
import operator
import pickle
import shutil
import threading

import numpy as np
import pytest

from tests.backends import Backend

if Backend.CUPY.is_gpu:
    pytest.skip("CuPy itself is here", allow_module_level=True)
cupy = pytest.importorskip("cupy")

from cupy import _standin  # noqa: E402
from cupy._standin import API, Counts, Device, Flags, signature_of  # noqa: E402

Array = cupy.ndarray


def public(owner):
    return {n for n in vars(owner) if not n.startswith("_")}


# --- names and parameters ------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["cupy", "cupy.linalg"])
def test_modules_have_only_names_of_cupy(title):
    module = cupy if title == "cupy" else cupy.linalg
    own = {"cuda", "linalg", "fft", "API", "DEVICES", "counts"} if module is cupy else set()
    assert public(module) - own <= API[title].keys()


@pytest.mark.parametrize(
    ("title", "owner"),
    [("cupy.ndarray", Array), ("cupy.cuda.Device", Device), ("cupy.ndarray.flags", Flags)],
)
def test_classes_have_only_names_of_cupy(title, owner):
    assert public(owner) <= API[title].keys()
    special = {n for n in vars(owner) if n.startswith("__") and vars(owner)[n] is not None}
    assert special - set(dir(object)) - {"__annotations__", "__dict__", "__module__",
                                         "__weakref__"} <= API[title].keys()


FUNCTIONS = [
    (f"{title}.{name}", getattr(owner, name), parameters)
    for title, owner in (
        ("cupy", cupy), ("cupy.linalg", cupy.linalg), ("cupy.ndarray", Array),
        ("cupy.cuda.Device", Device),
    )
    for name, parameters in API[title].items()
    if parameters is not None and inspect.isroutine(getattr(owner, name, None))
    and not hasattr(object, name)
]


@pytest.mark.parametrize(("function", "parameters"), [f[1:] for f in FUNCTIONS],
                         ids=[f[0] for f in FUNCTIONS])
def test_parameters_are_those_of_cupy(function, parameters):
    own = list(inspect.signature(function).parameters.values())
    wanted = list(signature_of(parameters).parameters.values())
    names = [p.name for p in own]
    if names[:1] == ["self"] and wanted[0].name == "self":
        own, wanted = own[1:], wanted[1:]    # operators take it by position alone
    operators = [p.kind for p in wanted] == [inspect.Parameter.POSITIONAL_ONLY] * len(wanted)
    if operators:
        assert len(own) <= len(wanted)
    else:
        # A subset, in the same order, by the same names and of the same kinds.
        rest = iter((p.name, p.kind) for p in wanted)
        assert all((p.name, p.kind) in rest for p in own)
    # What CuPy requires is required here.
    required = [p.name for p in wanted if p.default is p.empty and p.kind <= 1]
    assert len([p for p in own if p.default is p.empty and p.kind <= 1]) >= len(required)


def test_parameters_of_kernels_are_those_of_cupy():
    own = inspect.signature(cupy.ElementwiseKernel)
    wanted = signature_of(API["cupy"]["ElementwiseKernel"])
    assert [(p.name, p.kind) for p in own.parameters.values()] == [
        (p.name, p.kind) for p in wanted.parameters.values()
    ]


def test_a_keyword_that_cupy_does_not_take_is_refused():
    x = cupy.arange(3)
    for call in (
        lambda: cupy.zeros(3, device=Device(0)),
        lambda: cupy.sum(x, where=x > 0),
        lambda: x.sum(initial=0.0),
        lambda: cupy.add(x, x, where=x > 0),
        lambda: cupy.asarray([1.0], device=Device(0)),
        lambda: cupy.linalg.eigh(x, upper=True),
    ):
        with pytest.raises(TypeError):
            call()


def test_what_cupy_lacks_is_missing():
    for name in ("vecdot", "unstack", "concat", "isdtype", "astype", "__array_namespace_info__"):
        assert not hasattr(cupy, name) or name in API["cupy"]
    assert not {"vecdot", "unstack"} & API["cupy"].keys()
    for name in ("__index__", "__dlpack_c__", "flat_view", "to_device", "__array_namespace__"):
        assert not hasattr(Array, name)
    assert not hasattr(cupy.arange(3).flags, "writeable")


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation")    # CuPy's has no copy= either
def test_nothing_is_converted_to_numpy():
    x = cupy.arange(3.0)
    for call in (
        lambda: np.asarray(x), lambda: np.array(x), lambda: np.sum(x), lambda: np.add.reduce(x),
        lambda: np.linalg.norm(x), lambda: np.concatenate([x, x]),
        lambda: np.stack([x.get(), x]), lambda: np.ones(3) + 0 * np.ones(3) * x,
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize(
    "do", [operator.add, operator.mul, operator.lt, operator.matmul, operator.iadd, operator.pow],
)
def test_arrays_of_numpy_do_not_mix(do):
    with pytest.raises(TypeError):
        do(cupy.arange(3.0), np.ones(3))
    with pytest.raises(TypeError):
        do(np.ones(3), cupy.arange(3.0))
    for call in (
        lambda: cupy.add(cupy.ones(3), np.ones(3)),
        lambda: cupy.where(cupy.ones(3) > 0, np.ones(3), 0.0),
        lambda: np.add(np.ones(3), cupy.ones(3)),
        lambda: cupy.concatenate([cupy.ones(3), np.ones(3)]),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="cannot be used for assignment"):
        cupy.ones(3)[:] = np.ones(3)


def test_numbers_of_numpy_mix():
    x = cupy.arange(3.0)
    for found in (np.float64(2.0) * x, x * np.float64(2.0), np.multiply(2.0, x), 2.0 * x):
        assert isinstance(found, Array) and found.tolist() == [0.0, 2.0, 4.0]
    assert isinstance(np.exp(x), Array)    # CuPy's own function


def test_results_without_axes_stay_arrays():
    x = cupy.arange(3.0)
    for found in (x.sum(), x @ x, cupy.max(x), x[0], cupy.linalg.norm(x), cupy.any(x > 0), -x[1]):
        assert isinstance(found, Array) and found.shape == ()
    with pytest.raises(TypeError):
        operator.index(cupy.asarray(1))
    with pytest.raises(TypeError):
        range(3)[cupy.asarray(1)]
    with pytest.raises(TypeError):
        iter(x[0])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)
    with pytest.raises(ValueError, match="size 1"):
        x.item()


def test_neither_arrays_nor_devices_can_be_hashed():
    for value in (cupy.ones(3), Device(0)):
        with pytest.raises(TypeError, match="unhashable"):
            hash(value)


def test_solvers_of_linalg_give_nan_instead_of_errors():
    singular = cupy.asarray([np.zeros((2, 2)), np.eye(2)])
    found = cupy.linalg.inv(singular).get()
    assert np.isnan(found[0]).all() and (found[1] == np.eye(2)).all()
    assert np.isnan(cupy.linalg.cholesky(-cupy.eye(2)).get()).all()
    assert np.isnan(cupy.linalg.solve(cupy.zeros((2, 2)), cupy.ones(2)).get()).all()


# --- counts --------------------------------------------------------------------------------------


def counted(call):
    _standin.counts.clear()
    call()
    seen = copy.copy(_standin.counts)
    _standin.counts.clear()
    return seen.reads, seen.uploads, seen.launches


X = cupy.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(("wanted", "call"), [
    ((1, 0, 0), lambda: X.get()),
    ((1, 0, 0), lambda: cupy.asnumpy(X)),
    ((1, 0, 0), lambda: X.tolist()),
    ((1, 0, 0), lambda: float(X[0, 0])),
    ((1, 0, 0), lambda: bool(X[0, 0])),
    ((1, 0, 0), lambda: int(X[0, 0])),
    ((1, 0, 0), lambda: complex(X[0, 0])),
    ((1, 0, 0), lambda: X[0, 0].item()),
    ((1, 0, 0), lambda: repr(X)),
    ((1, 0, 0), lambda: f"{X[0, 0]:.3f}"),
    ((0, 0, 0), lambda: X[:0].get()),
    ((1, 0, 1), lambda: bool(X[0, 0] > 0)),
    ((1, 0, 1), lambda: cupy.nonzero(X)),
    ((1, 0, 1), lambda: cupy.unique(X)),
    ((1, 0, 2), lambda: X[X > 1]),
    ((0, 1, 0), lambda: cupy.asarray(np.ones(3))),
    ((0, 1, 0), lambda: cupy.array([1.0, 2.0])),
    ((0, 1, 0), lambda: cupy.asarray(1.0)),
    ((0, 0, 1), lambda: cupy.asarray([X[0, 0], X[0, 1]])),
    ((0, 0, 1), lambda: cupy.full(3, 2.0)),
    ((0, 0, 1), lambda: cupy.zeros(3)),
    ((0, 0, 1), lambda: X + 1.0),
    ((0, 0, 1), lambda: np.float64(1.0) + X),
    ((0, 0, 1), lambda: X @ X.T),
    ((0, 0, 1), lambda: X.sum(axis=0)),
    ((0, 0, 1), lambda: X.copy()),
    ((0, 0, 1), lambda: cupy.linalg.norm(X)),
    ((0, 0, 0), lambda: cupy.asarray(X)),
    ((0, 0, 0), lambda: X.astype(X.dtype, copy=False)),
    ((0, 0, 1), lambda: X.astype("float32")),
    ((0, 0, 0), lambda: (X.T, X.mT, X.real, X[0], X[:, None], X[..., 1:], X.reshape(3, 2))),
    ((0, 0, 0), lambda: (cupy.broadcast_to(X, (4, 2, 3)), cupy.moveaxis(X, 0, 1), X.ravel())),
    ((0, 0, 1), lambda: X.T.reshape(6)),
    ((0, 0, 0), lambda: (cupy.result_type(X, "float32"), cupy.ndim(X), X.shape, len(X))),
    ((0, 0, 1), lambda: operator.setitem(cupy.asarray(X), (0, 0), 0.0)),
    ((1, 0, 0), lambda: Device(0).synchronize()),
    ((1, 1, 0), lambda: pickle.loads(pickle.dumps(X))),
], ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_counts(wanted, call):
    assert counted(call) == wanted


def test_solvers_of_linalg_do_not_wait():
    matrix = cupy.eye(3)

    def solve():
        cupy.linalg.eigh(matrix)
        cupy.linalg.cholesky(matrix)
        cupy.linalg.qr(matrix)
        cupy.linalg.svd(matrix)
        cupy.linalg.solve(matrix, matrix)

    assert counted(solve) == (0, 0, 5)
    assert counted(lambda: None) == tuple(vars(Counts()).values())


# --- devices -------------------------------------------------------------------------------------


def test_new_arrays_are_made_on_the_current_device():
    with Device(1):
        x = cupy.ones(3)
        assert x.device == Device() == Device(1) != Device(0)
        with Device(0):
            assert Device() == Device(0)
        assert Device() == Device(1) and (x + 1.0).device == Device(1)
    assert Device() == Device(0) and cupy.ones(3).device == Device(0)
    assert int(Device(1)) == 1 and repr(Device(1)) == "<CUDA Device 1>"
    with pytest.raises(RuntimeError, match="InvalidDevice"), Device(_standin.DEVICES):
        pass
    assert Device() == Device(0)


def test_arrays_of_another_device_are_refused():
    here = cupy.ones(3)
    with Device(1):
        there = cupy.ones(3)
    for call in (
        lambda: there + 1.0, lambda: here + there, lambda: cupy.sum(there), lambda: there.sum(),
        lambda: cupy.stack([here, there]), lambda: there.astype("float32"),
        lambda: operator.setitem(there, 0, 1.0), lambda: operator.setitem(here, 0, there[0]),
        lambda: operator.iadd(here, there), lambda: cupy.linalg.norm(there),
        lambda: there[cupy.asarray([0])], lambda: np.exp(there), lambda: cupy.zeros_like(there),
    ):
        with pytest.raises(ValueError, match=r"resides \(1\) is different from the current"):
            call()


def test_what_works_on_arrays_of_another_device():
    with Device(1):
        there = cupy.arange(4.0)
    for view in (there[1:], there.T, there.real, there.reshape(2, 2), cupy.expand_dims(there, 0)):
        assert view.device == Device(1)
    assert there.get().tolist() == there.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert float(there[1]) == 1.0
    # These copy to the current device, as in CuPy.
    for moved in (
        there.copy(), cupy.asarray(there), cupy.array(there), copy.copy(there),
        pickle.loads(pickle.dumps(there)),
    ):
        assert moved.device == Device(0) and moved.tolist() == there.tolist()
    assert copy.deepcopy(there).device == Device(1)


def test_every_thread_has_its_own_current_device():
    seen = []
    with Device(1):
        thread = threading.Thread(target=lambda: seen.append(Device().id))
        thread.start()
        thread.join()
    assert seen == [0]


# --- kernels -------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed, which compiles the kernels"
)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernel(dtype):
    kernel = cupy.ElementwiseKernel(
        "T x, float64 n", "T y, T z", "y = x * (T)n; z = x < (T)0 ? -x : sqrt(x);", "name",
        options=("--fmad=false",),
    )
    x = cupy.asarray([[1.0, -4.0], [9.0, 16.0]], dtype=dtype)
    y, z = cupy.empty((2, 2), dtype=dtype), cupy.empty((2, 2), dtype=dtype)
    assert counted(lambda: kernel(x, 3.0, y, z)) == (0, 0, 1)
    assert y.tolist() == [[3.0, -12.0], [27.0, 48.0]] and z.tolist() == [[1.0, 4.0], [3.0, 4.0]]
    assert y.dtype == dtype
    kernel(x.T, cupy.asarray(2.0), y, z)    # neither contiguous nor of the same shape
    assert y.tolist() == [[2.0, 18.0], [-8.0, 32.0]]


@needs_compiler
def test_kernel_rounds_products_and_sums_separately():
    kernel = cupy.ElementwiseKernel("T x, T y", "T z", "z = x * x + y;", options=("--fmad=false",))
    x, z = cupy.asarray([1.0 + 2.0**-30]), cupy.empty(1)
    kernel(x, -cupy.asarray([1.0 + 2.0**-29]), z)
    assert z.tolist() == [0.0]    # 2^-60 with one rounding


@needs_compiler
def test_kernel_refuses_other_arguments():
    kernel = cupy.ElementwiseKernel("T x, float64 n", "T y", "y = x * (T)n;", "name")
    x, y = cupy.ones(3), cupy.empty(3)
    with Device(1):
        there = cupy.ones(3)
    for error, arguments in (
        (TypeError, (x,)), (TypeError, (x, 2.0, y, y)), (TypeError, (np.ones(3), 2.0, y)),
        (ValueError, (x, 2.0, cupy.empty(2))), (TypeError, (x, cupy.ones(3, dtype="int32"))),
        (TypeError, (x, cupy.ones(3, dtype="float32"), y)), (ValueError, (there, 2.0, y)),
        (TypeError, (x, 2.0, cupy.empty(3, dtype="float32"))),
    ):
        with pytest.raises(error):
            kernel(*arguments)
    with pytest.raises(TypeError):
        cupy.ElementwiseKernel("T x", "T y", "y = x;", "name", fast=True)


@needs_compiler
def test_a_kernel_makes_its_outputs():
    kernel = cupy.ElementwiseKernel(
        "T x, bool b, int32 k, int64 n", "T y, bool c, int32 m",
        "y = b ? x : -x; c = !b; m = k + (int)n;",
    )
    x = cupy.asarray([[1.0], [2.0]], dtype="float32")
    b, k = cupy.asarray([True, False, True]), cupy.asarray([1, 2, 3], dtype="int32")
    assert counted(lambda: kernel(x, b, k, 10)) == (0, 0, 1)
    y, c, m = kernel(x, b, k, 10)
    assert y.dtype == "float32" and y.get().tolist() == [[1.0, -1.0, 1.0], [2.0, -2.0, 2.0]]
    assert c.dtype == "bool" and c.get().tolist() == 2 * [[False, True, False]]
    assert m.dtype == "int32" and m.get().tolist() == 2 * [[11, 12, 13]]
    for wrong in ((x, b, k, 1.5), (x, b, cupy.asarray([1, 2, 3]), 10), (x, k, k, 10)):
        with pytest.raises(TypeError, match="mismatched"):
            kernel(*wrong)


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("tests.standins.compiler.COMPILER", None)
    kernel = cupy.ElementwiseKernel("T x", "T y", "y = x + (T)41;", "name")
    with pytest.raises(RuntimeError, match=r"g\+\+ was not found"):
        kernel(cupy.ones(3), cupy.empty(3))
