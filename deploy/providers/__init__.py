"""Who can make a machine: a literal table, one line a provider."""

from __future__ import annotations

from collections.abc import Callable

from deploy.machine import Provider
from deploy.providers.local import LocalProvider
from deploy.settings import Settings

PROVIDERS: dict[str, Callable[[Settings], Provider]] = {"local": LocalProvider}
