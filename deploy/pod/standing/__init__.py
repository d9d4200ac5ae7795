"""Alias of deploy/pod/watchdog/report.py, kept for other versions of the laptop half."""
