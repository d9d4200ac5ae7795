"""Tell what a prepared data set contains: python -m app.data data=PATH [verify=true] [json=true]

    data=PATH     images.npy, or its folder
    verify=true   also hash all images, and compare them with the manifest
    json=true     print one JSON document

Prints people, images, people of one image, duplicates and other suspects, what was left out, the split, and the
content identity that goes into every checkpoint. The exit code is 1 if a file is not what prepare wrote.
"""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path

from app.data.about import about, in_words
from app.errors import EXIT_FAILED, EXIT_WRONG_USE, WrongUse, framed

WORDS = ("data", "verify", "json")


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        print((__doc__ or "").strip())
        return 0
    as_json = "json=true" in argv
    try:
        given = parse(argv)
        told = about(Path(given["data"]), verify=given.get("verify") == "true")
    except WrongUse as error:
        return failed(str(error), EXIT_WRONG_USE, as_json)
    except OSError as error:
        return failed(f"{error}; run the same command again", EXIT_FAILED, as_json)
    print(json.dumps(told) if as_json else "\n".join(in_words(told)))
    for fault in told["faults"]:
        print(framed(fault), file=sys.stderr)
    return EXIT_FAILED if told["faults"] else 0


def failed(sentence: str, code: int, as_json: bool) -> int:
    print(framed(sentence), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": sentence, "exit_code": code}))
    return code


def parse(argv: list[str]) -> dict[str, str]:
    """Parse key=value words. Raises WrongUse."""
    given = dict[str, str]()
    for word in argv:
        key, equals, value = word.partition("=")
        if key not in WORDS or not equals:
            near = difflib.get_close_matches(key, WORDS, n=1) or ["data"]
            raise WrongUse(f"{word!r} is not an option of app.data; did you mean {near[0]}=…?")
        if key in given:
            raise WrongUse(f"{key}= is given twice; give it once")
        if key != "data" and value not in ("true", "false"):
            raise WrongUse(f"{key}={value} is neither true nor false; give {key}=true, or leave it out")
        given[key] = value
    if not given.get("data"):
        raise WrongUse("data= is missing; give an images.npy or its folder, such as data=data/orl")
    return given


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
