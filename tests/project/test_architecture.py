"""Which module may import which, checked from the source: a table of wings, and a few rules.

A module in a wing needs no entry here. A new wing, or a new module in the root, needs one in
`WINGS`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lbfgs_xp"

# Wing, or module in the root -> what it may import; the lowest layers come first.
WINGS: dict[str, str] = {
    "checks": "",
    "typing": "",
    "drawing": "",
    "elementary": "",
    "schedules": "checks drawing elementary",
    "arrays": "checks elementary",
    "saving": "arrays checks",
    "distributed": "arrays checks",
    "result": "arrays saving",
    "projections": "arrays checks",
    "problems": "arrays checks",
    "plot": "arrays checks drawing schedules",
    "line_search": "arrays checks typing",
    "solvers": "arrays checks line_search projections schedules typing",
    "first_order": "arrays checks elementary line_search projections saving schedules solvers "
    "typing",
    "run": "arrays checks distributed first_order line_search projections result saving solvers",
    "minimize": "arrays checks distributed result run saving solvers typing",
    "gradient_check": "arrays checks run typing",
    "diagnosis": "arrays checks gradient_check run typing",
    "constraints": "arrays checks minimize result run typing",
    "fits": "arrays checks drawing minimize projections result run saving typing",
    "training": "arrays checks first_order minimize result run saving solvers typing",
    "torch": "arrays checks distributed first_order line_search minimize projections result run "
    "saving solvers typing",
    "scipy": "arrays checks fits line_search minimize result solvers typing",
    "demo": "arrays problems __init__",
    "__main__": "arrays demo __init__",
    "__init__": "arrays constraints diagnosis distributed first_order fits gradient_check "
    "line_search minimize plot problems projections result run saving schedules solvers training",
}
# Line searches know only scalars, and on which device these are.
ONLY = {"line_search": {"arrays": ["arrays.current", "arrays.scalars"]}}

# The dependencies of the package. The lowest modules and the line searches do without them.
HARD = {"numpy", "array_api_compat", "array_api_extra", "optree"}
WITHOUT = {"checks", "drawing", "elementary", "typing", "schedules", "line_search"}
# Imported only inside functions, when needed.
LATE = {
    "arrays.inventory": {"dask"},
    "drawing": {"matplotlib"},
    "run.progress": {"IPython", "rich"},
    "scipy.evaluate": {"scipy"},
    "scipy.fits": {"scipy"},
    "scipy.methods": {"scipy"},
    "demo": {"matplotlib", "rich"},
    "__main__": {"rich"},
}
ARRAY_LIBRARIES = {"cupy", "dask", "jax", "torch", "array_api_strict"}
# A module for one library -> the library; it is imported only once the user has arrays of it.
KNOWS = {
    "arrays.torch": {"torch"},
    "arrays.torch_implicit": {"torch"},
    "arrays.torch_cuda": {"torch"},
    "arrays.torch_kernels": {"torch"},
    "arrays.jax": {"jax"},
    "arrays.jax_implicit": {"jax"},
    "arrays.jax_mesh": {"jax"},
    "arrays.cupy": {"cupy"},
    "arrays.strict": {"array_api_strict"},
    "distributed.mpi_processes": {"mpi4py"},
    "distributed.torch_processes": {"torch"},
}
# Modules with tables of library names.
NAMES = {"arrays.backend", "arrays.inventory", "distributed", "__main__"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def wing_of(module: str) -> str:
    return module.split(".")[0]


def imports(module: str) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, whether inside a function) for all but type-checking imports."""

    def visit(node: ast.AST, late: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, late
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, late
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late)

    yield from visit(ast.parse(MODULES[module].read_text()), False)


def ours(dotted: str) -> str | None:
    """The module of ours that holds a name: `lbfgs_xp.arrays.space.Space` -> arrays.space."""
    head, *rest = dotted.split(".")
    if head != "lbfgs_xp":
        return None
    while rest and ".".join(rest) not in MODULES:
        rest.pop()
    return ".".join(rest) or "__init__"


def test_every_module_is_in_a_wing() -> None:
    unknown = {wing_of(module) for module in MODULES} - WINGS.keys()
    assert not unknown, f"{unknown}: not in the table WINGS of {Path(__file__).name}"


def test_arrows_run_one_way() -> None:
    seen: list[str] = []
    for wing, allowed in WINGS.items():
        if wing not in ("demo", "__main__"):
            assert set(allowed.split()) <= set(seen), f"{wing} imports what comes after it"
        seen.append(wing)


@pytest.mark.parametrize("module", MODULES)
def test_imports_of_ours(module: str) -> None:
    wing = wing_of(module)
    allowed = {wing, *WINGS[wing].split()}
    for dotted, line, _ in imports(module):
        target = ours(dotted)
        if target is None:
            continue
        where = f"{MODULES[module].name}:{line}: {module} imports {target}"
        assert wing_of(target) in allowed, f"{where}; it may import {sorted(allowed)}"
        only = ONLY.get(wing, {}).get(wing_of(target))
        assert only is None or target in only, f"{where}; of that wing it may import {only}"


@pytest.mark.parametrize("module", MODULES)
def test_functions_do_not_stand_for_modules(module: str) -> None:
    """`from lbfgs_xp import line_search` is the module or the function, whichever came last."""
    both = {f"lbfgs_xp.{name}" for name in MODULES} & _public_functions()
    for dotted, line, _ in imports(module):
        assert dotted not in both, (
            f"{MODULES[module].name}:{line}: import from the module {dotted} itself"
        )


def _public_functions() -> set[str]:
    import lbfgs_xp

    return {
        f"lbfgs_xp.{name}" for name in lbfgs_xp.__all__
        if not inspect.ismodule(getattr(lbfgs_xp, name))
    }


@pytest.mark.parametrize("wing", WINGS)
def test_every_permission_is_used(wing: str) -> None:
    used = {
        wing_of(target)
        for module in MODULES if wing_of(module) == wing
        for dotted, _, _ in imports(module) if (target := ours(dotted)) is not None
    }
    assert set(WINGS[wing].split()) <= used


@pytest.mark.parametrize("module", MODULES)
def test_imports_from_outside(module: str) -> None:
    wing = wing_of(module)
    hard = set() if wing in WITHOUT else HARD
    hard = hard | KNOWS.get(module, set()) | ({"torch"} if wing == "torch" else set())
    for dotted, line, late in imports(module):
        library = dotted.split(".")[0]
        if library == "lbfgs_xp" or library in sys.stdlib_module_names:
            continue
        allowed = hard | (LATE.get(module, set()) if late else set())
        where = f"{MODULES[module].name}:{line}: {module} imports {library}"
        assert library in allowed, f"{where}; it may import {sorted(allowed)}"


@pytest.mark.parametrize("module", MODULES)
def test_array_libraries_are_named_in_their_own_files(module: str) -> None:
    """There is no `if name == "torch"` outside arrays/torch.py."""
    if module in NAMES or wing_of(module) == "torch":
        return
    others = ARRAY_LIBRARIES - KNOWS.get(module, set())
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        named = (isinstance(node, ast.Name) and node.id in others) or (
            isinstance(node, ast.Constant) and node.value in others
        )
        assert not named, (
            f"{MODULES[module].name}:{getattr(node, 'lineno', 0)} names an array library; what a "
            "library does in its own way belongs in the file of its name in arrays/"
        )


def test_public_names_are_documented() -> None:
    import lbfgs_xp

    for name in lbfgs_xp.__all__:
        value = getattr(lbfgs_xp, name)  # fails if the name does not exist
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
            continue
        text = inspect.getdoc(value) or ""
        written_by_dataclass = text.startswith(f"{name}(")
        assert text and not written_by_dataclass, f"lbfgs_xp.{name} has no docstring"


def test_dir_shows_the_public_names_alone() -> None:
    import lbfgs_xp

    assert dir(lbfgs_xp) == sorted([*lbfgs_xp.__all__, "__version__"])
