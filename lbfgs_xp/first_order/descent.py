"""A first-order rule as a solver for `lx.minimize`: one step from each point evaluated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lbfgs_xp import scalars
from lbfgs_xp.backend import Array
from lbfgs_xp.first_order import blocks
from lbfgs_xp.first_order.update import plateau_of, rate_of
from lbfgs_xp.space import Space, norm
