"""Find the files of targets: those of the project, and a person's own, which git does not track."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.border import Name
from deploy.errors import BadAnswer, WrongUse, unknown

SHIPPED, LOCAL, PERSONAL = "project", "ignored by git", "personal"
LOCAL_SUFFIX = ".local"  # conf/deploy/box.local.yaml is the target box
NAME_CHARACTERS = 32
# Without hidden files: locks of an editor, and the ._NAME.yaml of macOS on a disk without extended attributes.
OURS = "[!.]*.yaml"


@dataclass(frozen=True)
class TargetFile:
    """The file of a target. `where`: its path in messages."""

    name: str
    path: Path
    where: str
    kind: str


def personal_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of a person's own targets, for all projects: in %APPDATA% on Windows, else in ~/.config."""
    told = environment.get("APPDATA") if sys.platform == "win32" else environment.get("XDG_CONFIG_HOME")
    default = Path.home() / ("AppData/Roaming" if sys.platform == "win32" else ".config")
    return (Path(told) if told else default) / "sniperface" / "targets"


def every(project: Path, environment: Mapping[str, str] = os.environ) -> list[TargetFile]:
    """All targets' files, by name. A name may occur twice: `find` refuses it."""
    found = []
    for path in (project / "conf" / "deploy").glob(OURS):
        is_local = path.stem.endswith(LOCAL_SUFFIX)
        name = path.stem.removesuffix(LOCAL_SUFFIX)
        found.append(TargetFile(name, path, f"conf/deploy/{path.name}", LOCAL if is_local else SHIPPED))
    for path in personal_folder(environment).glob(OURS):
        found.append(TargetFile(path.stem, path, shown(path), PERSONAL))
    return sorted(found, key=lambda each: (each.name, each.where))


def find(project: Path, name: str, environment: Mapping[str, str] = os.environ) -> TargetFile:
    """The file of a target. Raises WrongUse for an unknown name, and for one that two files have."""
    files = every(project, environment)
    if not files:
        raise WrongUse(f"{project}/conf/deploy has no target files")
    named = [each for each in files if each.name == name]
    if not named:
        raise unknown("target", name, {each.name for each in files})
    if named[0].kind != SHIPPED:
        check_name(name, named[0].where)
    same = [each for each in files if _as_machines_are_named(each.name) == _as_machines_are_named(name)]
    if len(same) > 1:
        own = next((each for each in same if each.kind != SHIPPED), same[-1])
        raise WrongUse(
            f"{' and '.join(each.where for each in same)} name the same target: rename {own.where}, such as to "
            f"my_{own.path.name}"
        )
    return named[0]


def check_name(name: str, what: str) -> None:
    """Raise WrongUse unless a personal target may have this name. `what` gave the name."""
    try:
        Name(name)
        is_name = re.fullmatch(rf"[a-z0-9][a-z0-9_-]{{0,{NAME_CHARACTERS - 1}}}", name) is not None
    except BadAnswer:
        is_name = False
    if not is_name:
        raise WrongUse(
            f"{what}: '{name}' is not a name of a target: give up to {NAME_CHARACTERS} lower-case letters, digits, "
            "- and _, such as gpu-box"
        )


def refuse_taken(project: Path, name: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise WrongUse if a target has this name, or one that machines cannot tell from it."""
    for each in every(project, environment):
        if _as_machines_are_named(each.name) == _as_machines_are_named(name):
            raise WrongUse(f"target '{name}' exists already, in {each.where}: give another --name, such as my_{name}")


def shown(path: Path) -> str:
    """A path for messages, with ~ for the home folder."""
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except ValueError:
        return str(path)


def _as_machines_are_named(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())
