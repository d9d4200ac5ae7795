"""The image's tag and names, and the messages of `invoke build`, `invoke push` and `invoke doctor`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.commands import doctor
from deploy.errors import NoMachine, StepFailed, WrongUse
from deploy.providers import base_image, image
from deploy.runs import session
from tests.support.images.engine import NoDocker, check_docker

SOURCE = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (*image.FILES, "conf/deploy/docker.yaml", "conf/deploy/runpod.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, tmp_path / name)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_tag_changes_with_the_environment_and_with_nothing_else(checkout: Path) -> None:
    first = image.tag(checkout)
    assert first.startswith("cuda-")
    (checkout / "pyproject.toml").write_text("changed lint rules\n")
    (checkout / "app").mkdir()
    (checkout / "app" / "train.py").write_text("changed code\n")
    assert image.tag(checkout) == first
    edit(checkout / "requirements" / "app.txt", "faiss-cpu==", "faiss-cpu===")
    second = image.tag(checkout)
    edit(checkout / "deploy" / "pod" / "image" / "init.py", "PAUSE_S", "REST_S")
    assert len({first, second, image.tag(checkout)}) == 3


def test_a_checkout_with_crlf_has_the_same_tag(checkout: Path) -> None:
    first = image.tag(checkout)
    for name in image.FILES:
        path = checkout / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert image.tag(checkout) == first


def test_every_file_that_the_dockerfile_copies_is_in_the_tag_and_in_the_context() -> None:
    dockerfile = (SOURCE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    copies = [line.split()[1:-1] for line in dockerfile if line.startswith("COPY ") and "--from" not in line]
    copied = {name for names in copies for name in names}
    assert copied == {*image.FILES} - {"Dockerfile", ".dockerignore"}
    ignore = (SOURCE / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(ignore)


def test_arguments_are_part_of_the_tag(checkout: Path) -> None:
    cpu = image.arguments(cpu=True, pip_options="--no-deps")
    assert cpu == {"BASE_IMAGE": "ubuntu:24.04", "FAISS": "faiss-cpu", "PIP_OPTIONS": "--no-deps"}
    assert image.tag(checkout, cpu).startswith("cpu-")
    tags = {image.tag(checkout, told) for told in (None, cpu, image.arguments(cpu=True), image.arguments(base="mine"))}
    assert len(tags) == 4


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("me/sniperface", "me/sniperface:TAG"),
        ("localhost:5000/sniperface", "localhost:5000/sniperface:TAG"),
        ("ghcr.example.org/me/sniperface:v1", "ghcr.example.org/me/sniperface:v1"),
    ],
)
def test_a_name_without_a_tag_gets_the_environments(checkout: Path, given: str, name: str) -> None:
    assert image.in_registry(checkout, given) == name.replace("TAG", image.tag(checkout))


def test_what_is_no_name_of_an_image_is_refused(checkout: Path) -> None:
    with pytest.raises(WrongUse, match="is not an image name: give one such as me/sniperface"):
        image.in_registry(checkout, "Me/Sniper Face")


DIGEST = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(
    ("typed", "starts_from", "name"),
    [
        ("ubuntu:24.04", "ubuntu:24.04", "ubuntu:24.04"),
        (" ubuntu:24.04 ", "ubuntu:24.04", "ubuntu:24.04"),
        (f"ubuntu@{DIGEST}", f"ubuntu@{DIGEST}", "ubuntu"),
        (f"ubuntu:24.04@{DIGEST}", f"ubuntu@{DIGEST}", "ubuntu:24.04"),
        (f"localhost:5000/a/b:1@{DIGEST}", f"localhost:5000/a/b@{DIGEST}", "localhost:5000/a/b:1"),
    ],
)
def test_a_base_is_a_tag_or_a_digest(typed: str, starts_from: str, name: str) -> None:
    base = base_image.parse(typed)
    assert (base.reference, base.labels[base_image.NAME]) == (starts_from, name)
    assert base.labels.get(base_image.DIGEST) == (DIGEST if "@" in typed else None)
    assert base_image.of_labels(base.labels) == base


def test_the_dockerfile_names_its_base_by_digest() -> None:
    base = base_image.wanted(Path(image.__file__).parents[2], {})
    assert base.name.startswith("nvidia/cuda:")
    assert base.reference == f"nvidia/cuda@{base.digest}"


@pytest.mark.parametrize("typed", ["", " ", f"@{DIGEST}", "ubuntu@", "ubuntu@sha256:12", f"ubuntu@{DIGEST.upper()}"])
def test_a_base_that_is_neither_names_a_value_that_works(typed: str) -> None:
    with pytest.raises(WrongUse, match=r"--base .*such as \S+"):
        image.arguments(base=typed)


@pytest.mark.parametrize(
    ("name", "listed", "found"),
    [
        ("a/b:1", [f"c/d@sha256:{'1' * 64}", f"a/b@{DIGEST}"], DIGEST),
        ("docker.io/library/ubuntu:24.04", [f"ubuntu@{DIGEST}"], DIGEST),
        ("docker.io/nvidia/cuda:13", [f"nvidia/cuda@{DIGEST}"], DIGEST),
        ("localhost:5000/b", [f"localhost:5000/b@{DIGEST}"], DIGEST),
        ("a/b:1", [f"c/d@{DIGEST}"], None),
        ("a/b:1", [], None),
    ],
)
def test_a_digest_belongs_to_the_name_under_which_it_was_pulled(
    name: str, listed: list[str], found: str | None
) -> None:
    assert base_image.digest_of(listed, name) == found


def test_building_without_the_docker_command_says_what_to_install(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(WrongUse, match="install Docker Desktop"):
        image.build(checkout, "docker", print)


def test_no_engine_is_said_in_a_sentence_with_its_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(NoMachine, match=r"no Docker engine answers at unix://.*nobody\.sock: start Docker Desktop"):
        image.engine()


def test_a_socket_without_rights_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str | None) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image, "_knock", refuse)  # the tests may run as root, who has every right
    with pytest.raises(NoMachine, match="join the group docker"):
        image.engine()


def test_a_push_shows_tenths_and_stops_at_an_error() -> None:
    said: list[str] = []
    progress = image.Progress(said.append)
    for done in range(0, 2_000_000_001, 100_000_000):
        event = {"status": "Pushing", "id": "abc", "progressDetail": {"current": done, "total": 2_000_000_000}}
        progress.take(event)
    assert said[0] == "  0.20 of 2.00 GB"
    assert said[-1] == "  2.00 of 2.00 GB"
    assert len(said) == 10
    with pytest.raises(StepFailed, match="denied"):
        progress.take({"error": "denied: requested access to the resource is denied"})


def test_pushing_to_nowhere_names_the_option(checkout: Path) -> None:
    with pytest.raises(WrongUse, match=r"push --image me/sniperface, or set image: in conf/deploy"):
        image.push(checkout, "docker", None, print)


def test_a_refused_push_says_where_to_log_in() -> None:
    refused = image._refused("ghcr.example.org/me/sniperface", "denied: requested access to the resource is denied")
    assert refused.next_command == "docker login ghcr.example.org"
    assert image._refused("me/sniperface", "unauthorized: authentication required").next_command == "docker login"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ERROR: failed to solve: ubuntu:24.04: failed to resolve source metadata: no such host", "check the network"),
        ("write /var/lib/docker/x: no space left on device", "the disk of the Docker engine is full"),
        ("pull access denied for me/none, repository does not exist", "check --base"),
        ("ERROR: No matching distribution found for torch==2.13.0", "check --pip-options"),
        ("something nobody saw", "above"),
    ],
)
def test_a_failed_build_names_its_cause(line: str, cause: str) -> None:
    assert cause in image.why_not_built(["#5 [2/9] RUN x", line, "------"])


def test_doctor_reports_whether_the_image_of_a_container_exists(checkout: Path) -> None:
    """Nobody has built this checkout's image. An image that the target names is reported as it is."""
    try:
        check_docker()
    except NoDocker as missing:
        pytest.skip(str(missing))
    edit(checkout / "requirements" / "app.txt", "faiss-cpu==", "faiss-cpu===")
    file = checkout / "conf" / "deploy" / "docker.yaml"
    with session.target(checkout, "docker") as at:
        found = {each.what: each for each in doctor.machine(at)}
        at.provider.client.close()  # type: ignore[attr-defined]
    assert (found["image"].level, found["image"].found) == ("problem", "the image of this project is not built yet")
    assert str(found["image"].fix).endswith("build --on docker")
    file.write_text("provider: docker\nroot: /w\nimage: me/sniperface\n", encoding="utf-8")
    with session.target(checkout, "docker") as at:
        found = {each.what: each for each in doctor.machine(at)}
        at.provider.client.close()  # type: ignore[attr-defined]
    assert (found["image"].level, found["image"].found) == ("ok", "me/sniperface")
