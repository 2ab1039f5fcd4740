"""L-BFGS for gradients that change from batch to batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Layout, unflatten
from lbfgs_xp.checks import count, flags, number, optional, setting
from lbfgs_xp.elementary import following, one_minus_power
from lbfgs_xp.first_order import update
from lbfgs_xp.first_order.base import FirstOrder
from lbfgs_xp.first_order.clipping import clip_factor
from lbfgs_xp.first_order.state import OptimizerState, ParameterSpec
from lbfgs_xp.saving.placing import placed
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs

# How often the Armijo test halves a step.
_HALVINGS = 10
# How many times its running mean g . H g may be, and the share of the past in that mean.
_MOST, _KEPT = 4.0, 0.9


class Curvature(NamedTuple):
    """What the optimizer keeps besides the numbers of an `OptimizerState`, for all leaves together.

    momentum, anchor : (1, n), the mean of the gradients, and where the next pair begins.
    pairs : of steps and changes of the gradient, as of a batch of one problem.
    unit : (1,), 1 / max |g| of the first gradient that is not 0; 0 until then. All gradients are
        multiplied by it, so that their squares are in the range of the dtype.
    curvature, decrement : (1,), the means C and G in `StochasticLBFGS`; 0 without pairs.
    """

    momentum: Array
    anchor: Array
    pairs: Pairs
    unit: Any
    curvature: Any
    decrement: Any


@dataclasses.dataclass(frozen=True)
class StochasticLBFGS(FirstOrder):
    """L-BFGS on changing batches, with pairs whose gradients belong to the same batch.

        b ← momentum b + (1 - momentum) g,    d = -H b / (1 - momentum^t),    x ← x + rate d

    The rate is the learning rate, but at most 1 - momentum once there is a pair: a larger one would
    bring x no faster to a minimum, because the mean lags, and only let noise move it farther. If
    g . H g exceeds 4 G, where G is its running mean, g is shortened until it is 4 G, so that no
    batch moves x much farther than the others. Decoupled weight decay takes the same rate.

    H is the inverse Hessian of L-BFGS. After the first step, and then every `pair_every` steps, the
    gradient of the current batch is also taken at the anchor, the point where the last pair was
    taken: s = x - anchor and y is the difference of these two gradients. So y is the effect of s
    alone, never of one batch replaced by another (as in Berahas, Nocedal & Takáč 2016, with the
    whole batch as overlap), and s, which spans several steps (Byrd, Hansen, Nocedal & Singer 2016),
    is longer than their noise. If s . y is less than damping σ s . s, y is replaced by
    θ y + (1 - θ) σ s for which it is equal (Powell 1978; Wang, Ma, Goldfarb & Liu 2017). Here σ is
    the larger of y . y / s . y and its geometric mean C over the last `memory_size` pairs; C alone
    if s . y <= 0; |y| / |s| if that is the first pair. The initial matrix of H is the geometric
    mean of s . s / s . y; the usual s . y / y . y is too small, because of the noise in y.

    Parameters
    ----------
    learning_rate : float or schedule
        In units of the quasi-Newton step; at most 1 - momentum counts. Until the first pair,
        because no curvature is known, a step has this Euclidean length, at most 1.
    memory_size : int
        How many pairs are kept, at least 1.
    momentum : float in [0, 1)
    pair_every : int
        Every how many steps a pair is taken, at least 1. The mean cost of a step is
        1 + 1 / pair_every gradients.
    damping : float in [0, 1)
        0: pairs without positive curvature are dropped. 0.2 as in Powell (1978). If the loss is
        convex, 0.01 lets pairs show small curvature beside large; then a momentum of 0.97 goes
        well with it.
    curvature_bounds : (float, float)
        In units of C; for the first pair, the lower one in units of max |g| of the first gradient.
        A pair is kept only if s . y >= lower s . s and y . y <= upper s . y. Hence, if C is 1, with
        m pairs and r = upper / lower, the eigenvalues of H are at least 1 / ((m + 1) upper) and at
        most r^(m + 1) / ((r - 1) lower).
    armijo : None or float in (0, 1)
        If given, a step is halved, at most ten times, until the loss of the batch has decreased by
        this fraction of what its slope predicts. Each trial is one more evaluation.
    **settings
        Weight decay, clipping and so on: see `lx.FirstOrder`. Momentum takes the clipped gradients,
        pairs the true ones. Groups are not possible, because H acts on all leaves together; these
        must have one dtype and be on one device.

    Notes
    -----
    `update` needs `fun`, a function params -> (value, gradients) on the same batch as `grads`.
    `lx.train` and `lbfgs_xp.torch.StochasticLBFGS` pass it by themselves. Memory: 2 memory_size + 2
    vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> opt = lx.StochasticLBFGS(0.5, momentum=0.0)
    >>> def fun(x):
    ...     return 0.5 * np.sum(x * x), x
    >>> x = np.ones(3)
    >>> state = opt.init(x)
    >>> for _ in range(40):
    ...     value, grads = fun(x)
    ...     x, state = opt.update(x, grads, state, value=value, fun=fun)
    >>> bool(np.max(np.abs(x)) < 1e-10)
    True
    """

    learning_rate: Any = 0.1
    memory_size: int = 20
    momentum: float = 0.9
    pair_every: int = 5
    damping: float = 0.2
    curvature_bounds: tuple[float, float] = (1e-6, 1e6)
    armijo: float | None = None

    needs_fun = True

    def _check(self) -> None:
        setting(self, "memory_size", count, least=1)
        setting(self, "pair_every", count, least=1)
        self._number("momentum", below=1.0)
        self._number("damping", below=1.0)
        setting(self, "armijo", optional(number), above=0.0, below=1.0)
        self._pair("curvature_bounds", below=math.inf)
        lower, upper = self.curvature_bounds
        if not 0.0 < lower < upper:
            raise ValueError(
                f"curvature_bounds is {self.curvature_bounds!r}; wanted two numbers above 0, the "
                "lower one first"
            )
        if self.labels is not None:
            raise ValueError(
                f"labels is {self.labels!r}; wanted None, because the inverse Hessian acts on all "
                "leaves together"
            )

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (rate, 1.0 / one_minus_power(self.momentum, t)), carried

    def solver(self, layout: Layout) -> Any:
        raise TypeError(
            "method is StochasticLBFGS, which is for losses that change from batch to batch; "
            "wanted lx.LBFGS() for lx.minimize, or lx.train"
        )

    def init(self, params: Any) -> OptimizerState:
        state = super().init(params)
        return state._replace(memory=self._empty(state.spec))

    def _empty(self, spec: ParameterSpec) -> Curvature:
        """The memory before the first update."""
        backends = [space.backend for space in spec.spaces]
        for what in ("dtype", "device"):
            found = sorted({str(getattr(backend, what)) for backend in backends} - {"None"})
            if len(found) > 1:
                raise ValueError(
                    f"params has the {what}s {', '.join(found)}; wanted one, because the inverse "
                    "Hessian acts on all leaves together"
                )
        space, size = Space(backends[0], batched=True), sum(_sizes(spec))
        with backends[0].current():
            zeros = backends[0].zeros((1, size))
            return Curvature(
                zeros, zeros, curvature.empty(space, size, self.memory_size, (1,), 1.0),
                *(space.small_zeros((1,)) for _ in range(3)),
            )

    def update(
        self, params: Any, grads: Any, state: OptimizerState, *, value: Any = None,
        in_place: bool = False, reproducible: bool = False,
        fun: Callable[[Any], tuple[Any, Any]] | None = None,
    ) -> tuple[Any, OptimizerState]:
        """One step: the new parameters and the new state. See `FirstOrder.update`; in addition:

        Parameters
        ----------
        value : float
            The loss of the batch; with `armijo`, it saves one evaluation.
        fun : function
            fun(params) -> (value, gradients) on the batch that grads belongs to. In a function
            that JAX compiles it is traced.
        """
        in_place, reproducible = flags(in_place=in_place, reproducible=reproducible)
        spec = update.checked_spec(self, state)
        structure = update.structure_in(spec, params)

        def on_leaves(leaves: list[Array]) -> tuple[Any, list[Array]]:
            given: Any = fun
            found, gradients = returned.pair(
                "fun", given(unflatten(structure, leaves)), "StochasticLBFGS",
                "(value, gradients) of the batch",
            )
            return found, update.checked_gradients(gradients, spec)

        xs = update.checked_leaves(params, spec, "params")
        gs = update.checked_gradients(grads, spec)
        new, after = self.update_leaves(
            xs, gs, state, value=value, in_place=in_place, reproducible=reproducible,
            fun=on_leaves if callable(fun) else fun, batch_value=value,
        )
        return (params if after is state else unflatten(structure, new)), after

    def update_leaves(
        self, xs: list[Array], gs: list[Array], state: OptimizerState, *, value: Any = None,
        in_place: bool = False, reproducible: bool = False,
        fun: Callable[[list[Array]], tuple[Any, list[Array]]] | None = None,
        batch_value: Any = None,
    ) -> tuple[list[Array], OptimizerState]:
        """`update` for leaves and gradients that are known to match the state.

        fun : of leaves. value : for the learning rate. batch_value : the loss of the batch.
        """
        if not callable(fun):
            raise TypeError(
                f"fun is {fun!r}; wanted a function params -> (value, gradients) on the batch that "
                "grads belongs to"
            )
        if not update.usable(self, state.spec, gs):
            return xs, state
        with np.errstate(all="ignore"):
            return self._updated(xs, gs, state, value, in_place, reproducible, fun, batch_value)

    def _updated(
        self, xs: list[Array], gs: list[Array], state: OptimizerState, value: Any, in_place: bool,
        reproducible: bool, fun: Callable, batch_value: Any,
    ) -> tuple[list[Array], OptimizerState]:
        spec, step = state.spec, state.step
        backend = spec.spaces[0].backend
        space = (FixedOrderSpace if reproducible else Space)(backend, batched=True)

        def value_at(vector: Array) -> Array:
            return self._value(space, vector, fun(_split(spec, vector, xs))[0])

        def gradient_at(vector: Array) -> Array:
            return self._gradient(vector, _joined(spec, fun(_split(spec, vector, xs))[1]))

        (numbers,), carried, plateaus = update.numbers_here(
            backend, self.variants, step, state.carried, state.plateaus, value
        )
        numbers = tuple(
            backend.xp.astype(n, backend.dtype, copy=False) if is_array(n) else n for n in numbers
        )
        with backend.current():
            x = _joined(spec, xs)
            g = self._gradient(x, _joined(spec, gs))
            memory = self._learned(space, state, x, g, gradient_at, in_place)
            run = backend.jit if not reproducible else functools.partial
            # In fixed order, sums must be taken operation by operation.
            memory, direction, slope, rate = run(_aimed, self.rule, space)(memory, g, numbers)
            rate = space.spread(rate)
            shrinks = self.weight_decay and self.decoupled_weight_decay
            base = x - (self.weight_decay * rate) * x if shrinks else x
            moved = rate * direction
            if self.armijo is not None:
                known = batch_value is not None
                before = self._value(space, x, batch_value) if known else value_at(x)
                moved = self._shortened(
                    space, base, moved, before, rate[..., 0] * slope, value_at, memory.unit
                )
            new = _split(spec, base + moved, xs)
        return new, OptimizerState(
            following(step), state.slots, carried, plateaus, spec, memory
        )

    def _value(self, space: Space, x: Array, value: Any) -> Array:
        """The loss that is minimised, with its penalty, (1,)."""
        xp, backend = space.xp, space.backend
        if not is_array(value):
            value = backend.from_host(np.asarray([float(value)]), backend.dtype)
        value = xp.reshape(xp.astype(backend.detach(value), backend.dtype), (1,))
        value = -value if self.maximize else value
        if self.weight_decay and not self.decoupled_weight_decay:
            value = value + (0.5 * self.weight_decay) * space.dot(x, x)
        return value

    def _gradient(self, x: Array, g: Array) -> Array:
        """The gradient of that loss, (1, n)."""
        g = -g if self.maximize else g
        if self.weight_decay and not self.decoupled_weight_decay:
            g = g + self.weight_decay * x
        return g

    def _learned(
        self, space: Space, state: OptimizerState, x: Array, g: Array, gradient_at: Callable,
        in_place: bool,
    ) -> Curvature:
        """The memory with the pair of this step, if one is due."""
        backend, step = space.backend, state.step
        memory: Curvature = state.memory
        if isinstance(memory.pairs.gamma, np.ndarray) != space.small_on_host:
            # The last update was one with `reproducible`, or this one is.
            memory = placed(memory, space, x.shape[-1])
        traced = backend.is_traced(step)
        if not traced and int(step) == 0:
            # The parameters may be overwritten by their owner before the next step.
            return memory._replace(anchor=backend.copy(x))
        due = (step == 1) | (step % self.pair_every == 0)
        if traced:
            due = due & (step > 0)
            memory = memory._replace(anchor=space.xp.where(step == 0, x, memory.anchor))
        elif not due:
            return memory
        elif not in_place and backend.mutable:
            rows = backend.copy(memory.pairs.rows)
            memory = memory._replace(pairs=memory.pairs._replace(rows=rows))

        def learn(mask: Any) -> Curvature:
            there = gradient_at(memory.anchor)
            run = functools.partial if space.reproducible else backend.jit
            s, y = x - memory.anchor, space.spread(memory.unit) * (g - there)
            told = run(_with_pair, self.rule, space)(memory, s, y, mask)
            return told._replace(anchor=space.pick(mask, x, memory.anchor))

        if not traced:
            return learn(space.scalars.full(True, memory.pairs.gamma))
        return backend.branch(space.xp.reshape(due, (1,)), learn, memory)

    def _shortened(
        self, space: Space, x: Array, moved: Array, before: Any, slope: Any, value_at: Callable,
        unit: Any,
    ) -> Array:
        """The step after the Armijo test on the batch.

        before, slope : the loss of the batch, and its slope along `moved` in units of 1 / unit.
        """
        xp, (before, slope) = space.xp, space.read(before, slope)
        fn = space.scalars
        # Momentum may point uphill on this batch; the loss must not increase then.
        wanted = self.armijo * fn.minimum(slope, 0.0)

        def trial(length: Any) -> Any:
            (value,) = space.read(value_at(x + space.spread(length) * moved))
            return value

        def too_long(carry: tuple) -> Any:
            length, value, tries = carry
            good = unit * (value - before) <= length * wanted
            return fn.logical_not(good) & (tries < _HALVINGS)

        def halved(carry: tuple) -> tuple:
            length, _, tries = carry
            return 0.5 * length, trial(0.5 * length), tries + 1.0

        carry = fn.full(1.0, before), trial(fn.full(1.0, before)), fn.full(0.0, before)
        if space.backend.is_traced(carry[1]):
            carry = space.backend.while_loop(
                lambda carry: xp.any(too_long(carry)), halved, carry
            )
        else:
            while space.any(too_long(carry)):
                carry = halved(carry)
        return space.spread(carry[0]) * moved


# --- the arithmetic of a step, which JAX compiles ------------------------------------------------


def _aimed(
    rule: Any, space: Space, memory: Curvature, g: Array, numbers: Sequence[Any]
) -> tuple[Curvature, Array, Array, Any]:
    """The memory with the new momentum, the direction, the slope along it, and the rate."""
    _, rate, correction = numbers
    xp, fn, (old, _, pairs, unit, _, before) = space.xp, space.scalars, memory
    first = fn.divide(1.0, space.fetch(space.max_abs(g)))
    unit = fn.where((unit == 0.0) & (first < math.inf), first, unit)
    g = space.spread(unit) * g
    clipped = g
    if rule.clip_norm is not None:
        clipped = clip_factor(rule.clip_norm * unit, (space,), [g]) * g
    if rule.clip_value is not None:
        largest = space.spread(rule.clip_value * unit)
        clipped = xp.minimum(xp.maximum(clipped, -largest), largest)
    known = pairs.count > 0
    now = _squared(space, pairs, clipped)
    usual = fn.where(before > 0.0, before, now)
    allowed = fn.minimum(now, _MOST * usual)
    share = fn.where(known & (now > allowed), fn.sqrt(fn.divide(allowed, now)), 1.0)
    decrement = fn.where(known, _KEPT * usual + (1.0 - _KEPT) * allowed, 0.0)
    momentum = rule.momentum * old + (1.0 - rule.momentum) * (space.spread(share) * clipped)
    mean = correction * momentum
    # Without pairs, the step has the length of the learning rate.
    norm = space.fetch(space.sqrt(space.dot(mean, mean)))
    alone = fn.where(norm > 0.0, fn.divide(1.0, norm), 1.0)
    pairs = pairs._replace(gamma=fn.where(known, pairs.gamma, alone))
    c = curvature.coefficients(space, pairs, space.fetch(space.products(pairs.rows, mean)))
    direction = space.descend(c, pairs.rows, pairs.gamma, mean)
    one = fn.full(1.0, norm)
    rate = fn.minimum(one * rate, fn.where(known, one - rule.momentum, one))
    memory = memory._replace(momentum=momentum, unit=unit, decrement=decrement)
    return memory, direction, space.dot(g, direction), rate


def _squared(space: Space, pairs: Pairs, vector: Array) -> Any:
    """v . H v."""
    products, square = space.fetch_each(
        space.products(pairs.rows, vector), space.dot(vector, vector)
    )
    c = curvature.coefficients(space, pairs, products)
    return pairs.gamma * square - space.small.sum(c * products, axis=-1)


def _with_pair(
    rule: Any, space: Space, memory: Curvature, s: Array, y: Array, mask: Any
) -> Curvature:
    """The memory with a new pair in the problems of the mask, if it has enough curvature."""
    fn, pairs, mean = space.scalars, memory.pairs, memory.curvature
    lower, upper = rule.curvature_bounds
    ss, sy, yy = space.read(space.dot(s, s), space.dot(s, y), space.dot(y, y))
    if rule.damping:
        share, added = fn.fused(_damped, rule.damping, upper, ss, sy, yy, mean)
        y = space.scale(share, y) + space.scale(added, s)
        sy, yy = space.read(space.dot(s, y), space.dot(y, y))
    known = mean > 0.0
    least, most = fn.where(known, lower * mean, lower), fn.where(known, upper * mean, math.inf)
    mask = mask & (sy > 0.0) & (sy >= least * ss) & (yy <= most * sy) & (yy < math.inf)
    pairs = curvature.write_many(space, pairs, s, y, mask)
    change = space.fetch(space.products(pairs.rows, y))
    after = curvature.accept_many(space, pairs, change, 0.0 * sy, mask, False)
    # Geometric means, so that neither large nor small curvature of one batch decides.
    share = fn.divide(1.0, fn.maximum(fn.full(after.count, mean), 1.0))
    exp, log = space.small.exp, space.small.log

    def averaged(old: Any, new: Any) -> Any:
        mixed = exp((1.0 - share) * log(old) + share * log(new))
        return fn.where(mask, fn.where(known, mixed, new), old)

    gamma = averaged(pairs.gamma, fn.divide(ss, sy))
    return memory._replace(
        pairs=after._replace(gamma=gamma), curvature=averaged(mean, fn.divide(yy, sy))
    )


def _damped(
    fn: Scalars, damping: float, upper: float, ss: Any, sy: Any, yy: Any, mean: Any
) -> tuple[Any, Any]:
    """θ and (1 - θ) σ for the damped y."""
    alone = fn.where(mean > 0.0, mean, fn.sqrt(fn.divide(yy, ss)))
    size = fn.where(sy > 0.0, fn.maximum(fn.divide(yy, sy), mean), alone)
    size = fn.where(mean > 0.0, fn.minimum(size, upper * mean), size)
    least = damping * size * ss
    share = fn.where(sy < least, fn.divide((1.0 - damping) * size * ss, size * ss - sy), 1.0)
    return share, (1.0 - share) * size


# --- leaves as one vector ----------------------------------------------------------------------


def _sizes(spec: ParameterSpec) -> list[int]:
    shapes = zip(spec.spaces, spec.shapes, strict=True)
    return [math.prod(space.backend.real_shape(shape)) for space, shape in shapes]


def _joined(spec: ParameterSpec, leaves: list[Array]) -> Array:
    """The leaves as a vector (1, n)."""
    backend: Backend = spec.spaces[0].backend
    parts = [s.backend.vector(leaf) for s, leaf in zip(spec.spaces, leaves, strict=True)]
    joined = parts[0] if len(parts) == 1 else backend.xp.concat(parts)
    return backend.xp.reshape(joined, (1, -1))


def _split(spec: ParameterSpec, vector: Array, like: list[Array]) -> list[Array]:
    """The leaves of a vector (1, n)."""
    leaves, start = [], 0
    for space, shape, dtype, size, leaf in zip(
        spec.spaces, spec.shapes, spec.dtypes, _sizes(spec), like, strict=True
    ):
        backend = space.backend
        piece = backend.xp.reshape(vector[0, start : start + size], backend.real_shape(shape))
        # Copied, because an array that shares memory with another one cannot be overwritten.
        own = backend.copy(backend.from_real(piece, dtype))
        leaves.append(backend.requires_grad_like(own, leaf))
        start += size
    return leaves
