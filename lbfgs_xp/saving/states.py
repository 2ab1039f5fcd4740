"""`save` and `load`: states and parameters in a file of one's own."""

from __future__ import annotations

from typing import Any

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Backend, library_of
from lbfgs_xp.arrays.tree import backends_of, flatten_parameters
from lbfgs_xp.saving import file
from lbfgs_xp.saving.encoding import Decoder, Encoder
from lbfgs_xp.saving.placing import as_own


def save(path: Any, state: Any) -> None:
    """Save states and arrays in a file, to continue in another process, library or device.

    The file is complete and on the disk before it gets its name, so that a crash leaves the old
    file or the new one. It holds no pickles: an npz file with the arrays and a JSON header.

    Parameters
    ----------
    path : str or path
    state : `res.state`, the state of an optimizer, or nested tuples, lists and dicts of them
        Arrays (of one library), numbers, strings and None may be among them.

    Raises
    ------
    TypeError
        If there is anything else; the message says where.
    OSError
        If the file cannot be written. What was there before is unchanged.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> opt = lx.Adam(0.1)
    >>> params = {"w": np.ones(3)}
    >>> state = opt.init(params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "step.npz")
    ...     lx.save(path, {"params": params, "state": state})
    ...     saved = lx.load(path, like=params)
    >>> saved["state"].step, saved["params"]["w"]
    (0, array([1., 1., 1.]))
    """
    encoder = Encoder()
    data = encoder(state)
    libraries = {library_of(array) for array in encoder.arrays} - {"numpy"} or {"numpy"}
    if len(libraries) > 1:
        raise TypeError(f"state mixes arrays of {', '.join(sorted(libraries))}; wanted one library")
    (library,) = libraries
    file.write(checks.path("path", path), {"library": library, "state": data}, encoder.arrays)


def load(path: Any, like: Any) -> Any:
    """What `save` has written, with arrays of the library and on the device of `like`.

    Parameters
    ----------
    path : str or path
    like : parameters with the structure, shapes and dtypes of those that the states belong to
        Such as x0. Their values do not matter.

    Returns
    -------
    what was saved
        A state of `lx.minimize` goes on exactly if the run has the same settings; functions among
        them, such as a schedule, are known by their names.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is damaged or does not come from `save`, a state belongs to parameters of other
        shapes, or an array is of bfloat16, which the library of `like` lacks.

    Examples
    --------
    Twenty iterations with NumPy, and the rest with PyTorch:

    >>> import os, tempfile
    >>> import numpy as np
    >>> import torch
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return ((1.0 - x[:-1]) ** 2).sum() + 100.0 * ((x[1:] - x[:-1] ** 2) ** 2).sum()
    >>> res = lx.minimize(fun, np.zeros(4), jac="3-point", maxiter=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.npz")
    ...     lx.save(path, (res.x, res.state))
    ...     x, state = lx.load(path, like=torch.zeros(4, dtype=torch.float64))
    >>> res = lx.minimize(fun, x, state=state)
    >>> res.success, bool(abs(res.x - 1.0).max() < 1e-5)
    (True, True)
    """
    where = checks.path("path", path)
    try:
        header, arrays = file.read(where)
    except file.Damaged as error:
        raise ValueError(f"{error}; wanted a file that lx.save has written") from None
    if "state" not in header:
        raise ValueError(
            f"{where} is the checkpoint of a run; wanted a file that lx.save has written"
        )
    leaves, structure = flatten_parameters(like)
    backend = backends_of(leaves, structure, "like")[0]
    found = Decoder(arrays, backend, header["library"], like)(header["state"])
    return found if header["library"] == backend.name else _outside_states(backend, found)


def _outside_states(backend: Backend, value: Any) -> Any:
    """The value with arrays of this backend, except in states, which are as they should be."""
    if isinstance(value, dict):
        return {key: _outside_states(backend, item) for key, item in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(_outside_states(backend, item) for item in value)
    return as_own(backend, value)
