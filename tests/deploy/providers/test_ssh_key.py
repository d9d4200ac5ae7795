"""The project's SSH key is created once, is private, and works with OpenSSH."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.providers.ssh_key import project_key, sid_of
from deploy.specs.settings import Docker, Settings, Target


def settings(project: Path, key: str | None = None) -> Settings:
    return Settings(project, Target("docker", "docker", root="/workspace", options=Docker(key=key)))


def ssh_keygen(*argv: str | Path) -> str:
    if not shutil.which("ssh-keygen"):
        pytest.skip("needs ssh-keygen: install openssh-client")
    return subprocess.run(["ssh-keygen", *argv], check=True, capture_output=True, text=True).stdout.strip()


def test_the_key_is_made_once_and_openssh_reads_it(tmp_path: Path) -> None:
    path, public = project_key(settings(tmp_path))
    assert project_key(settings(tmp_path)) == (path, public)
    assert public.startswith("ssh-ed25519 ")
    assert ssh_keygen("-y", "-f", path).split()[:2] == public.split()[:2]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_that_make_it_at_once_get_the_same_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: project_key(settings(tmp_path)), range(8)))) == 1
    assert [path.name for path in (tmp_path / ".sniperface").iterdir()] == ["key"]


def test_a_key_of_the_users_own_may_have_a_passphrase_when_its_public_half_lies_beside_it(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ed25519", "-N", "secret words", "-f", tmp_path / "mine")
    path, public = project_key(settings(tmp_path, "mine"))
    assert path == tmp_path / "mine"
    assert public == (tmp_path / "mine.pub").read_text().strip()
    (tmp_path / "mine.pub").unlink()
    with pytest.raises(WrongUse, match="not an OpenSSH private key without a passphrase"):
        project_key(settings(tmp_path, "mine"))


@pytest.mark.parametrize(
    "changed",
    [
        lambda key: key.replace(b"\n", b"\r\n"),
        lambda key: key.rstrip(b"\n"),
        lambda key: b"\xef\xbb\xbf" + key,
    ],
    ids=["CRLF", "no newline at the end", "byte order mark"],
)
def test_a_key_that_an_editor_of_windows_changed_is_refused_as_ssh_would(
    tmp_path: Path, changed: Callable[[bytes], bytes]
) -> None:
    """Paramiko reads most of them. `attach`, `ssh`, `exec` and large files then fail on a machine that costs money."""
    mine = tmp_path / "mine"
    ssh_keygen("-q", "-t", "ed25519", "-N", "", "-f", mine)
    assert project_key(settings(tmp_path, "mine"))[0] == mine
    mine.write_bytes(changed(mine.read_bytes()))
    with pytest.raises(subprocess.CalledProcessError):
        ssh_keygen("-y", "-f", mine)
    with pytest.raises(WrongUse, match="ssh refuses it: save it as UTF-8 without a byte order mark, with LF"):
        project_key(settings(tmp_path, "mine"))


def test_a_pem_key_may_have_line_ends_of_windows(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    ssh_keygen("-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", mine)
    mine.write_bytes(mine.read_bytes().replace(b"\n", b"\r\n"))
    assert ssh_keygen("-y", "-f", mine)
    assert project_key(settings(tmp_path, "mine"))[0] == mine


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="cannot be read"):
        project_key(settings(tmp_path, "C:\\Users\\me\\.ssh\\id_ed25519"))


@pytest.mark.parametrize(
    ("told", "sid"),
    [
        (
            '"desk\\me","S-1-5-21-1004336348-1177238915-682003330-1001"\r\n',
            "S-1-5-21-1004336348-1177238915-682003330-1001",
        ),
        ('"azuread\\mé s-1","S-1-12-1-1111-2222-3333-4444"\r\n', "S-1-12-1-1111-2222-3333-4444"),
        ("User Name SID\r\n======= ===\r\nVM\\me S-1-5-21-0-0-0-1000\r\n", "S-1-5-21-0-0-0-1000"),
        ("ERROR: access is denied", None),
        ("", None),
    ],
)
def test_windows_tells_who_a_user_is(told: str, sid: str | None) -> None:
    """Access to the key is granted to this identifier, because the name of an account may not resolve."""
    assert sid_of(told) == sid
