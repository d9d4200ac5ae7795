"""`offers`: what can be rented now, for what price, and whether the training fits."""

from __future__ import annotations

import pytest

from deploy.commands.offers import judged
from deploy.providers.runpod.api import Offer
from deploy.providers.runpod.candidates import rentals
from deploy.specs.facts import DataFacts
from deploy.specs.machine import Rental
from deploy.specs.settings import RunPod, Target
from tests.deploy.conftest import Project
from tests.deploy.specs.test_memory import CONFIG, TABLE
from tests.support.emulators.runpod import Emulator

POD = Target("runpod", "runpod", "/workspace/x")
IMAGES = DataFacts("faces", "/faces/images.npy", 1000, 1000, 1 << 20, None)


def test_what_is_in_stock_is_listed_by_price(project: Project, emulator: Emulator) -> None:
    """GPUs of the target without stock or above its limit stay in the list, last, with the reason."""
    emulator.account.gpus["NVIDIA A40"].stock = {}
    rows = project.json("offers")
    assert [(row["gpu"], row["usd_per_hour"], row["in_target"], row["note"]) for row in rows] == [
        ("NVIDIA RTX A4500", 0.25, True, None),
        ("NVIDIA RTX A5000", 0.27, True, None),
        ("NVIDIA A40", 0.4, True, "no stock"),
    ]
    assert (rows[0]["memory_gib"], rows[0]["data_centers"]) == (20, "EU-RO-1, US-KS-2")
    shown = project.invoke("offers").stdout
    assert "NVIDIA RTX A4500" in shown
    assert emulator.account.pods == {}


def test_the_catalogue_is_judged_by_the_file_of_the_target() -> None:
    options = RunPod(gpus=("A", "B"), gpu_count=2, data_centers=("EU",), max_usd_per_hour=2.0)
    offers = [
        Offer("A", 0.5, 8, True, {"EU": True, "US": True}, 48),
        Offer("B", 0.5, 8, True, {"EU": False, "US": True}, 48),
        Offer("C", 1.5, 8, True, {"EU": True}, 80),
        Offer("D", 0.1, 1, True, {"EU": True}, None),
    ]
    found = rentals(options, offers, None)
    assert [(each.gpu, each.usd_per_hour, each.data_centers, each.why_not) for each in found] == [
        ("A", 1.0, ("EU",), ""),
        ("B", 1.0, (), "no stock in EU"),
        ("C", 3.0, ("EU",), "3.00 USD an hour is above max_usd_per_hour: 2"),
        ("D", 0.2, ("EU",), "its largest machine has 1 GPU, fewer than gpu_count: 2"),
    ]
    assert rentals(options, offers, "US")[1].data_centers == ("US",)


@pytest.mark.parametrize(
    ("memory_gib", "fits", "note"),
    [
        (80.0, True, None),
        (20.0, False, "too little memory: fits with train.batch.size=192 train.batch.grad_accum_steps=2"),
        (None, None, None),
    ],
)
def test_memory_is_that_of_this_training(memory_gib: float | None, fits: bool | None, note: str | None) -> None:
    row = judged(POD, Rental("NVIDIA RTX A4500", 1, memory_gib, 0.25, (), True, ""), CONFIG, TABLE, IMAGES)
    assert (row["fits"], row["note"]) == (fits, note)
    assert (row["needed_gib"] is None) == (memory_gib is None)
