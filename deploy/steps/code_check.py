"""Check the code before it is uploaded: no credentials in it, and every file arrives as it is here."""

from __future__ import annotations

from deploy.errors import WrongUse
from deploy.runs import watchdog
from deploy.specs.settings import Settings
from deploy.workspace import code


def check_code(settings: Settings) -> tuple[str, ...]:
    """Raise WrongUse for code that holds credentials or cannot be uploaded completely.

    Returns tracked files that look like credentials, for a warning. A rented machine gets none: there they are refused.
    """
    about = settings.target
    secrets = watchdog.named_secrets(settings)
    suspicious, _ = code.check(settings.project, about.allow_files, secrets, about.large_files, about.exclude)
    return _judged(settings, suspicious)


def prove_code(settings: Settings) -> str | None:
    """Check the code as `check_code` does, and take the snapshot that every machine of the command gets.

    Returns its id; None without git. Raises WrongUse also for a file that would arrive changed.
    """
    about = settings.target
    secrets = watchdog.named_secrets(settings)
    suspicious, tree = code.prove(settings.project, about.allow_files, secrets, about.large_files, about.exclude)
    _judged(settings, suspicious)
    return tree


def _judged(settings: Settings, suspicious: tuple[str, ...]) -> tuple[str, ...]:
    if suspicious and settings.is_rented:
        file, *_ = suspicious
        raise WrongUse(
            f"{file} looks like a credential and would travel to a rented machine: keep it here with "
            f"exclude: [{file}] in {settings.where}, or upload it anyway with allow_files: [{file}]"
        )
    return suspicious
