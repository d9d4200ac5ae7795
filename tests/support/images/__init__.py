"""Our image for the tests, built from our Dockerfile on a substitute for the base image (base.py).

`python -m tests.support.images` builds both; existing ones are kept.
"""

from __future__ import annotations

import contextlib
import functools
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
    """A lock between test processes: one builds, the others wait and then reuse the image."""
    import fcntl

    with open(Path(tempfile.gettempdir(), "sniperface-test-images.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def arguments() -> dict[str, str]:
    """Build arguments: the substitute base image, and no GPU."""
    return {"BASE_IMAGE": base_image(), "FAISS": "faiss-cpu"}


@functools.cache
def our_image() -> str:
    """Name and tag of our image; builds it if this checkout's environment has none yet. Raises NoDocker."""
    check_docker()
    with one_at_a_time():
        told = arguments()
        reference = f"{OURS}:{image.tag(PROJECT, told)}"
        if not exists(reference):
            build(reference, told)
            # Remove images of old environments: unused, and built three days ago or earlier.
            docker("image", "prune", "--all", "--force", "--filter", f"label={TEST}", "--filter", "until=72h")
        return reference


def build(reference: str, told: Mapping[str, str], *, project: Path = PROJECT, builder: str = "1") -> None:
    """Build with BuildKit ("1") or the classic builder ("0"); each has its own layer cache."""
    labels = [f"{image.ENVIRONMENT}={image.environment(project)}", f"{TEST}=yes"]
    argv = ["build", "--tag", reference, *(word for label in labels for word in ("--label", label))]
    for name, value in told.items():
        argv += ["--build-arg", f"{name}={value}"]
    docker(*argv, str(project), builder=builder)
