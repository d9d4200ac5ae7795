"""Only the owner can read the launcher's files. Only valid words enter ssh's files and command lines."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from deploy.errors import BadAnswer, WrongUse
from deploy.pod.base.folder import private_folder
from deploy.pod.base.lock import Lock
from deploy.providers.runpod import events, identity
from deploy.providers.runpod.api import LogLine
from deploy.shell import native
from deploy.shell.host_keys import HostKeys
from deploy.specs.machine import Address, Machine

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes: run on Linux or macOS")
MACHINE = Machine("box", PurePosixPath("/w"), "python3", address=Address("gpu-1", 22, "ann", "/k/id"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@posix
@pytest.mark.usefixtures("open_umask")
def test_what_the_launcher_keeps_is_its_owners(tmp_path: Path) -> None:
    """The umask has no effect. A folder that an older version left open to others is closed."""
    import paramiko

    notes = tmp_path / ".sniperface"
    (notes / "ssh").mkdir(parents=True)
    keys = HostKeys(MACHINE, notes)
    keys.note(paramiko.ECDSAKey.generate())
    native.write_config(MACHINE, keys, "ann")
    with Lock(notes / "launching.lock", {}).acquire():
        found = {path: path.stat().st_mode & 0o777 for path in (notes, *notes.rglob("*"))}
    assert {oct(mode) for path, mode in found.items() if path.is_dir()} == {"0o700"}
    assert {oct(mode) for path, mode in found.items() if path.is_file()} == {"0o600"}
    assert len(found) == 5
    private_folder(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "address",
    [
        {"host": "-oProxyCommand=id"}, {"host": "a b"}, {"host": "a\nProxyCommand id"}, {"host": "a;id"},
        {"host": "$(id)"}, {"host": 'a"'}, {"host": "x" * 300}, {"user": "root\n  ProxyCommand id"},
        {"user": "-l"}, {"user": "a b"}, {"user": "a;b"}, {"key": "/k\nProxyCommand id"},
    ],
)  # fmt: skip
def test_an_address_has_the_characters_of_one(address: dict[str, str]) -> None:
    with pytest.raises(WrongUse) as caught:
        Address(**{"host": "gpu-1", **address})
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("host", ["gpu-1", "10.0.0.1", "fd00::7", "::1", "my_box.local", "fe80::1%eth0", ""])
@pytest.mark.parametrize("user", ["root", "ann.b", "CORP\\ann", "pod-64411", None])
def test_an_ordinary_address_stays(host: str, user: str | None) -> None:
    assert Address(host, user=user).host == host


def test_a_host_is_never_taken_for_an_option() -> None:
    argv = native.command(Path("/c"), MACHINE, ["tmux"], terminal=True)
    assert argv[-3:] == ["--", "gpu-1", "tmux"]
    assert native.agent_command(Path("/c"), MACHINE)[-3:-1] == ["--", "gpu-1"]


@pytest.mark.parametrize("name", ["../../x", "a b", "a\nb", "a/b"])
def test_the_name_of_a_machine_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadAnswer):
        HostKeys(replace(MACHINE, name=name), tmp_path)


def test_a_log_as_the_source_of_host_keys_has_bounds() -> None:
    """The machine writes the log, so endless lines, many keys and long numbers must stay within bounds."""
    key = base64.b64encode(b"x" * 40).decode()
    lines = [LogLine(f"sniperface host key: ssh-{number} {key}", "container") for number in range(1000)]
    lines += [LogLine(f"sniperface host key: ssh-long {'A' * 100_000}", "container")]
    lines += [LogLine(f"sniperface hardware: gpus={'9' * 5000} memory_gib=1.2.3", "container")]
    lines += [LogLine("sniperface bad start: \x1b[2J" + "x" * 100_000, "container")]
    found = identity.read(lines)
    assert len(found.host_keys) == identity.MOST_KEYS
    assert found.gpus is None
    assert found.bad_start.startswith("\\x1b[2J")
    assert len(found.bad_start) < 400
    endless = (b"data: " + b"x" * 65536 if number == 0 else b"x" * 65536 for number in range(200))
    whole = [b'\n\nid: 1\ndata: {"line": "a", "source": "container"}\n\n']
    assert [line.text for line in events.parse([*endless, *whole])] == ["a"]
    assert list(events.parse([b"data: " + b"[" * 100_000 + b"\n\n"])) == []
