"""Stands in for the training half: the same commands, files and manners, seconds instead of minutes."""
