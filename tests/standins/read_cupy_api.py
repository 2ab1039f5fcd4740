"""The names and parameters of CuPy, read from CuPy itself: the list that the stand-in is made from.

`python read_cupy_api.py` compares `cupy_api.json` with the installed CuPy and fails if they differ;
with `--write` it writes the list. Importing CuPy needs no GPU. `make check-cupy` installs the
pinned version into a separate environment and runs this script there.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

LIST = Path(__file__).parent / "cupy_api.json"
MODULES = {"cupy": "cupy", "cupy.linalg": "cupy.linalg", "cupy.fft": "cupy.fft"}
CLASSES = {
    "cupy.ndarray": "cupy:ndarray",
    "cupy.cuda.Device": "cupy.cuda:Device",
    "cupy.ElementwiseKernel": "cupy:ElementwiseKernel",
    "cupy.ndarray.flags": "cupy._core.flags:Flags",
}
# Special methods and attributes that do not show what an object can do.
_ALIKE = set(dir(object)) - {"__hash__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
_ALIKE |= {"__dict__", "__firstlineno__", "__module__", "__name__", "__pyx_vtable__",
           "__setstate__", "__slots__", "__static_attributes__", "__weakref__"}

POSITIONAL, EITHER, VARIABLE, KEYWORD, KEYWORDS = range(5)    # as in inspect

Parameters = list[list[Any]]


def read() -> dict[str, Any]:
    """The list: for each module and class, its names with their parameters.

    Parameters are [name, kind, whether it may be omitted]; None for what is not a function, or
    does not document its parameters.
    """
    found: dict[str, Any] = {"version": importlib.import_module("cupy").__version__}
    for title, name in MODULES.items():
        found[title] = _names(importlib.import_module(name), special=False)
    for title, place in CLASSES.items():
        module, name = place.split(":")
        found[title] = _names(getattr(importlib.import_module(module), name), special=True)
    return found


def _names(owner: Any, special: bool) -> dict[str, Parameters | None]:
    found = {}
    for name in sorted(dir(owner)):
        is_special = name.startswith("__") and name.endswith("__")
        if name.startswith("_") and not (is_special and special and name not in _ALIKE):
            continue
        value = getattr(owner, name, None)
        if inspect.ismodule(value) or (name == "__hash__" and value is None):
            continue
        found[name] = _parameters(value)
    return found


def _parameters(value: Any) -> Parameters | None:
    if not callable(value) or (isinstance(value, type) and not _is_own(value)):
        return None
    if not isinstance(value, type):
        try:
            found = inspect.signature(value).parameters.values()
            return [[p.name, int(p.kind), p.default is not p.empty] for p in found]
        except (TypeError, ValueError):
            pass
    # Compiled functions and ufuncs give them in the first line of their docstring. (The name there
    # may differ: that of the ufunc `abs` is "absolute".)
    text = (getattr(value, "__doc__", None) or "").strip().partition("\n\n")[0]
    match = re.match(r"[\w.]+\((.*?)\)(?:\s*->.*)?$", " ".join(text.split()))
    return parsed(match[1]) if match else None


def _is_own(value: type) -> bool:
    """Whether a class is CuPy's own, not NumPy's."""
    return value.__module__.partition(".")[0] == "cupy"


def parsed(text: str) -> Parameters:
    """The parameters written in a text such as "self, ndarray b, /, out=None, *, dtype=None"."""
    found: Parameters = []
    kind = EITHER
    text = re.sub(r"\[,([^]]*)\]", _optional, text.replace("\\", ""))
    for part in _split(text):
        if part == "/":
            found = [[name, POSITIONAL, optional] for name, _, optional in found]
        elif part == "*":
            kind = KEYWORD
        elif part:
            name = part.partition("=")[0].partition(":")[0].split()[-1]
            if name.startswith("**"):
                found.append([name[2:], KEYWORDS, False])
            elif name.startswith("*"):
                found.append([name[1:], VARIABLE, False])
                kind = KEYWORD
            else:
                found.append([name, kind, "=" in part])
    return found


def _optional(brackets: re.Match[str]) -> str:
    """Parameters written as "[, out1, out2]", as in NumPy's docstrings."""
    return "".join(f", {part}" + "=None" * ("=" not in part) for part in _split(brackets[1]))


def _split(text: str) -> list[str]:
    """The parts between commas, except for commas within brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def written(api: dict[str, Any]) -> str:
    """The list as text, one name per line."""
    sections = [f'  "version": {json.dumps(api["version"])}']
    for title in (*MODULES, *CLASSES):
        lines = [f"    {json.dumps(n)}: {json.dumps(p)}" for n, p in api[title].items()]
        sections.append(f'  "{title}": {{\n' + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def main() -> int:
    now, before = written(read()), LIST.read_text() if LIST.exists() else ""
    if "--write" in sys.argv[1:]:
        LIST.write_text(now)
        return 0
    for line in difflib.unified_diff(
        before.splitlines(), now.splitlines(), LIST.name, "the wheel", n=0, lineterm=""
    ):
        print(line)
    print(f"{LIST.name}: {'as in' if now == before else 'differs from'} the wheel")
    return 0 if now == before else 1


if __name__ == "__main__":
    # This folder has a package of the same name, the stand-in.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    sys.exit(main())
