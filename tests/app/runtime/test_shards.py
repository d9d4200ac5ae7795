"""data.shards=by_node on two machines without a common disk: two torchrun agents, each with the file of one shard."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.app.runtime.test_nodes import LIMIT_S, log
from tests.app.support.agents import start_agents
from tests.app.support.ranks import run_ranks
from tests.app.support.shards import write_shard
from tests.app.support.training import assert_equal_bits, events, wait_for

pytestmark = pytest.mark.slow
MINE = ["data.shards=by_node", "train.epochs=3", "mining.min_coverage=0"]

RANK = """
import os, sys
rank = int(os.environ["RANK"])
os.environ["GROUP_RANK"] = str(rank // 2)
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from app.config import load
from app.data.dataset import open_configured
from app.data.same_data import refuse_others
from app.data.divide import divide
from app.errors import WrongUse
from app.mining import exchange
from app.mining.refresh import Interlude, embed_share, refresh
from app.models import build_backbone
from app.recipes import RECIPES
from app.recipes.update import batches
from app.runtime import dist
from app.runtime.checkpoint import TrainState
from tests.app.support.training import TINY
whole_file, folder = sys.argv[1:3]
def opened(path, *words):
    config = load([*TINY, "train.precision=fp32", "train.batch.size=2", "data.shards=by_node", "mining.min_coverage=0",
                   f"data.binary_cache_path={path}", *words])
    return config, open_configured(config.data)
def refusal(work):
    try:
        work()
    except WrongUse as error:
        return str(error)
    raise SystemExit("not refused")
with dist.world() as here:
    machine = here.rank // 2
    held = 1 - machine  # the machine of rank 0 has shard 1: the number of the file counts, not the rank
    config, data = opened(f"{folder}/{held}/images.npy")
    refuse_others([data], here)
    data = divide(data, config.data, here)
    assert (data.shard.number, data.shard.of, data.shard.of_rank) == (held, 2, (1, 1, 0, 0))
    assert data.own_rows.tolist() == [r for r in range(32) if r // 4 % 2 == held]

    # Every image of an epoch is one of this machine; together they are all, once. Positives are of this machine too.
    recipe = RECIPES["self_supervised"](config, data, here)
    recipe.pseudo_ids.ids[:32] = torch.arange(32) % 4
    recipe.begin_epoch(1, None)
    recipe.other_probability = 1.0
    def rows_of(state):
        return [batch.rows for batch in batches(config, recipe, data, state, here)]
    told = rows_of(TrainState(epoch=1))
    assert all(np.isin(rows, data.own_rows).all() for rows in told)
    queries = np.concatenate([rows[:2] for rows in told]).tolist()
    assert sorted(sum(dist.from_all(queries, here), [])) == list(range(32))
    assert any((rows[:2] != rows[2:]).any() for rows in told)
    later = rows_of(TrainState(epoch=1, seen=16))  # resumed after two updates
    assert len(later) == 2 and all(map(np.array_equal, told[2:], later))

    # Embeddings come home in the order of the whole, in pieces of any size.
    z = torch.arange(64.0).reshape(32, 2)
    places = data.shard.places(data.train_rows)
    mine = dist.share(np.arange(32), here)
    for exchange.EXCHANGE_BYTES in (1, 40, 2**26):
        assert torch.equal(exchange.exchanged(z[places[here.rank]], places, here), z[mine])

    # Mining finds the clusters that it finds where each machine has all images.
    net = build_backbone(config.backbone)
    def mined(config, data, at):
        between = Interlude(Path(at), lambda: False, lambda done, total: None)
        shard = embed_share(net, config, data, here, between)
        ids, report = refresh(shard, np.full(len(data.images), -1), config, data, here, between, seed=0,
                              sheet=Path(at) / "sheet.png")
        return shard, ids, report
    torch.manual_seed(0)
    net = build_backbone(config.backbone)
    by_node = mined(config, data, f"{folder}/mined-{machine}")
    config_whole, all_of_it = opened(whole_file, "data.shards=whole")
    assert divide(all_of_it, config_whole.data, here).shard is None
    whole = mined(config_whole, all_of_it, f"{folder}/whole-{machine}")
    assert torch.allclose(by_node[0], whole[0], atol=1e-5)
    assert np.array_equal(by_node[1], whole[1]) and (whole[1] >= 0).any()
    assert (Path(folder) / "mined-0" / "sheet.png").exists()

    # The whole file everywhere: each machine reads its part of it.
    config_disk, on_disk = opened(whole_file)
    on_disk = divide(on_disk, config_disk.data, here)
    assert on_disk.shard.of_rank == (0, 0, 1, 1)
    assert on_disk.own_rows.tolist() == [r for r in range(32) if r // 4 % 2 == machine]

    # What does not fit together is refused on all ranks, with one sentence.
    said = refusal(lambda: divide(opened(f"{folder}/0/images.npy")[1], config.data, here))
    assert "both have shard 0 of 2" in said, said
    own = config_whole.data if here.rank == 3 else config.data
    assert "different values of data.shards" in refusal(lambda: divide(on_disk, own, here))
    few = replace(on_disk, blocks=on_disk.blocks[:1], train_rows=on_disk.train_rows[:4])
    assert "leaves machine 1" in refusal(lambda: divide(few, config.data, here))
    uneven = replace(here, machines=(here.machines[0],) * 3 + here.machines[3:])
    said = refusal(lambda: divide(open_configured(config_disk.data), config.data, uneven))
    assert "3 on machine 0" in said and "start 1 on each" in said, said
    other = replace(data, dataset_id="another") if here.rank == 3 else data
    assert "data set another here" in refusal(lambda: refuse_others([other], here))
    assert "rows per block 8 here" in refusal(
        lambda: refuse_others([replace(data, block_rows=8) if here.rank == 3 else data], here))
print("fine")
"""


def test_four_processes_on_two_machines_read_each_their_shard_and_mine_together(
    small_data: Path, tmp_path: Path
) -> None:
    for number in (0, 1):
        write_shard(small_data, tmp_path / str(number), number, 2)
    run_ranks(RANK, 4, str(small_data), str(tmp_path))
    unlike = np.load(tmp_path / "0" / "images.npy")[:16] != np.load(tmp_path / "1" / "images.npy")[:16]
    assert unlike.any(axis=(1, 2, 3)).all()  # the machines had no training image in common


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals: run this on Linux or macOS")
def test_a_run_on_two_shards_repeats_and_resumes_bit_for_bit(small_data: Path, tmp_path: Path) -> None:
    """The first run is not disturbed, the second is stopped in the middle of an epoch and resumes."""
    data = [write_shard(small_data, tmp_path / f"shard {number}", number, 2) for number in (0, 1)]
    runs = {name: [tmp_path / name / "a", tmp_path / name / "b"] for name in ("whole", "again", "stopped")}
    for name in ("whole", "again"):
        with ExitStack() as stack:
            agents = start_agents(stack, data, runs[name], *MINE)
            assert [agent.wait(LIMIT_S) for agent in agents] == [0, 0], log(runs[name][0])
    own = runs["stopped"][0] / "run"
    with ExitStack() as stack:
        both = start_agents(stack, data, runs["stopped"], *MINE)
        metrics = own / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and '"step": 5,' in metrics.read_text(), both[0])
        for agent in both:
            agent.stdin.close()  # as the supervisor asks to stop
        assert both[0].wait(LIMIT_S) == 0, log(runs["stopped"][0])
    with ExitStack() as stack:
        agents = start_agents(stack, data, runs["stopped"], *MINE, "train.resume=auto")
        assert [agent.wait(LIMIT_S) for agent in agents] == [0, 0]
    starts = [event for event in events(own) if event["event"] == "start"]
    assert [event["shards"] for event in starts] == [2, 2]
    assert starts[1]["resumed_from"] is not None
    final = Path("run") / "checkpoints" / "epoch_002.pt"
    for name in ("again", "stopped"):
        assert_equal_bits(runs["whole"][0] / final, runs[name][0] / final)
    mined = [event for event in events(runs["whole"][0] / "run") if event["event"] == "mining"]
    assert len(mined) == 2
