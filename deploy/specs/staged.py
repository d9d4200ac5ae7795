"""PURE: where staged images are on a machine. Every path of them is made here."""

from __future__ import annotations

from pathlib import PurePath

from deploy.specs.facts import DataFacts
from deploy.specs.settings import Settings

UNKNOWN_USER = "<user>"  # in a plan that is made before the host is reached


def fraction_mark(fraction: float) -> str:
    return "" if fraction == 1 else f"-f{fraction:g}"


def wanted_path(settings: Settings, root: PurePath, data: DataFacts, fraction: float, user: str | None) -> PurePath:
    """Return where training reads if space allows: in place, in the staging folder, or else on the machine's disk.

    `user`: who logs in on a host that others use too. Each has a folder of his own there, with one for each data set.
    """
    if settings.stage_to is None and (settings.is_local or data.where == "machine"):
        return type(root)(data.path)
    if settings.stage_to is not None and settings.shares_ram:
        mark = fraction_mark(fraction) + data.shard.mark
        return own_folder(settings.stage_to, user) / f"{data.staged_as or data.name}{mark}" / data.file_name
    return staged_path(settings.stage_to or disk_folder(root, data), data, fraction)


def own_folder(stage_to: PurePath, user: str | None) -> PurePath:
    """Return a user's own folder in a staging folder that others use too, as `deploy/pod/agent/ram.py` makes it."""
    return stage_to / f"sniperface-{user or UNKNOWN_USER}"


def disk_folder(root: PurePath, data: DataFacts) -> PurePath:
    """Return the folder on the machine's disk for staged images that do not fit into RAM."""
    return root / "data" / data.name


def staged_path(folder: PurePath, data: DataFacts, fraction: float) -> PurePath:
    """Return the path in a folder of this project alone. A fraction and a shard have their own subfolder."""
    mark = fraction_mark(fraction) + data.shard.mark
    return (folder / f"{data.name}{mark}" if mark else folder) / data.file_name
