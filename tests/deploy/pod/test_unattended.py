"""The switch of a rented machine: when it releases the machine, and what prevents that.

Real processes; a one-line script stands in for the release.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pod.image import unattended
from deploy.pod.image.unattended import MINUTES, NEVER, Switch, has_login, minutes_of
from tests.deploy.conftest import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc: run on Linux")
A_MOMENT = {MINUTES: "0.0001"}


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the machine is released."""
    made = tmp_path / "released"
    monkeypatch.setattr(unattended, "RELEASE", ("-c", f"open({str(made)!r}, 'x')"))
    return made


@pytest.fixture
def sshd() -> Iterator[int]:
    """A process with a child, both with the title of sshd."""
    with subprocess.Popen(["bash", "-c", "(exec -a 'sshd: root [preauth]' sleep 60); :"]) as parent:
        wait_until(lambda: b"preauth" in _titles(parent.pid))
        yield parent.pid
        for pid in unattended.processes.descendants(parent.pid):
            unattended.processes.kill_tree(pid)
        parent.kill()


def _titles(pid: int) -> bytes:
    return b"".join(Path(f"/proc/{each}/cmdline").read_bytes() for each in unattended.processes.descendants(pid))


@pytest.mark.parametrize(
    ("text", "minutes"), [("", None), ("15", 15.0), ("0.5", 0.5), ("0", None), ("-1", None), ("x", None), ("inf", None)]
)
def test_only_a_number_of_minutes_sets_it(text: str, minutes: float | None) -> None:
    assert minutes_of(text) == minutes


def test_without_minutes_nothing_is_ever_released(tmp_path: Path, released: Path) -> None:
    switch = Switch({}, tmp_path / "guard", print)
    switch.look(None)
    assert (switch.due, switch.releasing, released.exists()) == (NEVER, None, False)


def test_a_machine_that_nobody_looks_after_releases_itself(tmp_path: Path, released: Path, sshd: int) -> None:
    """Clients that have not logged in do not count. The next release is due later, in case this one fails."""
    said: list[str] = []
    switch = Switch(A_MOMENT, tmp_path / "guard", said.append)
    wait_until(lambda: (switch.look(sshd), switch.releasing)[1])
    assert switch.releasing
    assert switch.releasing.wait() == 0
    assert released.exists()
    assert said == ["nobody has logged in for 0.0001 minutes, and no guard runs: releasing this machine"]
    assert 0 < switch.due < NEVER


def test_a_release_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 keeps running: its end would end the container and the job."""
    said: list[str] = []
    monkeypatch.setattr(unattended, "CODE", tmp_path / "gone")
    switch = Switch(A_MOMENT, tmp_path / "guard", said.append)
    wait_until(lambda: (switch.look(None), len(said) == 2)[1])
    assert "the release cannot be started: " in said[1]
    assert 0 < switch.due < NEVER


def test_a_login_starts_the_minutes_again(tmp_path: Path, released: Path) -> None:
    with subprocess.Popen(["bash", "-c", "sleep 60; :"]) as session:
        wait_until(lambda: has_login(session.pid))
        switch = Switch({MINUTES: "1"}, tmp_path / "guard", print)
        switch.due = 0.0
        switch.look(session.pid)
        assert switch.due > 0
        for pid in unattended.processes.descendants(session.pid):
            unattended.processes.kill_tree(pid)
    assert (switch.releasing, released.exists()) == (None, False)


def test_the_guard_ends_it_for_good(tmp_path: Path, released: Path) -> None:
    said: list[str] = []
    guard = tmp_path / "guard"
    guard.write_text("{}", encoding="utf-8")
    switch = Switch(A_MOMENT, guard, said.append)
    switch.look(None)
    guard.unlink()
    switch.look(None)
    assert (switch.due, switch.releasing, released.exists()) == (NEVER, None, False)
    assert said == ["guarded: this machine no longer releases itself when nobody logs in"]
