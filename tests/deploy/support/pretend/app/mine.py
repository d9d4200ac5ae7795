"""Stub of app.mine: prints its arguments as JSON. With fails=1 it ends with exit code 2."""

import json
import sys

if "fails=1" in sys.argv:
    sys.exit("it does not work")

print(json.dumps(sys.argv[1:]))
