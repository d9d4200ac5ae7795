"""Traces this Python process, if a mutation run started it: Python imports this module at its start."""

import os
import sys

if "MUTATION_TRACE" in os.environ:
    sys.path.insert(0, os.environ["MUTATION_CODE"])
    import tracing

    tracing.start()
    os.register_at_fork(after_in_child=tracing.start)
