"""Which checkpoint a command chooses, also if an epoch has two of them."""

from __future__ import annotations

from typing import Any

import pytest

from deploy import border
from deploy.errors import BadAnswer, WrongUse
from deploy.pod.base.checkpoints import age
from deploy.runs.checkpoints import choose


def note(epoch: int, step: int, *, whole: bool = True, accuracy: float | None = None) -> dict[str, Any]:
    return {
        "file": f"epoch_{epoch:03d}{'' if whole else f'_step_{step}'}.pt",
        "epoch": epoch,
        "step": step,
        "epoch_complete": whole,
        "eval": None if accuracy is None else {"accuracy": accuracy},
    }


# A run that was stopped in epoch 1, resumed, and stopped again in epoch 2.
NOTES = [note(0, 10, accuracy=0.8), note(1, 14, whole=False), note(1, 20, accuracy=0.9), note(2, 23, whole=False)]


def test_of_two_checkpoints_of_an_epoch_the_later_one_is_meant() -> None:
    assert choose(NOTES, "1", "run")[0]["step"] == 20
    assert choose(NOTES, "2", "run")[0]["step"] == 23
    assert choose(NOTES, "latest", "run")[0]["step"] == 23
    assert choose(NOTES, "best", "run")[0]["step"] == 20


def test_a_whole_epoch_is_further_than_a_part_of_it() -> None:
    assert sorted([NOTES[2], NOTES[3], NOTES[1], NOTES[0]], key=age) == NOTES


@pytest.mark.parametrize(
    ("which", "words"), [("3", "there are 0, 1, 2"), ("last", "is not known"), ("-1", "not known")]
)
def test_an_epoch_that_is_not_there_names_those_that_are(which: str, words: str) -> None:
    with pytest.raises(WrongUse, match=words):
        choose(NOTES, which, "run")
    with pytest.raises(WrongUse, match="no complete checkpoint"):
        choose([], which, "run")


MEASURED = [
    {"epoch": 0, "eval": {"accuracy": 0.8, "sets": {"lfw": {"accuracy": 0.95}}}},
    {"epoch": 1, "eval": {"accuracy": 0.9, "sets": {"lfw": {"accuracy": 0.93}}}},
    {"epoch": 2, "eval": None},
]


@pytest.mark.parametrize(("which", "epoch"), [("best", 1), ("best:lfw", 0), ("latest", 2)])
def test_the_best_by_a_named_set_is_chosen(which: str, epoch: int) -> None:
    assert choose(MEASURED, which, "r")[0]["epoch"] == epoch


def test_without_people_held_out_the_first_set_chooses() -> None:
    notes = [{**note, "eval": {"sets": note["eval"]["sets"]}} for note in MEASURED[:2]]
    assert choose(notes, "best", "r")[0]["epoch"] == 0
    with pytest.raises(WrongUse, match="not evaluated on a set agedb: give best:lfw"):
        choose(notes, "best:agedb", "r")


DIVIDED = [
    {"epoch": 0, "eval": {"accuracy": 0.95, "validation_accuracy": 0.8, "sets": {"lfw": {"accuracy": 0.99}}}},
    {"epoch": 1, "eval": {"accuracy": 0.9, "validation_accuracy": 0.881, "sets": {"lfw": {"accuracy": 0.9}}}},
    {"epoch": 2, "eval": None},
]
CONTINUED = [{"epoch": 0, "eval": {"accuracy": 0.99}}, *DIVIDED[1:]]


@pytest.mark.parametrize(
    ("notes", "which", "epoch", "words"),
    [
        (DIVIDED, "best", 1, "best by validation people (88.1%)"),
        (CONTINUED, "best", 1, "best by validation people (88.1%)"),
        (MEASURED, "best", 1, "best by the held-out people that the result is also reported on (90.0%)"),
        (DIVIDED, "best:lfw", 0, "best by the set lfw (99.0%)"),
        ([{"epoch": 0, "eval": {"sets": {"lfw": {"accuracy": 0.95}}}}], "best", 0, "best by the set lfw (95.0%)"),
        (DIVIDED, "latest", 2, None),
        (DIVIDED, "1", 1, None),
    ],
)
def test_the_best_is_chosen_by_validation_people_and_says_so(
    notes: list[dict[str, Any]], which: str, epoch: int, words: str | None
) -> None:
    assert choose(notes, which, "r")[0]["epoch"] == epoch
    assert choose(notes, which, "r")[1] == words


@pytest.mark.parametrize("sets", [[], {"lfw": 1}, {"lfw": {"accuracy": "high"}}])
def test_a_machines_numbers_of_sets_are_checked(sets: object) -> None:
    note = {"file": "epoch_000.pt", "epoch": 0, "step": 1, "sha256": "0" * 64, "eval": {"sets": sets}}
    with pytest.raises(BadAnswer, match=r"eval\.sets"):
        border.checkpoint_note(note, "machine")


def test_of_several_sets_the_first_is_meant_and_offered() -> None:
    notes = [
        {"epoch": 0, "eval": {"sets": {"lfw": {"accuracy": 0.5}, "agedb": {"accuracy": 0.9}}}},
        {"epoch": 1, "eval": {"sets": {"lfw": {"accuracy": 0.6}, "agedb": {"accuracy": 0.8}}}},
        {"epoch": 2, "eval": {"sets": {"cfp": {"accuracy": 0.7}}}},
    ]
    told = [(which, choose(notes, which, "r")[0]["epoch"]) for which in ("best", "best:lfw", "best:agedb", "best:cfp")]
    assert told == [("best", 1), ("best:lfw", 1), ("best:agedb", 0), ("best:cfp", 2)]
    assert choose(notes, "best:agedb", "r")[1] == "best by the set agedb (90.0%)"
    with pytest.raises(WrongUse, match=r"not evaluated on a set x: give best:lfw$"):
        choose(notes, "best:x", "r")
    with pytest.raises(
        WrongUse, match="not evaluated on a set x: it was evaluated on none: give --which best or latest"
    ):
        choose([{"epoch": 0, "eval": {"accuracy": 0.5}}], "best:x", "r")
    with pytest.raises(WrongUse, match="no checkpoint of run r was evaluated: give --which latest"):
        choose([{"epoch": 0}, {"epoch": 1, "eval": {"sets": {"lfw": {}}}}], "best", "r")


def test_of_equally_good_checkpoints_the_first_is_the_best() -> None:
    assert choose([note(epoch, epoch, accuracy=0.5) for epoch in range(3)], "best", "r")[0]["epoch"] == 0
    assert choose([note(0, 0, accuracy=0.0), note(1, 1)], "best", "r")[0]["epoch"] == 0
    assert choose(NOTES, "01", "r")[0]["epoch"] == 1
