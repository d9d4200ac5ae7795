"""Run the command line: `python -m deploy` starts tasks.py of the current folder, as `invoke` does."""

import runpy

runpy.run_module("tasks", run_name="__main__")
