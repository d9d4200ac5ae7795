"""The user's SSH configuration as OpenSSH itself reads it.

Paramiko's parser supports only a part of ssh_config: no IdentityAgent, and not every Match and Include. `ssh -G HOST`
prints what OpenSSH would do, so both SSH clients of this program use the same settings.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import WrongUse

LOOK_LIMIT_S = 20  # a `Match exec` in the user's file may take a moment
MOST_JUMPS = 8  # chained gateways; OpenSSH has no limit, and a cycle has no end
# Default keys of both OpenSSH and Paramiko.
USUAL_KEYS = {f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")}


@dataclass(frozen=True)
class Way:
    """How to reach a host. `jumps`: the gateways, nearest first, in the syntax of `ProxyJump`."""

    host: str
    user: str
    port: int
    keys: tuple[str, ...] = ()  # existing files that the configuration names
    usual: tuple[str, ...] = ()  # existing default keys, which the agent may hold too
    only: bool = False  # IdentitiesOnly: no other keys of the agent
    agent: str | None = None  # a socket in place of SSH_AUTH_SOCK; "none": no agent
    jumps: tuple[str, ...] = ()
    proxy_command: str | None = None
    family: str = "any"  # of addresses: inet, inet6


def way_to(host: str, user: str | None, port: int | None) -> Way:
    """Resolve a host or an alias with OpenSSH. `user` and `port` take precedence over the configuration.

    Raises WrongUse if OpenSSH rejects the configuration or does not answer within LOOK_LIMIT_S.
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
            f"your SSH configuration cannot be read: {(lines or ['ssh gives no reason'])[0]}",
            next_command=f"ssh -G {host}",
        )
    return parse(asked.stdout.decode("utf-8", errors="replace"), host)


def parse(text: str, host: str) -> Way:
    """Parse the output of `ssh -G`: one keyword and its value per line. A keyword may occur several times."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword, []).append(value.strip())

    def last(keyword: str, otherwise: str) -> str:
        return values.get(keyword, [otherwise])[-1]

    jumps = last("proxyjump", "none")
    command = last("proxycommand", "none")
    user, port = last("user", getpass.getuser()), last("port", "22")
    files = values.get("identityfile", [])
    usual = [Path(each).expanduser() for each in files if each in USUAL_KEYS]
    return Way(
        host=last("hostname", host),
        user=user,
        port=int(port),
        keys=tuple(file for each in files if (file := _key(each, host, user))),
        usual=tuple(str(file) for file in usual if file.is_file()),
        only=last("identitiesonly", "no") == "yes",
        agent=_agent(last("identityagent", "SSH_AUTH_SOCK")),
        jumps=() if jumps == "none" else tuple(jumps.split(",")),
        proxy_command=None if command == "none" else command,
        family=last("addressfamily", "any"),
    )


def parts(entry: str) -> tuple[str | None, str, int | None]:
    """Split `[user@]host[:port]` into user, host and port. An IPv6 address with a port is in brackets.

    Raises WrongUse for malformed brackets.
    """
    user, _, place = entry.removeprefix("ssh://").rstrip("/").rpartition("@")
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not (rest[0] == ":" and rest[1:].isdecimal())):
            raise WrongUse(f"{entry} is not a host: write [ADDRESS]:PORT, such as [2001:db8::1]:22")
        return user or None, host, int(rest[1:]) if rest else None
    host, colon, port = place.rpartition(":")
    if colon and port.isdecimal() and ":" not in host:
        return user or None, host, int(port)
    return user or None, place, None


def _file() -> list[str]:
    """Name the user's file where HOME differs from the home in the user database, which is the one that ssh uses."""
    if sys.platform == "win32":
        return []
    import pwd

    if Path.home() == Path(pwd.getpwuid(os.getuid()).pw_dir):
        return []
    own = Path.home() / ".ssh" / "config"
    return ["-F", str(own) if own.is_file() else "none"]


def _key(value: str, host: str, user: str) -> str | None:
    """Return the path of a key file, with ssh_config's tokens replaced. None for default keys and missing files."""
    if value in USUAL_KEYS:
        return None
    for token, replacement in (("%d", str(Path.home())), ("%h", host), ("%r", user), ("%u", getpass.getuser())):
        value = value.replace(token, replacement)
    path = Path(of_drive(value.strip('"')) if sys.platform == "win32" else value.strip('"')).expanduser()
    return str(path) if path.is_file() else None


def of_drive(path: str) -> str:
    """Return a path of Git Bash, such as /c/Users/me, as Windows has it: C:/Users/me. Others are unchanged."""
    return re.sub(r"^/(?:cygdrive/)?([A-Za-z])(?=/|$)", lambda found: found[1].upper() + ":", path)


def _agent(value: str) -> str | None:
    if value == "SSH_AUTH_SOCK":
        return None
    if value.startswith("$"):
        return os.environ.get(value[1:].strip("{}")) or "none"
    return value if value == "none" else str(Path(value.strip('"')).expanduser())
