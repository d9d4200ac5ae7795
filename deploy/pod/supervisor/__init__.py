"""Alias of deploy/pod/job/supervisor.py, kept for other versions of the laptop half and of the image."""
