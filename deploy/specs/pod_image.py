"""PURE: which image a pod gets, whether it has the training environment, and what the environment costs otherwise."""

from __future__ import annotations

import re

from deploy.specs.settings import RunPod

# RunPod's own image for PyTorch, as its API's documentation names it: SSH server, git, Python 3.12 with venv. Its torch
# is not used: the project's lock file has another one.
STOCK = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
PUSHED_TAG = re.compile(r":(cuda|cpu)-[0-9a-f]{12}(@|$)")  # as deploy/providers/image.py makes it


def name_of(options: RunPod) -> str:
    """Return the image's name as the target has it, or the stock image."""
    return options.image or STOCK


def is_ours(name: str) -> bool:
    """Whether `invoke push` made the image: it has no tag of the user's, or one of a pushed environment."""
    has_tag = ":" in name.rpartition("/")[2] or "@" in name
    return not has_tag or bool(PUSHED_TAG.search(name))
