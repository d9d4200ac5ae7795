"""What the commands report about a run."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.errors import command
from deploy.runs.documents import NODE, next_commands, of_checkpoint, of_node, of_run, of_status, row
from deploy.runs.job import Status
from deploy.runs.records import Record

RECORD = Record("r", "local", "local", "succeeded", 1, "2026-01-01", None, 1.0, "iresnet", "/r", "m")


def mined(count: int, accepted: bool) -> dict[str, Any]:
    return {"event": "mining", "count": count, "coverage": count / 10, "purity": 0.9, "accepted": accepted}


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([], None),
        ([mined(3, True), mined(5, True)], {"count": 5, "coverage": 0.5, "purity": 0.9}),
        ([mined(3, True), mined(1, False)], {"count": 3, "coverage": 0.3, "purity": 0.9}),
        ([{"event": "mining", "count": 4, "coverage": 0.4}], {"count": 4, "coverage": 0.4, "purity": None}),
        ([mined(1, False)], {"count": 0, "coverage": 0.0, "purity": None}),
    ],
)
def test_refused_pseudo_ids_are_not_told_as_found(events: list[dict[str, Any]], told: dict[str, Any] | None) -> None:
    """The report has the pseudo-ids that training used."""
    assert of_run(RECORD, events, None)["pseudo_ids"] == told


EVENTS = [
    {"event": "start", "epochs": 3},
    {"event": "eval", "what": "untrained", "accuracy": 0.5, "rank1": 0.1},
    {"event": "eval", "what": "trained", "accuracy": 0.75},
    {"event": "other", "what": "pixels", "accuracy": 0.9},
    {"event": "step", "step": 3, "loss": 1.5},
]


def test_the_answer_of_a_finished_run() -> None:
    told = of_run(RECORD, EVENTS, {"path": "/p", "epoch": 2, "more": 1}, "report.html", "it is good")
    assert told["eval"] == {
        "pixels": None,
        "untrained": {"accuracy": 0.5, "rank1": 0.1},
        "trained": {"accuracy": 0.75, "rank1": None},
    }
    assert told["checkpoint"] == {"path": "/p", "sha256": None, "epoch": 2, "step": None}
    assert (told["report"], told["verdict"], told["state"]) == ("report.html", "it is good", "succeeded")
    assert of_run(RECORD, [], None)["checkpoint"] is None
    assert of_checkpoint({"path": "/p", "more": 1})["path"] == "/p"
    assert "more" not in of_checkpoint({"path": "/p", "more": 1})


def test_the_answer_about_a_run_that_nobody_could_ask() -> None:
    told = of_status(RECORD, None, EVENTS)
    assert (told["epoch"], told["step"], told["heartbeat_age_s"], told["gpus"]) == (None, None, None, [])
    assert (told["epochs"], told["loss"], told["accuracy"], told["phases"]) == (3, 1.5, 0.75, [])
    seen = Status("running", 1, heartbeat_age_s=2.0, epoch=1, step=7, images_per_s=9.0)
    told = of_status(RECORD, seen, [])
    assert (told["epoch"], told["step"], told["heartbeat_age_s"], told["images_per_s"]) == (1, 7, 2.0, 9.0)
    assert told["loss"] is None


def test_a_machine_that_does_not_answer_counts_as_lost() -> None:
    assert tuple(of_node(1, "m", None)) == NODE
    assert of_node(1, "m", None) == {
        "node": 1,
        "machine": "m",
        "state": "lost",
        "heartbeat_age_s": None,
        "reason": None,
    }
    seen = Status("running", 1, heartbeat_age_s=2.0, reason="r")
    assert list(of_node(0, "m", seen).values()) == [0, "m", "running", 2.0, "r"]


def test_a_run_in_the_list_has_its_accuracy() -> None:
    told = row(RECORD, EVENTS, "a note")
    assert (told["run_id"], told["spend_usd"], told["accuracy"], told["note"]) == ("r", 0.0, 0.75, "a note")
    assert row(RECORD)["accuracy"] is None


def test_commands_after_a_success_name_the_run() -> None:
    assert next_commands(RECORD) == [
        ("measure it", command("evaluate --run r")),
        ("export it as ONNX", command("export --run r")),
    ]
