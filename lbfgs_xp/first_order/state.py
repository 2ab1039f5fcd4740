"""The state of a first-order optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space


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


class OptimizerState(NamedTuple):
    """What an optimizer keeps from update to update.

    step : int, the number of updates so far.
    slots : for each leaf, the arrays that the rule keeps (see `spec.names`), in the shape of the
        leaf; for a complex leaf (..., 2), its real and imaginary parts.
    carried : for each group of settings, the numbers that the rule keeps.
    plateaus : for each group, the state of its `ReduceOnPlateau`, or None.
    spec : the description of the parameters.
    """

    step: int
    slots: tuple[tuple[Array, ...], ...]
    carried: tuple[tuple[float, ...], ...]
    plateaus: tuple[Any, ...]
    spec: ParameterSpec
