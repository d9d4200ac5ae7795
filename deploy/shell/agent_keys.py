"""The keys of the SSH agent, in the order in which OpenSSH offers them.

A server counts each offered key as a failed login, and most end the connection after six. So the keys whose files the
target or the configuration names come first, and `IdentitiesOnly` offers no others.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramiko.agent import Agent, AgentKey

BEGINNING, MAGIC = b"-----BEGIN OPENSSH PRIVATE KEY-----", b"openssh-key-v1\0"
KEY_FILE_BYTES = 64 << 10
MOST_KEYS = 2048  # as in OpenSSH
LISTS_S = 20.0  # for an agent to list its keys


class AgentKeys:
    """In place of Paramiko's Agent, of which a client uses these two methods. The agent is asked at the first login."""

    def __init__(self, files: Sequence[str], *, only: bool) -> None:
        self.files = files
        self.only = only
        self._agent: Agent | None = None

    def get_keys(self) -> tuple[AgentKey, ...]:
        """Return the keys of `files` first; no others with `only`, if the public halves of all files are known."""
        self._agent = self._agent or agent_of_login()
        keys = self._agent.get_keys() if self._agent else ()
        halves = [public_half(Path(file)) for file in self.files]
        named = [key for half in halves for key in keys if half is not None and key.asbytes() == half]
        if self.only and None not in halves:
            return tuple(key for key in keys if key in named or "-cert-" in key.get_name())
        return (*named, *(key for key in keys if key not in named))

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


def agent_of_login() -> Agent | None:
    """Return the agent with its keys; None if it breaks, or says nothing for LISTS_S: a login works without it.

    An agent that was forwarded over a dead connection says nothing, and Paramiko would wait for it for ever.
    """
    import paramiko
    from paramiko.agent import SSH2_AGENT_IDENTITIES_ANSWER

    class ClosedIfBroken(paramiko.Agent):  # type: ignore[misc]
        def __init__(self) -> None:
            try:
                super().__init__()
                found.append(self)
            except (paramiko.SSHException, OSError, EOFError, TypeError, ValueError):
                self.close()

        def _send_message(self, msg: Any) -> tuple[int, Any]:
            kind, told = super()._send_message(msg)
            count = int.from_bytes(told.get_remainder()[:4], "big")
            if kind == SSH2_AGENT_IDENTITIES_ANSWER and count > MOST_KEYS:  # Paramiko would make each of them
                raise paramiko.SSHException("the agent lists too many keys")
            return kind, told

    found: list[Agent] = []
    asking = threading.Thread(target=ClosedIfBroken, daemon=True, name="agent")
    asking.start()
    asking.join(LISTS_S)
    return found[0] if found else None


def public_half(file: Path) -> bytes | None:
    """Return the public key of a key file: from the file NAME.pub, or from OpenSSH's own format, without a passphrase.

    None if there is neither.
    """
    named = file if file.suffix == ".pub" else file.with_name(f"{file.name}.pub")
    with contextlib.suppress(OSError, IndexError, binascii.Error):
        return base64.b64decode(named.read_bytes()[:KEY_FILE_BYTES].split()[1], validate=True)
    with contextlib.suppress(OSError, binascii.Error, struct.error):
        text = file.read_bytes()[:KEY_FILE_BYTES].strip()
        if text.startswith(BEGINNING):
            return _in_private_file(base64.b64decode(b"".join(text.splitlines()[1:-1])))
    return None


def _in_private_file(data: bytes) -> bytes | None:
    """Return the first public key: behind three strings (cipher, key derivation, its options) and a number."""
    at = len(MAGIC)
    for _ in range(3):
        at += 4 + struct.unpack_from(">I", data, at)[0]
    length = struct.unpack_from(">I", data, at + 4)[0]
    return data[at + 8 : at + 8 + length] if data.startswith(MAGIC) else None
