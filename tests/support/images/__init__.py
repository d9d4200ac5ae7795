"""Our image for the tests, built by our own Dockerfile on a stand-in for the base image (base.py).

`python -m tests.support.images` makes both, once; what exists is kept.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.providers import image
from tests.support.images.base import base_image
from tests.support.images.engine import NoDocker, check_docker, docker, exists

__all__ = ["NoDocker", "arguments", "build", "check_docker", "docker", "exists", "our_image"]

PROJECT = Path(__file__).parents[3]
OURS = "sniperface-test"
TEST = "sniperface.test"  # label


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Of several test processes one builds, the others wait and find the work done."""
    import fcntl

    with open(Path(tempfile.gettempdir(), "sniperface-test-images.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def arguments() -> dict[str, str]:
    """Of the build: the stand-in as base, and no GPU."""
    return {"BASE_IMAGE": base_image(), "FAISS": "faiss-cpu"}


def our_image() -> str:
    """Our image on the stand-in, made when this checkout's environment has none yet."""
    check_docker()
    with one_at_a_time():
        told = arguments()
        reference = f"{OURS}:{image.tag(PROJECT, told)}"
        if not exists(reference):
            build(reference, told)
            # Of environments that are gone: what no container uses, and was made days ago.
            docker("image", "prune", "--all", "--force", "--filter", f"label={TEST}", "--filter", "until=72h")
        return reference


def build(reference: str, told: Mapping[str, str], *, project: Path = PROJECT, builder: str = "1") -> None:
    """With BuildKit, or with the classic builder ("0"); each has layers of its own and keeps them."""
    labels = [f"{image.ENVIRONMENT}={image.environment(project)}", f"{TEST}=yes"]
    argv = ["build", "--tag", reference, *(word for label in labels for word in ("--label", label))]
    for name, value in told.items():
        argv += ["--build-arg", f"{name}={value}"]
    docker(*argv, str(project), builder=builder)
