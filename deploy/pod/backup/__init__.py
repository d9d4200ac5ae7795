"""Copies of checkpoints and logs outside the machine: sync and restore."""
