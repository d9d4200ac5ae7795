"""`--on runpod` with only an API key: a pod of a stock image, which contains none of our code.

RunPod's API is emulated; the pods are real containers with an SSH server, Python and git. pip makes the environment
there, on a volume, from the lists with hashes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.clones import BARE, SMALL, ending, make_clone, wait_for
from tests.e2e.test_pods import Site
from tests.support.emulators.rig import breaches
from tests.support.emulators.runpod import KEY, Emulator
from tests.support.emulators.runpod_pods import gateway
from tests.support.faults import Fault
from tests.support.load import under_load

pytestmark = pytest.mark.slow
WORDS = ("--on", "runpod", "--yes", *(word for setting in (*SMALL, *BARE) for word in ("--set", setting)))
MAKING = "making the training environment"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    from tests.support.images import NoDocker
    from tests.support.images.stock import stock_image

    try:
        emulator = Emulator(pods="docker", image=stock_image(), host=gateway(), boot_s=2)
    except NoDocker as reason:
        pytest.skip(str(reason))
    with contextlib.closing(emulator):
        clone = make_clone(tmp_path)
        clone.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY}
        volume = tmp_path / "volume"
        volume.mkdir()
        emulator.volume("vol1", "EU-SE-1", volume)
        site = Site(clone, emulator, volume)
        site.target(image=None, volume="vol1", max_hours=48)
        yield site
        assert breaches(emulator) == []


def told(site: Site, *words: str) -> str:
    """Run a command and return all its output. It may be slow: pip unpacks gigabytes, and the machine may be busy."""
    with ending(site.clone.start(*words)) as process:
        out, err = process.communicate(timeout=under_load(900))
    assert process.returncode == 0, out + err
    return out + err


def test_a_key_is_enough_and_a_second_pod_finds_the_environment(site: Site) -> None:
    """The first pod trains until its checkpoint is on the laptop. The second pod has the same volume."""
    plan = site.clone.json("train", *WORDS, "--dry-run")
    assert (plan["image"]["has_environment"], plan["image"]["is_kept"]) == (False, True)
    assert MAKING in told(site, "train", *WORDS, "--set", "train.epochs=2")
    [made] = (site.root / "environments").glob("*/ready.json")
    stamp = made.stat().st_mtime_ns
    assert site.guard()["state"] == "guarding"
    site.clone.invoke("down", "--on", "runpod")
    assert site.emulator.names == []
    assert len(list((site.clone.path / "runs").glob("*/checkpoints/epoch_001.pt"))) == 1
    assert MAKING not in told(site, "deploy", "--on", "runpod")
    assert made.stat().st_mtime_ns == stamp
    assert [pod.id for pod in site.emulator.account.all()] == ["pod0002"]
    site.clone.invoke("down", "--on", "runpod")


def test_a_pod_whose_laptop_dies_after_the_rental_releases_itself(site: Site, fault: Fault) -> None:
    """The laptop is killed before it has logged in, so no guard runs; the pod's own key releases it."""
    site.target(image=None, unattended_min=0.1, max_hours=48)
    with ending(site.clone.start("train", *WORDS)) as laptop:
        wait_for(lambda: any(each.what == "POST /v2/pods" and each.status == 201 for each in site.emulator.exchanges))
        laptop.kill()
    fault.strikes()
    wait_for(lambda: site.emulator.names == [])
    assert [each.what for each in site.emulator.exchanges if each.what.startswith("DELETE")] == [
        f"DELETE /v2/pods/{site.emulator.account.ended[0].id}"
    ]
    fault.told(lambda: site.clone.json("status", "--on", "runpod")["state"] == "failed")
    site.bills(fault)
    fault.leaves_out(checkpoints="nothing was trained")
