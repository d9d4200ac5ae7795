"""python -m tests.deploy.asyncssh_server FOLDER: asyncssh's server as a process of its own; prints its port."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh


async def handle(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """A command runs as a real process through sh, as sshd does it."""
    child = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", process.command or "exit 0",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
    process.exit(await child.wait())


async def serve(folder: Path) -> None:
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[str(folder / "host_key")], authorized_client_keys=str(folder / "id.pub"),
        process_factory=handle, encoding=None,
    )  # fmt: skip
    print(server.get_port(), flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
