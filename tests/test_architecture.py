"""Who may import whom, checked from the source.

To add a module, add a line to `OURS`, and one to `LIBRARIES` where it needs more than the
standard library.
"""

from __future__ import annotations

import ast
import fnmatch
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lbfgs_xp"

# Module -> the modules of ours that it may import. Names are relative to lbfgs_xp, "*" matches
# anything, "" is the face itself. The first pattern that matches a module counts.
OURS: dict[str, list[str]] = {
    "": ["*"],  # __init__.py
    "__main__": ["*"],
    "demo": ["*"],
    "backend": [],
    "scalars": [],
    "checks": [],
    "phases": ["checks"],
    "schedules": ["checks"],
    "line_search": ["line_search.*", "scalars"],
    "line_search.*": ["checks", "line_search.*", "scalars"],
    "space": ["backend", "scalars"],
    "tree": ["backend"],
    "result": ["backend", "tree"],
    "stopping": ["result", "scalars"],
    "progress": ["result", "stopping"],
    "projections": ["backend", "checks", "space"],
    "rows": ["backend", "space"],
    "auxiliary": ["backend", "space", "tree"],
    "objective": ["backend", "tree"],
    "problems": ["backend", "checks", "space"],
    "solvers.lbfgs.curvature": ["backend", "scalars", "space"],
    "linear_algebra": ["backend", "space"],
    "levenberg_marquardt": ["backend", "linear_algebra", "result", "robust", "space"],
    "solvers": ["solvers.*"],
    "solvers.*": [
        "backend",
        "checks",
        "line_search",
        "line_search.*",
        "phases",
        "projections",
        "result",
        "scalars",
        "schedules",
        "solvers.*",
        "space",
    ],
    "first_order": ["first_order.*"],
    "first_order.tape": [],
    "first_order.kernel": ["first_order.tape"],
    "first_order.blocks": ["first_order.tape"],
    "first_order.sgd": [
        "backend",
        "first_order.*",
        "line_search",
        "solvers.steepest_descent",
        "tree",
    ],
    "first_order.base": ["backend", "checks", "first_order.*", "phases", "schedules", "tree"],
    "first_order.*": ["backend", "first_order.*", "scalars", "schedules", "space", "tree"],
    "robust": ["backend"],
    "residuals": ["backend", "tree"],
    "least_squares": [
        "backend",
        "checks",
        "levenberg_marquardt",
        "projections",
        "residuals",
        "result",
        "rows",
        "robust",
        "space",
        "tree",
    ],
    "curve_fit": [
        "backend",
        "checks",
        "least_squares",
        "levenberg_marquardt",
        "linear_algebra",
        "minimize",
        "residuals",
        "result",
        "robust",
        "space",
        "tree",
    ],
    "loss": ["backend", "tree"],
    "batches": ["backend", "tree"],
    "methods": [
        "checks",
        "first_order",
        "line_search",
        "phases",
        "projections",
        "result",
        "solvers.*",
        "stopping",
        "tree",
    ],
    "agreement": ["backend", "space"],
    "loop": [
        "agreement",
        "auxiliary",
        "backend",
        "methods",
        "objective",
        "phases",
        "result",
        "rows",
        "scalars",
        "solvers.contract",
        "space",
        "stopping",
    ],
    "minimize": [
        "backend",
        "checks",
        "loop",
        "methods",
        "objective",
        "phases",
        "progress",
        "result",
        "rows",
        "space",
        "tree",
    ],
    "constraints": ["backend", "checks", "minimize", "result", "scalars", "space", "tree"],
    "training": [
        "backend",
        "batches",
        "checks",
        "first_order",
        "loss",
        "methods",
        "minimize",
        "progress",
        "result",
        "space",
        "tree",
    ],
    "torch": ["torch.*"],
    "torch.*": ["*"],
    "scipy": ["*"],
}
# Modules that only these may import.
ONLY_FOR = {
    "constraints": ["", "__main__"],
    "curve_fit": ["", "__main__"],
    "loop": ["minimize"],
    "minimize": ["", "__main__", "constraints", "curve_fit", "training", "torch", "scipy"],
    "training": ["", "__main__", "torch"],
    "__main__": [],
    "demo": ["__main__"],
    "torch": [],
    "scipy": [],
}

# Module -> what it may import from outside, beside the standard library. Anything imported here
# is imported by `import lbfgs_xp`, so it is a hard dependency.
LIBRARIES: dict[str, list[str]] = {
    "__main__": ["numpy"],
    "backend": ["array_api_compat", "array_api_extra", "numpy"],
    "batches": ["numpy"],
    "constraints": ["numpy"],
    "curve_fit": ["array_api_compat", "numpy"],
    "demo": ["numpy"],
    "first_order.base": ["numpy"],
    "first_order.blocks": ["numpy"],
    "least_squares": ["numpy"],
    "linear_algebra": ["numpy"],
    "loss": ["numpy"],
    "minimize": ["numpy"],
    "objective": ["numpy"],
    "problems": ["array_api_compat", "numpy"],
    "projections": ["array_api_compat", "numpy"],
    "residuals": ["numpy"],
    "result": ["numpy"],
    "scalars": ["array_api_compat", "numpy"],
    "schedules": [],
    "solvers.*": ["array_api_compat", "numpy"],
    "space": ["array_api_compat", "numpy"],
    "tree": ["numpy", "optree"],
    "training": ["numpy"],
    "torch.*": ["numpy", "torch"],  # a face: whoever imports it has torch
    "scipy": ["numpy"],
}
# What a module may import inside a function, when somebody asks for it.
LATE: dict[str, list[str]] = {
    "__main__": ["*"],
    "backend": ["cupy", "dask", "jax", "torch"],
    "demo": ["matplotlib", "rich"],
    "progress": ["rich"],
    "schedules": ["matplotlib"],  # to draw one
    "scipy": ["scipy"],
}
# schedules know numbers alone
STANDARD: dict[str, list[str]] = {
    "schedules": ["__future__", "collections", "dataclasses", "math", "typing"],
}
ARRAY_LIBRARIES = {"cupy", "dask", "jax", "torch"}
MAY_NAME_ARRAY_LIBRARIES = ["backend", "__main__", "torch.*"]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def lookup(table: dict[str, list[str]], module: str) -> list[str] | None:
    if module in table:
        return table[module]
    return next((v for k, v in table.items() if k and fnmatch.fnmatchcase(module, k)), None)


def allowed(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def imports(module: str) -> Iterator[tuple[str, int, bool]]:
    """(absolute dotted name, line, whether inside a function) for all but type-checking imports."""
    path = MODULES[module]
    package = ["lbfgs_xp", *(module.split(".") if module else [])]
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node: ast.AST, late: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, late)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, late
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield f"{stem}.{alias.name}", node.lineno, late
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late)

    yield from visit(ast.parse(path.read_text()), False)


def split(dotted: str) -> tuple[str | None, str | None]:
    """(our module, None) or (None, library): `lbfgs_xp.space.fixed_sum` -> ("space", None)."""
    head, *rest = dotted.split(".")
    if head != "lbfgs_xp":
        return None, head
    while rest and ".".join(rest) not in MODULES:
        rest.pop()
    return ".".join(rest), None


def test_every_module_is_in_the_table() -> None:
    unknown = [module for module in MODULES if lookup(OURS, module) is None]
    assert not unknown, (
        f"{unknown}: not in the table OURS of {Path(__file__).name}; "
        "add a line that says what each may import"
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_of_ours(module: str) -> None:
    patterns = lookup(OURS, module) or []
    for dotted, line, _ in imports(module):
        ours, _library = split(dotted)
        if ours is None or ours == module:
            continue
        target = ours or "the face"
        where = f"{MODULES[module].name}:{line}: {module or 'the face'} imports {target}"
        assert allowed(ours, patterns), f"{where}; it may import {patterns}"
        if ours in ONLY_FOR:
            assert module in ONLY_FOR[ours], f"{where}; only {ONLY_FOR[ours]} may"


@pytest.mark.parametrize("module", MODULES)
def test_imports_from_outside(module: str) -> None:
    always = lookup(LIBRARIES, module) or []
    late_too = always + (lookup(LATE, module) or [])
    standard = lookup(STANDARD, module)
    for dotted, line, late in imports(module):
        _, library = split(dotted)
        if library is None:
            continue
        where = f"{MODULES[module].name}:{line}: {module or 'the face'} imports {library}"
        if library in sys.stdlib_module_names:
            assert standard is None or library in standard, f"{where}; it may import {standard}"
        elif late:
            assert allowed(library, late_too), f"{where}; in functions it may import {late_too}"
        else:
            assert allowed(library, always), f"{where}; it may import {always}"


@pytest.mark.parametrize("module", MODULES)
def test_array_libraries_are_named_in_one_file(module: str) -> None:
    """No `torch.`, no `if name == "torch"` outside backend.py."""
    if allowed(module, MAY_NAME_ARRAY_LIBRARIES):
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        named = (isinstance(node, ast.Name) and node.id in ARRAY_LIBRARIES) or (
            isinstance(node, ast.Constant) and node.value in ARRAY_LIBRARIES
        )
        assert not named, (
            f"{MODULES[module].name}:{node.lineno} names an array library; "
            "what differs between libraries belongs in backend.py"
        )


def test_public_names_are_documented() -> None:
    import lbfgs_xp

    for name in lbfgs_xp.__all__:
        value = getattr(lbfgs_xp, name)  # a name that does not exist fails here
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
            continue
        text = inspect.getdoc(value) or ""
        written_by_dataclass = text.startswith(f"{name}(")
        assert text and not written_by_dataclass, f"lbfgs_xp.{name} has no docstring"
