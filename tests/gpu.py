"""The tests marked gpu, in the order that finds the most in the least time, with a report.

`python -m tests.gpu [--report FILE] [pytest's arguments]` runs them and writes the report,
build/gpu-report.md, as it goes, so that an interrupted run leaves one as well. Without a GPU the
report says so, and the status is 0. A warning ends no test here, because a library may warn of
something on a GPU that it does not warn of elsewhere; the report lists them. On the CPU the same
tests treat warnings as errors.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib
import importlib.metadata
import platform
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.backends import GPU, Backend, missing_cupy

REPORT = Path(__file__).parents[1] / "build" / "gpu-report.md"
PACKAGES = (
    "lbfgs_xp", "numpy", "array-api-compat", "array-api-extra", "torch", "jax", "optax", "scipy",
    "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy",
)

# A test belongs to the first group one of whose patterns is found in its name. `minimize`, a fit
# and Adam run first, on every library; then all groups on CuPy, on torch and on JAX; then whatever
# belongs to no group; and last the tests marked thorough.
FIRST = "minimize, curve_fit, Adam"
ROOT = "the square root of RMSProp"  # on torch only, whose builds may round it differently
REST, THOROUGH = "everything else", "thorough"
GROUPS: dict[str, tuple[str, ...]] = {
    FIRST: (
        r"run/test_minimize\.py::test_(forms_of_the_gradient|float32_rosenbrock|shapes)",
        r"fits/test_curve_fit\.py::test_(jacobian_given|named_parameters|float32)",
        r"first_order/test_first_order\.py::test_in_place\[.*-Adam\]",
        r"first_order/test_first_order_minimize\.py::test_to_the_minimum",
    ),
    ROOT: (r"::test_.*RMSProp",),
    "reads": (r"arrays/test_(reads|transfers)\.py",),
    "bits": (r"arrays/test_reproducible\.py", r"same_bits"),
    "rules and kernels": (r"first_order/", r"schedules", r"arrays/test_fused\.py"),
    "batches": (r"run/test_batch\.py", r"arrays/test_rows\.py", r"::test_.*batch"),
    "fits": (r"fits/",),
    "Newton": (r"solvers/test_newton\.py",),
    "other methods": (r"solvers/", r"run/", r"test_constraints", r"test_projections"),
}
LIBRARIES = (Backend.CUPY, Backend.TORCH_CUDA, Backend.JAX_CUDA)


def library_of(item: pytest.Item) -> str:
    """The library on whose arrays a test runs."""
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        if isinstance(value, Backend):
            return value.value
    return "other"


def group_of(item: pytest.Item) -> str:
    if item.get_closest_marker("thorough"):
        return THOROUGH
    for group, patterns in GROUPS.items():
        if group == ROOT and library_of(item) != Backend.TORCH_CUDA.value:
            continue
        if any(re.search(pattern, item.nodeid) for pattern in patterns):
            return group
    return REST


def place(library: str, group: str) -> tuple[int, ...]:
    """The key by which tests are sorted."""
    libraries = [each.value for each in LIBRARIES]
    number = libraries.index(library) if library in libraries else len(libraries)
    if group == FIRST:
        return 0, number
    if group in GROUPS:
        return 1, number, list(GROUPS).index(group)
    return (2 if group == REST else 3), number


class Round:
    """A plugin of pytest that sorts the tests and keeps the report."""

    def __init__(self, report: Path) -> None:
        self.report = report
        self.started = time.monotonic()
        self.written = 0.0
        self.cases: dict[str, tuple[str, str]] = {}  # test -> library, group
        self.outcomes: dict[str, str] = {}
        self.seconds: collections.Counter[tuple[str, str]] = collections.Counter()
        self.messages: dict[str, str] = {}
        self.warnings: collections.Counter[str] = collections.Counter()
        self.end = "is still running, or was killed"

    # --- what pytest calls ---------------------------------------------------------------------

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("filterwarnings", "default")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        keys = {item.nodeid: (library_of(item), group_of(item)) for item in items}
        items.sort(key=lambda item: place(*keys[item.nodeid]))
        self.cases = {item.nodeid: keys[item.nodeid] for item in items}
        self.write()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        # `minimize` answers Ctrl-C with its best point, so pytest would not see it.
        def interrupt(*_: Any) -> None:
            self.end, session.shouldstop = "was interrupted", "interrupted"
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self.cases.get(report.nodeid)
        if case is None or (report.failed and self.end == "was interrupted"):
            return  # the test that was interrupted has neither passed nor failed
        self.seconds[case] += report.duration
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            where = "" if report.when == "call" else f"in {report.when}: "
            self.messages[report.nodeid] = where + " ".join(text.split())[:300]
        elif report.skipped:
            self.outcomes[report.nodeid] = "skipped"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.messages[report.nodeid] = str(reason).removeprefix("Skipped: ")
        elif report.when == "call":
            self.outcomes[report.nodeid] = "passed"
        if time.monotonic() - self.written > 2.0:
            self.write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.messages[f"{report.nodeid} (not collected)"] = str(report.longrepr)[-300:]
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.messages[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")
            self.outcomes[report.nodeid] = "skipped"

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        text = " ".join(str(warning_message.message).split())[:200]
        self.warnings[f"{warning_message.category.__name__}: {text}"] += 1

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        self.end = "was interrupted"

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self.end != "was interrupted":
            stopped = len(self.outcomes.keys() & self.cases.keys()) < len(self.cases)
            self.end = f"ended early, with status {int(exitstatus)}" if stopped else "is complete"
        self.write()

    # --- the report ----------------------------------------------------------------------------

    def write(self) -> None:
        self.written = time.monotonic()
        write_report(self.report, self.lines())

    def lines(self) -> list[str]:
        total = time.monotonic() - self.started
        lines = [*heading(), f"The run {self.end}, after {total:.0f} s.", "", *self.table()]
        failed = [test for test, outcome in self.outcomes.items() if outcome == "failed"]
        failed += [test for test in self.messages if test.endswith("(not collected)")]
        lines += part("Failed", [f"- `{test}`: {self.messages[test]}" for test in failed])
        reasons: collections.Counter[str] = collections.Counter()
        for test, outcome in self.outcomes.items():
            if outcome == "skipped":
                library, _ = self.cases.get(test, (test, ""))
                reasons[f"{library}: {self.messages[test]}"] += 1
        lines += part("Skipped", [f"- {n} × {reason}" for reason, n in reasons.most_common()])
        waiting: collections.Counter[str] = collections.Counter(
            f"{library}, {group}: {test.partition('::')[0]}"
            for test, (library, group) in self.cases.items() if test not in self.outcomes
        )
        lines += part("Not run", [f"- {n} × {where}" for where, n in waiting.items()])
        seen = [f"- {n} × {text}" for text, n in self.warnings.most_common(40)]
        return lines + part("Warnings", seen)

    def table(self) -> list[str]:
        """A row for each library and group, in the order in which they run."""
        counts: dict[tuple[str, str], collections.Counter[str]] = {}
        for test, case in self.cases.items():
            outcome = self.outcomes.get(test, "not run")
            counts.setdefault(case, collections.Counter())[outcome] += 1
        columns = ("passed", "failed", "skipped", "not run")
        lines = [
            "| library | group | tests | passed | failed | skipped | not run | s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for (library, group), found in counts.items():
            numbers = " | ".join(str(found[column] or "") for column in columns)
            time_taken = self.seconds[library, group]
            lines.append(
                f"| {library} | {group} | {found.total()} | {numbers} | {time_taken:.1f} |"
            )
        return lines


def heading() -> list[str]:
    """The date, the versions, and each library with its device or with what is missing."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = ["# Tests on a GPU", ""]
    lines += [f"{datetime.datetime.now():%Y-%m-%d %H:%M}; Python {platform.python_version()}, "
              f"{', '.join(versions)}", ""]
    for backend in GPU:
        lines.append(f"- {backend.missing or f'{backend}: {device_name(backend)}'}")
    if not Backend.CUPY.is_gpu:
        lines.append(f"- cupy: {missing_cupy()}")
    return [*lines, ""]


def device_name(backend: Backend) -> str:
    try:
        if backend is Backend.CUPY:
            runtime = importlib.import_module("cupy").cuda.runtime
            return runtime.getDeviceProperties(0)["name"].decode()
        if backend is Backend.TORCH_CUDA:
            return importlib.import_module("torch").cuda.get_device_name(0)
        return importlib.import_module("jax").devices("gpu")[0].device_kind
    except Exception as error:  # of the library; the report must not end the run
        return f"found ({type(error).__name__} when its name was read)"


def part(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def write_report(report: Path, lines: list[str]) -> None:
    report.parent.mkdir(exist_ok=True)
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", allow_abbrev=False,
        description="the tests marked gpu, and a report; further arguments go to pytest",
    )
    parser.add_argument("--report", type=Path, default=REPORT)
    known, others = parser.parse_known_args()
    if all(backend.missing for backend in GPU):
        write_report(
            known.report, [*heading(), "No GPU was found: none of the tests marked gpu was run."]
        )
        print(f"no GPU found: the tests marked gpu were not run (see {known.report})")
        return 0
    arguments = ["-m", "gpu", "-p", "no:cacheprovider", *others]
    status = int(pytest.main(arguments, [Round(known.report)]))
    print(f"the report is in {known.report}")
    return status


if __name__ == "__main__":
    sys.exit(main())
