"""lbfgs_xp: L-BFGS and line searches for arrays of any library.

NumPy, PyTorch, CuPy, JAX and every other library that follows the Python array API standard, on
any device; one problem or a batch of them; bitwise reproducible on demand.
"""

from lbfgs_xp import problems, projections, schedules
from lbfgs_xp.constraints import (
    ConstrainedResult,
    ConstrainedStatus,
    Multipliers,
    augmented_lagrangian,
    quadratic_penalty,
)
from lbfgs_xp.first_order import (
    ASGD,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    FirstOrder,
    GradientDescent,
    Lion,
    NAdam,
    OptimizerState,
    RAdam,
    RMSProp,
    Rprop,
    Yogi,
)
from lbfgs_xp.line_search import (
    Armijo,
    Bisection,
    Fixed,
    HagerZhang,
    LineSearch,
    MoreThuente,
    StrongWolfe,
    line_search,
)
from lbfgs_xp.minimize import minimize
from lbfgs_xp.objective import check_gradient
from lbfgs_xp.phases import Limits, Phase
from lbfgs_xp.result import Record, Result, State, Status
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.newton import Newton
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient
from lbfgs_xp.solvers.two_loop import two_loop
from lbfgs_xp.space import FixedOrderSpace, Space, fixed_sum
from lbfgs_xp.training import History, TrainRecord, TrainResult, TrainState, train

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "Armijo",
    "Bisection",
    "ConstrainedResult",
    "ConstrainedStatus",
    "Fixed",
    "FixedOrderSpace",
    "HagerZhang",
    "Limits",
    "LineSearch",
    "MoreThuente",
    "Newton",
    "Multipliers",
    "Phase",
    "ProjectedGradient",
    "Record",
    "Result",
    "Space",
    "State",
    "Status",
    "StrongWolfe",
    "augmented_lagrangian",
    "check_gradient",
    "fixed_sum",
    "line_search",
    "minimize",
    "problems",
    "schedules",
    "projections",
    "quadratic_penalty",
    "two_loop",
    "ASGD",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FirstOrder",
    "GradientDescent",
    "Lion",
    "NAdam",
    "OptimizerState",
    "RAdam",
    "RMSProp",
    "Rprop",
    "Yogi",
    "History",
    "TrainRecord",
    "TrainResult",
    "TrainState",
    "train",
]
