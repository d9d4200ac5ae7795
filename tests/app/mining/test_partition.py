"""Lists divided among processes: each gets those that it requests, and no process ever receives those of all images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.mining.partition import Lists, dealt
from app.runtime.dist import World
from tests.app.support.ranks import run_ranks

ALONE = World(0, 1, torch.device("cpu"))


def test_one_process_copies_nothing() -> None:
    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    own, place = Lists(ids, 4, ALONE).near(slice(1, 2), np.full(4, 3, np.int32), np.zeros(4, np.int32))
    assert own is ids
    assert len(place) == 0, "an image's list is in its own row"
    assert dealt(ids, ids[:, 0] % 1, ALONE) is ids


EXCHANGE = """
import numpy as np, torch
from app.mining.partition import Lists, dealt, requested
from app.runtime import dist

rng = np.random.default_rng(0)
N, K = 101, 4
everyone = rng.integers(0, N, (N, K)).astype(np.int32)
group, degree = rng.integers(-1, 2, N).astype(np.int32), rng.integers(0, K + 1, N).astype(np.int32)
with dist.world() as here:
    own = dist.share(everyone, here)
    for wanted in (np.arange(N), np.arange(here.rank, N, 7), np.arange(0), np.arange(3 if here.is_main else 0)):
        wanted = wanted.astype(np.int32)
        assert (requested(wanted, own, N, here) == everyone[wanted]).all()

    lists, first = Lists(own, N, here), dist.share(np.arange(N), here)[0]
    for part in (slice(0, 10), slice(10, 20), slice(20, 20)):
        at_hand, place = lists.near(part, degree, group)
        near = {
            j
            for i in np.arange(N)[first:][part]
            for j in everyone[i, : degree[i]].tolist()
            if group[i] == group[j] >= 0
        }
        assert len(at_hand) == len(near)
        assert all((at_hand[place[j]] == everyone[j]).all() for j in near)

    whole = dealt(own, own[:, 0] % here.size, here)
    assert (whole == everyone[everyone[:, 0] % here.size == here.rank]).all(), "in the order of one process"
    assert len(dealt(own[:0], own[:0, 0], here)) == 0
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_get_the_lists_that_they_request(size: int) -> None:
    run_ranks(EXCHANGE, size)


BORDERS = """
import numpy as np, torch
import torch.distributed as group
from app.config import MiningConfig
from app.mining import cluster, clustered, look_alikes, order, pseudo_ids, separation
from app.mining import small_clusters, strangers, whole_clusters
from app.runtime import dist
from tests.app.support.planted import planted

cluster.ROWS_A_ROUND = 50  # small pieces, as of few lists among many
order.COLUMNS_AT_ONCE = 8
whole_clusters.ROWS_AT_ONCE, look_alikes.POOL = 200, 64
clustered.FLOOR_SAMPLE, clustered.RECALL_SAMPLE = 64, 16
separation.SAMPLE, separation.NUMBERS_AT_ONCE = 64, 4096
small_clusters.BINS = strangers.LIKENESS_BINS = 32
received = []

def counting(name):
    collective = getattr(group, name)
    def counted(*arguments, **options):
        output = arguments[0]
        received.append(sum(each.nbytes for each in (output if isinstance(output, list) else [output])))
        return collective(*arguments, **options)
    setattr(group, name, counted)

for name in ("all_gather", "all_to_all_single", "all_reduce", "broadcast"):
    counting(name)
bank, _ = planted([60] * 10 + [9] * 150 + [1] * 50, 32, 0.4)
bank = bank[np.random.default_rng(0).permutation(len(bank))]
N, K = len(bank), 20
with dist.world() as here:
    shard = torch.from_numpy(dist.share(bank, here))
    for method in ("overlap", "parity"):
        config = MiningConfig(method=method, placement="ring", neighbours=K, min_recall=0, max_cluster=30)
        received.clear()
        found, report = pseudo_ids.find_pseudo_ids(shard, np.full(N, -1), None, config, here, seed=0)
        assert report.cut > 0 and report.count > 100, report
        assert len(received) > 20
        assert max(received) < N * K * 4 / 2, (method, max(received), N * K * 4)
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_no_process_receives_all_lists_at_once(size: int) -> None:
    run_ranks(BORDERS, size)
