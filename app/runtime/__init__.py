"""Infrastructure of training: processes, checkpoints, schedules, the run folder and its records."""
