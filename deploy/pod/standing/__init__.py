"""The name for deploy/pod/watchdog/report.py that other versions know."""
