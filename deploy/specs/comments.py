"""Read the meaning of settings from the source of their dataclasses: the comments beside and above the fields.

A comment that ends with a colon, above a field, is a heading of that field and those below it.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from typing import NamedTuple


class Setting(NamedTuple):
    name: str
    heading: str  # of this setting and those below it; empty: none
    meaning: str


def settings_of(file: Path) -> dict[str, list[Setting]]:
    """Return the fields of each class in a file, with the comments beside and above them."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }

    def setting(node: ast.AnnAssign) -> Setting:
        above = node.lineno - 1
        while above in comments and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        said = [comments[line] for line in range(above + 1, (node.end_lineno or node.lineno) + 1) if line in comments]
        heading = said.pop(0) if said and said[0].endswith(":") else ""
        return Setting(ast.unparse(node.target), heading.rstrip(":"), " ".join(said))

    return {
        each.name: [setting(node) for node in each.body if isinstance(node, ast.AnnAssign)]
        for each in ast.parse(text).body
        if isinstance(each, ast.ClassDef)
    }
