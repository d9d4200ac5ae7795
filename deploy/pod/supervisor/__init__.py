"""The name for deploy/pod/job/supervisor.py that other versions know."""
