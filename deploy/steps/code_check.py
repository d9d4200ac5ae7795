"""Check the code before it is uploaded: no credentials in it, and every file arrives as it is here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deploy.errors import WrongUse
from deploy.runs import watchdog
from deploy.specs.settings import Settings
from deploy.workspace import code

T = TypeVar("T")


def check_code(settings: Settings) -> tuple[str, ...]:
    """Raise WrongUse for code that holds credentials or cannot be uploaded completely.

    Returns tracked files that look like credentials, for a warning. A rented machine gets none: there they are refused.
    """
    return _judged(settings, code.check)[0]


def prove_code(settings: Settings) -> str | None:
    """Check the code as `check_code` does, and take the snapshot that every machine of the command gets.

    Returns its id; None without git. Raises WrongUse also for a file that would arrive changed.
    """
    return _judged(settings, code.prove)[1]


def _judged(settings: Settings, look: Callable[..., tuple[tuple[str, ...], T]]) -> tuple[tuple[str, ...], T]:
    about, secrets = settings.target, watchdog.named_secrets(settings)
    suspicious, found = look(settings.project, about.allow_files, secrets, about.large_files, about.exclude)
    if suspicious and settings.is_rented:
        file, *_ = suspicious
        raise WrongUse(
            f"{file} looks like a credential and would travel to a rented machine: keep it here with "
            f"exclude: [{file}] in {settings.where}, or upload it anyway with allow_files: [{file}]"
        )
    return suspicious, found
