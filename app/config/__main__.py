"""python -m app.config key=value …: the resolved configuration as one JSON object, or one sentence and exit code 2.

It imports no torch, so a laptop can ask it before anything is rented or started.
"""

import json
import sys

from app.config.compose import load
from app.errors import EXIT_WRONG_USE, WrongUse


def main() -> int:
    try:
        config = load(sys.argv[1:])
    except WrongUse as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    print(json.dumps({**config.as_dict(), "model": config.model()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
