"""What trainings by `train_with_lbfgs` have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def assert_same_outcome(found: Any, wanted: Any) -> None:
    """The same bits of (result, parameters)."""
    (mine, x), (other, y) = found, wanted
    assert torch.equal(x, y)
    assert repr(mine.loss) == repr(other.loss)
    assert (mine.status, mine.message) == (other.status, other.message)
    for phase in ("adam", "lbfgs"):
        a, b = getattr(mine, phase), getattr(other, phase)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a.loss, b.loss)
