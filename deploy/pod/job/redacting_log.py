"""Write a job's output to its log, with the job's secrets masked.

    python -m deploy.pod.job.redacting_log <train.log>

The first line of standard input is a JSON list of secrets, the rest is the job's output. A separate process, so that
the last output of a job is kept even if its supervisor is killed: it exits when the last process that writes to it has
ended. On a full disk, output is dropped, so that the job never waits for its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from deploy.pod.base.redact import MASK, pieces

CODE = Path(__file__).resolve().parents[3]
CHUNK_BYTES = 64 << 10


class Sieve:
    """Mask secrets in a byte stream. Holds back trailing bytes that may be the beginning of a secret."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [piece.encode("utf-8") for piece in pieces(secrets)]
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self._held = b""

    def __call__(self, data: bytes) -> bytes:
        data = self._held + data
        place = len(data) - self._beginning(data)
        for match in self._pattern.finditer(data):
            if match.start() < place < match.end():
                place = match.start()
        self._held = data[place:]
        return self._mask(data[:place])

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return self._mask(held)

    def _beginning(self, data: bytes) -> int:
        """Return how many trailing bytes may be the beginning of a secret."""
        longest = min(len(data), max(map(len, self._secrets)) - 1)
        for count in range(longest, 0, -1):
            end = data[-count:]
            if any(secret.startswith(end) for secret in self._secrets if len(secret) > count):
                return count
        return 0

    def _mask(self, data: bytes) -> bytes:
        return self._pattern.sub(MASK.encode("ascii"), data)


def before(log: Path, secrets: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start a masking process for a log; the job writes to its standard input. None if there is nothing to mask."""
    if not pieces(secrets):
        return None
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.pod.job.redacting_log", str(log)],
        cwd=CODE,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(list(secrets)).encode("ascii") + b"\n")
    process.stdin.flush()
    return process


def main(argv: list[str]) -> int:
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):  # it must outlive the processes that write to it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    first = b""
    while not first.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return 0
        first += byte
    sieve = Sieve(json.loads(first))
    with open(argv[1], "ab", buffering=0) as log:
        while data := os.read(0, CHUNK_BYTES):
            _write(log, sieve(data))
        _write(log, sieve.rest())
    return 0


def _write(log: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    with contextlib.suppress(OSError):
        while left:
            left = left[log.write(left) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
