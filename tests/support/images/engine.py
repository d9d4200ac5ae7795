"""The docker command, and whether there is an engine behind it."""

from __future__ import annotations

import os
import shutil
import subprocess


class NoDocker(Exception):
    """Why there can be no image here, as a test's reason to be skipped."""


def docker_program() -> str:
    """The system's own first: a newer one beside it, without its plugin buildx, knows the classic builder alone."""
    program = shutil.which("docker", path="/usr/bin") or shutil.which("docker")
    if not program:
        raise NoDocker("needs Docker: install docker.io")
    return program


def docker(*argv: str, builder: str = "", stdin: bytes | None = None) -> str:
    """Output of the docker command; the classic builder is asked for by DOCKER_BUILDKIT=0."""
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
