"""Within `jax.shard_map`: over which axes of the mesh the values of an array differ.

The type of an array says so. Loops and branches keep it, so all that they carry differs over the
same axes.
"""

from __future__ import annotations

from typing import Any

import jax

from lbfgs_xp.arrays.backend import Array

# What names an axis without communicating.
_SILENT = ("axis_index", "pvary", "pcast")


def is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def manual_axes() -> frozenset:
    """The axes of the mesh over which the function that is being traced is mapped."""
    mesh = getattr(jax.sharding, "get_abstract_mesh", lambda: None)()
    return frozenset(getattr(mesh, "manual_axes", ()))


def axes_of(tree: Any) -> frozenset:
    axes: set = set()
    for leaf in filter(is_traced, jax.tree.leaves(tree)):
        # Its name depends on the version of JAX.
        kind = jax.typeof(leaf)
        older: Any = getattr(getattr(kind, "manual_axis_type", None), "varying", ())
        axes.update(getattr(kind, "vma", None) or older)
    return frozenset(axes)


def knows_axes(mesh: frozenset) -> bool:
    """Whether types say so: not with check_vma=False."""
    return axes_of(over(jax.numpy.zeros(()), mesh)) == mesh


def over(array: Array, axes: frozenset) -> Array:
    """The array as one that differs over these axes, too."""
    missing = tuple(sorted(axes - axes_of(array), key=str))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def varying(tree: Any) -> Any:
    axes = axes_of(tree)
    return jax.tree.map(lambda leaf: over(leaf, axes), tree) if axes else tree


def communicating(jaxpr: Any) -> frozenset:
    """The axes over which a program communicates."""
    axes: set = set()
    for equation in jaxpr.eqns:
        parts = jax.tree.leaves(equation.params, is_leaf=lambda part: hasattr(part, "eqns"))
        inner = [part for part in parts if hasattr(part, "eqns")]
        for program in inner:
            axes |= communicating(program)
        if not inner and equation.primitive.name not in _SILENT:
            for name in ("axes", "axis_name"):
                axes.update(jax.tree.leaves(equation.params.get(name, ())))
    return frozenset(axes)
