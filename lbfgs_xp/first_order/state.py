"""The state of a first-order optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, Backend, dtype_name
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Partial, backends_of, flatten_parameters, without_frozen
from lbfgs_xp.saving.encoding import Decoder
from lbfgs_xp.saving.placing import as_own, placed


class ParameterSpec(NamedTuple):
    """A description of the parameters, as passed to `init`.

    optimizer : the name of the optimizer's class.
    structure : how the leaves are nested.
    spaces, types, shapes, dtypes : of each leaf.
    variants : for each leaf, the index of its settings in `FirstOrder.variants`.
    names : for each leaf, the names of its slots.
    """

    optimizer: str
    structure: Any
    spaces: tuple[Space, ...]
    types: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    variants: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(
        cls, optimizer: str, leaves: list[Array], structure: Any, backends: list[Backend],
        variants: tuple[int, ...], names: tuple[tuple[str, ...], ...],
    ) -> ParameterSpec:
        """The description of these leaves."""
        backends[0].keep_static(cls)
        spaces = {backend: Space(backend) for backend in backends}
        return cls(
            optimizer,
            structure,
            tuple(spaces[backend] for backend in backends),
            tuple(type(leaf) for leaf in leaves),
            tuple(tuple(leaf.shape) for leaf in leaves),
            tuple(leaf.dtype for leaf in leaves),
            variants,
            names,
        )

    def to_saved(self) -> tuple:
        """What a file holds of it."""
        dtypes = tuple(map(dtype_name, self.dtypes))
        return self.optimizer, self.shapes, dtypes, self.variants, self.names

    @classmethod
    def from_saved(cls, saved: tuple, decoder: Decoder) -> ParameterSpec:
        """The description of parameters like `decoder.like`, which must match."""
        optimizer, shapes, dtypes, variants, names = saved
        leaves, structure = without_frozen(*flatten_parameters(decoder.like))
        if isinstance(structure, Partial):
            structure = structure.frozen_in(None)
        backends = backends_of(leaves, structure, "like")
        spec = cls.of(optimizer, leaves, structure, backends, variants, names)
        found = list(zip(shapes, dtypes, strict=True))
        wanted = list(zip(spec.shapes, map(dtype_name, spec.dtypes), strict=True))
        if found != wanted:
            raise ValueError(
                f"the file holds the state of parameters {found}; wanted {wanted}, like `like`"
            )
        return spec


class OptimizerState(NamedTuple):
    """What an optimizer keeps from update to update.

    step : int, the number of updates so far.
    slots : for each leaf, the arrays that the rule keeps (see `spec.names`), in the shape of the
        leaf unless the rule says otherwise (`slot_shapes`); for a complex leaf (..., 2), its real
        and imaginary parts.
    carried : for each group of settings, the numbers that the rule keeps.
    plateaus : for each group, the state of its `ReduceOnPlateau`, or None.
    spec : the description of the parameters.
    memory : what a method keeps for all leaves together, as `StochasticLBFGS` does; else None.
    """

    step: int
    slots: tuple[tuple[Array, ...], ...]
    carried: tuple[tuple[float, ...], ...]
    plateaus: tuple[Any, ...]
    spec: ParameterSpec
    memory: Any = None

    def to_saved(self) -> tuple:
        """What a file holds of it."""
        return tuple(self)

    @classmethod
    def from_saved(cls, saved: tuple, decoder: Decoder) -> OptimizerState:
        """The state for parameters like `decoder.like`."""
        state = cls(*saved)
        slots = tuple(
            tuple(as_own(space.backend, slot) for slot in own)
            for space, own in zip(state.spec.spaces, state.slots, strict=True)
        )
        memory = state.memory
        if memory is not None:
            space = Space(state.spec.spaces[0].backend, batched=True)
            memory = placed(memory, space, memory.momentum.shape[-1])
        return state._replace(slots=slots, memory=memory)
