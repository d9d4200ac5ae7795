"""The name for deploy/pod/watchdog/daemon.py that other versions know."""
