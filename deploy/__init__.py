"""The laptop half: machines, code, data, jobs and runs; never tensors.

The folders are layers. Each imports only from folders after it in this list: `commands`, `billing`, `steps`, `runs`,
`workspace` and `providers`, `shell` and `ui`, `specs`, `border`, `errors`, `pod`. Read `commands/train.py` first.
`pod/` is standard-library Python that runs on the machine, next to the job.
"""
