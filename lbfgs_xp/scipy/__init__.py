"""Entry points for users of SciPy, with SciPy's arguments, defaults and results.

`lbfgs`, `bfgs`, `ssbfgs`, `ssbroyden`, `newton`, `newton_cg` and `projected_gradient` are methods
for `scipy.optimize.minimize`.
`minimize`, `least_squares` and `curve_fit` take the arguments of SciPy's functions of these names.
All of them work on NumPy arrays in float64; for other libraries use `lx.minimize` and the fits.
"""

from lbfgs_xp.scipy.fits import curve_fit, least_squares
from lbfgs_xp.scipy.methods import (
    bfgs,
    lbfgs,
    minimize,
    newton,
    newton_cg,
    projected_gradient,
    ssbfgs,
    ssbroyden,
)

__all__ = [
    "bfgs", "curve_fit", "lbfgs", "least_squares", "minimize", "newton", "newton_cg",
    "projected_gradient", "ssbfgs", "ssbroyden",
]
