"""One update of all leaves: the one place that runs a rule.

NumPy and torch on the CPU run the recorded formula in blocks; JAX compiles it for all leaves at
once; CuPy fuses it into one kernel; every other library runs the formula as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lbfgs_xp import scalars, tree
from lbfgs_xp.backend import Array, Backend, is_array
from lbfgs_xp.first_order import blocks
from lbfgs_xp.first_order.state import OptimizerState, Plan
from lbfgs_xp.space import FixedOrderSpace, Space, norm


def init(optimizer: Any, params: Any) -> OptimizerState:
    """`FirstOrder.init`."""
    leaves, structure = tree.flatten(params)
    backends = tree.backends_of(leaves, "params")
    chosen = _variants(optimizer, tree.paths(structure), structure)
    rules = [optimizer.variants[i] for i in chosen]
    fills = [rule.slots() for rule in rules]
    plan = Plan(
        type(optimizer).__name__,
        structure,
        tuple(backends),
        tuple(tuple(leaf.shape) for leaf in leaves),
        tuple(leaf.dtype for leaf in leaves),
        tuple(chosen),
        tuple(tuple(fill) for fill in fills),
    )
    slots = tuple(
        tuple(backend.full(backend.real_shape(shape), value) for value in fill.values())
        for backend, shape, fill in zip(backends, plan.shapes, fills, strict=True)
    )
    return OptimizerState(
        0,
        slots,
        tuple(rule.carried() for rule in optimizer.variants),
        tuple(_plateau(rule.learning_rate) for rule in optimizer.variants),
        plan,
    )


def update(
    optimizer: Any, params: Any, grads: Any, state: OptimizerState, value: Any, in_place: bool,
    reproducible: bool,
) -> tuple[Any, OptimizerState]:
    """`FirstOrder.update`."""
    plan = _checked_plan(optimizer, state)
    xs = _checked_leaves(params, plan, "params")
    gs = _checked_leaves(grads, plan, "grads")
    policy = optimizer.on_nonfinite
    if policy != "ignore" and not _all_finite(plan, gs):
        if policy == "skip":
            return params, state
        raise FloatingPointError(
            "grads holds NaN or infinite components; parameters and state are as they were "
            '(on_nonfinite="raise")'
        )
    numbers, carried, plateaus = _numbers(optimizer, state, value)
    rules = tuple(optimizer.variants[i].rule for i in plan.variants)
    each = [numbers[i] for i in plan.variants]
    clip = optimizer.clip_norm
    how = _compiled if plan.backends[0].compiles and not reproducible else _one_by_one
    new_xs, slots = how(rules, plan.backends, clip, xs, gs, state.slots, each, in_place, reproducible)
    new = OptimizerState(state.step + 1, slots, carried, plateaus, plan)
    if in_place and new_xs is xs:
        return params, new
    return tree.unflatten(plan.structure, new_xs), new


# --- the ways to run a rule --------------------------------------------------------------------


def _compiled(
    rules: tuple, backends: tuple[Backend, ...], clip: float | None, xs: list[Array],
    gs: list[Array], slots: Any, numbers: list, in_place: bool, reproducible: bool,
) -> tuple[list[Array], Any]:
    """All leaves in one program."""
    donate = (3, 5) if in_place else ()
    run = backends[0].jit(_plainly, rules, backends, clip, donate=donate)
    return run(xs, gs, slots, numbers)


def _plainly(
    rules: tuple, backends: tuple[Backend, ...], clip: float | None, xs: list[Array],
    gs: list[Array], slots: Any, numbers: list,
) -> tuple[list[Array], Any]:
    factor = _factor(clip, backends, gs, False)
    done = [
        _formula(rule, backend, x, g, s, _inserted(n, factor))
        for rule, backend, x, g, s, n in zip(rules, backends, xs, gs, slots, numbers, strict=True)
    ]
    return [x for x, _ in done], tuple(s for _, s in done)


def _one_by_one(
    rules: tuple, backends: tuple[Backend, ...], clip: float | None, xs: list[Array],
    gs: list[Array], slots: Any, numbers: list, in_place: bool, reproducible: bool,
) -> tuple[list[Array], Any]:
    factor = _factor(clip, backends, gs, reproducible)
    done = []
    for rule, backend, x, g, s, n in zip(rules, backends, xs, gs, slots, numbers, strict=True):
        n = _inserted(n, factor)
        if backend.shares_memory:
            done.append(_blocked(rule, backend, x, g, s, n, in_place))
            continue
        new, s = _formula(rule, backend, x, g, s, n)
        done.append((backend.overwrite(x, new) if in_place else new, s))
    return [x for x, _ in done], tuple(s for _, s in done)


def _formula(
    rule: Any, backend: Backend, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple
) -> tuple[Array, tuple[Array, ...]]:
    """The formula as it stands, on whole arrays."""
    real = backend.to_real(x)
    new, slots = rule.whole_formula(scalars.of(real), real, backend.to_real(g), slots, numbers)
    return backend.tracked(backend.from_real(new, x.dtype), x), slots


def _blocked(
    rule: Any, backend: Backend, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple,
    in_place: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """The recorded formula, block by block."""
    there = in_place and backend.overwritable(x)
    new_x = x if there else backend.empty(x.shape, x.dtype)
    new_slots = slots if in_place else tuple(backend.empty(s.shape, s.dtype) for s in slots)
    blocks.run(
        rule.tape,
        [backend.flat_view(array) for array in (new_x, *new_slots)],
        [backend.flat_view(array) for array in (x, *slots)],
        backend.flat_view(g),
        numbers,
        (there, *(in_place for _ in slots)),
    )
    if in_place and not there:
        return backend.overwrite(x, new_x), slots
    return backend.tracked(new_x, x), new_slots


def _inserted(numbers: tuple, factor: Any) -> tuple:
    """The numbers with the clip factor in its place, second."""
    return numbers if factor is None else (numbers[0], factor, *numbers[1:])


def _factor(
    clip: float | None, backends: Sequence[Backend], gs: list[Array], reproducible: bool
) -> Any:
    """min(1, clip / norm) over all leaves together, or None."""
    if clip is None:
        return None
    space = FixedOrderSpace if reproducible else Space
    total = norm([(space(b), b.vector(g)) for b, g in zip(backends, gs, strict=True)])
    if not is_array(total):
        return min(1.0, clip / total) if total > 0.0 else 1.0
    return scalars.of(total).minimum(clip / total, 1.0)


def _all_finite(plan: Plan, gs: list[Array]) -> bool:
    """Whether every gradient is finite: one read."""
    sizes = [
        Space(b).max_abs(b.vector(g)) for b, g in zip(plan.backends, gs, strict=True) if g.size
    ]
    return all(map(math.isfinite, plan.backends[0].read(sizes)))


# --- numbers -----------------------------------------------------------------------------------


def _numbers(
    optimizer: Any, state: OptimizerState, value: Any
) -> tuple[list[tuple], tuple[tuple, ...], tuple]:
    """The numbers of this step for each group of settings, and what is carried on."""
    numbers, carried, plateaus = [], [], []
    for rule, old, plateau in zip(
        optimizer.variants, state.carried, state.plateaus, strict=True
    ):
        rate, plateau = rate_of(rule.learning_rate, state.step, plateau, value)
        own, new = rule.all_numbers(state.step + 1, rate, old)
        numbers.append(own)
        carried.append(new)
        plateaus.append(plateau)
    return numbers, tuple(carried), tuple(plateaus)


def rate_of(schedule: Any, step: int, plateau: Any, value: Any) -> tuple[float, Any]:
    """The learning rate of a step that begins at `value`, and the new state of a plateau."""
    if plateau is None:
        return schedule(step), None
    if value is not None:
        plateau = schedule.update(plateau, float(value))
    return plateau.learning_rate, plateau


def _plateau(schedule: Any) -> Any:
    return schedule.init() if hasattr(schedule, "init") else None


# --- what belongs together ---------------------------------------------------------------------


def segments(optimizer: Any, layout: Any) -> tuple[tuple[int, int, int], ...]:
    """(start, stop, group) of stretches of the layout's vector with settings of their own."""
    chosen = _variants(optimizer, tree.paths(layout.structure), layout.structure)
    found: list[tuple[int, int, int]] = []
    start = 0
    for size, group in zip(layout.sizes, chosen, strict=True):
        if found and found[-1][2] == group:
            found[-1] = (found[-1][0], start + size, group)
        else:
            found.append((start, start + size, group))
        start += size
    return tuple(found)


def _variants(optimizer: Any, paths: list[str], structure: Any) -> list[int]:
    """For each leaf the place of its settings in `optimizer.variants`."""
    labels: Any = optimizer.labels
    if labels is None:
        return [0] * len(paths)
    if callable(labels):
        found = [labels(path) for path in paths]
    else:
        found, nesting = tree.flatten(labels)
        if nesting != structure:
            raise ValueError(
                f"labels are nested as {nesting}; wanted a string for each leaf of the "
                f"parameters, {structure}"
            )
    for path, label in zip(paths, found, strict=True):
        if not isinstance(label, str):
            raise TypeError(f"the label of {path or 'the leaf'} is {label!r}; wanted a string")
    known = [label for label, _ in optimizer.groups]
    if unused := set(known) - set(found):
        raise ValueError(
            f"groups has settings for {', '.join(sorted(unused))}, a label that no leaf has; the "
            f"labels are {', '.join(sorted(set(found)))}"
        )
    return [known.index(label) + 1 if label in known else 0 for label in found]


def _checked_plan(optimizer: Any, state: Any) -> Plan:
    if not isinstance(state, OptimizerState):
        raise TypeError(
            f"state is a {type(state).__name__}; wanted what {type(optimizer).__name__}(...)"
            ".init(params) or the last update returned"
        )
    plan = state.plan
    names = [tuple(rule.slots()) for rule in optimizer.variants]
    if (
        plan.optimizer != type(optimizer).__name__
        or len(state.carried) != len(names)
        or any(names[i] != own for i, own in zip(plan.variants, plan.names, strict=True))
    ):
        raise ValueError(
            f"state is that of {_described(plan.optimizer, plan.names)}; wanted that of "
            f"{_described(type(optimizer).__name__, [names[i] for i in plan.variants if i < len(names)])}"
        )
    return plan


def _described(name: str, slots: Sequence[tuple[str, ...]]) -> str:
    kept = sorted({slot for own in slots for slot in own})
    return f"{name} with the slots {', '.join(kept)}" if kept else f"{name} without slots"


def _checked_leaves(params: Any, plan: Plan, what: str) -> list[Array]:
    leaves, structure = tree.flatten(params)
    if structure != plan.structure:
        raise ValueError(
            f"{what} has the structure {structure}; wanted that which init was given, "
            f"{plan.structure}"
        )
    for leaf, backend, shape, dtype in zip(
        leaves, plan.backends, plan.shapes, plan.dtypes, strict=True
    ):
        if not is_array(leaf):
            raise TypeError(f"{what} holds a {type(leaf).__name__}; wanted arrays")
        if (library := Backend.name_of(leaf)) != backend.name:
            raise TypeError(f"{what} holds an array of {library}; wanted {backend.name}")
        if leaf.dtype != dtype or tuple(leaf.shape) != shape:
            raise ValueError(
                f"{what} holds {leaf.dtype} {tuple(leaf.shape)}; wanted {dtype} {shape}, "
                "as init was given"
            )
        if not backend.holds(leaf):
            raise ValueError(
                f"{what} is on device {Backend.device_of(leaf)}; wanted {backend.device}"
            )
    return leaves
