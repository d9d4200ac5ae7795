"""Defects of the system that this one replaces must not return; each has a test.

The numbers are those in the list of the defects.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from app.config import NO_ID, Config, MiningConfig, load
from app.data.dataset import Dataset, chances, epoch_order, open_configured
from app.data.positives import Positives
from app.errors import WrongUse
from app.mining.pseudo_ids import find_pseudo_ids
from app.mining.refresh import Interlude
from app.recipes import Batch, SelfSupervised
from app.recipes.update import batches
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World, share
from tests.app.support.nearest import nearest
from tests.app.support.training import TINY, events, run

Opened = tuple[Config, Dataset]


@pytest.fixture
def opened(small_data: Path) -> Opened:
    config = load([*TINY, f"data.binary_cache_path={small_data}"])
    return config, open_configured(config.data)


@pytest.fixture
def recipe(opened: Opened, alone: World) -> SelfSupervised:
    return SelfSupervised(*opened, alone)


def batch_of(recipe: SelfSupervised, rows: np.ndarray, seed: int = 0) -> Batch:
    images = torch.from_numpy(recipe.data.images[rows])
    draws = recipe.augment.draw(len(rows), torch.Generator().manual_seed(seed))
    return Batch(images, rows, torch.from_numpy(recipe.targets(rows)), draws, seed)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_1_neighbours_have_the_numbers_of_the_whole_data_set() -> None:
    """Each shard numbered its images from 0, so only the first third of the images had true neighbours."""
    rng = np.random.default_rng(0)
    bank = unit(np.tile(rng.normal(size=(30, 16)), (3, 1)) + 0.05 * rng.normal(size=(90, 16)))  # a match in each third
    for rank in range(3):
        queries = share(np.arange(90), World(rank, 3, torch.device("cpu")))
        ids, _ = nearest(bank, queries, 2, threads=1)
        expected = [sorted({row % 30, row % 30 + 30, row % 30 + 60} - {row}) for row in queries.tolist()]
        assert np.sort(ids, 1).tolist() == expected


def test_2_pseudo_ids_reach_the_loss(recipe: SelfSupervised) -> None:
    """The mask of equal pseudo-IDs was dead code."""
    recipe.queue.push(torch.nn.functional.normalize(torch.randn(24, 16), dim=1), torch.arange(8, 32), torch.ones(()))
    recipe.begin_epoch(0, None)
    rows = np.arange(4)
    before, without = recipe.loss(batch_of(recipe, recipe.pick(rows, chances(0, 4, seed=0, epoch=0))))
    recipe.pseudo_ids.ids[:20] = 5
    after, with_ids = recipe.loss(batch_of(recipe, recipe.pick(rows, chances(0, 4, seed=0, epoch=0))))
    assert float(with_ids["masked_share"]) > float(without["masked_share"])
    assert float(after.detach()) < float(before.detach())


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_3_an_epoch_sees_every_image_once_with_any_number_of_processes(opened: Opened, processes: int) -> None:
    """The count was divided by the number of processes twice: with 3 processes an epoch had a third of the images."""
    config, data = opened
    seen: list[int] = []
    for rank in range(processes):
        here = World(rank, processes, torch.device("cpu"))
        recipe = SelfSupervised(config, data, World(0, 1, here.device))
        recipe.begin_epoch(0, None)
        for batch in batches(config, recipe, data, TrainState(), here):
            seen += batch.rows[: len(batch.rows) // 2].tolist()
    assert set(seen) == set(data.train_rows.tolist())
    assert len(seen) - len(data.train_rows) < config.train.batch.size * processes


def test_4_every_epoch_has_an_order_and_partners_of_its_own() -> None:
    """Every epoch started from the same seed, so it used the same first third of the blocks."""
    rows = np.arange(1000)
    orders = [epoch_order(rows, seed=1, epoch=epoch) for epoch in range(5)]
    assert len({order.tobytes() for order in orders}) == 5
    assert len(set(np.concatenate([order[:300] for order in orders]).tolist())) > 700
    assert not np.array_equal(chances(0, 9, seed=1, epoch=0), chances(0, 9, seed=1, epoch=1))


@pytest.mark.parametrize("method", ["parity", "overlap"])
def test_5_a_person_with_more_images_than_a_cluster_may_have_is_split_not_lost(method: str, alone: World) -> None:
    """With a limit of 50 and people of 72 images, a perfect clustering lost 59 % of all images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60, dtype=np.int32), [72] * 10 + [5] * 50)
    bank = unit(rng.normal(size=(60, 64))[labels] + 0.35 * rng.normal(size=(len(labels), 64)))
    config = MiningConfig(method=method, neighbours=20, max_cluster=50, mutual_top=20, max_largest_share=0.5)
    nothing = np.full(len(labels), NO_ID, np.int64)
    found, report = find_pseudo_ids(torch.from_numpy(bank), nothing, labels, config, alone, seed=0)
    assert report.largest <= 50
    assert (found[labels < 10] != NO_ID).mean() > 0.9
    assert report.purity == 1.0


def test_6_a_fraction_means_the_same_images_everywhere(small_data: Path, tmp_path: Path, alone: World) -> None:
    """The fraction shortened the count, but pairs came from the whole array and labels covered its beginning."""
    seen = run(small_data, tmp_path, alone, "data.data_fraction=0.75")
    config = load([f"data.binary_cache_path={small_data}", "data.data_fraction=0.75"])
    rows = set(open_configured(config.data).train_rows.tolist())
    saved = torch.load(tmp_path / "checkpoints" / "epoch_002.pt", weights_only=True)["modules"]
    assert len(rows) == 24 == next(e for e in seen if e["event"] == "start")["train_rows"]
    assert set(saved["queue.rows"].tolist()) <= rows
    labelled = set(torch.nonzero(saved["pseudo_ids.ids"] != NO_ID).flatten().tolist())
    assert labelled
    assert labelled <= rows


def test_7_batch_statistics_do_not_tell_which_key_belongs_to_which_query(recipe: SelfSupervised) -> None:
    """Keys went through BN in the batch of their queries. Here a key does not depend on other images of its batch."""
    recipe.modules.train()
    images = torch.randn(6, 3, 32, 32)
    others = torch.cat([images[:1], 5 * torch.randn(5, 3, 32, 32)])
    assert torch.allclose(recipe.momentum(images)[0][0], recipe.momentum(others)[0][0], atol=1e-6)


def test_8_the_queue_is_not_sent_around_in_every_step(recipe: SelfSupervised) -> None:
    """33.5 MB were broadcast before each forward pass. Here the wrapped module has no queue and no momentum encoder."""
    wrapped = {name for name, _ in recipe.parallel.named_buffers()} | {n for n, _ in recipe.parallel.named_parameters()}
    assert not any("queue" in name or "momentum" in name or "ids" in name for name in wrapped)


def test_9_new_pseudo_ids_leave_the_queue_as_it_is(small_data: Path, tmp_path: Path, alone: World) -> None:
    """Each process filled the queue with its own noise, so negatives were noise for thousands of steps."""
    run(small_data, tmp_path, alone, "train.epochs=1", "mining.start_epoch=5")
    with_queue = torch.load(tmp_path / "checkpoints" / "epoch_000.pt", weights_only=True)["modules"]
    config = load([*TINY, f"data.binary_cache_path={small_data}", "mining.start_epoch=1"])
    recipe = SelfSupervised(config, open_configured(config.data), alone)
    recipe.modules.load_state_dict(with_queue)
    report = recipe.begin_epoch(1, Interlude(tmp_path / "mining", lambda: False, lambda *_: None))
    assert report is not None
    assert report["accepted"]
    assert torch.equal(recipe.queue.keys, with_queue["queue.keys"])
    assert torch.equal(recipe.queue.rows, with_queue["queue.rows"])


def test_10_the_cost_of_positives_does_not_grow_with_the_number_of_clusters() -> None:
    """The cost was images times clusters. Here 110,000 clusters cost less than 20 times as much as 11."""

    def seconds(clusters: int) -> float:
        ids = np.random.default_rng(0).integers(0, clusters, 300_000)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            Positives(ids)
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(110_000) < 20 * seconds(11)


def test_11_nothing_hangs_on_keys_that_are_not_read_or_on_a_service(
    small_data: Path, tmp_path: Path, alone: World
) -> None:
    """Unread keys were accepted silently; checkpoints went to a temporary folder, then to W&B or nowhere."""
    with pytest.raises(WrongUse, match="no option"):
        load(["+pseudo.nprobe=64"])
    run(small_data, tmp_path, alone, "train.epochs=1")
    described = json.loads((tmp_path / "checkpoints" / "epoch_000.json").read_text())
    saved = torch.load(tmp_path / "checkpoints" / described["file"], weights_only=True)
    assert saved.keys() == {"state", "modules", "tables", "optimizer", "scaler", "facts"}
    assert {"queue.keys", "queue.rows", "pseudo_ids.ids"} <= saved["modules"].keys()
    assert events(tmp_path)[-1]["reason"] == "done"
