"""`ssh`, `ssh-config` for plain ssh and rsync, and `train --env`, with a real SSH server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from deploy.errors import WrongUse
from deploy.runs import records
from deploy.shell.entry import FIRST, entry_of, include, install
from deploy.shell.ssh_config import Way
from deploy.specs.machine import Address
from deploy.specs.request import parse_env
from tests.deploy.commands.test_remote import Box, make_box
from tests.deploy.conftest import Project, wait_until
from tests.deploy.support.servers import SSHD, openssh

needs_sshd = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs OpenSSH's client and server")


@pytest.fixture
def box(project: Project, tmp_path: Path) -> Iterator[Box]:
    """A box with a separate home folder, which holds the user's ~/.ssh."""
    home = tmp_path / "a home"
    (home / ".ssh").mkdir(parents=True)
    project.env["HOME"] = str(home)
    yield from make_box(project, tmp_path, openssh)


@pytest.mark.slow
@needs_sshd
def test_plain_ssh_reaches_a_machine_by_the_name_that_was_written(box: Box, tmp_path: Path) -> None:
    """The alias has the target's name before the first run, and the run's id afterwards. The user's entries stay."""
    config = tmp_path / "a home" / ".ssh" / "config"
    config.write_text("Host mine\n  HostName 192.0.2.1\n")
    box.invoke("deploy")
    for_target = box.json("ssh-config")
    assert for_target["alias"] == "sniperface-box"
    run = box.json("train", "--env", "SEEN=a b=c", "--env", "NCCL_DEBUG=INFO")["run_id"]
    for_run = box.json("ssh-config")
    assert for_run["alias"] == f"sniperface-{run}"
    for told in (for_target, for_run, box.json("ssh-config")):
        argv = ["ssh", "-F", str(config), "-o", "BatchMode=yes", told["alias"], "ls", "-d", f"'{told['folder']}'"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=config.parent)
        assert done.stdout.strip() == told["folder"], done.stderr
    included = config.parent / "sniperface.conf"
    assert config.read_text() == f'Include "{included}"\n\nHost mine\n  HostName 192.0.2.1\n'
    assert included.read_text().count("Host sniperface-") == 2
    plan = records.carried_out(box.project.path / "runs", run)
    assert (plan["env"]["SEEN"], plan["env"]["NCCL_DEBUG"]) == ("a b=c", "INFO")


@pytest.mark.slow
@needs_sshd
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")
def test_a_shell_on_the_machine_is_in_the_folder_of_the_run(box: Box, tmp_path: Path) -> None:
    """`ssh` opens a shell in a terminal and returns the shell's exit code. It refuses to run without a terminal."""
    run = box.json("train")["run_id"]
    assert "needs a terminal" in box.invoke("ssh", code=2).stderr
    terminal = ["tmux", "-L", f"{box.project.socket}-t", "-f", "/dev/null"]
    command = f"'{sys.executable}' -m invoke ssh --on box; echo $? > '{tmp_path}/code'"
    try:
        subprocess.run(
            [*terminal, "new-session", "-d", "-x", "150", "-y", "40", "-c", str(box.project.path), command],
            check=True, env=box.project.environment,
        )  # fmt: skip
        seen = tmp_path / "seen"
        subprocess.run([*terminal, "send-keys", f"pwd > '{seen}' && exit 7", "Enter"], check=True)
        wait_until((tmp_path / "code").exists, 60)
        wait_until(lambda: (tmp_path / "code").read_text().strip())
        assert (tmp_path / "code").read_text().strip() == "7"
        assert Path(seen.read_text().strip()) == box.root / "runs" / run
    finally:
        subprocess.run([*terminal, "kill-server"], check=False, capture_output=True)


def test_this_computer_is_no_machine_to_enter(project: Project) -> None:
    for words in (["ssh"], ["ssh-config"]):
        assert "is this computer" in project.invoke(*words, code=2).stderr


def test_an_entry_goes_the_way_that_openssh_goes() -> None:
    way = Way("10.0.0.7", "me", 2201, keys=("/home/me/.ssh/work",), agent="none", jumps=("gate:22", "inner"))
    address = Address("box", 2201, "me", None)
    told = entry_of("sniperface-r", way, address, "sniperface-m", PurePosixPath('/p/50% "x"/m.known_hosts'))
    assert told.splitlines() == [
        "Host sniperface-r", "  HostName 10.0.0.7", "  Port 2201", "  User me", '  IdentityFile "/home/me/.ssh/work"',
        "  IdentityAgent none", "  ProxyJump gate:22,inner", "  HostKeyAlias sniperface-m",
        '  UserKnownHostsFile "/p/50%% \\"x\\"/m.known_hosts"', "  StrictHostKeyChecking yes",
    ]  # fmt: skip


@pytest.mark.parametrize("marked", ["utf-8-sig", "utf-16"])
def test_a_users_entries_stay_as_they_are_in_any_encoding(tmp_path: Path, marked: str) -> None:
    """A file of an old editor of Windows is kept byte for byte. Marks at the beginning, which ssh cannot read, go."""
    own, entry = b"# der Schl\xfcssel\r\nHost mine\r\n", "Host sniperface-a\n  Port 1\n"
    config = tmp_path / ".ssh" / "config"
    config.parent.mkdir()
    config.write_bytes(own)
    included = install(tmp_path, "sniperface-a", entry)
    line = f"{include(included)}\n\n".encode()
    assert config.read_bytes() == line + own
    install(tmp_path, "sniperface-a", entry)
    assert config.read_bytes() == line + own
    config.write_bytes("Host größe\r\n".encode(marked))
    install(tmp_path, "sniperface-a", entry)
    assert config.read_bytes() == line + "Host größe\r\n".encode()


def test_an_entry_of_windows_has_slashes() -> None:
    address = Address("203.0.113.5", 40022, "root", r"C:\Users\me x\.sniperface\id")
    told = entry_of("a", Way("203.0.113.5", "root", 40022), address, "m", PureWindowsPath(r"C:\p\m.known_hosts"))
    assert '  IdentityFile "C:/Users/me x/.sniperface/id"\n  IdentitiesOnly yes' in told


def test_gits_ssh_for_windows_finds_the_entries() -> None:
    """It takes C:/… for a path below ~/.ssh, and reads nothing there. The name alone is right for OpenSSH too."""
    assert include(PureWindowsPath(r"C:\Users\me x\.ssh\sniperface.conf")) == "Include sniperface.conf"
    assert include(PurePosixPath("/home/me x/.ssh/sniperface.conf")) == 'Include "/home/me x/.ssh/sniperface.conf"'


@pytest.mark.parametrize("before", [None, "", "Host x\n  User y\n", "include sniperface.conf\nHost x\n"])
def test_the_users_file_is_changed_once(tmp_path: Path, before: str | None) -> None:
    """The `Include` line is added once. An entry of the same name is replaced; the rest of both files stays."""
    users = tmp_path / ".ssh" / "config"
    if before is not None:
        users.parent.mkdir()
        users.write_text(before)
    for port in (1, 2):
        for alias in ("sniperface-a", "sniperface-ab"):
            install(tmp_path, alias, f"Host {alias}\n  Port {port}\n")
    text = users.read_text()
    assert text.lower().count("include") == 1
    assert text.endswith(before or "")
    own = (tmp_path / ".ssh" / "sniperface.conf").read_text()
    assert own.startswith(FIRST)
    assert own.count("Host ") == 2
    assert "Port 1" not in own
    if os.name == "posix":
        assert (users.stat().st_mode & 0o077) == 0 or before is not None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], ()),
        (["A=1", "B=", "A=2=3"], ("A=2=3", "B=")),
        (["NCCL_DEBUG=INFO"], ("NCCL_DEBUG=INFO",)),
        (["TEXT=größe $HOME 'x'\n"], ("TEXT=größe $HOME 'x'\n",)),
    ],
)
def test_variables_of_the_job(given: list[str], found: tuple[str, ...]) -> None:
    assert parse_env(given) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("A", "write --env KEY=VALUE"),
        ("1A=x", "write --env KEY=VALUE"),
        ("=x", "write --env KEY=VALUE"),
        ("SNIPERFACE_DEVICES=0", "decided by the launcher"),
        ("WORLD_SIZE=4", "decided by the launcher"),
        ("MY_TOKEN=x", r"secrets: \[MY_TOKEN\]"),
        ("A=\0", "NUL byte"),
    ],
)
def test_a_variable_that_cannot_be_set_is_refused(given: str, words: str) -> None:
    with pytest.raises(WrongUse, match=words):
        parse_env([given])


def test_a_run_that_goes_on_keeps_its_variables(project: Project) -> None:
    """A different value is refused as a contradiction, as for every other flag."""
    project.invoke("train", "--detach", "--env", "A=1", "--set", "train.step_s=0.2", "--set", "train.epochs=500")
    project.invoke("stop")
    refused = project.invoke("train", "--resume", "auto", "--env", "A=2", code=2)
    assert "--env A=2 contradicts run" in refused.stderr
    plan = project.json("train", "--resume", "auto", "--dry-run")
    assert plan["env"]["A"] == "1"
