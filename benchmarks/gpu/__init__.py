"""Checks of this project on a machine with a GPU: correctness first, then speed. `python -m benchmarks.gpu OUT`."""
