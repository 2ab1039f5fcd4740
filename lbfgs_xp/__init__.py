"""lbfgs_xp: optimisation for arrays of any library.

L-BFGS with line searches, Newton's method, constraints, first-order optimizers, learning-rate
schedules and training.

It works with NumPy, PyTorch, CuPy, JAX and every other library that follows the Python array API
standard, on any device, for one problem or a batch, and is bitwise reproducible on request.
"""

import difflib
import importlib.util
from typing import TYPE_CHECKING, Any

from lbfgs_xp import distributed, plot, problems, projections, schedules
from lbfgs_xp.arrays.space import FixedOrderSpace, Space, fixed_sum
from lbfgs_xp.constraints import (
    ConstrainedResult,
    ConstrainedStatus,
    augmented_lagrangian,
    quadratic_penalty,
)
from lbfgs_xp.diagnosis.diagnose import diagnose
from lbfgs_xp.diagnosis.result import Diagnosis, Finding
from lbfgs_xp.first_order import (
    ASGD,
    SGD,
    SOAP,
    AdaBelief,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    FirstOrder,
    GradientDescent,
    Lion,
    Muon,
    NAdam,
    OptimizerState,
    RAdam,
    RMSProp,
    Rprop,
    ScheduleFreeAdamW,
    StochasticLBFGS,
    Yogi,
)
from lbfgs_xp.fits.curve_fit import curve_fit
from lbfgs_xp.fits.curve_result import BatchCurveFit, CurveFit
from lbfgs_xp.fits.intervals import Intervals, IntervalStatus, Profile
from lbfgs_xp.fits.least_squares import least_squares
from lbfgs_xp.fits.result import BatchLeastSquaresResult, FitRecord, LeastSquaresResult
from lbfgs_xp.fits.starts import Starts
from lbfgs_xp.gradient_check import check_gradient
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
from lbfgs_xp.result import BatchResult, Record, Result, State, Status
from lbfgs_xp.run.penalised import Multipliers
from lbfgs_xp.saving.checkpoint import Checkpoint
from lbfgs_xp.saving.states import load, save
from lbfgs_xp.solvers.bfgs import BFGS
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.method import Limits, Phase
from lbfgs_xp.solvers.newton import Newton
from lbfgs_xp.solvers.newton_cg import NewtonCG
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient
from lbfgs_xp.solvers.self_scaled import SSBFGS, SSBroyden
from lbfgs_xp.solvers.trust_ncg import TrustNCG
from lbfgs_xp.solvers.two_loop import two_loop
from lbfgs_xp.training.result import History, TrainRecord, TrainResult, TrainState
from lbfgs_xp.training.train import train

__version__ = "0.1.0"

__all__ = [
    "Adafactor",
    "Muon",
    "SOAP",
    "ScheduleFreeAdamW",
    "ASGD",
    "BFGS",
    "LBFGS",
    "SGD",
    "SSBFGS",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Armijo",
    "BatchCurveFit",
    "BatchLeastSquaresResult",
    "BatchResult",
    "Bisection",
    "Checkpoint",
    "ConstrainedResult",
    "ConstrainedStatus",
    "CurveFit",
    "Diagnosis",
    "Finding",
    "FirstOrder",
    "FitRecord",
    "Fixed",
    "FixedOrderSpace",
    "GradientDescent",
    "HagerZhang",
    "History",
    "IntervalStatus",
    "Intervals",
    "LeastSquaresResult",
    "Limits",
    "LineSearch",
    "Lion",
    "MoreThuente",
    "Multipliers",
    "NAdam",
    "Newton",
    "NewtonCG",
    "OptimizerState",
    "Phase",
    "Profile",
    "ProjectedGradient",
    "RAdam",
    "RMSProp",
    "Record",
    "Result",
    "Rprop",
    "SSBroyden",
    "Space",
    "State",
    "Starts",
    "Status",
    "StochasticLBFGS",
    "StrongWolfe",
    "TrainRecord",
    "TrainResult",
    "TrainState",
    "TrustNCG",
    "Yogi",
    "augmented_lagrangian",
    "check_gradient",
    "curve_fit",
    "diagnose",
    "distributed",
    "fixed_sum",
    "least_squares",
    "line_search",
    "load",
    "minimize",
    "plot",
    "problems",
    "projections",
    "quadratic_penalty",
    "save",
    "schedules",
    "train",
    "two_loop",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


if not TYPE_CHECKING:    # type checkers would accept any name

    def __getattr__(name: str) -> Any:
        public = {public.lower(): public for public in __all__}
        near = difflib.get_close_matches(name.lower(), public, 1, 0.8)
        hint = f"; did you mean lx.{public[near[0]]}?" if near else ""
        if name.isidentifier() and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            hint = f"; it is a separate module: import lbfgs_xp.{name}"
        raise AttributeError(f"lbfgs_xp has no {name!r}{hint}")
