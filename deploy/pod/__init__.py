"""What runs on the machine beside the job: standard library only, Python >= 3.9, nothing from the rest of `deploy`."""
