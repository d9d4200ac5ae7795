"""Follow growing files: no byte is lost or repeated, and no character is split."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import StepFailed
from deploy.pod.agent import verbs
from deploy.pod.base.folder import RunFolder
from deploy.runs import tmux
from deploy.runs.job import Events, Tail, follow, position
from deploy.shell import LocalShell
from tests.deploy.conftest import end_tmux, wait_until


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")
def test_each_session_of_a_living_server_has_its_own_variables(tmp_path: Path) -> None:
    """tmux passes at most 16 KiB of a variable, and its server keeps those of its first session.

    The second run waits behind the first, so its session starts while that server lives.
    """
    socket = f"sniperface-test-{uuid.uuid4().hex[:8]}"
    script = tmp_path / "tells.py"
    script.write_text(
        "import json, os, sys, threading\n"
        "from pathlib import Path\n"
        "from deploy.pod.job.supervisor import take_environment\n"
        "take_environment(Path(sys.argv[1] + '.env'))\n"
        "Path(sys.argv[1] + '.new').write_text(json.dumps(dict(os.environ)))\n"
        "os.replace(sys.argv[1] + '.new', sys.argv[1])\n"
        "threading.Event().wait()\n"  # the session lives until the server ends
    )
    code = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    first = {**code, "BIG": "x" * 60_000, "ODD": "grüße\nof two lines", "TMUX": "another,1,1", "GONE": "first"}
    second = {**code, "BIG": "y" * 15_100, "ODD": "bytes \udcff", "NEW": "z" * 20_000}
    told = []
    try:
        for number, env in enumerate((first, second)):
            out = tmp_path / str(number)
            save = (
                f"import sys; from deploy.pod.agent import verbs; verbs.environment_for('tmux', {str(out) + '.env'!r})"
            )
            subprocess.run([sys.executable, "-c", save], env=env, check=True)
            assert Path(f"{out}.env").stat().st_mode & 0o777 == 0o600
            argv = tmux.start_argv(socket, f"s{number}", [sys.executable, str(script), str(out)], tmp_path)
            assert "x" * 100 not in " ".join(argv)
            subprocess.run(argv, env=env, check=True)
            wait_until(out.exists)
            assert not Path(f"{out}.env").exists()
            told.append(json.loads(out.read_text()))
    finally:
        end_tmux(socket)
    of_terminal = {"TERM", "TMUX", "TMUX_PANE", "PWD", "OLDPWD", "SHLVL", "_"}
    for env, got in zip((first, second), told, strict=True):
        assert got["TMUX"] != "another,1,1"
        wanted = {name: value for name, value in env.items() if name not in of_terminal}
        assert {name: value for name, value in got.items() if name not in of_terminal} == wanted


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")
def test_attach_shows_every_letter_without_a_locale(tmp_path: Path) -> None:
    """As in a command by SSH, which gets no LANG from most servers."""
    import pty

    socket = f"sniperface-test-{uuid.uuid4().hex[:8]}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TMUX"))}
    script = "printf 'gr\\303\\274n \\342\\226\\210\\n'; cat"
    ours, theirs = pty.openpty()
    try:
        subprocess.run(tmux.start_argv(socket, "a", ["sh", "-c", script], tmp_path), env=env, check=True)
        argv = tmux.attach_argv(socket, "a", write=False)
        shown = subprocess.Popen(argv, env={**env, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs)
        said = b""
        while b"gr" not in said or b"n " not in said.partition(b"gr")[2]:
            said += os.read(ours, 1 << 16)
        assert "grün █".encode() in said
        end_tmux(socket)
        shown.wait()
    finally:
        end_tmux(socket)  # ends the client, too
        for each in (ours, theirs):
            os.close(each)


def test_a_machine_without_tmux_gets_no_file(tmp_path: Path) -> None:
    assert verbs.environment_for("no-such-program", str(tmp_path / "x")) is False
    assert list(tmp_path.iterdir()) == []


class Growing(LocalShell):
    """A file that grows between two reads."""

    def __init__(self, content: bytes, ends: list[int]) -> None:
        self.content = content
        self.ends = ends

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:  # noqa: ARG002 - one file
        return self.content[offset : self.ends.pop(0) if self.ends else len(self.content)]


@given(st.text(), st.lists(st.integers(0, 200), max_size=8))
def test_text_comes_whole_however_it_is_cut(text: str, cuts: list[int]) -> None:
    """A character that the end of the file cuts in two is held back until its rest arrives."""
    content = text.encode("utf-8", errors="replace")
    tail = Tail(Growing(content, sorted(min(cut, len(content)) for cut in cuts)), Path("log"))
    assert "".join(tail.read() for _ in range(len(cuts) + 1)) == content.decode("utf-8")


class Asked(LocalShell):
    """Notes where each piece begins that is read."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.changed = threading.Condition()

    def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
        with self.changed:
            self.offsets.append(offset)
            self.changed.notify_all()
        return super().read(path, offset, limit)


@pytest.mark.parametrize("size", [0, 3, 4, 8, 11, 24])
def test_the_pieces_after_a_full_one_are_read_meanwhile(tmp_path: Path, size: int) -> None:
    """Nothing is read twice or left out, and after a first piece that was not full nothing is asked for."""
    log = tmp_path / "train.log"
    log.write_bytes(bytes(range(97, 97 + size)))
    shell = Asked()
    tail = Tail(shell, log, most=4, reads_ahead=2)
    text = tail.read()
    if tail.is_behind:
        with shell.changed:
            assert shell.changed.wait_for(lambda: sorted(shell.offsets) == [0, 4, 8], timeout=30)
    while tail.is_behind:
        text += tail.read()
    assert text.encode() == log.read_bytes()
    asked = size // 4 + 2 if size >= 4 else 1  # two behind the last full piece
    wait_until(lambda: len(shell.offsets) >= asked)
    assert sorted(shell.offsets) == [*range(0, asked * 4, 4)]


def test_nothing_is_read_ahead_unless_it_is_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"abcdefgh")
    shell = Asked()
    tail = Tail(shell, log, most=4)
    assert (tail.read(), len(tail.on_the_way), shell.offsets) == ("abcd", 0, [0])


def test_a_log_that_grows_behind_a_piece_that_was_not_full_loses_nothing(tmp_path: Path) -> None:
    """The piece after it was asked for already, and its text comes again later."""
    log = tmp_path / "train.log"
    log.write_bytes(b"abcdef")
    grown = threading.Event()

    class Growing(LocalShell):
        def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
            if offset == 8:
                assert grown.wait(30)
            data = super().read(path, offset, limit)
            if offset == 4 and not grown.is_set():
                log.write_bytes(b"abcdefghijklm")
                grown.set()
            return data

    tail = Tail(Growing(), log, most=4, reads_ahead=2)
    pieces = [tail.read() for _ in range(2)]
    assert pieces == ["abcd", "ef"]
    assert not tail.is_behind
    assert "".join(tail.read() for _ in range(2)) == "ghijklm"


def test_a_failure_of_the_piece_on_its_way_is_raised_by_the_next_read(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"abcd")

    class Lost(LocalShell):
        def read(self, path: PurePath, offset: int = 0, limit: int | None = None) -> bytes:
            if offset:
                raise StepFailed("the machine cannot be reached")
            return super().read(path, offset, limit)

    tail = Tail(Lost(), log, most=4, reads_ahead=1)
    assert tail.read() == "abcd"
    with pytest.raises(StepFailed, match="cannot be reached"):
        tail.read()


def test_a_log_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    """Once the log exists, it is read from its beginning."""
    tail = Tail(LocalShell(), tmp_path / "train.log")
    assert tail.read() == ""
    (tmp_path / "file").write_bytes(b"")
    assert Tail(LocalShell(), tmp_path / "file" / "train.log").read() == ""
    (tmp_path / "train.log").write_bytes(b"ab\xff")
    assert tail.read() == "ab\ufffd"


def test_a_log_that_vanishes_after_a_full_piece_is_not_waited_for(tmp_path: Path) -> None:
    """`follow` reads on while there may be more: there is none in a file that is gone."""
    log = tmp_path / "train.log"
    log.write_bytes(b"abcdef")
    tail = Tail(LocalShell(), log, most=4)
    assert (tail.read(), tail.is_behind) == ("abcd", True)
    log.unlink()
    assert (tail.read(), tail.is_behind) == ("", False)


def test_an_event_is_given_out_when_its_line_is_whole(tmp_path: Path) -> None:
    """An incomplete line waits; a line that is not an event is skipped."""
    file = tmp_path / "metrics.jsonl"
    events = Events(LocalShell(), file)
    file.write_text('{"event": "a"}\nnot json\n{"eve', newline="\n")
    assert events.read() == [{"event": "a"}]
    with file.open("a", newline="\n") as more:
        more.write('nt": "b"}\n' + json.dumps({"event": "c"}) + "\n")
    assert events.read() == [{"event": "b"}, {"event": "c"}]


def test_a_second_attempt_is_followed_from_its_beginning(tmp_path: Path) -> None:
    """The output of the first attempt is not repeated."""
    folder, shell = RunFolder(tmp_path), LocalShell()
    (tmp_path / "train.log").write_text("first\n", newline="\n")
    (tmp_path / "metrics.jsonl").write_text('{"event": "a"}\n', newline="\n")
    since = position(shell, folder)
    with (
        (tmp_path / "train.log").open("a", newline="\n") as log,
        (tmp_path / "metrics.jsonl").open("a", newline="\n") as metrics,
    ):
        log.write("second\n")
        metrics.write('{"event": "b"}\n')
    assert list(follow(shell, folder, since)) == [("second\n", [{"event": "b"}])]


def test_session_names_hold_no_separators() -> None:
    """tmux reads dots and colons as parts of an address."""
    assert tmux.session_name("orl-f0.01-x:1") == "orl-f0_01-x_1"
