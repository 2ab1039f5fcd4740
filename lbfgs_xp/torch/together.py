"""Training one model in many processes, each with its part of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.distributed.team import Team
from lbfgs_xp.saving.checkpoint import Checkpoint, Terminated
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.warned import warn

_SAME_START = (
    "the same in all processes, as by torch.manual_seed(0) before the model is made, or by "
    "DistributedDataParallel"
)


class Together:
    """The processes that train a model, seen from one of them.

    All decisions rest on sums over the processes, which have the same bits in each.

    team : a `Team`, whose vectors are the gradient and, behind it, what a mean divides by and
        how many chunks there were.
    """

    def __init__(self, engine: Any, flat: Flat):
        layout = Layout(flat.read().new_zeros(sum(flat.sizes) + 2), batched=False)
        self.team = Team(engine, lambda: layout)
        if engine.sharded:
            raise ValueError(
                "distributed has sharded=True; wanted sharded=False, because each process has the "
                "whole model"
            )
        self._calls_back = False

    def check(
        self, settings: dict[str, Any], model: nn.Module, flat: Flat,
        checkpoint: Checkpoint | None, has_callback: bool,
    ) -> None:
        """Refuse a run whose processes were called in different ways or with different models."""
        team = self.team
        saves = checkpoint and (checkpoint.every, checkpoint.keep)
        team.check_equal("whether and how often the run is saved", saves)
        team.check_equal("the settings", settings)
        named = {**dict(model.named_parameters()), "all that are trained": flat.read()}
        team.check_equal("the parameters", _digests(named), wanted=_SAME_START)
        found = team.engine.gather(_digests(dict(model.named_buffers())))
        others = {
            name for each in found for name in {**found[0], **each}
            if each.get(name) != found[0].get(name)
        }
        if others:
            warn(
                f"buffers of the model differ between the processes ({', '.join(sorted(others))}), "
                "and are not exchanged; DistributedDataParallel copies them when it is made"
            )
        self._calls_back = any(team.engine.gather(has_callback))

    def by_process(self, described: dict[str, Any]) -> dict[str, Any]:
        """What may differ between the processes, for the description of the run."""
        found = self.team.engine.gather(described)
        return {"class": str(len(found)), **{str(rank): each for rank, each in enumerate(found)}}

    def summed(
        self, share: Callable[[Any], tuple[Tensor, Tensor, float, int]]
    ) -> Callable[[Any], tuple[Tensor, Tensor, float]]:
        """`share`, a function that returns a loss, its gradient, what its mean divides by and the
        number of its chunks, with the sums of the first three over the processes."""

        def packed(argument: Any) -> tuple[Tensor, Tensor, None]:
            loss, gradient, divisor, chunks = share(argument)
            vector = torch.cat([gradient, gradient.new_tensor([divisor, chunks])])
            return loss.to(gradient.dtype), vector, None

        evaluate = self.team.shared(packed)

        def of_all(argument: Any) -> tuple[Tensor, Tensor, float]:
            loss, vector, _ = evaluate(argument)
            self._listen()
            divisor, chunks = vector[-2:].tolist()
            if chunks == 0.0:
                raise ValueError(
                    f"data has no rows in any of the {self.team.engine.size} processes; wanted at "
                    "least one row in one of them"
                )
            return torch.as_tensor(loss, dtype=vector.dtype), vector[:-2], divisor

        return of_all

    def stops(self, callback: Callable[[], bool]) -> bool:
        """Whether the callback of any process stops the run."""
        if not self._calls_back:
            return False
        self.team.is_stopped(self.team.call(callback))
        self.team.meet()
        self._listen()
        return self.team.is_stopped(False)

    def _listen(self) -> None:
        """End the run if a process has received SIGTERM."""
        if self.team.is_terminated():
            raise Terminated


def module_of(model: Any, distributed: Any) -> Any:
    """The module to be trained: that within a `DistributedDataParallel`, whose sums of gradients
    are not needed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; wanted a torch.nn.Module")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        if distributed is None:
            raise TypeError(
                "model is a DistributedDataParallel, which averages gradients, but not the loss; "
                "wanted distributed=lx.distributed.torch() as well, or its module, model.module"
            )
        model = model.module
    for name, part in model.named_modules():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            raise TypeError(
                f"{name or 'model'} is a DistributedDataParallel within the model; wanted its "
                "module, because here the gradients of the whole model are added up"
            )
        if type(part).__name__ == "FullyShardedDataParallel":
            raise _in_pieces(name or "model", part)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "to_local"):
            raise _in_pieces(name, parameter)
    return model


def _in_pieces(name: str, what: Any) -> TypeError:
    return TypeError(
        f"{name} is a {type(what).__name__}, so this process has pieces of the parameters; wanted "
        "whole parameters, or lx.minimize with the pieces and "
        "distributed=lx.distributed.torch(sharded=True)"
    )


def _digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    host = tensor.detach().resolve_conj().cpu()
    dense = host if host.layout is torch.strided else host.to_dense()
    numbers = dense.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(numbers.data).hexdigest()}"
