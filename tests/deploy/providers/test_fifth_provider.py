"""A new provider of rented machines is a module, a line of the registry and a target. No other file changes."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest

from deploy.shell.host_keys import fingerprint
from tests.deploy.commands.test_remote import Box, box
from tests.deploy.conftest import git
from tests.deploy.support import shed

__all__ = ["box"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: the machine is this computer")
REGISTRY = '        "lambda": "deploy.providers.lambda_cloud:LambdaCloud",\n'
LINE = '        "shed": "deploy.providers.shed:Shed",\n'


def add_provider(at: Box, account: Path) -> None:
    """Do what docs/architecture.md lists."""
    project = at.project.path
    shutil.copy(shed.__file__, project / "deploy" / "providers" / "shed.py")
    settings = project / "deploy" / "specs" / "settings.py"
    text = settings.read_text(encoding="utf-8")
    assert text.count(REGISTRY) == 1
    settings.write_text(text.replace(REGISTRY, REGISTRY + LINE), encoding="utf-8")
    target = {
        "provider": "shed", "root": str(at.root), "stage_to": str(at.ram), "account_folder": str(account),
        "port": at.server.port, "login_key": str(at.server.key),
        "fingerprint": fingerprint(base64.b64decode(at.server.host_key.split()[1])),
    }  # fmt: skip
    (project / "conf" / "deploy" / "shed.yaml").write_text(json.dumps(target), encoding="utf-8")


def test_a_fifth_provider_is_three_files(box: Box, tmp_path: Path) -> None:
    """Every command that knows of providers serves it: plan, price, run, list of costs, release, targets, schema."""
    account = tmp_path / "sheds"
    account.mkdir()
    project = box.project
    (project.path / "conf" / "deploy" / "box.yaml").unlink()
    add_provider(box, account)
    changed = git(project.path, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert sorted(line.split()[-1] for line in changed) == [
        "conf/deploy/shed.yaml", "deploy/providers/shed.py", "deploy/specs/settings.py",
    ]  # fmt: skip
    git(project.path, "add", "--all")
    git(project.path, "commit", "--quiet", "-m", "sheds")
    assert project.json("train", "--on", "shed", "--dry-run")["usd_per_hour"] == 0.5
    assert list(account.iterdir()) == []
    done = project.json("train", "--on", "shed", "--yes")
    assert (done["state"], done["checkpoint"]["epoch"]) == ("succeeded", 2)
    [machine] = project.json("ps")
    assert (machine["target"], machine["usd_per_hour"]) == ("shed", 0.5)
    assert [file.name for file in account.iterdir()] == [machine["machine"]]
    assert project.json("status", "--on", "shed")["state"] == "succeeded"
    assert "shed" in [each["target"] for each in project.json("target", "list")]
    assert '"shed"' in project.invoke("target", "schema").stdout
    refused = project.invoke("train", "--on", "hut", "--dry-run", code=2).stderr
    assert "there are: docker, lambda, local, runpod, shed, ssh" in refused
    project.invoke("down", "--on", "shed")
    assert list(account.iterdir()) == []
    assert project.json("ps") == []


def test_a_key_that_the_new_provider_misses_is_named(box: Box, tmp_path: Path) -> None:
    add_provider(box, tmp_path)
    target = box.project.path / "conf" / "deploy" / "shed.yaml"
    target.write_text("provider: shed\nroot: /r\n", encoding="utf-8")
    refused = box.project.invoke("train", "--on", "shed", "--dry-run", code=2).stderr
    assert "account_folder: /srv/sheds" in refused
