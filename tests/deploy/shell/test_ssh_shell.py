"""The shell of a machine by SSH, with OpenSSH's and asyncssh's servers: its verbs, cut connections, and errors."""

from __future__ import annotations

import io
import os
import re
import select
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import paramiko
import pytest

from deploy.errors import DeployError, NoMachine, StepFailed, WrongUse, quoted
from deploy.shell import agent_keys, native
from deploy.shell import link as links
from deploy.shell.agent_keys import public_half
from deploy.shell.agent_program import BOOTSTRAP
from deploy.shell.host_keys import HostKeys
from deploy.shell.jump_hosts import ProxyProgram
from deploy.shell.link import LinkLost, NoAgent
from deploy.shell.ssh import SshShell
from deploy.shell.ssh_config import of_drive, parts
from deploy.specs.machine import Machine
from tests.deploy.conftest import HOSTILE_NAMES, wait_until
from tests.deploy.support.proxy import Proxy, proxy
from tests.deploy.support.servers import SSHD, Server, asyncssh_server, make_key, openssh
from tests.support.faults import Fault
from tests.support.load import under_load
from tests.support.ports import free_port

needs_sshd = pytest.mark.skipif(SSHD is None, reason="needs an SSH server: apt-get install openssh-server")
needs_ssh = pytest.mark.skipif(
    shutil.which("ssh") is None, reason="needs an SSH client: apt-get install openssh-client"
)
SPLIT_BY_SOME = [
    "", "a b", "a\\\\b", "a\\b", "it's", "\\'", "$HOME", "`id`", "!x", "a!b", "!!", "a\nb", "~", "*", "?", "=foo",
    "%1", "%self", "{a,b}", "^x^y", "#c", "a=b", "a\tb", "é", ";", "&&", "(", "[a]",
]  # fmt: skip
MAKERS: dict[str, Callable[..., Any]] = {"openssh": openssh, "asyncssh": asyncssh_server}


@pytest.fixture(scope="module", params=list(MAKERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each of the two servers, started once for all tests of this file."""
    if request.param == "openssh" and SSHD is None:
        pytest.skip("needs an SSH server: apt-get install openssh-server")
    with MAKERS[request.param](tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without keys, configuration or known hosts, and no SSH agent."""
    path = tmp_path / "home"
    (path / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return path


@pytest.fixture
def open_shell(tmp_path: Path) -> Iterator[Callable[..., SshShell]]:
    """A function that makes shells. They are closed at the end of the test."""
    with ExitStack() as stack:

        def make(machine: Machine, **options: Any) -> SshShell:
            shell = SshShell(machine, tmp_path / "notes", **options)
            stack.callback(shell.close)
            return shell

        yield make


@pytest.fixture(scope="module")
def shell(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshShell]:
    """One connection for all tests that do not disturb it."""
    made = SshShell(server.machine(), tmp_path_factory.mktemp("notes"))
    yield made
    made.close()


@pytest.fixture
def line(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that can cut the connection. A shell notices silence after three seconds."""
    monkeypatch.setattr(links, "SILENCE_S", 3.0)
    with proxy(server.port) as made:
        yield made


# Verbs.


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "-rf", "a\nb", "$(touch x)", "~"])
def test_files_of_any_name(shell: SshShell, tmp_path: Path, name: str) -> None:
    place = tmp_path / "far" / name
    shell.write(place, b"\xff\0 first")
    shell.write_at(place, 3, b"F")
    assert shell.read(place, 2) == place.read_bytes()[2:] == b" First"
    assert shell.read(place, 99) == b""
    assert (shell.size(place), shell.size(place.with_name("none"))) == (8, None)
    assert shell.listdir(place.parent) == [name]
    shell.replace(place, place.with_name("other"))
    shell.replace(place, place.with_name("other"))  # a repeated request: the file is already renamed
    with pytest.raises(FileNotFoundError):
        shell.read(place)
    shell.remove(place.parent)
    shell.remove(place.parent)
    assert not place.parent.exists()


def test_commands_get_their_words_as_they_are(shell: SshShell, tmp_path: Path) -> None:
    """No shell interprets the words. Output need not be text. The error of a failed command has its last lines."""
    words = ["a b", "$HOME", "`x`", "'\"", "ü", "", "*", "a\nb"]
    show = "import sys; sys.stdout.write(repr(sys.argv[1:]))"
    assert shell.run([sys.executable, "-c", show, *words]).text == repr(words)
    result = shell.run(["sh", "-c", "printf '\\377\\n'; cat; pwd"], cwd=tmp_path, stdin=b"in\n")
    assert result.stdout == b"\xff\nin\n" + str(tmp_path).encode() + b"\n"
    assert result.text.startswith("�")
    with pytest.raises(StepFailed, match="failed with exit code 3") as caught:
        shell.run(["sh", "-c", "seq 20; exit 3"])
    assert caught.value.evidence[-1] == "20"
    with pytest.raises(StepFailed, match="was not found"):
        shell.run(["no-such-program"])
    with pytest.raises(StepFailed, match=r"did not end within 0\.3 s"):
        shell.run(["sleep", "9"], limit_s=0.3)


def test_a_secret_is_on_no_command_line(shell: SshShell) -> None:
    """While a command with a secret runs, no command line on the machine or on this computer contains the secret."""
    looked = shell.run(
        ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; test -n \"$TOKEN\""], env={"TOKEN": "s3cr3t-value"}
    )
    assert "agent" in looked.text or "python3" in looked.text
    assert "s3cr3t-value" not in looked.text


def test_output_streams(shell: SshShell) -> None:
    """Lines arrive while the command runs. Closing the stream ends the command."""
    assert list(shell.stream(["sh", "-c", "echo one; printf 'tw\\303\\266'"])) == ["one", "twö"]
    with pytest.raises(StepFailed, match="exit code 5") as caught:
        list(shell.stream(["sh", "-c", "echo why; exit 5"]))
    assert caught.value.evidence == ("why",)
    stream = shell.stream(["sh", "-c", "echo $$; exec sleep 60"])
    pid = int(next(stream))
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert shell.clock() > 0


def test_many_threads_share_a_shell(shell: SshShell, tmp_path: Path) -> None:
    """All threads use one connection and one agent."""
    (tmp_path / "file").write_bytes(bytes(range(200)))
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(shell.read(tmp_path / "file", n, 1))) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [bytes([n]) for n in range(20)]


@needs_ssh
def test_the_systems_ssh_goes_the_same_way(shell: SshShell) -> None:
    """Terminals and large files use the system's ssh. It gets quoted words, and the host key that was checked."""
    words = ["printf", "%s|", "a b", "$HOME", "'", '"', "ü"]
    done = subprocess.run([*shell.terminal(words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    assert done.stdout.decode().replace("\r", "") == "a b|$HOME|'|\"|ü|"
    link = shell.native_link()
    assert link.submit("clock").result() > 0
    link.close()


@needs_sshd
@pytest.mark.parametrize(
    "line",
    [
        "RemoteCommand tmux new -A -s mine\n  RequestTTY force",  # a usual way to a session of one's own
        "SessionType none\n  StdinNull yes\n  ForkAfterAuthentication yes",
        "PermitLocalCommand yes\n  LocalCommand touch {mark}",
        "IgnoreUnknown UseKeychain\n  UseKeychain yes\n  AddKeysToAgent yes",  # macOS; other ssh do not know the first
        "ControlMaster auto\n  ControlPath ~/.ssh/%C\n  ControlPersist 600",
        "LogLevel DEBUG3\n  VisualHostKey yes",
        "SendEnv *\n  SetEnv LANG=xx\n  Compression yes",
        "Match final all\n  Port 1",
        "LocalForward 1 127.0.0.1:1\n  ExitOnForwardFailure yes\n  Tunnel yes",
        "CanonicalizeHostname yes\n  CanonicalDomains example.org\n  HashKnownHosts yes",
    ],
    ids=lambda line: line.split(" ")[0],
)
def test_what_is_meant_for_a_users_own_logins_changes_nothing(
    server: Server, home: Path, tmp_path: Path, open_shell: Callable[..., SshShell], line: str
) -> None:
    """Both SSH clients read the user's configuration, which may start a program or a tunnel at each login."""
    config = home / ".ssh" / "config"
    config.write_text("Host *\n  " + line.replace("{mark}", str(tmp_path / "mark")) + "\n", encoding="utf-8")
    shell = open_shell(server.machine())
    assert shell.run(["printf", "ü"]).text == "ü"
    done = subprocess.run(
        [*shell.terminal(["printf", "%s|", "a b"])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=under_load(60),
    )
    assert (done.stdout.decode().replace("\r", ""), done.returncode) == ("a b|", 0), done.stderr
    link = shell.native_link()
    assert link.submit("clock").result() > 0
    link.close()
    assert not (tmp_path / "mark").exists()


# Cut connections.


def test_a_dropped_connection_is_made_anew(
    server: Server, line: Proxy, open_shell: Callable[..., SshShell], tmp_path: Path
) -> None:
    """A request that may run twice is retried. Another one fails, and the error says that its result is unknown."""
    shell = open_shell(server.machine(port=line.port))
    said: list[str] = []
    shell.on_loss = said.append
    shell.write(tmp_path / "a", b"1")
    line.drop()
    assert shell.read(tmp_path / "a") == b"1"
    assert shell.reconnects == 1
    assert "trying again" in said[0]
    assert said[-1] == "connected again"
    threading.Timer(0.3, line.drop).start()
    with pytest.raises(StepFailed, match="it is not known whether 'run' was carried out"):
        shell.run(["sleep", "5"])
    threading.Timer(0.3, line.drop).start()
    assert shell.run(["sh", "-c", "sleep 1; echo done"], again=True).text == "done\n"


def test_a_stream_ends_or_begins_anew_where_it_is_cut(
    server: Server, line: Proxy, open_shell: Callable[..., SshShell]
) -> None:
    """With `again` the command is started once more. Otherwise the stream ends with an error."""
    shell = open_shell(server.machine(port=line.port))
    words = ["sh", "-c", "for n in 1 2 3; do echo $n; sleep 0.3; done"]
    for again in (False, True):
        stream = shell.stream(words, again=again)
        assert next(stream) == "1"
        line.drop()
        if again:
            assert list(stream)[-3:] == ["1", "2", "3"]
        else:
            with pytest.raises(LinkLost):
                list(stream)


@pytest.mark.slow
def test_a_log_goes_on_over_a_cut(
    server: Server, line: Proxy, open_shell: Callable[..., SshShell], tmp_path: Path, fault: Fault
) -> None:
    """No byte is lost or doubled. Reading resumes within three seconds after the network is back."""
    shell = open_shell(server.machine(port=line.port))
    log = tmp_path / "train.log"
    written = [f"step {number} größe\n".encode() for number in range(3000)]
    over = threading.Event()

    def write() -> None:
        with open(log, "ab", buffering=0) as file:
            for each in written:
                file.write(each)
                over.wait(0.002)

    log.touch()
    writer = threading.Thread(target=write)
    writer.start()
    read = bytearray()
    restored = 0.0
    came_back = 0.0
    thread = None

    def cut() -> None:
        nonlocal restored
        line.cut()
        fault.strikes()
        over.wait(5)
        restored = time.monotonic()
        line.restore()

    while len(read) < sum(map(len, written)):
        read += shell.read(log, len(read))
        if restored and not came_back:
            came_back = time.monotonic()
        if thread is None and len(read) > 1000:
            thread = threading.Thread(target=cut)
            thread.start()
    writer.join()
    assert thread
    thread.join()
    fault.log(bytes(read), b"".join(written))
    assert came_back - restored < under_load(3)
    fault.leaves_out(**dict.fromkeys(("truth", "checkpoints", "machines"), "there is a log and no run"))


@pytest.mark.parametrize("way", [pytest.param("cut", marks=pytest.mark.slow), "refuse"])
def test_patience_ends(server: Server, line: Proxy, open_shell: Callable[..., SshShell], way: str) -> None:
    """A line that stays cut, or a machine that refuses, gives an error of one sentence after `patience_s`."""
    shell = open_shell(server.machine(port=line.port))
    shell.patience_s = 2
    shell.clock()
    getattr(line, way)()
    if way == "refuse":
        line.drop()
    started = time.monotonic()
    with pytest.raises(LinkLost) as caught:
        shell.clock()
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < under_load(25)
    line.restore()
    shell.patience_s = 60
    assert shell.clock() > 0


@pytest.mark.slow
def test_a_machine_that_moved_is_found(server: Server, open_shell: Callable[..., SshShell]) -> None:
    """A restarted machine is found at its new port, even if the provider does not answer at first.

    A machine that the provider no longer knows is reported as gone.
    """
    there: list[Machine | None] = []
    away = ["the provider does not answer"]

    def find() -> Machine | None:
        if away:
            raise NoMachine(away.pop())
        return there[0]

    with proxy(server.port) as before, proxy(server.port) as after:
        shell = open_shell(server.machine(port=before.port), find=find)
        shell.clock()
        there.append(server.machine(port=after.port))
        before.refuse()
        before.drop()
        assert shell.clock() > 0
        assert shell.machine.address is not None
        assert shell.machine.address.port == after.port
        there[0] = None
        after.refuse()
        after.drop()
        with pytest.raises(StepFailed, match="the machine box is gone"):
            shell.clock()


def test_closing_never_waits_for_a_dead_line(
    server: Server, line: Proxy, open_shell: Callable[..., SshShell], tmp_path: Path
) -> None:
    """`close` returns soon, even with full buffers. Pending requests and blocked writers end."""
    shell = open_shell(server.machine(port=line.port))
    shell.clock()
    line.cut()
    pending = shell.link().submit("clock")
    writer = threading.Thread(
        target=lambda: shell.link().submit("write", path=str(tmp_path / "x"), data=bytes(64 << 20)), daemon=True
    )
    writer.start()
    wait_until(lambda: line.counters()["open"] == 1)
    started = time.monotonic()
    shell.close()
    assert time.monotonic() - started < under_load(5)
    with pytest.raises(LinkLost):
        pending.result()
    writer.join(5)
    assert not writer.is_alive()


def test_nothing_is_left_behind(server: Server, open_shell: Callable[..., SshShell]) -> None:
    """No threads remain on this computer, and no agents on the machine."""
    before = set(threading.enumerate())
    shell = open_shell(server.machine())
    agents = [shell.run(["sh", "-c", "echo $PPID"]).text.strip()]
    for link in (shell.another_link(), shell.separate_link()):
        agents.append(link.submit("run", argv=["sh", "-c", "echo $PPID"]).result()[1].decode().strip())
        link.close()
    shell.close()
    wait_until(lambda: not [pid for pid in agents if Path(f"/proc/{pid}").exists()])
    wait_until(lambda: not [each for each in threading.enumerate() if each not in before])


# Errors.


def sentence(shell: SshShell, kind: type[DeployError] = DeployError) -> str:
    """Use the shell for the first time, which must fail with `kind`. Returns the message, of one line."""
    shell.patience_s = 0.5
    with pytest.raises(kind) as caught:
        shell.clock()
    assert "\n" not in caught.value.message
    assert "Traceback" not in " ".join(caught.value.evidence)
    return caught.value.message


def test_what_keeps_a_key_out(server: Server, open_shell: Callable[..., SshShell], tmp_path: Path) -> None:
    """Each wrong key gives its own message at once."""
    make_key(tmp_path / "wrong")
    assert "rejects the key" in sentence(open_shell(server.machine(key=str(tmp_path / "wrong"))), WrongUse)
    assert "cannot be read" in sentence(open_shell(server.machine(key=str(tmp_path / "none"))), WrongUse)
    assert "public half" in sentence(open_shell(server.machine(key=str(tmp_path / "wrong.pub"))), WrongUse)
    (tmp_path / "putty").write_text("PuTTY-User-Key-File-3: ssh-ed25519\n")
    assert "PuTTY" in sentence(open_shell(server.machine(key=str(tmp_path / "putty"))), WrongUse)
    locked = tmp_path / "locked"
    lock(server.key, locked)
    shell = open_shell(server.machine(key=str(locked)))
    shell.patience_s = 0.5
    with pytest.raises(WrongUse, match="has a passphrase") as caught:
        shell.clock()
    assert caught.value.next_command == f"ssh-add {quoted(str(locked))}"


def test_what_keeps_from_getting_there(server: Server, open_shell: Callable[..., SshShell]) -> None:
    assert "refused" in sentence(open_shell(server.machine(port=free_port())), LinkLost).lower()
    assert "the host name cannot be resolved" in sentence(
        open_shell(server.machine(host="no.such.host.invalid")), LinkLost
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:  # an open port that does not speak SSH

        def answer() -> None:
            client, _ = mute.accept()
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()

        threading.Thread(target=answer, daemon=True).start()
        assert "cannot be reached" in sentence(open_shell(server.machine(port=mute.getsockname()[1])), LinkLost)


@needs_sshd
def test_a_machine_without_a_good_python(tmp_path: Path, open_shell: Callable[..., SshShell]) -> None:
    """A missing or too old Python is an error at once, without retries. A login script that prints does no harm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "echo"):
        (folder / name).symlink_to(f"/bin/{name}")
    with openssh(tmp_path / "server", more=f"SetEnv PATH={folder} HOME={tmp_path / 'server'}\n") as server:
        assert "has no `python3`" in sentence(open_shell(server.machine()), NoAgent)
        old = folder / "python3"
        old.write_text("#!/bin/sh\necho 3.6.8 >&2\nexit 86\n")
        old.chmod(0o755)
        assert "`python3` is 3.6.8: install 3.9 or newer there" in sentence(open_shell(server.machine()), NoAgent)
        old.write_text(f'#!/bin/sh\necho Willkommen, Größe\nexec {sys.executable} "$@"\n')
        assert open_shell(server.machine()).clock() > 0


# The identity of the machine.


def known_hosts(home: Path, server: Server, key: str, port: int | None = None) -> None:
    (home / ".ssh" / "known_hosts").write_text(
        f"# a comment\nbad line\n@cert-authority * {key}\n[127.0.0.1]:{port or server.port} {key}\n"
    )


def test_known_hosts_decides(server: Server, home: Path, tmp_path: Path, open_shell: Callable[..., SshShell]) -> None:
    """A known host key is accepted without a question. With a different key nothing is sent."""
    known_hosts(home, server, server.host_key)
    assert open_shell(server.machine(host_keys=())).clock() > 0
    known_hosts(home, server, " ".join(make_key(tmp_path / "other").split()[:2]))
    words = sentence(open_shell(server.machine(host_keys=())), StepFailed)
    assert "has another host key (SHA256:" in words
    assert "nothing was sent to it" in words


def test_a_hashed_known_hosts_is_read(server: Server, home: Path, open_shell: Callable[..., SshShell]) -> None:
    import paramiko

    name = paramiko.HostKeys.hash_host(f"[127.0.0.1]:{server.port}")
    (home / ".ssh" / "known_hosts").write_text(f"{name} {server.host_key}\n")
    assert open_shell(server.machine(host_keys=())).clock() > 0


def test_an_unknown_key_is_asked_about_once(server: Server, open_shell: Callable[..., SshShell]) -> None:
    """The answer no refuses the key. The answer yes is stored, so the next shell does not ask."""
    asked: list[str] = []

    def answer(value: bool) -> Callable[[str], bool]:
        return lambda question: asked.append(question) or value

    words = sentence(open_shell(server.machine(host_keys=()), ask=answer(False)), WrongUse)
    assert "is not known: if SHA256:" in words
    assert "fingerprint: SHA256:" in words
    assert open_shell(server.machine(host_keys=()), ask=answer(True)).clock() > 0
    assert len(asked) == 2
    assert "ssh-ed25519 SHA256:" in asked[0]
    assert open_shell(server.machine(host_keys=()), ask=answer(False)).clock() > 0
    assert len(asked) == 2


@pytest.mark.parametrize("pin", ["host_keys", "fingerprint"])
def test_a_pinned_key_is_the_only_right_one(
    server: Server, home: Path, tmp_path: Path, open_shell: Callable[..., SshShell], pin: str
) -> None:
    """The provider or the target's file pins a key. Then known_hosts has no effect, and the user is not asked."""
    import base64

    from deploy.shell.host_keys import fingerprint

    other = " ".join(make_key(tmp_path / "other").split()[:2])
    known_hosts(home, server, other)
    prints = {key: fingerprint(base64.b64decode(key.split()[1])) for key in (server.host_key, other)}
    right = {"host_keys": (server.host_key,)} if pin == "host_keys" else {"fingerprint": prints[server.host_key]}
    wrong = {"host_keys": (other,)} if pin == "host_keys" else {"fingerprint": prints[other]}
    nobody: Any = lambda _: pytest.fail("asked")  # noqa: E731
    assert open_shell(server.machine(**{"host_keys": (), **right}), ask=nobody).clock() > 0
    known_hosts(home, server, server.host_key)
    words = sentence(open_shell(server.machine(**{"host_keys": (), **wrong}), ask=nobody), StepFailed)
    assert prints[server.host_key] in words


def test_host_keys_that_cannot_be_checked(server: Server, open_shell: Callable[..., SshShell]) -> None:
    words = sentence(open_shell(server.machine(host_keys=("ssh-new AAAA", "x"))), StepFailed)
    assert "none of the host keys" in words


# The user's own ssh configuration.


def test_an_alias_brings_everything(server: Server, home: Path, open_shell: Callable[..., SshShell]) -> None:
    """An alias provides host, port, user and key."""
    machine = server.machine()
    assert machine.address is not None
    (home / ".ssh" / "config").write_text(
        f"Host mybox\n  HostName 127.0.0.1\n  Port {server.port}\n  User {machine.address.user}\n"
        f'  IdentityFile "{server.key}"\n  ControlMaster auto\n  ControlPath {home}/%C\n'
    )
    known_hosts(home, server, server.host_key)
    shell = open_shell(server.machine(host="mybox", port=None, user=None, key=None, host_keys=()))
    assert shell.clock() > 0
    if shutil.which("ssh"):
        link = shell.native_link()
        assert link.submit("clock").result() > 0
        link.close()
        assert not list(home.glob("?" * 40))  # no multiplexing


@needs_sshd
def test_a_gateway_is_gone_through(tmp_path: Path, home: Path, open_shell: Callable[..., SshShell]) -> None:
    """ProxyJump works. The user must confirm an unknown host key of the gateway; a changed key is refused."""
    with openssh(tmp_path / "inner") as inner, openssh(tmp_path / "outer") as outer:
        config = home / ".ssh" / "config"
        config.write_text(
            f"Host gate\n  HostName 127.0.0.1\n  Port {outer.port}\n  IdentityFile {outer.key}\n"
            f"Host deep\n  HostName 127.0.0.1\n  Port {inner.port}\n  ProxyJump gate\n"
        )
        machine = inner.machine(host="deep", port=None)
        assert f"the host key of the gateway gate ([127.0.0.1]:{outer.port}) is not known" in sentence(
            open_shell(machine), WrongUse
        )
        asked: list[str] = []
        shell = open_shell(machine, ask=lambda question: asked.append(question) or True)
        way = shell.run(["sh", "-c", "echo $SSH_CONNECTION"]).text.split()
        assert int(way[3]) == inner.port
        assert len(asked) == 1
        if shutil.which("ssh"):
            link = shell.native_link()
            assert link.submit("clock").result() > 0
            link.close()
        shell.close()
        known_hosts(home, outer, inner.host_key)
        assert "has another host key" in sentence(open_shell(machine), StepFailed)


@needs_sshd
def test_gateways_behind_gateways(tmp_path: Path, home: Path, open_shell: Callable[..., SshShell]) -> None:
    """The first gateway may have its own gateway. The user confirms the host key of each. A cycle is refused."""
    with openssh(tmp_path / "a") as far, openssh(tmp_path / "b") as near, openssh(tmp_path / "c") as inner:
        (home / ".ssh" / "config").write_text(
            f"Host far\n  HostName 127.0.0.1\n  Port {far.port}\n  IdentityFile {far.key}\n"
            f"Host near\n  HostName 127.0.0.1\n  Port {near.port}\n  IdentityFile {near.key}\n  ProxyJump far\n"
            f"Host deep\n  HostName 127.0.0.1\n  Port {inner.port}\n  ProxyJump near\n"
            "Host round\n  ProxyJump about\nHost about\n  ProxyJump round\n"
        )
        asked: list[str] = []
        shell = open_shell(inner.machine(host="deep", port=None), ask=lambda question: asked.append(question) or True)
        assert shell.clock() > 0
        assert ["gateway far" in asked[0], "gateway near" in asked[1]] == [True, True]
        assert "more than 8 gateways" in sentence(open_shell(inner.machine(host="round", port=None)), WrongUse)


@needs_sshd
@pytest.mark.parametrize("criterion", ["Host mybox", "Match host mybox exec true", "Match originalhost mybox user *"])
def test_an_alias_of_an_included_file_brings_everything(
    server: Server, home: Path, open_shell: Callable[..., SshShell], criterion: str
) -> None:
    """Paramiko's own parser finds nothing in such a file, or stops at a criterion that it does not know."""
    machine = server.machine()
    assert machine.address is not None
    (home / ".ssh" / "config").write_text(f"Include {home}/.ssh/more.conf\n")
    (home / ".ssh" / "more.conf").write_text(
        f"{criterion}\n  HostName 127.0.0.1\n  Port {server.port}\n  User {machine.address.user}\n"
        f"  IdentityFile {server.key}\n"
    )
    known_hosts(home, server, server.host_key)
    assert open_shell(server.machine(host="mybox", port=None, user=None, key=None, host_keys=())).clock() > 0


@needs_sshd
def test_a_configuration_that_ssh_refuses_is_named(
    server: Server, home: Path, open_shell: Callable[..., SshShell]
) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  Prot 22\n")
    words = sentence(open_shell(server.machine()), WrongUse)
    assert "your SSH configuration cannot be read" in words
    assert "prot" in words.lower()


@needs_ssh
@pytest.mark.parametrize(("here", "there"), [("xterm-unheard-of", "xterm-256color"), ("ansi", ""), ("tmux", "")])
def test_a_terminal_that_the_machine_does_not_know_is_replaced(
    shell: SshShell, monkeypatch: pytest.MonkeyPatch, here: str, there: str
) -> None:
    """tmux and programs of a login refuse unknown ones, such as Ghostty's and kitty's on most hosts."""
    monkeypatch.setenv("TERM", here)
    told = shell.terminal(["sh", "-c", "true"])[-1]
    assert told == (f"env TERM={there} sh -c true" if there else "sh -c true")
    assert shell.terminal(["true"], interactive=False)[-1] == "true"


@needs_sshd
def test_an_agent_that_the_configuration_names_lets_in(
    server: Server, home: Path, open_shell: Callable[..., SshShell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """IdentityAgent works without SSH_AUTH_SOCK. 1Password, Secretive and gpg-agent are set up in this way."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    socket = home / "a.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        wait_until(socket.exists)
        added = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", str(server.key)], env=added, check=True)
        (home / ".ssh" / "config").write_text(f"Host *\n  IdentityAgent {socket}\n")
        assert open_shell(server.machine(key=None)).clock() > 0
        assert "SSH_AUTH_SOCK" not in os.environ
        (home / ".ssh" / "config").write_text("Host *\n  IdentityAgent none\n")
        assert "no key to log in with" in sentence(open_shell(server.machine(key=None)), WrongUse)
    finally:
        agent.kill()
        agent.wait()


def test_a_terminal_needs_the_ssh_of_the_system(
    server: Server, open_shell: Callable[..., SshShell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has it as an option. Without it, the message was "[WinError 2] File not found"."""
    shell = open_shell(server.machine())
    assert shell.clock() > 0
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WrongUse, match="the program ssh, which is not installed here: Windows: Settings"):
        shell.terminal(["true"])


@needs_sshd
@pytest.mark.parametrize(
    "answer", [None, b"", b"\0\0\0\0", b"\0\0\0\1\5", b"\0\0\0\5\14\xff\xff\xff\xff", b"HTTP/1.1 400\r\n"]
)
def test_a_login_works_beside_an_agent_that_does_not(
    server: Server,
    home: Path,
    open_shell: Callable[..., SshShell],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    answer: bytes | None,
) -> None:
    """As with OpenSSH. None: it says nothing, as one that was forwarded over a dead connection."""
    monkeypatch.setattr(agent_keys, "LISTS_S", 1.0)
    path = str(tmp_path_factory.mktemp("agent") / "a.sock")  # a socket's path has at most 107 bytes
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    (home / ".ssh" / "id_ed25519").write_bytes(server.key.read_bytes())
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        answering = threading.Thread(target=answer_once, args=(listening, answer, over))
        answering.start()
        assert open_shell(server.machine(key=None)).clock() > 0
    assert answer is None or "agent" not in [thread.name for thread in threading.enumerate()]
    over.set()
    answering.join()


def answer_once(listening: socket.socket, answer: bytes | None, over: threading.Event) -> None:
    """Answer the first request with these bytes and hang up; with None, say nothing until it is over."""
    connection, _ = listening.accept()
    with connection:
        connection.recv(5)
        if answer is None:
            over.wait(30)
        else:
            connection.sendall(answer)


@pytest.fixture(scope="module")
def agent_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """The socket of an agent and the server of `full_agent`, started once for all its tests."""
    folder = tmp_path_factory.mktemp("agent")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(folder / "a.sock")], stdout=subprocess.DEVNULL)
    try:
        wait_until((folder / "a.sock").exists)
        with openssh(folder / "server", more="MaxAuthTries 2\n") as server:
            keys = [folder / f"wrong{number}" for number in range(4)]
            for key in keys:
                make_key(key)
            told = {**os.environ, "SSH_AUTH_SOCK": str(folder / "a.sock")}
            subprocess.run(["ssh-add", "-q", *keys, server.key], env=told, check=True)
            yield folder / "a.sock", server
    finally:
        agent.kill()
        agent.wait()


@pytest.fixture
def full_agent(agent_and_server: tuple[Path, Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that ends a login after two wrong keys, and an agent with four of them, then the right one."""
    socket, server = agent_and_server
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    return server


def lock(key: Path, locked: Path) -> None:
    """Write a copy of a key that has a passphrase. One round makes it in no time; 128 would take most of a second."""
    import asyncssh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one round is not secure, says bcrypt
        asyncssh.read_private_key(str(key)).write_private_key(str(locked), passphrase="x" * 8, rounds=1)


@needs_sshd
@pytest.mark.parametrize("has_public_file", [True, False])
@pytest.mark.parametrize("named_by", ["target", "IdentitiesOnly yes", "IdentitiesOnly no"])
def test_the_named_key_comes_first_of_a_full_agent(
    full_agent: Server, home: Path, open_shell: Callable[..., SshShell], named_by: str, has_public_file: bool
) -> None:
    """The agent has the key without its passphrase, the file has it with one."""
    server, locked = full_agent, home / "locked"
    lock(server.key, locked)
    if has_public_file:
        shutil.copy(server.key.with_suffix(".pub"), home / "locked.pub")
    if named_by == "target":
        assert open_shell(server.machine(key=str(locked))).clock() > 0
        return
    (home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {locked}\n  {named_by}\n")
    assert open_shell(server.machine(key=None)).clock() > 0


@needs_sshd
@pytest.mark.parametrize("config", ["", "IdentitiesOnly yes", "IdentitiesOnly yes\n  IdentityFile ~/.ssh/id_ed25519"])
def test_a_default_key_comes_first_of_a_full_agent(
    full_agent: Server, home: Path, open_shell: Callable[..., SshShell], config: str
) -> None:
    """As OpenSSH has it, which names its default keys as if the configuration did."""
    locked = home / ".ssh" / "id_ed25519"
    lock(full_agent.key, locked)
    (home / ".ssh" / "config").write_text(f"Host *\n  {config}\n")
    assert open_shell(full_agent.machine(key=None)).clock() > 0


@needs_sshd
def test_a_host_gets_no_key_of_the_agent_that_no_file_names(
    full_agent: Server, home: Path, open_shell: Callable[..., SshShell]
) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  IdentitiesOnly yes\n")
    with pytest.raises(WrongUse, match="no key to log in with"):
        open_shell(full_agent.machine(key=None)).clock()


@needs_sshd
def test_more_keys_than_a_server_lets_try_are_told(full_agent: Server, open_shell: Callable[..., SshShell]) -> None:
    shell = open_shell(full_agent.machine(key=None))
    assert "as with `MaxAuthTries`: name the right one with key:" in sentence(shell, LinkLost)


@pytest.mark.parametrize("content", [b"", b"ssh-ed25519", b"\xff\xfe", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-"])
def test_a_file_without_a_public_half(tmp_path: Path, content: bytes) -> None:
    for name in ("id", "id.pub"):
        (tmp_path / name).write_bytes(content)
    assert public_half(tmp_path / "id") is None
    assert public_half(tmp_path / "no") is None


def test_no_key_at_all_is_said_at_once(server: Server, open_shell: Callable[..., SshShell]) -> None:
    shell = open_shell(server.machine(key=None))
    with pytest.raises(WrongUse, match="no key to log in with") as caught:
        shell.clock()
    assert caught.value.next_command == "ssh-keygen -t ed25519"


def test_what_a_proxy_command_said_is_told(server: Server, home: Path, open_shell: Callable[..., SshShell]) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  ProxyCommand sh -c 'echo no tunnel to %h >&2; exit 1'\n")
    began = time.process_time()
    assert "no tunnel to 127.0.0.1" in sentence(open_shell(server.machine()), LinkLost)
    assert time.process_time() - began < 2.0  # no core is busy until a time limit


# Connects standard input and output to an address.
TUNNEL = """
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := sock.recv(1 << 16):
        os.write(1, data)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 1 << 16):
    sock.sendall(data)
"""


def test_a_proxy_command_carries_the_connection(
    server: Server, home: Path, tmp_path: Path, open_shell: Callable[..., SshShell], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_sockets(*_: object) -> None:
        raise OSError(10038, "An operation was attempted on something that is not a socket")

    monkeypatch.setattr(select, "select", only_sockets)  # as Windows answers for the pipes of a program
    (tmp_path / "tunnel.py").write_text(TUNNEL)
    command = f"{sys.executable} {tmp_path / 'tunnel.py'} %h %p"
    (home / ".ssh" / "config").write_text(f"Host *\n  ProxyCommand {command}\n")
    shell, data = open_shell(server.machine()), os.urandom(1 << 20)
    shell.write(tmp_path / "there", data)
    assert shell.read(tmp_path / "there") == data


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: a file whose name is a command line")
def test_a_proxy_command_of_windows_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows starts programs by a command line, with its backslashes. Here a file has the whole line as name."""
    line = r"C:\tools\proxy.exe -W box:22"
    (tmp_path / line).write_text("#!/bin/sh\ncat\n")
    (tmp_path / line).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "platform", "win32")
    proxy = ProxyProgram(line)
    proxy.settimeout(30)
    assert proxy.send(b"there and back") == 14
    assert proxy.recv(5) + proxy.recv(100) == b"there and back"
    proxy.settimeout(0.01)
    with pytest.raises(TimeoutError):
        proxy.recv(1)
    monkeypatch.setattr("deploy.shell.jump_hosts.SAYS_LAST_S", 20)
    started = time.monotonic()
    proxy.end()
    assert time.monotonic() - started < 15, "the child of the program was waited for, which reads until its input ends"
    assert (proxy.recv(1), proxy.recv(1)) == (b"", b"")
    with pytest.raises(paramiko.ProxyCommandFailure):
        proxy.send(b"too late")


def test_the_advice_about_a_changed_host_key_works(
    server: Server, home: Path, tmp_path: Path, open_shell: Callable[..., SshShell]
) -> None:
    """The printed command works unchanged. Afterwards the user is asked about the machine as about a new one."""
    other = " ".join(make_key(tmp_path / "other").split()[:2])
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}\n")
    shell = open_shell(server.machine(host_keys=()))
    with pytest.raises(StepFailed) as caught:
        shell.clock()
    assert caught.value.next_command
    typed = [*shlex.split(caught.value.next_command), "-f", str(home / ".ssh" / "known_hosts")]
    subprocess.run(typed, check=True, capture_output=True)
    noted = open_shell(server.machine(host_keys=()), ask=lambda _: True)
    assert noted.clock() > 0
    seen = HostKeys(noted.machine, tmp_path / "notes").seen
    seen.write_text(seen.read_text().split()[0] + f" {other}\n")
    with pytest.raises(StepFailed) as caught:  # the user's own file does not have it, so ssh-keygen would find nothing
        open_shell(server.machine(host_keys=())).clock()
    assert caught.value.next_command == f"remove {seen}, if you know that the machine was reinstalled"


@needs_ssh
def test_addresses_of_another_family_are_not_tried(
    server: Server, home: Path, open_shell: Callable[..., SshShell]
) -> None:
    """AddressFamily is for networks that lose the packets of one family: each of its addresses takes a timeout."""
    (home / ".ssh" / "config").write_text("Host *\n  AddressFamily inet\n")
    assert open_shell(server.machine()).clock() > 0
    (home / ".ssh" / "config").write_text("Host *\n  AddressFamily inet6\n")
    assert "cannot be resolved" in sentence(open_shell(server.machine()), LinkLost)
    gate = f"Host gate\n  HostName 127.0.0.1\n  Port {server.port}\n  AddressFamily inet6\n"
    (home / ".ssh" / "config").write_text(f"{gate}Host 127.0.0.1\n  ProxyJump gate\n")
    assert "cannot be resolved" in sentence(open_shell(server.machine()), LinkLost)


class TwoFactors(paramiko.ServerInterface):
    """A server that asks for a code after the key."""

    accepts_key = False

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002 - Paramiko's
        return "keyboard-interactive" if self.accepts_key else "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002 - Paramiko's
        self.accepts_key = True
        return int(paramiko.AUTH_PARTIALLY_SUCCESSFUL)

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:  # noqa: ARG002
        return paramiko.InteractiveQuery("", "", ("\x1b[2JCode:", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return int(paramiko.AUTH_SUCCESSFUL if responses == ["123"] else paramiko.AUTH_FAILED)


@pytest.mark.parametrize("typed", ["123", "124", None])
def test_a_second_factor_is_asked_for_at_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], typed: str | None
) -> None:
    """Standard output is for documents, and what the server says is no command for the terminal."""
    from deploy.shell.connect import _transport

    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: typed is not None)
    monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or typed)
    make_key(tmp_path / "key")
    key = paramiko.Ed25519Key(filename=str(tmp_path / "key"))
    one, other = socket.socketpair()
    server, client = paramiko.Transport(one), _transport(other)
    try:
        server.add_server_key(key)
        server.start_server(event=threading.Event(), server=TwoFactors())
        client.start_client(timeout=under_load(10))
        assert client.auth_publickey("me", key) == ["keyboard-interactive"]
        if typed == "123":
            client.auth_interactive_dumb("me")
        else:
            with pytest.raises(paramiko.AuthenticationException):
                client.auth_interactive_dumb("me")
        assert client.is_authenticated() == (typed == "123")
        assert asked == ([] if typed is None else ["\\x1b[2JCode: "])
        assert capfd.readouterr().out == ""
    finally:
        client.close()
        server.close()


@needs_sshd
def test_a_second_factor_is_told(tmp_path: Path, open_shell: Callable[..., SshShell]) -> None:
    more = "AuthenticationMethods publickey,keyboard-interactive\nKbdInteractiveAuthentication yes\n"
    with openssh(tmp_path / "server", more=more) as server:
        assert "accepts the key, and asks for a second factor" in sentence(open_shell(server.machine()), WrongUse)


@pytest.mark.parametrize(
    ("entry", "read"),
    [
        ("box", (None, "box", None)),
        ("me@box:2201", ("me", "box", 2201)),
        ("2001:db8::1", (None, "2001:db8::1", None)),
        ("me@[::1]:2301", ("me", "::1", 2301)),
        ("[::1]", (None, "::1", None)),
        ("ssh://me@box:22/", ("me", "box", 22)),
    ],
)
def test_a_host_is_read_as_ssh_writes_it(entry: str, read: tuple[str | None, str, int | None]) -> None:
    assert parts(entry) == read


@pytest.mark.parametrize("entry", ["[::1", "[::1]x", "[::1]:", "me@[::1]:http"])
def test_a_host_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(WrongUse, match="is not a host"):
        parts(entry)


# Windows.


def words_of(line: str) -> list[str]:
    """Split a command line as programs on Windows do: parse_cmdline of the C runtime."""
    words, word, quoted, at, begun = [], "", False, 0, False
    while at < len(line):
        slashes = 0
        while at < len(line) and line[at] == "\\":
            slashes, at = slashes + 1, at + 1
        if at < len(line) and line[at] == '"':
            word, begun = word + "\\" * (slashes // 2), True
            if slashes % 2:
                word += '"'
            else:
                quoted = not quoted
            at += 1
            continue
        word += "\\" * slashes
        begun = begun or bool(slashes)
        if at < len(line):
            if line[at] in " \t" and not quoted:
                if begun:
                    words.append(word)
                word, begun = "", False
            else:
                word, begun = word + line[at], True
            at += 1
    return [*words, word] if begun else words


@pytest.mark.parametrize("word", [*HOSTILE_NAMES, "", 'a"b', "c:\\x\\", '\\\\"', "%PATH%", "^&|<>", "a\tb"])
def test_a_windows_command_line_reaches_the_machine(word: str, tmp_path: Path) -> None:
    """ssh.exe gets its arguments as one line and joins the command's words. The machine's shell splits them again."""
    machine = Machine("box", tmp_path, "python", address=None)
    machine = replace(machine, address=Server(22, tmp_path, "ssh-ed25519 AAAA", tmp_path).machine().address)
    argv = native.command(tmp_path / "a b.config", machine, ["echo", word], terminal=True)
    received = words_of(subprocess.list2cmdline(argv))
    assert received == argv
    line = " ".join(received[received.index("127.0.0.1") + 1 :])
    assert line == native.for_any_shell(["echo", word])
    assert words_of(subprocess.list2cmdline(["ssh", BOOTSTRAP])) == ["ssh", BOOTSTRAP]


@pytest.mark.parametrize("name", ["sh", "bash", "dash", "zsh", "fish", "tcsh", "busybox sh"])
def test_every_login_shell_passes_the_words_on(name: str) -> None:
    """As the machine's sshd does: SHELL -c LINE. The program starts in a twentieth of Python's time."""
    shell = name.split()
    if not shutil.which(shell[0]):
        pytest.skip(f"needs {name}")
    for words in ([*HOSTILE_NAMES], [*SPLIT_BY_SOME], *([word] for word in SPLIT_BY_SOME)):
        line = native.for_any_shell(["env", "printf", "%s|", "first", *words])
        done = subprocess.run([*shell, "-c", line], capture_output=True, check=False)
        assert done.stdout, (words, done.stderr)
        assert done.stdout.decode() == "".join(f"{word}|" for word in ["first", *words])


@pytest.mark.parametrize("word", SPLIT_BY_SOME)
def test_a_line_holds_nothing_that_shells_read_differently(word: str) -> None:
    """The shells may be missing here."""
    line = native.for_any_shell(["printf", word])
    quoted = re.findall(r"'[^'\\!\n]*'|(?:^|(?<= ))[\w@+:,./-][\w@%+:,./=-]*(?= |$)", line, re.ASCII)
    assert " ".join(quoted) == line


def test_a_decoded_program_has_the_usual_signals() -> None:
    """`yes` ends without a word when nobody reads it any more."""
    line = native.for_any_shell(["sh", "-c", "printf '%s\n' 'it'\\''s'; yes | head -n 1"])
    assert line.startswith("python3 -IS -c ")
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"it's\ny\n", b"")


def test_windows_paths_in_ssh_config(tmp_path: Path) -> None:
    """Paths have slashes, quotes around spaces, and no tokens, as ssh on Windows reads them.

    Git's ssh looks for an included file in ~/.ssh, unless its path begins with a slash.
    """
    home = PureWindowsPath(r"C:\Users\Jo Müller")
    machine = Server(22, Path("k"), "", tmp_path).machine(key=r"~\.ssh\100% mine")
    keys = HostKeys(machine, tmp_path)
    keys.seen = PureWindowsPath(r"D:\my project\.sniperface\ssh\box.known_hosts")  # type: ignore[assignment]
    text = native.config_of(machine, keys, "root", home)
    assert '  IdentityFile "C:/Users/Jo Müller/.ssh/100%% mine"\n' in text
    assert '  UserKnownHostsFile "D:/my project/.sniperface/ssh/box.known_hosts"\n' in text
    assert "  Include config\n" in text
    assert "\\" not in text
    assert "ControlMaster no" in text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("/c/Users/me/.ssh/id", "C:/Users/me/.ssh/id"),
        ("/cygdrive/d/keys/id", "D:/keys/id"),
        ("C:/Users/me/.ssh/id", "C:/Users/me/.ssh/id"),
        ("~/.ssh/id", "~/.ssh/id"),
        ("/ci/id", "/ci/id"),
    ],
)
def test_a_path_of_git_bash_is_one_of_windows(written: str, read: str) -> None:
    assert of_drive(written) == read


@needs_ssh
def test_our_ssh_config_is_one(tmp_path: Path) -> None:
    """The system's ssh accepts every line of our configuration."""
    machine = Server(2222, tmp_path / "a % b", "", tmp_path).machine()
    path = native.write_config(machine, HostKeys(machine, tmp_path / "no tes"), "root")
    done = subprocess.run(["ssh", "-G", "-F", str(path), "127.0.0.1"], capture_output=True, text=True, check=True)
    told = dict(each.split(" ", 1) for each in done.stdout.splitlines() if " " in each)
    assert (told["port"], told["user"], told["controlmaster"]) == ("2222", "root", "false")
    assert told["ciphers"].startswith("aes128-gcm@openssh.com,")
    assert told["identityfile"].endswith("a % b") or told["identityfile"].endswith("a %% b")


def test_output_of_another_code_page(shell: SshShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is read as UTF-8, whatever this computer's encoding is. An invalid byte is shown as a replacement."""
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    assert shell.run(["printf", "größe \\200"]).text == "größe �"
    assert list(shell.stream(["printf", "größe \\200\\n"])) == ["größe �"]


@needs_sshd
@pytest.mark.slow
def test_a_real_network_loses_one_packet_in_a_hundred(tmp_path: Path, open_shell: Callable[..., SshShell]) -> None:
    """The kernel drops packets on one port of this computer."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("iptables") is None:
        pytest.skip("needs the right to change the network: run this as root on Linux, with iptables installed")
    from deploy.border import chosen
    from deploy.shell import transfer

    with openssh(tmp_path / "server") as server:
        rules = [
            ["INPUT", "-i", "lo", "-p", "tcp", side, str(server.port), "-m", "statistic", "--mode", "random",
             "--probability", "0.01", "-j", "DROP"] for side in ("--dport", "--sport")
        ]  # fmt: skip
        if subprocess.run(["iptables", "-A", *rules[0]], check=False, capture_output=True).returncode:
            pytest.skip("needs the right to change the network: run this as root on Linux, with iptables installed")
        subprocess.run(["iptables", "-A", *rules[1]], check=True)
        try:
            shell = open_shell(server.machine())
            data = os.urandom(40 << 20)
            (tmp_path / "a").write_bytes(data)
            transfer.push(shell, tmp_path / "a", tmp_path / "far" / "a")
            transfer.fetch(shell, tmp_path / "far" / "a", chosen(tmp_path / "back"))
            assert (tmp_path / "back").read_bytes() == data
        finally:
            for rule in rules:
                subprocess.run(["iptables", "-D", *rule], check=True)
