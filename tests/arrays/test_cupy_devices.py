"""Arrays of CuPy on a device that is not the current one: all work is done on theirs."""

import copy
import pickle

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

_HERE = Backend.CUPY
if _HERE.missing:
    pytest.skip(_HERE.missing, allow_module_level=True)
cupy = pytest.importorskip("cupy")
if cupy.cuda.runtime.getDeviceCount() < 2:
    pytest.skip("cupy: needs two devices", allow_module_level=True)
pytestmark = [pytest.mark.gpu] if _HERE.is_gpu else []

OTHER = cupy.cuda.Device(1)


def there(values, dtype="float64"):
    """An array on device 1, while device 0 is current."""
    with OTHER:
        return cupy.asarray(np.asarray(values), dtype=dtype)


def is_there(*arrays):
    return all(array.device == OTHER for array in arrays)


def bowl(x):
    assert cupy.cuda.Device() == OTHER    # functions are called with the device current
    target = cupy.arange(x.shape[-1], dtype=x.dtype)
    return cupy.sum((x - target) ** 2, axis=-1), 2.0 * (x - target)


@pytest.fixture(autouse=True)
def _current_device_stays():
    with cupy.cuda.Device(0):
        yield
        assert cupy.cuda.Device() == cupy.cuda.Device(0)


METHODS = [
    "lbfgs", "bfgs", lx.GradientDescent(), "projected_gradient", "adam", "sgd", "newton",
    [lx.Adam(1e-1).until(maxiter=5), lx.LBFGS()],
    lx.LBFGS(line_search="hager_zhang"),
    lx.Adam(1e-1, clip_norm=1.0),
]


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_minimize(method, batched, reproducible):
    x0 = there(np.linspace(-1.0, 2.0, 12).reshape(4, 3) if batched else np.zeros(3))
    more = {}
    if method == "newton":
        more["hess"] = lambda x: cupy.broadcast_to(2.0 * cupy.eye(3), (*x.shape, 3))
    if method == "projected_gradient":
        more["bounds"] = (there([0.0, 0.0, 0.0]), there([9.0, 0.5, 9.0]))
    res = lx.minimize(
        bowl, x0, jac=True, method=method, batched=batched, reproducible=reproducible,
        maxiter=30, callback=lambda record: record.x.sum() and False, **more,
    )
    assert is_there(res.x, res.jac) and (not batched or is_there(res.fun, res.status, res.nit))
    repr(res)
    again = lx.minimize(
        bowl, res.x, jac=True, method=method if isinstance(method, str) else "lbfgs",
        batched=batched, reproducible=reproducible, maxiter=3, **more,
    )
    assert is_there(again.x)
    if method in ("lbfgs", "bfgs"):
        vector = there(np.ones(res.x.shape))
        assert is_there(
            res.hess_inv @ vector, vector @ res.hess_inv, res.hess_inv.diagonal(),
            res.hess_inv.todense(),
        )
        assert np.asarray(res.hess_inv).shape == res.hess_inv.shape
        on = lx.minimize(
            bowl, res.x, jac=True, method=method, batched=batched, reproducible=reproducible,
            state=res.state, maxiter=3,
        )
        assert is_there(on.x)


def test_finite_differences_and_aux():
    res = lx.minimize(
        lambda x: (bowl(x)[0], x + 1.0), there(np.zeros(3)), jac="2-point", has_aux=True,
        pass_rows=False, gtol=1e-5,
    )
    assert is_there(res.x, res.aux) and np.allclose(res.x.get(), [0, 1, 2], atol=1e-4)


def test_nested_and_complex():
    x0 = {"a": there([1.0, 2.0]), "b": there([1.0 + 2.0j], "complex128")}

    def fun(p):
        return cupy.sum(p["a"] ** 2) + cupy.sum(abs(p["b"] - 1j) ** 2), {
            "a": 2.0 * p["a"], "b": 2.0 * (p["b"] - 1j),
        }

    res = lx.minimize(fun, x0, jac=True)
    assert res.success and is_there(*res.x.values(), *res.jac.values())


@pytest.mark.parametrize("batched", [False, True])
def test_least_squares(batched):
    x0 = there(np.tile([-1.2, 1.0], (3, 1)) if batched else [-1.2, 1.0])

    def rosenbrock(x):
        assert cupy.cuda.Device() == OTHER
        return cupy.stack([10.0 * (x[..., 1] - x[..., 0] ** 2), 1.0 - x[..., 0]], axis=-1)

    res = lx.least_squares(
        rosenbrock, x0, jac="3-point", batched=batched, bounds=(there([-9.0, -9.0]), None)
    )
    assert is_there(res.x, res.fun, res.jac) and np.allclose(res.x.get(), 1.0)


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.parametrize("batched", [False, True])
def test_curve_fit(batched, method):
    t = np.linspace(0.0, 4.0, 20)
    y = 3.0 * np.exp(-0.5 * t) + 0.01 * np.cos(40.0 * t)
    y = np.tile(y, (3, 1)) if batched else y
    fit = lx.curve_fit(
        lambda t, a, k: a * cupy.exp(-k * t), t, there(y), [1.0, 1.0], jac="3-point",
        batched=batched, method=method, sigma=there(np.full(20, 0.1)),
    )
    assert is_there(fit.x, fit.stderr, fit.covariance, fit.residuals)
    assert np.allclose(fit.x.get(), [3.0, 0.5], atol=0.02)
    repr(fit)


def test_threads_of_a_fit_work_on_the_device_of_the_data():
    t = np.linspace(0.0, 4.0, 20)
    rates = np.linspace(0.3, 0.7, 600)[:, None]
    y = there(3.0 * np.exp(-rates * t))

    def model(t, a, k):
        assert cupy.cuda.Device() == OTHER
        return a * cupy.exp(-k * t)

    fit = lx.curve_fit(
        model, t, y, [1.0, 1.0], jac="3-point", batched=True, compact=True, threads=2
    )
    assert is_there(fit.x) and np.allclose(fit.x.get()[:, 1], rates[:, 0], atol=1e-6)


@pytest.mark.parametrize("method", [lx.Adam(1e-2), lx.SGD(1e-1, clip_norm=1.0), "lbfgs"], ids=str)
def test_train(method):
    X = np.linspace(-1.0, 1.0, 40)

    def loss(p, batch):
        assert cupy.cuda.Device() == OTHER
        X, y = batch
        r = p["w"] * X + p["b"] - y
        return cupy.mean(r * r), {"w": 2.0 * cupy.mean(r * X), "b": 2.0 * cupy.mean(r)}

    records = []
    res = lx.train(
        loss, {"w": there(0.0), "b": there(0.0)}, (there(X), there(2.0 * X + 1.0)), jac=True,
        method=method, batch_size=10, epochs=3, callback=records.append,
    )
    assert len(records) == 3 and is_there(*res.params.values(), *records[0].params.values())
    on = lx.train(
        loss, res.params, (there(X), there(2.0 * X + 1.0)), jac=True, method=method,
        batch_size=10, state=res.state,
    )
    assert is_there(*on.params.values())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "rule", [lx.Adam(1e-2), lx.SGD(1e-1, momentum=0.9, clip_norm=1.0),
             lx.RMSProp(1e-2, on_nonfinite="skip")], ids=str,
)
def test_init_and_update(rule, in_place):
    params = {"w": there([1.0, 2.0]), "c": there([1.0 + 1.0j], "complex128")}
    state = rule.init(params)
    for _ in range(2):
        params, state = rule.update(
            params, {"w": there([0.5, 0.5]), "c": there([1.0j], "complex128")}, state,
            in_place=in_place,
        )
    assert is_there(*params.values(), *(slot for leaf in state.slots for slot in leaf))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("policy", ["ignore", "skip"])
def test_parameters_on_two_devices(policy, in_place):
    rule = lx.Adam(1e-2, on_nonfinite=policy)
    params = [cupy.asarray([1.0, 2.0]), there([1.0, 2.0])]
    state = rule.init(params)
    for _ in range(2):
        params, state = rule.update(
            params, [cupy.asarray([1.0, 1.0]), there([1.0, 1.0])], state, in_place=in_place
        )
    assert [p.device.id for p in params] == [0, 1]
    assert params[0].get().tolist() == params[1].get().tolist()


@pytest.mark.parametrize("solve", [lx.quadratic_penalty, lx.augmented_lagrangian])
def test_constraints(solve):
    res = solve(
        lambda x: cupy.sum(x), there([2.0, 0.0]), jac=lambda x: cupy.ones(2),
        inequality=lambda x: x @ x - 2.0, inequality_jac=lambda x: 2.0 * x,
    )
    assert res.success and is_there(res.x)


def test_check_gradient():
    check = lx.check_gradient(lambda x: bowl(x)[0], there(np.ones(3)), lambda x: bowl(x)[1])
    assert check.error < 1e-8 and is_there(check.jac, check.differences)


@pytest.mark.parametrize("projection", [
    lx.projections.Box(-1.0, there([1.0, 2.0, 3.0])),
    lx.projections.Box(np.zeros(3), None),
    lx.projections.Simplex(1.0), lx.projections.L1Ball(1.0), lx.projections.L2Ball(1.0),
    lx.projections.NonNegative(), lx.projections.Halfspace(there([1.0, 1.0, 1.0]), 1.0),
], ids=lambda p: type(p).__name__)
def test_projections(projection):
    assert is_there(projection(there([3.0, -4.0, 5.0])), projection(there(np.ones((2, 3)))))
    res = lx.minimize(
        bowl, there(np.zeros((2, 3))), jac=True, batched=True,
        method=lx.ProjectedGradient(projection),
    )
    assert is_there(res.x)


def test_line_search_and_sums():
    slope = there([-1.0, -2.0])
    res = lx.line_search(
        lambda a: (slope * a + a * a, slope + 2.0 * a), "strong_wolfe", there([1.0, 1.0])
    )
    assert res.success.get().all() and is_there(res.alpha)
    assert is_there(lx.fixed_sum(there(np.ones((2, 5)))))
    g, pairs = there(np.ones(3)), there(np.ones((2, 3)))
    assert is_there(lx.two_loop(g, pairs, pairs))


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("name", lx.problems.ALL)
def test_problems(name, reproducible):
    problem = lx.problems.ALL[name](xp=_HERE.xp, device=OTHER, reproducible=reproducible)
    value, gradient = problem.value_and_gradient(problem.x0)
    assert is_there(problem.x0, value, gradient, problem.fun(problem.x0), problem.starts(3))
    res = lx.minimize(problem.value_and_gradient, problem.x0, jac=True, maxiter=5)
    assert is_there(res.x)


def test_copies_and_pickles_of_results():
    res = lx.minimize(bowl, there(np.zeros(3)), jac=True, maxiter=2)
    copied = copy.deepcopy(res)
    assert is_there(copied.x) and is_there(copied.hess_inv @ there(np.ones(3)))
    # CuPy itself unpickles arrays on the current device, and so does all that holds them.
    loaded = pickle.loads(pickle.dumps(res))
    assert loaded.x.device == (loaded.hess_inv @ cupy.ones(3)).device == cupy.cuda.Device(0)


def test_mixed_devices_are_refused_by_name():
    here = cupy.asarray([0.0, 0.0])
    with pytest.raises(ValueError, match=r"x0\.a has device .*0> and x0\.b .*1>; wanted one"):
        lx.minimize(bowl, {"a": here, "b": there([0.0])}, jac=True)
    with pytest.raises(ValueError, match=r"the gradient is on device .*0>; wanted .*1>, like x0"):
        lx.minimize(lambda x: (cupy.sum(x), here), there([0.0, 0.0]), jac=True)
    with pytest.raises(ValueError, match="p0 is on device .*0>; wanted .*1>"):
        lx.curve_fit(lambda t, a: a + t, there([0.0, 1.0]), there([1.0, 2.0]), cupy.ones(1),
                     jac="3-point")
    with pytest.raises(ValueError, match=r"data is on device .*0>; wanted .*1>, like params"):
        lx.train(lambda p, b: (p, p), there(0.0), (here,), jac=True)
    with pytest.raises(ValueError, match="single device"):
        lx.Adam(1e-2, clip_norm=1.0).init([here, there([0.0])])
