"""Start the guard of a machine, and send it limits, contacts, secrets and notes of downloaded checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer
from deploy.pod.base.checkpoints import FETCHED
from deploy.pod.base.folder import Root, RunFolder, as_json
from deploy.pod.base.heartbeat import is_lost
from deploy.pod.base.limits import CEILINGS, NONE
from deploy.pod.base.notify import WEBHOOK
from deploy.pod.watchdog.daemon import FOR_BOOT
from deploy.shell import Shell
from deploy.specs.machine import Machine, node_of
from deploy.specs.plan import limits_of
from deploy.specs.settings import OPTIONS, Settings
from deploy.specs.staged import own_folder

WANDB_SECRETS = ("WANDB_API_KEY",)
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
IDENTIFIERS = ("AWS_ACCESS_KEY_ID",)  # a name, worthless without its key


def arm(settings: Settings, machine: Machine, shell: Shell, code: PurePath, nodes: int) -> str | None:
    """Start the guard with the target's limits, before anything that takes long. Returns the limits as text.

    Returns None, and starts no guard, if the target sets no limit and keeps no copies. A rented machine then keeps
    running when nobody logs in, as the target wants it.
    """
    limits = limits_of(settings, machine, nodes)
    armed = {name: getattr(limits, name) for name in CEILINGS if getattr(limits, name) is not None}
    if not armed and not limits.sync_to:
        if limits.releases_itself:
            shell.write(machine.path(FOR_BOOT.as_posix()), b"{}")  # ends the switch of deploy/pod/image/unattended.py
        return None
    root = Root(machine.root)
    growing = [machine.root / "data", machine.root / "environments"]
    if settings.stage_to is not None:  # its growth shows that images arrive: not those of a host's other users
        growing.append(own_folder(settings.stage_to, shell.user()) if settings.shares_ram else settings.stage_to)
    told = {**limits.to_json(), "machine": machine.name, "watch": [str(path) for path in growing], "code": str(code)}
    if limits.paid_since is None and machine.usd_per_hour:
        told["paid_since"] = _paid_since(machine, shell, root)
    if machine.group:
        told |= {"group": machine.group, "node": node_of(machine.name)}
    if volume := volume_path(settings):
        told["volume_path"] = volume
    if settings.target.notify:
        told["notify_pct"] = settings.target.notify_pct
    if secrets := _of_guard(settings, copies=bool(limits.sync_to)):
        write_secrets(shell, root.guard_secrets, secrets)
    shell.write(root.guard, as_json(told))
    _start(machine, shell, machine.root, code)
    is_blind = "max_usd" in armed and limits.release != NONE and not limits.usd_per_hour
    no_price = ["max_usd is NOT enforced, as the price is not known"] if is_blind else []
    copies = [f"copies to {limits.sync_to}"] if limits.sync_to else []
    return ", ".join([*(f"{name} {value:g}" for name, value in armed.items()), *no_price, *copies])


def _paid_since(machine: Machine, shell: Shell, root: Root) -> float:
    """Start of billing for a machine whose provider reports none: what its guard counts from already, else now.

    Without it, the guard would have no limit of time or cost. On a volume, the file may be an earlier machine's.
    """
    earlier, _ = heard(shell, root.guard)
    now = border.unix_time(shell.call("clock"), f"{shell.name}: its clock")
    if earlier.get("machine") != machine.name or earlier.get("paid_since") is None:
        return now
    return min(now, border.unix_time(earlier["paid_since"], f"{shell.name}: {root.guard.name}, paid_since"))


def volume_path(settings: Settings) -> str | None:
    """Mount path of the provider's volume, whose files outlive the machine; None without a volume."""
    mount = settings.target.options.mount
    return mount.path if mount else None


def greet(settings: Settings, machine: Machine, shell: Shell, root: PurePath) -> str | None:
    """Report contact: restart a dead guard, and reset the idle time. Returns the guard's state.

    The idle time is not reset for a guard that is stuck: its machine should be gone already. If the target has no
    limits and keeps no copies, there is no guard to look for.
    """
    limited = any(getattr(settings.target, name) is not None for name in (*CEILINGS, "sync_to"))
    state = revive(settings, machine, shell, root) if limited else None
    if machine.usd_per_hour and state != "stuck":
        shell.write(Root(root).contact, b"")
    return state


def revive(settings: Settings, machine: Machine, shell: Shell, root: PurePath) -> str | None:
    """Restart the guard of a machine, with its earlier limits, if its heartbeat has stopped.

    Returns the state that it reported last. A living guard that lacks secrets for its copies gets them: it may have
    been restarted from a computer without them.
    """
    said, now = heard(shell, Root(root).guard_status)
    what = f"{shell.name}: {Root(root).guard_status.name}"
    lives = not is_lost(now - border.unix_time(said.get("heartbeat", 0.0), f"{what}, heartbeat"))
    state = None if said.get("state") is None else border.text(said["state"], f"{what}, state")
    has = border.names(said.get("secrets", []), f"{what}, secrets")
    if lives and set(_of_guard(settings, copies=bool(settings.target.sync_to))) <= set(has):
        return state
    told, _ = heard(shell, Root(root).guard)
    if secrets := _of_guard(settings, copies=bool(told.get("sync_to"))):
        write_secrets(shell, Root(root).guard_secrets, secrets)
    if not lives and told.get("code"):
        code = border.path_text(told["code"], f"{shell.name}: {Root(root).guard.name}, code")
        _start(machine, shell, root, machine.path(code))
    return state


def _start(machine: Machine, shell: Shell, root: PurePath, code: PurePath) -> None:
    """Start a guard. If one is alive already, the new one ends at once."""
    # The training environment may not exist yet; the guard needs only the standard library.
    python = machine.python if machine.is_here else "python3"
    shell.spawn([python, "-m", "deploy.pod.guard", str(root)], cwd=code)


def heard(shell: Shell, path: PurePath) -> tuple[dict[str, Any], float]:
    """A small JSON file of the machine and the machine's clock; {} and infinity if the file is missing or damaged."""
    what, limit = f"{shell.name}: {path.name}", border.DOCUMENT_READ_BYTES
    try:
        data, now = shell.calls([("read", {"path": str(path), "limit": limit}), ("clock", {})])
        return border.document(data, what), border.unix_time(now, f"{shell.name}: its clock")
    except (OSError, BadAnswer):  # missing, or half written on a full disk
        return {}, float("inf")


def note_fetched(shell: Shell, folder: RunFolder, about: Mapping[str, Any]) -> None:
    """Note on the machine that a verified copy is on the laptop, so that the machine may be released."""
    told = {"sha256": about["sha256"], "to": "the laptop"}
    shell.write(folder.checkpoints / f"{about['file']}{FETCHED}", json.dumps(told).encode("utf-8"))


def own_secrets(settings: Settings) -> dict[str, str]:
    """Secrets of the guard and its copies: S3 keys if copies go to S3, and what the target's `secrets` names."""
    return _held(settings, S3_SECRETS if is_s3(settings.target.sync_to) else ())


def webhook(settings: Settings) -> dict[str, str]:
    """The address to notify, as a secret of the supervisor and the guard. The job does not get it."""
    return {WEBHOOK: settings.target.notify} if settings.target.notify else {}


def _of_guard(settings: Settings, *, copies: bool) -> dict[str, str]:
    return {**(own_secrets(settings) if copies else {}), **webhook(settings)}


def job_secrets(settings: Settings, *, track: str, data: str) -> dict[str, str]:
    """Secrets of the job: the W&B key if it is used, S3 keys if the images are there, and what `secrets` names."""
    needed = [*(WANDB_SECRETS if track == "wandb" else ()), *(S3_SECRETS if is_s3(data) else ())]
    return _held(settings, needed)


def named_secrets(settings: Settings) -> dict[str, str]:
    """All secrets that a run may get or that stay on the laptop. None may appear in code or in a command line."""
    kept = [name for kind in OPTIONS.values() for name in kind.account_keys]
    held = {**_held(settings, (*WANDB_SECRETS, *S3_SECRETS, *kept)), **webhook(settings)}
    return {name: value for name, value in held.items() if name not in IDENTIFIERS or name in settings.target.secrets}


def is_s3(place: str | None) -> bool:
    return str(place).lower().startswith(("s3://", "s3a://"))


def _held(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    told = {name: os.environ.get(name, "") for name in sorted({*names, *settings.target.secrets})}
    # A shell that reads a file with line ends of Windows leaves a CR at the end of each value. No key has one.
    return {name: held for name, value in told.items() if (held := value.removesuffix("\r"))}


def write_secrets(shell: Shell, path: PurePath, secrets: Mapping[str, str]) -> None:
    """Write secrets to a file that only its owner can read, over the connection; never in a command line or a plan."""
    shell.write(path, json.dumps(dict(secrets)).encode("utf-8"), private=True)
