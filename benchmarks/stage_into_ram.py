"""GiB/s of 1 GiB from disk into /dev/shm, hashed: ours, as a deploy runs it on the machine, against cp and sha256sum.

The file is in the page cache for both, so that the disk is not measured.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, in_turn, quick, report, seconds

PROJECT = Path(__file__).parents[1]
MIB = 1 << 20
BLOCK_BYTES = 8192 * 112 * 112 * 3  # block size of a data set made by `prepare`


def make(path: Path, size: int) -> list[dict[str, object]]:
    """Write random bytes; return their pieces with hashes, as in a manifest."""
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    pieces = []
    with open(path, "rb") as file:
        for number, at in enumerate(range(0, size, BLOCK_BYTES)):
            data = file.read(BLOCK_BYTES)
            sha256 = hashlib.sha256(data).hexdigest()
            pieces.append({"name": f"block {number}", "offset": at, "bytes": len(data), "sha256": sha256})
    return pieces


def main() -> int:
    is_quick = quick()
    ram, size = Path("/dev/shm"), (64 if is_quick else 1024) * MIB  # noqa: S108 - where the product stages data
    if not ram.is_dir() or shutil.disk_usage(ram).free < 2 * size:
        raise SystemExit(f"{ram} has no room for {size // MIB} MiB")
    with tempfile.TemporaryDirectory(dir=PROJECT) as disk, tempfile.TemporaryDirectory(dir=ram) as memory:
        source, part = Path(disk) / "images.npy", Path(memory) / "images.npy.part"
        order = Path(disk) / "order.json"
        header = base64.b64encode(b"").decode()
        pieces = make(source, size)
        order.write_text(json.dumps({"source": str(source), "part": str(part), "header": header, "pieces": pieces}))

        def ours() -> None:
            argv = [sys.executable, "-m", "deploy.pod.agent.files", str(order)]
            subprocess.run(argv, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)

        def peer() -> None:
            subprocess.run(["cp", str(source), str(part)], check=True)
            subprocess.run(["sha256sum", str(part)], check=True, stdout=subprocess.DEVNULL)

        def rate(work: Callable[[], None]) -> float:
            part.unlink(missing_ok=True)
            source.read_bytes()  # into the page cache, for both
            return size / (1 << 30) / seconds(work)

        fast, slow, ratio = in_turn(lambda: rate(ours), lambda: rate(peer), 2 if is_quick else 9)
    claim = Claim(f"{size // MIB} MiB into RAM, hashed", fast, slow, "GiB/s", ratio, 1.5)
    return report("stage_into_ram", [claim], is_quick=is_quick)


if __name__ == "__main__":
    sys.exit(main())
