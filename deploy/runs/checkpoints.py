"""Checkpoint files and the JSON beside each: find the whole ones, choose one, check whether one is usable."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, WrongUse, command
from deploy.pod.base.checkpoints import CHECKPOINT, age
from deploy.pod.base.folder import RunFolder
from deploy.shell import LocalShell, Shell

VALIDATION, HELD_OUT = "validation people", "held-out people"  # the measures of `--which best`, or a set's name


def whole(shell: Shell, folder: RunFolder) -> list[dict[str, Any]]:
    """The notes (JSON) of all whole checkpoints of a run, oldest first. A .pt without JSON is not whole.

    A damaged note is skipped if there are valid ones. Raises BadAnswer, for the first note, if all are damaged.
    """
    names = shell.listdir(folder.checkpoints)
    notes, wrong = [], []
    for file in filter(CHECKPOINT.fullmatch, names):
        name = f"{file[:-3]}.json"
        if name not in names:
            continue
        what = f"{shell.name}: {name} of run {folder.run_id}"
        try:
            data = shell.read(folder.checkpoints / name, limit=border.DOCUMENT_READ_BYTES)
            note = border.checkpoint_note(data, what)
        except OSError:
            continue
        except BadAnswer as error:
            wrong.append(error)
            continue
        if note["file"] == file:
            notes.append(note)
    if wrong and not notes:
        raise wrong[0]
    return sorted(notes, key=age)


def choose(notes: list[dict[str, Any]], which: str, run_id: str) -> tuple[dict[str, Any], str | None]:
    """The checkpoint that `--which latest|best|best:SET|N` selects. N is an epoch, counted from 0 as in file names.

    With it, the measure by which it is the best, in one phrase. Raises WrongUse if there is none.
    """
    if not notes:
        raise WrongUse(f"run {run_id} has no complete checkpoint yet", next_command=command(f"status --run {run_id}"))
    if which == "latest":
        return notes[-1], None
    if which == "best" or which.startswith("best:"):
        return _best(notes, which.partition(":")[2] or None, run_id)
    if not re.fullmatch(r"\d+", which):
        raise WrongUse(f"--which {which} is not known: give latest, best or the number of an epoch, such as 0")
    of_epoch = [note for note in notes if note["epoch"] == int(which)]
    if not of_epoch:
        there = ", ".join(dict.fromkeys(str(note["epoch"]) for note in notes))
        raise WrongUse(f"run {run_id} has no checkpoint of epoch {which}: there are {there}")
    return of_epoch[-1], None


def named(measure: str) -> str:
    """A measure in words, after `best by`."""
    words = {VALIDATION: VALIDATION, HELD_OUT: f"the {HELD_OUT} that the result is also reported on"}
    return words.get(measure, f"the set {measure}")


def _best(notes: list[dict[str, Any]], of_set: str | None, run_id: str) -> tuple[dict[str, Any], str]:
    """The most accurate on a named set, and the measure in one phrase.

    Without a name, the validation people choose; without them the held-out people of the result; or else the first set.
    """
    sets = list(dict.fromkeys(name for note in notes for name in (note.get("eval") or {}).get("sets", {})))
    if of_set is not None and of_set not in sets:
        known = f"give best:{sets[0]}" if sets else "it was evaluated on none: give --which best or latest"
        raise WrongUse(f"run {run_id} was not evaluated on a set {of_set}: {known}")

    def rated(key: str, name: str | None) -> list[tuple[float, dict[str, Any]]]:
        measured = [(note, note.get("eval") or {}) for note in notes]
        of = [(note, each if name is None else each.get("sets", {}).get(name, {})) for note, each in measured]
        return [(float(each[key]), note) for note, each in of if each.get(key) is not None]

    measures: list[tuple[str, str | None, str]] = [("accuracy", name, named(name)) for name in sets]
    if of_set is None:
        measures = [("validation_accuracy", None, named(VALIDATION)), ("accuracy", None, named(HELD_OUT)), *measures]
    else:
        measures = [measure for measure in measures if measure[1] == of_set]
    for key, name, by in measures:
        if found := rated(key, name):
            accuracy, note = max(found, key=lambda each: each[0])
            return note, f"best by {by} ({accuracy:.1%})"
    raise WrongUse(f"no checkpoint of run {run_id} was evaluated: give --which latest")


def check_usable(path: Path) -> dict[str, Any] | None:
    """Check a checkpoint of the user's. Returns its JSON, or None without one. Raises WrongUse if it is not whole."""
    if not path.is_file():
        raise WrongUse(f"--resume {path}: no such file; give auto, none or the path of a .pt checkpoint")
    note = border.read_document(path.with_suffix(".json"))
    of_run = path.absolute().parent.name == "checkpoints"
    again = command(f"fetch-checkpoint --run {path.absolute().parents[1].name}") if of_run else ""
    fetch = f"fetch it again ({again}), or " if again else ""
    broken = WrongUse(f"{path} is not a complete checkpoint: {fetch}give another one")
    if note and note.get("sha256") != LocalShell().sha256(path):
        raise broken
    try:
        with zipfile.ZipFile(path) as archive:
            if not note and archive.testzip() is not None:  # with a note, the SHA-256 is checked above
                raise broken
    except (zipfile.BadZipFile, OSError) as error:
        raise broken from error
    if not note:
        return None
    try:
        # The user's file may have any name; every other field must be valid as in a run's notes.
        checked = border.checkpoint_note({**note, "file": "epoch_000.pt"}, str(path.with_suffix(".json")))
        return {**checked, "file": path.name}
    except BadAnswer as error:
        raise broken from error
