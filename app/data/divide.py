"""Divide the images among the machines of a run, once all of them have opened their files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from app.config import DataConfig
from app.data.dataset import Dataset
from app.data.shards import BY_NODE, Shard, settle
from app.errors import WrongUse
from app.runtime.dist import World, from_all

WHOLE = "give data.shards=whole"


def divide(data: Dataset, config: DataConfig, here: World) -> Dataset:
    """Give this machine its shard of the training images, if `data.shards` asks for that and machines are several.

    Called on all ranks. Raises WrongUse, on all of them, if the files, processes or blocks cannot be divided.
    """
    told = from_all((config.shards, data.part), here)
    machines = here.machines or ("machine 0",)
    if {shards for shards, _ in told} != {config.shards}:
        raise WrongUse("the machines have different values of data.shards; give each machine the same command")
    if config.shards != BY_NODE:
        return data
    names = list(dict.fromkeys(machines))
    held = [next(part for name, (_, part) in zip(machines, told, strict=True) if name == each) for each in names]
    numbers = dict(zip(names, settle(held, names), strict=True))
    if len(names) == 1:
        return data
    processes = Counter(machines)
    if len({*processes.values()}) > 1:
        each = ", ".join(f"{count} on {name}" for name, count in processes.items())
        raise WrongUse(
            f"data.shards=by_node needs equally many processes on each machine, and there are {each}; "
            f"start {min(processes.values())} on each, or {WHOLE}"
        )
    owner = np.full(-(-len(data.images) // data.block_rows), -1, np.int64)
    owner[list(data.blocks)] = np.arange(len(data.blocks)) % len(names)
    number = numbers[machines[here.rank]]
    shard = Shard(number, len(names), tuple(numbers[name] for name in machines), owner, data.block_rows)
    counts = np.bincount(owner[data.train_rows // data.block_rows], minlength=len(names))
    if not counts.all():
        without = names[[*numbers.values()].index(int(counts.argmin()))]
        raise WrongUse(
            f"data.shards=by_node leaves {without} without images: {len(data.blocks)} blocks of {data.block_rows} rows "
            f"with {len(data.train_rows)} training images are for {len(names)} machines; {WHOLE}, or fewer machines"
        )
    return replace(data, shard=shard)
