"""Download what a run leaves on its machine into the run's folder on the laptop."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.border import Name, Place, chosen, place
from deploy.errors import WrongUse
from deploy.pod.base.folder import private_folder, remove
from deploy.pod.base.lock import Lock
from deploy.runs import checkpoints, watchdog
from deploy.runs.session import Reached
from deploy.shell import LocalShell, transfer
from deploy.specs.settings import Settings
from deploy.ui.screen import Screen

FILES = ("config.yaml", "status.json", "metrics.jsonl", "train.log")
RESULTS = ("verification.json", "report.html")


def bring(reached: Reached, screen: Screen) -> dict[str, Any] | None:
    """Download record, report, pictures and the newest checkpoint, verified. Returns the checkpoint's JSON or None."""
    bring_record(reached)
    bring_files(reached, RESULTS)
    if not border.is_report(Path(reached.home.report)):
        remove(Path(reached.home.report))
        screen.complain(f"{reached.shell.name}: report.html of run {reached.record.run_id} is no report: removed")
    bring_folder(reached, reached.folder.mining, lambda name: name.endswith(".png"), border.PICTURE, "picture")
    bring_folder(reached, reached.folder.tensorboard, lambda name: ".tfevents." in name, border.CURVES, "curves")
    whole = checkpoints.whole(reached.shell, reached.folder)
    return bring_checkpoint(reached, whole[-1], None, screen) if whole else None


def bring_record(reached: Reached) -> None:
    """Download config, status, metrics and log, as far as they exist."""
    bring_files(reached, FILES)


def bring_files(reached: Reached, names: Sequence[str], below: Sequence[str] = ()) -> None:
    """Download those of these files that exist into the run's folder on the laptop, or into the folder `below` it."""
    with _one_at_a_time(reached.settings):
        for name in names:
            if reached.shell.size(reached.folder.path / name) is not None:
                to = place(Path(reached.home.path), *below, name)
                transfer.fetch(reached.shell, reached.folder.path / name, to, most_bytes=border.FILE_BYTES[name])


def bring_folder(
    reached: Reached, folder: PurePath, wanted: Callable[[str], bool], like: re.Pattern[str], kind: str
) -> None:
    """Download the wanted files of a subfolder of the run. Raises BadAnswer if the name of one is not `like` it."""
    with _one_at_a_time(reached.settings):
        found = list(filter(wanted, reached.shell.listdir(folder)))
        for each in found[: border.RESULTS_MOST]:
            name = Name(each, f"{reached.shell.name}: {folder.name} of run {reached.record.run_id}", like=like)
            to = place(Path(reached.home.path), folder.name, name)
            transfer.fetch(reached.shell, folder / name, to, most_bytes=border.FILE_BYTES[kind])


def bring_checkpoint(reached: Reached, about: dict[str, Any], to: str | None, screen: Screen) -> dict[str, Any]:
    """Download one checkpoint into the run's folder on the laptop, or to the file or folder `to`."""
    file = Name(about["file"], reached.shell.name, like=border.CHECKPOINT)
    at_home = place(Path(reached.home.path), "checkpoints", file)
    destination = _destination(to, file) if to else at_home
    if not to:  # the config describes the network of the weights
        bring_files(reached, ("config.yaml",))
    with _one_at_a_time(reached.settings), screen.copying(file) as progress:
        transfer.fetch_checkpoint(reached.shell, reached.folder.checkpoints / file, about, destination, progress)
    if reached.machine is not None and not reached.machine.is_here:
        watchdog.note_fetched(reached.shell, reached.folder, about)
    return {**about, "path": str(destination.path)}


def newest_checkpoint(reached: Reached) -> dict[str, Any] | None:
    """The newest checkpoint that is on the laptop already."""
    home = reached.home
    newest = next(reversed(checkpoints.whole(LocalShell(), home)), None)
    return {**newest, "path": str(home.checkpoints / newest["file"])} if newest else None


def report(reached: Reached) -> str | None:
    """The path of the run's report on this computer; None if there is none yet."""
    folders = [reached.home, *([reached.folder] if reached.machine and reached.machine.is_here else [])]
    return next((str(folder.report) for folder in folders if Path(folder.report).is_file()), None)


def verdict(reached: Reached) -> str | None:
    """The sentence of the run's report; None without a report."""
    path = report(reached)
    return border.verdict(Path(path)) if path else None


def _one_at_a_time(settings: Settings) -> Lock:
    """Lock downloads of a target: a following `train`, and `stop` in another terminal, may download the same run."""
    private_folder(settings.notes)
    return Lock(settings.notes / f"home-{settings.target.name}.lock", {"for": "downloads"}).wait(0.1)


def _destination(to: str, file: Name) -> Place:
    """The file that the user named, or `file` in the folder that the user named. Raises WrongUse if it cannot be."""
    named = Path(to).absolute()
    destination = chosen(named)
    if named.is_dir() or to.endswith(("/", "\\")):
        destination = Place(named, (file,))
    try:
        destination.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=destination.path.parent):
            return destination
    except OSError as error:
        wrong = f"--to {to} cannot be written ({error.strerror}): give another file or folder, such as --to model.pt"
        raise WrongUse(wrong) from error
