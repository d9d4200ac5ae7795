"""The lines at the end of a job's log that tell why the job ended."""

from __future__ import annotations

import re

EVIDENCE_LINES = 10
# A trace of torch's C++ parts has thousands of characters. torchrun may print one after the job's own last words.
EVIDENCE_BYTES = 32 << 10
_TRACE = re.compile(r"(\[rank\d+\]:)?(Exception raised from |frame #\d+: )")


def last_words(end: bytes) -> list[str]:
    """Return the last EVIDENCE_LINES lines, without empty ones and without the frames of a C++ trace.

    `end`: the last EVIDENCE_BYTES bytes of a log.
    """
    lines = end.decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip() and not _TRACE.match(line)][-EVIDENCE_LINES:]
