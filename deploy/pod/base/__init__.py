"""Shared by all programs on the machine: the run folder, locks, clocks, processes."""
