"""images.npy: refused files, fractions, the order of an epoch, and the positives of an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import NO_ID
from app.data.dataset import chances, choose_blocks, epoch_order, open_dataset, rows_of_blocks
from app.data.loader import feed
from app.data.positives import Positives
from app.errors import WrongUse


def save(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "images.npy", array)
    return folder / "images.npy"


def opened(path: Path, fraction: float = 1.0, labels: Path | None = None):
    return open_dataset(path, labels_path=labels, fraction=fraction, block_rows=8192)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 112, 112, 3), np.float32), "float32"),
        (np.zeros((4, 3, 112, 112), np.uint8), "[4, 3, 112, 112]"),
        (np.zeros((0, 112, 112, 3), np.uint8), "no rows"),
        (np.zeros((4, 112, 112), np.uint8), "[4, 112, 112]"),
        (np.asfortranarray(np.zeros((4, 112, 112, 3), np.uint8)), "Fortran"),
    ],
)
def test_an_array_of_another_kind_is_refused_by_name(tmp_path: Path, array: np.ndarray, words: str) -> None:
    path = save(tmp_path, array)
    with pytest.raises(WrongUse) as raised:
        opened(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert "[N, 112, 112, 3]" in str(raised.value)


def test_a_missing_a_truncated_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"no file .*images\.npy"):
        opened(tmp_path / "images.npy")
    path = save(tmp_path, np.zeros((4, 112, 112, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WrongUse, match=r"not a complete \.npy file"):
        opened(path)
    path.write_bytes(b"not numpy")
    with pytest.raises(WrongUse, match=r"not a complete \.npy file"):
        opened(path)


def test_labels_of_another_length_or_kind_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, np.zeros((4, 112, 112, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(5, np.int32))
    with pytest.raises(WrongUse, match="5 labels for 4 images"):
        opened(path)
    for value, said in ((2**40, "too large"), (-(2**40), f"{-(2**40)}, too small")):
        np.save(tmp_path / "labels.npy", np.array([0, 1, 2, value]))
        with pytest.raises(WrongUse, match=f"{said} for int32"):
            opened(path)
    np.save(tmp_path / "labels.npy", np.zeros(4, np.float32))
    with pytest.raises(WrongUse, match="int32"):
        opened(path)


def test_a_manifest_of_other_images_is_refused(small_data: Path, tmp_path: Path) -> None:
    path = save(tmp_path, np.zeros((4, 112, 112, 3), np.uint8))
    (tmp_path / "manifest.json").write_text(small_data.with_name("manifest.json").read_text())
    with pytest.raises(WrongUse, match="48 rows"):
        opened(path)


def test_held_out_images_are_never_trained_on_and_a_fraction_keeps_all_of_them(small_data: Path) -> None:
    whole, half = opened(small_data), opened(small_data, 0.5)
    assert whole.train_rows.tolist() == list(range(32))
    assert whole.held_out_rows.tolist() == half.held_out_rows.tolist() == list(range(32, 48))
    assert len(half.train_rows) == 16
    assert all(np.bincount(half.train_rows // 4)[half.train_rows // 4] == 4)  # whole blocks


def test_a_staged_part_is_taken_whole_and_only_for_its_own_fraction(small_data: Path, tmp_path: Path) -> None:
    blocks = choose_blocks(32, 4, 0.5)
    rows = np.concatenate([rows_of_blocks(blocks, 4, 32), np.arange(32, 48)])
    path = save(tmp_path, np.load(small_data)[rows])
    np.save(tmp_path / "labels.npy", np.load(small_data.with_name("labels.npy"))[rows])
    manifest = json.loads(small_data.with_name("manifest.json").read_text())
    selection = {"of": manifest["dataset_id"], "fraction": 0.5, "blocks": blocks}
    staged = {**manifest, "rows": len(rows), "selection": selection, "dataset_id": "of the part"}
    (tmp_path / "manifest.json").write_text(json.dumps(staged))
    part, in_place = opened(path, 0.5), opened(small_data, 0.5)
    assert np.array_equal(part.images[part.train_rows], in_place.images[in_place.train_rows])
    assert np.array_equal(part.images[part.held_out_rows], in_place.images[in_place.held_out_rows])
    assert part.dataset_id == in_place.dataset_id
    with pytest.raises(WrongUse, match=r"data\.data_fraction=0\.5"):
        opened(path, 1.0)


@given(rows=st.integers(1, 5000), block=st.integers(1, 300), small=st.floats(0.001, 1), large=st.floats(0.001, 1))
def test_a_fraction_is_whole_blocks_and_grows_by_adding(rows: int, block: int, small: float, large: float) -> None:
    small, large = sorted((small, large))
    few, many = choose_blocks(rows, block, small), choose_blocks(rows, block, large)
    assert set(few) <= set(many)
    assert many == sorted(set(many))
    count = -(-rows // block)
    assert abs(len(many) - large * count) <= 1
    assert len(choose_blocks(rows, block, 1.0)) == count
    assert len(rows_of_blocks(choose_blocks(rows, block, 1.0), block, rows)) == rows


@given(count=st.integers(1, 200), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_row_once_and_its_order_is_a_pure_function(count: int, epoch: int) -> None:
    rows = np.arange(100, 100 + count)
    order = epoch_order(rows, seed=1, epoch=epoch)
    assert np.array_equal(np.sort(order), rows)
    assert np.array_equal(order, epoch_order(rows, seed=1, epoch=epoch))
    assert count < 5 or not np.array_equal(order, epoch_order(rows, seed=1, epoch=epoch + 1))


@given(start=st.integers(0, 10**9), cuts=st.lists(st.integers(0, 40), min_size=1, max_size=5), epoch=st.integers(0, 99))
def test_a_place_has_the_same_chances_whichever_piece_it_lies_in(start: int, cuts: list[int], epoch: int) -> None:
    whole = chances(start, sum(cuts), seed=3, epoch=epoch)
    starts = start + np.cumsum([0, *cuts[:-1]])
    pieces = [chances(int(at), count, seed=3, epoch=epoch) for at, count in zip(starts, cuts, strict=True)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_chances_are_uniform_and_differ_from_place_to_place() -> None:
    drawn = chances(0, 20000, seed=0, epoch=0)
    assert np.allclose(drawn.mean(0), 0.5, atol=0.01)
    assert np.allclose(np.quantile(drawn, [0.1, 0.9]), [0.1, 0.9], atol=0.01)
    assert len(np.unique(drawn)) == drawn.size


@given(ids=st.lists(st.integers(-1, 5), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_a_positive_is_another_image_of_the_cluster_or_the_image_itself(ids: list[int], seed: int) -> None:
    pseudo = np.array(ids)
    rows = np.arange(len(ids))
    always = Positives(pseudo).draw(rows, 1.0, chances(0, len(rows), seed=seed, epoch=0))
    for row, other in zip(rows, always, strict=True):
        if pseudo[row] == NO_ID or (pseudo == pseudo[row]).sum() == 1:
            assert other == row
        else:
            assert other != row
            assert pseudo[other] == pseudo[row]
    assert np.array_equal(Positives(pseudo).draw(rows, 0.0, chances(0, len(rows), seed=seed, epoch=0)), rows)


def test_every_member_of_a_cluster_is_drawn_equally_often() -> None:
    positives = Positives(np.array([7, 0, 7, 7, 0, 7]))
    drawn = positives.draw(np.full(3000, 2), 1.0, chances(0, 3000, seed=0, epoch=0))
    assert np.allclose(np.bincount(drawn, minlength=6) / 3000, [1 / 3, 0, 0, 1 / 3, 0, 1 / 3], atol=0.04)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 9), min_size=0, max_size=12))
def test_the_feed_gives_the_asked_rows_in_order_whatever_the_sizes(sizes: list[int]) -> None:
    images = np.arange(50 * 12, dtype=np.uint16).astype(np.uint8).reshape(50, 2, 2, 3)
    rng = np.random.default_rng(0)
    asked = [rng.integers(0, 50, size) for size in sizes]
    seen = 0
    for rows, (picked, batch) in zip(asked, feed(images, iter(asked), torch.device("cpu")), strict=True):
        assert np.array_equal(rows, picked)
        assert np.array_equal(batch.numpy(), images[rows])
        seen += 1
    assert seen == len(sizes)


def test_the_feed_refuses_a_row_that_is_not_there() -> None:
    images = np.zeros((5, 2, 2, 3), np.uint8)
    with pytest.raises(IndexError):
        list(feed(images, [np.array([5])], torch.device("cpu")))
