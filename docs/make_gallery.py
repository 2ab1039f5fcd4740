"""Run the examples and write the gallery: python docs/make_gallery.py [names] [--quick]

Runs every script in examples/ that takes --out. Its pictures and a page with its output go into
docs/gallery, and docs/gallery.md lists all pages found there. If names are given, such as
`line_searches`, only these are run, and the pages of the others do not change.
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
# The order of the pages; examples that are not listed come last.
ORDER = [
    "two_dimensions", "line_searches", "fit_decay", "gaussian_peaks", "batch_of_fits",
    "voigt_spectrum", "dose_response", "impedance", "photon_decay", "ode_model",
    "shared_parameters", "sparse_features", "schedules", "cnn_fixed_batch", "cnn_minibatches",
    "burgers_pinn", "many_processes",
]
# Arguments of single scripts, in addition to --out.
EXTRA: dict[str, list[str]] = {"burgers_pinn": ["--dtype", "float64"]}
COLORS = 128    # of a picture's palette: a third of the bytes, without a visible difference


class Example(NamedTuple):
    """One script, with the title and the text from its docstring."""

    name: str
    title: str
    text: str


def example(path: Path) -> Example | None:
    """The example in this file; None if the script draws nothing."""
    source = path.read_text(encoding="utf-8")
    if not re.search(r"--out\b|\b_common\b.*\bparser\b|\bparser\(__doc__\b", source):
        return None
    doc = re.match(r'(?:#.*\n)*\s*"""(.*?)"""', source, re.DOTALL)
    first, _, text = (doc[1] if doc else path.stem).strip().partition("\n")
    title = re.sub(r":? *python examples/.*$", "", first).strip(" .:")
    return Example(path.stem, title, text.strip("\n"))


def run(script: str, arguments: list[str], folder: Path) -> tuple[str, float]:
    """Run the script and return its output and its seconds; exit if it fails."""
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
    """Copy the picture, with a palette if that is smaller."""
    with Image.open(source) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    flat.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)
    if target.stat().st_size > source.stat().st_size:
        target.write_bytes(source.read_bytes())


def escaped(text: str) -> str:
    """Plain text as Markdown, with markup escaped outside of code."""
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
        parts += ["Output:", f"```text\n{output}\n```"]
    parts.append(f"The script: [examples/{shown.name}.py](../../examples/{shown.name}.py)")
    return "\n\n".join(part for part in parts if part) + "\n"


def index(found: list[Example]) -> str:
    """The page that shows each example with a page, and its first picture."""
    cards, names = [], []
    for shown in found:
        if not (GALLERY / f"{shown.name}.md").is_file():
            continue
        names.append(f"gallery/{shown.name}")
        pictures = sorted(GALLERY.glob(f"{shown.name}-*.png"))
        picture = [f":img-top: gallery/{pictures[0].name}"] if pictures else []
        cards.append("\n".join([
            ":::{grid-item-card} " + escaped(shown.title), f":link: gallery/{shown.name}",
            ":link-type: doc", *picture, ":::",
        ]))
    return (
        "# Gallery\n\nThe programs in the folder `examples/`, with their pictures and output. "
        "`--quick` runs a smaller\nversion, and most scripts take `--backend torch` (or jax, cupy) "
        "for another array library.\n"
        "`make gallery` generates these pages.\n\n"
        "::::{grid} 1 2 3 3\n:gutter: 3\n\n" + "\n".join(cards) + "\n::::\n"
        "\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
    )


def place(shown: Example) -> tuple[int, str]:
    return (ORDER.index(shown.name) if shown.name in ORDER else len(ORDER), shown.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="examples to run, without .py; default: all")
    parser.add_argument("--quick", action="store_true", help="pass --quick to every script")
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
    for path in GALLERY.glob("*"):    # pages of examples that no longer exist
        if path.stem.split("-")[0] not in {shown.name for shown in found}:
            path.unlink()
    INDEX.write_text(index(found), encoding="utf-8")


if __name__ == "__main__":
    main()
