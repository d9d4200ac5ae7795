"""Mining from images to pseudo-IDs (embed, search, cluster, judge) by two processes against one, one thread each.

Both processes start once. They mine in turn: both together, then the first alone while the other waits.
"""

from __future__ import annotations

import os
import socket
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import NO_ID, BackboneConfig, MiningConfig
from app.mining.embed import embed
from app.mining.pseudo_ids import find_pseudo_ids
from app.models.embedder import Embedder
from app.models.iresnet import IResNet
from app.runtime.dist import World, any_rank, world
from benchmarks._claims import Claim, in_turn, quick, report, seconds

SIDE, EACH, DIM = 112, 10, 128


def faces(count: int) -> NDArray[np.uint8]:
    """Return images [count, 112, 112, 3]: a coarse pattern per person, noise per image, EACH images per person."""
    rng = np.random.default_rng(0)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for start in range(0, count, EACH):
        pattern = rng.integers(40, 215, (7, 7, 3)).repeat(16, 0).repeat(16, 1)
        noise = rng.integers(-40, 40, (min(EACH, count - start), SIDE, SIDE, 3))
        images[start : start + EACH] = pattern + noise
    return images


def rank(number: int, port: int, is_quick: bool, answer: SimpleQueue[tuple[float, float, float]]) -> None:
    """Run one process; the first puts images a second together, alone, and the ratio into `answer`."""
    os.environ.update(RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    count, rounds = (300, 1) if is_quick else (3000, 5)
    images, rows = faces(count), np.arange(count)
    torch.manual_seed(0)
    backbone = BackboneConfig(layers=[1, 1, 1, 1], width=16, embedding_dim=DIM)
    net = IResNet(backbone).to(memory_format=torch.channels_last)
    config = MiningConfig(batch_size=64)

    def mine(here: World) -> None:
        shard = embed(Embedder(net, SIDE), images, rows, here, batch_size=config.batch_size, embedding_dim=DIM)
        find_pseudo_ids(shard, np.full(count, NO_ID), None, config, here, seed=0)

    with world() as here:

        def together() -> float:
            def work() -> None:
                mine(here)
                any_rank(False, here)  # barrier

            any_rank(False, here)  # both are ready
            return count / seconds(work)

        def alone() -> float:
            any_rank(False, here)
            taken = seconds(lambda: mine(World(0, 1, here.device))) if here.is_main else 1.0
            any_rank(False, here)
            return count / taken

        measured = in_turn(together, alone, rounds)
        if here.is_main:
            answer.put(measured)


def main() -> int:
    is_quick = quick()
    os.environ["OMP_NUM_THREADS"] = "1"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    processes = [context.Process(target=rank, args=(number, port, is_quick, answer)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        return 1
    two, one, ratio = answer.get()
    claim = Claim("mining end to end, 2 processes against 1", two, one, "images/s", ratio, 1.6)
    return report("mining_scaling", [claim], is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
