"""Tell what a prepared data set contains: python -m app.data data=PATH [verify=true] [json=true]

    data=PATH     images.npy, or its folder
    verify=true   also hash all images, and compare them with the manifest; image files are decoded, too
    json=true     print one JSON document

Prints people, images, people of one image, duplicates and other suspects, what was left out, the split, and the
content identity that goes into every checkpoint. The exit code is 1 if a file is not what prepare wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from app.data.about import about, in_words
from app.data.options import failed, parse_options
from app.errors import EXIT_FAILED, EXIT_WRONG_USE, WrongUse, framed
from app.output import say

WORDS = ("data", "verify", "json")


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        say((__doc__ or "").strip())
        return 0
    try:
        given = parse(argv)
        told = about(Path(given["data"]), verify=given.get("verify") == "true")
    except WrongUse as error:
        return failed(str(error), EXIT_WRONG_USE, argv)
    except OSError as error:
        return failed(f"{error}; run the same command again", EXIT_FAILED, argv)
    say(json.dumps(told) if given.get("json") == "true" else "\n".join(in_words(told)))
    for fault in told["faults"]:
        print(framed(fault), file=sys.stderr)
    return EXIT_FAILED if told["faults"] else 0


def parse(argv: list[str]) -> dict[str, str]:
    """Parse key=value words. Raises WrongUse."""
    given = parse_options(argv, WORDS, "app.data", "data")
    for key in ("verify", "json"):
        if given.get(key) not in (None, "true", "false"):
            raise WrongUse(f"{key}={given[key]} is neither true nor false; give {key}=true, or leave it out")
    if not given.get("data"):
        raise WrongUse("data= is missing; give an images.npy or its folder, such as data=data/orl")
    return given


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
