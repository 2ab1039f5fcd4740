"""L-BFGS for changing batches, as a torch optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lbfgs_xp.checks import count
from lbfgs_xp.first_order import OptimizerState, update
from lbfgs_xp.first_order.stochastic_lbfgs import Curvature
from lbfgs_xp.first_order.stochastic_lbfgs import StochasticLBFGS as Rule
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.torch.closure import Closure
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.settings import learning_rate, shared

_SETTINGS = (
    "lr", "history_size", "momentum", "pair_every", "damping", "curvature_bounds", "armijo",
    "weight_decay", "clip_norm", "clip_value", "maximize",
)


class StochasticLBFGS(torch.optim.Optimizer):
    """L-BFGS on changing batches, `lx.StochasticLBFGS`, as a torch optimizer.

    Parameters
    ----------
    params : iterable of tensors, of named tensors, or of dicts of groups
        As for `lbfgs_xp.torch.LBFGS`. All groups must have the same settings.
    lr : float or tensor with one element
        In units of the quasi-Newton step. Torch schedulers may change it.
    history_size : int
        The number of pairs (s, y) to keep.
    momentum, pair_every, damping, curvature_bounds, armijo, weight_decay, clip_norm, clip_value
        As in `lx.StochasticLBFGS`.
    maximize : bool
        Whether to maximise the loss.

    Raises
    ------
    TypeError, ValueError
        For settings that are out of range or differ between groups, and for parameters on several
        devices or of several dtypes; the message says what was passed and what is wanted.

    Examples
    --------
    >>> import torch
    >>> from lbfgs_xp.torch import StochasticLBFGS
    >>> x = torch.zeros(2, requires_grad=True)
    >>> opt = StochasticLBFGS([x], lr=0.5, momentum=0.0)
    >>> batches = [torch.tensor([3.0, 1.0]), torch.tensor([3.0, 1.0])] * 20
    >>> for batch in batches:
    ...     def closure():
    ...         opt.zero_grad()
    ...         loss = ((x - batch) ** 2).sum()
    ...         loss.backward()
    ...         return loss
    ...     loss = opt.step(closure)
    >>> [round(number, 5) for number in x.tolist()]
    [3.0, 1.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        history_size: int = 20,
        momentum: float = 0.9,
        pair_every: int = 5,
        damping: float = 0.2,
        *,
        curvature_bounds: tuple[float, float] = (1e-6, 1e6),
        armijo: float | None = None,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        maximize: bool = False,
    ):
        if isinstance(curvature_bounds, list):
            curvature_bounds = tuple(curvature_bounds)
        values = (
            lr, history_size, momentum, pair_every, damping, curvature_bounds, armijo,
            weight_decay, clip_norm, clip_value, maximize,
        )
        settings = dict(zip(_SETTINGS, values, strict=True))
        _rule(**settings)    # checks them
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make one step; return the loss before it, as returned by closure.

        closure : clears the gradients, computes the loss of the current batch, calls backward and
            returns the loss. It is called once, for a new pair once more, and with `armijo` once
            for each trial, always for the same batch.

        After an exception of the closure, the parameters are where they were.
        """
        if not callable(closure):
            raise TypeError(f"closure is {closure!r}; wanted a function that returns the loss")
        rule = _known_rule(**self._settings())
        flat = Flat(p for group in self.param_groups for p in group["params"])
        if not any(flat.sizes):
            raise ValueError("no parameter requires a gradient; wanted at least one that does")
        x = flat.read()
        memory = self.state[self.param_groups[0]["params"][0]]
        watched = Closure(closure, flat, 1.0, memory.get("clears", False))

        def evaluate(leaves: list[Tensor]) -> tuple[float, list[Tensor]]:
            (at,) = leaves
            flat.write(at)
            found = watched(at)
            if found.fault:
                raise ValueError(found.fault)
            return found.value, [found.gradient]

        try:
            value, gradients = evaluate([x])
            (new,), state = rule.update_leaves(
                [x], gradients, _loaded(rule, memory, x), fun=evaluate, batch_value=value
            )
        except BaseException:
            flat.write(x)
            raise
        flat.write(new)
        memory.update(_saved(state), clears=watched.clears)
        return watched.loss

    def _settings(self) -> dict[str, Any]:
        """The settings, with the current learning rate as a float."""
        first = shared([{name: group[name] for name in _SETTINGS} for group in self.param_groups])
        return first | {"lr": learning_rate("lr", first["lr"])}


def _rule(lr: Any, history_size: Any, **settings: Any) -> Rule:
    rate, memory_size = learning_rate("lr", lr), count("history_size", history_size, 1)
    return Rule(rate, memory_size=memory_size, **settings)


_known_rule = functools.lru_cache(maxsize=16)(_rule)


# --- the state as tensors and plain numbers, for `state_dict` ------------------------------------


def _saved(state: OptimizerState) -> dict[str, Any]:
    memory = state.memory._asdict()
    return {"step": state.step, **memory.pop("pairs")._asdict(), **memory}


def _loaded(rule: Rule, memory: dict[str, Any], x: Tensor) -> OptimizerState:
    """The state that `memory` holds; a new one if it holds none."""
    if "step" not in memory:
        return rule.init(x)
    if memory["momentum"].shape[-1] != x.shape[-1]:
        raise ValueError(
            f"the state holds vectors of {memory['momentum'].shape[-1]} numbers; wanted "
            f"{x.shape[-1]}, as many as the parameters have"
        )
    parts = {name: memory[name] for name in Pairs._fields}
    # torch casts everything it loads to the dtype of the parameters, counts too.
    parts |= {name: parts[name].to(torch.int64) for name in ("slot", "count")}
    own = {name: memory[name] for name in Curvature._fields if name != "pairs"}
    return update.init(rule, x)._replace(
        step=int(memory["step"]), memory=Curvature(**own, pairs=Pairs(**parts))
    )
