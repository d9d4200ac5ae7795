"""Wrong values of every command end in one sentence and exit code 2, and nothing is written.

Wrong words (commands and flags) are in test_command_line.py, wrong values of the app's own commands in
tests/app/test_wrong_inputs.py.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks
from tests.deploy.conftest import Project, copy_of

# `ID` in a line is a run that is over. The text after the line: the thing that is wrong, and a value that works.
WRONG = {
    # what to train, and on what
    "train --data nosuch.npy": "nosuch.npy: give --data an images.npy",
    "train --data tasks.py": "tasks.py is no file of images: give an images.npy or its folder",
    "train --data conf": "images.npy: give --data an images.npy",
    "train --data https://": "--data https:// names no host: give an address such as https://host/",
    "train --data ftp://host/x.npy": "--data ftp://host/x.npy is not supported: give an https:// or s3:// address",
    "train --data machine:x --on ssh": "must be an absolute path on the machine, such as machine:/workspace/images.npy",
    "train --labels nosuch.npy": "nosuch.npy is not a file: give an int32 .npy",
    "train --fraction 0": "--fraction 0 is not a share of the data",
    "train --fraction -0.1": "--fraction -0.1 is not a share of the data",
    "train --fraction 1%": "--fraction 1% is not a share of the data",
    "train --recipe moco": "--recipe moco is not known; choose from self_supervised, supervised",
    "train --set epochs=5": "there is no option epochs; did you mean train.epochs?",
    "train --set =5": "--set =5 names no key: write --set key=value",
    "train --set data.data_fraction=2": "2 is not a share of the data",
    "train --resume nosuch.pt": "nosuch.pt: no such file; give auto, none or the path of a .pt checkpoint",
    "train --resume tasks.py": "tasks.py is not a complete checkpoint: give another one",
    "train --resume auto": "--resume auto: target 'local' has no run that was stopped",
    "train --resume auto --run ID": "ID",
    "train --nodes 2": "--nodes 2: target 'local' is this computer, which is one machine: give --on another",
    "train --nodes -1": "--nodes -1 is not a number of machines: give a whole number from 1",
    "train --pack jpeg101": "--pack jpeg101 is not a packing format: give none, lossless, or jpeg50 to jpeg100",
    "train --pack lossless": "--pack lossless is for images of this computer that are sent to another",
    "train --env A": "--env A is not a variable: write --env KEY=VALUE",
    "train --name ..": "lower-case letters, digits and single underscores, such as",
    "train --on Local": "unknown target 'Local': did you mean 'local'?",
    "deploy --on nowhere": "unknown target 'nowhere': there are: docker, lambda, local, runpod, ssh",
    "deploy --nodes x": "--nodes x is not a number of machines: give a whole number from 1, such as 2",
    "deploy --pack zip": "--pack zip is not a packing format: give none, lossless",
    # runs
    "status --run nosuch": "unknown run 'nosuch': there are: ID",
    "logs --run nosuch": "unknown run 'nosuch': there are: ID",
    "attach --run nosuch": "unknown run 'nosuch': there are: ID",
    "watch --run nosuch": "unknown run 'nosuch': there are: ID",
    "stop --run nosuch": "unknown run 'nosuch': there are: ID",
    "watch --max-usd 0": "--max-usd 0 is not an amount of money: give a number above 0, such as 20",
    "fetch-checkpoint --which 99": "has no checkpoint of epoch 99: there are 0, 1, 2",
    "fetch-checkpoint --which bset": "--which bset is not known: give latest, best or the number of an epoch",
    "fetch-checkpoint --which best:lfw": "was not evaluated on a set lfw",
    "note": "note needs a run and a text, such as note RUN",
    "note nosuch text": "unknown run 'nosuch': there are: ID",
    "rm": "rm needs a run, such as rm RUN",
    "rm nosuch --yes": "unknown run 'nosuch': there are: ID",
    "rm ../.. --yes": "unknown run '../..': there are: ID",
    "compare ID nosuch": "unknown run 'nosuch': there are: ID",
    "compare ID ID": "twice: give two different runs",
    "ui --port 80000": "--port 80000 is not a port for this: give a number from 1024 to 65535, such as 8601",
    "ui --port web": "--port web is not a port for this: give a number from 1024 to 65535, such as 8601",
    # machines and money
    "cost --days 0": "--days 0 must be a whole number from 1 to 36500, such as 30",
    "cost --days week": "--days week must be a whole number from 1 to 36500, such as 30",
    "offers --on local": "target 'local' rents no machines, so it has no offers: give --on with one that does",
    "exec --run nosuch -- ls": "unknown run 'nosuch': there are: ID",
    "exec --on nowhere -- ls": "unknown target 'nowhere': there are: docker",
    "ssh --on local": "target 'local' is this computer",
    "ssh --run nosuch": "unknown run 'nosuch': there are: ID",
    "ssh-config --on local": "target 'local' is this computer",
    "down --on nowhere": "unknown target 'nowhere': there are: docker",
    "down --run nosuch": "unknown run 'nosuch': there are: ID",
    "doctor --on nowhere": "unknown target 'nowhere': there are: docker",
    "doctor --yes": "--yes accepts the cost of --rent: give both, or none",
    "build --base 'x y'": "--base 'x y' is not an image name: give one such as ubuntu:24.04",
    "fetch-checkpoint --to conf/deploy/local.yaml/x.pt": "--to conf/deploy/local.yaml/x.pt cannot be written (",
    "build --base ''": "--base is empty: give an image such as ubuntu:24.04",
    "push": "no repository to push to: give ",
    "push --image 'A B'": "'A B' is not an image name: give one such as me/sniperface",
    "target ad ssh": "unknown action of target 'ad': did you mean 'add'?",
    "target add": "target add makes targets of one kind: give target add ssh --host HOST",
    "target add ssh": "target add ssh needs --host, such as target add ssh --host",
    "target add ssh --host 'a b'": "host 'a b' has characters invalid in a host: give one such as gpu-1",
    "target add ssh --host x --port 99999": "--port 99999 is not a port: give a number from 1 to 65535, such as 22",
    "target add ssh --host x --name ../x": "--name: '../x' is not a name of a target: give up to 32 lower-case letters",
    "target list now": "target list takes nothing else: leave out now",
    # newer commands and flags
    "train --sweep train.optimizer.lr": "has no 'key=': write --sweep key=value,value, such as --sweep",
    "train --sweep train.optimizer.lr=": "has an empty value: write --sweep train.optimizer.lr=value,value",
    "train --sweep train.epochs=[1,2": "has a bracket or a quote that does not end: end it",
    "train --sweep recipe=self_supervised,moco": "--recipe moco is not known; choose from self_supervised, supervised",
    "train --sweep data.data_fraction=0.1,2": "2 is not a share of the data: give a number above 0 and up to 1",
    "train --sweep run.dir=/a,/b": "--sweep run.dir is not possible: it is no setting that differs between runs",
    "train --gpus ''": "--gpus '' has an empty name: give names of GPUs, such as --gpus A100:2,A40:2",
    "train --gpus :2 --on runpod": "--gpus ':2' has an empty name: give names of GPUs",
    "train --spot=yes": "--spot takes no value: write --spot alone, or leave it out",
    "offers --gpus A40:-1": "--gpus A40:-1 has no number of GPUs after the colon: give a whole number from 1",
    "offers --on ''": "--on is empty: give a value, or leave --on out",
    "exec ls": "'ls' is not a flag of exec: write -- before the command, exec -- ls",
    "exec -- ''": "exec needs a command after --, such as exec -- nvidia-smi",
    "ssh-config --on nowhere": "unknown target 'nowhere': there are: docker",
    "target add ssh --host ''": "target add ssh needs --host, such as target add ssh --host",
    "target add ssh --host gpu --user 'a b'": "user 'a b' has characters invalid in a user: give one such as root",
    "target add ssh --host gpu --key /nosuch": "--key /nosuch: no such file; give a private key, such as",
    "target add ssh --host gpu --root here": "--root here is not absolute: give a folder on the host",
    "ui --port 8601.5": "--port 8601.5 is not a port for this: give a number from 1024 to 65535",
    "mine --which best:nosuch": "was not evaluated on a set nosuch",
    "export --which -1": "--which -1 is not known: give latest, best or the number of an epoch",
    "export --out ''": "--out is empty: give a value, or leave --out out",
    "evaluate --gallery ''": "--gallery is empty: give a value, or leave --gallery out",
    "evaluate --sets=": "--sets is empty: give a value, or leave --sets out",
    "logs --run ' '": "--run is empty: give a value, or leave --run out",
    # data and models
    "prepare --out x/images.npy --encoded": "--out x/images.npy does not fit: give images.jpegs, its folder, or no",
    "prepare --out x/images.jpegs": "--out x/images.jpegs does not fit: give images.npy, its folder, or --encoded",
    "prepare --on nowhere": "unknown target 'nowhere': there are: docker",
    "mine --which 99": "has no checkpoint of epoch 99: there are 0, 1, 2",
    "mine --run nosuch": "unknown run 'nosuch': there are: ID",
    "evaluate --which 99": "has no checkpoint of epoch 99: there are 0, 1, 2",
    "evaluate --run nosuch --gallery x": "unknown run 'nosuch': there are: ID",
    "export --which latets": "--which latets is not known: give latest, best or the number of an epoch, such as 0",
    "export --run nosuch": "unknown run 'nosuch': there are: ID",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[tuple[Project, str]]:
    """A project with one run that is over, and its id."""
    for project in copy_of(template, tmp_path_factory.mktemp("project") / "it's a pröject"):
        yield project, str(project.json("train")["run_id"])


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_one_sentence_and_writes_nothing(
    line: str,
    place: tuple[Project, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    project, run = place
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(tasks, "PROJECT", project.path)
    for name in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    before = files(project.path)
    code = 0
    try:
        tasks.COMMAND_LINE.run(["sniperface", *shlex.split(line.replace("ID", run))])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capfd.readouterr()
    first, *rest = err.splitlines()
    assert (code, out) == (2, ""), err
    assert first.startswith("error: ")
    assert WRONG[line].replace("ID", run) in first
    assert not [each for each in rest if not each.startswith("next: ")]
    assert files(project.path) == before
    assert files(tmp_path) == {}


def files(folder: Path) -> dict[str, int]:
    """Each file below a folder, but for Python's bytecode, with the time of its last change."""
    paths = (Path(above, name) for above, _, names in os.walk(folder) for name in names)
    return {str(path): path.stat().st_mtime_ns for path in paths if path.suffix != ".pyc"}


def test_every_command_has_a_wrong_input() -> None:
    """`runs`, `ps` and `bench` take no value of their own that could be wrong: test_command_line.py has their words."""
    assert {line.split()[0] for line in WRONG} == {*tasks.COMMAND_LINE.commands} - {"runs", "ps", "bench", "data"}
    assert len(WRONG) >= 97
