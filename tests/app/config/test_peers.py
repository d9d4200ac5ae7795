"""Words of arcface_torch's users: some are accepted; the error for each other one names our word."""

from __future__ import annotations

import pytest

from app.config import load, read_command_line
from app.config.peers import KEYS, NEEDLESS
from app.config.schema import defaults
from app.errors import WrongUse


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["configs/ms1mv3_r50"], "give experiment=ms1mv3_r50"),
        (["configs/ms1mv3_r50_onegpu.py"], "give experiment=ms1mv3_r50_onegpu"),
        (["ms1mv3_r50"], "give experiment=ms1mv3_r50"),
        (["configs/my_cats.py"], "conf/experiment/my_cats.yaml"),
        (["--network", "r50"], "backbone=iresnet50"),
        (["--local-rank=0"], "torchrun sets the rank"),
        (["config.lr=0.1"], "train.optimizer.lr=0.1"),
        (["batch_size=128"], "train.batch.size=128"),
        (["num_classes=10"], "the labels of the data give the number of classes"),
        (["backbone=r51"], "backbone=r51 is not known"),
        (["experiment=nothing_like_it"], "python -m app.train --help"),
    ],
)
def test_a_habit_is_answered_with_the_word_for_here(words: list[str], answer: str) -> None:
    with pytest.raises(WrongUse) as raised:
        read_command_line(words, "")
    assert answer in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_words_for_here_work() -> None:
    """Each is a key=value, and all of them together compose. The value of `rec` also names the command for the file."""
    words = [word.split(", which")[0].strip('"') for word in KEYS.values()]
    names = [word.partition("=")[0] for word in words]
    assert set(names) - {"backbone"} <= defaults().keys()
    assert load(["recipe=supervised", "recipe.head.name=combined", *words]).backbone.name == "iresnet"


def test_no_key_is_both_translated_and_needless() -> None:
    assert not KEYS.keys() & NEEDLESS.keys()
    assert not {*KEYS, *NEEDLESS} & defaults().keys()


def test_published_backbones_work_in_a_sweep() -> None:
    jobs = read_command_line(["-m", "backbone=r50,mbf"], "").jobs
    assert [job.backbone.name for job in jobs] == ["iresnet", "mobilefacenet"]
