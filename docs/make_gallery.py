"""Runs the examples and writes the gallery: python docs/make_gallery.py [names] [--quick]

Every script of examples/ that takes --out is run. Its pictures and a page with what it printed go
into docs/gallery, and docs/gallery.md shows all pages that are there. With names, such as
`rosenbrock`, only these are run, and the pages of the others stay as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
GALLERY = ROOT / "docs" / "gallery"
INDEX = ROOT / "docs" / "gallery.md"
# In this order; what is not named here comes last.
ORDER = [
    "two_dimensions", "line_searches", "fit_decay", "gaussian_peaks", "batch_of_fits",
    "sparse_features", "schedules", "cnn_fixed_batch", "cnn_minibatches", "burgers_pinn",
]
# Arguments of single scripts, beside --out.
EXTRA: dict[str, list[str]] = {"burgers_pinn": ["--dtype", "float64"]}
COLUMNS = 3     # of the index
COLORS = 128    # of a picture's palette: a third of the bytes, and nothing to be seen of it


class Example(NamedTuple):
    """One script, as its docstring tells of it."""

    name: str
    title: str
    text: str


def example(path: Path) -> Example | None:
    """What the docstring says; None where the script draws nothing."""
    source = path.read_text(encoding="utf-8")
    if not re.search(r"--out\b|\b_common\b.*\bparser\b|\bparser\(__doc__\)", source):
        return None
    doc = re.match(r'(?:#.*\n)*\s*"""(.*?)"""', source, re.DOTALL)
    first, _, text = (doc[1] if doc else path.stem).strip().partition("\n")
    title = re.sub(r":? *python examples/.*$", "", first).strip(" .:")
    return Example(path.stem, title, text.strip("\n"))


def run(script: str, arguments: list[str], folder: Path) -> tuple[str, float]:
    """What the script prints, and the seconds it takes; the end of all where it fails."""
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), "--out", str(folder), *arguments]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MPLBACKEND": "Agg", "COLUMNS": "100",
    }
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script}.py ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout, time.perf_counter() - start


def shrink(source: Path, target: Path) -> None:
    """A copy of the picture with a palette, where that is smaller."""
    with Image.open(source) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    flat.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)
    if target.stat().st_size > source.stat().st_size:
        target.write_bytes(source.read_bytes())


def escaped(text: str) -> str:
    """Plain text as Markdown: what is not code means itself."""
    parts = re.split(r"(`[^`]*`|^ {4}.*$)", text, flags=re.MULTILINE)
    parts[::2] = [re.sub(r"([*_<>\[\]$|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def page(shown: Example, arguments: list[str], printed: str, pictures: list[Path]) -> str:
    """The page of one example."""
    kept = [line for line in printed.splitlines() if not line.strip().startswith("picture: ")]
    output = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in kept)).strip("\n")
    command = " ".join(["python", f"examples/{shown.name}.py", *arguments])
    parts = [f"# {escaped(shown.title)}", escaped(shown.text), f"    {command}"]
    parts += [f"![{escaped(shown.title)}]({path.name})" for path in pictures]
    if output:
        parts += ["It prints:", f"```text\n{output}\n```"]
    parts.append(f"The script: [examples/{shown.name}.py](../../examples/{shown.name}.py)")
    return "\n\n".join(part for part in parts if part) + "\n"


def index(found: list[Example]) -> str:
    """The page with a picture of each example that has a page."""
    cells, names = [], []
    for shown in found:
        if not (GALLERY / f"{shown.name}.md").is_file():
            continue
        names.append(f"gallery/{shown.name}")
        title, link = escaped(shown.title), f"gallery/{shown.name}.md"
        pictures = sorted(GALLERY.glob(f"{shown.name}-*.png"))
        picture = f"[![{title}](gallery/{pictures[0].name})]({link})<br>" if pictures else ""
        cells.append(f"{picture}[{title}]({link})")
    cells += [""] * (-len(cells) % COLUMNS)
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    table = [[""] * COLUMNS, ["---"] * COLUMNS, *rows]
    return (
        "# Gallery\n\nPrograms of the folder `examples/`: their pictures and what they print. "
        "`--quick` does less of\neverything, `--backend torch` (jax, cupy) takes another array "
        "library where a script has it.\n"
        "`make gallery` makes these pages anew.\n\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in table)
        + "\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
    )


def place(shown: Example) -> tuple[int, str]:
    return (ORDER.index(shown.name) if shown.name in ORDER else len(ORDER), shown.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="examples to run, without .py; default: all")
    parser.add_argument("--quick", action="store_true", help="hand --quick to every script")
    options = parser.parse_args()
    scripts = [path for path in sorted(EXAMPLES.glob("*.py")) if not path.name.startswith("_")]
    found = sorted(filter(None, map(example, scripts)), key=place)
    unknown = set(options.names) - {shown.name for shown in found}
    if unknown:
        passed, known = ", ".join(sorted(unknown)), ", ".join(shown.name for shown in found)
        parser.error(f"no example that takes --out: {passed}; wanted some of {known}")

    GALLERY.mkdir(exist_ok=True)
    for shown in found:
        if options.names and shown.name not in options.names:
            continue
        arguments = EXTRA.get(shown.name, []) + ["--quick"] * options.quick
        with tempfile.TemporaryDirectory() as folder:
            printed, seconds = run(shown.name, arguments, Path(folder))
            for old in GALLERY.glob(f"{shown.name}-*.png"):
                old.unlink()
            pictures = []
            drawn = sorted(Path(folder).glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
            for number, path in enumerate(drawn, 1):
                pictures.append(GALLERY / f"{shown.name}-{number}.png")
                shrink(path, pictures[-1])
        text = page(shown, arguments, printed, pictures)
        (GALLERY / f"{shown.name}.md").write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in pictures) // 1024
        print(f"{shown.name}: {seconds:.0f} s, {len(pictures)} pictures of {size} KiB in all")
    for path in GALLERY.glob("*"):    # of examples that are gone
        if path.stem.split("-")[0] not in {shown.name for shown in found}:
            path.unlink()
    INDEX.write_text(index(found), encoding="utf-8")


if __name__ == "__main__":
    main()
