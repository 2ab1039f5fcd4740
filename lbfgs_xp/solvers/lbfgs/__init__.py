"""L-BFGS: the solver, its step for one problem and for many, its curvature."""

from lbfgs_xp.solvers.lbfgs.solver import LBFGS

__all__ = ["LBFGS"]
