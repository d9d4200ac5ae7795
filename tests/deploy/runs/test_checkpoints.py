"""Which checkpoint is meant, where an epoch has two of them."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.errors import WrongUse
from deploy.runs.checkpoints import age, choose


def note(epoch: int, step: int, *, whole: bool = True, accuracy: float | None = None) -> dict[str, Any]:
    return {
        "file": f"epoch_{epoch:03d}{'' if whole else f'_step_{step}'}.pt",
        "epoch": epoch,
        "step": step,
        "epoch_complete": whole,
        "eval": None if accuracy is None else {"accuracy": accuracy},
    }


# A run that was stopped within epoch 1, went on, and was stopped again within epoch 2.
NOTES = [note(0, 10, accuracy=0.8), note(1, 14, whole=False), note(1, 20, accuracy=0.9), note(2, 23, whole=False)]


def test_of_two_checkpoints_of_an_epoch_the_later_one_is_meant() -> None:
    assert choose(NOTES, "1", "run")["step"] == 20
    assert choose(NOTES, "2", "run")["step"] == 23
    assert choose(NOTES, "latest", "run")["step"] == 23
    assert choose(NOTES, "best", "run")["step"] == 20


def test_a_whole_epoch_is_further_than_a_part_of_it() -> None:
    assert sorted([NOTES[2], NOTES[3], NOTES[1], NOTES[0]], key=age) == NOTES


@pytest.mark.parametrize(
    ("which", "words"), [("3", "there are 0, 1, 2"), ("last", "is not known"), ("-1", "not known")]
)
def test_an_epoch_that_is_not_there_names_those_that_are(which: str, words: str) -> None:
    with pytest.raises(WrongUse, match=words):
        choose(NOTES, which, "run")
    with pytest.raises(WrongUse, match="no whole checkpoint"):
        choose([], which, "run")
