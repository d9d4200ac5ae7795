"""The command line is read strictly: no word that is not ours starts anything, wherever Invoke would accept it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.main import program

import tasks
from deploy.commands import flags
from deploy.errors import WrongUse

PROJECT = Path(tasks.__file__).parent
CORE = [*program.initial_context.flags, *program.initial_context.flags.aliases]  # long and short
ANSWERED = {*flags.ASKS, *flags.BEFORE, *flags.COMPLETION}  # these ask, or say where the commands are


def known() -> flags.Commands:
    return {name: command.flags for name, command in tasks.commands().items()}


# Invoke's own loader and parser on many command lines, in one process. Its executor only tells what would have run.
TELLS = """
import contextlib, io, json, sys
from invoke.main import program

class Tells:
    def __init__(self, collection, config, core): pass
    def execute(self, *calls): started.extend(call.name for call in calls)

program.executor_class = Tells
answers = []
for words in json.load(sys.stdin):
    started, said = [], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            program.run(["invoke", *words])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except ValueError:  # `-T train`: Invoke wants a number, and ends there
            code = 1
    answers.append((words, started, code, said.getvalue()))
json.dump(answers, sys.stdout)
"""


def told(lines: list[list[str]]) -> list[tuple[list[str], list[str], int, str]]:
    done = subprocess.run(
        [sys.executable, "-c", TELLS], cwd=PROJECT, input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


def test_no_core_flag_of_invoke_passes_at_any_command() -> None:
    """Every core flag, in each spelling, with and without a value, before and after every command."""
    commands = known()
    assert (len(commands) >= 19, len(CORE) >= 30) == (True, True)
    tried = 0
    for name, own in commands.items():
        for flag in [flag for flag in CORE if flag not in {each.typed for each in own} and flag not in ANSWERED]:
            for words in spelt(flag):
                for line in ([name, *words], [*words, name]):
                    with pytest.raises(WrongUse, match=re.escape(flag)):
                        flags.check(line, commands)
                    tried += 1
    assert tried > 1200


def test_invoke_itself_starts_nothing_for_a_core_flag() -> None:
    """The same before Invoke's own loader and parser, for the command that may rent a machine."""
    after = [["train", flag] for flag in CORE if flag not in {each.typed for each in known()["train"]}]
    before = [[flag, "train"] for flag in CORE if flag not in flags.BEFORE]
    for words, started, code, said in told(after + before):
        assert started == [], (words, said)
        if not ANSWERED & set(words) and code != 1:
            assert (code, "error: unknown flag" in said) == (2, True), (words, said)


def spelt(flag: str) -> list[list[str]]:
    return [[flag], [f"{flag}=x"]]


def test_right_command_lines_reach_their_command() -> None:
    """The control of the test above: what is right starts what it names."""
    right = [
        ["train", "--dry-run"],
        ["train", "--set", "train.epochs=5", "--set", "seed=-1", "--on=ssh", "--detach"],
        ["prepare", "--seed", "-1"],
        ["build", "--pip-options", "--index-url there"],
        ["build", "--pip-options=--no-deps"],
        ["--search-root", str(PROJECT), "runs", "--json"],
        ["fetch-checkpoint", "--which", "3"],
    ]
    for words, started, code, said in told(right):
        assert (started, code) == ([next(word for word in words if word in tasks.commands())], 0), (words, said)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("train --dry", "--dry-run"),
        ("train -R", "--dry-run"),
        ("train --help-x", "--help"),
        ("train --fracton 0.1", "--fraction"),
        ("train --fraction", "--fraction needs a value"),
        ("train --fraction --detach", "--fraction needs a value"),
        ("train --resume --help", "--resume needs a value"),
        ("train --on ssh --on local", "--on is given twice"),
        ("train --detach=no", "--detach takes no value"),
        ("train --yes=status", "--yes takes no value"),
        ("train -- --dry-run", "unknown flag --"),
        ("train dry-run", "did you mean --dry-run?"),
        ("runs train --dry", "--dry-run"),
        ("--dry train", "--dry-run"),
        ("trian", "did you mean 'train'?"),
        ("Train", "did you mean 'train'?"),
        ("fetch_checkpoint", "did you mean 'fetch-checkpoint'?"),
        ("--help trian", "did you mean 'train'?"),
        ("help", "there are: "),
        ("runs --on ssh", "unknown flag --on of runs"),
        ("logs --tail 5", "unknown flag --tail of logs"),
        ("--search-root", "--search-root needs a value"),
    ],
)
def test_a_wrong_word_is_one_sentence_with_a_right_one(line: str, names: str) -> None:
    with pytest.raises(WrongUse) as refused:
        flags.check(line.split(), known())
    assert names in refused.value.message
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("line", ["train --version", "train --detach -V", "-V", "status --json --version"])
def test_the_version_is_asked_for_wherever_it_stands(line: str) -> None:
    assert flags.check(line.split(), known())


@pytest.mark.parametrize(
    "line", ["", "--list", "--help", "--help train", "train --help", "-l", "--complete -- inv tr", "deploy runs"]
)
def test_questions_to_invoke_pass(line: str) -> None:
    assert not flags.check(line.split(), known())


START = {
    "module": [sys.executable, "-m", "invoke"],
    "script": [str(Path(sys.executable).with_name("invoke.exe" if os.name == "nt" else "invoke"))],
}


@pytest.mark.parametrize("how", START)
def test_a_real_command_line_starts_nothing(how: str) -> None:
    """By the console script as by the module: a refusal in words, and the version."""
    if not Path(START[how][0]).exists():
        pytest.skip(f"needs {START[how][0]}: pip installs it with invoke")
    refused = subprocess.run([*START[how], "train", "--dry", "--json"], cwd=PROJECT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: unknown flag --dry of train: did you mean --dry-run?")
    assert json.loads(refused.stdout)["exit_code"] == 2
    version = subprocess.run([*START[how], "train", "-V"], cwd=PROJECT, capture_output=True, text=True)
    assert (version.returncode, version.stdout.split()[0]) == (0, "sniperface")


def test_a_dry_run_by_invokes_environment_is_refused() -> None:
    """INVOKE_RUN_DRY is the same setting without a flag."""
    refused = subprocess.run(
        [sys.executable, "-m", "invoke", "runs"],
        cwd=PROJECT, env={**os.environ, "INVOKE_RUN_DRY": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "not supported" in refused.stderr
    assert refused.stdout == ""


def test_help_still_explains_each_flag() -> None:
    """Reading the flags takes nothing away from what Invoke shows."""
    shown = subprocess.run([sys.executable, "-m", "invoke", "train", "--help"], cwd=PROJECT, capture_output=True)
    assert b"print the plan and end" in shown.stdout


def test_every_command_is_behind_the_check() -> None:
    from invoke.collection import Collection

    collection = Collection.from_module(tasks)
    assert set(collection.tasks) == set(tasks.commands())
    assert all(isinstance(each, tasks.Command) for each in collection.tasks.values())
