"""Processes of torch.distributed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lbfgs_xp.arrays.backend import Array, class_of
from lbfgs_xp.checks import flag
from lbfgs_xp.distributed.team import Engine, on_host


class TorchEngine(Engine):
    """See `lbfgs_xp.distributed.torch`."""

    def __init__(self, group: Any = None, sharded: bool = False):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed has no processes; wanted a call of "
                "torch.distributed.init_process_group before"
            )
        self.group, self.sharded = group, flag("sharded", sharded)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(
                "group is a process group without this process; wanted one to which it belongs"
            )

    def sum(self, array: Array) -> Array:
        if isinstance(array, torch.Tensor):
            dist.all_reduce(array, group=self.group)
            return array
        return on_host(self._sum, array)

    def _sum(self, host: np.ndarray) -> np.ndarray:
        dist.all_reduce(torch.from_numpy(host), group=self.group)
        return host

    def collect(self, numbers: Array) -> np.ndarray:
        own = numbers if isinstance(numbers, torch.Tensor) else torch.from_numpy(
            np.array(class_of(numbers).to_host(numbers))
        )
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.group)
        return torch.stack(found).cpu().numpy()

    def gather(self, item: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item, group=self.group)
        return found

    def broadcast(self, item: Any) -> Any:
        # (`gather` would need room for as many items of this size as there are processes.)
        found = [item if self.rank == 0 else None]
        first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        dist.broadcast_object_list(found, src=first, group=self.group)
        return found[0]
