"""Load RunPod's API key, and keep it out of all output."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from deploy.border.text_files import read_text
from deploy.errors import NoAccount, WrongUse
from deploy.providers.rented import Key

VARIABLE = "RUNPOD_API_KEY"
FILE = Path("~/.runpod/config.toml")  # `runpod config` writes it: [default] api_key = "..."
WHERE_TO_GET = "make one at https://console.runpod.io/user/settings (read and write for pods), then set RUNPOD_API_KEY"


def load(environment: Mapping[str, str] = os.environ) -> Key:
    """Read the API key from the environment or RunPod's file. Raises NoAccount without one, WrongUse for a bad one."""
    told, where = environment.get(VARIABLE, "").strip(), VARIABLE
    if not told:
        told, where = _of_file(FILE.expanduser()), str(FILE)
    if not told:
        raise NoAccount(f"RunPod needs an API key: neither {VARIABLE} nor {FILE} has one", next_command=WHERE_TO_GET)
    # With any other character, the HTTP library's error about a bad header would quote the key.
    if not re.fullmatch(r"[!-~]+", told):
        raise WrongUse(f"the API key in {where} has spaces or characters invalid in a key", next_command=WHERE_TO_GET)
    return Key(told)


def _of_file(path: Path) -> str:
    import tomli  # Python 3.10 has no tomllib; RunPod's own package brings this one

    values: dict[str, object] | None = None
    try:
        values = tomli.loads(read_text(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise WrongUse(f"{FILE} cannot be read: {error.strerror}") from error
    except ValueError:
        pass
    if values is None:  # raised outside `except`, because the cause may quote the line with the key
        raise WrongUse(f"{FILE} cannot be read as TOML", next_command=WHERE_TO_GET)
    profile = values.get("default", {})
    return str(profile.get("api_key", "")).strip() if isinstance(profile, dict) else ""
