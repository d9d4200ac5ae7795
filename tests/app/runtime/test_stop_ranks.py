"""Ranks leave together at any point of mining: with torchrun and real signals, and with counted polls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.mining.cluster import ROWS_A_ROUND, pieces_of
from app.mining.knn import PRODUCTS_A_ROUND, rounds_of
from app.runtime.dist import World
from tests.app.runtime.test_stop import LIMIT_S, ends_soon, started
from tests.app.support.ranks import run_ranks
from tests.app.support.training import PROJECT, wait_for

# Work that takes 15 seconds or more on one core; each rank writes when it begins, and how it ends.
LONG_WORK = """
import sys
import numpy as np, torch
from app.config import MiningConfig
from app.mining.cluster import by_overlap
from app.mining.exchange import first_row
from app.mining.knn import neighbours
from app.runtime import dist
from app.runtime.stop import Interrupted, Stop

what, folder = sys.argv[1:]
stop = Stop().listen()
with dist.world() as here:
    poll = lambda: stop.leave_together(here)
    rng = np.random.default_rng(here.rank)
    def say(word):
        with open(f"{folder}/{here.rank}", "a") as file:
            print(word, file=file)
    try:
        if what == "search":
            shard = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((60_000, 256), np.float32)))
            dist.any_rank(False, here)
            say("began")
            neighbours(shard, 20, here, backend="auto", placement="ring", poll=poll)
        else:
            n, k = 300_000, 32
            lists = rng.integers(0, 2 * n, (n, k)).astype(np.int32)
            cosine = np.sort(rng.random((n, k), np.float32))[:, ::-1].copy()
            small = lists[:50] % 100, cosine[:50]
            # The first call compiles its loops, on a machine where they are new.
            by_overlap(*small, here, MiningConfig(min_overlap=0, max_cluster=9), 0)
            say("began")
            for _ in range(100):
                by_overlap(lists, cosine, here, MiningConfig(min_overlap=0, max_cluster=10**6), 0, poll=poll)
        say("done")
    except Interrupted:
        say("left")
dist.leave(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["search", "clusters"])
def test_ranks_leave_together_inside(what: str, tmp_path: Path) -> None:
    module = tmp_path / "long_work.py"
    module.write_text(f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n" + LONG_WORK)
    said = [tmp_path / "0", tmp_path / "1"]
    words = (str(module), what, str(tmp_path))
    with started(tmp_path / "log", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words) as job:
        wait_for(lambda: all(file.exists() for file in said), job, limit_s=300)  # both load torch, and compile loops
        ends_soon(job, 2 * LIMIT_S)  # torchrun itself polls every second
    assert [file.read_text().split() for file in said] == [["began", "left"]] * 2, (tmp_path / "log").read_text()


POLLS = """
import sys
import numpy as np, torch
from app.config import MiningConfig
from app.mining import cluster, knn
from app.mining.pseudo_ids import find_pseudo_ids
from app.runtime import dist
from app.runtime.stop import Interrupted
from tests.app.support.planted import planted

cluster.ROWS_A_ROUND, knn.PRODUCTS_A_ROUND["cpu"] = 40, 100_000  # many polls
bank, _ = planted([9] * 20, 32, 0.3)
bank[[3, 50, 51, 52]] = 0  # ranks search for unequal numbers of rows
bank[100:120] = bank[100]  # and twice, as there are copies
previous = np.full(len(bank), -1)
with dist.world() as here:
    shard = torch.from_numpy(dist.share(bank, here))
    for method in ("overlap", "parity"):
        for placement in ("replicated", "ring"):
            config = MiningConfig(method=method, placement=placement, neighbours=8, min_recall=0)
            polls = 0
            def count():
                global polls
                polls += 1
            found, _ = find_pseudo_ids(shard, previous, None, config, here, seed=0, poll=count)
            plain, _ = find_pseudo_ids(shard, previous, None, config, here, seed=0)
            assert (found == plain).all()
            assert len(set(dist.from_all(polls, here))) == 1, "ranks poll as often"
            assert polls >= 5, polls
            # Whichever poll is the last: all leave, and can still talk to each other.
            for last in {1, polls // 3, 2 * polls // 3, polls}:
                left = polls = 0
                def leave():
                    global polls
                    polls += 1
                    if dist.any_rank(here.rank == 1 and polls == last, here):
                        raise Interrupted
                try:
                    find_pseudo_ids(shard, previous, None, config, here, seed=0, poll=leave)
                except Interrupted:
                    left = 1
                assert dist.from_all(left, here) == [1] * here.size
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_poll_equally_often_and_may_leave_at_any_poll(size: int) -> None:
    run_ranks(POLLS, size)


@pytest.mark.parametrize("counts", [[0, 0], [1, 0], [7, 6, 6], [400_000] * 3])
@pytest.mark.parametrize("dim", [32, 512])
def test_a_round_of_search_is_short(counts: list[int], dim: int) -> None:
    rounds = rounds_of(counts, torch.zeros(1, dim))
    assert 1 <= rounds <= max(1, *counts)
    a_round = -(-max(counts) // rounds) * sum(counts) * dim
    assert a_round <= max(2 * PRODUCTS_A_ROUND["cpu"], sum(counts) * dim)  # a round has at least one row


@pytest.mark.parametrize("count", [0, 1, 5, ROWS_A_ROUND, 3 * ROWS_A_ROUND + 1, 10 * ROWS_A_ROUND])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_cover_each_share_and_are_as_many_on_each_rank(count: int, size: int) -> None:
    shares = np.array_split(np.arange(count), size)
    pieces = [pieces_of(count, World(rank, size, torch.device("cpu"))) for rank in range(size)]
    assert len({len(each) for each in pieces}) == 1
    for own, each in zip(shares, pieces, strict=True):
        parts = [np.arange(len(own))[piece] for piece in each]
        assert np.concatenate(parts).tolist() == list(range(len(own)))
        assert max(map(len, parts)) <= ROWS_A_ROUND + 1
