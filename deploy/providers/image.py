"""Build, tag and push the image that machines run.

The docker command builds, because the SDK cannot use BuildKit; the SDK pushes. The tag is a hash of the environment's
files and the build arguments, so an unchanged environment is never built twice. Training code is not in the image. A
label holds the hash of the files alone: it shows whether an image, however it was built, belongs to this checkout.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import NoMachine, StepFailed, WrongUse, command
from deploy.pod.base.folder import private_folder, write_json
from deploy.providers import base_image, network, sbom
from deploy.shell import LocalShell
from deploy.specs.options import IMAGE_NAME
from deploy.specs.settings import Docker, Settings, load

if TYPE_CHECKING:
    from docker import DockerClient

NAME = "sniperface"
ENVIRONMENT = "sniperface.environment"  # label: the hash of FILES
# Modules that init.py needs, under the same names in the image.
BOOT = (
    "deploy/pod/base/processes.py",
    "deploy/pod/base/redact.py",
    "deploy/pod/base/text.py",
    "deploy/pod/image/unattended.py",
    "deploy/pod/watchdog/release.py",
)
FILES = (
    ".dockerignore",
    "Dockerfile",
    "constraints.txt",
    "deploy/pod/image/init.py",
    "deploy/pod/image/login.py",
    "deploy/pod/image/selftest.py",
    *BOOT,
    "requirements/app.txt",
    "requirements/build.txt",
    "requirements/cuda.txt",
    "requirements/gpu.txt",
    "requirements/s3.txt",
    "requirements/torch.txt",
    "requirements/wandb.txt",
)
BASE_CUDA = re.compile(r"^ARG BASE_IMAGE=nvidia/cuda:(\d+\.\d+)", re.MULTILINE)
CPU = {"BASE_IMAGE": "ubuntu:24.04", "FAISS": "faiss-cpu"}
LINES_OF_CAUSE = 40
# Words in Docker's last lines, in lower case -> the cause of a failed build. The first match counts.
CAUSES = (
    (("no space left on device",), "the disk of the Docker engine is full: make room with docker system prune"),
    (
        ("failed to resolve", "no such host", "name resolution", "i/o timeout", "connection refused",
         "network is unreachable", "max retries exceeded", "could not resolve"),
        "a registry of images or packages cannot be reached: check the network connection, or name an image that the "
        "engine has with --base",
    ),
    (("pull access denied", "manifest unknown", "not found: manifest"), "there is no such base image: check --base"),
    (("no matching distribution", "could not find a version"), "pip finds no such package: check --pip-options"),
)  # fmt: skip
ENGINE_S = 60  # a running engine answers faster, even through ssh://

Say = Callable[[str], None]


def environment(project: Path) -> str:
    """Return the hash of the files that define the environment. CRLF line endings do not change it.

    Raises WrongUse for a missing file.
    """
    digest = hashlib.sha256()
    for name in FILES:
        try:
            content = (project / name).read_bytes().replace(b"\r\n", b"\n")
        except OSError as error:
            raise WrongUse(f"the image needs {name} in {project}, and it cannot be read: {error.strerror}") from error
        digest.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]


def cuda(project: Path) -> str | None:
    """Return the CUDA version of the base image, such as 13.0, which a host's driver must support; None if unknown."""
    try:
        text = (project / "Dockerfile").read_text(encoding="utf-8")
    except OSError:
        return None
    found = BASE_CUDA.search(text)
    return found[1] if found else None


def arguments(cpu: bool = False, base: str | None = None, pip_options: str | None = None) -> dict[str, str]:
    """Return the build arguments. The Dockerfile's defaults apply to all others.

    Raises WrongUse for a `base` that is no image name.
    """
    told = dict(CPU) if cpu else {}
    if base is not None:
        base_image.parse(base)
        told["BASE_IMAGE"] = base.strip()
    return told | ({"PIP_OPTIONS": pip_options} if pip_options else {})


def tag(project: Path, told: Mapping[str, str] | None = None) -> str:
    """Return the image's tag, such as cuda-1f2e3d4c5b6a, from the environment and the build arguments `told`.

    Without arguments it is the tag of plain `invoke build` and `invoke push`.
    """
    told = told or {}
    kind = "cpu" if told.get("FAISS") == CPU["FAISS"] else "cuda"
    words = "".join(f"\0{name}={value}" for name, value in sorted(told.items()))
    return f"{kind}-{hashlib.sha256((environment(project) + words).encode()).hexdigest()[:12]}"


def build(project: Path, target: str, say: Say, told: Mapping[str, str] | None = None) -> str:
    """Build the image of this environment unless the target's engine has it. Returns its name and tag.

    Raises WrongUse without the docker command, StepFailed if the build fails.
    """
    told = told or {}
    host = _docker_host(load(project, target))
    reference = f"{NAME}:{tag(project, told)}"
    program = LocalShell().which("docker")
    if not program:
        raise WrongUse(
            "building needs the docker command, which this computer lacks: install Docker Desktop, or docker.io on "
            "Linux; to use an image built elsewhere, set image: in conf/deploy"
        )
    with contextlib.closing(engine(host)) as client:
        if client.images.list(reference):
            say(f"image {reference} already exists; skipping the build")
            base_image.look(client, client.images.get(reference).labels, say)
        else:
            say(f"building image {reference}; the first build downloads gigabytes of packages")
            base = base_image.resolve(client, base_image.wanted(project, told), say)
            say(f"base image: {base}")
            argv = [program, *(["--host", host] if host else []), "build", "--tag", reference]
            for name, value in {ENVIRONMENT: environment(project), **base.labels}.items():
                argv += ["--label", f"{name}={value}"]
            for name, value in {**told, "BASE_IMAGE": base.reference}.items():
                argv += ["--build-arg", f"{name}={value}"]
            shown: collections.deque[str] = collections.deque(maxlen=LINES_OF_CAUSE)
            try:
                for line in LocalShell().stream([*argv, "."], cwd=project):
                    say(line)
                    shown.append(line)
            except StepFailed as failed:  # its evidence is on the screen already
                told_again = f"the image {reference} could not be built: {why_not_built(shown)}"
                raise StepFailed(told_again, next_command=command(f"doctor --on {target}")) from failed
            say(f"image {reference} is built: {client.images.get(reference).attrs['Size'] / 1e9:.2f} GB")
        _list_packages(client, project, reference, say)
    return reference


def why_not_built(lines: Iterable[str]) -> str:
    """The cause of a failed build, by the last lines of Docker's output."""
    text = "\n".join(lines).lower()
    causes = (cause for words, cause in CAUSES if any(word in text for word in words))
    return next(causes, "Docker's last lines, above, have the cause")


def _list_packages(client: DockerClient, project: Path, reference: str, say: Say) -> None:
    """Write the package list of an image, once per image. Raises StepFailed."""
    from docker.errors import DockerException

    path = project / ".sniperface" / "images" / f"{reference.replace(':', '-')}.cdx.json"
    made = client.images.get(reference)
    if path.exists() and str(made.id) in path.read_text(encoding="utf-8"):
        return
    argv = ["/usr/bin/python3", "-I", "-c", sbom.LISTER]
    try:
        lister = client.containers.create(reference, entrypoint=argv, command=[], network_mode="none")
        try:
            lister.start()
            lister.wait(timeout=ENGINE_S)
            listing = lister.logs(stderr=False)
        finally:
            lister.remove(force=True)
    except (DockerException, OSError) as error:
        raise StepFailed(f"the packages of the image {reference} cannot be listed", evidence=[str(error)]) from error
    base = str(base_image.of_labels(made.labels) or "")
    private_folder(project / ".sniperface")
    write_json(path, sbom.document(listing.decode(), reference, str(made.id), base))
    say(f"package list of the image: {path.relative_to(project)} (CycloneDX)")


def push(project: Path, target: str, repository: str | None, say: Say, told: Mapping[str, str] | None = None) -> str:
    """Push the image of this environment to a registry; build it first if missing. Returns its full name there.

    Raises WrongUse without a repository, StepFailed if the registry refuses.
    """
    from docker.errors import DockerException

    settings = load(project, target)
    repository = repository or getattr(settings.target.options, "image", None)
    if not repository:
        raise WrongUse(
            f"no repository to push to: give {command('push --image me/sniperface')}, or set image: in conf/deploy"
        )
    full_name = in_registry(project, repository, told)
    reference = build(project, target, say, told)
    name, _, its_tag = full_name.rpartition(":")
    with contextlib.closing(engine(_docker_host(settings))) as client:
        client.images.get(reference).tag(name, its_tag)
        say(f"pushing {full_name}")
        progress = Progress(say)
        try:
            for event in client.images.push(name, its_tag, stream=True, decode=True):
                progress.take(event)
        except StepFailed as error:
            raise _refused(name, error.message) from error
        except DockerException as error:
            raise _refused(name, str(error)) from error
    say(f"pushed {full_name}")
    return full_name


def in_registry(project: Path, repository: str, told: Mapping[str, str] | None = None) -> str:
    """Return the name that other machines pull: `repository`, with the environment's tag if it has none.

    Raises WrongUse for another text.
    """
    if not IMAGE_NAME.fullmatch(repository) or "@" in repository:
        raise WrongUse(f"'{repository}' is not an image name: give one such as me/sniperface or me/sniperface:cuda")
    # A colon before a slash belongs to a registry's port.
    return repository if ":" in repository.split("/")[-1] else f"{repository}:{tag(project, told)}"


def newest(client: DockerClient, project: Path) -> str | None:
    """Return the newest image of this checkout's environment on an engine, CPU or CUDA; None without one."""
    found = client.images.list(filters={"label": f"{ENVIRONMENT}={environment(project)}"})
    found = sorted((image for image in found if image.tags), key=lambda image: str(image.attrs["Created"]))
    return str(found[-1].tags[0]) if found else None


def engine(docker_host: str | None = None) -> DockerClient:
    """Connect to a Docker engine: the one named, else DOCKER_HOST, else the docker command's context.

    Raises NoMachine when it does not answer.
    """
    import docker
    from docker.errors import DockerException

    host = engine_address(docker_host)
    where = f"at {host}" if host else "on this computer"
    ssh = {"use_ssh_client": True} if (host or "").startswith("ssh://") else {}
    try:
        _knock(host)
        with contextlib.ExitStack() as undo:
            if host:
                client = docker.DockerClient(base_url=host, timeout=ENGINE_S, tls=_tls(host), **ssh)
            else:
                client = docker.from_env(timeout=ENGINE_S)
            undo.callback(client.close)
            client.ping()
            undo.pop_all()
            return client
    except (DockerException, OSError, ValueError) as error:
        causes = list(network.causes(error))
        if any(isinstance(cause, PermissionError) for cause in causes):
            raise NoMachine(
                f"this user has no access to the Docker engine {where}: join the group docker, then log in again",
                next_command="sudo usermod -aG docker $USER",
            ) from error
        raise NoMachine(
            f"no Docker engine answers {where}: start Docker Desktop, or dockerd; for another engine, set "
            "DOCKER_HOST, or docker_host: in conf/deploy, such as ssh://me@gpu-box",
            evidence=[str(causes[-1])[:300]],
            next_command="docker version",
        ) from error


def engine_address(docker_host: str | None) -> str | None:
    """Return the engine's address, such as ssh://me@gpu-box. None: the SDK's default."""
    return docker_host or os.environ.get("DOCKER_HOST") or _of_context()


class Progress:
    """Report a push in few lines: the sum of bytes every 10 %, and messages that concern no layer."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.bytes: dict[str, tuple[int, int]] = {}
        self.told_pct = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Show one event of the push. Raises StepFailed if it is an error."""
        if "error" in event:
            raise StepFailed(str(event["error"]))
        layer, status = str(event.get("id", "")), str(event.get("status", ""))
        detail = event.get("progressDetail") or {}
        if detail.get("total"):
            self.bytes[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        elif layer in self.bytes and status in ("Pushed", "Pull complete"):
            self.bytes[layer] = (self.bytes[layer][1], self.bytes[layer][1])
        done, total = (sum(column) for column in zip(*self.bytes.values(), strict=True)) if self.bytes else (0, 0)
        pct = 100 * done // total if total else 0
        if pct >= self.told_pct + 10:
            self.told_pct = pct
            self.say(f"  {done / 1e9:.2f} of {total / 1e9:.2f} GB")
        elif not layer and status:
            self.say(f"  {status}")


def _refused(name: str, words: str) -> StepFailed:
    registry = name.split("/")[0] if re.search(r"[.:]", name.split("/")[0]) and "/" in name else ""
    if re.search(r"denied|unauthori[sz]ed|authentication|no basic auth", words, re.IGNORECASE):
        return StepFailed(
            f"the registry denies the push of {name}: log in there first, and push to a repository of your own, such "
            f"as {command('push --image me/sniperface')}",
            evidence=[words],
            next_command=f"docker login {registry}".strip(),
        )
    return StepFailed(f"{name} could not be pushed", evidence=[words], next_command=f"docker push {name}")


def _docker_host(settings: Settings) -> str | None:
    options = settings.target.options
    return options.docker_host if isinstance(options, Docker) else None


def _knock(host: str | None) -> None:
    """Connect to the Unix socket to get the system's own error. The SDK hides it, and leaks an unanswered socket."""
    address = host or "unix:///var/run/docker.sock"
    if sys.platform != "win32" and address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(ENGINE_S)
            door.connect(address.removeprefix("unix://"))


def _of_context() -> str | None:
    """Return the engine that `docker context use` selected. Docker Desktop and Colima register only there."""
    with contextlib.suppress(Exception):  # no context is no error, and the docker command explains a broken one better
        from docker.context import ContextAPI

        return ContextAPI.get_current_context().Host or None
    return None


def _tls(host: str) -> Any:
    """Return TLS settings from DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, read as the docker command reads them."""
    if not host.startswith(("tcp://", "https://")) or not os.environ.get("DOCKER_TLS_VERIFY"):
        return False
    from docker.tls import TLSConfig

    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)
