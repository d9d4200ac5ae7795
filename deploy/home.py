"""The way back: what a run leaves on the machine comes into the laptop's folder of the same name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy import checkpoints, guard, transfer
from deploy.pod.lock import Busy, Lock
from deploy.reach import Reached
from deploy.settings import Settings
from deploy.shell import LocalShell
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
    bring_files(reached, Path(reached.home.path), FILES)


def bring_files(reached: Reached, to: Path, names: Sequence[str]) -> None:
    """Files of a run's folder, those that are there, into a folder at home."""
    with _one_at_a_time(reached.settings):
        for name in names:
            if reached.shell.size(reached.folder.path / name) is not None:
                transfer.fetch(reached.shell, reached.folder.path / name, to / name)


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
