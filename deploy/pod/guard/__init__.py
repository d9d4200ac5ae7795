"""Alias of deploy/pod/watchdog/daemon.py, kept for other versions of the laptop half."""
