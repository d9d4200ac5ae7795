"""A person's own targets, outside git: write one after a test of its machine, and list all targets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.commands import doctor
from deploy.errors import DeployError, StepFailed, WrongUse, command, unknown
from deploy.pod.base.folder import write_json
from deploy.runs.session import Reach
from deploy.specs import targets
from deploy.specs.machine import Address
from deploy.specs.settings import TMUX_SOCKET, load, parse
from deploy.specs.target_schema import FILE, FIRST_LINE, target_schema
from deploy.ui.screen import Screen

ACTIONS = ("add", "list", "schema")
COLUMNS = ("target", "provider", "machine", "file", "kind", "problem")
FINGERPRINT = "SHA256:[A-Za-z0-9+/]{43}"  # as `ssh-keygen -lf` prints it
EXAMPLE = "SHA256:" + "kQ3v" * 10 + "kQ3"
ROOT, STAGE_TO = "~/sniperface", "/dev/shm"  # noqa: S108 - a folder in RAM on the machine, as in conf/deploy/ssh.yaml


def target(project: Path, words: Sequence[str], screen: Screen, **flags: str | None) -> Any:
    """Carry out `target add ssh`, `target list` or `target schema`. Raises WrongUse for other words."""
    action = words[0] if words else "list"
    if action not in ACTIONS:
        raise unknown("action of target", action, ACTIONS)
    given = {name: value for name, value in flags.items() if value is not None}
    if action == "add":
        if len(words) != 2 or words[1] != "ssh":
            raise WrongUse("target add makes targets of one kind: give target add ssh --host HOST")
        return add_ssh(project, screen, given)
    if len(words) > 1 or given:
        extra = words[1] if len(words) > 1 else f"--{next(iter(given))}"
        raise WrongUse(f"target {action} takes nothing else: leave out {extra}")
    if action == "schema":
        screen.document(target_schema())
        if not screen.as_json:
            screen.raw(json.dumps(target_schema(), indent=1) + "\n")
        return None
    screen.rows("Targets", listed(project), COLUMNS)
    return None


def listed(project: Path) -> list[dict[str, Any]]:
    """Every target with its file. A file that cannot be used has a `problem`."""
    return [_row(project, each) for each in targets.every(project)]


def add_ssh(project: Path, screen: Screen, given: Mapping[str, str]) -> dict[str, Any]:
    """Test a host over SSH and write a personal target for it. Writes nothing if the host cannot train.

    Raises WrongUse for a wrong value, and StepFailed with what failed in the test.
    """
    values: dict[str, Any] = {"provider": "ssh", **{key: value for key, value in given.items() if key != "name"}}
    if not values.get("host"):
        raise WrongUse("target add ssh needs --host, such as target add ssh --host gpu-box.example.org")
    name = given.get("name") or _name_of(values["host"])
    targets.check_name(name, "--name" if "name" in given else "--host")
    targets.refuse_taken(project, name)
    values = {**values, "root": values.get("root", ROOT), "stage_to": STAGE_TO}
    if "port" in values:
        values["port"] = _port(values["port"])
    Address(values["host"], user=values.get("user"))
    if not re.fullmatch(FINGERPRINT, values.get("fingerprint", EXAMPLE)):
        raise WrongUse(f"--fingerprint {values['fingerprint']} is no fingerprint: give one such as {EXAMPLE}")
    if not values["root"].startswith(("/", "~/")):
        raise WrongUse(f"--root {values['root']} is not absolute: give a folder on the host, such as {ROOT}")
    if "key" in values and not Path(values["key"]).expanduser().is_file():
        raise WrongUse(f"--key {values['key']}: no such file; give a private key, such as ~/.ssh/id_ed25519")
    folder = targets.personal_folder()
    file = folder / f"{name}.yaml"
    kept = {key: value for key, value in os.environ.items() if key == TMUX_SOCKET}
    settings = parse(project, name, values, targets.shown(file), kept)
    screen.say(f"testing {values['host']} ...")
    with Reach(settings) as at:
        findings = doctor.machine(at)
    for finding in findings:
        if finding.level == "problem":
            fix = None if finding.fix and targets.shown(file) in finding.fix else finding.fix
            found = re.sub(r"write fingerprint: (\S+) into the target's file", r"give --fingerprint \1", finding.found)
            raise StepFailed(f"target '{name}' was not written: {found}", next_command=fix)
        screen.say(f"  {finding.what}: {finding.found}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, target_schema())
    lines = [FIRST_LINE, *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())]
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")
    except FileExistsError as error:  # of another command, since the name was checked
        raise WrongUse(f"{targets.shown(file)} exists already: give another --name") from error
    screen.say(f"target '{name}' is in {targets.shown(file)}; train on it with: {command(f'train --on {name}')}")
    return {"target": name, "file": str(file), "findings": [vars(finding) for finding in findings]}


def _row(project: Path, file: targets.TargetFile) -> dict[str, Any]:
    row = {"target": file.name, "provider": None, "machine": None, "file": file.where, "kind": file.kind}
    try:
        told = load(project, file.name).target
    except DeployError as error:
        return {**row, "problem": error.message}
    return {**row, "provider": told.provider, "machine": told.options.hosts_shown, "problem": None}


def _name_of(host: str) -> str:
    """A name from a host: the first label of a domain name; of an address, all of it."""
    label = host if re.fullmatch(r"[0-9.]+", host) or ":" in host else host.split(".")[0]
    return re.sub(r"[^a-z0-9_-]+", "-", label.lower()).strip("-_")[: targets.NAME_CHARACTERS] or host


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise WrongUse(f"--port {text} is not a port: give a number from 1 to 65535, such as 22")
    return int(text)
