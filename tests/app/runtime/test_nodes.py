"""Several machines under torchrun: two agents on two loopback addresses (c10d), each with its own disk.

A disk is a run folder that only one agent gets. torchrun numbers machines in the order of their addresses.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from app.runtime import checkpoint
from app.runtime.folder import RunFolder
from deploy.pod.base import processes
from tests.app.recipes.test_supervised import SUPERVISED, tables
from tests.app.support.agents import start_agents
from tests.app.support.ranks import run_ranks
from tests.app.support.training import assert_equal_bits, events, launch, wait_for
from tests.support.load import under_load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals: run this on Linux or macOS"),
]
LIMIT_S = 180  # for work that takes seconds on an idle computer
OURS = re.compile(r"\[\d\d:\d\d:\d\d\] ")  # how a line of the trainer begins
EPOCHS = 40  # of 4 steps each: long enough to kill an agent during the run
WORDS = [*SUPERVISED, f"train.epochs={EPOCHS}", f"train.eval.every_epochs={EPOCHS}", "train.checkpoint.every_epochs=4"]


def log(disk: Path) -> str:
    return (disk / "train.log").read_text()


def test_machines_without_a_common_disk_train_lose_one_and_go_on_from_what_rank_0_has(
    small_data: Path, tmp_path: Path
) -> None:
    """If an agent dies, both resume and end with the bits of an undisturbed run; then one resumes alone."""
    both, whole, disks = [small_data] * 2, tmp_path / "whole", [tmp_path / "a", tmp_path / "b"]
    with ExitStack() as stack:
        agents = start_agents(stack, both, [whole / "a", whole / "b"], *WORDS)
        assert [agent.wait(under_load(LIMIT_S)) for agent in agents] == [0, 0]
    final = f"epoch_{EPOCHS - 1:03d}"
    own = tmp_path / "a" / "run"

    with ExitStack() as stack:
        first, second = start_agents(stack, both, disks, *WORDS)
        wait_for(lambda: (own / "checkpoints" / "latest").exists(), first)
        processes.kill_tree(second.pid)  # as if its machine lost power
        began = time.monotonic()
        assert first.wait(under_load(LIMIT_S)) != 0
        assert time.monotonic() - began < under_load(60)
    newest = checkpoint.newest(RunFolder(own))
    assert newest is not None
    assert newest.stem < final

    # The other disk gets a checkpoint of another run with a higher number.
    stale = tmp_path / "b" / "run" / "checkpoints"
    stale.mkdir()
    shutil.copy(whole / "a" / "run" / "checkpoints" / f"{final}.pt", stale / "epoch_900.pt")
    described = json.loads((whole / "a" / "run" / "checkpoints" / f"{final}.json").read_text())
    (stale / "epoch_900.json").write_text(json.dumps({**described, "step": 9000, "epoch": 900}))
    with ExitStack() as stack:
        agents = start_agents(stack, both, disks, *WORDS, "train.resume=auto")
        assert [agent.wait(under_load(LIMIT_S)) for agent in agents] == [0, 0]
    resumed = [e for e in events(own) if e["event"] == "start"][-1]
    assert (resumed["resumed_from"], resumed["world_size"]) == (newest.name, 2)
    assert_equal_bits(whole / "a" / "run" / "checkpoints" / f"{final}.pt", own / "checkpoints" / f"{final}.pt")
    expected, found = tables(whole / "a" / "run", f"{final}.pt"), tables(own, f"{final}.pt")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert found["weight"].shape == (8, 32)

    assert sorted(file.name for file in (tmp_path / "b" / "run").iterdir()) == ["checkpoints"]
    assert sorted(file.name for file in stale.iterdir()) == ["epoch_900.json", "epoch_900.pt"]
    said = log(disks[1])
    assert said.count("has rank 1 of 2; rank 0 on machine 0 (") == 2
    # torchrun may add warnings and a trace of its own: by then the machine of the meeting place may have left.
    assert "done after" in [line for line in said.splitlines() if OURS.match(line)][-1]
    assert "epoch 0 (1/" not in said

    more = f"train.epochs={EPOCHS + 1}"
    with launch(small_data, own, *WORDS, more, "train.resume=auto", processes=1, log=disks[0] / "train.log") as alone:
        assert alone.wait(under_load(LIMIT_S)) == 0
    begun = [e for e in events(own) if e["event"] == "start"][-1]
    assert (begun["resumed_from"], begun["world_size"], begun["step"]) == (f"{final}.pt", 1, 4 * EPOCHS)
    assert (events(own)[-1]["reason"], events(own)[-1]["step"]) == ("done", 4 * EPOCHS + 8)


def test_what_one_machine_lacks_ends_all_with_one_sentence(small_data: Path, tmp_path: Path) -> None:
    missing, disks = tmp_path / "images.npy", [tmp_path / "a", tmp_path / "b"]
    with ExitStack() as stack:
        agents = start_agents(stack, [small_data, missing], disks, *WORDS)
        assert all(agent.wait(under_load(LIMIT_S)) != 0 for agent in agents)
    for disk in disks:
        said = [line for line in log(disk).splitlines() if str(missing) in line]
        assert [
            line.startswith(f"machine 1 ({socket.gethostname()}): there is no file {missing};") for line in said
        ] == [True]
    assert not any((disk / "run").exists() for disk in disks)


RANK = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
os.environ["GROUP_RANK"] = os.environ["RANK"]
import torch
from app.config import load
from app.data.same_data import refuse_others
from app.data.dataset import open_configured
from app.errors import WrongUse
from app.mining import kept as keeping
from app.mining.refresh import Interlude, embed_share
from app.models import build_backbone
from app.runtime import dist
from tests.app.support.training import TINY
def refusal(work):
    try:
        work()
    except WrongUse as error:
        return str(error)
    raise SystemExit("not refused")
with dist.world() as here:
    assert here.several_machines and here.first_of_machine and here.own_ranks() == [here.rank]
    channels_last = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    content = {"a": [channels_last, torch.tensor(True)], 0: {"b": torch.zeros(0, 2), "step": torch.tensor(7)}, "c": "d"}
    got = dist.copied_from_main(content if here.is_main else None, here)
    assert torch.equal(got["a"][0], channels_last) and got["a"][0].stride() == channels_last.stride()
    assert bool(got["a"][1]) and got["a"][1].dtype == torch.bool
    assert got[0]["b"].shape == (0, 2) and int(got[0]["step"]) == 7 and got["c"] == "d"
    whole = torch.arange(10.0).reshape(5, 2)
    into = torch.empty([3, 0, 2][here.rank], 2)
    dist.rows_from_main(whole if here.is_main else None, into, here)
    assert torch.equal(into, whole[[0, 3, 3][here.rank]:][:len(into)])
    def refuse(ranks):
        with dist.together(here):
            if here.rank in ranks:
                raise WrongUse("no")
    refuse([])
    said = refusal(lambda: refuse([1, 2]))
    assert said.startswith("machine 1 (") and said.endswith("): no"), said
    assert refusal(lambda: refuse([0, 1, 2])) == "no"
    # Every machine opened its own files.
    config = load([*TINY, "train.precision=fp32", f"data.binary_cache_path={sys.argv[1]}"])
    data = open_configured(config.data)
    refuse_others([data], here)
    for other, what in (
        ({"dataset_id": "another"}, "data set another here"),
        ({"images": data.images[:40]}, "images 40 here and 48 there"),
        ({"images": 255 - data.images}, "64 of the images (digest)"),
        ({"labels": data.labels[::-1]}, "labels (digest)"),
        ({"labels": None}, "labels (digest) None here"),
        ({"train_rows": data.train_rows[:-4]}, "images to train on 28 here and 32 there"),
        ({"fraction": 0.5}, "fraction 0.5 here and 1.0 there"),
    ):
        said = refusal(lambda: refuse_others([replace(data, **other) if here.rank == 2 else data], here))
        assert said.startswith("machine 2 (") and f"data differs from machine 0 (" in said and what in said, said
    # What is kept of an embedding pass goes on each disk when the pass is done.
    keeping.LONG_S = 0.0
    disk = Path(sys.argv[2]) / str(here.rank)
    kept = []
    def heard():  # a thread writes it
        while not (found := list(disk.rglob("*.chunk.npy"))):
            time.sleep(0.01)
        kept.extend(found)
        return False
    between = Interlude(disk, heard, lambda done, total: None)
    embed_share(build_backbone(config.backbone), config, data, here, between)
    assert len(kept) == 1 and not list(disk.rglob("*.chunk.npy"))
print("fine")
"""


def test_ranks_take_from_rank_0_refuse_together_and_tidy_up_each_their_disk(small_data: Path, tmp_path: Path) -> None:
    run_ranks(RANK, 3, str(small_data), str(tmp_path))
