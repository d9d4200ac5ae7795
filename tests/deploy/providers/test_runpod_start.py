"""The image and the start command of a pod, and the request for it as RunPod's specification requires it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.providers.runpod import start
from deploy.providers.runpod.create import disk_gib
from deploy.providers.runpod.start import STOCK, image_of, is_ours, start_of
from deploy.specs.settings import RunPod, load
from tests.deploy.conftest import SOURCE
from tests.support.emulators import contract
from tests.support.emulators.rig import Rig, of

BODY_BYTES = 102_400  # limit of a request in the specification of API v2


def parts() -> dict[str, bytes]:
    """Parse the start command as a shell does. Returns name -> content of the files that it writes."""
    bash, c, script = shlex.split(start.command())
    assert (bash, c) == ("bash", "-c")
    found = re.findall(r"echo ([A-Za-z0-9+/=]+) \| base64 -d >([^\s;]+)", script)
    return {Path(path).name: base64.b64decode(text) for text, path in found}


@pytest.mark.parametrize(
    ("image", "ours"),
    [
        (None, False),
        (STOCK, False),
        ("nvidia/cuda:13.0.2-base-ubuntu24.04", False),
        ("me/sniperface:1", False),  # may be ours; the start command detects that on the pod
        ("me/image@sha256:" + "0" * 64, False),
        ("me/sniperface", True),
        ("registry.example:5000/me/sniperface", True),
        ("me/sniperface:cuda-0123456789ab", True),
        ("me/sniperface:cpu-0123456789ab@sha256:" + "0" * 64, True),
    ],
)
def test_every_image_but_ours_gets_a_start_command(image: str | None, ours: bool) -> None:
    options = RunPod(gpus=("NVIDIA A40",), image=image)
    made = start_of(options, SOURCE)
    assert made.args == ("" if ours else start.command())
    assert made.image.startswith(image or STOCK)
    assert is_ours(made.image) is ours  # also after the tag is added
    assert image_of(options, "/workspace/sniperface").has_environment is ours


def test_the_request_for_the_stock_image_is_in_the_contract(v2: Rig) -> None:
    """`rig` compares each request with the specification at its end."""
    machine = v2.acquire(image=None)
    [sent] = [each for each in v2.emulator.exchanges if each.what == "POST /v2/pods"]
    body = json.loads(sent.body)
    assert contract.problems_of_body("POST", "/v2/pods", body) == []
    assert (body["image"], body["args"]) == (STOCK, start.command())
    assert len(sent.body) < BODY_BYTES / 2
    assert machine.python == "auto"
    assert of(v2, machine.name).args == start.command()


def test_runpods_own_package_sends_the_same_command(sdk: Rig) -> None:
    """The package pastes the command into a query without escaping, so quotes and backslashes would break it."""
    machine = sdk.acquire(image=None)
    pod = of(sdk, machine.name)
    assert (pod.image, pod.args) == (STOCK, start.command())
    assert not set(start.command()) & set('"\\$\r\n')


def test_our_image_starts_by_itself(both: Rig) -> None:
    machine = both.acquire(image="me/sniperface:cuda-0123456789ab")
    assert of(both, machine.name).args == ""


def test_a_pod_of_a_cluster_has_no_switch_as_it_cannot_end_alone(v2: Rig) -> None:
    v2.acquire_all(2, image=None)
    pods = v2.emulator.account.all()
    assert {pod.args for pod in pods} == {start.command()}
    assert not any("SNIPERFACE_UNATTENDED_MIN" in pod.env for pod in pods)


def test_the_archive_is_what_our_image_has(tmp_path: Path) -> None:
    """The archive has the same files as our image. Its programs need no other file of this project."""
    with zipfile.ZipFile(io.BytesIO(parts()["start.zip"])) as archive:
        archive.extractall(tmp_path)
    dockerfile = (SOURCE / "Dockerfile").read_text(encoding="utf-8")
    for name in start.FILES.values():
        assert name in dockerfile, name
    look = "import sys, runpy; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[1], run_name='not main')\n"
    look += "import deploy.pod.watchdog.release as r; print(r.__file__)"
    if sys.platform != "win32":
        argv = [sys.executable, "-I", "-c", look, str(tmp_path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(tmp_path))


def test_the_script_is_bash(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("needs bash: run on Linux or macOS")
    script = tmp_path / "start.sh"
    script.write_bytes(parts()["start.sh"])
    assert b"\r" not in script.read_bytes()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_shipped_target_needs_no_registry() -> None:
    """A new user has an API key and nothing else."""
    settings = load(SOURCE, "runpod", {})
    assert isinstance(settings.target.options, RunPod)
    assert settings.target.options.image is None
    assert start_of(settings.target.options, SOURCE).image == STOCK


@pytest.mark.parametrize(
    ("volume", "root", "kept"),
    [
        (None, "/workspace/sniperface", False),
        ("vol1", "/workspace/sniperface", True),
        ("vol1", "/workspace", True),
        ("vol1", "/workspaces/sniperface", False),
    ],
)
def test_the_environment_is_kept_where_the_root_is_on_the_volume(volume: str | None, root: str, kept: bool) -> None:
    assert image_of(RunPod(volume=volume), root).is_kept is kept


@pytest.mark.parametrize(
    ("options", "gib", "disk"),
    [
        (RunPod(), 0, 40),
        (RunPod(), 5, 40),
        (RunPod(), 40.2, 71),
        (RunPod(disk_gib=20), 40.2, 20),  # the user's word
        (RunPod(volume="vol1"), 40.2, 40),  # the images are on the volume
    ],
)
def test_the_disk_has_room_for_the_images(options: RunPod, gib: float, disk: int) -> None:
    assert disk_gib(options, "/workspace/sniperface", int(gib * (1 << 30))) == disk


def test_a_run_with_large_images_requests_a_larger_disk(both: Rig) -> None:
    spec = dataclasses.replace(both.spec(), data_bytes=43 * 10**9)
    assert of(both, both.provider().acquire(spec).name).disk == 71
    assert of(both, both.acquire("r2").name).disk == 71  # the same pod
