"""The way back: what a run leaves on the machine comes into the laptop's folder of the same name."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy import checkpoints, guard, runs, transfer
from deploy.pod.folder import RunFolder
from deploy.pod.lock import Busy, Lock
from deploy.reach import Reached
from deploy.settings import Settings
from deploy.shell import LocalShell, Shell
from deploy.show import Screen

FILES = ("config.yaml", "status.json", "metrics.jsonl", "train.log")


def bring(reached: Reached, screen: Screen) -> dict[str, Any] | None:
    """Config, status, metrics, log, pictures, newest checkpoint, verified; the checkpoint as its JSON tells it."""
    home = reached.home
    bring_record(reached)
    with _one_at_a_time(reached.settings):
        for name in reached.shell.listdir(reached.folder.mining):
            if name.endswith(".png"):
                transfer.fetch(reached.shell, reached.folder.mining / name, Path(home.mining / name))
    whole = checkpoints.whole(reached.shell, reached.folder)
    return bring_checkpoint(reached, whole[-1], None, screen) if whole else None


def bring_record(reached: Reached) -> None:
    """What a run says about itself, as far as it has come."""
    home = reached.home
    with _one_at_a_time(reached.settings):
        for name in FILES:
            if reached.shell.size(reached.folder.path / name) is not None:
                transfer.fetch(reached.shell, reached.folder.path / name, Path(home.path / name))


def bring_checkpoint(reached: Reached, about: dict[str, Any], to: str | None, screen: Screen) -> dict[str, Any]:
    """One checkpoint to its place in the run's folder at home, or to the file or folder `to`."""
    home = reached.home
    place = _destination(to, about["file"]) if to else Path(home.checkpoints / about["file"])
    with _one_at_a_time(reached.settings), screen.copying(about["file"]) as progress:
        if not to and reached.shell.size(reached.folder.config) is not None:  # it says what the weights are
            transfer.fetch(reached.shell, reached.folder.config, Path(home.config))
        transfer.fetch_checkpoint(reached.shell, reached.folder.checkpoints / about["file"], about, place, progress)
    if reached.machine is not None and not reached.machine.is_here:
        guard.note_fetched(reached.shell, reached.folder, about)
    return {**about, "path": str(place)}


def restore(settings: Settings, shell: Shell, folder: RunFolder, screen: Screen) -> dict[str, Any] | None:
    """The other way round: give a run that goes on elsewhere what it left at home, unless its machine has more.

    Log and events come too, so that the run's own record has no hole. Returns the checkpoint that was sent.
    """
    home = runs.home(settings.runs, folder.run_id)
    here, there = checkpoints.whole(LocalShell(), home), checkpoints.whole(shell, folder)
    if not here or (there and checkpoints.age(there[-1]) >= checkpoints.age(here[-1])):
        return None
    about = here[-1]
    for name in ("metrics.jsonl", "train.log"):
        if Path(home.path / name).exists() and shell.size(folder.path / name) is None:
            transfer.push(shell, Path(home.path / name), folder.path / name)
    file = folder.checkpoints / about["file"]
    with screen.copying(about["file"]) as progress:
        transfer.push(shell, Path(home.checkpoints / about["file"]), file, sha256=about["sha256"], progress=progress)
    shell.write(file.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode("utf-8"))
    shell.write(folder.latest, about["file"].encode("utf-8"))
    screen.say(f"restored {about['file']} (epoch {about['epoch']}, step {about['step']}) from this laptop")
    return about


def newest_checkpoint(reached: Reached) -> dict[str, Any] | None:
    """The newest checkpoint that is at home already."""
    home = reached.home
    whole = checkpoints.whole(LocalShell(), home)
    return {**whole[-1], "path": str(home.checkpoints / whole[-1]["file"])} if whole else None


@contextlib.contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    """`train` that follows and `stop` in another terminal both bring the run home: the second finds the work done."""
    lock = Lock(settings.project / ".sniperface" / f"home-{settings.target.name}.lock", {"busy": True})
    while True:
        try:
            lock.acquire()
            break
        except Busy:  # by a living process: the system lets go of the lock when that ends
            time.sleep(0.1)
    with lock:
        yield


def _destination(to: str, file: str) -> Path:
    place = Path(to).absolute()
    return place / file if place.is_dir() or to.endswith(("/", "\\")) else place
