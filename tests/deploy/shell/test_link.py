"""Messages between laptop and machine, and the agent over a pair of pipes, without a network."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.errors import quoted
from deploy.pod.agent.frames import Ended, pack, unpack
from deploy.shell import link as links
from deploy.shell.agent_program import BOOTSTRAP, program
from deploy.shell.link import Link, LinkLost, NoAgent
from deploy.shell.native import ProcessStream
from tests.deploy.conftest import SOURCE, wait_until

# Says that it is an old Python.
OLD = BOOTSTRAP.replace("import sys", 'import sys;sys.version_info=3,6,8;sys.version="3.6.8 (old)"')
OTHERS = ("python3.9", "python3.10", "python3.12", "python3.13")
EVERY_PYTHON = [path for path in map(shutil.which, OTHERS) if path] or [sys.executable]


def agent(command: str = BOOTSTRAP) -> Link:
    return Link(ProcessStream(["/bin/sh", "-c", command.replace("python3", "exec python3", 1)]))


@pytest.fixture
def link() -> Iterator[Link]:
    made = agent()
    yield made
    made.close()


def in_pieces(data: bytes, sizes: int) -> Callable[[memoryview], int]:
    left = memoryview(data)

    def read_into(view: memoryview) -> int:
        nonlocal left
        count = min(len(view), len(left), sizes)
        view[:count] = left[:count]
        left = left[count:]
        return count

    return read_into


@pytest.mark.parametrize("sizes", [1, 3, 1 << 20])
def test_a_message_survives_any_cutting(sizes: int) -> None:
    """A message arrives whole. A stream that ends inside a message raises Ended."""
    head, body = {"id": 1, "args": {"path": "ü€\0\n"}}, bytes(range(256)) * 9
    stream = in_pieces((pack(head, body) + body) * 2 + b"\0\0", sizes)
    assert unpack(stream) == (head, body)
    assert unpack(stream) == (head, body)
    with pytest.raises(Ended, match="2 of 8"):
        unpack(stream)


def test_verbs_answer_in_order_from_any_thread(link: Link, tmp_path: Path) -> None:
    """Several requests may be under way at once, with any bytes of any size."""
    data = os.urandom(3 << 20)
    place = str(tmp_path / "ü 'x'\n")
    first = [link.submit("write_at", path=place, offset=at, data=data[at : at + 1000]) for at in (0, 1000, 2000)]
    assert [each.result() for each in first] == [None] * 3
    link.submit("write", path=place, data=data).result()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(link.submit("read", path=place).result())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 4
    assert link.round_trip_s < links.GREETING_LIMIT_S


def test_errors_come_back_as_they_are(link: Link, tmp_path: Path) -> None:
    """An OSError arrives with its type and path. A command's exit code, stdout and stderr arrive unchanged."""
    with pytest.raises(FileNotFoundError) as caught:
        link.submit("read", path=str(tmp_path / "no")).result()
    assert caught.value.filename == str(tmp_path / "no")
    exit_code, out, err = link.submit("run", argv=["sh", "-c", "cat; echo ü >&2; exit 7"], stdin=b"\xff\0").result()
    assert (exit_code, out, err) == (7, b"\xff\0", "ü\n".encode())


def test_an_error_of_another_kind_ends_no_connection(link: Link) -> None:
    """A name that no system has is no reason to connect again twenty times."""
    for verb, arguments in (("size", {"path": "a\0b"}), ("run", {"argv": ["echo", "a\0b"]})):
        with pytest.raises(OSError, match="ValueError: embedded null") as caught:
            link.submit(verb, **arguments).result()
        assert caught.value.errno == errno.EINVAL
    assert link.submit("clock").result() > 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_names_are_utf_8_in_every_locale(tmp_path: Path) -> None:
    """As on hosts with LANG=de_DE, or with no locale and an old Python."""
    legacy = "export LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0; "
    made = agent(legacy + BOOTSTRAP.replace("-IS", "-S"))  # Python takes the variables as it takes a locale
    made.submit("write", path=str(tmp_path / "é☃"), data=b"1").result()
    assert os.listdir(os.fsencode(tmp_path)) == ["é☃".encode()]
    told = "import os, sys; print(os.path.exists(sys.argv[1]), ascii(sys.argv[1]))"
    _, out, _ = made.submit("run", argv=[sys.executable, "-c", told, str(tmp_path / "é☃")]).result()
    assert out.startswith(b"True")
    assert b"\\xe9\\u2603" in out
    made.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(("umask", "mode"), [("000", 0o664), ("022", 0o644), ("077", 0o600)])
def test_what_others_could_change_is_only_theirs_to_read(tmp_path: Path, umask: str, mode: int) -> None:
    made = agent(f"umask {umask}; {BOOTSTRAP}")
    made.submit("write", path=str(tmp_path / "file"), data=b"").result()
    made.submit("run", argv=["touch", str(tmp_path / "touched")]).result()
    made.close()
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "touched")] == [mode, mode]


# A thread needs the memory of a stack, here more than a process may have: that binds root, too.
NO_THREADS = "ulimit -s 4000000; ulimit -v 3000000; "


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the limits of memory")
def test_a_user_who_may_start_no_thread_is_told(tmp_path: Path) -> None:
    with pytest.raises(LinkLost, match="start no further thread: see `ulimit -u`"):
        agent(NO_THREADS + BOOTSTRAP)
    (tmp_path / "a").write_bytes(b"abc")
    ask = f"from deploy.pod.agent.verbs import hashes; print(len(hashes({str(tmp_path / 'a')!r}, [[0, 1], [1, 1]])))"
    argv = ["sh", "-c", f'{NO_THREADS} exec "$@"', "sh", sys.executable, "-c", ask]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_an_error_keeps_its_meaning_where_it_has_another_number(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS have numbers of their own for errors of sockets."""
    monkeypatch.setattr(errno, "EADDRINUSE", 10048)
    with socket.create_server(("", 0)) as taken, pytest.raises(OSError, match="in use") as caught:
        link.submit("open_rendezvous", port=taken.getsockname()[1], word="x").result()
    assert caught.value.errno == 10048


def test_login_scripts_may_print() -> None:
    """Output before the agent's greeting is skipped, even invalid UTF-8. Endless output is an error."""
    made = agent(f"printf 'Willkommen \\377\\n%050000d' 1; {BOOTSTRAP}")
    assert made.submit("clock").result() > 0
    made.close()
    with pytest.raises(NoAgent, match="prints too much text") as caught:
        agent("exec yes hello")
    assert caught.value.evidence[0] == "hello"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (BOOTSTRAP.replace("python3", "python3-that-is-not-there"), "has no `python3`"),
        ("echo Please log in as ubuntu >&2; exit 142", "ended with exit code 142"),
        (f"PATH=/; {OLD.replace('python3', quoted(sys.executable))}", "is 3.6.8: install 3.9 or newer there"),
        ("exec sh", "~/.bashrc, starts another shell in place of each command"),
        ("exec bash", "starts another shell in place of each command"),
        ("exit 0", "or a ForceCommand of its sshd ends the session before `python3` runs"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_in_a_sentence(command: str, words: str) -> None:
    """The error contains the machine's output. It is not LinkLost, which would be retried."""
    with pytest.raises(NoAgent) as caught:
        agent(command)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    if "ubuntu" in command:
        assert "Please log in as ubuntu" in caught.value.evidence


def test_a_login_script_that_takes_the_input_is_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """fish and Python read a script to its end before they run any of it, so no line of it can end them."""
    monkeypatch.setattr(links, "GREETING_LIMIT_S", 1.0)
    with pytest.raises(
        LinkLost, match=r"did not answer within 1 s: a login script there, such as ~/\.bashrc, may wait"
    ):
        agent("python3")


def test_a_newer_python_beside_an_old_python3_is_taken(tmp_path: Path) -> None:
    """As on Rocky Linux 8, where python3 is 3.6. What the laptop starts as python3 is the newer one, too."""
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 86\n")
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "python3.12").symlink_to(sys.executable)
    for name, first in (("python3.14", "#!/bin/sh\nexit 127"), ("python3.13", "\0")):  # pyenv's, and of another system
        (tmp_path / name).write_text(first)
        (tmp_path / name).chmod(0o755)
    made = agent(f"PATH={quoted(str(tmp_path))}:/bin:/usr/bin; {OLD.replace('python3', quoted(sys.executable), 1)}")
    assert made.submit("run", argv=["python3", "-c", "print(3)"]).result() == (0, b"3\n", b"")
    made.close()
    ast.parse(program().split(b"\n", 2)[2], feature_version=(3, 6))


@pytest.mark.parametrize("python", EVERY_PYTHON, ids=[Path(each).name for each in EVERY_PYTHON])
def test_every_python_from_3_9_runs_it(python: str) -> None:
    """The test uses the versions that are installed."""
    probe = subprocess.run([python, "-c", "import hashlib"], capture_output=True, check=False)
    if probe.returncode:
        return  # a command without a working Python
    made = agent(BOOTSTRAP.replace("python3", python))
    assert made.submit("hashes", path=str(Path(__file__)), ranges=[[0, 10], [5, 10]]).result()
    made.close()


def test_silence_is_noticed_while_an_answer_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped agent sends neither answers nor heartbeats."""
    made = agent()
    monkeypatch.setattr(links, "SILENCE_S", 1.0)
    os.kill(made.stream.process.pid, 19)  # type: ignore[attr-defined]  # SIGSTOP
    with pytest.raises(LinkLost, match="no heartbeat for"):
        made.submit("clock").result()


def test_silence_is_noticed_while_a_pipe_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is blocked in a write is woken."""
    made = agent()
    monkeypatch.setattr(links, "SILENCE_S", 1.0)
    os.kill(made.stream.process.pid, 19)  # type: ignore[attr-defined]
    with pytest.raises(LinkLost):
        made.submit("write", path="never", data=bytes(4 << 20)).result()


# Answers its first request with 10 of 100 bytes, and ends.
BREAKS_OFF = """
import sys
from deploy.pod.agent.frames import GREETING, LENGTHS, pack
said, heard = sys.stdout.buffer, sys.stdin.buffer
said.write(GREETING)
said.flush()
heard.readline()
heard.read(int(heard.readline()))
heard.read(sum(LENGTHS.unpack(heard.read(LENGTHS.size))))
said.write(pack({"id": 0, "bytes": True}, bytes(100)) + bytes(10))
"""


def test_a_connection_that_breaks_inside_an_answer_ends_the_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends with the connection, not with the time limit of the answer."""
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    made = Link(ProcessStream([sys.executable, "-c", BREAKS_OFF]))
    with pytest.raises(LinkLost, match="ended after 10 of 100 bytes"):
        made.submit("read", path="any").result()


def test_a_long_answer_is_no_silence(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent sends heartbeats while it works."""
    monkeypatch.setattr(links, "SILENCE_S", 3.0)
    assert link.submit("run", argv=["sleep", "4"]).result()[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: processes are looked up in /proc")
@pytest.mark.parametrize("verb", ["run", "lines"])
def test_the_agent_and_its_command_end_with_the_laptop(verb: str, tmp_path: Path) -> None:
    """The agent and its command end when the laptop's process dies. A spawned process continues."""
    note = tmp_path / "pid"
    script = (
        "import sys\nfrom tests.deploy.shell.test_link import agent\nlink = agent()\n"
        f"print(link.submit('spawn', argv=['sleep', '60'], cwd='/').result(), link.stream.process.pid, flush=True)\n"
        f"pending = link.submit('{verb}', argv=['sh', '-c', 'echo $$ > {note}; exec sleep 61'])\n"
        "pending.result() if sys.argv[1] == 'run' else pending.next()\n"
    )
    laptop = subprocess.Popen([sys.executable, "-c", script, verb], cwd=SOURCE, stdout=subprocess.PIPE)
    assert laptop.stdout
    job, agents = map(int, laptop.stdout.readline().split())
    command = int(wait_until(lambda: note.exists() and note.read_text().strip()))
    laptop.kill()
    laptop.communicate()
    wait_until(lambda: not Path(f"/proc/{command}").exists() and not Path(f"/proc/{agents}").exists())
    assert Path(f"/proc/{job}").exists()
    os.kill(job, 9)
