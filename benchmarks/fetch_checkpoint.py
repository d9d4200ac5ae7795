"""Seconds to download a checkpoint of 200 MB over a connection with a round trip of 100 ms.

The first attempt of ours is cut at half and the second resumes; the peer is scp, which starts from scratch. The bytes
that moved again are counted at the connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report, seconds
from benchmarks._moving import Moving, moving
from deploy.border import chosen
from deploy.shell import transfer

LEAST_RATIO = 3.0
OVERHEAD = 1.05  # handshakes, agents, headers; more than this means that data moved twice


class Cut(Exception):
    """The laptop's lid was closed."""


def cut_at_half(done_bytes: int, all_bytes: int) -> None:
    if 2 * done_bytes >= all_bytes:
        raise Cut


def resumed(at: Moving, source: Path, sha256: str) -> tuple[float, float, float]:
    """Return the seconds of the second attempt, the bytes that it moved, and the bytes that were missing."""
    there = at.folder / "fetched.pt"
    with contextlib.suppress(Cut):
        transfer.fetch(at.shell, source, chosen(there), sha256=sha256, progress=cut_at_half)
    had: list[int] = []
    before = at.line.counters()["down"]
    taken = seconds(
        lambda: transfer.fetch(
            at.shell, source, chosen(there), sha256=sha256, progress=lambda done, _: had.append(done)
        )
    )
    moved = at.line.counters()["down"] - before
    assert hashlib.sha256(there.read_bytes()).hexdigest() == sha256
    there.unlink()
    return taken, moved, source.stat().st_size - had[0]


def main() -> int:
    is_quick = quick()
    size = 20_000_000 if is_quick else 200_000_000
    with moving() as at:
        source = at.file("epoch_014.pt", size)
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        rounds = [
            (*resumed(at, source, sha256), seconds(lambda: at.scp(source, at.folder / "scp", back=True)))
            for _ in range(1 + (1 if is_quick else 5))
        ][1:]
    ours, moved, missing, scp = (median(values) for values in zip(*rounds, strict=True))
    ratio = median(each[3] / each[0] for each in rounds)
    share = median(each[2] * OVERHEAD / each[1] for each in rounds)
    return report(
        "fetch_checkpoint",
        [
            Claim(f"{size // 1_000_000} MB, 100 ms, resumed, peer scp", ours, scp, "s", ratio, LEAST_RATIO),
            Claim("moved again, peer what was missing + 5 %", moved / 1e6, missing * OVERHEAD / 1e6, "MB", share, 1.0),
        ],
        is_quick=is_quick,
    )


if __name__ == "__main__":
    sys.exit(main())
