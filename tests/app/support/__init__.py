"""Rigs of the app's tests."""
