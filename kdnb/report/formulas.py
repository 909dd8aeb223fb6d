"""Formulas of rendered pages for printing: MathML as nested HTML, which a style sheet can lay out
and from which text can be copied."""

from __future__ import annotations

from collections.abc import Sequence

from bs4 import BeautifulSoup, NavigableString, Tag  # nbconvert brings it

SPACED = set("=+−-±×·≈≤≥<>→←∈∼≔≠∝⊙")  # operators with a space on both sides
PARTS = {
    "msub": ("base", "sub"),
    "msup": ("base", "sup"),
    "msubsup": ("base", "sub", "sup"),
    "mfrac": ("above", "below"),
    "munder": ("base", "below"),
    "mover": ("base", "above"),
    "munderover": ("base", "below", "above"),
}
STACKS = ("mfrac", "munder", "mover", "munderover")


def as_html(soup: BeautifulSoup) -> None:
    """Replace every ``math`` element of a page in place: a ``span`` of class ``formula``, or
    ``formula display`` for one on a line of its own."""
    for math in soup.find_all("math"):
        shown = " display" if math.get("display") == "block" else ""
        math.replace_with(_span(f"formula{shown}", [_element(child) for child in math.contents]))


def _span(name: str, children: Sequence[object], kind: str = "span") -> Tag:
    tag = BeautifulSoup("", "html.parser").new_tag(kind, attrs={"class": name})
    tag.extend(children)
    return tag


def _element(node: object) -> Tag | NavigableString:
    """One element of MathML with all that is in it."""
    if not isinstance(node, Tag):
        return NavigableString(str(node).strip())
    if node.name in PARTS:
        children = [child for child in node.contents if isinstance(child, Tag)]
        return _scripted(node.name, [_element(child) for child in children])
    if node.name == "mspace":
        return NavigableString("\u2002")
    if node.name == "mtr":
        return _span("row", [_element(child) for child in node.contents])
    if node.name == "msqrt":
        inside = _span("root", [_element(child) for child in node.contents])
        return _span("", [NavigableString("√"), inside])
    if node.name == "mi":
        text = node.get_text()
        upright = node.get("mathvariant") == "normal" or len(text) > 1
        return NavigableString(text) if upright else _span("letter", [text], "i")
    if node.name == "mo":
        text = node.get_text()
        return NavigableString(f"\u2009{text}\u2009" if text in SPACED else text)
    return _span("", [_element(child) for child in node.contents])


def _scripted(name: str, children: Sequence[Tag | NavigableString]) -> Tag:
    """A base with what stands at its corners, or a stack with what is above first."""
    named = dict(zip(PARTS[name], children, strict=True))
    if name not in STACKS:
        scripts = [_span("", [named[k]], k) for k in ("sub", "sup") if k in named]
        return _span("", [named["base"], *scripts])
    order = [part for part in ("above", "base", "below") if part in named]
    return _span(f"stack {name}", [_span(part, [named[part]]) for part in order])
