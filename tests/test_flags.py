"""A flag that nobody honours never starts anything: every flag of Invoke, after every task, and before it."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.program import Program

import tasks
from deploy import flags

PROJECT = Path(__file__).parents[1]
TASKS = {str(each.name): each for each in copy.deepcopy(Collection.from_module(tasks)).to_contexts()}


def core_flags() -> dict[str, bool]:
    """Every flag of Invoke's own, with whether a value follows it."""
    arguments = [*Program().core_args(), *Program().task_args()]
    return {
        f"{'--' if len(name) > 1 else '-'}{name}": arg.takes_value and not arg.optional
        for arg in arguments
        for name in arg.names
    }


def words(flag: str, takes_value: bool) -> list[str]:
    return [flag, "1"] if takes_value else [flag]


def code(*argv: str) -> int | None:
    """The exit code with which a command line ends before any task; None: the task would run."""
    try:
        flags.check(["invoke", *argv], tasks)
    except Exit as ending:
        return int(ending.code)
    return None


def test_no_flag_of_invokes_starts_a_task_that_does_not_know_it() -> None:
    tried = 0
    for (name, context), (flag, takes_value) in itertools.product(TASKS.items(), core_flags().items()):
        if flag in context.flags or flag in ("-h", "--help"):
            continue  # the task's own; or help, which ends there
        expected = 0 if flag in ("-V", "--version") else 2
        assert code(name, *words(flag, takes_value)) == expected, (name, flag)
        tried += 1
    assert tried > 400


@pytest.mark.parametrize("flag", ["--dry", "-R", "--echo", "-e", "--pty", "-p", "--warn-only", "--debug"])
def test_nor_does_one_that_stands_before_the_task(flag: str) -> None:
    assert code(flag, "train") == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["train"],
        ["train", "--dry-run", "--fraction", "0.1"],
        ["train", "--fraction=0.1", "--set", "a=1", "--set", "b=2"],
        ["train", "--set", "--echo"],  # a value, whatever it looks like
        ["deploy", "runs"],
        ["--list"],
        ["--help", "train"],
        ["train", "--help", "--dry"],
        ["--version"],
        ["--collection", "tasks", "runs"],
    ],
)
def test_what_is_known_goes_on(argv: list[str]) -> None:
    assert code(*argv) is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "--dry"], "did you mean --dry-run?"),
        (["train", "--fractoin", "1"], "did you mean --fraction?"),
        (["train", "-e"], "`invoke train --help` lists its flags"),
        (["trian"], "there is no command trian: did you mean train?"),
        (["fly"], "`invoke --list` lists them"),
        (["train", "--on"], "--on needs a value"),
        (["--dry", "train"], "--dry would be ignored"),
    ],
)
def test_the_sentence_names_the_word_and_a_right_one(argv: list[str], said: str) -> None:
    with pytest.raises(Exit) as ending:
        flags.check(["/usr/bin/invoke", *argv], tasks)
    assert said in str(ending.value.message)
    assert "\n" not in str(ending.value.message)
    assert ending.value.code == 2


def test_other_programs_keep_their_words() -> None:
    for program in ("pytest", "/x/pytest/__main__.py", "tasks.py"):
        flags.check([program, "train", "--dry"], tasks)


@pytest.mark.parametrize("flag", ["--dry", "--version", "-V", "-e"])
def test_typed_for_real_nothing_is_started(flag: str) -> None:
    before = sorted((PROJECT / "runs").glob("*"))
    argv = [sys.executable, "-m", "invoke", "train", flag]
    ended = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == (0 if flag in ("--version", "-V") else 2)
    assert (ended.stdout if ended.returncode == 0 else ended.stderr).count("\n") == 1
    assert sorted((PROJECT / "runs").glob("*")) == before
