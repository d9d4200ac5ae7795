"""Table of the providers, one line each. A provider's module is imported on first use."""

from __future__ import annotations

from collections.abc import Callable

from deploy.specs.machine import Provider
from deploy.specs.settings import Settings


def _local(settings: Settings) -> Provider:
    from deploy.providers.local import LocalProvider

    return LocalProvider(settings)


def _ssh(settings: Settings) -> Provider:
    from deploy.providers.ssh import SshProvider

    return SshProvider(settings)


def _docker(settings: Settings) -> Provider:
    from deploy.providers.docker import DockerProvider

    return DockerProvider(settings)


def _runpod(settings: Settings) -> Provider:
    from deploy.providers.runpod import RunPodProvider

    return RunPodProvider(settings)


PROVIDERS: dict[str, Callable[[Settings], Provider]] = {
    "docker": _docker,
    "local": _local,
    "runpod": _runpod,
    "ssh": _ssh,
}
