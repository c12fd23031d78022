"""Embeds a matplotlib SVG in a page, with the page's font, colours and unique ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_COLOUR = re.compile("#[0-9a-f]{6}")
_FONT = re.compile(r"font: (?P<size>[\d.]+px) [^;]*|font-family: [^;]*;? ?")
_POINTER = re.compile(r"(?:(?<=^)|(?<=\())#([\w-]+)")
_POINTING = ("href", "clip-path", "style")  # attributes


def inline(svg: bytes, colours: Mapping[str, str], prefix: str, label: str) -> str:
    """The picture as an element that fills the available width.

    colours: CSS variables by the colour that they replace. prefix: of ids, so that
    those of several pictures differ. label: a description of the picture.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        _drop_namespaces(element)
        if style := element.attrib.pop("style", ""):
            style = _FONT.sub(_size, style)
            element.attrib["style"] = _COLOUR.sub(
                lambda found: colours.get(found[0], found[0]), style
            )
    _rename(root, prefix)
    for surplus in (*root.findall("metadata"), *root.findall("defs[style]")):
        root.remove(surplus)
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _drop_namespaces(element: Element) -> None:
    """Removes namespaces, which HTML does not need inside an <svg>."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}


def _size(font: re.Match[str]) -> str:
    return f"font-size: {font['size']}" if font["size"] else ""


def _rename(root: Element, prefix: str) -> None:
    """Renames the ids that are referenced and drops the others."""
    ids: dict[str, str] = {}

    def renamed(found: re.Match[str]) -> str:
        return "#" + ids.setdefault(found[1], f"{prefix}-{len(ids)}")

    for element in root.iter():
        for name in _POINTING:
            if name in element.attrib:
                element.attrib[name] = _POINTER.sub(renamed, element.attrib[name])
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in ids:
            element.attrib["id"] = ids[name]
