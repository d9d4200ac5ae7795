"""`invoke build` and `invoke push` with a real engine and a real registry that requires a password."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.errors import StepFailed, WrongUse
from deploy.pod.base.folder import read_json
from deploy.providers import base_image, image
from tests.deploy.conftest import wait_until
from tests.support import images
from tests.support.images.engine import docker, docker_program
from tests.support.ports import free_port

pytestmark = pytest.mark.slow
USER, PASSWORD = "me", "secret words"


@pytest.fixture
def builder(our_image: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The arguments of an image whose layers exist, and a PATH with the docker command that has them."""
    assert our_image
    monkeypatch.setenv("PATH", str(Path(docker_program()).parent), prepend=":")
    monkeypatch.setenv("DOCKER_BUILDKIT", "1")
    return images.arguments()


def test_an_image_is_built_once_and_then_found(builder: dict[str, str]) -> None:
    said: list[str] = []
    told = {**builder, "PIP_OPTIONS": ""}  # another tag than in other tests, with the same layers
    reference = f"{image.NAME}:{image.tag(images.PROJECT, told)}"
    listed = images.PROJECT / ".sniperface" / "images" / f"{reference.replace(':', '-')}.cdx.json"
    try:
        assert image.build(images.PROJECT, "docker", said.append, told) == reference
        packages = {each["name"]: each for each in read_json(listed)["components"]}
        base = docker("inspect", "--format", f'{{{{index .Config.Labels "{base_image.NAME}"}}}}', reference)
    finally:
        docker("rmi", "--no-prune", reference)
        listed.unlink(missing_ok=True)
    assert said[-2].startswith(f"image {reference} is built: 2.")
    assert said[-1].endswith(f"{listed.name} (CycloneDX)")
    assert any("pip install" in line for line in said)  # the progress of the build
    assert packages["torch"]["version"].startswith("2.13.0")
    assert packages["openssh-server"]["purl"].startswith("pkg:deb/")
    assert len(packages) > 200
    assert base == builder["BASE_IMAGE"]
    assert any("made on this engine" in line for line in said)  # the substitute for the base is in no registry


@dataclass
class Bases:
    """Base images in a registry, and a checkout whose Dockerfile has three lines."""

    name: str
    checkout: Path
    said: list[str]
    made: list[str]

    def push(self, content: str) -> str:
        """Push a base image of one file under the tag, which moves it. Returns its digest. The engine keeps none."""
        (self.checkout.parent / "file").write_text(content)
        tar = subprocess.run(["tar", "-C", self.checkout.parent, "-c", "file"], check=True, capture_output=True).stdout
        docker("import", "-", self.name, stdin=tar)
        told = docker("push", self.name)
        docker("rmi", self.name)
        return re.findall("sha256:[0-9a-f]{64}", told)[-1]

    def pull(self, digest: str) -> None:
        """Give the engine an older copy under the tag."""
        docker("pull", f"{self.repository}@{digest}")
        docker("tag", f"{self.repository}@{digest}", self.name)

    @property
    def repository(self) -> str:
        return self.name.rpartition(":")[0]

    def build(self, base: str, **more: str) -> tuple[dict[str, str], str]:
        """Build; return the labels, and the layer of the base that it has."""
        told = {**image.arguments(base=base), **more}
        reference = f"{image.NAME}:{image.tag(self.checkout, told)}"
        self.said.clear()
        with pytest.raises(StepFailed, match="cannot be listed"):  # it has no Python
            image.build(self.checkout, "docker", self.said.append, told)
        self.made.append(reference)
        labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", reference))
        return labels, json.loads(docker("inspect", "--format", "{{json .RootFS.Layers}}", reference))[0]


@pytest.fixture(params=["1", "0"], ids=["buildkit", "classic"])
def bases(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Bases]:
    config = {"auths": {registry.address: {"auth": login()}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_BUILDKIT", request.param)
    monkeypatch.setenv("PATH", str(Path(docker_program()).parent), prepend=":")
    checkout = tmp_path / "checkout"
    for name in (*image.FILES, "conf/deploy/docker.yaml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.PROJECT / name, checkout / name)
    (checkout / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV MADE=here\n")
    made = Bases(f"{registry.address}/me/base:1", checkout, [], [])
    yield made
    left = docker("images", "--no-trunc", "--format", "{{.ID}}", made.repository).split()
    for each in dict.fromkeys([*made.made, *left]):
        with contextlib.suppress(RuntimeError):
            docker("rmi", "--force", each)


def layer(digest_of: str) -> str:
    return str(json.loads(docker("inspect", "--format", "{{json .RootFS.Layers}}", digest_of))[0])


def test_a_tag_is_resolved_to_a_digest_and_the_build_starts_from_it(bases: Bases) -> None:
    """The engine has no copy, so the registry is asked, with the login of this computer."""
    digest = bases.push("one")
    labels, of_image = bases.build(bases.name)
    assert (labels[base_image.NAME], labels[base_image.DIGEST]) == (bases.name, digest)
    assert of_image == layer(f"{bases.repository}@{digest}")
    assert f"pulling {bases.repository}@{digest}" in bases.said
    assert f"base image: {bases.name}@{digest}" in bases.said
    assert not docker("images", "--quiet", bases.name)  # what was built from is the digest, not the tag


def test_a_moved_tag_is_told_and_changes_nothing_unasked(bases: Bases) -> None:
    """At the next build, and when the image exists already. The printed command builds on the new bytes."""
    old = bases.push("one")
    bases.pull(old)
    old_labels, old_layer = bases.build(bases.name)
    assert not [said for said in bases.said if "was moved" in said]
    docker("rmi", bases.name)
    new = bases.push("two")
    bases.pull(old)
    for more in ({"PIP_OPTIONS": "--any"}, {}):
        labels, of_image = bases.build(bases.name, **more)
        assert (labels[base_image.DIGEST], of_image) == (old, old_layer)
        [told] = [said for said in bases.said if "was moved" in said]
        assert f"this image is on {old}, the registry now has {new}" in told
        assert f"build --base {bases.repository}@{new}" in told
    labels, of_image = bases.build(f"{bases.repository}@{new}")
    assert (labels[base_image.NAME], labels[base_image.DIGEST]) == (bases.repository, new)
    assert of_image == layer(f"{bases.repository}@{new}") != old_layer
    assert old_labels[base_image.DIGEST] == old


def test_a_copy_on_the_engine_needs_no_registry(bases: Bases, registry: Registry) -> None:
    digest = bases.push("one")
    bases.pull(digest)
    registry.process.terminate()
    registry.process.wait()
    labels, of_image = bases.build(bases.name)
    assert labels[base_image.DIGEST] == digest
    assert of_image == layer(bases.name)


def test_a_digest_that_the_registry_lacks_is_one_sentence(bases: Bases) -> None:
    bases.push("one")
    told = image.arguments(base=f"{bases.repository}@sha256:{'0' * 64}")
    with pytest.raises(WrongUse, match=r"there is no base image .* in its registry: check --base"):
        image.build(bases.checkout, "docker", bases.said.append, told)


@dataclass
class Registry:
    address: str
    process: subprocess.Popen[bytes]

    def tags(self) -> list[str]:
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=10)) as connection:
            header = {"Authorization": f"Basic {login()}"}
            connection.request("GET", "/v2/me/sniperface/tags/list", headers=header)
            return list(json.load(connection.getresponse())["tags"])


def login() -> str:
    return base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    import bcrypt

    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("needs docker-registry: install it, and start Docker")
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "htpasswd").write_bytes(USER.encode() + b":" + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)))
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": address},
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}},
    }
    (tmp_path / "registry.json").write_text(json.dumps(settings))  # JSON is YAML
    log = (tmp_path / "registry.log").open("wb")
    with log, subprocess.Popen([program, "serve", tmp_path / "registry.json"], stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: b"listening on" in (tmp_path / "registry.log").read_bytes())
            yield Registry(address, process)
        finally:
            process.terminate()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A small image in place of ours: a push of gigabytes would show nothing more."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    tar = subprocess.run(["tar", "-C", tmp_path, "-c", "file"], check=True, capture_output=True).stdout
    reference = f"{image.NAME}:cuda-0123456789ab"
    docker("import", "-", reference, stdin=tar)
    monkeypatch.setattr(image, "build", lambda *_, **__: reference)
    monkeypatch.setattr(image, "tag", lambda *_: reference.partition(":")[2])
    yield reference
    docker("rmi", reference)


def test_a_push_after_logging_in(
    registry: Registry, small: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {"auths": {registry.address: {"auth": login()}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    said: list[str] = []
    full_name = image.push(images.PROJECT, "docker", f"{registry.address}/me/sniperface", said.append)
    assert full_name == f"{registry.address}/me/sniperface:cuda-0123456789ab"
    assert registry.tags() == ["cuda-0123456789ab"]
    assert said[0] == f"pushing {full_name}"
    assert said[-1] == f"pushed {full_name}"
    docker("rmi", full_name)
    assert small


def test_a_push_without_logging_in_names_the_command(
    registry: Registry, small: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(StepFailed, match=r"denies the push of .*/me/sniperface: log in there first") as raised:
        image.push(images.PROJECT, "docker", f"{registry.address}/me/sniperface", print)
    assert raised.value.next_command == f"docker login {registry.address}"
    docker("rmi", f"{registry.address}/me/sniperface:cuda-0123456789ab")
    assert small
