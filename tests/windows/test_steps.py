"""The steps of steps.md, and decisions about Windows that every system can make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from deploy.commands.doctor import LONGEST_PROJECT, folder_finding
from deploy.pod.agent import verbs
from deploy.shell import LocalShell
from tests.deploy.conftest import Project

STEPS = Path(__file__).with_name("steps.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `invoke ([^`]+)` \| `([^`]+)` \| (\d) \|$", re.MULTILINE)
SHORT = PureWindowsPath(r"C:\src\face")


@pytest.mark.parametrize(("words", "seen", "code"), ROW.findall(STEPS))
def test_a_step_shows_what_the_script_says(
    project: Project, monkeypatch: pytest.MonkeyPatch, words: str, seen: str, code: str
) -> None:
    """A newcomer has no API key. No step prints a traceback."""
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    project.env = {"HOME": str(project.path), "USERPROFILE": str(project.path)}
    done = project.invoke(*words.split(), code=int(code))
    assert seen in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_has_steps() -> None:
    assert len(ROW.findall(STEPS)) == 11


@pytest.mark.parametrize(
    ("project", "synced", "long_paths", "why"),
    [
        (SHORT, [""], False, None),
        (SHORT, [r"C:\Users\ariel\OneDrive - Firma"], False, None),
        (PureWindowsPath(r"C:\Users\a\OneDrive - Firma\face"), ["", r"c:\users\A\onedrive - firma"], True, "OneDrive"),
        (PureWindowsPath(r"C:\Users\ariel\OneDrive2\face"), [r"C:\Users\ariel\OneDrive"], True, None),
        (PureWindowsPath("C:\\" + "x" * (LONGEST_PROJECT - 3)), [], False, None),
        (PureWindowsPath("C:\\" + "x" * (LONGEST_PROJECT - 2)), [], False, "64 characters"),
        (PureWindowsPath("C:\\" + "x" * 90), [], True, None),
    ],
)  # fmt: skip
def test_a_folder_that_windows_disturbs_is_named(
    project: PureWindowsPath, synced: list[str], long_paths: bool, why: str | None
) -> None:
    finding = folder_finding(project, synced, long_paths=long_paths)
    assert (finding.level, why is None or why in finding.found) == ("ok" if why is None else "warning", True)
    assert why is None or r"C:\src\face" in str(finding.fix)


class Started:
    pid, returncode = 7, None


@pytest.mark.parametrize("allowed", [True, False])
def test_a_job_leaves_the_job_object_of_its_terminal_if_it_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: bool
) -> None:
    """OpenSSH's server on Windows ends its job object with the session. Without the right, the process starts in it."""
    names = ("CREATE_NO_WINDOW", "CREATE_NEW_PROCESS_GROUP", "CREATE_BREAKAWAY_FROM_JOB")
    for number, name in enumerate(names):
        monkeypatch.setattr(subprocess, name, 1 << number, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    asked: list[int] = []

    def popen(_: list[str], *, creationflags: int, **more: Any) -> Started:
        assert set(more) == {"cwd", "stdin", "stdout", "stderr"}
        asked.append(creationflags)
        if creationflags & 4 and not allowed:
            raise PermissionError(13, "Access is denied")
        return Started()

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert verbs.spawn(["python"], str(tmp_path)) == 7
    assert asked == ([7] if allowed else [7, 3])


def test_a_process_that_may_not_start_is_an_error(tmp_path: Path) -> None:
    """The loop over the ways to start ends with the last one."""
    if sys.platform == "win32":
        pytest.skip("needs POSIX: the execute permission of a file")
    file = tmp_path / "not-executable"
    file.write_text("#!/bin/sh\n", encoding="utf-8")
    with pytest.raises(PermissionError):
        verbs.spawn([str(file)], str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: a script is a program")
def test_a_program_is_looked_for_along_the_path_that_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`exec` puts the run's Python first. CreateProcess looks along the PATH of its caller, as `call` does here."""
    call = subprocess.call

    def create_process(argv: list[str], **more: Any) -> int:
        return call([shutil.which(argv[0]) or "missing", *argv[1:]], **more)

    monkeypatch.setattr(subprocess, "call", create_process)
    program = tmp_path / "of-the-run"
    program.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    program.chmod(0o755)
    env = {"PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]])}
    assert LocalShell().foreground(["of-the-run"], cwd=tmp_path, env=env) == 7
