"""JAX: nested parameters by JAX's own registry."""

import dataclasses
import typing

import numpy as np
import pytest

import lbfgs_xp as lx

jax = pytest.importorskip("jax")
jnp = jax.numpy


@jax.tree_util.register_pytree_node_class
class Node:
    def __init__(self, w, name):
        self.w, self.name = w, name

    def tree_flatten(self):
        return (self.w,), self.name

    @classmethod
    def tree_unflatten(cls, name, children):
        return cls(*children, name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weight: typing.Any
    bias: typing.Any
    activation: typing.Any = dataclasses.field(default=jnp.tanh, metadata={"static": True})


class Pair(typing.NamedTuple):
    first: typing.Any
    second: typing.Any


def zeros(*shape):
    return jnp.zeros(shape, dtype=jnp.float32)


TREES = {
    "a registered node": {"a": Node(zeros(2), "linear"), "b": zeros(1)},
    "None": {"a": zeros(2), "b": None, "c": [None, zeros(1, 2)]},
    "a dataclass with a static field": [Layer(zeros(2, 2), zeros(2)), Layer(zeros(1), None)],
    "a node in a named tuple": Pair(Node(Node(zeros(3), "inner"), "outer"), None),
}


def squares(params, batch=None):
    total = sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree_util.tree_leaves(params))
    return total if batch is None else total + 0.0 * jnp.sum(batch)


def residuals(params):
    return jnp.concatenate([jnp.ravel(leaf) - 1.0 for leaf in jax.tree_util.tree_leaves(params)])


def updated(params):
    optimizer = lx.SGD(0.25)
    state = optimizer.init(params)
    for _ in range(20):
        params, state = optimizer.update(params, jax.grad(squares)(params), state)
    return params


def trained(params, method):
    return lx.train(
        squares, params, jnp.zeros(4), batch_size=2, epochs=10, method=method
    ).params


RUNS = {
    "minimize": lambda params: lx.minimize(squares, params).x,
    "compiled": lambda params: lx.minimize(jax.jit(squares), params).x,
    "jac": lambda params: lx.minimize(squares, params, jac=jax.grad(squares)).x,
    "differences": lambda params: lx.minimize(squares, params, jac="3-point").x,
    "least_squares": lambda params: lx.least_squares(jax.jit(residuals), params).x,
    "update": updated,
    "train": lambda params: trained(params, lx.SGD(0.25)),
    "train with L-BFGS": lambda params: trained(params, "lbfgs"),
}


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_result_has_the_structure_of_the_start(run, params):
    found = run(params)
    assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(params)
    for leaf in jax.tree_util.tree_leaves(found):
        np.testing.assert_allclose(leaf, np.ones(leaf.shape), atol=2e-3)


def test_a_batch_of_nodes():
    params = {"a": Node(zeros(3, 2), "linear"), "b": None}
    target = jnp.asarray([1.0, 2.0, 3.0])
    res = lx.minimize(
        lambda p, t: jnp.sum((p["a"].w - t[:, None]) ** 2, axis=-1), params, (target,),
        batched=True,
    )
    np.testing.assert_allclose(res.x["a"].w, np.outer([1.0, 2.0, 3.0], [1.0, 1.0]), atol=1e-4)


def test_bounds_and_labels_in_the_same_structure():
    params = TREES["a registered node"]
    for lower in ({"a": Node(2.0, "linear"), "b": None}, {"a": Node(2.0, "linear")}):
        res = lx.minimize(squares, params, bounds=(lower, None))
        np.testing.assert_allclose(res.x["a"].w, [2.0, 2.0])
        np.testing.assert_allclose(res.x["b"], [1.0], atol=1e-4)
    labels = {"a": Node("still", "linear"), "b": "moves"}
    optimizer = lx.SGD(0.25, labels=labels, groups={"still": {"learning_rate": 0.0}})
    new, _ = optimizer.update(params, jax.grad(squares)(params), optimizer.init(params))
    assert not new["a"].w.any() and new["b"].all()


def test_another_structure_is_refused():
    params = TREES["a registered node"]
    with pytest.raises(ValueError, match="the gradient has the structure"):
        lx.minimize(squares, params, jac=lambda p: {"a": Node(p["a"].w, "other"), "b": p["b"]})
    optimizer = lx.Adam()
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="grads has the structure"):
        optimizer.update(params, {"a": params["a"]}, state)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": zeros(2), "rng": {"key": jax.random.key(0)}}, r"{}\.rng\.key is a PRNG key"),
        ([zeros(2), jax.random.key(0)], r"{}\.1 is a PRNG key"),
        ({"a": zeros(2), "f": jnp.tanh}, r"{} holds a .* at {}\.f; wanted arrays"),
        (Layer(zeros(2), jnp.tanh), r"{} holds a .* at {}\.bias; wanted arrays"),
        ({"a": Node(jnp.tanh, "linear"), "b": zeros(1)}, r"{} holds a .* at {}\.a\.0; wanted"),
        ({"a": zeros(2), "n": jnp.arange(3)}, r"{}\.n has dtype int.*; wanted a real or co"),
    ],
)
def test_what_is_no_parameter_is_named(tree, message):
    with pytest.raises(TypeError, match=message.replace("{}", "x0")):
        lx.minimize(squares, tree)
    for call in (lx.Adam().init, lambda params: lx.train(squares, params, jnp.zeros(4))):
        with pytest.raises(TypeError, match=message.replace("{}", "params")):
            call(tree)


def test_the_parameters_of_a_model():
    x = jnp.linspace(-1.0, 1.0, 20)
    fit = lx.curve_fit(
        lambda x, line: line.w[0] + line.w[1] * x, x, 1.0 + 2.0 * x, {"line": Node(zeros(2), "l")}
    )
    np.testing.assert_allclose(fit.x["line"].w, [1.0, 2.0], atol=1e-6)
    assert fit.stderr["line"].w.shape == (2,) and fit.x["line"].name == "l"
    for bad, message in (
        (jax.random.key(0), r"p0\.b is a PRNG key"), (jnp.tanh, r"p0\.b is .*; wanted real numb"),
    ):
        with pytest.raises(TypeError, match=message):
            lx.curve_fit(lambda x, a, b: a * x, x, x, {"a": 1.0, "b": bad})


def test_functions_among_the_parameters_have_a_way_out():
    with pytest.raises(TypeError, match="pass only the arrays, as from equinox.partition"):
        lx.minimize(squares, {"a": zeros(2), "f": jnp.tanh})
