"""Shards on the laptop: which machine gets which, what is staged, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.shell import LocalShell
from deploy.specs.settings import Settings, Target
from deploy.specs.shards import WHOLE, Shard, count
from deploy.workspace import dataset as data
from deploy.workspace import staging as to_ram
from deploy.workspace.shards import Dealing, refuse_undividable, staged_blocks
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.workspace.test_dataset import Staging, here


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 rows in blocks of 5, the last 10 held out."""
    path = tmp_path / "data" / "images.npy"
    prepare(path)
    return path


@pytest.mark.parametrize(
    ("held", "given"),
    [
        ([(), (), ()], [0, 1, 2]),  # new machines
        ([(0,), (1,), (2,)], [0, 1, 2]),
        ([(2,), (0,), (1,)], [2, 0, 1]),  # the same machines in another order
        ([(), (1,), (2,)], [0, 1, 2]),  # the first one is replaced
        ([(0, 1, 2)] * 3, [0, 1, 2]),  # a disk that all share
        ([(1,), (1,), ()], [1, 0, 2]),  # a copy of a machine
    ],
)
def test_a_machine_keeps_the_shard_that_it_has(held: list[Collection[int]], given: list[int]) -> None:
    dealing = Dealing(3)
    found = [dealing.choose(node, lambda each, has=has: each.number in has) for node, has in enumerate(held)]
    assert found == [Shard(number, 3) for number in given]


def test_a_run_has_shards_only_if_asked_for_and_on_several_machines() -> None:
    by_node = {"data": {"shards": "by_node"}}
    assert [count(by_node, 1), count(by_node, 3), count({"data": {"shards": "whole"}}, 3), count({}, 3)] == [1, 3, 1, 1]


@pytest.mark.parametrize(
    ("fraction", "shard", "blocks"),
    [
        (1.0, WHOLE, [0, 1, 2, 3, 4, 5, 6, 7]),
        (1.0, Shard(0, 2), [0, 2, 4, 6, 7]),  # 6 and 7 are held out
        (1.0, Shard(1, 2), [1, 3, 5, 6, 7]),
        (1.0, Shard(2, 4), [2, 6, 7]),
    ],
)
def test_the_file_of_a_shard_has_its_blocks_and_the_held_out_ones(
    images: Path, fraction: float, shard: Shard, blocks: list[int]
) -> None:
    assert staged_blocks(data.find(here(images), 8192), fraction, shard) == blocks


def test_the_shards_of_a_fraction_are_dealt_from_its_blocks(images: Path) -> None:
    dataset = data.find(here(images), 8192)
    chosen = data.choose_blocks(30, 5, 0.5)
    assert staged_blocks(dataset, 0.5, Shard(0, 2)) == [*chosen[::2], 6, 7]
    assert staged_blocks(dataset, 0.5, Shard(1, 2)) == [*chosen[1::2], 6, 7]


def test_a_machine_is_asked_which_shard_it_has(images: Path, tmp_path: Path) -> None:
    """Neither another shard nor a shard of other images counts."""
    staging = Staging(images, tmp_path / "ram", tmp_path / "root", Shard(1, 2))
    settings = Settings(tmp_path, Target("local", "local", str(tmp_path / "root"), stage_to=str(tmp_path / "ram")))

    def there() -> list[bool]:
        dataset = data.find(here(images), 8192)
        asked = (LocalShell(), settings, tmp_path / "root", dataset, 1.0, "none")
        return [to_ram.is_there(*asked, Shard(number, 2)) for number in (0, 1)]

    assert there() == [False, False]
    staging.run()
    assert there() == [False, True]
    prepare(images, rows=45)
    assert there() == [False, False]


def test_what_cannot_be_divided_is_refused(images: Path) -> None:
    dataset = data.find(here(images), 8192)
    refuse_undividable(dataset, 1.0, 6)
    with pytest.raises(WrongUse, match="has 6 of them to train on for 7 machines: give --nodes 6"):
        refuse_undividable(dataset, 1.0, 7)
    with pytest.raises(WrongUse, match="has 3 of them to train on for 4 machines"):
        refuse_undividable(dataset, 0.5, 4)
    images.with_name("manifest.json").unlink()
    bare = data.find(here(images), 5)
    refuse_undividable(bare, 1.0, 1)
    with pytest.raises(WrongUse, match=r"needs a manifest\.json beside"):
        refuse_undividable(bare, 1.0, 2)


def test_a_file_with_one_shard_is_no_source(images: Path, tmp_path: Path) -> None:
    staging = Staging(images, tmp_path / "ram", tmp_path / "root", Shard(0, 2))
    staging.run()
    path = Path(staging.plan(1.0).data_path)
    assert path.parent.name == "orl-shard0of2"
    assert json.loads(path.with_name("manifest.json").read_text())["shard"] == {"number": 0, "of": 2, "rows": 40}
    with pytest.raises(WrongUse, match="one shard of its data set: give --data the whole file"):
        data.find(here(path), 8192)
