"""What the documents show must run: README, docs/*.md and the docstrings.

The ```python blocks of one file run in order and share their names. A block whose info string
contains `no-run` is only shown; one that contains `gpu` needs CUDA and is only shown too.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import lbfgs_xp

ROOT = Path(__file__).parents[1]
PAGES = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in path.parts]
DOCUMENTS = [ROOT / "README.md", *PAGES]
FENCE = re.compile(r"^```(python\b[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# faces that need a library which the package itself does not
NEEDS = {"lbfgs_xp.torch": "torch", "lbfgs_xp.scipy": "scipy"}
MODULES = ["lbfgs_xp"] + [m.name for m in pkgutil.walk_packages(lbfgs_xp.__path__, "lbfgs_xp.")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # files that a block writes
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = path.read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__document__"}
    for match in FENCE.finditer(text):
        info, block = match.groups()
        if "no-run" in info or "gpu" in info:
            continue
        line = text.count("\n", 0, match.start(2))
        # empty lines ahead: a traceback then gives the line of the document
        exec(compile("\n" * line + block, str(path), "exec"), names)


def test_documents_exist() -> None:
    assert all(path.is_file() for path in DOCUMENTS)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for face, library in NEEDS.items():
        if name.startswith(face):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
