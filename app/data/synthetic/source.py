"""Procedural faces: any number of people and of photographs per person, drawn from a seed.

For trials and load tests without real photographs. Photograph i of person p depends only on (seed, p, i) and the
variation. So any number of processes can draw blocks in any order, and a larger set begins with the people of a
smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import IMAGE_SHAPE
from app.data.sources.source import Source
from app.data.synthetic.person import draw_person
from app.data.synthetic.portrait import photograph
from app.errors import WrongUse

LOOK = 2  # version of the drawings: raise it when a seed gives other pictures, so that old and new are never mixed
MAX_BLOCK_ROWS = 8192
BLOCKS_WANTED = 100
HELD_OUT_SHARE, HELD_OUT_LEAST = 10, 2  # a tenth of the people, at least two


def synthetic(identities: int, per_identity: int, seed: int = 0, variation_pct: int = 100) -> Source:
    """A source of `identities` people with `per_identity` photographs each, ordered by person.

    `variation_pct`, 0 to 100: how much photographs of one person differ in pose, light, expression, occlusion,
    background and camera. A block holds whole people. The last tenth of the people (at least 2) are held out, so a
    network is measured on people that it was not trained on. Raises WrongUse.
    """
    if identities < 2 * HELD_OUT_LEAST:
        raise WrongUse(f"identities={identities} are too few to train on some and measure on others; give at least 4")
    if per_identity < 2:
        raise WrongUse(f"per_identity={per_identity} makes no pair of one person; give at least per_identity=2")
    if identities * per_identity > np.iinfo(np.int32).max:
        raise WrongUse(f"{identities * per_identity} images are too many for the labels; give identities=100000")
    people = max(1, min(MAX_BLOCK_ROWS // per_identity, identities // BLOCKS_WANTED))
    return Source(
        name="synthetic",
        count=identities * per_identity,
        read=range,
        decode=partial(draw, per_identity=per_identity, seed=seed, variation_pct=variation_pct),
        labels=np.repeat(np.arange(identities, dtype=np.int32), per_identity),
        held_out=max(HELD_OUT_LEAST, round(identities / HELD_OUT_SHARE)) * per_identity,
        block_rows=people * per_identity,
        made_of=f"synthetic {LOOK} seed {seed} of {per_identity} variation {variation_pct}",
    )


def draw(rows: Sequence[int], *, per_identity: int, seed: int, variation_pct: int = 100) -> NDArray[np.uint8]:
    """Draw the photographs of these rows, [n, 112, 112, 3]."""
    images = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)
    person, painted = -1, None
    for place, row in enumerate(rows):
        if painted is None or row // per_identity != person:
            person = row // per_identity
            painted = draw_person(np.random.default_rng([seed, person, 0]))
        rng = np.random.default_rng([seed, person, 1 + row % per_identity])
        planes = photograph(painted, rng, variation_pct / 100)
        for channel in range(3):  # several times faster than a transposed copy
            images[place, ..., channel] = planes[channel]
    return images
