"""Tensors of torch on a device that is not torch's default: nothing is made on the default one.

The default device is "meta" here, whose tensors have no values, and the tensors are on the CPU.
"""

import numpy as np
import pytest

import lbfgs_xp as lx

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _elsewhere():
    with torch.device("meta"):
        assert torch.ones(1).is_meta
        yield


def here(values, dtype=torch.float64):
    return torch.asarray(np.asarray(values), dtype=dtype, device="cpu")


def bowl(x):
    target = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return ((x - target) ** 2).sum(-1)


def with_slope(x):
    target = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return ((x - target) ** 2).sum(-1), 2.0 * (x - target)


def on_cpu(*tensors):
    return all(tensor.device.type == "cpu" for tensor in tensors)


@pytest.fixture(params=[False, True], ids=["free-reads", "remote"])
def remote(request, monkeypatch):
    """CPU tensors as they are, and as if they were on a GPU."""
    from lbfgs_xp.arrays.torch import TorchBackend

    if request.param:
        never = property(lambda self: False, lambda self, value: None)
        monkeypatch.setattr(TorchBackend, "reads_are_free", never)


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "method", ["lbfgs", "bfgs", "newton", "projected_gradient", "adam", lx.SGD(0.1, clip_norm=1.0)],
    ids=str,
)
def test_minimize(remote, method, batched, reproducible):
    x0 = here(np.linspace(-1.0, 2.0, 12).reshape(4, 3) if batched else np.zeros(3))
    more = {"bounds": ([0.0, 0.0, 0.0], None)} if method == "projected_gradient" else {}
    res = lx.minimize(
        bowl, x0, method=method, batched=batched, reproducible=reproducible, maxiter=30, **more
    )
    assert on_cpu(res.x, res.jac) and (not batched or on_cpu(res.fun, res.status, res.nit))
    if method in ("lbfgs", "bfgs"):
        vector = here(np.ones(res.x.shape))
        operator = res.hess_inv
        assert on_cpu(operator @ vector, operator.diagonal(), operator.todense())


@pytest.mark.parametrize("jac", [None, "3-point"])
@pytest.mark.parametrize("batched", [False, True])
def test_fits(remote, batched, jac):
    def rosenbrock(x):
        return torch.stack([10.0 * (x[..., 1] - x[..., 0] ** 2), 1.0 - x[..., 0]], dim=-1)

    x0 = here(np.tile([-1.2, 1.0], (3, 1)) if batched else [-1.2, 1.0])
    res = lx.least_squares(rosenbrock, x0, jac=jac, batched=batched, bounds=(-9.0, None))
    assert on_cpu(res.x) and np.allclose(res.x.numpy(), 1.0)
    t = np.linspace(0.0, 4.0, 20)
    y = 3.0 * np.exp(-0.5 * t) + 0.01 * np.cos(40.0 * t)
    for method in ("lm", "lbfgs"):
        fit = lx.curve_fit(
            lambda t, a, k: a * torch.exp(-k * t), t, here(np.tile(y, (3, 1)) if batched else y),
            [1.0, 1.0], jac=jac, batched=batched, method=method, sigma=np.full(20, 0.1),
        )
        assert on_cpu(fit.x, fit.covariance) and np.allclose(fit.x.numpy(), [3.0, 0.5], atol=0.02)


@pytest.mark.parametrize("method", [lx.Adam(1e-2), lx.SGD(0.1, clip_norm=1.0), "lbfgs"], ids=str)
def test_train(remote, method):
    X = here(np.linspace(-1.0, 1.0, 40))
    res = lx.train(
        lambda p, batch: ((p["w"] * batch[0] + p["b"] - batch[1]) ** 2).mean(),
        {"w": here(0.0), "b": here(0.0)}, (X, 2.0 * X + 1.0), method=method, batch_size=10,
        epochs=3,
    )
    assert res.success and on_cpu(*res.params.values())


def test_everything_else(remote):
    for solve in (lx.quadratic_penalty, lx.augmented_lagrangian):
        res = solve(lambda x: x.sum(), here([2.0, 0.0]), inequality=lambda x: x @ x - 2.0)
        assert res.success and on_cpu(res.x)
    check = lx.check_gradient(lambda x: bowl(x), here(np.ones(3)), lambda x: with_slope(x)[1])
    assert check.error < 1e-8
    for projection in (
        lx.projections.Box(-1.0, here([1.0, 2.0, 3.0])), lx.projections.Simplex(1.0),
        lx.projections.L1Ball(1.0), lx.projections.L2Ball(1.0),
        lx.projections.Halfspace(here([1.0, 1.0, 1.0]), 1.0),
    ):
        assert on_cpu(projection(here([3.0, -4.0, 5.0])), projection(here(np.ones((2, 3)))))
    params = {"w": here([1.0, 2.0]), "c": here([1.0 + 1.0j], torch.complex128)}
    rule = lx.Adam(1e-2, on_nonfinite="skip")
    params, state = rule.update(params, params, rule.init(params))
    assert on_cpu(*params.values(), *(slot for leaf in state.slots for slot in leaf))
    slope = here([-1.0, -2.0])
    found = lx.line_search(
        lambda a: (slope * a + a * a, slope + 2.0 * a), "strong_wolfe", here([1.0, 1.0])
    )
    assert on_cpu(found.alpha, lx.fixed_sum(here(np.ones((2, 5)))))


@pytest.mark.parametrize("name", lx.problems.ALL)
def test_problems(name):
    from array_api_compat import torch as xp

    problem = lx.problems.ALL[name](xp=xp, device="cpu", dtype=torch.float64)
    assert on_cpu(problem.x0, *problem.value_and_gradient(problem.x0), problem.starts(3))


def test_optimizer_of_torch():
    from lbfgs_xp.torch import LBFGS

    x = torch.nn.Parameter(here(np.zeros(3)))
    optimizer = LBFGS([x])

    def closure():
        optimizer.zero_grad()
        value = bowl(x)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
    assert on_cpu(x) and np.allclose(x.detach().numpy(), [0.0, 1.0, 2.0])
