"""The results of a finished run and its verdict, and the lookup of a run by its id."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from deploy import border
from deploy.errors import StepFailed, WrongUse
from deploy.pod.base.folder import write_json
from deploy.runs import records
from deploy.runs.records import Record
from deploy.ui.paths import near
from deploy.ui.screen import Screen


def test_a_path_is_relative_to_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns, the absolute path of a checkpoint takes two lines."""
    report = tmp_path / "runs" / "r" / "report.html"
    monkeypatch.chdir(tmp_path)
    assert near(report) == near(str(report)) == "runs/r/report.html"
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    assert near(report) == str(report)


def test_the_results_name_their_files_as_readme_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "r"
    checkpoint = {"path": str(folder / "checkpoints" / "epoch_023.pt")}
    document = {"eval": {}, "pseudo_ids": None, "checkpoint": checkpoint, "seconds": 61.0}
    Screen().result({**document, "report": str(folder / "report.html")})
    told = ["checkpoint: runs/r/checkpoints/epoch_023.pt", "report: runs/r/report.html", "time: 1:01"]
    assert capsys.readouterr().out.splitlines() == told


BEGINS = border.REPORT_BEGINS.decode()


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (f'{BEGINS}<meta name="description" content="95% &lt;b&gt; &#34;x&#34; &amp; y.">\n<p>', '95% <b> "x" & y.'),
        (f'{BEGINS}<meta name="description" content="a\x1b[2Jb&#10;c">\n', "a\\x1b[2Jb\\nc"),
        (f'{BEGINS}<meta name="description" content="{"x" * 2000}">\n', "x" * 996 + " ..."),
        (f'{BEGINS}<meta name="description" content="{"x" * 9000}">\n', None),
        (f"{BEGINS}<title>made by an earlier version</title>", None),
        (f'{BEGINS}<p><meta name="description" content="x">\n', None),  # not where the report has it
        ('<meta name="description" content="x">\n', None),
        ("", None),
        (None, None),
    ],
)
def test_the_verdict_is_the_sentence_of_the_report(page: str | None, told: str | None, tmp_path: Path) -> None:
    """A machine wrote the page: what is printed is one short line without control characters."""
    if page is not None:
        (tmp_path / "report.html").write_text(page, encoding="utf-8", newline="\n")
    assert border.verdict(tmp_path / "report.html") == told


def test_an_ambiguous_id_lists_the_runs_that_it_may_mean(tmp_path: Path) -> None:
    for run_id in ("orl-1-aa", "orl-1-ab", "orl-2-cc"):
        record = Record(run_id, "local", "local", "failed", 1, "2026-01-01", None, 1.0, "iresnet", "/r", "m")
        (tmp_path / run_id).mkdir()
        write_json(Path(records.home(tmp_path, run_id).run), asdict(record))
    assert records.get(tmp_path, "orl-2", "local").run_id == "orl-2-cc"
    with pytest.raises(WrongUse, match=r"orl-1 matches 2 runs: orl-1-a[ab], orl-1-a[ab]; give more characters"):
        records.get(tmp_path, "orl-1", "local")


def test_evidence_without_a_line_end_does_not_fill_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A login script may print anything."""
    Screen().error(StepFailed("no answer", evidence=["x" * 65536, "a\x1b[2J"]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: no answer"
    assert 100 < len(lines[1]) < 300
    assert lines[2] == "  | a\\x1b[2J"
