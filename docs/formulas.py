"""Formulas of docstrings, which are plain text for `help`, as mathematics for the site."""

from __future__ import annotations

import re
from collections.abc import Set

_GREEK = {
    **{name: f"\\{name}" for name in (
        "alpha", "beta", "delta", "gamma", "eta", "lambda", "mu", "rho", "sigma", "tau", "theta",
        "phi", "pi",
    )},
    "eps": r"\varepsilon", "epsilon": r"\varepsilon", "lambd": r"\lambda",
}
_LETTERS = dict(zip("αβδγηλμρστθφπ", _GREEK.values(), strict=False))
_FUNCTIONS = {name: f"\\{name}" for name in ("min", "max", "exp", "log", "cos", "sin")} | {
    name: rf"\operatorname{{{name}}}"
    for name in ("sign", "clip", "floor", "mean", "diag", "net", "RMS")
}
_RELATIONS = {"←": r"\leftarrow", "<-": r"\leftarrow", "=": "=", "<=": r"\le", ">=": r"\ge"}
_TOKEN = re.compile(r"""
    (?P<gap>\s{2,}) | (?P<space>\s)
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<relation><-|<=|>=|[←=])
    | (?P<root>√|sqrt(?=\())
    | (?P<hat>\w\u0302)
    | (?P<name>[A-Za-zα-ω][A-Za-z0-9]*(?:_(?:\{[^}]*\}|[A-Za-z0-9]+|∞))*)
    | (?P<power>\^(?:\(|\{[^}]*\}|\w+))
    | (?P<other>\.\.\.|.)
""", re.VERBOSE)


def block(lines: list[str], names: Set[str] = frozenset()) -> list[str]:
    """The lines of a formula as a directive `math`; `names` are settings, and not words."""
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    rows = []
    for line in lines:
        deeper = len(line) - len(line.lstrip()) > margin
        rows.append("   " + (r"&\qquad " if deeper else "") + latex(line, names) + r" \\")
    return [".. math::", "", r"   \begin{aligned}", *rows, r"   \end{aligned}", ""]


def latex(text: str, names: Set[str] = frozenset()) -> str:
    """One line, with remarks in words, as LaTeX, to be aligned at its first relation."""
    text = text.strip()
    parts: list[tuple[str, str]] = []
    ends: list[str] = []    # of the open parentheses
    brace = False           # whether a root waits for what it is of
    aligned = False
    for found in _TOKEN.finditer(text):
        kind, token = str(found.lastgroup), found[0]
        after = text[found.end():][:1]
        if kind == "relation":
            parts.append(("operator", ("" if aligned else "&") + _RELATIONS[token]))
            aligned = True
        elif kind == "root":
            parts.append(("operand", r"\sqrt{"))
            brace = True
        elif token == "(":
            ends.append("}" if brace and parts[-1][1] == r"\sqrt{" else ")}" if brace else ")")
            parts.append(("open", "" if ends[-1] == "}" else "("))
            brace = False
        elif token == "^(":
            ends.append("}")
            parts.append(("power", "^{"))
        elif token == ")" and ends:
            parts.append(("close", ends.pop()))
        else:
            parts.append(_part(kind, token, names, after))
            if brace and after != "(":
                parts.append(("close", "}"))
                brace = False
    return _joined(parts)


def _part(kind: str, token: str, names: Set[str], after: str) -> tuple[str, str]:
    if kind in ("gap", "space"):
        return kind, " "
    if kind == "number":
        return "operand", token
    if kind == "hat":
        return "operand", rf"\hat{{{token[0]}}}"
    if kind == "power":
        inner = token[1:].strip("{}")
        return "power", r"^{\mathsf{T}}" if inner == "T" else f"^{{{_name(inner, names) or inner}}}"
    if kind == "name":
        made = _name(token, names)
        return ("operand", made) if made else ("word", token)
    if token == "'":
        return "power", "'" if after == "(" else r"^{\mathsf{T}}"
    if token == "." and after.isalpha():    # a scalar product
        return "power", r"^{\mathsf{T}} "
    if token == "²":
        return "power", "^{2}"
    known = {"∞": r"\infty", "...": r"\dots", "`": "", "%": r"\%"}
    return "open" if token == "[" else "operator", known.get(token, token)


def _name(token: str, names: Set[str]) -> str:
    """A name as LaTeX; empty if it is a word."""
    base, _, below = token.partition("_")
    below = below.strip("{}").replace("∞", r"\infty")
    digits = re.fullmatch(r"([^\W\d]+)(\d+)", base)
    if base == "sum":
        return rf"\sum_{{{below}}}" if below else r"\sum"
    if digits and not below:
        base, below = digits.groups()
    letter = _GREEK.get(base, _LETTERS.get(base, base))
    if len(base) == 1 or base in _GREEK:
        if re.fullmatch(r"[a-z]{3,}", below):
            below = rf"\mathrm{{{below}}}"
        return f"{letter}_{{{below}}}" if below else letter
    if token in _FUNCTIONS:
        return _FUNCTIONS[token]
    if token in ("Hy", "Bs"):
        return f"{token[0]} {token[1]}"
    if token in names or "_" in token:
        return r"\mathrm{" + token.replace("_", r"\_") + "}"
    return ""


def _joined(parts: list[tuple[str, str]]) -> str:
    """Words and the spaces around them become text, factors side by side get a thin space."""
    out = ""
    for k, (kind, made) in enumerate(parts):
        before = parts[k - 1][0] if k else "open"
        after = parts[k + 1][0] if k + 1 < len(parts) else "close"
        if kind == "word":
            out += rf"\text{{{made}}}"
        elif kind == "gap":
            out += r" \quad "
        elif kind == "space" and "word" in (before, after):
            out += r"\ "
        elif kind == "space" and before in ("operand", "close", "power") and after in (
            "operand", "open"
        ):
            out += r"\, "
        else:
            out += made
    return out
