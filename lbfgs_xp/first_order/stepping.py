"""A first-order rule as a solver for `lx.minimize`, with one step for each evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, copy_of
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.first_order import update
from lbfgs_xp.projections import Box
from lbfgs_xp.saving.encoding import Decoder
from lbfgs_xp.solvers.bounded import TakesBounds

# How often in a row a trial that is not finite is evaluated again.
_LOOKS = 10


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a state must have in common with the rule that continues it.

    name : of the rule.
    steady : for each group, whether its learning rate depends only on the step.
    places : the segments, and the slots of each.
    """

    name: str
    steady: tuple[bool, ...]
    places: tuple[tuple, ...]

    def to_saved(self) -> tuple:
        """What a file holds of it."""
        return dataclasses.astuple(self)

    @classmethod
    def from_saved(cls, saved: tuple, decoder: Decoder) -> Kind:
        return cls(*saved)


class Memory(NamedTuple):
    """What the rule keeps from step to step.

    kind : of the rule and its settings.
    updates : the number of updates so far.
    slots : for each segment of the vector, the arrays of the rule.
    carried, plateaus : for each group of settings, as in `OptimizerState`.
    """

    kind: Kind
    updates: int
    slots: tuple[tuple[Array, ...], ...]
    carried: tuple[tuple[float, ...], ...]
    plateaus: tuple[Any, ...]


class SteppingState(NamedTuple):
    """The state of a run; see `lbfgs_xp.solvers.contract` for the common fields.

    rate : the learning rate of the step to `trial`.
    refused : how often in a row the trial was not finite and had to be evaluated again.
    memory : what the rule keeps.
    """

    x: Array
    value: Any
    gradient: Array
    gradient_norm: Any
    step: Any
    trial: Array
    seen: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any
    rate: float
    refused: int
    memory: Memory


@dataclasses.dataclass(frozen=True)
class Stepping(TakesBounds):
    """Steps of a first-order optimizer; within bounds, each is projected.

    optimizer : the `FirstOrder` object.
    segments : (start, stop, group) for each segment of x with the settings of one group.
    shapes : of each segment, which is a leaf, if the rule is not elementwise; else None.
    """

    optimizer: Any
    segments: tuple[tuple[int, int, int], ...]
    shapes: tuple[tuple[int, ...], ...] | None = None
    box: Box | None = dataclasses.field(init=False, repr=False, default=None)

    # The value may rise for any number of steps.
    searches = False
    resumes = True
    patience = 2**31 - 1
    # The learning rate of each step is computed on the host.
    compiles = False

    @property
    def shards(self) -> bool:  # type: ignore[override]
        return self.shapes is None

    @property
    def in_programs(self) -> bool:
        steady = all(self._kind.steady)
        return steady and self.optimizer.on_nonfinite == "ignore"

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Memory | None = None
    ) -> SteppingState:
        """The state at x, a vector (..., n) with known value and gradient."""
        fn = space.scalars
        if space.batched:
            self._check_shared()
        value, size = space.read(value, self.optimality(space, x, gradient))
        memory = self._fresh(space, x) if learned is None else learned
        no = fn.full(False, value)
        state = SteppingState(
            x, value, gradient, size, fn.full(0.0, value), x, value, fn.full(math.inf, value),
            no, no, no, 0.0, 0, memory,
        )
        return self._advanced(space, state, fn.logical_not(no))

    def step(
        self, space: Space, state: SteppingState, value: Any, gradient: Array, active: Any = True
    ) -> SteppingState:
        """The state after value and gradient at `state.trial` have been evaluated."""
        fn = space.scalars
        value, size = space.read(value, self.optimality(space, state.trial, gradient))
        usable = fn.isfinite(value) & fn.isfinite(size)
        accepted = active & usable
        failed = active & fn.logical_not(usable)
        refused = 0
        if self.optimizer.on_nonfinite == "raise" and failed:
            raise FloatingPointError(
                "fun returned a value or gradient that is not finite (on_nonfinite=\"raise\")"
            )
        if self.optimizer.on_nonfinite == "skip" and failed:
            # If the function is noisy, evaluating the same point again may help.
            refused = state.refused + 1
            failed = refused > _LOOKS
        state = state._replace(
            x=space.pick(accepted, state.trial, state.x),
            value=fn.where(accepted, value, state.value),
            gradient=space.pick(accepted, gradient, state.gradient),
            gradient_norm=fn.where(accepted, size, state.gradient_norm),
            step=fn.where(accepted, fn.full(state.rate, value), state.step),
            seen=value,
            refused=refused,
            accepted=accepted,
            failed=failed,
        )
        return state if space.none(accepted) else self._advanced(space, state, accepted)

    def _check_shared(self) -> None:
        """Refuse settings that are impossible for a batch, whose problems step together."""
        if any(rule.learning_rate.init() is not None for rule in self.optimizer.variants):
            raise ValueError(
                "ReduceOnPlateau was passed with batched=True; wanted a schedule that depends only "
                "on the step, because the problems of a batch share one learning rate"
            )
        if (policy := self.optimizer.on_nonfinite) != "ignore":
            raise ValueError(
                f"on_nonfinite is {policy!r} with batched=True; wanted 'ignore', because the "
                "problems of a batch take their steps together"
            )

    def _fresh(self, space: Space, x: Array) -> Memory:
        variants, batch = self.optimizer.variants, x.shape[:-1]
        space.backend.keep_static(Kind)
        shapes = self.shapes or tuple((stop - start,) for start, stop, _ in self.segments)
        slots = tuple(
            update.empty_slots(space.backend, variants[group], shape, batch)
            for shape, (_, _, group) in zip(shapes, self.segments, strict=True)
        )
        return Memory(
            self._kind,
            0,
            slots,
            tuple(rule.carried() for rule in variants),
            tuple(rule.learning_rate.init() for rule in variants),
        )

    def _advanced(self, space: Space, state: SteppingState, moving: Any) -> SteppingState:
        """The state with the next trial for the problems in the mask `moving`."""
        old = state.memory
        optimizer, variants = self.optimizer, self.optimizer.variants
        numbers, carried, plateaus = update.numbers_here(
            space.backend, variants, old.updates, old.carried, old.plateaus,
            None if space.batched else state.value,
        )
        groups = [group for _, _, group in self.segments]
        new, slots = update.apply(
            tuple(variants[group].rule for group in groups),
            (space,) * len(groups),
            optimizer.clip_norm,
            self._pieces(space, state.x),
            self._pieces(space, state.gradient),
            old.slots,
            [numbers[group] for group in groups],
            (False, not space.batched),
        )
        if self.shapes is not None:
            new = [space.xp.reshape(piece, (*state.x.shape[:-1], -1)) for piece in new]
        trial = new[0] if len(new) == 1 else space.xp.concat(new, axis=-1)
        trial = self.project(space, trial)
        if space.batched:
            trial = space.pick(moving, trial, state.trial)
            slots = tuple(
                tuple(space.pick_rows(moving, a, b) for a, b in zip(own, before, strict=True))
                for own, before in zip(slots, old.slots, strict=True)
            )
        rate = update.rate_here(space.backend, optimizer, plateaus[0], old.updates)
        return state._replace(
            trial=trial,
            rate=rate,
            memory=Memory(old.kind, old.updates + 1, slots, carried, plateaus),
        )

    def _pieces(self, space: Space, vector: Array) -> list[Array]:
        if self.shapes is not None:
            return [
                space.xp.reshape(vector[..., start:stop], (*vector.shape[:-1], *shape))
                for shape, (start, stop, _) in zip(self.shapes, self.segments, strict=True)
            ]
        if len(self.segments) == 1:
            return [vector]
        return [vector[..., start:stop] for start, stop, _ in self.segments]

    # --- continuing an earlier run -------------------------------------------------------------

    def check_state(self, state: Any) -> None:
        """Refuse a state of a different kind of solver."""
        memory = getattr(state, "memory", None)
        if not isinstance(memory, Memory) or memory.kind != self._kind:
            whose = memory.kind.name if isinstance(memory, Memory) else "another method"
            raise ValueError(
                f"state belongs to {whose}; wanted a state of {self._kind.name} with the same "
                "slots, groups and kind of learning rate"
            )

    @property
    def _kind(self) -> Kind:
        variants = self.optimizer.variants
        return Kind(
            type(self.optimizer).__name__,
            tuple(rule.learning_rate.init() is None for rule in variants),
            tuple((*place, tuple(variants[place[2]].slots())) for place in self.segments),
        )

    def learned(self, space: Space, state: SteppingState) -> Memory:
        """A copy of what the rule keeps, for another run to start from."""
        return self.resume(state).memory

    def resume(self, state: SteppingState) -> SteppingState:
        """The same state, with copies of the arrays that may be overwritten."""
        memory = state.memory
        kept = tuple(tuple(copy_of(s) for s in own) for own in memory.slots)
        return state._replace(memory=memory._replace(slots=kept))
