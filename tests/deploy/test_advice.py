"""Every command that the launcher prints can be typed, on the target in question, and helps."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

import tasks
from deploy.commands import command_line
from deploy.errors import bootstrap_command, command, program, quoted
from tests.deploy.support import advice

COMMANDS = {name: command.flags for name, command in tasks.COMMAND_LINE.commands.items()}
# Functions that print names or examples of commands: test_command_line.py and test_docs.py try these.
NAMES = (
    "command_line.py:_refuse",
    "command_line.py:_refuse_stray",
    "program.py:print_help",
    "program.py:print_task_help",
)
PRINTED = [each for each in advice.printed() if not each.where.endswith((*NAMES, "ssh.py:terminal"))]
# Commands for all targets, and those that run here whatever the target is.
OF_NO_TARGET = (
    "runs",
    "compare",
    "ps",
    "prepare",
    "build",
    "push",
    "ui",
    "target list",
    "target add",
    "down --orphans",
)
# Functions whose commands need no target, each with the reason.
WITHOUT_TARGET = {
    "deploy/runs/records.py:choose": "a run that nobody started has no target",
    "deploy/commands/status.py:status": "a beginning that is compared, and not printed",
}


def words_of(text: str) -> list[str]:
    return text.replace(advice.ANY, "X").split()


@pytest.mark.parametrize("each", PRINTED, ids=str)
def test_a_printed_command_is_one(each: advice.Printed) -> None:
    """The command line accepts it: the command exists and has these flags."""
    if each.words.startswith(advice.ANY):
        pytest.fail(f"{each}: the command's name is not in the source")
    command_line.check(words_of(each.words), COMMANDS)


@pytest.mark.parametrize("each", PRINTED, ids=str)
def test_a_printed_command_names_its_target(each: advice.Printed) -> None:
    """Without --on or --run a command acts on the target `local`, and would not touch the machine in question."""
    if each.where in WITHOUT_TARGET or each.words.startswith(OF_NO_TARGET):
        return
    assert re.search(r" --(on|run) ", each.words), each


@pytest.mark.parametrize(
    ("environment", "status", "packages"),
    [
        ({}, "invoke status", "python bootstrap.py invoke train"),
        ({"UV": "/bin/uv"}, "invoke status", "python bootstrap.py invoke train"),  # a variable of the user's own
        (
            {"UV": "/bin/uv", "UV_RUN_RECURSION_DEPTH": "1"},
            "uv run invoke status",
            "uv run --extra app invoke train",
        ),
        (
            {"SNIPERFACE_INVOKE": "py -3.11 bootstrap.py invoke", "UV": "/bin/uv", "UV_RUN_RECURSION_DEPTH": "1"},
            "py -3.11 bootstrap.py invoke status",
            "py -3.11 bootstrap.py invoke train",
        ),
    ],
)
def test_a_printed_command_begins_as_the_user_began(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], status: str, packages: str
) -> None:
    for name in ("UV", "UV_RUN_RECURSION_DEPTH", "SNIPERFACE_INVOKE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (command("status"), bootstrap_command()) == (status, packages)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: a shell of another kind is on Windows")
@pytest.mark.parametrize("path", ["/a/b", '/it\'s "x" $HOME `id`; {a,b}=%#*\n', "", "-x"])
def test_a_printed_path_reaches_a_program_unchanged(path: str) -> None:
    done = subprocess.run(["sh", "-c", f"printf %s {quoted(path)}"], capture_output=True, text=True, check=True)
    assert done.stdout == path
    assert quoted("C:\\My files", windows=True) == '"C:\\My files"'


@pytest.mark.parametrize(
    ("path", "cmd", "typed"),
    [
        (r"C:\face\.venv\Scripts\python.exe", True, r"C:\face\.venv\Scripts\python.exe"),
        (r"C:\face\.venv\Scripts\python.exe", False, r"C:\face\.venv\Scripts\python.exe"),
        (r"C:\My files\python.exe", True, r'"C:\My files\python.exe"'),
        (r"C:\My files\python.exe", False, r'& "C:\My files\python.exe"'),
        (r"C:\a&b\python.exe", False, r'& "C:\a&b\python.exe"'),
    ],
)
def test_a_printed_program_starts_in_cmd_and_in_powershell(
    monkeypatch: pytest.MonkeyPatch, path: str, cmd: bool, typed: str
) -> None:
    """A quoted first word is a text in PowerShell, and & ends a command in cmd. Only cmd sets PROMPT."""
    monkeypatch.setenv("PROMPT", "$P$G") if cmd else monkeypatch.delenv("PROMPT", raising=False)
    assert program(path, windows=True) == typed
    assert program("/a b", windows=False) == "'/a b'"
