"""A stand-in for CuPy, backed by NumPy, that refuses what CuPy refuses.

It is made from a list of the names and parameters of the real wheel (`cupy_api.json`; see
`read_cupy_api.py`): what CuPy lacks is missing here as well, and a keyword that CuPy does not take
raises a TypeError. As in CuPy, nothing is converted to NumPy implicitly, results without axes stay
arrays, new arrays are made on the current device, and an operation fails if an array is on another
one. In one respect it is stricter: NumPy's functions refuse its arrays, whereas CuPy runs its own
function of the same name. `counts` holds the number of transfers from and to the "device" and of
operations.
"""

import sys as _sys

from cupy import _standin
from cupy._standin import API, DEVICES, counts  # noqa: F401

__version__ = API["version"]
_standin.build(_sys.modules[__name__])

from cupy._kernel import ElementwiseKernel  # noqa: E402, F401
