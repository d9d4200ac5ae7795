"""`exclude:` through the commands: the plan, the sentences, and the folder that arrives by SSH and here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.runs import records
from tests.deploy.commands.test_remote import Box, make_box
from tests.deploy.conftest import Project, git
from tests.deploy.support.servers import SSHD, asyncssh_server, openssh


@pytest.fixture
def box(project: Project, tmp_path: Path) -> Iterator[Box]:
    yield from make_box(project, tmp_path, openssh if SSHD else asyncssh_server)


def add_papers(project: Project) -> None:
    """A tracked and an untracked file that no machine needs."""
    (project.path / "papers").mkdir()
    (project.path / "papers" / "draft.tex").write_text("x" * 1000)
    git(project.path, "add", "--all")
    git(project.path, "commit", "--quiet", "-m", "papers")
    (project.path / "papers" / "letter.tex").write_text("y" * 234)


def test_a_host_gets_the_project_without_what_is_excluded(box: Box) -> None:
    add_papers(box.project)
    box.target(exclude=["papers/"])
    planned = box.json("train", "--dry-run")["code"]
    assert (planned["excluded_files"], planned["excluded_bytes"], planned["untracked"]) == (2, 1234, [])
    assert "2 files, 1234 bytes, by exclude" in box.invoke("train", "--dry-run").stdout
    done = box.json("train")
    assert done["state"] == "succeeded"
    (folder,) = (box.root / "code").glob("[0-9a-f]*")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {"tasks.py", "app/train.py"} < names
    assert not [name for name in names if name.startswith("papers")]
    plan = records.carried_out(box.project.path / "runs", done["run_id"])
    assert plan["snapshot"] == folder.name
    box.target(exclude=["papers/draft.tex"])
    box.invoke("deploy")
    assert [path.name for path in box.root.glob("code/*/papers/*")] == ["letter.tex"]


def test_this_computer_runs_without_what_is_excluded(project: Project) -> None:
    add_papers(project)
    project.env["SNIPERFACE_EXCLUDE"] = "papers/,*.odt"
    done = project.json("train")
    assert done["state"] == "succeeded"
    (folder,) = (project.path / ".sniperface" / "local" / "code").glob("[0-9a-f]*")
    assert (folder / "tasks.py").exists()
    assert not (folder / "papers").exists()
    assert (project.path / "papers" / "letter.tex").exists()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("[app/]", "'app/' excludes app/__init__.py, which the job needs"),
        ("['../other']", "leads out of the project"),
        ("[/etc/ssl]", "is a path outside of the project"),
        ("{papers: yes}", "exclude in conf/deploy/local.yaml must be a list"),
        ("[[papers]]", "exclude in conf/deploy/local.yaml must be a list"),
    ],
)
def test_a_wrong_pattern_ends_in_one_sentence(project: Project, told: str, named: str) -> None:
    with open(project.path / "conf" / "deploy" / "local.yaml", "a", encoding="utf-8") as file:
        file.write(f"exclude: {told}\n")
    for words in (["train", "--dry-run"], ["train", "--detach"], ["deploy"]):
        said = project.invoke(*words, code=2).stderr
        assert named in said
        assert len(said.strip().splitlines()) == 1
    assert not (project.path / "runs").exists() or not list((project.path / "runs").glob("*/run.json"))


def test_more_than_one_message_travels_to_a_host(box: Box) -> None:
    """A snapshot of 17 MiB that do not shrink: one message to the machine has at most 8."""
    content = random.Random(0).randbytes(17 << 20)
    (box.project.path / "large.bin").write_bytes(content)
    box.invoke("deploy")
    assert [file.read_bytes() == content for file in box.root.glob("code/*/large.bin")] == [True]
