"""The supervisor of a job, and the status, log and metrics that it writes."""
