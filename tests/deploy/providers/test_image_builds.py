"""Our Dockerfile with the classic builder, from a checkout with CRLF as on Windows, and machines of compose.yaml."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from deploy.providers import image
from tests.support import images
from tests.support.images.container import Machine, new_key, started
from tests.support.images.engine import docker, docker_program
from tests.support.ports import free_port

pytestmark = pytest.mark.slow


# Of the packages that the self-test loads: small ones, so that pip takes seconds to install them again.
SMALL = "faiss-cpu filelock fsspec jinja2 markupsafe packaging typing-extensions"


def test_the_classic_builder_makes_the_same_machine_from_a_checkout_with_crlf(our_image: str, tmp_path: Path) -> None:
    """It reads each line, and pip installs from the lists with CRLF.

    The classic builder has no layer of the other builder. So it starts from our image without the small packages: the
    system's packages and torch, which take minutes, are there already.
    """
    reference = f"{our_image}-classic"
    partly = f"FROM {our_image}\nRUN python -m pip uninstall --quiet --yes {SMALL}\n".encode()
    docker("build", "--tag", f"{reference}-base", "-", builder="0", stdin=partly)
    for name in image.FILES:
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (images.PROJECT / name).read_bytes()
        path.write_bytes(content if name == "Dockerfile" else content.replace(b"\n", b"\r\n"))
    told = {**images.arguments(), "BASE_IMAGE": f"{reference}-base"}
    images.build(reference, told, project=tmp_path / "checkout", builder="0")
    docker("run", "--rm", reference, "selftest")
    with started(reference, tmp_path / "machine", {"ANY": "thing"}) as machine:
        assert machine.until_it_answers().ssh("echo $ANY; which python") == b"thing\n/opt/sniperface/bin/python\n"


def test_a_change_of_what_runs_at_boot_reinstalls_nothing(our_image: str) -> None:
    """The large layers of the dependencies come before ours."""
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", our_image).splitlines()
    [packages] = [place for place, line in enumerate(history) if "pip install" in line]
    [boot] = [place for place, line in enumerate(history) if "init.py" in line]
    [system] = [place for place, line in enumerate(history) if "apt-get install" in line]
    assert boot < packages < system  # the newest comes first


@pytest.fixture
def compose(our_image: str, tmp_path: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """`docker compose` or `docker-compose` for a separate project. Its build reuses existing layers."""
    assert our_image
    program = ["docker", "compose"] if _works(["docker", "compose", "version"]) else ["docker-compose"]
    if not _works([*program, "version"]):
        pytest.skip("needs Docker: and docker-compose")
    env = {
        **os.environ,
        "PATH": f"{Path(docker_program()).parent}{os.pathsep}{os.environ['PATH']}",
        "DOCKER_BUILDKIT": "1",
        "COMPOSE_DOCKER_CLI_BUILD": "1",
        "BASE_IMAGE": images.arguments()["BASE_IMAGE"],
        "SNIPERFACE_IMAGE": f"sniperface-test-compose:{uuid.uuid4().hex[:8]}",
        "SNIPERFACE_SSH_PORT": str(free_port()),
        "PUBLIC_KEY_FILE": f"{new_key(tmp_path)}.pub",
        "WANDB_API_KEY": "secret",
    }
    argv = [*program, "--project-name", f"sniperface-test-{uuid.uuid4().hex[:8]}"]
    argv += ["--file", str(images.PROJECT / "compose.yaml")]
    try:
        yield argv, env
    finally:
        run([*argv, "--profile", "cpu", "down", "--volumes"], env)
        docker("rmi", "--no-prune", env["SNIPERFACE_IMAGE"])


def test_compose_gives_a_machine_that_stays_the_same(compose: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    argv, env = compose
    up = [*argv, "--profile", "cpu", "up", "--detach"]
    run(up, env)
    machine = Machine(run([*argv, "ps", "--quiet", "cpu"], env).strip(), tmp_path / "id", tmp_path / "known_hosts")
    machine.until_it_answers()
    assert machine.port() == int(env["SNIPERFACE_SSH_PORT"])
    script = "cat /proc/1/environ | tr '\\\\0' '\\\\n' | grep -c secret; stat -f -c %b*%S /dev/shm"
    assert machine.ssh(script) == b"0\n524288*4096\n"  # a secret goes to the job that needs it, not to the machine
    machine.ssh("echo kept > /workspace/note")

    run([*argv, "--profile", "cpu", "rm", "--stop", "--force"], env)
    run(up, env)
    again = Machine(run([*argv, "ps", "--quiet", "cpu"], env).strip(), machine.key, machine.known_hosts)
    assert again.id != machine.id
    assert wait_ssh(again) == b"kept\n"  # with the same host key


def test_the_gpu_profile_reserves_gpus(compose: tuple[list[str], dict[str, str]]) -> None:
    argv, env = compose
    run([*argv, "--profile", "cpu", "up", "--no-start"], env)  # so that there is something to take down
    shown = run([*argv, "--profile", "gpu", "config"], env)
    assert "driver: nvidia" in shown
    assert "FAISS" not in shown.split("gpu:")[-1]


def wait_ssh(machine: Machine) -> bytes:
    from tests.deploy.conftest import wait_until

    wait_until(lambda: "Server listening" in machine.log())
    return machine.ssh("cat /workspace/note")


def run(argv: list[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _works(argv: list[str]) -> bool:
    return shutil.which(argv[0]) is not None and subprocess.run(argv, capture_output=True, check=False).returncode == 0
