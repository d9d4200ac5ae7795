"""Free the images that this user staged in the RAM of hosts that stay: nobody rented them for a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.billing.teardown import run_of_another_laptop
from deploy.errors import DeployError, WrongUse, command
from deploy.runs.session import Reach, is_launching
from deploy.shell.base import StagedImages
from deploy.specs.machine import Machine, node_name
from deploy.specs.names import machine_name
from deploy.ui.screen import Screen

GIB = 1 << 30
WHY = {"open": "a process uses them", "copying": "they are being copied there"}


def free_ram(at: Reach, screen: Screen, *, anyway: bool) -> list[dict[str, Any]]:
    """Free this user's images on all hosts of a target, and say how much. Those in use stay, with the reason.

    Returns a document for each host on which there were images. A host that does not answer does not keep the others
    from being freed: the first such failure is raised at the end. Raises WrongUse while a command starts a run there.
    """
    stage_to = at.settings.stage_to
    if stage_to is None or not at.settings.shares_ram:
        return []
    if is_launching(at.settings):
        name = at.settings.target.name
        raise WrongUse(
            f"a run is being started on target '{name}': wait for it, then free its images",
            next_command=command(f"status --on {name}"),
        )
    told: list[dict[str, Any]] = []
    failures: list[DeployError] = []
    for machine in _hosts(at):
        host = machine.address.host if machine.address else "this computer"
        if not anyway and (other := run_of_another_laptop(at, machine)):
            screen.complain(f"kept the images on {host}: run {other} of another computer is running on it")
            continue
        try:
            found = at.shell(machine).free_images(stage_to)
        except DeployError as error:
            failures.append(error)
            continue
        except OSError as error:
            failures.append(WrongUse(f"{host}: {error.filename} could not be removed: {error.strerror}"))
            continue
        if found:
            told.append(_tell(at, host, found, screen))
    screen.raise_first(failures)
    return told


def _hosts(at: Reach) -> Iterator[Machine]:
    name, node = machine_name(at.settings, "down"), 0
    while (machine := at.machine(node_name(name, node))) is not None:
        yield machine
        node += 1


def _tell(at: Reach, host: str, found: list[StagedImages], screen: Screen) -> dict[str, Any]:
    freed = [each for each in found if not each.use]
    kept = [each for each in found if each.use]
    gib = sum(each.bytes for each in freed) / GIB
    if freed:
        folders = ", ".join(each.folder for each in freed)
        screen.say(f"freed {gib:.2f} GiB of RAM on {host} ({folders}); the host was not rented and stays")
    for each in kept:
        screen.complain(f"kept {each.bytes / GIB:.2f} GiB in {each.folder} on {host}: {WHY.get(each.use, each.use)}")
    return {
        "target": at.settings.target.name,
        "host": host,
        "freed_gib": round(gib, 3),
        "freed": [each.folder for each in freed],
        "kept": [each.folder for each in kept],
    }
