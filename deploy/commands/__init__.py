"""The commands behind tasks.py, one file per command or group of commands."""
