"""Run the command line: `python -m deploy`, in the project's folder."""

from __future__ import annotations

import os
import sys

from tasks import COMMAND_LINE

# The script `sniperface` sets it: the folder that relative paths on the command line start from.
STARTED_IN = "SNIPERFACE_STARTED_IN"

if folder := os.environ.pop(STARTED_IN, None):
    os.chdir(folder)
os.environ.setdefault("SNIPERFACE_INVOKE", "python -m deploy")
COMMAND_LINE.run(["sniperface", *sys.argv[1:]])
