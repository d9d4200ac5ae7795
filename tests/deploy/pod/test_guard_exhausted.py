"""The guard releases its machine even if a job uses up all processes and the whole disk.

Real containers with a process limit and a small disk; a real HTTP server for the provider's API.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pod.base.folder import Root, RunFolder, write_json
from tests.deploy.conftest import SOURCE, wait_until
from tests.deploy.pod.test_release import KEY, POD, Api
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow
PYTHON = "/opt/sniperface/bin/python"
LIMIT_S = 20.0  # the ceiling, in paid seconds
BOMB = """
import errno, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("filler", "wb", buffering=0) as file:
    while True:
        try:
            file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            break
open("/seen/disk", "w").close()
while True:  # every process of it goes on in this loop
    try:
        os.fork()
    except OSError as error:
        if error.errno == errno.EAGAIN and not os.path.exists("/seen/processes"):
            open("/seen/processes", "w").close()
        time.sleep(0.2)
"""
START = {
    "the job": f"{PYTHON} -m deploy.pod.supervisor /machine/runs/bomb",
    "a process beside it": f"cd /machine/runs/bomb; exec {PYTHON} /setup/bomb.py",  # no supervisor ends this one
}
MACHINE = f"""
cp -r /setup/. /machine/
cd /code
({{start}}) &
exec {PYTHON} -m deploy.pod.guard /machine
"""


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.close()


@pytest.fixture(params=START)
def container(our_image: str, tmp_path: Path, api: Api, request: pytest.FixtureRequest) -> Iterator[None]:
    """A machine with at most 64 processes and 2 MiB of disk, and a program that uses up both."""
    setup, seen = tmp_path / "setup", tmp_path / "seen"
    seen.mkdir()
    folder = RunFolder(setup / "runs" / "bomb")
    machine = Root(Path("/machine"))
    plan = {
        "run_id": "bomb", "attempt": 1, "cwd": "/machine/runs/bomb", "env": {}, "argv": [PYTHON, "/setup/bomb.py"],
        "grace_s": 2, "busy_lock": str(machine.busy_lock), "queue": False, "place": None, "nodes": 1, "processes": 1,
        "limits": {},
    }  # fmt: skip
    write_json(Path(folder.plan), plan)
    (setup / "bomb.py").write_text(BOMB)
    limits = {
        "machine": "sniperface-x", "release": "runpod", "usd_per_hour": 2.0, "max_hours": LIMIT_S / 3600,
        "paid_since": time.time(), "grace_s": 2, "retry_s": 0.5, "poll_s": 0.2,
    }  # fmt: skip
    write_json(Path(Root(setup).guard), limits)
    name = f"exhausted-{uuid.uuid4().hex[:8]}"
    pod = {"RUNPOD_POD_ID": POD, "RUNPOD_API_KEY": KEY, "RUNPOD_API_BASE_URL": api.url, "PYTHONDONTWRITEBYTECODE": "1"}
    script = MACHINE.format(start=START[request.param])
    docker(
        "run", "--detach", "--name", name, "--network", "host", "--init", "--pids-limit", "64",
        *(word for pair in pod.items() for word in ("--env", "=".join(pair))),
        "--volume", f"{SOURCE}:/code:ro", "--volume", f"{setup}:/setup:ro", "--volume", f"{seen}:/seen",
        "--tmpfs", "/machine:size=2m", "--entrypoint", "sh", our_image, "-c", script,
    )  # fmt: skip
    yield
    docker("rm", "--force", "--volumes", name)


@pytest.mark.usefixtures("container")
def test_a_fork_bomb_on_a_full_disk_costs_no_more_than_the_ceiling(api: Api, tmp_path: Path) -> None:
    """When the ceiling is reached, no process or thread can be started and nothing can be written."""
    for what in ("disk", "processes"):
        wait_until(lambda what=what: (tmp_path / "seen" / what).exists(), LIMIT_S)
    assert api.calls == []
    wait_until(lambda: api.calls, LIMIT_S + 90)
    assert api.calls[0][0] == "DELETE"
