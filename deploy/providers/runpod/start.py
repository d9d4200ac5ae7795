"""What a pod is started with: its image, and the command that makes a machine of ours out of a stock image.

Our own image starts by itself. Any other one gets the same programs in its start command, as an archive in base64, so
that it needs nothing from a registry of the user's. The command has no double quote and no backslash, which the
`runpod` package cannot send, and no `$`, which some parsers expand.
"""

from __future__ import annotations

import base64
import functools
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.providers import image
from deploy.specs.pod_image import is_ours, name_of
from deploy.specs.settings import RunPod

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
    name = name_of(options)
    if is_ours(name):
        has_tag = ":" in name.rpartition("/")[2] or "@" in name
        return Start(name if has_tag else f"{name}:{image.tag(project)}", "")
    return Start(name, command())


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


def _text(name: str) -> bytes:
    return (CODE / name).read_bytes().replace(b"\r\n", b"\n")
