"""Check a web page from a machine before a person opens it."""

from __future__ import annotations

import html
import re
from pathlib import Path

from deploy.border.values import cut
from deploy.pod.base.text import visible

# A report begins with these bytes (app/report/page.py). Whatever follows, a browser then runs no script and loads
# nothing: a later policy in the page can only add to this one.
REPORT_BEGINS = (
    b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    b'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    b"style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
)
# Its next line: the verdict (app/report/page.html.jinja).
DESCRIPTION = re.compile(r'<meta name="description" content="([^"<>]+)">\n')
DESCRIPTION_BYTES = 8 << 10
VERDICT_CHARACTERS = 1000


def is_report(path: Path) -> bool:
    """Whether a file begins as a report does. Also true without a file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(REPORT_BEGINS)) == REPORT_BEGINS
    except FileNotFoundError:
        return True


def verdict(path: Path) -> str | None:
    """The verdict of a report, one line that is safe to print; None without a report, or if it has none."""
    try:
        with open(path, "rb") as file:
            begins, data = file.read(len(REPORT_BEGINS)), file.read(DESCRIPTION_BYTES)
    except OSError:
        return None
    found = DESCRIPTION.match(data.decode("utf-8", "replace")) if begins == REPORT_BEGINS else None
    return cut(visible(html.unescape(found[1]), newlines=False), VERDICT_CHARACTERS) if found else None
