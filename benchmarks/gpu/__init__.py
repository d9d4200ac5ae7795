"""What a machine with a GPU shows of this project: correctness first, then speed. `python -m benchmarks.gpu OUT`."""
