"""Layers because of which a loss is no function of the parameters alone."""

from __future__ import annotations

import torch
from torch import nn

from lbfgs_xp.torch.warned import warn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)


def warn_of_layers(model: torch.nn.Module) -> bool:
    """Warn of layers that are random at each call, which a line search cannot handle, and of those
    that depend on how the data are split; return whether there are any."""
    training = [layer for layer in model.modules() if layer.training]
    noisy = sorted({type(layer).__name__ for layer in training if _changes(layer)})
    if noisy:
        warn(
            f"the model is in training mode with {', '.join(noisy)}, so its loss differs from call "
            "to call and the line search of L-BFGS cannot work; call model.eval() first"
        )
    norms = sorted({type(layer).__name__ for layer in training if isinstance(layer, _BATCH_NORMS)})
    if norms:
        warn(
            f"the model is in training mode with {', '.join(norms)}, so its loss depends on which "
            "rows pass through it together, in batches or chunks, and each trial of L-BFGS changes "
            "its running averages; call model.eval() first"
        )
    return bool(noisy or norms)


def _changes(layer: nn.Module) -> bool:
    """Whether a layer in training mode gives something else at each call."""
    if isinstance(layer, _DROPOUTS):
        return layer.p > 0.0
    if isinstance(layer, nn.RNNBase):
        return layer.dropout > 0.0 and layer.num_layers > 1
    if isinstance(layer, nn.MultiheadAttention):
        return layer.dropout > 0.0
    # What `torch.nn.utils.parametrizations.spectral_norm` adds has no public class.
    return isinstance(layer, nn.RReLU) or type(layer).__name__ == "_SpectralNorm"
