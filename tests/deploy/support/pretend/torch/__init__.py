"""Stands in for torch, of which the launcher needs one command."""
