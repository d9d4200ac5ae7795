"""The plan describes a pod's image and its environment before anything costs money."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from deploy.providers.lambda_cloud import LambdaCloud, LambdaProvider
from deploy.providers.runpod.start import image_of
from deploy.specs.plan import make
from deploy.specs.request import Request
from deploy.specs.settings import RunPod, Target
from deploy.specs.shards import Shard
from deploy.ui.plan_table import plan_rows
from tests.deploy.specs.test_plan import FACTS, SETTINGS

STOCK = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404, without the training environment"
EACH = "made on the machine, again on each new machine, because no volume keeps it: about 3 GB of packages to download"
BLOCKS = "a fraction takes whole blocks of 8192"
ONCE = "made on the machine, kept on the volume: about 3 GB of packages to download"


@pytest.mark.parametrize(
    ("options", "phases", "image", "environment"),
    [
        ({}, (), STOCK, f"{EACH}; paid minutes, unmeasured"),
        ({"volume": "vol1"}, (), STOCK, f"{ONCE}; paid minutes, unmeasured"),
        ({"volume": "vol1"}, ({"code": 240.0},), STOCK, f"{ONCE}; the time is in parts, under code"),
        ({"image": "me/sniperface"}, (), "me/sniperface, with the training environment", None),
    ],
)
def test_the_plan_names_the_image_and_what_its_environment_takes(
    options: dict[str, Any], phases: tuple[dict[str, float], ...], image: str, environment: str | None
) -> None:
    pods = RunPod(gpus=("NVIDIA A40",), **options)
    target = Target("runpod", "runpod", "/workspace/sniperface", options=pods)
    facts = dataclasses.replace(FACTS, hardware=None, phases=phases, image=image_of(pods, target.root))
    plan = make(dataclasses.replace(SETTINGS, target=target), Request(), facts, tryout=True)
    rows = dict(plan_rows(plan))
    assert "shards" not in rows
    assert (rows["image"], rows.get("environment")) == (image, environment)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/a?b/C# dev/images.npy", "/home/a?b/C# dev/images.npy"),
        ("https://me:word@host/images.npy?sig=1#x", "https://host/images.npy"),
    ],
)
def test_the_plan_shows_a_path_as_it_is_and_an_address_without_secrets(path: str, told: str) -> None:
    facts = dataclasses.replace(FACTS, data_path=path, data=dataclasses.replace(FACTS.data, path=path))
    plan = make(SETTINGS, Request(), facts, tryout=True)
    assert dict(plan_rows(plan))["data"].endswith(f"read in place from {told}")
    checked = dataclasses.replace(plan, data=dataclasses.replace(plan.data, rows=None, where="url"))
    assert told in dict(plan_rows(checked))["data"]


def test_other_targets_have_no_image() -> None:
    rows = dict(plan_rows(make(SETTINGS, Request(), FACTS, tryout=True)))
    assert "image" not in rows
    assert "release" not in rows


def test_the_plan_says_that_a_machine_cannot_end_itself() -> None:
    target = Target("lambda", "lambda", "~/sniperface", options=LambdaCloud())
    settings = dataclasses.replace(SETTINGS, target=target)
    facts = dataclasses.replace(FACTS, hardware=None, image=LambdaProvider(settings).image())
    plan = make(settings, Request(), facts, tryout=True)
    rows = dict(plan_rows(plan))
    assert plan.limits.release == "laptop"
    assert "cannot end itself: it bills until a command on this computer does" in rows["release"]
    assert rows["image"] == "Lambda Stack, without the training environment"


def test_the_plan_tells_what_each_machine_gets_of_divided_images() -> None:
    divided = dataclasses.replace(FACTS, data=dataclasses.replace(FACTS.data, shard=Shard(0, 4), bytes=3 << 20))
    rows = dict(plan_rows(make(SETTINGS, Request(), divided, tryout=False)))
    assert rows["shards"] == "each of 4 machines reads its own part of the images: 3.0 MiB at most"


@pytest.mark.parametrize(
    ("fraction", "rows", "whole", "block", "told"),
    [
        (
            0.1,
            300,
            300,
            8192,
            "0.1, but 300 of 300 images: a fraction takes whole blocks of 8192; --set data.block_size=3",
        ),
        (
            0.01,
            8192,
            20_000,
            8192,
            "0.01, but 8192 of 20000 images: a fraction takes whole blocks of 8192; --set data.",
        ),
        (0.1, 30, 300, 30, "0.1"),
        (0.01, 8192 * 5, 3_800_000, 8192, "0.01"),
        (1.0, 300, 300, 8192, "1"),
        (0.5, 0, 0, 0, "0.5"),
    ],
)
def test_the_plan_tells_what_whole_blocks_come_to(
    fraction: float, rows: int, whole: int, block: int, told: str
) -> None:
    data = dataclasses.replace(FACTS.data, train_rows=rows, whole_rows=whole, block_rows=block, dataset_id=None)
    plan = make(SETTINGS, Request(fraction=fraction), dataclasses.replace(FACTS, data=data), tryout=True)
    shown = dict(plan_rows(plan))["fraction"]
    assert shown.startswith(told)
    assert ("," in shown) == ("," in told)
    plan = dataclasses.replace(plan, data=dataclasses.replace(data, dataset_id="abc"))
    assert "block_size" not in dict(plan_rows(plan))["fraction"]


@pytest.mark.parametrize(
    ("search", "images", "row"),
    [
        (
            "auto",
            1_200_000,
            "9 searches among 1,200,000 images, all pairs are compared: 2.6 h of one core, or 3.7 s of one GPU (not "
            "measured) each",
        ),
        (
            "auto",
            42_500_000,
            "9 searches among 42,500,000 images, near cells are compared (ivf): 11 days of one core, or 5.4 min of one "
            "GPU (not measured) each",
        ),
        ("exact", 300, None),
    ],
)
def test_the_plan_names_the_search_of_mining_and_how_long_one_takes(search: str, images: int, row: str | None) -> None:
    """The times are those of the table in docs/mining.md."""
    config = {**FACTS.config, "mining": {"start_epoch": 2, "every_epochs": 2, "search": search}}
    data = dataclasses.replace(FACTS.data, train_rows=images)
    plan = make(SETTINGS, Request(), dataclasses.replace(FACTS, config=config, data=data), tryout=True)
    assert dict(plan_rows(plan)).get("mining") == row
    supervised = dataclasses.replace(FACTS, config={**config, "recipe": {"name": "supervised"}}, data=data)
    assert make(SETTINGS, Request(), supervised, tryout=True).search is None
