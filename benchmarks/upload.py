"""MB/s of an upload of 256 MiB: over a line with a round trip of 100 ms against one scp stream and against Fabric's
put, and on this computer without a line against scp. Ours and Fabric's have a connection when the clock starts, as
every command has; ours makes its further ones while the clock runs, as scp does, and verifies what arrived, as neither
of the others does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from _claims import Claim, in_turn, quick, report, seconds
from _moving import MIB, ROUND_TRIP_S, Moving, moving

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


def main() -> int:
    is_quick = quick()
    size = (16 if is_quick else 256) * MIB
    claims = []
    with moving() as at:
        source = at.file("data", size)
        ways = {"scp": lambda: at.scp(source, at.folder / "scp"), "Fabric put": fabric_put(at, source)}
        for name, peer in ways.items():
            a, b, ratio = in_turn(
                lambda: size / 1e6 / seconds(lambda: ours(at, source)),
                lambda peer=peer: size / 1e6 / seconds(peer),
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
