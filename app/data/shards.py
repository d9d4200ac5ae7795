"""Shards: with data.shards=by_node each machine reads its own part of the blocks, and needs no other images.

Rows, labels, classes and pseudo-IDs keep the numbers of the whole data set on every machine. Only images are divided:
block i of the chosen ones belongs to shard i modulo M. Held-out images are on every machine.

Letters: N images, M machines and shards, W processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.config import NO_ID
from app.errors import WrongUse

BY_NODE = "by_node"
Rows = NDArray[np.int64]
T = TypeVar("T")


class Images(Protocol):
    """Images [N, 112, 112, 3] that are read by row."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any: ...


@dataclass(frozen=True)
class Part:
    """What the file of one machine holds: shard `number` of `of`."""

    number: int
    of: int


@dataclass(frozen=True)
class Shard:
    """The training images that this machine reads, and which shard each process reads."""

    number: int
    of: int
    of_rank: tuple[int, ...]  # [W]
    owner: NDArray[np.int64]  # [blocks] shard of each block; -1: not trained on
    block_rows: int

    def own(self, rows: Rows) -> Rows:
        """Return those of `rows` that this machine reads."""
        return rows[self._owners(rows) == self.number]

    def only_own(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return pseudo-IDs [N] with NO_ID for the images of other machines."""
        return np.where(np.repeat(self.owner == self.number, self.block_rows)[: len(ids)], ids, NO_ID)

    def places(self, rows: Rows) -> list[NDArray[np.int64]]:
        """Return for each process the positions in `rows` that it reads, ascending. Each position occurs once."""
        owners, found = self._owners(rows), [np.zeros(0, np.int64)] * len(self.of_rank)
        for number in range(self.of):
            ranks = [rank for rank, its in enumerate(self.of_rank) if its == number]
            pieces = np.array_split(np.flatnonzero(owners == number), len(ranks))
            for rank, piece in zip(ranks, pieces, strict=True):
                found[rank] = piece
        return found

    def place_of(self, rank: int) -> int:
        """Return the place of a process among those that read the same shard."""
        return self.of_rank[:rank].count(self.of_rank[rank])

    def _owners(self, rows: Rows) -> NDArray[np.int64]:
        return self.owner[rows // self.block_rows]


class LocalImages:
    """The images in the file of one shard, by their rows in the whole data set [N, 112, 112, 3]."""

    def __init__(self, images: Images, blocks: Sequence[int], block_rows: int, count: int) -> None:
        self.images, self.block_rows = images, block_rows
        self.shape = (count, *images.shape[1:])
        self.first = np.full(-(-count // block_rows), -1, np.int64)  # row in the file of each block's first image
        self.first[list(blocks)] = np.arange(len(blocks)) * block_rows  # only the last block may be shorter

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        return self.images[self.local(np.asarray(rows))]

    def local(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the file for rows of the data set. Raises IndexError for images of another machine."""
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(self)} images")
        first = self.first[rows // self.block_rows]
        if (first < 0).any():
            raise IndexError(f"image {rows[first < 0].flat[0]} is on another machine")
        return first + rows % self.block_rows


def deal(blocks: Sequence[T], number: int, of: int) -> Sequence[T]:
    """Return the blocks of a shard: every `of`-th of the chosen ones in ascending order.

    deploy/specs/shards.py applies the same rule on the laptop; tests/test_contracts.py compares them.
    """
    return blocks[number::of]


def file_blocks(rows: int, held_out_rows: int, block_rows: int, number: int, of: int) -> list[int]:
    """Return the blocks in the file of a shard: its training blocks, and every block with held-out rows."""
    train_rows = rows - held_out_rows
    held_out = range(train_rows // block_rows, -(-rows // block_rows)) if held_out_rows else range(0)
    return sorted({*deal(range(-(-train_rows // block_rows)), number, of), *held_out})


def file_rows(rows: int, held_out_rows: int, block_rows: int, number: int, of: int) -> int:
    """Return the number of images in the file of a shard."""
    blocks = file_blocks(rows, held_out_rows, block_rows, number, of)
    return sum(min((block + 1) * block_rows, rows) - block * block_rows for block in blocks)


def settle(held: Sequence[Part | None], names: Sequence[str]) -> list[int]:
    """Return the shard of each machine. A machine with the whole file (None) takes the next one that no file holds.

    `held` [M]: what their files hold. `names` [M]: for messages. Raises WrongUse for shards that do not fit together.
    """
    of, owners = len(held), dict[int, str]()
    for part, name in zip(held, names, strict=True):
        if part is None:
            continue
        if part.of != of:
            run = "machine" if of == 1 else "machines"
            raise WrongUse(
                f"{name} has shard {part.number} of {part.of} of the images, and this run has {of} {run}; stage the "
                f"images again for {of}, or start {part.of} machines"
            )
        if part.number in owners:
            raise WrongUse(
                f"{owners[part.number]} and {name} both have shard {part.number} of {of} of the images; stage them "
                "again, a different shard on each machine"
            )
        owners[part.number] = name
    left = iter(number for number in range(of) if number not in owners)
    return [next(left) if part is None else part.number for part in held]
