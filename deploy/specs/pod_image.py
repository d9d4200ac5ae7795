"""PURE: which image a pod gets, and whether it has the training environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.specs.settings import RunPod

# RunPod's own image for PyTorch, as its API's documentation names it: SSH server, git, Python 3.12 with venv. Its torch
# is not used: the project's lock file has another one.
STOCK = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
# What pip downloads for the environment: the sum of the locked files for Linux on x86-64 and Python 3.12, as
# `uv pip compile --format pylock.toml` lists their sizes.
DOWNLOAD_GB = 3.0
# A name as the Distribution specification has it: registry, path in lower case, tag, digest.
_REGISTRY = r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d+)?|[A-Za-z0-9-]+:\d+|localhost)/"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"(?:{_REGISTRY})?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII)
PUSHED_TAG = re.compile(r":(cuda|cpu)-[0-9a-f]{12}(@|$)")  # as deploy/providers/image.py makes it


def name_of(options: RunPod) -> str:
    """Return the image's name as the target has it, or the stock image."""
    return options.image or STOCK


def is_ours(name: str) -> bool:
    """Whether `invoke push` made the image: it has no tag of the user's, or one of a pushed environment."""
    has_tag = ":" in name.rpartition("/")[2] or "@" in name
    return not has_tag or bool(PUSHED_TAG.search(name))


@dataclass(frozen=True)
class PodImage:
    """The image of a pod. Without the environment, pip makes it there, in the root of the target."""

    name: str
    has_environment: bool
    is_kept: bool  # the root is on a network volume, so that the next machine finds the environment


def image_of(options: RunPod, root: str) -> PodImage:
    on_volume = options.volume is not None and f"{root}/".startswith(f"{options.volume_path.rstrip('/')}/")
    return PodImage(name_of(options), is_ours(name_of(options)), on_volume)
