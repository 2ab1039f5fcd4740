"""A stand-in for CuPy, backed by NumPy, that refuses what CuPy refuses.

It is made from a list of the names and parameters of the real wheel (`cupy_api.json`; see
`read_cupy_api.py`): what CuPy does not have is missing here too, and a keyword that CuPy does not take
is a TypeError. As there, nothing is converted to NumPy implicitly, arrays of several devices do not
mix, and an operation fails if an array does not lie on the current device. `counts` says how often
numbers were read from the "device", how often arrays were sent to it, and how many operations were
launched.
"""

import sys

from cupy import _standin
from cupy._standin import DEVICES, counts  # noqa: F401

__version__ = "14.2.0"
_standin.build(sys.modules[__name__])

from cupy._kernel import ElementwiseKernel  # noqa: E402, F401
