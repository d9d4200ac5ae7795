"""Servers and rigs of the laptop's tests."""
