"""python -m app.config key=value …: print the resolved configuration as JSON, or one sentence with exit code 2.

It imports no torch, so a laptop can check a configuration before it rents or starts anything.
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
