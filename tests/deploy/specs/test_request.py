"""Which flags contradict the run that they would continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.specs.request import Request, contradictions, parse_request

EARLIER = Request(
    fraction=0.25, labels="/l.npy", pack="jpeg95", name="lr_03", recipe="supervised", env=("A=1",),
    data=str(Path("a.npy").absolute()), overrides=("train.epochs=5",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, []),
        ({"fraction": "0.25", "pack": "jpeg95", "name": "lr_03", "recipe": "supervised", "data": "a.npy"}, []),
        ({"labels": "/l.npy", "env": ["A=1"], "overrides": ["train.epochs=5"]}, []),
        ({"fraction": "0.5"}, ["--fraction 0.5"]),
        ({"pack": "none", "name": "lr_04"}, ["--pack none", "--name lr_04"]),
        ({"labels": "/m.npy", "recipe": "distill"}, ["--labels /m.npy", "--recipe distill"]),
        ({"data": "b.npy"}, ["--data b.npy"]),
        ({"env": ["A=1", "B=2"]}, ["--env B=2"]),
        ({"overrides": ["train.epochs=6"]}, ["--set train.epochs=6"]),
        ({"queue": True, "nodes": "2"}, []),  # where and when a run continues may change
    ],
)
def test_a_flag_contradicts_the_run_that_it_would_continue(typed: dict[str, Any], expected: list[str]) -> None:
    assert contradictions(parse_request(resume="auto", **typed), EARLIER) == expected
