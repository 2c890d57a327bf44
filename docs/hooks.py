"""Formulas of the pages as MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
BRACKETS = ("\\(", "\\)", "\\[", "\\]")


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of every page."""
    return FORMULA.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    formula = html.unescape(found[2]).strip()
    for bracket in BRACKETS:
        formula = formula.removeprefix(bracket).removesuffix(bracket)
    is_block = found[1] == "div"
    text = convert(formula.strip(), display="block" if is_block else "inline")
    return f'<div class="formula">{text}</div>' if is_block else text
