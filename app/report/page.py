"""Put a run's facts into the page with Jinja2, which escapes everything that is not a plot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from app.report import sections
from app.report.facts import Facts
from app.report.pictures import sheets
from app.runtime.durations import clock
from app.runtime.folder import RunFolder

BYTES_MOST = 3 << 20
TEMPLATES = Path(__file__).parent
# The page begins with these bytes, so that a browser runs no script of it and loads nothing, whatever follows.
BEGIN = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
)


def render(facts: Facts, folder: RunFolder) -> str:
    """The report as HTML of at most BYTES_MOST bytes. Leaves out contact sheets, then pairs, that have no room."""
    page = sections.of(facts)
    page["sheets"] = sheets(folder.mining)
    for leave_out in ("", "sheets", "hardest"):
        if leave_out:
            page["left_out"].append(leave_out)
            page[leave_out] = []
        html = filled(page)
        if len(html.encode("utf-8")) <= BYTES_MOST:
            break
    return html


def filled(page: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clock=clock, pct=sections.pct)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return BEGIN + environment.get_template("page.html.jinja").render(made=made, **page)
