"""An offset that all embeddings share is found and subtracted; a mean that few people or directions cause is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.gate import Report, pair_f
from app.mining.offset import common_cosine, without_offset
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime.dist import World
from benchmarks._planted import make
from tests.app.support.planted import planted, unit

ALONE = World(0, 1, torch.device("cpu"))


def raised(rows: NDArray[np.float32], common: float) -> NDArray[np.float32]:
    """Return unit `rows` [*, D] with an offset, so that strangers have the cosine `common`."""
    direction = unit(np.random.default_rng(5).normal(size=(1, rows.shape[1])))
    return unit((1 - common) ** 0.5 * rows + common**0.5 * direction)


def find(bank: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[float, Report]:
    nothing = np.full(len(bank), NO_ID, np.int64)
    found, report = find_pseudo_ids(torch.from_numpy(bank), nothing, labels, MiningConfig(), ALONE, seed=0)
    return pair_f(found, labels), report


@pytest.mark.parametrize("common", [0.2, 0.8, 0.999])
def test_the_offset_is_what_strangers_have_in_common(common: float) -> None:
    bank = raised(planted([5] * 200, 128, 0.8)[0], common)
    assert common_cosine(bank) == pytest.approx(common, abs=0.02)
    rest, found = without_offset(torch.from_numpy(bank), bank, ALONE)
    assert found == common_cosine(bank)
    assert torch.linalg.vector_norm(rest, dim=1).numpy() == pytest.approx(np.ones(len(bank)), abs=1e-6)
    assert common_cosine(rest.numpy()) == 0


@pytest.mark.parametrize(
    "bank",
    [
        planted([1] * 400, 128, 1.0)[0],
        planted([100] * 5, 128, 0.5)[0],  # one pair of five shows one person
        planted([2000] * 2 + [3] * 100, 256, 0.8)[0],  # two people have nearly all images
        raised(planted([3] * 200, 8, 0.8)[0], 0.1),  # in few directions strangers differ more than that
        np.eye(1, 8, dtype=np.float32).repeat(50, 0),  # all are equal: nothing would be left
        np.eye(1, 8, dtype=np.float32),
        np.zeros((0, 8), np.float32),
    ],
)
def test_what_is_no_offset_stays(bank: NDArray[np.float32]) -> None:
    rows = torch.from_numpy(bank)
    assert without_offset(rows, bank, ALONE) == (rows, 0.0)


def test_a_row_without_a_direction_stays_without_and_the_others_do_not_depend_on_how_many_there_are() -> None:
    bank = raised(planted([5] * 200, 64, 0.8)[0], 0.8)
    sample, rows = bank[:500], torch.from_numpy(np.tile(bank, (20, 1)))
    rows[3], rows[4], rows[5] = torch.nan, 0, torch.inf
    rest, _ = without_offset(rows, sample, ALONE)
    assert not rest[3:6].any()
    assert torch.equal(rest[1000:2000], rest[-1000:])
    assert (rest[1000:2000] * rest[1000:2000]).sum(1).numpy() == pytest.approx(np.ones(1000), abs=1e-6)


@pytest.mark.parametrize("kind", ["pairs", "cone", "everything"])
def test_people_are_found_as_well_above_an_offset(kind: str) -> None:
    bank, labels = make(kind, 1200, "medium", 128, 2)
    without, report = find(bank, labels)
    assert report.offset == 0
    above, report = find(raised(bank, 0.8), labels)
    assert report.offset == pytest.approx(0.8, abs=0.02)
    assert above == pytest.approx(without, abs=0.05)
    assert above > 0.8
