"""The verdict about a finished run, and the lookup of a run by its id."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from deploy import border
from deploy.errors import StepFailed, WrongUse
from deploy.pod.base.folder import write_json
from deploy.runs import records as runs
from deploy.runs.records import Record
from deploy.ui.screen import Screen, verdict


@pytest.mark.parametrize(
    ("pixels", "untrained", "trained", "told"),
    [
        (0.83, 0.843, 0.885, "88.5%: 4.2 points above the untrained network"),
        (0.90, 0.843, 0.885, "88.5%: 4.2 points above the untrained network, and no better than raw pixels (90.0%)"),
        (0.83, 0.843, 0.829, "82.9%: no better than the untrained network (84.3%); train for more epochs"),
        (None, 0.5, 0.5, "50.0%: no better than the untrained network (50.0%); train for more epochs"),
        (0.83, None, 0.885, None),  # a network that overflows before its first step is not measured
        (0.83, 0.843, None, None),
    ],
)
def test_the_accuracy_is_judged(
    pixels: float | None, untrained: float | None, trained: float | None, told: str | None
) -> None:
    measured = {"pixels": pixels, "untrained": untrained, "trained": trained}
    assert verdict({name: value and {"accuracy": value, "rank1": 1.0} for name, value in measured.items()}) == told


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"of": {"trained": {"gain": {"untrained": {"low": 0.01}}}}}, "93.4%: 3.3 points above the untrained network"),
        (
            {"of": {"trained": {"gain": {"untrained": {"low": -0.002}}}}},
            "93.4%: not better than the untrained network: the difference of +3.3 points may be chance",
        ),
        ({"of": {"trained": {"gain": {"untrained": {"low": None}}}}}, "93.4%: 3.3 points above the untrained network"),
        ({"of": {"trained": {"gain": {"untrained": {"low": "-1"}}}}}, "93.4%: 3.3 points above the untrained network"),
        ({"of": [1]}, "93.4%: 3.3 points above the untrained network"),
        (None, "93.4%: 3.3 points above the untrained network"),
    ],
)
def test_the_last_line_says_what_the_report_says(known: object, told: str, tmp_path: Path) -> None:
    """A difference that may be chance is named as such; a file that does not fit tells nothing."""
    if known is not None:
        write_json(tmp_path / "verification.json", known)
    measured = {"untrained": {"accuracy": 0.901}, "trained": {"accuracy": 0.934}}
    assert verdict(measured, border.least_gain(tmp_path / "verification.json")) == told


def test_an_ambiguous_id_lists_the_runs_that_it_may_mean(tmp_path: Path) -> None:
    for run_id in ("orl-1-aa", "orl-1-ab", "orl-2-cc"):
        record = Record(run_id, "local", "local", "failed", 1, "2026-01-01", None, 1.0, "iresnet", "/r", "m")
        (tmp_path / run_id).mkdir()
        write_json(Path(runs.home(tmp_path, run_id).run), asdict(record))
    assert runs.get(tmp_path, "orl-2", "local").run_id == "orl-2-cc"
    with pytest.raises(WrongUse, match=r"orl-1 matches 2 runs: orl-1-a[ab], orl-1-a[ab]; give more characters"):
        runs.get(tmp_path, "orl-1", "local")


def test_evidence_without_a_line_end_does_not_fill_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A login script may print anything."""
    Screen().error(StepFailed("no answer", evidence=["x" * 65536, "a\x1b[2J"]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: no answer"
    assert 100 < len(lines[1]) < 300
    assert lines[2] == "  | a\\x1b[2J"
