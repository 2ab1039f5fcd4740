"""One update of all leaves, the only place where a rule is run.

NumPy and torch on the CPU run the recorded formula in blocks; JAX compiles the formula for all
leaves at once; CuPy, and torch on a GPU, fuse it into one kernel per leaf; any other library runs
it directly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from lbfgs_xp.arrays import scalars, tree
from lbfgs_xp.arrays.backend import Array, Backend, KernelError, is_array
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.elementary import following
from lbfgs_xp.first_order import blocks
from lbfgs_xp.first_order.clipping import clip_factor
from lbfgs_xp.first_order.leaves import for_leaf
from lbfgs_xp.first_order.state import OptimizerState, ParameterSpec

# For how many steps the numbers are constants of a compiled function, by whether it computes later
# ones itself; otherwise they come from the host.
_TABULATED = {True: 2**12, False: 2**16}


def init(optimizer: Any, params: Any) -> OptimizerState:
    """`FirstOrder.init`."""
    leaves, structure = tree.without_frozen(*tree.flatten_parameters(params))
    if isinstance(structure, tree.Partial):
        structure = structure.frozen_in(None)    # the frozen tensors are those passed to `update`
    backends = tree.backends_of(leaves, structure, "params", traced=True)
    # Traced arrays have no device yet.
    devices = sorted({str(each.device) for each in backends if each.device is not None})
    if len(devices) > 1 and (backends[0].compiles or optimizer.clip_norm is not None):
        raise ValueError(
            f"params is on devices {', '.join(devices)}; wanted a single device, as clip_norm and "
            "compiled updates require"
        )
    chosen = _variants(optimizer, tree.paths(structure), structure)
    rules = [optimizer.variants[i] for i in chosen]
    # An update that leaves its arguments as they are takes the memory that the last one has freed.
    backends[0].keep_freed_memory()
    if not optimizer.elementwise:
        _refuse_complex(optimizer, [backend.complex for backend in backends])
    fills = [rule.slots() for rule in rules]
    spec = ParameterSpec.of(
        type(optimizer).__name__, leaves, structure, backends, tuple(chosen),
        tuple(tuple(fill) for fill in fills),
    )
    slots = []
    for backend, shape, rule in zip(backends, spec.shapes, rules, strict=True):
        with backend.current():
            slots.append(empty_slots(backend, rule, backend.real_shape(shape)))
    return OptimizerState(
        0,
        tuple(slots),
        tuple(rule.carried() for rule in optimizer.variants),
        tuple(rule.learning_rate.init() for rule in optimizer.variants),
        spec,
    )


def empty_slots(
    backend: Backend, rule: Any, shape: tuple[int, ...], batch: tuple[int, ...] = ()
) -> tuple[Array, ...]:
    """The slots of a leaf of this shape before the first update."""
    shapes = rule.slot_shapes(shape)
    return tuple(
        backend.full((*batch, *shapes[name]), fill) for name, fill in rule.slots().items()
    )


def _refuse_complex(optimizer: Any, kinds: Sequence[bool]) -> None:
    if any(kinds):
        raise TypeError(
            f"params holds complex arrays; wanted real ones with {type(optimizer).__name__}"
        )


def update(
    optimizer: Any, params: Any, grads: Any, state: OptimizerState, value: Any, in_place: bool,
    reproducible: bool,
) -> tuple[Any, OptimizerState]:
    """`FirstOrder.update`."""
    spec = checked_spec(optimizer, state)
    xs = checked_leaves(params, spec, "params")
    gs = checked_gradients(grads, spec)
    new, after = update_leaves(optimizer, xs, gs, state, value, in_place, reproducible)
    if after is state:
        return params, after
    return tree.unflatten(structure_in(spec, params), new), after


def structure_in(spec: ParameterSpec, params: Any) -> Any:
    """The structure of the parameters, with the frozen tensors of `params`."""
    structure = spec.structure
    if isinstance(structure, tree.Partial):
        structure = structure.frozen_in(tree.flatten(params)[0])
    return structure


def update_leaves(
    optimizer: Any, xs: list[Array], gs: list[Array], state: OptimizerState, value: Any,
    in_place: bool, reproducible: bool,
) -> tuple[list[Array], OptimizerState]:
    """`update` for leaves known to match the state; returns them unchanged if it is skipped."""
    spec = state.spec
    backend = spec.spaces[0].backend
    if not usable(optimizer, spec, gs):
        return xs, state
    if in_place:
        gs = _apart(spec, xs, gs)
    numbers, carried, plateaus = numbers_here(
        backend, optimizer.variants, state.step, state.carried, state.plateaus, value
    )
    spaces = spec.spaces
    if reproducible:
        spaces = tuple(FixedOrderSpace(space.backend) for space in spaces)
    new, slots = apply(
        tuple(optimizer.variants[i].rule for i in spec.variants),
        spaces,
        optimizer.clip_norm,
        xs,
        gs,
        state.slots,
        [numbers[i] for i in spec.variants],
        (in_place, in_place),
    )
    new = [
        space.backend.requires_grad_like(leaf, x)
        for space, leaf, x in zip(spaces, new, xs, strict=True)
    ]
    return new, OptimizerState(following(state.step), slots, carried, plateaus, spec)


def usable(optimizer: Any, spec: ParameterSpec, gs: list[Array]) -> bool:
    """Whether to update with these gradients, by `on_nonfinite`."""
    policy = optimizer.on_nonfinite
    if policy != "ignore" and any(map(spec.spaces[0].backend.is_traced, gs)):
        raise TypeError(
            f'on_nonfinite is {policy!r}; wanted "ignore" in a compiled function, which cannot '
            "branch on numbers"
        )
    if policy == "ignore" or _all_finite(spec, gs):
        return True
    if policy == "skip":
        return False
    raise FloatingPointError(
        "grads holds NaN or infinite components; parameters and state are unchanged "
        '(on_nonfinite="raise")'
    )


def numbers_here(
    backend: Backend, variants: tuple, step: Any, old_carried: tuple, old_plateaus: tuple,
    value: Any,
) -> tuple[list[tuple], tuple[tuple, ...], tuple]:
    """`numbers_of`, also within a compiled function of the user.

    There those of the first steps are constants, unless they depend on earlier ones or on values,
    or the rate is computed by JAX. The program computes all others, or the host if a function of
    the user computes with Python's numbers.
    """
    given = step, old_carried, old_plateaus, value
    if not (backend.is_traced(step) or backend.is_traced(value)):
        if not isinstance(step, int):    # an array, from a compiled function
            step, old_carried = int(step), tuple(tuple(map(float, own)) for own in old_carried)
        return numbers_of(variants, step, old_carried, old_plateaus, value)[:3]
    carried = tuple(rule.carried() for rule in variants)
    plateaus = tuple(rule.learning_rate.init() for rule in variants)

    def function(*given: Any) -> Any:
        return numbers_of(variants, *given)[:3]

    with backend.at_once():
        like = function(0, carried, plateaus, None)
    # A rule of a user computes with Python's numbers.
    traceable = all(
        type(rule).numbers.__module__.startswith("lbfgs_xp.") and rule.learning_rate.traceable
        for rule in variants
    )
    if any(carried) or any(plateau is not None for plateau in plateaus):
        return backend.in_program(function, traceable, like, *given)

    def at(step: Any) -> Any:
        return function(step, carried, plateaus, None)

    return backend.from_table(at, traceable, _TABULATED[traceable], like, step)


def rate_here(backend: Backend, optimizer: Any, plateau: Any, step: Any) -> Any:
    """The learning rate of a step, for the record; also within a compiled function."""
    if not backend.is_traced(step):
        return optimizer.learning_rate.follow(plateau, step, None)[0]

    def at(step: Any) -> float:
        return optimizer.learning_rate.follow(plateau, step, None)[0]

    traceable = optimizer.learning_rate.traceable
    return backend.from_table(at, traceable, _TABULATED[traceable], 0.0, step)


def _apart(spec: ParameterSpec, xs: list[Array], gs: list[Array]) -> list[Array]:
    """The gradients, copied if they share memory with a parameter that will be overwritten."""
    taken: dict[Any, list[Array]] = {}
    for space, x in zip(spec.spaces, xs, strict=True):
        backend = space.backend
        if not backend.is_writable(x):
            raise ValueError(
                "params holds an array that cannot be overwritten (it is read-only, broadcast or a "
                "NumPy scalar); wanted a writable one, or in_place=False"
            )
        others = taken.setdefault(backend.memory_key(x), [])
        if any(backend.overlap(x, other) for other in others):
            raise ValueError(
                "params holds the same memory twice; wanted arrays that do not overlap, or "
                "in_place=False"
            )
        others.append(x)
    return [
        space.backend.copy(g) if space.backend.memory_key(g) in taken else g
        for space, g in zip(spec.spaces, gs, strict=True)
    ]


# --- the ways to run a rule --------------------------------------------------------------------


def apply(
    rules: tuple, spaces: tuple[Space, ...], clip: float | None, xs: list[Array], gs: list[Array],
    slots: tuple, numbers: list[tuple], in_place: tuple[bool, bool],
) -> tuple[list[Array], tuple]:
    """The new xs and slots of several leaves (or of vectors (B, n) for a batch), a rule for each.

    in_place : whether xs and whether slots may be overwritten.
    """
    if spaces[0].backend.compiles and not spaces[0].reproducible:
        donate = tuple(i for i, may in zip((3, 5), in_place, strict=True) if may)
        run = spaces[0].backend.jit(apply_at_once, rules, spaces, clip, donate=donate)
        return run(xs, gs, slots, numbers)
    with spaces[0].backend.current():    # clipping needs a single device
        factor = clip_factor(clip, spaces, gs)
        if factor is not None and spaces[0].batched:
            # Each problem has its own factor, so it cannot be one of the numbers.
            gs = [for_leaf(space, factor, g) * g for space, g in zip(spaces, gs, strict=True)]
            factor = 1.0
    numbers = _inserted(numbers, factor)
    elementwise = all(rule.elementwise for rule in rules)
    if elementwise and all(space.backend.reads_are_free for space in spaces):
        return _in_blocks(rules, spaces, xs, gs, slots, numbers, in_place)
    new, kept = [], []
    for rule, space, x, g, own, n in zip(rules, spaces, xs, gs, slots, numbers, strict=True):
        build = space.backend.kernels(x) if elementwise else None
        run = _as_it_stands if build is None else functools.partial(_fused, build)
        with space.backend.current():
            x, own = run(rule, space, x, g, own, n, in_place)
        new.append(x)
        kept.append(own)
    return new, tuple(kept)


def apply_at_once(
    rules: tuple, spaces: tuple[Space, ...], clip: float | None, xs: list[Array], gs: list[Array],
    slots: tuple, numbers: list[tuple],
) -> tuple[list[Array], tuple]:
    """The update of all leaves, to be compiled as one program."""
    numbers = _inserted(numbers, clip_factor(clip, spaces, gs))
    new, kept = [], []
    for rule, space, x, g, own, n in zip(rules, spaces, xs, gs, slots, numbers, strict=True):
        x, own = _as_it_stands(rule, space, x, g, own, n, (False, False))
        new.append(x)
        kept.append(own)
    return new, tuple(kept)


def _as_it_stands(
    rule: Any, space: Space, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple,
    in_place: tuple[bool, bool],
) -> tuple[Array, tuple[Array, ...]]:
    """Run the formula on whole arrays."""
    backend, more = space.backend, {} if rule.elementwise else {"space": space}
    real = backend.to_real(x)
    # The clip factor has the widest dtype of all leaves.
    numbers = tuple(
        backend.xp.astype(n, real.dtype, copy=False) if is_array(n) else n for n in numbers
    )
    new, slots = rule.whole_formula(
        scalars.of(real), real, backend.to_real(g), slots, numbers, **more
    )
    new = backend.from_real(new, x.dtype)
    return backend.overwrite(x, new) if in_place[0] else new, slots


def _in_blocks(
    rules: tuple, spaces: tuple[Space, ...], xs: list[Array], gs: list[Array], slots: tuple,
    numbers: list[tuple], in_place: tuple[bool, bool],
) -> tuple[list[Array], tuple]:
    """Run the recorded formulas block by block, with small leaves of the same rule joined."""
    new, kept = [], []
    work: dict[Any, list[tuple[int, blocks.Leaf]]] = {}
    for i, (rule, space, x, own) in enumerate(zip(rules, spaces, xs, slots, strict=True)):
        backend = space.backend
        there = in_place[0] and backend.has_flat_view(x)
        new.append(x if there else backend.empty(x.shape, x.dtype))
        kept.append(
            own if in_place[1] else tuple(backend.empty(s.shape, s.dtype) for s in own)
        )
        old = [backend.flat_view(array) for array in (x, *own)]
        goals = [
            view if same is array else backend.flat_view(same)
            for view, array, same in zip(old, (x, *own), (new[i], *kept[i]), strict=True)
        ]
        together = (id(rule), id(numbers[i]), old[0].dtype)
        key = together if old[0].size <= blocks.SMALL else i
        leaf = blocks.Leaf(goals, old, backend.flat_view(gs[i]))
        work.setdefault(key, []).append((i, leaf))
    for each in work.values():
        first, _ = each[0]
        blocks.run_together(rules[first].tape, [leaf for _, leaf in each], numbers[first])
    if in_place[0]:
        for space, x in zip(spaces, xs, strict=True):
            space.backend.mark_overwritten(x)
        new = [
            there if there is x else space.backend.overwrite(x, there)
            for space, x, there in zip(spaces, xs, new, strict=True)
        ]
    return new, tuple(kept)


def _fused(
    build: Callable, rule: Any, space: Space, x: Array, g: Array, slots: tuple[Array, ...],
    numbers: tuple, in_place: tuple[bool, bool],
) -> tuple[Array, tuple[Array, ...]]:
    """Run the recorded formula as one kernel."""
    run, backend = build(*rule.kernel), space.backend
    real = backend.to_real(x)
    new = backend.empty(real.shape, real.dtype)
    kept = slots if in_place[1] else tuple(backend.empty(s.shape, s.dtype) for s in slots)
    # A kernel takes numbers as float64, even if they are on the device.
    double = [backend.xp.astype(n, backend.xp.float64) if is_array(n) else n for n in numbers]
    try:
        run(real, *slots, backend.to_real(g), *double, new, *kept)
    except KernelError:
        return _as_it_stands(rule, space, x, g, slots, numbers, in_place)
    new = backend.from_real(new, x.dtype)
    return backend.overwrite(x, new) if in_place[0] else new, kept


def _inserted(numbers: list[tuple], factor: Any) -> list[tuple]:
    """The numbers of each leaf, with the clip factor inserted in second place."""
    if factor is None:
        return numbers
    # Leaves that share their numbers still share them afterwards.
    made = {id(own): (own[0], factor, *own[1:]) for own in numbers}
    return [made[id(own)] for own in numbers]


def _all_finite(spec: ParameterSpec, gs: list[Array]) -> bool:
    """Whether every gradient is finite, with one host transfer for each device."""
    sizes: dict[str, list[tuple[Backend, Array]]] = {}
    for space, g in zip(spec.spaces, gs, strict=True):
        if 0 not in g.shape:
            with space.backend.current():
                size = space.max_abs(space.backend.vector(g))
            sizes.setdefault(str(space.backend.device), []).append((space.backend, size))
    for found in sizes.values():
        # The widest dtype holds the numbers of all others.
        widest = max((backend for backend, _ in found), key=lambda backend: backend.largest)
        with widest.current():
            numbers = widest.read([size for _, size in found])
        if not all(map(math.isfinite, numbers)):
            return False
    return True


# --- numbers -----------------------------------------------------------------------------------


def numbers_of(
    variants: tuple, step: int, old_carried: tuple, old_plateaus: tuple, value: Any
) -> tuple[list[tuple], tuple[tuple, ...], tuple, float]:
    """The numbers of this step for each group of settings, what is carried over, and the learning
    rate of those that are in no group."""
    numbers, carried, plateaus, rates = [], [], [], []
    for rule, old, plateau in zip(variants, old_carried, old_plateaus, strict=True):
        rate, plateau = rule.learning_rate.follow(plateau, step, value)
        own, new = rule.all_numbers(step + 1, rate, old)
        numbers.append(own)
        carried.append(new)
        plateaus.append(plateau)
        rates.append(rate)
    return numbers, tuple(carried), tuple(plateaus), rates[0]


# --- groups, and checks ------------------------------------------------------------------------


def segments(
    optimizer: Any, layout: Any
) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, ...], ...] | None]:
    """(start, stop, group) for each segment of the layout's vector with settings of one group; and
    the shape of each, if the rule is not elementwise and each segment is a leaf, else None."""
    if not optimizer.elementwise:
        _refuse_complex(optimizer, layout.complex)
    chosen = _variants(optimizer, tree.paths(layout.structure), layout.structure)
    found: list[tuple[int, int, int]] = []
    start = 0
    for size, group in zip(layout.sizes, chosen, strict=True):
        if found and found[-1][2] == group and optimizer.elementwise:
            found[-1] = (found[-1][0], start + size, group)
        else:
            found.append((start, start + size, group))
        start += size
    if optimizer.elementwise:
        return tuple(found), None
    return tuple(found), tuple(shape[len(layout.batch):] for shape in layout.shapes)


def _variants(optimizer: Any, paths: list[str], structure: Any) -> list[int]:
    """For each leaf, the index of its settings in `optimizer.variants`."""
    labels: Any = optimizer.labels
    if labels is None:
        return [0] * len(paths)
    if callable(labels):
        found = [labels(path) for path in paths]
    else:
        found, nesting = tree.flatten_like(labels, structure)
        if nesting != structure:
            raise ValueError(
                f"labels are nested as {nesting}; wanted a string for each leaf of the "
                f"parameters, nested as {structure}"
            )
    for path, label in zip(paths, found, strict=True):
        if not isinstance(label, str):
            raise TypeError(f"the label of {path or 'the leaf'} is {label!r}; wanted a string")
    known = [label for label, _ in optimizer.groups]
    if unused := set(known) - set(found):
        raise ValueError(
            f"groups has settings for {', '.join(sorted(unused))}, but no leaf has that label; "
            f"wanted labels among {', '.join(sorted(set(found)))}"
        )
    return [known.index(label) + 1 if label in known else 0 for label in found]


def checked_spec(optimizer: Any, state: Any) -> ParameterSpec:
    if not isinstance(state, OptimizerState):
        raise TypeError(
            f"state is a {type(state).__name__}; wanted the state that {type(optimizer).__name__}"
            "(...).init(params) or the last update returned"
        )
    spec = state.spec
    names = [tuple(rule.slots()) for rule in optimizer.variants]
    if len(state.carried) != len(names):
        raise ValueError(
            f"state has {len(state.carried) - 1} groups of settings; wanted {len(names) - 1}"
        )
    told = [rule.learning_rate.init() is not None for rule in optimizer.variants]
    if told != [plateau is not None for plateau in state.plateaus]:
        raise ValueError(
            "state belongs to another kind of learning rate; wanted ReduceOnPlateau in both or in "
            "neither"
        )
    wanted = [names[i] for i in spec.variants]
    if spec.optimizer != type(optimizer).__name__ or list(spec.names) != wanted:
        raise ValueError(
            f"state belongs to {_with_slots(spec.optimizer, spec.names)}; wanted a state of "
            + _with_slots(type(optimizer).__name__, wanted)
        )
    return spec


def _with_slots(name: str, slots: Sequence[tuple[str, ...]]) -> str:
    kept = sorted({slot for own in slots for slot in own})
    return f"{name} with the slots {', '.join(kept)}" if kept else f"{name} without slots"


def checked_gradients(grads: Any, spec: ParameterSpec) -> list[Array]:
    """The leaves of gradients, each of them dense."""
    leaves = checked_leaves(grads, spec, "grads", sparse=True)
    return [space.backend.dense(g) for space, g in zip(spec.spaces, leaves, strict=True)]


def checked_leaves(
    params: Any, spec: ParameterSpec, what: str, sparse: bool = False
) -> list[Array]:
    """The leaves, each like the one that was passed to `init`.

    sparse : whether they may be sparse.
    """
    leaves, structure = tree.flatten_like(params, spec.structure)
    if structure != spec.structure:
        raise ValueError(
            f"{what} has the structure {tree.shown_structure(structure)}; wanted the structure "
            f"passed to init, {tree.shown_structure(spec.structure)}"
        )
    for i, (leaf, space, kind, shape, dtype) in enumerate(zip(
        leaves, spec.spaces, spec.types, spec.shapes, spec.dtypes, strict=True
    )):
        backend = space.backend
        traced = backend.is_traced(leaf)
        fits = (traced or type(leaf) is kind) and leaf.dtype == dtype and leaf.shape == shape
        if fits and traced:
            continue
        if fits and backend.holds(leaf) and (sparse or backend.is_dense(leaf)):
            continue
        name = tree.leaf_name(structure, i, what)
        if not is_array(leaf):
            raise TypeError(f"{name} is a {type(leaf).__name__}; wanted an array")
        if (library := Backend.of(leaf, name, traced).name) != backend.name:
            raise TypeError(f"{name} is an array of {library}; wanted one of {backend.name}")
        if leaf.dtype != dtype or tuple(leaf.shape) != shape:
            raise ValueError(
                f"{name} is {leaf.dtype} {tuple(leaf.shape)}; wanted {dtype} {shape}, "
                "as passed to init"
            )
        backend.check_device(leaf, name, like="the parameters passed to init")
    return leaves
