"""The lines at the end of a job's log that tell why the job ended."""

from __future__ import annotations

from deploy.pod.base import job_log

EVIDENCE_LINES = 10
# torchrun's report alone may have 8 KiB. A trace of torch's C++ parts may follow it, with thousands of characters.
EVIDENCE_BYTES = 32 << 10


def last_words(end: bytes, reason: str | None = None) -> list[str]:
    """Return the last EVIDENCE_LINES telling lines: no empty ones, no frames of a C++ trace, no report of torchrun.

    `end`: the last EVIDENCE_BYTES bytes of a log. `reason`: of a failure, if the message that gets the lines has it.
    """
    lines = end.decode("utf-8", errors="replace").splitlines()
    return job_log.beyond(job_log.telling(lines), reason)[-EVIDENCE_LINES:]
