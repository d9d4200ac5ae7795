"""How often a command asks a provider and reads the records of runs: once, then it passes on what it knows.

The account is emulated, its pod is a real SSH server, and the commands are whole; only the training is a stub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Project
from tests.deploy.support.pods import ProcessPod
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.load import under_load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX: the pod's programs start with /bin/sh"),
]

# Runs `invoke`, and prints on stderr how often its process opened each file of a record and of a target.
COUNTING = """
import collections, json, os, sys
opened = collections.Counter()
def count(event, args):
    if event == "open" and str(args[0]).endswith(("run.json", ".yaml")) and args[1] == "r":
        opened[os.sep.join(str(args[0]).split(os.sep)[-2:])] += 1
sys.addaudithook(count)
from invoke.main import program
sys.argv = ["invoke", *sys.argv[1:]]
code = 0
try:
    program.run(exit=False)
except SystemExit as ended:  # each command ends so
    code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
print(json.dumps(opened), file=sys.stderr)
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # as Python ends, a thread that is left may call the hook, and crash
"""
LIST = {"GET /v2/pods": 1, "GET /v2/clusters": 1}  # a list of all machines of the account
PLAN = {"GET /v2/catalog/gpus": 1, "POST /graphql myself": 1}  # price and memory of the GPU; balance
TRAIN = ("--yes", "--detach", "--set", "train.step_s=0.2", "--set")
# A command, its requests, and how often it reads each record at most.
AGAINST_A_POD: list[tuple[tuple[str, ...], dict[str, int], int]] = [
    (("train", "--dry-run"), {**LIST, **PLAN}, 1),
    # A creation asks for the stock anew, and lists the pods after it had none of the family.
    (
        ("train", *TRAIN, "train.epochs=100"),
        {
            **LIST,
            **PLAN,
            "GET /v2/pods": 2,
            "GET /v2/catalog/gpus": 2,
            "POST /v2/pods": 1,
            "GET /v2/pods/pod0001/logs": 1,
        },
        1,
    ),
    (("status",), LIST, 1),
    (("logs",), LIST, 1),
    (("exec", "--", "true"), {"GET /v2/pods": 1}, 1),
    (("runs",), {"GET /v2/pods": 1}, 1),
    (("ps",), {**LIST, "GET /v2/network-volumes": 1}, 1),
    (("offers",), {"GET /v2/catalog/gpus": 1}, 1),
    (("doctor",), {**LIST, **PLAN, "GET /v2/openapi.json": 1}, 1),
    (("fetch-checkpoint",), LIST, 1),
    (("stop",), LIST, 1),
    # Records are read again under the lock of a launch, and the continued one for its cost; the pods are listed again
    # to choose one.
    (("train", *TRAIN, "train.epochs=100", "--resume", "auto"), {**LIST, **PLAN, "GET /v2/pods": 2}, 3),
    (("status",), LIST, 1),
    # What only a machine has is judged by the newest records: for runs of another laptop, and to download.
    (("down",), {**LIST, "DELETE /v2/pods/pod0001": 1}, 3),
    # A pod that the list lacks is looked for by its name: a folder may have been renamed since.
    (("status",), {**LIST, "GET /v2/pods": 2}, 1),
    (("down",), LIST, 1),
]
WITHOUT_TARGET = ("runs", "ps")


@pytest.fixture
def account(project: Project, tmp_path: Path) -> Iterator[Emulator]:
    """An account whose pods are processes with our image's environment, and a target `far`."""

    def made(pod: Any) -> ProcessPod:
        pod.env["SNIPERFACE_PYTHON"] = sys.executable
        return ProcessPod(pod, tmp_path / "pods", emulator.url)

    emulator = Emulator(pods=made)
    emulator.holds_streams = False
    target = {
        "provider": "runpod", "image": "me/x:cpu-0123456789ab", "gpus": ["NVIDIA A40"], "device": "cpu",
        "root": str(tmp_path / "there"), "stage_to": str(tmp_path / "ram"),
    }  # fmt: skip
    (project.path / "conf" / "deploy" / "far.yaml").write_text(json.dumps(target), encoding="utf-8")
    project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY, "no_proxy": "*"}
    yield emulator
    emulator.close()


def counted(project: Project, *words: str) -> Counter[str]:
    """Run a command. Returns how often it opened each file to read it."""
    where = () if words[0] in WITHOUT_TARGET else ("--on", "far")
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, words[0], *where, *words[1:]], cwd=project.path, env=project.environment,
        capture_output=True, text=True, timeout=under_load(90), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Counter(json.loads(done.stderr.splitlines()[-1]))


def test_a_command_asks_once(project: Project, account: Emulator) -> None:
    """Each command lists the account's machines once, and asks for a single one only where the list is not enough."""
    for words, requests, reads in AGAINST_A_POD:
        before = account.counts()
        opened = counted(project, *words)
        assert dict(account.counts() - before) == requests, words
        records = {name: times for name, times in opened.items() if name.endswith("run.json")}
        assert all(times <= reads for times in records.values()), (words, records)
