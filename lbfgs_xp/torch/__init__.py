"""For users of PyTorch: `LBFGS`, a replacement for `torch.optim.LBFGS`, and training with it.

    from lbfgs_xp.torch import LBFGS, train_with_lbfgs

`import lbfgs_xp` by itself does not import torch.
"""

from lbfgs_xp.torch.optimizer import LBFGS
from lbfgs_xp.torch.step import StepResult
from lbfgs_xp.torch.stochastic import StochasticLBFGS
from lbfgs_xp.torch.training import (
    PhaseHistory,
    TrainingRecord,
    TrainingResult,
    train_with_lbfgs,
)

__all__ = [
    "LBFGS",
    "PhaseHistory",
    "StepResult",
    "StochasticLBFGS",
    "TrainingRecord",
    "TrainingResult",
    "train_with_lbfgs",
]
