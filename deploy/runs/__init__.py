"""A run, here and on its machine: records, session, job, checkpoints, watchdog."""
