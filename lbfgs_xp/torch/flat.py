"""Torch parameters as a single vector."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lbfgs_xp.arrays.backend import Backend


class Flat:
    """The parameters that require a gradient, each once, as one real vector.

    where : their indices among all parameters.
    """

    def __init__(self, params: Iterable[Tensor]):
        unique = list({id(p): p for p in params}.values())
        self.where = [i for i, p in enumerate(unique) if p.requires_grad]
        self.params = [unique[i] for i in self.where]
        self.all_sizes = [_real(p).numel() for p in unique]
        self.sizes = [_real(p).numel() for p in self.params]
        for what, found in (
            ("devices", {str(p.device) for p in self.params}),
            ("dtypes", {str(_real(p).dtype) for p in self.params}),
        ):
            if len(found) > 1:
                raise ValueError(
                    f"the parameters have the {what} {', '.join(sorted(found))}; wanted only one"
                )
        for p in self.params[:1]:
            Backend.of(p, "a parameter")  # refuses 16-bit numbers

    @property
    def dtype(self) -> torch.dtype:
        return _real(self.params[0]).dtype

    def placed(self, vector: Tensor) -> Tensor:
        """A vector in the dtype and on the device of the parameters."""
        return vector.to(_real(self.params[0])) if self.params else vector

    @torch.no_grad()
    def read(self) -> Tensor:
        return torch.cat([_real(p).reshape(-1) for p in self.params])

    @torch.no_grad()
    def write(self, vector: Tensor) -> None:
        for p, piece in zip(self.params, vector.split(self.sizes), strict=True):
            real = _real(p)
            real.copy_(piece.view_as(real))

    def picked(self, vector: Tensor) -> Tensor:
        """What belongs to these parameters in a vector of all, also of those that are frozen."""
        self.check(range(len(self.all_sizes)), vector.numel())
        pieces = vector.split(self.all_sizes)
        return torch.cat([pieces[i] for i in self.where])

    def check(self, where: Iterable[int], size: int) -> None:
        """Refuse vectors of another size than that of the parameters with these indices."""
        own = sum(self.all_sizes[i] for i in where if i < len(self.all_sizes))
        if size != own:
            raise ValueError(
                f"state_dict holds vectors of {size} numbers; wanted {own}, as many as the "
                "parameters have"
            )

    def gradient(self) -> Tensor:
        return self.joined([p.grad for p in self.params])

    @torch.no_grad()
    def write_gradient(self, vector: Tensor) -> None:
        """Make a vector the gradient of the parameters; those that are real are views of it."""
        for p, piece in zip(self.params, vector.split(self.sizes), strict=True):
            real = piece.view_as(_real(p))
            # A complex view must begin at an even place.
            p.grad = torch.view_as_complex(real.clone()) if p.is_complex() else real

    @torch.no_grad()
    def joined(self, gradients: list[Tensor | None]) -> Tensor:
        """Gradients of the parameters as one vector; None counts as 0."""
        pieces = []
        for p, size, g in zip(self.params, self.sizes, gradients, strict=True):
            if g is None:
                pieces.append(_real(p).new_zeros(size))
                continue
            dense = g if g.layout is torch.strided else g.to_dense()
            pieces.append(_real(dense.resolve_conj()).reshape(-1))
        return torch.cat(pieces)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
