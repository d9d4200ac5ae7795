"""Table of the providers. Their registry is OPTIONS in deploy/specs/settings.py; each is imported on first use."""

from __future__ import annotations

import functools
from collections.abc import Callable

from deploy.specs.options import load_class
from deploy.specs.provider import Provider
from deploy.specs.settings import OPTIONS, Settings


def _make(name: str, settings: Settings) -> Provider:
    made: Provider = load_class(OPTIONS[name].provider)(settings)
    return made


PROVIDERS: dict[str, Callable[[Settings], Provider]] = {name: functools.partial(_make, name) for name in OPTIONS}
