"""Emulators, servers and rigs shared by tests."""
