"""L-BFGS as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lbfgs_xp import checks
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.checks import shown
from lbfgs_xp.line_search import LineSearch
from lbfgs_xp.result import Status
from lbfgs_xp.torch.bounds import box_of
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.foreign import is_of_torch, taken_over
from lbfgs_xp.torch.settings import OptimizerSettings
from lbfgs_xp.torch.step import Step, StepResult
from lbfgs_xp.typing import LineSearchName


class LBFGS(torch.optim.Optimizer):
    """L-BFGS as a replacement for `torch.optim.LBFGS`, with the same arguments and usage.

    Parameters
    ----------
    params : iterable of tensors, of named tensors, or of dicts of groups
        On one device and of one real dtype, float32 or float64; complex parameters count as their
        real and imaginary parts. Parameters that require no gradient are left alone; a gradient of
        None counts as 0, and a sparse one is made dense. All groups must have the same settings.
    lr : float or tensor with one element
        Multiplies the first trial of every line search or, without a line search, the step itself.
        Torch schedulers may change it.
    max_iter, max_eval : int
        The most iterations and evaluations in one `step`; max_eval is 1.25 max_iter by default.
        (Two evaluations are always allowed, because fewer make no step.)
    tolerance_grad : float
        A step ends when the largest component of the gradient is at most this.
    tolerance_change : float
        A step also ends when no parameter changes by more than this, the loss changes by less, or
        the slope along the direction is smaller in size. Either tolerance may be infinite, or
        negative: it is then never met.
    history_size : int
        The number of pairs (s, y) to keep.
    line_search_fn : None, str or lx.LineSearch
        None: steps of length lr along the direction, the very first of length
        lr min(1, 1 / |g|_1). Otherwise "strong_wolfe", the name of another rule of
        `lbfgs_xp.line_search`, or a rule such as `lx.HagerZhang()`.
    maximize : bool
        Whether to maximise the loss.
    clip_norm, clip_value : float or None
        The limits of the gradient that directions are made of, as in `lx.LBFGS`. The gradients
        themselves are not changed.
    bounds : None or (lower, upper)
        The parameters stay between them. Each side is None, a number, or a tensor that broadcasts
        to every parameter. Unlike the other settings, they may differ between groups:
        `[{"params": [scale], "bounds": (0.0, None)}, {"params": rest}]`. Parameters outside are
        moved to the nearest point inside when a step begins.

    Raises
    ------
    TypeError, ValueError
        For settings that are out of range or differ between groups, and for parameters on several
        devices or of several dtypes; the message says what was passed and what is wanted.

    Notes
    -----
    With None and a closure that does not change, the iterates are those of `torch.optim.LBFGS` up
    to rounding; with "strong_wolfe" too, until the two searches first try different steps. Trials
    that are not finite are shortened.

    A closure that does not clear the gradients, changes the parameters, or whose gradient is not
    that of its loss ends the step as `LINE_SEARCH`, with a message that says so. Without a line
    search, a loss that has grown by a factor of more than 1e10 ends it as `DIVERGED`.

    `result`, a `StepResult`, says why the last step ended; it is None before the first step.

    Examples
    --------
    >>> import torch
    >>> from lbfgs_xp.torch import LBFGS
    >>> x = torch.zeros(2, requires_grad=True)
    >>> opt = LBFGS([x], line_search_fn="strong_wolfe")
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = ((x - 3.0) ** 2).sum()
    ...     loss.backward()
    ...     return loss
    >>> opt.step(closure).item(), opt.result.status.name
    (18.0, 'GRADIENT')
    >>> x.tolist()
    [3.0, 3.0]
    """

    result: StepResult | None = None

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: LineSearchName | LineSearch | None = None,
        *,
        maximize: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        bounds: Any = None,
    ):
        settings = OptimizerSettings(
            lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn,
            maximize, clip_norm, clip_value,
        )
        # lr is kept as passed, because schedulers write into a tensor.
        super().__init__(params, vars(settings) | {"lr": lr, "bounds": bounds})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; the next step drops the curvature so far, which lacks them."""
        super().add_param_group(param_group)
        try:
            OptimizerSettings.of(self.param_groups)
            box_of(self.param_groups, Flat(self._all()))
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Run at most `max_iter` iterations; return the loss before them, as returned by closure.

        closure : clears the gradients, computes the loss, calls backward and returns the loss. It
            may be called up to `max_eval` times.

        The parameters are left at the last accepted point, also after an exception of the closure
        or Ctrl-C. (Without a line search, as in torch, the very last step is only evaluated by the
        next call.)
        """
        if not callable(closure):
            raise TypeError(f"closure is {closure!r}; wanted a function that returns the loss")
        flat = Flat(self._all())
        if not flat.params:
            raise ValueError("no parameter requires a gradient; wanted at least one that does")
        if not any(flat.sizes):
            raise ValueError("the parameters are all empty tensors; wanted at least one number")
        run = Step(
            OptimizerSettings.of(self.param_groups), box_of(self.param_groups, flat), flat, closure,
            self._memory(),
        )
        try:
            run.go()
        except KeyboardInterrupt:
            run.status = Status.INTERRUPTED
            raise
        finally:
            self.result = run.leave() or self.result
        return run.closure.loss

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue with the same bits, as tensors and plain numbers, so that
        `torch.load` accepts it with weights_only=True. A copy, which later steps do not change.

        A line search passed as an object is not included: the loading optimizer keeps its own.
        """
        packed = super().state_dict()
        packed["state"] = map_leaves(_copied, packed["state"])
        for group in packed["param_groups"]:
            group["lr"] = _copied(group["lr"])
            if group["bounds"] is not None:
                group["bounds"] = tuple(map(_copied, checks.bounds(group["bounds"])))
            if isinstance(group["line_search_fn"], LineSearch):
                del group["line_search_fn"]
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from where `state_dict` was taken, also by a `torch.optim.LBFGS`."""
        saved = _checked(state_dict)
        own = {name: self.param_groups[0][name] for name in _OWN}
        groups = [own | group for group in state_dict["param_groups"]]
        if len(groups) == len(self.param_groups):
            # Those of torch have no bounds.
            groups = [
                {"bounds": mine["bounds"]} | group
                for mine, group in zip(self.param_groups, groups, strict=True)
            ]
        OptimizerSettings.of(groups)
        flat = Flat(self._all())
        taken = taken_over(saved, flat) if saved and is_of_torch(saved) else None
        if saved.get("pairs"):
            flat.check(saved["where"], saved["pairs"]["rows"].shape[1])
        super().load_state_dict(state_dict | {"param_groups": groups})
        if not saved:
            return
        self._memory().clear()    # of what torch has put there
        loaded = self._memory()
        if is_of_torch(saved):
            loaded.update(func_evals=saved["func_evals"], n_iter=saved["n_iter"], taken=taken)
            return
        # torch casts everything to the dtype of the parameters, but the small matrices must stay
        # float64, and vectors are real.
        loaded.update(map_leaves(_copied, saved))
        for name, where in (("pairs", ["rows"]), ("pending", ["x", "gradient", "direction"])):
            for key in where if loaded[name] else ():
                loaded[name][key] = flat.placed(loaded[name][key])

    def trust_to_clear(self) -> None:
        """Do not look at whether closure clears the gradients, because it does."""
        self._memory()["clears"] = True

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"result": self.result}

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _memory(self) -> dict[str, Any]:
        """What is kept from step to step, as tensors and plain numbers. As in torch, it is stored
        in the state of the first parameter. See `Step`."""
        memory: dict[str, Any] = self.state[self._all()[0]]
        if not memory:
            memory.update(
                func_evals=0, n_iter=0, where=[], pairs=None, pending=None, retry=None,
                clears=False, doubts=0, off=0, scale=None, taken=None,
            )
        return memory


# Settings that `torch.optim.LBFGS` lacks, or that are not saved.
_OWN = ("line_search_fn", "maximize", "clip_norm", "clip_value")


def _checked(state_dict: Any) -> dict[str, Any]:
    """What a state dict holds for the first parameter."""
    wanted = "wanted the state_dict of an LBFGS of lbfgs_xp.torch or torch.optim"
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        what = shown(state_dict) if not isinstance(state_dict, dict) else (
            f"a dict with {', '.join(map(repr, state_dict)) or 'nothing'}"
        )
        raise TypeError(f"state_dict is {what}; {wanted}")
    saved: dict[str, Any] = next(iter(state_dict["state"].values()), {})
    if saved and "pairs" not in saved and not is_of_torch(saved):
        raise ValueError(f"state_dict holds {', '.join(map(repr, saved))}; {wanted}")
    for group in state_dict["param_groups"]:
        if missing := {"lr", "max_iter", "history_size"} - group.keys():
            raise ValueError(f"state_dict lacks {', '.join(sorted(missing))}; {wanted}")
    return saved


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
