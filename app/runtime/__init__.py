"""What training stands on: processes, checkpoints, schedules, the run folder and its records."""
