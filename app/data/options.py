"""Options of the commands that need no configuration: key=value words, and errors in words and in JSON."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Sequence

from app.errors import WrongUse, framed


def parse_options(argv: Sequence[str], known: Collection[str], command: str, first: str) -> dict[str, str]:
    """Parse key=value words. Raises WrongUse for an unknown key, with the closest known one, else `first`."""
    options: dict[str, str] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in known or not equals:
            near = difflib.get_close_matches(key, sorted(known), n=1) or [first]
            raise WrongUse(f"{word!r} is not an option of {command}; did you mean {near[0]}=…?")
        if key in options:
            raise WrongUse(f"{key}= is given twice; give it once")
        options[key] = value
    return options


def failed(sentence: str, code: int, argv: Sequence[str]) -> int:
    """Print an error to stderr and, with json=true among the words, as JSON to stdout; returns the exit code."""
    print(framed(sentence), file=sys.stderr)
    if "json=true" in argv:
        print(json.dumps({"error": sentence, "exit_code": code}))
    return code
