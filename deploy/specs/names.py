"""PURE: names of machines, sniperface-<project>-<target>-<run>, so that orphans are found without local files.

Providers rarely document a limit for names; 60 letters are known to work. So a name has at most 60.
"""

from __future__ import annotations

import hashlib
import re

from deploy.specs.settings import Settings

MOST_LETTERS = 60
PROJECT_LETTERS, TARGET_LETTERS = 10, 7
NODE_LETTERS = 7  # of `-node12`, which `node_name` adds


def slug(name: str) -> str:
    """Convert a name for folders and sessions: lower-case ASCII letters, digits and single underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower() or "data"


def project_word(name: str) -> str:
    """Return the project's part of a machine's name."""
    return _shortened(slug(name), PROJECT_LETTERS)


def target_word(name: str) -> str:
    """Return the target's part of a machine's name."""
    return _shortened(slug(name), TARGET_LETTERS)


def project_prefix(settings: Settings) -> str:
    """Return the prefix of the names of all machines of this project."""
    return f"sniperface-{project_word(settings.project.name)}-"


def listed_prefixes(settings: Settings) -> tuple[str, ...]:
    """Return what names of this project's machines begin with, also of those that an older version named in full."""
    return project_prefix(settings), f"sniperface-{slug(settings.project.name)}-"


def family_name(settings: Settings) -> str:
    """Return the prefix of the names of all machines of this project and target."""
    return f"{project_prefix(settings)}{target_word(settings.target.name)}-"


def machine_name(settings: Settings, run_id: str, attempt: int = 1) -> str:
    """Return the name of a run's machine. A name of data that is too long is left out; date, time and id stay.

    Each attempt has its own name: a machine with this name was created for this attempt and holds nothing yet that
    could be lost.
    """
    family, run = family_name(settings), run_id + (f"-{attempt}" if attempt > 1 else "")
    most = MOST_LETTERS - NODE_LETTERS - len(family)
    if len(run) > most:
        run = run[-most:].partition("-")[2] if run[-most - 1] != "-" else run[-most:]
    return family + run


def _shortened(text: str, most: int) -> str:
    """Cut a text and add a part of its hash, so that two long names remain two."""
    if len(text) <= most:
        return text
    mark = hashlib.sha256(text.encode("ascii")).hexdigest()[:5]
    return text[: most - len(mark)].rstrip("_") + mark
