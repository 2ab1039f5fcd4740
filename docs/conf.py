"""How Sphinx builds the site: `make docs`. Nothing is fetched from elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lbfgs_xp

project = "lbfgs_xp"
author = "lbfgs_xp contributors"
project_copyright = author
version = release = lbfgs_xp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax itself, so that formulas need no network
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

autosummary_generate = False  # the pages of api/ are written by hand
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
# as lists, like parameters: the types are words, not links
napoleon_custom_sections = [("Attributes", "params_style"), ("Options", "params_style")]
default_role = "code"

html_theme = "pydata_sphinx_theme"
html_title = "lbfgs_xp"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "lbfgs_xp"},
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "gallery": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

_CODE = re.compile(r"(`[^`]*`)")
_NAMES = r"[a-z_]\w*(?:, [a-z_]\w*)*"
_ITEM = re.compile(rf"({_NAMES}) ?: (.*)")
_LONG = re.compile(r"([A-Z]\w+)\([^()]*\)")


def _plain(line: str) -> str:
    """Docstrings are plain text: |f| and x* mean what they say, not markup."""
    parts = _CODE.split(line)
    parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _docstring(app, what, name, obj, options, lines) -> None:
    """Escapes what would be markup; paragraphs of `name : what it is` become lists."""
    out: list[str] = []
    in_list = False
    section = ""
    for number, line in enumerate(lines):
        above = lines[number - 1].strip() if number else ""
        if line.startswith("---"):
            section = above
        if line.lstrip().startswith((">>>", "...")):
            if line.startswith(">>>") and not above and section not in ("", "Examples"):
                section = "Examples"
                out += [section, "-" * len(section)]
            out.append(line)
            in_list = False
            continue
        item = None if section else _ITEM.fullmatch(line)
        if item and (in_list or not above):
            out += [] if in_list else [""]
            names = ", ".join(f"**{part}**" for part in item[1].split(", "))
            out.append(f"* {names}: {_plain(item[2])}")
            in_list = True
        else:
            in_list = in_list and bool(line.strip())
            out.append("  " + _plain(line.strip()) if in_list else _plain(line))
    lines[:] = out


def _signature(app, what, name, obj, options, signature, returns):
    """Settings that are objects are shown as in the source, without their own defaults."""
    return signature and _LONG.sub(r"\1()", signature), returns


def setup(app) -> None:
    # Before napoleon, whose markup has stars of its own.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
