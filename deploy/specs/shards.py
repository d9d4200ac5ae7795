"""PURE: shards of a data set. With `data.shards=by_node` each machine of a run gets its own part of the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`."""

    number: int = 0
    of: int = 1

    @property
    def mark(self) -> str:
        """Suffix of the folder of a staged shard. Machines may share a disk, so each shard has its own folder."""
        return "" if self.of == 1 else f"-shard{self.number}of{self.of}"


WHOLE = Shard()


def count(config: Mapping[str, Any], nodes: int) -> int:
    """Return the number of shards of a run on `nodes` machines."""
    return nodes if (config.get("data") or {}).get("shards") == "by_node" else 1


def deal(blocks: Sequence[T], shard: Shard) -> Sequence[T]:
    """Return the blocks of a shard. app/data/shards.py applies the same rule; tests/test_contracts.py compares them."""
    return blocks[shard.number :: shard.of]


def file_blocks(rows: int, held_out_rows: int, block_rows: int, shard: Shard) -> list[int]:
    """Return the blocks in the file of a shard: its training blocks, and every block with held-out rows."""
    train_rows = rows - held_out_rows
    held_out = range(train_rows // block_rows, -(-rows // block_rows)) if held_out_rows else range(0)
    return sorted({*deal(range(-(-train_rows // block_rows)), shard), *held_out})
