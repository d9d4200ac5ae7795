"""A person's own targets: where they lie, their names, and that none hides another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.specs.settings import load
from deploy.specs.targets import check_name, every, personal_folder, refuse_taken, shown


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A project with the target `local`, and an environment with an empty folder for personal targets."""
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    (tmp_path / "conf" / "deploy" / "local.yaml").write_text("provider: local\nroot: here\n", encoding="utf-8")
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "APPDATA": str(tmp_path / "home")}
    personal_folder(environment).mkdir(parents=True)
    return environment


def write(file: Path) -> Path:
    file.write_text("provider: ssh\nroot: ~/x\nhost: gpu-1\n", encoding="utf-8")
    return file


def test_personal_targets_are_outside_the_project_or_ignored(home: dict[str, str], tmp_path: Path) -> None:
    write(personal_folder(home) / "box.yaml")
    write(tmp_path / "conf" / "deploy" / "desk.local.yaml")
    for folder in (personal_folder(home), tmp_path / "conf" / "deploy"):  # as macOS does on a disk without attributes
        (folder / "._box.yaml").write_bytes(b"\0\5\x16\7")
    assert [(each.name, each.kind) for each in every(tmp_path, home)] == [
        ("box", "personal"), ("desk", "ignored by git"), ("local", "project"),
    ]  # fmt: skip
    assert load(tmp_path, "box", home).where == shown(personal_folder(home) / "box.yaml")
    assert load(tmp_path, "desk", home).where == "conf/deploy/desk.local.yaml"
    with pytest.raises(WrongUse, match="unknown target 'bax': did you mean 'box'"):
        load(tmp_path, "bax", home)


def test_the_folder_is_where_the_system_keeps_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert personal_folder({}) == Path.home() / ".config" / "sniperface" / "targets"
    monkeypatch.setattr(sys, "platform", "win32")
    assert personal_folder({"APPDATA": "/roaming"}) == Path("/roaming/sniperface/targets")


@pytest.mark.parametrize("name", ["local", "local.local"])
def test_no_target_hides_another(home: dict[str, str], tmp_path: Path, name: str) -> None:
    place = personal_folder(home) if name == "local" else tmp_path / "conf" / "deploy"
    write(place / f"{name}.yaml")
    with pytest.raises(WrongUse, match=r"name the same target: rename .*local\.yaml, such as to my_local"):
        load(tmp_path, "local", home)


def test_names_that_machines_cannot_tell_apart_are_one(home: dict[str, str], tmp_path: Path) -> None:
    """Names of machines hold that of their target with underscores alone."""
    write(personal_folder(home) / "gpu-box.yaml")
    refuse_taken(tmp_path, "gpu", home)
    with pytest.raises(WrongUse, match=r"target 'gpu_box' exists already, in .*gpu-box\.yaml"):
        refuse_taken(tmp_path, "gpu_box", home)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "..", "A", "con", "x" * 33, "ü", "a.b"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(WrongUse, match=r"is not a name of a target: give .*, such as gpu-box"):
        check_name(name, "--name")
