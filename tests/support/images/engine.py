"""Run the docker command, and check that a Docker engine answers."""

from __future__ import annotations

import os
import shutil
import subprocess


class NoDocker(Exception):
    """No image can be built here. The text is the reason for skipping a test."""


def docker_program() -> str:
    """Path of docker, the system's first: a newer one without the buildx plugin has only the classic builder."""
    program = shutil.which("docker", path="/usr/bin") or shutil.which("docker")
    if not program:
        raise NoDocker("needs Docker: install docker.io")
    return program


def docker(*argv: str, builder: str = "", stdin: bytes | None = None) -> str:
    """Run docker and return its output. `builder` sets DOCKER_BUILDKIT; "0" is the classic builder."""
    env = {**os.environ, **({"DOCKER_BUILDKIT": builder} if builder else {})}
    done = subprocess.run([docker_program(), *argv], env=env, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(argv[:3])} failed:\n{(done.stdout + done.stderr).decode()[-4000:]}")
    return done.stdout.decode().strip()


def check_docker() -> None:
    try:
        docker("version")
    except RuntimeError as error:
        raise NoDocker("needs Docker: start dockerd, and let this user reach it") from error


def exists(image: str) -> bool:
    return bool(docker("images", "--quiet", image))
