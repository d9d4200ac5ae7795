"""MB/s of an upload of 256 MiB, over a connection with a round trip of 100 ms and on this computer.

Over the connection the peers are one scp stream and Fabric's put; on this computer, without a proxy, the peer is scp.
Ours and Fabric are connected when the clock starts, as every command is. Ours opens its further connections while the
clock runs, as scp does. Only ours verifies the uploaded data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, in_turn, quick, report, seconds
from benchmarks._moving import MIB, ROUND_TRIP_S, Moving, moving
from deploy.shell import transfer


def ours(at: Moving, source: Path) -> None:
    there = at.folder / "ours"
    transfer.push(at.shell, source, there)
    there.unlink()


def fabric_put(at: Moving, source: Path) -> Callable[[], None]:
    from fabric import Connection

    address = at.server.machine(port=at.line.port).address
    assert address is not None
    connection = Connection(
        address.host, user=address.user, port=address.port, connect_kwargs={"key_filename": address.key}
    )
    connection.open()

    def put() -> None:
        connection.put(str(source), str(at.folder / "fabric"))
        (at.folder / "fabric").unlink()

    return put


def mb_per_s(size: int, work: Callable[[], object]) -> float:
    return size / 1e6 / seconds(work)


def main() -> int:
    is_quick = quick()
    size = (16 if is_quick else 256) * MIB
    claims = []
    with moving() as at:
        source = at.file("data", size)
        ways = {"scp": lambda: at.scp(source, at.folder / "scp"), "Fabric put": fabric_put(at, source)}
        for name, peer in ways.items():
            a, b, ratio = in_turn(
                partial(mb_per_s, size, partial(ours, at, source)),
                partial(mb_per_s, size, peer),
                1 if is_quick else 5,
            )
            words = f"up {size // MIB} MiB, {ROUND_TRIP_S * 1000:.0f} ms, peer {name}"
            claims.append(Claim(words, a, b, "MB/s", ratio, 4.0))
    with moving(0) as at:
        source = at.file("data", size)
        a, b, ratio = in_turn(
            lambda: size / 1e6 / seconds(lambda: ours(at, source)),
            lambda: size / 1e6 / seconds(lambda: at.scp(source, at.folder / "scp")),
            2 if is_quick else 15,
        )
    claims.append(Claim(f"up {size // MIB} MiB, loopback, peer scp", a, b, "MB/s", ratio, 1.0))
    return report("upload", claims, is_quick=is_quick)


if __name__ == "__main__":
    sys.exit(main())
