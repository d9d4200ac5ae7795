"""An upload of 256 MiB on this computer: MB/s and CPU time of the laptop, in pairs with the commit before the border.

The working tree and the commit upload the same random bytes to the same kind of server, each with its own code on both
ends, connected when the clock starts. No proxy is between, so that every copy and check costs what it costs.

    python benchmarks/upload_before.py [--quick] [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._before import BEFORE, LEAST, Cost, both, pairs, script
from benchmarks._claims import Claim, report
from benchmarks._far import Far

MIB = 1 << 20
# Runs with the code of either version: their modules have other names.
UPLOAD = """
import json, sys, time
from pathlib import Path, PurePosixPath
try:
    from deploy.shell import transfer
    from deploy.specs.machine import Address, Machine
except ImportError:
    from deploy import machine, transfer
    from deploy.machine import Address
    def Machine(name, *words, **more):
        return machine.Machine(name, "ssh", *words, **more)
from deploy.shell import open_shell
host, port, user, key, host_key, root, source, notes = sys.argv[1:]
address = Address(host, int(port), user, key, (host_key,))
shell = open_shell(Machine("far", PurePosixPath(root), sys.executable, address=address), Path(notes))
shell.clock()
wall, cpu = time.perf_counter(), time.process_time()
transfer.push(shell, Path(source), PurePosixPath(root) / "uploaded")
print(json.dumps({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}))
shell.close()
"""


def upload(there: Far, source: Path, root: Path) -> Cost:
    address = there.machine.address
    assert address
    words = [address.host, str(there.port), str(address.user), str(address.key), address.host_keys[0], str(root)]
    try:
        return script(there, UPLOAD, *words, str(source), str(there.project / ".sniperface"))
    finally:
        (root / "uploaded").unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 MiB, one round; writes no results file")
    parser.add_argument("--rounds", type=int, default=9, help="pairs")
    told = parser.parse_args()
    size, rounds = (16 if told.quick else 256) * MIB, 1 if told.quick else told.rounds
    costs: dict[str, list[Cost]] = {"new": [], "old": []}
    ram = Path("/dev/shm")  # noqa: S108 - where the product stages data
    with both(0) as (new, old), tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as folder:
        source = Path(folder) / "source"
        source.write_bytes(os.urandom(size))

        def took(name: str, there: Far) -> float:
            costs[name].append(upload(there, source, Path(folder)))
            return costs[name][-1].wall_s

        ours, theirs, ratio = pairs(lambda: took("new", new), lambda: took("old", old), rounds)
    cpu = {name: [each.cpu_s for each in found[1:]] for name, found in costs.items()}
    a, b = (statistics.median(cpu[name]) for name in ("new", "old"))
    of_cpu = statistics.median(b / a for a, b in zip(cpu["new"], cpu["old"], strict=True))
    what = f"up {size // MIB} MiB, loopback, peer {BEFORE}"
    claims = [
        Claim(what, size / 1e6 / ours, size / 1e6 / theirs, "MB/s", ratio, LEAST),
        Claim(f"{what}: CPU", a, b, "s", of_cpu, LEAST),
    ]
    return report("upload_before", claims, is_quick=told.quick)


if __name__ == "__main__":
    raise SystemExit(main())
