"""Stub of the training half: the same commands, files and behaviour, in seconds instead of minutes."""
