"""Servers and rigs that tests share."""
