"""One-dimensional searches on phi(alpha) = f(x + alpha d).

Each rule is a frozen dataclass that says which step to try and when to stop. It sees only scalars:
the value and the slope at each trial. See `LineSearch` for how to drive a rule, and `line_search`
to run one on its own.
"""

from lbfgs_xp.line_search.armijo import Armijo
from lbfgs_xp.line_search.base import ACCEPTED, SEARCHING, STUCK, LineSearch, Search
from lbfgs_xp.line_search.bisection import Bisection
from lbfgs_xp.line_search.fixed import Fixed
from lbfgs_xp.line_search.hager_zhang import HagerZhang
from lbfgs_xp.line_search.more_thuente import MoreThuente
from lbfgs_xp.line_search.run import NAMES, LineSearchResult, line_search, rule_of
from lbfgs_xp.line_search.strong_wolfe import StrongWolfe

__all__ = [
    "ACCEPTED",
    "NAMES",
    "SEARCHING",
    "STUCK",
    "Armijo",
    "Bisection",
    "Fixed",
    "HagerZhang",
    "LineSearch",
    "LineSearchResult",
    "MoreThuente",
    "Search",
    "StrongWolfe",
    "line_search",
    "rule_of",
]
