"""`invoke build` and `invoke push` with a real engine and a real registry that requires a password."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.errors import StepFailed
from deploy.pod.base.folder import read_json
from deploy.providers import image
from tests.deploy.conftest import wait_until
from tests.support import images
from tests.support.images.engine import docker, docker_program

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
        base = docker("inspect", "--format", f'{{{{index .Config.Labels "{image.BASE_NAME}"}}}}', reference)
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


def test_the_base_is_recorded_by_the_digest_of_its_registry(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine does not have the base, so it is pulled. A Dockerfile of three lines replaces ours."""
    config = {"auths": {registry.address: {"auth": login()}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(docker_program()).parent), prepend=":")
    base = f"{registry.address}/me/base:1"
    (tmp_path / "file").write_bytes(b"x" * 1000)
    tar = subprocess.run(["tar", "-C", tmp_path, "-c", "file"], check=True, capture_output=True).stdout
    docker("import", "-", base, stdin=tar)
    pushed = docker("push", base)
    docker("rmi", base)
    checkout = tmp_path / "checkout"
    for name in (*image.FILES, "conf/deploy/docker.yaml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.PROJECT / name, checkout / name)
    (checkout / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV MADE=here\n")
    told = image.arguments(base=base)
    reference = f"{image.NAME}:{image.tag(checkout, told)}"
    try:
        with pytest.raises(StepFailed, match="cannot be listed"):  # it has no Python
            image.build(checkout, "docker", print, told)
        labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", reference))
    finally:
        docker("rmi", reference, base)
    assert labels[image.BASE_NAME] == base
    assert labels[image.BASE_DIGEST] in pushed  # as the registry reported it
    assert labels[image.BASE_DIGEST].startswith("sha256:")


@dataclass
class Registry:
    address: str

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
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
            yield Registry(address)
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
