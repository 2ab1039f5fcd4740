"""What is installed: the sdist and the wheel, built without the network, and their metadata.

The tests that build are skipped if `build` or `twine` is missing.
"""

from __future__ import annotations

import email
import email.message
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import lbfgs_xp

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What a copy for the build leaves out.
_ASIDE = shutil.ignore_patterns(
    ".*", "_build", "build", "dist", "*.egg-info", "__pycache__", "pictures"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel, which is built from the sdist."""
    for needed in ("build", "twine"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "clone", ignore=_ASIDE)
    run("-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), cwd=folder / "clone")
    return folder / "dist"


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(built: Path) -> email.message.Message:
    with wheel(built) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_twine_finds_no_fault(built: Path) -> None:
    said = run("-m", "twine", "check", "--strict", *map(str, built.iterdir()), cwd=built)
    assert said.count("PASSED") == 2


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lbfgs_xp").rglob("*.py")}
    with wheel(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == modules | {"lbfgs_xp/py.typed"}


def test_the_sdist_holds_what_its_tests_need(built: Path, tmp_path: Path) -> None:
    root = unpacked(built, tmp_path)
    for folder in ("tests", "examples", "benchmarks", "docs"):
        kept = {p for p in (ROOT / folder).rglob("*") if p.is_file()}
        kept = {p for p in kept if not {"__pycache__", "_build", "pictures"} & set(p.parts)}
        missing = {p for p in kept if not (root / p.relative_to(ROOT)).is_file()}
        assert not missing, sorted(missing)
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"):
        assert (root / name).is_file(), name


@pytest.mark.thorough
def test_the_sdist_passes_its_own_tests(built: Path, tmp_path: Path) -> None:
    files = ["tests/test_checks.py", "tests/test_schedules.py", "tests/project/test_documents.py"]
    how = ["-q", "-p", "no:cacheprovider", "-k", "not tutorial"]
    said = run("-m", "pytest", *how, *files, cwd=unpacked(built, tmp_path))
    assert " passed" in said and "failed" not in said


def unpacked(built: Path, folder: Path) -> Path:
    """The folder of the unpacked sdist."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def test_the_page_of_an_index_has_no_dead_links(built: Path) -> None:
    page = metadata(built).get_payload()
    assert isinstance(page, str) and page.startswith("# lbfgs_xp")
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links and all(link.startswith(("https://", "#")) for link in links), links


def test_version_is_in_one_place(built: Path) -> None:
    assert metadata(built)["Version"] == lbfgs_xp.__version__
    assert "version" in PROJECT["dynamic"]
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)


def test_links_of_the_readme_lead_to_files() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{name}: {link}"


def test_extras_are_those_of_the_install_page() -> None:
    extras = PROJECT["optional-dependencies"]
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"lbfgs_xp\[(\w+)\]", page))
    assert shown == {"torch", "jax", "cupy", "plot", "distributed", "all"} <= extras.keys()


def test_the_oldest_versions_are_those_promised() -> None:
    """tests/oldest.txt, with which `make test-oldest` runs, pins every lower bound."""
    wanted = {}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (each for group in groups for each in group):
        found = re.match(r"([\w.-]+)>=([\d.]+)", requirement)
        if found:
            name, version = found.groups()
            assert wanted.setdefault(name, version) == version, f"{name}: two lower bounds"
    pinned = dict(
        line.split("==")
        for line in (ROOT / "tests/oldest.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    del pinned["pyparsing"]    # of Matplotlib
    for name, version in pinned.items():
        assert (version + ".").startswith(wanted[name] + "."), f"{name}: {wanted[name]} is promised"
    unchecked = {"cupy-cuda12x", "mpi4py", "torch"}    # see tests/oldest.txt
    built = {"build", "myst-nb", "pydata-sphinx-theme", "sphinx", "setuptools"}
    assert pinned.keys() == wanted.keys() - unchecked - built
