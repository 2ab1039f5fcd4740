"""Tensors of PyTorch that require no gradient, among others that do, stay as they are."""

import copy

import pytest

import lbfgs_xp as lx

torch = pytest.importorskip("torch")
functional_call = torch.func.functional_call

DATA = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64).reshape(20, 2)
TARGET = torch.sin(DATA[:, :1])


def network(*frozen):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3, dtype=torch.float64), torch.nn.Tanh(),
        torch.nn.Linear(3, 1, dtype=torch.float64),
    )
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    return net


def residuals_of(net):
    return lambda params: (functional_call(net, params, (DATA,)) - TARGET)[:, 0]


def loss_of(net):
    def loss(params, batch=(DATA, TARGET)):
        inputs, targets = batch
        return ((functional_call(net, params, (inputs,)) - targets) ** 2).mean()

    return loss


def gradient_of(net):
    """The gradient, None for frozen tensors, as autograd of a module gives it."""
    def gradient(params):
        net_here = copy.deepcopy(net)
        net_here.load_state_dict(params)
        loss_of(net_here)(dict(net_here.named_parameters())).backward()
        return {name: p.grad for name, p in net_here.named_parameters()}

    return gradient


def minimized(net, params, **settings):
    return lx.minimize(loss_of(net), params, maxiter=20, **settings).x


def updated(net, params):
    optimizer = lx.Adam(1e-2)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = optimizer.update(params, gradient_of(net)(params), state)
    return params


def trained(net, params, method="adam"):
    return lx.train(
        loss_of(net), params, (DATA, TARGET), method=method, epochs=3, batch_size=10
    ).params


RUNS = {
    "minimize": minimized,
    "newton": lambda net, params: minimized(net, params, method="newton"),
    "adam": lambda net, params: minimized(net, params, method="adam"),
    "jac": lambda net, params: minimized(net, params, jac=gradient_of(net)),
    "differences": lambda net, params: minimized(net, params, jac="3-point"),
    "phases": lambda net, params: minimized(
        net, params, method=[lx.Adam(1e-2).until(maxiter=5), lx.LBFGS()]
    ),
    "least_squares": lambda net, params: lx.least_squares(
        residuals_of(net), params, maxiter=5
    ).x,
    "update": updated,
    "train": trained,
    "train with L-BFGS": lambda net, params: trained(net, params, "lbfgs"),
}


@pytest.mark.parametrize("frozen", [("0.weight",), ("2.bias",), ("0.weight", "0.bias")])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_frozen_tensors_stay(run, frozen):
    net = network(*frozen)
    params = dict(net.named_parameters())
    found = run(net, params)
    assert list(found) == list(params)
    for name, param in params.items():
        assert torch.equal(found[name], param) == (name in frozen)
        assert found[name].requires_grad == (name not in frozen)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_without_any_that_requires_a_gradient_all_change(run):
    net = network()
    params = {name: param.detach() for name, param in net.named_parameters()}
    found = run(net, params)
    assert not any(torch.equal(found[name], param) for name, param in params.items())


def test_the_run_is_that_of_the_other_tensors_alone():
    net = network("0.weight")
    params = dict(net.named_parameters())
    others = {name: param for name, param in params.items() if param.requires_grad}
    res = lx.minimize(loss_of(net), params, maxiter=10)
    alone = lx.minimize(loss_of(net), others, maxiter=10)
    assert float(res.fun) == float(alone.fun)
    assert not res.jac["0.weight"].any()
    assert torch.equal(res.jac["2.weight"], alone.jac["2.weight"])
    # A run from the result leaves the frozen tensor alone, too.
    again = lx.minimize(loss_of(net), res.x, maxiter=10, state=res.state)
    assert torch.equal(again.x["0.weight"], params["0.weight"])


def test_bounds_and_labels_of_all_tensors():
    net = network("0.weight")
    params = dict(net.named_parameters())
    lower = {name: torch.full_like(param.detach(), -0.1) for name, param in params.items()}
    res = lx.minimize(
        loss_of(net), params, method="projected_gradient", bounds=(lower, None), maxiter=20
    )
    assert all((res.x[name] >= -0.1).all() for name in params if name != "0.weight")
    assert torch.equal(res.x["0.weight"], params["0.weight"])
    labels = {name: "bias" if "bias" in name else "weight" for name in params}
    optimizer = lx.Adam(1e-2, labels=labels, groups={"bias": {"learning_rate": 0.0}})
    new, _ = optimizer.update(params, gradient_of(net)(params), optimizer.init(params))
    changed = {name for name in params if not torch.equal(new[name], params[name])}
    assert changed == {"2.weight"}


def test_a_resumed_training_must_freeze_the_same_tensors():
    net = network("0.weight")
    params = dict(net.named_parameters())
    res = lx.train(loss_of(net), params, (DATA, TARGET), epochs=2, batch_size=10)
    whole = lx.train(loss_of(net), params, (DATA, TARGET), epochs=4, batch_size=10)
    more = lx.train(
        loss_of(net), res.params, (DATA, TARGET), epochs=2, batch_size=10, state=res.state
    )
    for name in params:
        assert torch.equal(more.params[name], whole.params[name])
    thawed = {name: param.detach() for name, param in res.params.items()}
    with pytest.raises(ValueError, match="has the structure|other frozen tensors"):
        lx.train(loss_of(net), thawed, (DATA, TARGET), batch_size=10, state=res.state)


def test_what_cannot_leave_tensors_alone_says_so():
    params = {
        "a": torch.zeros(2, dtype=torch.float64),
        "b": torch.zeros(2, dtype=torch.float64, requires_grad=True),
    }
    with pytest.raises(ValueError, match=r"x0\.a is frozen .*batched=True"):
        lx.minimize(lambda p: (p["a"] + p["b"]) ** 2, params, batched=True)
    with pytest.raises(ValueError, match=r"p0\.a is frozen .*constants of the model"):
        lx.curve_fit(
            lambda x, a, b: a[0] + b[0] * x, torch.linspace(0.0, 1.0, 5).double(),
            torch.ones(5).double(), params,
        )
