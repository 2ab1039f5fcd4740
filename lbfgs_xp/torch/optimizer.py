"""L-BFGS as an optimizer of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.line_search import LineSearch
from lbfgs_xp.result import Status
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.settings import OptimizerSettings
from lbfgs_xp.torch.step import Step, StepResult
from lbfgs_xp.typing import LineSearchName


class LBFGS(torch.optim.Optimizer):
    """L-BFGS in place of `torch.optim.LBFGS`: the same arguments, the same use.

    Parameters
    ----------
    params : iterable of tensors, of named tensors, or of dicts of groups
        On one device and of one real dtype, float32 or float64; complex ones count as their real
        and imaginary parts. Those that require no gradient are left alone; a gradient of None
        counts as 0, and a sparse one is made dense. All groups must have the same settings.
    lr : float or tensor with one element
        Multiplies the first trial of every line search; without one, the step itself. Schedulers
        of torch may change it.
    max_iter, max_eval : int
        Iterations and evaluations that one `step` may take; max_eval is 1.25 max_iter unless told.
        (Two evaluations are always allowed, for less makes no step.)
    tolerance_grad : float
        A step ends where the largest component of the gradient is at most this.
    tolerance_change : float
        It ends as well where no parameter changes by more than this, where the loss changes by
        less, or where the slope along the direction promises less.
    history_size : int
        How many curvature pairs are kept.
    line_search_fn : None, str or lx.LineSearch
        None: steps of length lr along the direction, the very first one lr min(1, 1 / |g|_1).
        "strong_wolfe", or the name of another rule of `lbfgs_xp.line_search`, or a rule such as
        `lx.HagerZhang()`.
    maximize : bool
        Whether the loss is to rise.

    Raises
    ------
    TypeError, ValueError
        for settings out of range, groups that disagree, and parameters of several devices or
        dtypes: what was passed, what is wanted.

    Notes
    -----
    With None and a closure that stays the same, the iterates are those of `torch.optim.LBFGS` up to
    rounding; with "strong_wolfe" as well, until the two searches differ in a trial. Trials that are
    not finite are shortened.

    `result`, a `StepResult`, tells why the last step ended; it is None before the first.

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
    ):
        settings = OptimizerSettings(
            lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn,
            maximize,
        )
        # lr as it was given: schedulers write into a tensor.
        super().__init__(params, vars(settings) | {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; the curvature so far, which is of fewer, is dropped at the next step."""
        super().add_param_group(param_group)
        try:
            OptimizerSettings.of(self.param_groups)
            Flat(self._all())
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """At most `max_iter` iterations; the loss before them, as the closure returned it.

        closure : clears the gradients, computes the loss, calls backward and returns the loss. It
            may be called up to `max_eval` times.

        The parameters are left at the last point that was accepted, also where the closure raises
        and at a Ctrl-C. (Without a line search the last step of all is not evaluated, as in
        torch, but by the next call.)
        """
        if not callable(closure):
            raise TypeError(f"closure is {closure!r}; wanted a function that returns the loss")
        flat = Flat(self._all())
        if not flat.params:
            raise ValueError("no parameter requires a gradient; wanted at least one that does")
        if not any(flat.sizes):
            raise ValueError("the parameters are all empty tensors; wanted at least one number")
        run = Step(OptimizerSettings.of(self.param_groups), flat, closure, self._memory())
        try:
            run.go()
        except KeyboardInterrupt:
            run.status = Status.INTERRUPTED
            raise
        finally:
            self.result = run.leave() or self.result
        return run.loss

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, to the bit: tensors and plain numbers, so that `torch.load`
        takes it with weights_only=True. A copy, which later steps leave as it is.

        A line search given as an object is not in it: the optimizer that loads it brings its own.
        """
        packed = super().state_dict()
        packed["state"] = map_leaves(_copied, packed["state"])
        for group in packed["param_groups"]:
            group["lr"] = _copied(group["lr"])
            if isinstance(group["line_search_fn"], LineSearch):
                del group["line_search_fn"]
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        saved = next(iter(state_dict["state"].values()), None)
        if saved is not None and "pairs" not in saved:
            raise ValueError(
                f"state_dict holds {', '.join(map(repr, saved))}; wanted that of an "
                "lbfgs_xp.torch.LBFGS"
            )
        own = self.param_groups[0]["line_search_fn"]
        groups = [{"line_search_fn": own} | group for group in state_dict["param_groups"]]
        OptimizerSettings.of(groups)
        super().load_state_dict(state_dict | {"param_groups": groups})
        if saved is not None:
            # torch casts all to the dtype of the parameters, but the small matrices are float64.
            loaded = self._memory()
            loaded.update(map_leaves(_copied, saved))
            for name, where in (("pairs", ["rows"]), ("pending", ["x", "gradient", "direction"])):
                for key in where if loaded[name] else ():
                    loaded[name][key] = loaded[name][key].to(self._all()[0].device)

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _memory(self) -> dict[str, Any]:
        """What is kept from step to step: tensors and plain numbers, at the first parameter, where
        torch has it. See `Step`."""
        memory: dict[str, Any] = self.state[self._all()[0]]
        if not memory:
            memory.update(func_evals=0, n_iter=0, where=[], pairs=None, pending=None, retry=None)
        return memory


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
