"""Keep a note on a run, or show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.errors import WrongUse, command
from deploy.runs import notes, records
from deploy.ui.screen import Screen


def note(project: Path, words: Sequence[str], screen: Screen) -> dict[str, Any]:
    """Replace the note of the run that the first word names by the other words; without others, show it.

    Raises WrongUse without a run.
    """
    if not words:
        raise WrongUse('note needs a run and a text, such as note RUN "lower rate"', next_command=command("runs"))
    book = project / "runs"
    record = records.get(book, words[0], "", typed="note")
    kept = notes.write(book, record.run_id, " ".join(words[1:])) if words[1:] else notes.read(book, record.run_id)
    screen.say(f"{record.run_id}: {kept or 'no note'}")
    return {"run_id": record.run_id, "note": kept}
