"""Configuration of Sphinx, for `make docs`. Nothing is fetched from the network."""

from __future__ import annotations

import enum
import inspect
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from docutils import nodes
from formulas import block
from sphinx.addnodes import pending_xref

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
    "sphinx-mathjax-offline",  # includes MathJax, so that formulas need no network
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "substitution"]
myst_substitutions = {
    "version": version,
    "public_names": ", ".join(f"`lx.{name}`" for name in sorted(lbfgs_xp.__all__, key=str.lower)),
}
myst_heading_anchors = 3
os.environ.pop("MPLBACKEND", None)  # so that the notebook's pictures appear in its page
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

mathjax3_config = {"chtml": {"scale": 0.94}}

autosummary_generate = False  # the pages of api/ are written by hand
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings describe types in words
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
# Shown as lists, like parameters: their types are words, not links.
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
_PUBLIC = re.compile(r"lx\.([\w.]+)(?:\(.*\))?")
_OBJECT = re.compile(r"([A-Z]\w+)\([^()]{30,}\)")
_MODULE = re.compile(r"<module '([\w.]+)'[^>]*>")


def _plain(line: str) -> str:
    """Escape what Sphinx would read as markup, such as |f| and x*. Bullets stay."""
    bullet, line = ("* ", line[2:]) if line.startswith("* ") else ("", line)
    parts = _CODE.split(line)
    parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
    return bullet + "".join(parts)


def _docstring(app, what, name, obj, options, lines) -> None:
    """Convert a docstring from plain text to markup.

    Paragraphs of `name : description` become lists. Indented text before the sections becomes a
    formula.
    """
    out: list[str] = []
    formula: list[str] = []
    section, in_list = "", False
    for number, line in enumerate([*lines, ""]):
        above = lines[number - 1].strip() if number else ""
        if line.startswith("---"):
            section = above
        starts = line.startswith("    ") and not (section or above or in_list)
        if starts or (formula and line.strip()):
            formula.append(line)
            continue
        if formula:
            out += block(formula, {"step", "low", *inspect.signature(obj).parameters})
            formula = []
        item = None if section else _ITEM.fullmatch(line)
        if line.lstrip().startswith((">>>", "...")):
            if line.startswith(">>>") and not above and section not in ("", "Examples"):
                section = "Examples"
                out += [section, "-" * len(section)]
            in_list = False
            out.append(line)
        elif item and (in_list or not above):
            out += [] if in_list else [""]
            names = ", ".join(f"**{part}**" for part in item[1].split(", "))
            out.append(f"* {names}: {_plain(item[2])}")
            in_list = True
        else:
            in_list = in_list and bool(line.strip())
            out.append("  " + _plain(line.strip()) if in_list else _plain(line))
    if what == "class" and issubclass(obj, enum.Enum):
        members = (f"* **{m.name}** ({m.value}): {_plain(getattr(m, 'message', ''))}" for m in obj)
        out += ["", *members, ""]
    lines[:] = out


def _signature(app, what, name, obj, options, signature, returns):
    """Show defaults that are objects as in the source: LBFGS(), np."""
    if signature:
        signature = _OBJECT.sub(r"\1()", signature)
        signature = _MODULE.sub(lambda found: {"numpy": "np"}.get(found[1], found[1]), signature)
    return signature, returns


def _links(app, doctree) -> None:
    """Link `lx.minimize` and `lx.LBFGS(memory_size=20)` to the reference wherever they occur."""
    public = set(lbfgs_xp.__all__)
    for module in ("plot", "problems", "projections", "schedules"):
        public |= {f"{module}.{name}" for name in vars(getattr(lbfgs_xp, module))}
    for literal in list(doctree.findall(nodes.literal)):
        found = _PUBLIC.fullmatch(literal.astext())
        inside = isinstance(literal.parent, (nodes.title, nodes.reference, pending_xref))
        if found is None or inside or found[1] not in public:
            continue
        link = pending_xref(
            "", refdomain="py", reftype="obj", reftarget=f"lbfgs_xp.{found[1]}",
            refdoc=app.env.docname, refwarn=True,
        )
        literal.replace_self(link)
        link += literal


def _flags(app, doctree) -> None:
    """Mark literals such as `--quick`, so that no line ends after their dashes."""
    for literal in doctree.findall(nodes.literal):
        if literal.astext().startswith("-"):
            literal["classes"].append("flag")


def setup(app) -> None:
    # Before napoleon, whose markup contains stars too.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("doctree-read", _links)
    app.connect("doctree-read", _flags)
