"""Code that runs on the machine next to the job: standard library only, Python >= 3.9, no other part of `deploy`."""
