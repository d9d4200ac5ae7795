"""Check a web page from a machine before a person opens it."""

from __future__ import annotations

from pathlib import Path

# A report begins with these bytes (app/report/page.py). Whatever follows, a browser then runs no script and loads
# nothing: a later policy in the page can only add to this one.
REPORT_BEGINS = (
    b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    b'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    b"style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
)


def is_report(path: Path) -> bool:
    """Whether a file begins as a report does. Also true without a file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(REPORT_BEGINS)) == REPORT_BEGINS
    except FileNotFoundError:
        return True
