"""An entry in ~/.ssh/config for a machine, so that plain ssh reaches it by the name of its run.

The entries are in a file of their own, which the user's file includes at its top. Only that line is added there.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path, PurePath, PureWindowsPath

from deploy.border.text_files import MARKS, read_text
from deploy.pod.base import folder
from deploy.shell.native import quoted
from deploy.shell.ssh_config import Way
from deploy.specs.machine import Address

FILE = "sniperface.conf"
FIRST = "# Written by `invoke ssh-config`; entries of deleted machines are harmless."


def entry_of(alias: str, way: Way, address: Address, host_key_alias: str, known: PurePath) -> str:
    """Return the lines for one machine: the settings that OpenSSH resolved, and the host key that was checked."""
    key = address.key or next(iter(way.keys), None)
    values = {
        "HostName": way.host,
        "Port": str(way.port),
        "User": way.user,
        "IdentityFile": quoted(type(known)(key)) if key else None,
        "IdentitiesOnly": "yes" if address.key else None,
        "IdentityAgent": way.agent if way.agent in (None, "none") else quoted(type(known)(way.agent)),
        "ProxyJump": ",".join(way.jumps) or None,
        "ProxyCommand": None if way.jumps else way.proxy_command,
        "HostKeyAlias": host_key_alias,
        "UserKnownHostsFile": quoted(known),
        "StrictHostKeyChecking": "yes",
    }
    lines = [f"  {name} {value}" for name, value in values.items() if value is not None]
    return "\n".join([f"Host {alias}", *lines, ""])


def install(home: Path, alias: str, entry: str) -> Path:
    """Write the entry, in place of an earlier one of its name, and include its file in the user's. Returns the file."""
    ssh = home / ".ssh"
    folder.private_folder(ssh)
    own, users = ssh / FILE, ssh / "config"
    others = [each for each in _entries(own) if not each.startswith(f"Host {alias}\n")]
    folder.write_bytes(own, "\n".join([FIRST, *others, entry]).encode("utf-8"), mode=0o600)
    data = users.read_bytes() if users.exists() else b""
    if data.startswith((*MARKS, codecs.BOM_UTF8)):  # ssh reads neither
        data = read_text(users).encode("utf-8")
    if not re.search(rb"^[ \t]*include[ \t].*" + re.escape(FILE).encode(), data, re.MULTILINE | re.IGNORECASE):
        # At the top: after a Host line it would apply to that host only. If the file is a link, its target is written.
        folder.write_bytes(users.resolve(), f"{include(own)}\n\n".encode() + data, mode=0o600)
    return own


def include(own: PurePath) -> str:
    """PURE: return the line that includes this file of ~/.ssh.

    It has the full path: ssh resolves a relative one below the home in the user database. Windows has no such home, and
    to Git's ssh C:/… is relative too.
    """
    return f"Include {own.name}" if isinstance(own, PureWindowsPath) else f'Include "{own.as_posix()}"'


def _entries(own: Path) -> list[str]:
    text = read_text(own) if own.exists() else ""
    return [f"Host {each.rstrip()}\n" for each in re.split(r"^Host ", text, flags=re.MULTILINE)[1:]]
