"""Change lines of the code at random, and see whether a test fails: `python -m tests.mutation --help`."""
