"""`target add`: a host is tested before anything is written."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path

import pytest

import tasks
from deploy.pod.base import retry
from deploy.shell.host_keys import fingerprint
from deploy.specs.target_schema import FILE
from tests.deploy.support.servers import SSHD, asyncssh_server, openssh

WRONG = {
    "target ad": "unknown action of target 'ad': did you mean 'add'?",
    "target add": "give target add ssh --host HOST",
    "target add docker --host x": "give target add ssh --host HOST",
    "target add ssh": "needs --host",
    "target add ssh --host 'a b'": "host 'a b' has characters invalid",
    "target add ssh --host gpu --name Box": "--name: 'Box' is not a name of a target",
    "target add ssh --host gpu --name ssh": "target 'ssh' exists already, in conf/deploy/ssh.yaml",
    "target add ssh --host gpu --port ssh": "--port ssh is not a port",
    "target add ssh --host gpu --user 'a b'": "user 'a b' has characters invalid",
    "target add ssh --host gpu --key no/such/key": "--key no/such/key: no such file",
    "target add ssh --host gpu --fingerprint MD5:aa": "--fingerprint MD5:aa is no fingerprint",
    "target add ssh --host gpu --root here": "--root here is not absolute",
    "target list ssh": "target list takes nothing else: leave out ssh",
    "target --port 22": "target list takes nothing else: leave out --port",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of personal targets."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "settings"))
    return tmp_path / "settings" / "sniperface" / "targets"


def answer(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        tasks.COMMAND_LINE.run(["sniperface", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capfd.readouterr()


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_one_sentence_and_writes_nothing(
    line: str, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer(capfd, *shlex.split(line))
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert WRONG[line] in err
    assert not home.exists()


def test_a_host_that_works_becomes_a_target(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is tested with its key first. A wrong port writes nothing, and says what failed."""
    monkeypatch.setattr(retry, "FIRST_PATIENCE_S", 1.0)
    with (openssh if SSHD else asyncssh_server)(tmp_path / "server") as server:
        pinned = fingerprint(base64.b64decode(server.host_key.split()[1]))
        words = ("target", "add", "ssh", "--host", "127.0.0.1", "--name", "own-box", "--key", str(server.key))
        more = ("--fingerprint", pinned, "--root", str(tmp_path / "röot"))
        code, _, err = answer(capfd, *words, *more, "--port", "1")
        assert code == 1
        assert "error: target 'own-box' was not written: " in err
        assert not home.exists()
        unknown = [word.replace("own-box", "new-box") for word in words]
        code, _, err = answer(capfd, *unknown, *more[2:], "--port", str(server.port))  # nobody can be asked
        assert code == 1
        assert f"is not known: if {pinned} is right, give --fingerprint {pinned}\n" in err
        code, out, err = answer(capfd, *words, *more, "--port", str(server.port))
        assert (code, err) == (0, "")
        assert "train on it with: invoke train --on own-box" in out
        code, out, _ = answer(capfd, "target", "list", "--json")
        assert code == 0
        assert '"target": "own-box", "provider": "ssh", "machine": "127.0.0.1"' in out
        assert {file.name for file in home.iterdir()} == {"own-box.yaml", FILE}
        code, _, err = answer(capfd, *words, *more, "--port", str(server.port))
        assert code == 2
        assert "target 'own-box' exists already" in err
