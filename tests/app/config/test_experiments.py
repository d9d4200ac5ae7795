"""The project's own experiments fit the data that they name; the headline experiment has its users' settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from app.config import CONF, NO_ID, Config
from app.config.schema import leaves
from app.mining.gate import pair_f
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import ALONE
from tests.app.config.published import PUBLISHED, configured


@dataclass(frozen=True)
class Named:
    """The data set of an experiment, and the number of processes that it is made for."""

    images: int
    people: int
    each: tuple[int, int] | None  # fewest and most images of a person; None: they vary, and no check needs them
    processes: int
    updates: int  # per epoch


EXPERIMENTS = {  # the project's own; test_published_experiments.py checks the others
    "drawn": Named(9_000, 1_800, (5, 5), 1, 71),
    "sniperface": Named(1_219_995, 109_999, (5, 72), 3, 1_589),
    "tryout": Named(300, 30, (10, 10), 1, 10),
    "tryout_supervised": Named(300, 30, (10, 10), 1, 10),
    "tryout_distill": Named(300, 30, (10, 10), 1, 10),
}
SELF_SUPERVISED = ["drawn", "sniperface", "tryout"]

USERS = {  # settings of the users of `sniperface`, except their clustering (mining.method=parity)
    "recipe.moco": {"momentum": 0.999, "temperature": 0.05, "margin": 0.15, "queue_size": 65536, "projection_dim": 128},
    "recipe.positives": {"epochs": [0, 5, 10, 20, 35], "probability": [0.0, 0.3, 0.6, 0.85, 0.9]},
    "recipe.positives.min_same_image": 0.15,
    "mining": {"start_epoch": 2, "every_epochs": 2, "mutual_top": 5, "similarity": 0.6, "min_cluster": 2},
    "train.epochs": 75,
    "train.batch": {"size": 128, "grad_accum_steps": 2},
    "train.optimizer": {"lr": 0.03, "nesterov": True, "momentum": 0.9, "weight_decay": 5e-4, "clip_grad_norm": 5},
    "train.lr_schedule": {"name": "multistep", "milestones": [20, 40, 60], "gamma": 0.5},
    "train.lr_schedule.warmup": {"epochs": 2, "start_lr": 0.003},
    "train.checkpoint.keep": 10,
}


def update_size(name: str) -> int:
    batch = configured(name).train.batch
    return batch.size * batch.grad_accum_steps * EXPERIMENTS[name].processes


def test_these_learn_without_labels() -> None:
    assert [name for name in EXPERIMENTS if configured(name).recipe.name == "self_supervised"] == SELF_SUPERVISED


def test_each_experiment_names_its_data_here() -> None:
    assert {*EXPERIMENTS, *PUBLISHED} == {file.stem for file in (CONF / "experiment").glob("*.yaml")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiments_first_lines_say_of_its_data_is_what_it_was_checked_against(name: str) -> None:
    data, file = EXPERIMENTS[name], CONF / "experiment" / f"{name}.yaml"
    said = " ".join(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert f"{data.images:,}" in said
    if name != "sniperface":  # its first lines say 10,000 and 100,000 people
        assert f"{data.people:,} people" in said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_steps_and_schedule_fit_the_data(name: str) -> None:
    train, data = configured(name).train, EXPERIMENTS[name]
    assert math.ceil(data.images / update_size(name)) == data.updates
    assert data.updates >= 10, "too few updates an epoch for a schedule by epochs"
    assert train.lr_schedule.warmup.epochs < train.epochs / 5
    if train.lr_schedule.name == "multistep":
        assert max(train.lr_schedule.milestones) < train.epochs
    assert (train.lr_schedule.warmup.start_lr or 0) < train.optimizer.lr


@pytest.mark.parametrize("name", SELF_SUPERVISED)
def test_mining_can_find_the_people_of_the_data(name: str) -> None:
    config, data = configured(name), EXPERIMENTS[name]
    mining, moco = config.mining, config.recipe.moco
    assert data.each is not None
    fewest, most = data.each
    assert mining.min_cluster <= fewest
    assert most < mining.max_cluster, "a person with this many images would be cut into pieces"
    assert mining.neighbours >= min(most, 32) - 1, "a list shorter than a person shows too little of it"
    assert mining.max_largest_share > most / data.images
    # Pseudo-IDs, once found, mask the other images of the query's person in the queue.
    assert moco.queue_size < data.images
    assert moco.queue_size >= update_size(name)
    assert moco.momentum ** (data.updates * config.train.epochs) < 0.9, "the momentum encoder would stay untrained"
    positives = config.recipe.positives
    assert max(positives.epochs) < config.train.epochs
    assert positives.epochs[[p > 0 for p in positives.probability].index(True)] >= mining.start_epoch


def test_the_headline_experiment_has_the_settings_of_its_users() -> None:
    has(configured("sniperface"), USERS)


def has(config: Config, expected: dict[str, Any]) -> None:
    actual = dict(leaves(config.as_dict()))
    for prefix, value in expected.items():
        for key, number in leaves(value, f"{prefix}.") if isinstance(value, dict) else [(prefix, value)]:
            assert actual[key] == number, key


@pytest.mark.parametrize("name", ["sniperface"])
@pytest.mark.parametrize("noise", [0.8, 1.15])
def test_its_mining_finds_people_of_the_size_that_the_data_has(name: str, noise: float) -> None:
    """It finds planted people in the data's mix: 20 of 72 images and 200 of 5, together 2,440 images."""
    rng = np.random.default_rng(3)
    sizes = ([72] * 10 + [5] * 100) * 2
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)[rng.permutation(sum(sizes))]
    centres = rng.normal(size=(len(sizes), 256))
    spread = rng.normal(size=(len(labels), 256))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (centres, spread)]
    embeddings = unit[0][labels] + noise * unit[1]
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    found, report = find_pseudo_ids(
        torch.from_numpy(embeddings), np.full(len(labels), NO_ID), labels, configured(name).mining, ALONE, seed=0
    )
    assert report.accepted
    assert pair_f(found, labels) > 0.98
    assert np.bincount(found[found >= 0]).max() == 72
