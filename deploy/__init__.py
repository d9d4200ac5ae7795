"""The laptop half: machines, code, data, jobs and runs; never tensors.

Read `launch.py` first: it is the story of every command. It calls `code`, `data`, `job`, `runs`, `show`, `doctor` and
`providers`, which rest on `plan` (pure), `transfer` and `shell`, then `settings` and `machine`, then `errors`.
`pod/` is standard-library Python that runs on the machine, next to the job.
"""
