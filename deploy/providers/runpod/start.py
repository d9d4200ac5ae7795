"""What a pod is started with: its image, and the command that makes a machine of ours out of a stock image.

Our own image starts by itself. Any other one gets the same programs in its start command, as an archive in base64, so
that it needs nothing from a registry of the user's. The command has no double quote and no backslash, which the
`runpod` package cannot send, and no `$`, which some parsers expand.
"""

from __future__ import annotations

import base64
import functools
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.providers import image
from deploy.specs.machine import Image
from deploy.specs.settings import RunPod

# RunPod's own image for PyTorch, as its API's documentation names it: SSH server, git, Python 3.12 with venv. Its torch
# is not used: the project's lock file has another one.
STOCK = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
PUSHED_TAG = re.compile(r":(cuda|cpu)-[0-9a-f]{12}(@|$)")  # as deploy/providers/image.py makes it
CODE = Path(__file__).resolve().parents[3]
SCRIPT = "deploy/pod/image/start.sh"
# Name in the archive -> file here: the same tree as in our image.
FILES = {
    "__main__.py": "deploy/pod/image/init.py",
    "login.py": "deploy/pod/image/login.py",
    **{name: name for name in image.BOOT},
}
THERE = "/usr/local/lib/sniperface-start"
OLDEST = (1980, 1, 1, 0, 0, 0)  # of a zip file: the same files make the same command


@dataclass(frozen=True)
class Start:
    image: str
    args: str  # start command; empty: the image's own


def start_of(options: RunPod, project: Path) -> Start:
    """Return the image with its tag, and the start command. A name without a tag gets the environment's tag."""
    name = options.image or STOCK
    if is_ours(name):
        return Start(name if _has_tag(name) else f"{name}:{image.tag(project)}", "")
    return Start(name, command())


def image_of(options: RunPod, root: str) -> Image:
    """Return the image without a tag of the environment, and who makes the environment."""
    name = options.image or STOCK
    on_volume = options.volume is not None and f"{root}/".startswith(f"{options.volume_path.rstrip('/')}/")
    return Image(name, is_ours(name), on_volume)


def min_cuda(options: RunPod, project: Path) -> str | None:
    """Return the target's minimum CUDA version, else the one that our torch needs from a host's driver."""
    return options.min_cuda or image.cuda(project)


def is_ours(name: str) -> bool:
    """Whether `invoke push` made the image: it has no tag of the user's, or one of a pushed environment."""
    return not _has_tag(name) or bool(PUSHED_TAG.search(name))


@functools.cache
def command() -> str:
    """Return the start command: it writes archive and script, and runs the script."""
    parts = {"start.zip": archive_of(FILES), "start.sh": _text(SCRIPT)}
    written = [f"echo {base64.b64encode(data).decode()} | base64 -d >{THERE}/{name}" for name, data in parts.items()]
    return f"bash -c '{'; '.join([f'mkdir -p {THERE}', *written])}; exec bash {THERE}/start.sh {THERE}/start.zip'"


def archive_of(files: Mapping[str, str]) -> bytes:
    """Return a zip file of name there -> file of this project. The same files make the same bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, file in files.items():
            archive.writestr(zipfile.ZipInfo(name, OLDEST), _text(file), zipfile.ZIP_DEFLATED, 9)
    return made.getvalue()


def _has_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2] or "@" in name


def _text(name: str) -> bytes:
    return (CODE / name).read_bytes().replace(b"\r\n", b"\n")
