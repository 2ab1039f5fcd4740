"""L-BFGS: the solver, its steps for one problem and for many, and its curvature pairs."""

from lbfgs_xp.solvers.lbfgs.solver import LBFGS

__all__ = ["LBFGS"]
