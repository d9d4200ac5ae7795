"""Shards: which machine reads which images, and what does not fit together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.config import NO_ID, load
from app.data.dataset import Dataset, chances, choose_blocks, epoch_order, open_configured, open_dataset
from app.data.divide import divide
from app.data.loader import feed
from app.data.shards import Part, Shard, file_blocks, file_rows, settle
from app.errors import WrongUse
from tests.app.support.shards import write_shard

NAMES = ["machine 0 (a)", "machine 1 (b)", "machine 2 (c)"]


@given(rows=st.integers(2, 400), held=st.integers(0, 60), block=st.integers(1, 40), of=st.integers(1, 5))
def test_the_files_of_all_shards_hold_each_training_image_once_and_each_held_out_one_everywhere(
    rows: int, held: int, block: int, of: int
) -> None:
    held = min(held, rows - 1) // block * block
    train = (rows - held) // block * block
    if not train:
        return
    rows = train + held
    files = [file_blocks(rows, held, block, number, of) for number in range(of)]
    trained = sorted(each for file in files for each in file if each * block < train)
    assert trained == list(range(train // block))
    assert all(
        [each for each in file if each * block >= train] == [*range(train // block, rows // block)] for file in files
    )
    assert [file_rows(rows, held, block, number, of) for number in range(of)] == [len(file) * block for file in files]


def test_a_block_of_training_and_held_out_images_is_in_each_file() -> None:
    assert [file_blocks(10, 3, 4, number, 2) for number in (0, 1)] == [[0, 1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("held", "numbers"),
    [
        ([None, None, None], [0, 1, 2]),
        ([Part(2, 3), Part(0, 3), Part(1, 3)], [2, 0, 1]),
        ([None, Part(0, 3), None], [1, 0, 2]),
        ([None, Part(1, 3), Part(0, 3)], [2, 1, 0]),
    ],
)
def test_a_machine_has_the_shard_of_its_file_or_the_next_free_one(held: list[Part | None], numbers: list[int]) -> None:
    assert settle(held, NAMES) == numbers


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([Part(0, 2), None, None], "machine 0 (a) has shard 0 of 2 of the images, and this run has 3 machines"),
        ([Part(0, 3), None, Part(0, 3)], "machine 0 (a) and machine 2 (c) both have shard 0 of 3"),
        ([Part(1, 2)], "has shard 1 of 2 of the images, and this run has 1 machine; stage the images again for 1"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(held: list[Part | None], words: str) -> None:
    with pytest.raises(WrongUse) as refused:
        settle(held, NAMES[: len(held)])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def shard(number: int, of_rank: tuple[int, ...], blocks: int, block_rows: int) -> Shard:
    of = len({*of_rank})
    return Shard(number, of, of_rank, np.arange(blocks) % of, block_rows)


@given(blocks=st.integers(3, 20), block_rows=st.integers(1, 9), each=st.integers(1, 3), of=st.integers(1, 3))
def test_each_process_embeds_images_of_its_machine_and_all_together_each_image_once(
    blocks: int, block_rows: int, each: int, of: int
) -> None:
    of_rank = tuple(number for number in range(of) for _ in range(each))
    rows = np.arange(blocks * block_rows)[::2]  # as if half of the images had no label
    its = shard(0, of_rank, blocks, block_rows)
    places = its.places(rows)
    assert np.array_equal(np.sort(np.concatenate(places)), np.arange(len(rows)))
    for rank, part in enumerate(places):
        assert np.isin(rows[part], shard(of_rank[rank], of_rank, blocks, block_rows).own(rows)).all()
        assert (np.diff(part) > 0).all()
        assert its.place_of(rank) == rank % each


def test_pseudo_ids_of_other_machines_are_hidden() -> None:
    ids = np.arange(10)
    assert shard(1, (0, 1), 5, 2).only_own(ids).tolist() == [-1, -1, 2, 3, -1, -1, 6, 7, -1, -1]
    assert NO_ID == -1


def test_each_shard_has_an_order_and_chances_of_its_own() -> None:
    rows = np.arange(50)
    orders = [epoch_order(rows, seed=1, epoch=2, shard=number) for number in (0, 1, 2)]
    assert len({order.tobytes() for order in orders}) == 3
    assert np.array_equal(orders[1], epoch_order(rows, seed=1, epoch=2, shard=1))
    assert len({chances(7, 4, seed=1, epoch=2, shard=number).tobytes() for number in (0, 1, 2)}) == 3


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("number", [0, 1])
def test_a_shards_file_is_read_by_the_rows_of_the_whole(
    small_data: Path, tmp_path: Path, fraction: float, number: int
) -> None:
    path = write_shard(small_data, tmp_path, number, 2, fraction)
    data = open_dataset(path, labels_path=None, fraction=fraction, block_rows=1)
    whole = open_dataset(small_data, labels_path=None, fraction=fraction, block_rows=1)
    assert data.part == Part(number, 2)
    assert data.dataset_id == whole.dataset_id
    assert len(data.train_rows) == len(whole.train_rows)
    assert np.array_equal(data.labels[data.train_rows], whole.labels[whole.train_rows])
    blocks = np.array(choose_blocks(32, 4, fraction))
    mine = np.repeat(np.arange(len(blocks)) % 2 == number, 4)
    assert np.array_equal(data.images[data.train_rows[mine]], whole.images[whole.train_rows[mine]])
    assert np.array_equal(data.images[data.held_out_rows], whole.images[whole.held_out_rows])
    for rows, (_, batch) in zip(
        (data.held_out_rows, data.train_rows[mine]),
        feed(data.images, [data.held_out_rows, data.train_rows[mine]], torch.device("cpu")),
        strict=True,
    ):
        assert np.array_equal(batch.numpy(), data.images[rows])
    with pytest.raises(IndexError, match="is on another machine"):
        data.images[data.train_rows[~mine][:1]]
    with pytest.raises(IndexError, match="of"):
        data.images[np.array([len(data.images)])]


def test_a_shards_file_is_refused_where_it_does_not_fit(small_data: Path, tmp_path: Path) -> None:
    path = write_shard(small_data, tmp_path, 1, 2)
    words = [f"data.binary_cache_path={path}"]
    with pytest.raises(WrongUse, match=r"holds shard 1 of 2 .* give data\.shards=by_node, or the whole file"):
        open_configured(load(words).data)
    with pytest.raises(WrongUse, match=r"data\.data_fraction=1"):
        open_configured(load([*words, "data.shards=by_node", "data.data_fraction=0.5"]).data)
    manifest = json.loads(path.with_name("manifest.json").read_text())
    for wrong in ({"number": 2}, {"number": -1}, {"of": 3}, {"rows": 40}, {"rows": "48"}):
        changed = {**manifest, "shard": {**manifest["shard"], **wrong}}
        path.with_name("manifest.json").write_text(json.dumps(changed))
        with pytest.raises(WrongUse, match=r"numbers that are out of range|not an image manifest"):
            open_configured(load([*words, "data.shards=by_node"]).data)


def test_one_machine_reads_the_whole(small_data: Path, alone, tmp_path: Path) -> None:
    config = load([f"data.binary_cache_path={small_data}", "data.shards=by_node"]).data
    data = open_configured(config)
    assert divide(data, config, alone) is data
    assert np.array_equal(data.own_rows, data.train_rows)
    shards_file = dataclasses.replace(config, binary_cache_path=str(write_shard(small_data, tmp_path, 0, 2)))
    part: Dataset = open_configured(shards_file)
    with pytest.raises(WrongUse, match="and this run has 1 machine;"):
        divide(part, shards_file, alone)
