"""What machines and providers say names no local file and reaches no terminal, except through the border.

The check reads the code and runs none of it: tests/support/strangers.py says how, and what it cannot see.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.strangers import Code, Found
from tests.test_architecture import sources

PROJECT = Path(__file__).parents[1]
# Joins that the analysis reports and that are right, and why. A new one needs a reason here.
RIGHT = {
    "deploy/billing/teardown.py: folder / name": "a path on the machine, which it is asked about",
    "deploy/commands/program.py: print(command_line.version(self.project))": "this project and its commit, by git here",
    "deploy/runs/checkpoints.py: folder.checkpoints / name": "a path on the machine, or in a run's folder, to read",
    "deploy/commands/app.py: Path(str(plan.get('data_path')))": "only looked for, never opened",
    "deploy/commands/app.py: Path(str(sent))": "plan.json, which this computer wrote",
    "deploy/commands/execute.py: Path(folder)": "plan.json, which this computer wrote",
    "deploy/commands/execute.py: PurePath(python)": "plan.json, which this computer wrote",
    "deploy/specs/request.py: Path(told or '')": "a flag that the user typed",
    "deploy/ui/paths.py: Path(path)": "the text of a message, never opened",
    "deploy/steps/resolve.py: project / labels": "the output of this project's own app.config",
    "deploy/steps/resolve.py: project / own": "the output of this project's own app.config",
}
# The only laptop files that write files, and where each takes their names from.
WRITES = {
    "deploy/commands/program.py": "the null device, in place of a pipe without a reader",
    "deploy/commands/remove.py": "run ids of this computer, by border.place",
    "deploy/commands/target.py": "the name that the user typed",
    "deploy/providers/image.py": "the tag of an image, a hash",
    "deploy/providers/runpod/cache.py": "names of this project, and ids by border.identifier",
    "deploy/providers/ssh_key.py": "a fixed name",
    "deploy/runs/notes.py": "run ids of this computer, by border.place",
    "deploy/runs/records.py": "run ids of this computer",
    "deploy/runs/session.py": "the name of a target",
    "deploy/shell/entry.py": "fixed names",
    "deploy/shell/host_keys.py": "the name of a target, or a hash",
    "deploy/shell/native.py": "beside the known hosts",
    "deploy/shell/ranges.py": "the part beside a border.Place, from transfer.py",
    "deploy/shell/transfer.py": "a border.Place, and no path",
    "deploy/steps/download.py": "the name of a target",
    "deploy/workspace/compression.py": "a temporary folder",
    "deploy/workspace/upload_list.py": "a temporary folder",
    "deploy/workspace/snapshots.py": "fixed names",
}
WRITING = re.compile(
    r"\.write_(bytes|text)\(|write_(json|bytes)\(|\bopen\([^()]*,\s*[\"'](w|a|x|r\+)|os\.open\(|\.open\([\"'][wax]"
    r"|(LocalShell\(\)|\bhere)\.(write|write_at|replace|truncate)\(|shutil\.(copy|move)|os\.(replace|rename|link)\("
    r"|\.rename\(|\.(mkdir|symlink_to|hardlink_to)\(|private_folder\(|\bfolder\.replace\("
)
# The only files that make a place for a file from a path of the user, without a check of the border.
CHOOSES = {
    "deploy/commands/app.py": "--out",
    "deploy/steps/download.py": "--to",
}


@cache
def texts() -> dict[str, str]:
    """The laptop half without the border, which is the check, and without what runs on the machine."""
    files = {path.relative_to(PROJECT).as_posix(): path for path in sources("deploy", "tasks.py")}
    other = ("deploy/pod/", "deploy/border/")
    return {name: path.read_text(encoding="utf-8") for name, path in files.items() if not name.startswith(other)}


def unexplained(found: list[Found]) -> set[str]:
    return {f"{each.file}: {each.words}" for each in found} - set(RIGHT)


@cache
def found() -> list[Found]:
    return Code(texts()).found()


def test_no_local_path_and_no_print_is_made_of_what_a_stranger_says() -> None:
    """The table lists no expression needlessly."""
    assert not unexplained(found())
    assert not set(RIGHT) - {f"{each.file}: {each.words}" for each in found()}


PLANTED = {
    "a listed name": "def f(shell, home):\n    for name in shell.listdir(home):\n        (home / name).touch()",
    "through a note": "def f(shell, home):\n    note = border.document(shell.read(home), 'x')\n"
    "    return home.joinpath(note['file'])",
    "in an f-string": "def f(self, home):\n    told = self._json('GET', '/v2/pods')\n"
    "    return Path(home, f\"{told['pods'][0]['id']}.json\")",
    "with a helper": "def f(shell, home):\n    _save_it(home, shell.call('status')['name'])\n"
    "def _save_it(folder, name):\n    (folder / name).touch()",
    "from a helper": "def f(home):\n    return home / _asked_name()\n"
    "def _asked_name():\n    return link.read().strip()",
    "by a comprehension": "def f(shell, home):\n    return [home.with_name(each) for each in shell.calls([])]",
    "opened": "def f(shell):\n    with shell.stream(['x']) as lines:\n        open(next(lines), 'w')",
    "after a harmless change": "def f(shell, home):\n    name = shell.call('x').lower().replace('/', '_')\n"
    "    return home / name",
}  # fmt: skip
PRINTED = {
    "printed": "def f(shell):\n    print(shell.call('x')['reason'])",
    "to the console": "class S:\n    def f(self, shell):\n        self.console.print(f\"{shell.run(['x'])}\")",
}
FITTING = {
    "a name": "def f(shell, home):\n    return home / Name(shell.call('x'), 'x')",
    "a place": "def f(shell, home):\n    return border.place(home, shell.call('x')).path",
    "a number": "def f(shell, home):\n    return home / f\"{border.whole(shell.call('x'), 'x')}.json\"",
    "a hash": "def f(shell, home):\n    return home / border.sha256(shell.call('x'), 'x')",
    "shown": "def f(shell):\n    print(visible(shell.call('x')))",
}
# What the analysis misses. Such code needs a reader: the border's own tests attack it from outside instead.
MISSED = {
    "in an attribute": "def f(shell, home, pod):\n    pod.id = shell.call('x')\n    return home / pod.id",
    "of two functions of a name": "def f(shell, home):\n    _save(home, shell.call('x'))\n"
    "def _save(a, b):\n    return a / b\nclass C:\n    def _save(self):\n        pass",
    "from an unknown source": "def f(shell, home):\n    return home / shell.whisper()",
    "joined as text": "def f(shell, home):\n    return os.stat(str(home) + '/' + shell.call('x'))",
}


@pytest.mark.parametrize("name", [*PLANTED, *PRINTED])
def test_a_planted_violation_is_found(name: str) -> None:
    [one] = Code({"deploy/new.py": {**PLANTED, **PRINTED}[name]}).found()
    assert one.kind == ("print" if name in PRINTED else "path")


def test_a_violation_in_a_file_of_the_project_is_found() -> None:
    file = "deploy/steps/download.py"
    changed = texts()[file].replace("name = Name(each, ", "name = str(each) or str(")
    assert changed != texts()[file]
    changed = changed.replace("to = place(Path(reached.home.path), folder.name, name)", "to = reached.at / name")
    assert f"{file}: reached.at / name" in unexplained(Code({**texts(), file: changed}).found())


@pytest.mark.parametrize("name", FITTING)
def test_a_value_of_the_border_passes(name: str) -> None:
    assert Code({"deploy/new.py": FITTING[name]}).found() == []


@pytest.mark.parametrize("name", MISSED)
def test_what_it_cannot_see_is_listed(name: str) -> None:
    """If one is found one day, it belongs to PLANTED."""
    assert Code({"deploy/new.py": MISSED[name]}).found() == []


@pytest.mark.parametrize(
    ("what", "doors"),
    [(WRITING, WRITES), (re.compile(r"\bchosen\(|\bPlace\(\w+, \("), CHOOSES)],
    ids=["writes", "chooses"],
)
def test_files_are_written_in_few_places(what: re.Pattern[str], doors: dict[str, str]) -> None:
    """Downloads go through deploy/shell/transfer.py. The tables list no file needlessly."""
    assert {file for file, text in texts().items() if what.search(text)} == set(doors)


def test_a_download_takes_a_place_and_no_path() -> None:
    """The only functions that write a machine's bytes into a file that is named; `Place` checks containment."""
    transfer = texts()["deploy/shell/transfer.py"]
    for function in ("fetch", "fetch_checkpoint"):
        [parameters] = re.findall(rf"^def {function}\((.*?)\) ->", transfer, re.MULTILINE | re.DOTALL)
        assert "place: Place" in parameters
        assert "Path" not in parameters.replace("PurePath", "")
    assert [file for file, text in texts().items() if "Fetching(" in text] == ["deploy/shell/transfer.py"]
