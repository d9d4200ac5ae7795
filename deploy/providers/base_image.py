"""The base image by its digest: a tag can be moved to other bytes, a digest cannot.

A build starts FROM NAME@sha256:…, whether the user typed the digest or only a tag. A tag is resolved before the build:
to the engine's copy, else by the registry. Without both there is no digest, which is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import WrongUse, command
from deploy.specs.options import IMAGE_NAME

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT = re.compile(r"^ARG BASE_IMAGE=(\S+)", re.MULTILINE)  # in the Dockerfile
NAME, DIGEST = "org.opencontainers.image.base.name", "org.opencontainers.image.base.digest"  # labels
SHA256 = re.compile(r"sha256:[0-9a-f]{64}")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Base:
    """A base image. `digest`: of its manifest in the registry, sha256:…; None if it is in none that is known."""

    name: str  # as the user or the Dockerfile has it, without a digest
    digest: str | None

    @property
    def reference(self) -> str:
        """What the build starts from."""
        return f"{repository(self.name)}@{self.digest}" if self.digest else self.name

    @property
    def labels(self) -> dict[str, str]:
        return {NAME: self.name, **({DIGEST: self.digest} if self.digest else {})}

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else self.name


def of_labels(labels: Mapping[str, str]) -> Base | None:
    """The base image of an image that `invoke build` made."""
    return Base(labels[NAME], labels.get(DIGEST)) if labels.get(NAME) else None


def parse(text: str) -> Base:
    """Parse NAME, NAME:TAG or NAME@sha256:…. Raises WrongUse."""
    name, at, digest = text.strip().partition("@")
    if not name:
        raise WrongUse("--base is empty: give an image such as ubuntu:24.04, or leave it out")
    if not IMAGE_NAME.fullmatch(name):
        raise WrongUse(f"--base {name!r} is not an image name: give one such as ubuntu:24.04, or leave it out")
    if at and not SHA256.fullmatch(digest):
        raise WrongUse(
            f"--base {text}: the digest is not sha256: and 64 digits from 0 to f: give one such as "
            f"{name}@sha256:{'0123456789abcdef' * 4}"
        )
    return Base(name, digest or None)


def wanted(project: Path, told: Mapping[str, str]) -> Base:
    """The base image of a build: of its arguments, else of the Dockerfile."""
    default = DEFAULT.search((project / "Dockerfile").read_text(encoding="utf-8"))
    return parse(told.get("BASE_IMAGE") or (default[1] if default else ""))


def repository(name: str) -> str:
    """The name without its tag. A colon before a slash belongs to a registry's port."""
    start, slash, last = name.rpartition("/")
    return f"{start}{slash}{last.partition(':')[0]}"


def resolve(client: DockerClient, base: Base, say: Say) -> Base:
    """Return the base with its digest, and pull it if the engine lacks it. Tells a tag that was moved.

    A copy on the engine counts, not what its tag has become since: nothing changes the bytes of a build unasked.
    Raises WrongUse for one that its registry does not have. Another that cannot be pulled is returned as it is; the
    build then reports the problem.
    """
    from docker.errors import DockerException, ImageNotFound, NotFound

    try:
        try:
            copy = client.images.get(base.reference)
        except ImageNotFound:
            base = base if base.digest else Base(base.name, _of_registry(client, base.name))
            if base.digest is None:
                say(f"the registry of {base.name} does not answer, and this engine has no copy: it has no digest")
                return base
            say(f"pulling {base.reference}")
            try:
                client.images.pull(base.reference)
            except NotFound as error:
                raise WrongUse(f"there is no base image {base.reference} in its registry: check --base") from error
            return base
        if base.digest:
            return base
        own = digest_of(copy.attrs.get("RepoDigests") or [], base.name)
        if own is None:
            say(f"base image {base.name}: made on this engine, or copied to it, so it has no digest of a registry")
            return base
        tell_if_moved(Base(base.name, own), _of_registry(client, base.name), say)
        return Base(base.name, own)
    except (DockerException, OSError) as error:
        say(f"base image {base}: {str(error)[:300]}")
        return base


def tell_if_moved(base: Base, newest: str | None, say: Say) -> None:
    """Tell that a tag has other bytes in the registry than the ones that an image is made of."""
    if base.digest and newest and newest != base.digest:
        say(
            f"the tag {base.name} was moved: this image is on {base.digest}, the registry now has {newest}; to build "
            f"on that: {command(f'build --base {repository(base.name)}@{newest}')}"
        )


def look(client: DockerClient, labels: Mapping[str, str], say: Say) -> None:
    """Tell if the tag of an existing image's base was moved since its build. Silent without a digest or a registry."""
    base = of_labels(labels)
    if base and base.digest:
        tell_if_moved(base, _of_registry(client, base.name), say)


def digest_of(listed: list[str], name: str) -> str | None:
    """The digest of an image under this name, among `REPOSITORY@sha256:…` of all its names."""
    digests = dict(each.rpartition("@")[::2] for each in listed)
    return digests.get(_short(repository(name)))


def _short(name: str) -> str:
    """The name as an engine lists it: without what stands for Docker Hub."""
    return re.sub(r"^(index\.)?docker\.io/(library/)?|^library/", "", name)


def _of_registry(client: DockerClient, name: str) -> str | None:
    """The digest that a tag has in its registry now, as the engine's login sees it; None without an answer."""
    from docker.errors import DockerException

    try:
        told: Any = client.images.get_registry_data(name).id
    except (DockerException, OSError):
        return None
    return told if isinstance(told, str) and SHA256.fullmatch(told) else None
