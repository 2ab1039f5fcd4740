"""The page of a package index: README.md without links that lead nowhere there.

Everything else is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).parent / "README.md"
LINK = re.compile(r"\[([^]]+)\]\((?!https?://|#)([^)\s]+)\)")


def on_an_index(text: str) -> str:
    """Replace links to files of the repository by the names of the files, which an sdist holds."""
    return LINK.sub(lambda link: _named(*link.groups()), text)


def _named(text: str, path: str) -> str:
    return f"`{path}`" if text == path else f"{text} (`{path}`)"


setup(
    long_description=on_an_index(README.read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
