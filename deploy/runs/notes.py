"""The note that a person keeps on a run: one line, in a file of the run's folder on the laptop.

It is not in run.json: a command that follows the run writes that file from what it read earlier.
"""

from __future__ import annotations

from pathlib import Path

from deploy import border
from deploy.errors import WrongUse
from deploy.pod.base.folder import open_shared, remove, write_bytes
from deploy.pod.base.text import visible
from deploy.runs import records

NOTE_CHARACTERS = 200


def read(book: Path, run_id: str) -> str | None:
    """The note of a run, safe to display; None without one."""
    try:
        with open_shared(Path(records.home(book, run_id).note)) as file:
            data = file.read(border.DOCUMENT_BYTES)
    except OSError:
        return None
    return border.text(data.decode("utf-8", errors="replace").strip(), "the note", NOTE_CHARACTERS) or None


def write(book: Path, run_id: str, text: str) -> str | None:
    """Replace the note of a run; an empty text removes it. Returns the note. Raises WrongUse for a longer one."""
    note = visible(" ".join(text.split()), newlines=False)
    if len(note) > NOTE_CHARACTERS:
        raise WrongUse(f"the note has {len(note)} characters: give at most {NOTE_CHARACTERS}")
    file = border.place(book, run_id, "note.txt", what="run.json").path
    if note:
        write_bytes(file, f"{note}\n".encode())
    else:
        remove(file)
    return note or None
