"""The code in the documents must run: README, CONTRIBUTING, pages, notebooks of docs, docstrings.

The ```python blocks of a file run in order and share their names, also those within comments, which
readers do not see. A block whose info string contains `no-run` or `gpu` (which needs CUDA) is only
shown. A ```text block right after one holds what it prints.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import json
import math
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

import lbfgs_xp

ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in path.parts]
NOTEBOOKS = [path for path in sorted(ROOT.glob("docs/**/*.ipynb")) if "_build" not in path.parts]
# modules with public names
PUBLIC = [
    "lbfgs_xp", "lbfgs_xp.plot", "lbfgs_xp.projections", "lbfgs_xp.schedules", "lbfgs_xp.torch",
    "lbfgs_xp.scipy",
]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
FENCE = re.compile(
    r"^```(python\b[^\n]*)\n(.*?)^```(?:\n+```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# modules that need a library that the package itself does not need
NEEDS = {
    "lbfgs_xp.torch": "torch",
    "lbfgs_xp.scipy": "scipy",
    "lbfgs_xp.arrays.torch": "torch",
    "lbfgs_xp.arrays.jax": "jax",
    "lbfgs_xp.arrays.cupy": "cupy",
    "lbfgs_xp.arrays.strict": "array_api_strict",
    "lbfgs_xp.distributed.mpi_processes": "mpi4py",
    "lbfgs_xp.distributed.torch_processes": "torch",
}
MODULES = ["lbfgs_xp"] + [m.name for m in pkgutil.walk_packages(lbfgs_xp.__path__, "lbfgs_xp.")]


def test_documents_are_found() -> None:
    """Without documents, the tests below would be skipped."""
    assert PAGES and NOTEBOOKS and FENCE.search(DOCUMENTS[0].read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # for files that a block writes
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = path.read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__document__"}
    # Dataclasses look for the module in which they are written.
    monkeypatch.setitem(sys.modules, "__document__", types.ModuleType("__document__"))
    for match in FENCE.finditer(text):
        info, block, shown = match.groups()
        if "no-run" in info or "gpu" in info:
            continue
        line = text.count("\n", 0, match.start(2))
        # with empty lines in front, a traceback gives the line in the document
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block, str(path), "exec"), names)
        if shown is not None:
            assert _agree(printed.getvalue(), shown), f"line {line}: {printed.getvalue()}"
    if "matplotlib" in sys.modules:
        importlib.import_module("matplotlib.pyplot").close("all")


def _agree(printed: str, shown: str) -> bool:
    """Whether the two are the same text, with numbers that differ by no more than rounding may
    make them differ after a run: by 5 %, or both next to 0."""
    (words, numbers), (shown_words, shown_numbers) = (
        (NUMBER.sub("#", text).split(), [float(each) for each in NUMBER.findall(text)])
        for text in (printed, shown)
    )
    return words == shown_words and all(
        math.isclose(a, b, rel_tol=0.05, abs_tol=1e-6)
        for a, b in zip(numbers, shown_numbers, strict=True)
    )


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, library in NEEDS.items():
        if name == module or name.startswith(f"{module}."):
            pytest.importorskip(library)
    if name == "lbfgs_xp.distributed.mpi_processes":
        try:
            importlib.import_module("mpi4py.MPI")
        except RuntimeError as error:    # mpi4py is there, but no MPI
            pytest.skip(str(error).partition("\n")[0])
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    plt = pytest.importorskip("matplotlib.pyplot")
    names: dict[str, object] = {"__name__": "__notebook__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "strip the outputs"
            exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), names)
            plt.close("all")


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("asymmetric", "curve_fit"), ("checkpoint", "checkpoints"), ("resampl", "pinns"),
        ("resampl", "curve_fit"), ("confidence", "curve_fit"), ("poisson", "curve_fit"),
        ("gpu", "gpu"), ("frozen", "training"), ("frozen", "curve_fit"),
    ],
)
def test_words_that_readers_search_for(word: str, page: str) -> None:
    """Sphinx finds words by their stems in text and headings, not in code."""
    prose = FENCE.sub("", (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"))
    assert re.search(rf"\b{word}", prose, re.IGNORECASE)


def test_the_comparison_names_files_that_exist() -> None:
    """A comment below the table of README.md says where each of its lines is shown."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition("Where each line is shown.")[2].partition("-->")[0]
    files = re.findall(r"(?:tests|benchmarks)/[\w/]+(?:\.py)?", shown)
    assert len(files) > 10 and all((ROOT / file).exists() for file in files)


def test_reference_is_complete() -> None:
    """Every public name has an entry in docs/api, and every entry names something that exists."""
    directive = re.compile(r"^\.\. (currentmodule|auto(?:function|class|module)):: (\S+)", re.M)
    found = set()
    for page in ROOT.glob("docs/api/*.rst"):
        module = ""
        for kind, name in directive.findall(page.read_text(encoding="utf-8")):
            if kind == "currentmodule":
                module = name
            else:
                found.add(name if kind == "automodule" else f"{module}.{name}")
    wanted = {f"lbfgs_xp.problems.{name}" for name in ("Problem", *lbfgs_xp.problems.ALL)}
    for name in PUBLIC:
        if name not in NEEDS or importlib.util.find_spec(NEEDS[name]):
            wanted |= {f"{name}.{public}" for public in importlib.import_module(name).__all__}
    missing = [f"{name}: write its entry in docs/api/{_page(name)}" for name in wanted - found]
    assert not missing, "\n".join(sorted(missing))
    assert all(_resolves(name) for name in found if not name.startswith(tuple(NEEDS)))


# Wing, or module in the root -> the page of the reference, if their names differ.
PAGE = {
    **dict.fromkeys(("diagnosis", "gradient_check", "result", "run"), "minimize"),
    "arrays": "spaces", "line_search": "line_searches",
}


def _page(name: str) -> str:
    """The page of the reference to which a public name belongs."""
    value = pkgutil.resolve_name(name)
    module = getattr(value, "__module__", None) or getattr(value, "__name__", name)
    wing = (module.split(".") + [""])[1]
    if wing == "solvers" and value.__module__.endswith("method"):
        wing = "run"
    page = PAGE.get(wing, wing)
    return f"{page}.rst" if (ROOT / f"docs/api/{page}.rst").exists() else "(a page of your choice)"


def _resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
