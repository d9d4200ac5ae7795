"""python -m tests.deploy.support.asyncssh_server FOLDER [HOST PORT]: run asyncssh's server; prints its port."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh


async def handle(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run a command as a real process through sh, as sshd does."""
    child = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", process.command or "exit 0",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
    ended, left = asyncio.ensure_future(child.wait()), asyncio.ensure_future(process.wait_closed())
    await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
    if left.done():  # as sshd does: close the pipes, and leave it to the command to end
        for number in (0, 1, 2):
            child._transport.get_pipe_transport(number).close()  # type: ignore[attr-defined]
    code = await ended
    await process.stdout.drain()
    process.exit(code)


async def serve(folder: Path, host: str, port: int) -> None:
    server = await asyncssh.listen(
        host, port, server_host_keys=[str(folder / "host_key")], authorized_client_keys=str(folder / "id.pub"),
        process_factory=handle, encoding=None,
    )  # fmt: skip
    print(server.get_port(), flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), *((sys.argv[2], int(sys.argv[3])) if sys.argv[2:] else ("127.0.0.1", 0))))
