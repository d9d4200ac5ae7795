"""No command writes a secret anywhere. The test plants secrets, runs commands, and searches every byte on both sides.

It searches files, output, environments, command lines, and the records of the engine and the provider. The machines
are real containers; only the training is a stub, which prints its secrets.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.base.limits import Limits
from tests.deploy.conftest import Project, end_tmux, wait_until
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import Emulator
from tests.support.emulators.runpod_pods import Container
from tests.support.files import contents
from tests.support.images.engine import docker

pytestmark = pytest.mark.slow
ROOT = "/workspace/sniperface"
GIVEN = {  # given to a run by the target's `secrets`
    "WANDB_API_KEY": "planted-wandb-11aa",
    "AWS_ACCESS_KEY_ID": "planted-access-22bb",
    "AWS_SECRET_ACCESS_KEY": "planted/s3+cret=33cc",
    "REGISTRY_PASSWORD": "planted 'registry' \"pass\" $44dd",
}
KEPT = {"RUNPOD_API_KEY": "rpa_planted0account0key55ee"}  # kept on the laptop
PLANTED = {**GIVEN, **KEPT}
# The copies fail at the machine itself: no planted key is sent to a stranger, and no name server's patience counts.
STORE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
ENDLESS = ("--set", "train.step_s=0.2", "--set", "train.epochs=500")


@dataclass
class Site:
    """A project with a target, and all output of its commands."""

    project: Project
    target: str
    emulator: Emulator | None = None
    said: list[str] = field(default_factory=list)

    def invoke(self, *words: str, code: int = 0) -> str:
        done = self.project.invoke(words[0], "--on", self.target, *words[1:], code=code)
        self.said += [done.stdout, done.stderr]
        return done.stdout + done.stderr

    def json(self, *words: str) -> Any:
        done = self.project.invoke(words[0], "--on", self.target, *words[1:], "--json")
        self.said += [done.stdout, done.stderr]
        return json.loads(done.stdout)

    @property
    def container(self) -> str:
        if self.emulator is None:
            (machine,) = self.project.json("ps", code=1)  # RunPod does not answer to the planted key
            return str(machine["machine"])
        machine = self.emulator.account.all()[0].machine
        assert isinstance(machine, Container)
        return machine.id


@pytest.fixture(params=["docker", "runpod"])
def site(request: pytest.FixtureRequest, project: Project, our_image: str) -> Iterator[Site]:
    project.path = project.path.rename(project.path.with_name(f"p{uuid.uuid4().hex[:8]}"))
    home = project.path.parent / "home"
    home.mkdir()
    project.env |= {**PLANTED, **STORE, "HOME": str(home)}
    told = {"root": ROOT, "stage_to": "/dev/shm", "max_hours": 50, "sync_to": "s3://faces/x"}
    told["secrets"] = [*GIVEN, *STORE]
    with ExitStack() as stack:
        made = Site(project, request.param)
        if request.param == "docker":
            target = {"provider": "docker", "image": our_image}
        else:
            target = {"provider": "runpod", "image": "me/sniperface:1", "gpus": ["NVIDIA RTX A4500"]}
            target["device"] = "cpu"  # there is no GPU behind an emulated pod
            made.emulator = Emulator(pods="docker", image=our_image)
            stack.callback(made.emulator.close)
            made.emulator.keys = {KEPT["RUNPOD_API_KEY"]}
            project.env["RUNPOD_API_BASE_URL"] = made.emulator.url
        (project.path / "conf" / "deploy" / f"{request.param}.yaml").write_text(json.dumps({**target, **told}))
        yield made
        project.invoke("down", "--on", request.param, "--anyway")  # the planted key is of no account


def test_no_secret_is_written_anywhere(site: Site) -> None:
    """Run the commands, a job that prints its secrets, a stop, a job whose error quotes a secret, and a release."""
    refused = site.invoke("train", "--dry-run", "--set", f"run.note={GIVEN['WANDB_API_KEY']}", code=2)
    assert "--set run.note holds the value of WANDB_API_KEY" in refused
    site.invoke("train", "--dry-run")
    site.invoke("deploy")
    run_id = site.json("train", "--detach", "--yes", "--set", "train.manner=leaks", *ENDLESS)["run_id"]
    name, folder = site.container, f"{ROOT}/runs/{run_id}"
    wait_until(lambda: "rank 0 step 3" in docker("exec", name, "cat", f"{folder}/train.log"))
    look_at_processes(name, folder)
    for words in (["status"], ["logs"], ["status", "--json"], ["fetch-checkpoint"], ["ps"], ["runs"], ["doctor"]):
        wait_until(lambda: "epoch_000.json" in docker("exec", name, "ls", f"{folder}/checkpoints"))
        on = [] if words[0] in ("ps", "runs") else ["--on", site.target]
        done = site.project.invoke(*words, *on, code=int(words == ["ps"] and site.target == "docker"))
        site.said += [done.stdout, done.stderr]
    assert "using WANDB_API_KEY=[secret]\n" in site.invoke("logs")
    site.said.append(attached(site))
    site.invoke("stop")
    failed = site.invoke("train", "--yes", "--set", "train.manner=leaks_and_fails", code=1)
    assert "RuntimeError: refused: [secret]" in failed
    assert (site.json("status")["state"], "failed" in site.invoke("status")) == ("failed", True)
    # A copy gives way to every other process, and tries again for half a minute: the guard's own limit is the measure.
    wait_until(lambda: guard(name)["last_copy"], Limits().sync_limit_s)
    assert guard(name)["secrets"] == sorted([*GIVEN, *STORE])
    look_at_machine(name)
    site.invoke("down")
    for words in site.said:
        assert planted_in(words.encode()) == []
    look_at_laptop(site.project.path.parent)
    if site.emulator:
        told = [part for each in site.emulator.exchanges for part in (each.body, each.answer, repr(each).encode())]
        assert planted_in(b"\n".join(told)) == []
        assert breaches(site.emulator) == []


def planted_in(data: bytes) -> list[str]:
    """Return the names of the secrets in these bytes, in plain text or as JSON strings."""
    spelt = {name: {value.encode(), json.dumps(value)[1:-1].encode()} for name, value in PLANTED.items()}
    return [name for name, forms in spelt.items() if any(form in data for form in forms)]


def guard(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(docker("exec", name, "cat", f"{ROOT}/guard-status.json"))
    return told


def look_at_processes(name: str, folder: str) -> None:
    """While the job runs, only its processes and the copies to the bucket have the secrets in their environment.

    No command line contains a secret. No environment contains the account's key.
    """
    script = """
import json, os
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        stat = open(f"/proc/{pid}/stat").read()
        words, env = (open(f"/proc/{pid}/{name}", "rb").read() for name in ("cmdline", "environ"))
    except OSError:
        continue
    found[pid] = [int(stat.rsplit(")", 1)[1].split()[1]), words.hex(), env.hex()]
print(json.dumps(found))
"""
    status = json.loads(docker("exec", name, "cat", f"{folder}/status.json"))
    found = json.loads(docker("exec", name, "python3", "-c", script))
    jobs = {int(status["job_pid"])}
    while more := {int(pid) for pid, (parent, _, _) in found.items() if parent in jobs} - jobs:
        jobs |= more
    having = {int(pid) for pid, (_, _, env) in found.items() if planted_in(bytes.fromhex(env))}
    assert having
    copies = {int(pid) for pid, (_, words, _) in found.items() if b"deploy.pod.backup." in bytes.fromhex(words)}
    assert having <= jobs | copies
    for _, words, env in found.values():
        assert planted_in(bytes.fromhex(words)) == []
        assert KEPT["RUNPOD_API_KEY"].encode() not in bytes.fromhex(env)
    assert len(found) > len(jobs) + 2  # process 1, sshd, the supervisor and the guard were looked at, too


def attached(site: Site) -> str:
    """Return the text of a terminal that is attached to the job."""
    if shutil.which("tmux") is None or shutil.which("ssh") is None:
        pytest.skip("needs tmux and ssh: apt-get install tmux openssh-client")
    terminal = ["tmux", "-L", f"{site.project.socket}-t", "-f", "/dev/null"]
    command = [sys.executable, "-m", "invoke", "attach", "--on", site.target]

    def screen() -> str:
        shown = subprocess.run(
            [*terminal, "capture-pane", "-p", "-S", "-"], capture_output=True, text=True, check=False
        )
        return shown.stdout

    try:
        subprocess.run(
            [*terminal, "new-session", "-d", "-x", "150", "-y", "40", "-c", str(site.project.path), *command],
            check=True, env=site.project.environment,
        )  # fmt: skip
        wait_until(lambda: "rank 0 step" in screen(), 60)
        listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, check=True).stdout
        assert planted_in(listed) == []
        return screen()
    finally:
        end_tmux(f"{site.project.socket}-t")


def look_at_machine(name: str) -> None:
    """Search every file, the memory file systems, the console and the engine's records. No file of secrets is left.

    Files as they are in the image are not searched: it is older than the secrets.
    """
    changed = [line[2:] for line in docker("diff", name).splitlines() if not line.startswith("D ")]
    assert any(path.startswith(f"{ROOT}/runs/") for path in changed)
    # Some files go while they are read.
    files = ["exec", "-i", name, "tar", "-c", "--no-recursion", "--ignore-failed-read", "--null", "--files-from=-"]
    for what in (files, ["logs", name], ["inspect", name]):
        done = subprocess.run(["docker", *what], input="\0".join(changed).encode(), capture_output=True)
        assert planted_in(done.stdout + done.stderr) == [], what
        assert (done.returncode, len(done.stdout) > 100) == (0, True), done.stderr
    grep = ["docker", "exec", "-i", name, "grep", "-rlFf", "-", "/dev/shm", "/run", "/tmp", ROOT]
    done = subprocess.run(grep, input="\n".join(PLANTED.values()).encode(), capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert docker("exec", name, "find", ROOT, "-name", "*secrets*.env") == ""


def look_at_laptop(folder: Path) -> None:
    """Search the project with its notes and runs, and the home folder."""
    looked = 0
    for file, content in contents(folder):
        assert planted_in(content) == [], file
        looked += 1
    assert looked > 50
