"""Emulated hosts on which a pod is unusable: the pod's fields at RunPod, and the lines of its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PULLING = (1.0, "create pod network"), (2.0, "1 Pulling from me/sniperface"), (3.0, "a3ed95caeb02 Downloading 12 MB")


@dataclass(frozen=True)
class Host:
    """`oddities`: fields of the emulator's pod. `says`: part of the error message that rejects it."""

    oddities: Mapping[str, Any]
    says: str
    everywhere: bool = False  # the image is at fault, so no other host is tried


def _never_starts(line: str) -> dict[str, Any]:
    """A host that pulls, fails and retries for ever, while RunPod reports RUNNING."""
    return {"has_container": False, "boot_s": 1.0, "system": (*PULLING, (6.0, line), (16.0, line), (26.0, line))}


def _stuck(status: str) -> dict[str, Any]:
    return {"stays": status, "has_container": False, "system": ()}


# Lines from user reports; names and ids in them are invented.
HOSTS = {
    "old driver": Host(
        _never_starts(
            "error starting container: nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, "
            "please update your driver to a newer version, or use an earlier cuda container: unknown"
        ),
        "unsatisfied condition: cuda>=13.0",
    ),
    "disk full": Host(
        _never_starts("failed to register layer: write /opt/x/libtorch.so: no space left on device"),
        "no space left on device",
    ),
    "pull limit": Host(
        _never_starts("error pulling image: toomanyrequests: You have reached your unauthenticated pull rate limit."),
        "toomanyrequests",
    ),
    "no such image": Host(_never_starts("manifest for me/sniperface:1 not found: manifest unknown"), "manifest", True),
    "private image": Host(
        _never_starts(
            "error pulling image: pull access denied for me/sniperface, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied"
        ),
        "pull access denied",
        True,
    ),
    "no ports": Host({"publishes": "nothing"}, "its SSH port has no public address"),
    "no public address": Host({"publishes": "no ip"}, "its SSH port has no public address"),
    "silent": Host({"has_container": False, "system": ()}, "it is RUNNING, but its log is empty"),
    "never allocated": Host(_stuck("PROVISIONING"), "it is PROVISIONING, but its log is empty"),
    "never starts": Host(_stuck("STARTING"), "it is STARTING, but its log is empty"),
    "closed port": Host({"is_closed": True}, "its SSH server is ready, but its port does not answer this computer"),
    "driver of an older CUDA": Host({"cuda": "12.4", "boot_s": 600.0}, "its driver supports CUDA 12.4 at most"),
    "another data centre": Host({"data_center": "US-TX-3", "boot_s": 600.0}, "it is in US-TX-3"),
    "another GPU": Host({"gpu": "NVIDIA GeForce RTX 3070", "boot_s": 600.0}, "it has NVIDIA GeForce RTX 3070"),
    "dearer than told": Host({"usd_per_hour": 3.5, "boot_s": 600.0}, "3.50 USD an hour, more than max_usd_per_hour"),
    "no GPUs": Host({"zero_gpus": True}, "it has no GPUs"),
    "ended": Host({"ends": "EXITED"}, "it ended while it started"),
    "an image that cannot start": Host({"bad_start": "PUBLIC_KEY is not set"}, "failed to start", True),
}
