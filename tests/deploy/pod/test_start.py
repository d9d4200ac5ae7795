"""start.sh in images that lack required programs: it installs them, or the pod releases itself."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.providers.runpod.start import command
from tests.deploy.conftest import wait_until
from tests.support.images.container import HOST_KEY, Machine, started
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow
TOOL = "#!/bin/sh\necho runpodctl $*\n"


@pytest.fixture(scope="module")
def bare_image() -> str:
    """An image with bash, apt-get and certificates only, like a CUDA base image."""
    from tests.support.images import NoDocker, one_at_a_time
    from tests.support.images.base import base_image

    try:
        with one_at_a_time():
            return base_image()
    except NoDocker as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def stock_image() -> str:
    from tests.support.images import NoDocker, stock

    try:
        return stock.stock_image()
    except NoDocker as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def pod(image: str, folder: Path, *options: str) -> Iterator[Machine]:
    tool = folder / "runpodctl"
    tool.write_text(TOOL, encoding="utf-8")
    tool.chmod(0o755)
    env = {"RUNPOD_POD_ID": "pod1", "SNIPERFACE_UNATTENDED_MIN": "0.02"}
    more = ["--volume", f"{tool}:/usr/local/bin/runpodctl:ro", *options]
    with started(image, folder / "made", env, *more, command=tuple(shlex.split(command()))) as machine:
        yield machine


def test_what_an_image_lacks_is_installed(stock_image: str, tmp_path: Path) -> None:
    """Nothing else is installed. After a restart the container keeps its host key."""
    once = f"[ -e /once ] || dpkg --remove tmux; touch /once; exec {command()}"
    with started(stock_image, tmp_path / "made", command=("bash", "-c", once)) as machine:
        wait_until(lambda: "sniperface ready" in machine.log(), 120)
        assert "sniperface installing tmux\n" in machine.log()
        machine.until_it_answers()
        assert machine.ssh("tmux -V; echo $SHELL").splitlines()[-1] == b"/bin/bash"
        docker("restart", "--time", "5", machine.id)
        wait_until(lambda: machine.log().count("sniperface ready") == 2, 60)
        assert machine.log().count("sniperface installing") == 1
        assert len({line for line in machine.log().splitlines() if line.startswith(HOST_KEY)}) == 1


def test_an_image_that_cannot_start_says_so_and_ends_itself(bare_image: str, tmp_path: Path) -> None:
    """Without a network nothing can be installed. runpodctl, which RunPod puts into each pod, releases the pod."""
    with pod(bare_image, tmp_path, "--network", "none") as machine:
        wait_until(lambda: "runpodctl pod delete pod1" in machine.log(), 60)
        assert "sniperface bad start: the image has no SSH server, and apt-get cannot install one" in machine.log()


def test_an_image_of_ours_under_another_name_starts_its_own_programs(our_image: str, tmp_path: Path) -> None:
    with started(our_image, tmp_path / "made", command=tuple(shlex.split(command()))) as machine:
        machine.until_it_answers()
        assert b".unpacked" not in machine.ssh("ls -A /usr/local/lib/sniperface").split()
        assert machine.ssh("echo $SNIPERFACE_PYTHON").strip() == b"/opt/sniperface/bin/python"
