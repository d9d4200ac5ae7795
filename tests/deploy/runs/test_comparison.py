"""What two runs are compared by, and which machine trained them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.border import History
from deploy.runs.comparison import Best, Side, best_point, differing, document
from tests.deploy.support.rented import Rented


def side(tmp_path: Path, run_id: str = "a", plan: dict[str, Any] | None = None, **about: Any) -> Side:
    told = {"history": History((), (), None), "settings": None, "note": None, **about}
    return Side(Rented(tmp_path).record(run_id), plan=plan or {}, **told)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"gpus": 2, "gpu": "A40", "cores": 8}, "2 x A40"),
        ({"gpus": 2, "gpu": "A40", "nodes": 1}, "2 x A40"),
        ({"gpus": 2, "gpu": "A40", "nodes": 2}, "2 machines of 2 x A40"),
        ({"gpus": 0, "gpu": "A40", "cores": 8}, "8 cores"),
        ({"gpus": 1, "gpu": None, "cores": 8, "nodes": 3}, "3 machines of 8 cores"),
        ({"nodes": 2}, None),
        ({"cores": 8, "nodes": "many"}, "8 cores"),
        ({}, None),
    ],
)
def test_the_machine_in_words(tmp_path: Path, plan: dict[str, Any], words: str | None) -> None:
    assert document([side(tmp_path, plan=plan)])["runs"][0]["trained_on"] == words


def test_settings_that_differ(tmp_path: Path) -> None:
    """Also in their kind, or if only one run has them; not the run's folder, nor of a run without a configuration."""
    first = side(tmp_path, "a", settings={"lr": 0.1, "same": 1, "run.dir": "a", "kind": 1, "only": 2})
    second = side(tmp_path, "b", settings={"lr": 0.2, "same": 1, "run.dir": "b", "kind": True})
    unknown = side(tmp_path, "c")
    assert differing([first, second, unknown]) == {
        "kind": {"a": 1, "b": True},
        "lr": {"a": 0.1, "b": 0.2},
        "only": {"a": 2, "b": "(not set)"},
    }
    assert [row["config"] for row in document([first, unknown])["runs"]] == [True, False]


def test_the_best_epoch_is_the_first_of_the_best(tmp_path: Path) -> None:
    history = History(((0, 9.0), (1, 5.0), (2, 3.0)), ((0, 0.5), (1, 0.7), (2, 0.7)), 12.0, {"lfw": ((4, 0.9),)})
    told = side(tmp_path, history=history)
    assert best_point(told, "held-out people") == Best(1, 0.7, 0.7)
    assert best_point(told, "lfw") == Best(4, 0.9, 0.9)
    assert best_point(told, None) is None
    (row,) = document([told], {"a": 1.5})["runs"]
    assert (row["run_usd"], document([told])["runs"][0]["run_usd"]) == (1.5, None)
    assert (row["best_accuracy"], row["best_epoch"], row["last_loss"], row["images_per_s"]) == (0.7, 1, 3.0, 12.0)
    assert (row["accuracy"], row["loss"]) == ([[0, 0.5], [1, 0.7], [2, 0.7]], [[0, 9.0], [1, 5.0], [2, 3.0]])
