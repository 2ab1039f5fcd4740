"""Where a first-order optimizer stands."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space


class ParameterSpec(NamedTuple):
    """What the parameters are like, as `init` found them.

    optimizer : the name of the optimizer's class.
    structure : how the leaves are nested.
    spaces, types, shapes, dtypes : of each leaf.
    variants : for each leaf, which settings are its own: 0, or the place of its group.
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
    """What an optimizer remembers from update to update.

    step : int, the updates so far.
    slots : for each leaf, the arrays that the rule keeps (see `spec.names`), of the shape of the
        leaf; of a complex leaf (..., 2), real and imaginary parts.
    carried : for each group of settings, the numbers that the rule keeps.
    plateaus : for each group, the state of its `ReduceOnPlateau`, or None.
    spec : what is known of the parameters.
    """

    step: int
    slots: tuple[tuple[Array, ...], ...]
    carried: tuple[tuple[float, ...], ...]
    plateaus: tuple[Any, ...]
    spec: ParameterSpec
