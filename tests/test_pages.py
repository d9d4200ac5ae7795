"""The pages that users open are readable on a phone, in the light and in the dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
STYLES = ("deploy/ui/web/static/page.css", "app/report/page.html.jinja", "app/data/faces/passport.html.jinja")
PAGES = ("deploy/ui/web/templates/frame.html.jinja", *STYLES[1:])
TEXTS = ("ink", "soft", "accent", "good", "bad")
LEAST = 4.5  # of WCAG 2.2 for text


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", STYLES)
def test_texts_stand_out_in_both_schemes(name: str) -> None:
    style = (PROJECT / name).read_text(encoding="utf-8")
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(roots) == 2
    for root in roots:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root))
        behind = [colours[each] for each in ("page", "card") if each in colours]
        texts = [each for each in TEXTS if each in colours]
        assert {"ink", "soft"} <= {*texts}
        assert all(contrast(colours[text], paper) >= LEAST for text in texts for paper in behind)
    elsewhere = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert re.findall(r"[: ]#[0-9a-f]{3,6}\b", elsewhere) == []  # a colour of one scheme only


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_width_of_its_screen(name: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in (PROJECT / name).read_text("utf-8")
