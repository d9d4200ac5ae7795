"""The laptop's word to the guard of a machine: its ceilings, that somebody is there, and what has come home already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer
from deploy.pod.base.checkpoints import FETCHED
from deploy.pod.base.folder import LOST_AFTER_S, Root, RunFolder
from deploy.shell import Shell
from deploy.specs.machine import Machine, node_of
from deploy.specs.plan import limits_of
from deploy.specs.settings import RunPod, Settings

WANDB_SECRETS = ("WANDB_API_KEY",)
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
KEPT_SECRETS = ("RUNPOD_API_KEY",)  # the laptop's own; no machine is given it
IDENTIFIERS = ("AWS_ACCESS_KEY_ID",)  # a name, worth nothing without its key
CEILINGS = ("max_hours", "max_usd", "idle_min", "stall_min")


def arm(settings: Settings, machine: Machine, shell: Shell, code: PurePath, nodes: int = 1) -> str | None:
    """Before anything that takes long: from here on the machine looks after its money by itself. Returns its ceilings.

    Where nothing is paid, nothing was limited and no copies are kept there is nothing to guard.
    """
    limits = limits_of(settings, machine, nodes)
    armed = {name: getattr(limits, name) for name in CEILINGS if getattr(limits, name) is not None}
    if not armed and not limits.sync_to:
        return None
    root = Root(machine.root)
    growing = [
        machine.root / "data",
        machine.root / "environments",
        *([settings.stage_to] if settings.stage_to else []),
    ]
    told = {**asdict(limits), "machine": machine.name, "watch": [str(path) for path in growing], "code": str(code)}
    if machine.group:
        told |= {"group": machine.group, "node": node_of(machine.name)}
    if volume := volume_path(settings):
        told["volume_path"] = volume
    secrets = own_secrets(settings)
    if secrets and limits.sync_to:
        write_secrets(shell, root.guard_secrets, secrets)
    shell.write(root.guard, json.dumps(told, indent=1).encode("utf-8"))
    _start(machine, shell, machine.root, code)
    copies = [f"copies to {limits.sync_to}"] if limits.sync_to else []
    return ", ".join([*(f"{name} {value:g}" for name, value in armed.items()), *copies])


def volume_path(settings: Settings) -> str | None:
    """What lies below outlives the machine, as its provider says."""
    options = settings.target.options
    return options.volume_path if isinstance(options, RunPod) and options.volume else None


def greet(settings: Settings, machine: Machine, shell: Shell, root: PurePath) -> str | None:
    """Somebody is there: a guard that died is started again, and idleness is counted anew. Returns the guard's state.

    Not for one that is stuck: the machine should have been gone before. Where the target has no ceilings and keeps no
    copies there is no guard, and none is looked for.
    """
    limited = any(getattr(settings.target, name) is not None for name in (*CEILINGS, "sync_to"))
    state = revive(settings, machine, shell, root) if limited else None
    if machine.usd_per_hour and state != "stuck":
        shell.write(Root(root).contact, b"")
    return state


def revive(settings: Settings, machine: Machine, shell: Shell, root: PurePath) -> str | None:
    """Start the guard of a machine again, with the limits that it had, when its heart has stopped. Returns the state
    that it told last.

    One that lives, and was started again by somebody who had no secrets to give, is given them.
    """
    said, now = heard(shell, Root(root).guard_status)
    what = f"{shell.name}: {Root(root).guard_status.name}"
    lives = now - border.number(said.get("heartbeat", 0.0), f"{what}, heartbeat", 0, 1e11) <= LOST_AFTER_S
    state = None if said.get("state") is None else border.text(said["state"], f"{what}, state", 20)
    has = border.names(said.get("secrets", []), f"{what}, secrets")
    if lives and (not settings.target.sync_to or set(own_secrets(settings)) <= set(has)):
        return state
    told, _ = heard(shell, Root(root).guard)
    if told.get("sync_to") and own_secrets(settings):
        write_secrets(shell, Root(root).guard_secrets, own_secrets(settings))
    if not lives and told.get("code"):
        code = border.path_text(told["code"], f"{shell.name}: {Root(root).guard.name}, code")
        _start(machine, shell, root, machine.path(code))
    return state


def _start(machine: Machine, shell: Shell, root: PurePath, code: PurePath) -> None:
    """Where one lives already, another ends at once."""
    # The environment that trains is still to be made, perhaps; the guard needs no more than any Python has.
    python = machine.python if machine.is_here else "python3"
    shell.spawn([python, "-m", "deploy.pod.guard", str(root)], cwd=code)


def heard(shell: Shell, path: PurePath) -> tuple[dict[str, Any], float]:
    """A small JSON file of the machine, {} where there is none, and the machine's own time."""
    what, limit = f"{shell.name}: {path.name}", border.DOCUMENT_BYTES + 1
    try:
        data, now = shell.calls([("read", {"path": str(path), "limit": limit}), ("clock", {})])
        return border.document(data, what), border.number(now, f"{shell.name}: its clock", 0, 1e11)
    except (OSError, BadAnswer):  # not there, or half written on a full disk
        return {}, float("inf")


def note_fetched(shell: Shell, folder: RunFolder, about: Mapping[str, Any]) -> None:
    """A verified copy is at home, so the machine may go."""
    told = {"sha256": about["sha256"], "to": "the laptop"}
    shell.write(folder.checkpoints / f"{about['file']}{FETCHED}", json.dumps(told).encode("utf-8"))


def own_secrets(settings: Settings) -> dict[str, str]:
    """For the guard and for copies: keys of S3 where copies go there, and what the target's `secrets` names."""
    return _held(settings, S3_SECRETS if is_s3(settings.target.sync_to) else ())


def job_secrets(settings: Settings, *, track: str, data: str) -> dict[str, str]:
    """For the job: the key of W&B where it is used, of S3 where the images lie there, and what `secrets` names."""
    needed = [*(WANDB_SECRETS if track == "wandb" else ()), *(S3_SECRETS if is_s3(data) else ())]
    return _held(settings, needed)


def named_secrets(settings: Settings) -> dict[str, str]:
    """Every value of this computer that a run may be given, or that the laptop keeps; none belongs in code or words."""
    held = _held(settings, (*WANDB_SECRETS, *S3_SECRETS, *KEPT_SECRETS))
    return {name: value for name, value in held.items() if name not in IDENTIFIERS or name in settings.target.secrets}


def is_s3(place: str | None) -> bool:
    return str(place).lower().startswith(("s3://", "s3a://"))


def _held(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    wanted = sorted({*names, *settings.target.secrets})
    return {name: os.environ[name] for name in wanted if os.environ.get(name)}


def write_secrets(shell: Shell, path: PurePath, secrets: Mapping[str, str]) -> None:
    """As a file that only its owner reads, over the connection; never in a command line, never in a plan."""
    shell.write(path, json.dumps(dict(secrets)).encode("utf-8"), private=True)
