"""The command line is checked strictly: an unknown word starts no command, even where Invoke would accept it."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.exceptions import Exit
from invoke.main import program

import tasks
from deploy.commands import command_line
from deploy.commands.program import SHELLS, telling
from deploy.errors import WrongUse
from deploy.specs.flags import JSON

PROJECT = Path(tasks.__file__).parent
CORE = [*program.initial_context.flags, *program.initial_context.flags.aliases]  # Invoke's, long and short
ANSWERED = {*command_line.ASKS, *command_line.BEFORE, *command_line.COMPLETION}  # flags of Invoke that have a use here


def known() -> command_line.Commands:
    return {name: command.flags for name, command in tasks.COMMAND_LINE.commands.items()}


# Runs Invoke's loader and our parser on many command lines in one process, and records which commands would start.
TELLS = """
import contextlib, io, json, sys
from invoke.main import program
from invoke.program import Program

Program.execute = lambda self: started.extend(call.name for call in self.tasks)
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
    """Each core flag, long or short, is refused with and without a value, before and after every command."""
    commands = known()
    assert (len(commands) >= 19, len(CORE) >= 30) == (True, True)
    tried = 0
    for name, own in commands.items():
        for flag in [flag for flag in CORE if flag not in {each.typed for each in own} and flag not in ANSWERED]:
            for words in spelt(flag):
                for line in ([name, *words], [*words, name]):
                    with pytest.raises(WrongUse, match=re.escape(flag)):
                        command_line.check(line, commands)
                    tried += 1
    assert tried > 1200


def test_invoke_itself_starts_nothing_for_a_core_flag() -> None:
    """Invoke's own loader and parser start nothing either, here for `train`, which may rent a machine."""
    after = [["train", flag] for flag in CORE if flag not in {each.typed for each in known()["train"]}]
    before = [[flag, "train"] for flag in CORE if flag not in (*command_line.BEFORE, *command_line.SEARCH_ROOT)]
    for words, started, code, said in told(after + before):
        assert started == [], (words, said)
        if not ANSWERED & set(words) and code != 1:
            assert (code, "error: unknown flag" in said) == (2, True), (words, said)


def spelt(flag: str) -> list[list[str]]:
    return [[flag], [f"{flag}=x"]]


def test_words_without_a_flag_reach_their_command_unchanged() -> None:
    """They are split from the words that Invoke parses, which would take some of them for flags."""
    assert command_line.gathered(["exec", "--on", "ssh", "--", "a", "--on", "--", "-x"], known()) == (
        ["exec", "--on", "ssh"], ["a", "--on", "--", "-x"],
    )  # fmt: skip
    assert command_line.gathered(["compare", "a", "--json", "b"], known()) == (["compare", "--json"], ["a", "b"])
    assert command_line.gathered(["target", "add", "ssh", "--host", "add", "--port=2"], known()) == (
        ["target", "--host", "add", "--port=2"], ["add", "ssh"],
    )  # fmt: skip
    words = ["-F", "json", "train", "--name", "compare", "runs"]
    assert command_line.gathered(words, known()) == (words, [])


def test_right_command_lines_reach_their_command() -> None:
    """Control for the test above: a correct command line starts the command that it names."""
    right = [
        ["train", "--dry-run"],
        ["train", "--set", "train.epochs=5", "--set", "seed=-1", "--on=ssh", "--detach"],
        ["prepare", "--seed", "-1"],
        ["build", "--pip-options", "--index-url there"],
        ["build", "--pip-options=--no-deps"],
        ["--search-root", str(PROJECT), "runs", "--json"],
        ["fetch-checkpoint", "--which", "3"],
        ["compare", "--json", "one", "ps"],
        ["exec", "--on", "ssh", "--", "train", "--dry", "--on", "x", "--", "--run"],
        ["train", "--name", "compare"],
    ]
    for words, started, code, said in told(right):
        assert (started, code) == ([next(word for word in words if word in known())], 0), (words, said)


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
        ("runs --on ssh", "unknown flag --on of runs: there are --help, --json, --sort, --version: see"),
        ("logs --tail 5", "unknown flag --tail of logs: there are --follow, "),
    ],
)
def test_a_wrong_word_is_one_sentence_with_a_right_one(line: str, names: str) -> None:
    with pytest.raises(WrongUse) as refused:
        command_line.check(line.split(), known())
    assert names in refused.value.message
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("line", ["train --version", "train --detach -V", "-V", "status --json --version"])
def test_the_version_is_asked_for_wherever_it_stands(line: str) -> None:
    assert command_line.check(line.split(), known())


@pytest.mark.parametrize(
    "line", ["", "--list", "--help", "--help train", "train --help", "-l", "--complete -- inv tr", "deploy runs"]
)
def test_questions_to_invoke_pass(line: str) -> None:
    assert not command_line.check(line.split(), known())


START = {
    "module": [sys.executable, "-m", "invoke"],
    "script": [str(Path(sys.executable).with_name("invoke.exe" if os.name == "nt" else "invoke"))],
}


@pytest.mark.parametrize("how", START)
def test_a_real_command_line_starts_nothing(how: str) -> None:
    """The console script and the module both refuse an unknown flag with a message, and both print the version."""
    if not Path(START[how][0]).exists():
        pytest.skip(f"needs {START[how][0]}: pip installs it with invoke")
    refused = subprocess.run([*START[how], "train", "--dry", "--json"], cwd=PROJECT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: unknown flag --dry of train: did you mean --dry-run?")
    assert json.loads(refused.stdout)["exit_code"] == 2
    version = subprocess.run([*START[how], "train", "-V"], cwd=PROJECT, capture_output=True, text=True)
    assert (version.returncode, version.stdout.split()[0]) == (0, "sniperface")


def test_a_dry_run_by_invokes_environment_is_refused() -> None:
    """INVOKE_RUN_DRY has the same effect as the flag --dry, so it is refused as well."""
    refused = subprocess.run(
        [sys.executable, "-m", "invoke", "runs"],
        cwd=PROJECT, env={**os.environ, "INVOKE_RUN_DRY": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "not supported" in refused.stderr
    assert refused.stdout == ""


def test_help_still_explains_each_flag() -> None:
    """Our check of the command line leaves the help of each flag as it is."""
    shown = subprocess.run([sys.executable, "-m", "invoke", "train", "--help"], cwd=PROJECT, capture_output=True)
    assert b"print the plan and end" in shown.stdout


def test_every_command_takes_what_its_flags_give() -> None:
    """Each function has a parameter for each of its flags, and no other. A `**` parameter takes the rest."""
    for name, command in tasks.COMMAND_LINE.commands.items():
        _, *parameters = inspect.signature(command.body).parameters.values()
        given = {flag.parameter for flag in command.flags if flag is not JSON}
        named = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        assert named <= given, name
        assert named == given or len(named) < len(parameters), name
        assert len({flag.name for flag in command.flags}) == len(command.flags), name


def test_examples_in_the_help_are_right() -> None:
    for name, command in tasks.COMMAND_LINE.commands.items():
        for example in command.examples:
            assert example.split()[0] == name
            assert not command_line.check(shlex.split(example), known())


def answer(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command line in this process. Returns its exit code, stdout and stderr."""
    code = 0
    try:
        tasks.COMMAND_LINE.run(["sniperface", *shlex.split(line)])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capfd.readouterr()


WRONG = {
    "sttaus": "did you mean 'status'?",
    "fetch": "did you mean 'fetch-checkpoint'?",
    "RUNS": "there are: attach",
    "evalute --sets a.bin": "did you mean 'evaluate'?",
    "--jsn status": "did you mean --json?",
    "--version=1 status": "--version takes no value",
    "--help=train": "--help takes no value",
    "-c tasks runs": "unknown flag -c before a command",
    "-D 2 --list": "unknown flag -D before a command",
    "--list-format xml": "unknown --list-format 'xml': there are: flat, json",
    "--list-format": "--list-format needs a value",
    "--print-completion-script tcsh": "unknown shell 'tcsh': ",
    "--print-completion-script": "needs a value",
    "--help train now": "--help explains one command: leave out 'now'",
    "train --set": "--set needs a value",
    "train --set epochs": "--set epochs has no '='",
    "train --set run.dir=x": "--set run.dir is decided by the launcher",
    "train --fraction 1.5": "--fraction 1.5 is not a share of the data",
    "train --fraction nan": "--fraction nan is not a share of the data",
    "train --fraction=": "--fraction is empty: give a value, or leave --fraction out",
    "train --data 'C:\\my faces\" --fraction 0.1'": 'ends with \\", which is no closing quote: write "C:\\my faces"',
    "fetch-checkpoint '--to=.\\my models\"'": 'write ".\\my models"',
    "train --fraction 0.1 --set data.data_fraction=0.2": "differ: give one of them",
    "train --nodes two": "--nodes two is not a number of machines",
    "train --nodes 0": "--nodes 0 is not a number of machines",
    "train --pack jpeg": "--pack jpeg is not a packing format",
    "train --env PATH=/x": "--env PATH is decided by the launcher",
    "train --env A-B=1": "--env A-B=1 is not a variable",
    "train --env API_TOKEN=1": "has the name of a secret",
    "train --run orl": "add --resume auto",
    "train --on": "--on needs a value",
    "train -d": "unknown flag -d of train",
    "train --watch": "unknown flag --watch of train",
    "train --on nowhere": "nowhere",
    "status --on ../conf": "../conf",
    "status --follow": "did you mean --watch?",
    "logs -f": "did you mean --follow?",
    "rm lr_03 --dry": "there are --help, --json, --version, --yes: see",
    "rm lr_03 --ye": "did you mean --yes?",
    "logs --json": "unknown flag --json of logs",
    "watch --max-usd free": "--max-usd free is not an amount of money",
    "watch --max-usd -1": "--max-usd -1 is not an amount of money",
    "down all": "did you mean --all?",
    "ps --on runpod": "unknown flag --on of ps",
    "export --which": "--which needs a value",
    "prepare --identites 5": "did you mean --identities?",
    "runs --sort size": "there are: accuracy, cost, fraction, started, time",
    "compare": "compare needs two runs or more",
    "compare one --json": "compare needs two runs or more",
    "compare --sort time a b": "unknown flag --sort of compare",
    "ps compare": "compare cannot follow another command",
    "train --name Lr-0.1": "lower-case letters, digits and single underscores, such as lr_0_1",
    "train --name -": "--name needs a value",
    "exec": "exec needs a command after --",
    "exec --on local --": "exec needs a command after --",
    "exec nvidia-smi": "write -- before the command, exec -- nvidia-smi",
    "exec --onn ssh -- x": "unknown flag --onn of exec",
    "offers --on ssh": "target 'ssh' rents no machines",
    "offers --sort price": "unknown flag --sort of offers",
    "bench fast": "'fast' is not a flag of bench",
    "ps # what is billed": "'#' begins a comment, which zsh and cmd pass on: leave out all words from it on",
    "exec #1": "'#1' begins a comment",
    "compare a b # the last two": "'#' begins a comment",
    "note no_such_run '#2 try'": "no_such_run",
    "deploy runpod": "'runpod' is not a flag of deploy: did you mean --on runpod?",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_ends_in_one_sentence(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(line, capfd)
    assert (code, bool(out)) == (2, "--json" in line), err
    first, *rest = err.splitlines()
    assert first.startswith("error: ")
    assert WRONG[line] in first
    assert not [each for each in rest if not each.startswith("next: ")]


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    """As with `invoke --list | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "--list"], cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("platform", "error", "code"),
    [
        ("win32", OSError(errno.EINVAL, "Invalid argument"), 141),
        ("win32", OSError(errno.EINVAL, "Invalid argument", "a:b"), 1),
        ("win32", OSError(errno.ENOSPC, "No space left on device"), 1),
        ("linux", OSError(errno.EINVAL, "Invalid argument"), 1),
        ("linux", BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
    ],
)
def test_windows_has_another_error_for_a_reader_that_is_gone(
    platform: str, error: OSError, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the output of this process stays
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(Exit) as end, telling():
        raise error
    assert (end.value.code, bool(capfd.readouterr().err)) == (code, code == 1)


def test_help_is_grouped_and_shows_what_each_flag_takes(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer("train --help", capfd)
    assert code == 0
    places = [out.index(text) for text in ("Where:", "--on TARGET", "What runs:", "--fraction SHARE", "Examples:")]
    assert places == sorted(places)
    assert "invoke train --resume runs/RUN/checkpoints/epoch_023.pt --set train.epochs=48" in out
    code, out, _ = answer("--list", capfd)
    assert not re.search(r"\w\.  +\w", out)  # each description is one paragraph
    assert code == 0
    assert not [name for name in known() if not re.search(rf"^  {name} ", out, re.MULTILINE)]
    assert out.index("Runs:") < out.index("Machines and money:") < out.index("  down ")


def test_the_list_is_json_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer("--list --list-format json", capfd)
    assert {each["name"] for each in json.loads(out)["tasks"]} == set(known())
    assert code == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [("tr", "train"), ("train --dry", "--dry-run"), ("fetch-checkpoint --which best --", "--to"), ("--l", "--list")],
)
def test_shells_complete_commands_and_flags(words: str, found: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(f"--complete -- sniperface {words}", capfd)
    assert (code, err) == (0, "")
    assert found in out.splitlines()
    assert "--dry" not in out.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_names_our_command(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(f"--print-completion-script {shell}", capfd)
    assert code == 0
    assert "_complete_sniperface" in out


@pytest.mark.parametrize("name", ["it's a pröject", "moved"])
def test_the_installed_script_runs_its_clone_from_any_folder(tmp_path: Path, name: str) -> None:
    """As by `pipx install .` and `uv tool install .`: the installer records the clone."""
    project = tmp_path / name
    for folder in ("deploy", "conf"):
        (project / folder).mkdir(parents=True)
    for file in ("pyproject.toml", "sniperface.py", "LICENSE"):
        shutil.copy(PROJECT / file, project)
    (project / "tasks.py").touch()
    (project / "bootstrap.py").write_text(
        "def main(words):\n    print(__file__, *words)\n    return 3\n", encoding="utf-8"
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "tool"), str(project)], cwd=tmp_path, check=True)
    if name == "moved":
        project.rename(tmp_path / "elsewhere")
    script = tmp_path / "tool" / "bin" / ("sniperface.exe" if os.name == "nt" else "sniperface")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tool"), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, script, "status"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if name == "moved":
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{project}, which sniperface was installed from, is none any more" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (3, f"{project / 'bootstrap.py'} sniperface status\n")


def test_the_script_runs_from_a_folder_inside_the_project(tmp_path: Path) -> None:
    """The installed script finds the project above the current folder. Outside a project it ends with one sentence."""
    installed = shutil.copy(PROJECT / "sniperface.py", tmp_path)
    project = tmp_path / "it's a pröject"
    inside = project / "deploy" / "pod" / "base"  # its queue.py must not hide Python's own
    inside.mkdir(parents=True)
    (project / "conf").mkdir()
    (inside / "queue.py").touch()
    for name in ("tasks.py", "bootstrap.py"):
        (project / name).write_text(
            "import json, os\n"
            "def main(words):\n"
            "    print(json.dumps([__file__, words, os.environ['SNIPERFACE_STARTED_IN']]))\n"
            "    return 3\n",
            encoding="utf-8",
        )
    argv = [sys.executable, installed, "status", "--set", "a b"]
    done = subprocess.run(argv, cwd=inside, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout) == [
        str(project / "bootstrap.py"), ["sniperface", "status", "--set", "a b"], str(inside),
    ]  # fmt: skip
    outside = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert (outside.returncode, outside.stdout) == (2, "")
    assert re.fullmatch(r"error: .+ is not in a Sniperface project: .+\n", outside.stderr)


def test_relative_paths_start_where_the_user_stands(tmp_path: Path) -> None:
    """`python -m deploy` starts in the project's folder, but resolves paths from where the user called `sniperface`."""
    environment = {**os.environ, "SNIPERFACE_STARTED_IN": str(tmp_path), "SNIPERFACE_INVOKE": "sniperface"}
    argv = [sys.executable, "-m", "deploy", "train", "--data", "none.npy", "--dry-run"]
    done = subprocess.run(argv, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path / "none.npy") in done.stderr
