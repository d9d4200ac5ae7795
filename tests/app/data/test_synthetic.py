"""Procedural faces: identities depend on the seed alone, and raw pixels barely tell people apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.synthetic.source import draw, synthetic
from app.errors import WrongUse
from app.evaluation.verification import all_pairs, verification_accuracy


def test_a_photograph_depends_on_seed_person_and_number_only() -> None:
    whole = draw(range(12), per_identity=4, seed=1)
    assert whole.shape == (12, 112, 112, 3)
    assert whole.dtype == np.uint8
    assert np.array_equal(draw(range(5, 9), per_identity=4, seed=1), whole[5:9])
    assert np.array_equal(draw([11, 0, 6], per_identity=4, seed=1), whole[[11, 0, 6]])
    # More photographs per person begin with the same ones.
    assert np.array_equal(draw(range(9, 13), per_identity=9, seed=1), whole[4:8])
    assert not np.array_equal(draw(range(4), per_identity=4, seed=2), whole[:4])


def test_a_larger_set_begins_with_the_people_of_a_smaller_one() -> None:
    small, large = synthetic(4, 3, seed=7), synthetic(50, 3, seed=7)
    assert np.array_equal(small.decode(small.read(0, 12)), large.decode(large.read(0, 12)))
    assert small.labels is not None
    assert large.labels is not None
    assert np.array_equal(small.labels, large.labels[:12])


@pytest.fixture(scope="module")
def crowd() -> np.ndarray:
    """8 photographs of each of 25 people."""
    return draw(range(200), per_identity=8, seed=11)


def test_no_two_photographs_are_the_same_and_none_is_black_or_white(crowd: np.ndarray) -> None:
    small = crowd[::3].reshape(67, 14, 8, 14, 8, 3).mean((2, 4)).reshape(67, -1)
    apart = np.abs(small[:, None] - small[None]).mean(-1) + 255 * np.eye(67)
    assert apart.min() > 8
    assert 20 < crowd.mean((1, 2, 3)).min() < crowd.mean((1, 2, 3)).max() < 235


def test_raw_pixels_do_badly(crowd: np.ndarray) -> None:
    pixels = crowd.astype(np.float64) / 127.5 - 1
    flat = (pixels + pixels[:, :, ::-1]).reshape(200, -1)
    # Shorter vectors with the same angles: the square root of the matrix of products.
    values, vectors = np.linalg.eigh(flat @ flat.T)
    short = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    accuracy, _ = verification_accuracy(short, all_pairs(np.repeat(np.arange(25, dtype=np.int32), 8)))
    assert 0.52 < accuracy < 0.75


def test_less_variation_keeps_the_people_and_makes_their_photographs_more_alike() -> None:
    def apart(variation_pct: int) -> float:
        faces = draw(range(40), per_identity=8, seed=11, variation_pct=variation_pct).astype(np.float32)
        return float(np.abs(np.diff(faces.reshape(5, 8, -1), axis=1)).mean())

    assert apart(0) < 0.6 * apart(50) < 0.6 * apart(100)
    assert np.array_equal(draw([3], per_identity=4, seed=1), draw([3], per_identity=4, seed=1, variation_pct=100))


@given(identities=st.integers(4, 3000), per_identity=st.integers(2, 300))
def test_blocks_and_what_is_held_out_are_whole_people(identities: int, per_identity: int) -> None:
    from app.prepare import layout

    source = synthetic(identities, per_identity)
    block_rows, held_out = layout(source, None)
    assert block_rows % per_identity == 0
    assert held_out % per_identity == 0
    assert 2 <= held_out // per_identity < identities
    assert (source.count - held_out) % block_rows == 0
    assert source.count - held_out >= 2 * per_identity
    assert held_out <= source.count * 0.12 + 2 * per_identity


@pytest.mark.parametrize(
    ("identities", "per_identity", "answer"),
    [(0, 20, "at least 4"), (3, 20, "at least 4"), (20, 1, "per_identity=2"), (2**20, 2**20, "identities=100000")],
)
def test_too_few_and_too_many_are_refused(identities: int, per_identity: int, answer: str) -> None:
    with pytest.raises(WrongUse, match=answer):
        synthetic(identities, per_identity)
