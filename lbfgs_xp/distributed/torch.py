"""Processes of torch.distributed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.distributed.team import Engine, on_host


class TorchEngine(Engine):
    """See `lbfgs_xp.distributed.torch`."""

    def __init__(self, group: Any = None):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed has no processes; wanted a call of "
                "torch.distributed.init_process_group before"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, array: Array) -> Array:
        if isinstance(array, torch.Tensor):
            dist.all_reduce(array, group=self.group)
            return array
        return on_host(self._sum, array)

    def _sum(self, host: np.ndarray) -> np.ndarray:
        dist.all_reduce(torch.from_numpy(host), group=self.group)
        return host

    def gather(self, item: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item, group=self.group)
        return found
