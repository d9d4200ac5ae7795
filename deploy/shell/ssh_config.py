"""The user's SSH configuration as OpenSSH itself reads it.

Paramiko's parser knows a part of ssh_config: no IdentityAgent, and not every Match and Include. `ssh -G HOST` prints
what OpenSSH would do, so both clients of this program go the same way.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import WrongUse

LOOK_LIMIT_S = 20  # a `Match exec` of the user's may take a moment
MOST_JUMPS = 8  # gateways one behind the other; OpenSSH has no limit, and a circle has no end
# Tried without being named, by OpenSSH and by Paramiko alike.
USUAL_KEYS = {f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")}


@dataclass(frozen=True)
class Way:
    """How a host is reached: `jumps` are the gateways, the nearest first, each as `ProxyJump` writes it."""

    host: str
    user: str
    port: int
    keys: tuple[str, ...] = ()  # files that the configuration names and that exist
    agent: str | None = None  # a socket in place of SSH_AUTH_SOCK; "none": no agent
    jumps: tuple[str, ...] = ()
    proxy_command: str | None = None


def way_to(host: str, user: str | None = None, port: int | None = None) -> Way:
    """What OpenSSH makes of a host or an alias. What is given here stands before what the configuration says.

    Raises WrongUse for a configuration that OpenSSH refuses.
    """
    if shutil.which("ssh") is None:
        return Way(host, user or getpass.getuser(), port or 22)
    options = [*(["-p", str(port)] if port else []), *(["-l", user] if user else [])]
    try:
        asked = subprocess.run(
            ["ssh", *_file(), "-G", *options, "--", host],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=LOOK_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise WrongUse(
            f"`ssh -G {host}` gave no answer within {LOOK_LIMIT_S} s: a `Match exec` in ~/.ssh/config may be waiting",
            next_command=f"ssh -G {host}",
        ) from error
    if asked.returncode:
        lines = asked.stderr.decode("utf-8", errors="replace").strip().splitlines()
        raise WrongUse(
            f"your SSH configuration cannot be read: {(lines or ['ssh says nothing'])[0]}",
            next_command=f"ssh -G {host}",
        )
    return parse(asked.stdout.decode("utf-8", errors="replace"), host)


def parse(text: str, host: str) -> Way:
    """The output of `ssh -G`: a keyword and its value a line; a keyword may come again."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword, []).append(value.strip())

    def last(keyword: str, otherwise: str) -> str:
        return values.get(keyword, [otherwise])[-1]

    jumps = last("proxyjump", "none")
    command = last("proxycommand", "none")
    user, port = last("user", getpass.getuser()), last("port", "22")
    return Way(
        host=last("hostname", host),
        user=user,
        port=int(port),
        keys=tuple(file for each in values.get("identityfile", []) if (file := _key(each, host, user))),
        agent=_agent(last("identityagent", "SSH_AUTH_SOCK")),
        jumps=() if jumps == "none" else tuple(jumps.split(",")),
        proxy_command=None if command == "none" else command,
    )


def parts(entry: str) -> tuple[str | None, str, int | None]:
    """User, host and port of `[user@]host[:port]`, as ssh writes it; an IPv6 address with a port stands in brackets.

    Raises WrongUse for what is neither.
    """
    user, _, place = entry.removeprefix("ssh://").rstrip("/").rpartition("@")
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not (rest[0] == ":" and rest[1:].isdecimal())):
            raise WrongUse(f"{entry} is no host: write [ADDRESS]:PORT, such as [2001:db8::1]:22")
        return user or None, host, int(rest[1:]) if rest else None
    host, colon, port = place.rpartition(":")
    if colon and port.isdecimal() and ":" not in host:
        return user or None, host, int(port)
    return user or None, place, None


def _file() -> list[str]:
    """ssh finds its user's home in the list of users; where HOME names another one, its file is named."""
    if sys.platform == "win32":
        return []
    import pwd

    if Path.home() == Path(pwd.getpwuid(os.getuid()).pw_dir):
        return []
    own = Path.home() / ".ssh" / "config"
    return ["-F", str(own) if own.is_file() else "none"]


def _key(value: str, host: str, user: str) -> str | None:
    """A key file that was named and exists. The tokens of ssh_config that paths are made with are replaced."""
    if value in USUAL_KEYS:
        return None
    for token, replacement in (("%d", str(Path.home())), ("%h", host), ("%r", user), ("%u", getpass.getuser())):
        value = value.replace(token, replacement)
    path = Path(value.strip('"')).expanduser()
    return str(path) if path.is_file() else None


def _agent(value: str) -> str | None:
    if value == "SSH_AUTH_SOCK":
        return None
    if value.startswith("$"):
        return os.environ.get(value[1:].strip("{}")) or "none"
    return value if value == "none" else str(Path(value.strip('"')).expanduser())
