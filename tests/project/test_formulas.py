"""Formulas of docstrings as mathematics on the site: docs/formulas.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "formulas", Path(__file__).parents[2] / "docs" / "formulas.py"
)
assert _SPEC is not None and _SPEC.loader is not None
formulas = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(formulas)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("v ← beta2 v + g²", r"v &\leftarrow \beta_{2}\, v + g^{2}"),
        ("x / (√v̂ + eps)", r"x / (\sqrt{\hat{v}} + \varepsilon)"),
        ("√max(1, a) b", r"\sqrt{\max(1, a)}\, b"),
        ("sqrt(w / t) x_{i+1}^2", r"\sqrt{w / t}\, x_{i+1}^{2}"),
        ("rate^((t - delay) / 2)", r"\mathrm{rate}^{(t - \mathrm{delay}) / 2}"),
        ("|phi'(alpha)| <= c2", r"|\phi'(\alpha)| &\le c_{2}"),
        ("H <- s s' / s.y", r"H &\leftarrow s\, s^{\mathsf{T}} / s^{\mathsf{T}} y"),
        ("sum_i a_i^T x", r"\sum_{i}\, a_{i}^{\mathsf{T}}\, x"),
        ("r_t² m   if ρ_t > 5", r"r_{t}^{2}\, m \quad \text{if}\ \rho_{t} > 5"),
        ("a = 1,  b = 2", r"a &= 1, \quad b = 2"),
    ],
)
def test_formulas(text: str, wanted: str) -> None:
    assert formulas.latex(text, {"rate", "delay"}) == wanted


def test_blocks_keep_their_lines() -> None:
    made = formulas.block(["    x = 1", "    y = 2 +", "          3"])
    assert made[0] == ".. math::" and [line.strip() for line in made[3:6]] == [
        r"x &= 1 \\", r"y &= 2 + \\", r"&\qquad 3 \\",
    ]
