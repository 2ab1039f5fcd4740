"""Checks of arguments: each returns the value in the form used internally, or raises a clear error.

A number may also be a 0-d array of any library, but not a bool; an integer may be a whole float. A
bad number raises a ValueError, whatever its type; any other bad argument raises a TypeError.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

# Arrays with more elements are shown by their shape.
_SHOWN = 8

P = ParamSpec("P")
R = TypeVar("R")


def shown(value: Any) -> str:
    """`value` as text for a message; a large array is shown by its shape only."""
    shape = getattr(value, "shape", None)
    if is_traced(value):
        return "a traced number, whose value only the compiled program knows"
    if isinstance(shape, tuple) and math.prod(shape) > _SHOWN:
        return f"an array of shape {tuple(shape)}"
    return repr(value)


def is_traced(value: Any, kind: str | tuple[str, ...] = ("integral", "real floating")) -> bool:
    """Whether a number of this kind has no value, because JAX traces the function."""
    return (
        hasattr(value, "__array_namespace__") and value.shape == () and real(value) is None
        and value.__array_namespace__().isdtype(value.dtype, kind)
    )


def number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf,
    most: float = math.inf, below: float = math.inf,
) -> float:
    """A finite number, at least `least`, above `above`, at most `most` and below `below`."""
    found = real(value)
    if found is None or not (
        math.isfinite(found) and least <= found <= most and above < found < below
    ):
        raise ValueError(f"{name} is {shown(value)}; wanted {_range(least, above, most, below)}")
    return found


def tolerance(name: str, value: Any) -> float:
    """A number of at least 0, possibly infinite."""
    return _not_negative(name, value, "a number")


def seconds(name: str, value: Any) -> float:
    """A time in seconds of at least 0, possibly infinite."""
    return _not_negative(name, value, "a number of seconds")


def count(name: str, value: Any, least: int) -> int:
    """An integer of at least `least`."""
    found = integer(value)
    if found is None and (whole := real(value)) is not None and whole.is_integer():
        found = int(whole)
    if found is None or found < least:
        raise ValueError(f"{name} is {shown(value)}; wanted an integer of at least {least}")
    return found


def budget(name: str, value: Any, least: int) -> int | None:
    """An integer of at least `least`; None or infinity means no limit and gives None."""
    return None if real(value) == math.inf else optional(count)(name, value, least)


def path(name: str, value: Any) -> Path:
    """The absolute path of a file; of a symbolic link, that of the file to which it points."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError(f"{name} is {value!r}; wanted the path of a file")
    found = Path(os.fspath(value)).absolute()
    if found.is_dir():
        raise IsADirectoryError(f"{name} is {str(value)!r}, a folder; wanted the path of a file")
    return Path(os.path.realpath(found)) if found.is_symlink() else found


def flag(name: str, value: Any) -> bool:
    """True or False, also as a 0-d array."""
    if not isinstance(value, bool):
        if getattr(value, "shape", None) != () or "bool" not in str(getattr(value, "dtype", "")):
            raise TypeError(f"{name} is {shown(value)}; wanted True or False")
        value = bool(value)
    return value


def flags(**values: Any) -> list[bool]:
    """Several flags, by their names."""
    return [flag(name, value) for name, value in values.items()]


def noise(value: Any) -> tuple[float, float | None] | None:
    """`noise` as the errors of the value and of the gradient; the latter None if it is to be
    measured."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) and getattr(value, "ndim", 0) != 1:
        return number("noise", value, above=0.0), None
    if len(value) != 2:
        raise ValueError(
            f"noise holds {len(value)} numbers; wanted one, of the value, or two, of the value and "
            "of each component of the gradient"
        )
    return number("noise[0]", value[0], above=0.0), number("noise[1]", value[1], least=0.0)


def callback(value: Any) -> Callable[..., Any] | None:
    """A function, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"callback is {shown(value)}; wanted a function or None")
    return value


def exceptions(name: str, value: Any, batched: bool) -> tuple[type[Exception], ...]:
    """Classes of exceptions, as a tuple; not for a batch, in which one would concern all rows."""
    found = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in found):
        raise TypeError(
            f"{name} is {value!r}; wanted a class of exceptions, such as ValueError, or a tuple of "
            "them"
        )
    if found and batched:
        raise ValueError(
            f"{name} was passed with batched=True; wanted a function that returns nan for the rows "
            "that fail"
        )
    return found


def bounds(value: Any, like: str = "x0") -> tuple[Any, Any]:
    """The pair (lower, upper), also from an object with `lb` and `ub`, such as SciPy's `Bounds`.

    like : what errors call the start.
    """
    if hasattr(value, "lb") and hasattr(value, "ub"):
        return value.lb, value.ub
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        many = isinstance(value, (tuple, list)) and len(value) > 2
        what = f"a {type(value).__name__} of {len(value)}" if many else shown(value)
        raise TypeError(
            f"bounds is {what}; wanted the pair (lower, upper), each None, a number or an array "
            f"like {like} (not one pair per variable, as in SciPy)"
        )
    # SciPy's `minimize` takes a list of pairs, one per variable.
    if isinstance(value, list) and all(
        isinstance(side, (tuple, list)) and len(side) == 2 for side in value
    ):
        raise TypeError(
            f"bounds is {value!r}, a list of two pairs, possibly one for each of two variables; "
            "wanted the tuple (lower, upper)"
        )
    return value[0], value[1]


def optional(check: Callable[..., Any]) -> Callable[..., Any]:
    """`check`, except that None passes."""

    def check_given(name: str, value: Any, *limits: Any, **more: Any) -> Any:
        try:
            return None if value is None else check(name, value, *limits, **more)
        except ValueError as error:
            raise ValueError(f"{error}, or None") from None

    return check_given


class OwnSignature:
    """The signature of `__init__`, which a `__new__` that looks at the settings would hide."""

    def __get__(self, instance: Any, cls: type) -> inspect.Signature:
        _, *own = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(own)


class Settings:
    """A frozen dataclass of settings whose repr shows those that differ from their defaults.

    foreign : names of settings in other libraries -> the names here with that meaning, of which
        the class has some; each may be followed by a comma and an explanation. The error for such a
        name says what to write instead.
    """

    foreign: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    __signature__ = OwnSignature()

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **settings: Any) -> Self:
            # Signatures are slow to make, and most names are in none of these.
            for name in settings.keys() & cls.foreign.keys():
                own = inspect.signature(cls.__init__).parameters
                for ours in () if name in own else cls.foreign[name]:
                    if ours.split(",")[0] in own:
                        raise TypeError(f"{name} was passed to {cls.__name__}; wanted {ours}")
            return super().__new__(cls)

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        # In the class's own dict, so that the dataclass decorator does not generate another one.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        texts = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, default = map(self._as_given, (getattr(self, field.name), field.default))
            if field.repr and not (type(value) is type(default) and value == default):
                texts.append(f"{field.name}={shown(value)}")
        return f"{type(self).__name__}({', '.join(texts)})"

    @staticmethod
    def _as_given(value: Any) -> Any:
        """A setting as the user would write it."""
        return value


def setting(owner: Any, name: str, check: Callable[..., Any], **limits: Any) -> None:
    """Replace a field of a frozen dataclass with what its check returns."""
    object.__setattr__(owner, name, check(name, getattr(owner, name), **limits))


def require(condition: bool, wanted: str, **passed: object) -> None:
    """Raise a ValueError that says what was passed and what is wanted, unless `condition` holds."""
    if not condition:
        values = " and ".join(f"{name} is {value!r}" for name, value in passed.items())
        raise ValueError(f"{values}; wanted {wanted}")


# What is wanted -> keywords of other libraries with that meaning.
_FOREIGN = {
    "maxiter": ("max_iter", "maxit", "n_iter", "steps", "iterations"),
    "maxfun": ("max_eval", "maxfev", "max_nfev"),
    "progress=True": ("disp", "verbose"),
    "batched=True": ("batch", "vmap"),
    "jac": ("value_and_grad", "value_and_gradient", "grad"),
    "each option as a separate argument: maxiter=, gtol=, ...": ("options",),
}
# Keywords of other functions that are settings of a method here.
OF_THE_METHOD = dict.fromkeys(
    ("lr", "learning_rate", "memory_size", "history_size", "maxcor", "line_search",
     "line_search_fn"),
    "a setting of the method, such as lx.LBFGS(memory_size=20) or lx.Adam(1e-2)",
)
# What to say of a keyword without a counterpart, before the reason.
NO_SUCH = "there is no such argument"


def reject_foreign_keywords(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that keywords of other libraries raise an error that says what to use.

    Common keywords are refused if the function has the argument of the same meaning.

    names : further keywords, each with what is wanted instead, or with `NO_SUCH` and the reason.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function).parameters
        known = {
            name: wanted for wanted, foreign in _FOREIGN.items() for name in foreign
            if wanted.split("=")[0].split()[-1] in own
        }
        known |= names

        @functools.wraps(function)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            for name in keywords.keys() - own.keys():
                if name in known:
                    instead = known[name]
                    if not instead.startswith(NO_SUCH):
                        instead = f"wanted {instead}"
                    raise TypeError(f"{name} was passed to {function.__name__}; {instead}")
            return function(*args, **keywords)

        return call

    return decorate


def real(value: Any) -> float | None:
    """One real number of any library as a float; None for anything else."""
    if type(value) is float:
        return value
    if not hasattr(value, "__float__") or _is_no_number(value):
        return None
    try:
        return float(value)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return None


def integer(value: Any) -> int | None:
    """One integer of any library as an int; None for anything else, including whole floats."""
    if not hasattr(value, "__index__") or _is_no_number(value):
        return None
    try:
        return int(value.__index__())
    except (RuntimeError, TypeError, ValueError):
        return None


def _is_no_number(value: Any) -> bool:
    """Whether `value` is a bool, complex, or an array with axes, even with a single element."""
    if isinstance(value, (int, float)):
        return isinstance(value, bool)
    dtype = str(getattr(value, "dtype", ""))
    return getattr(value, "shape", ()) != () or "bool" in dtype or "complex" in dtype


def _not_negative(name: str, value: Any, kind: str) -> float:
    found = real(value)
    if found is None or not found >= 0.0:
        raise ValueError(f"{name} is {shown(value)}; wanted {kind} of at least 0")
    return found


def _range(least: float, above: float, most: float, below: float) -> str:
    if math.isfinite(least) and math.isfinite(most):
        return f"a number from {least:g} to {most:g}"
    sides = []
    if max(least, above) > -math.inf:
        sides.append(f"above {above:g}" if above >= least else f"of at least {least:g}")
    if min(most, below) < math.inf:
        sides.append(f"below {below:g}" if below <= most else f"at most {most:g}")
    kind = "a number" if len(sides) == 2 else "a finite number"
    return " ".join([kind, " and ".join(sides)]).strip()
