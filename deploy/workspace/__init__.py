"""The code, environment and data that a run needs on its machine."""
