"""The report of a run: complete for a good folder, harmless for any folder; a report that fails ends no run."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import train
from app.errors import EXIT_WRONG_USE
from app.files import write_json
from app.report import __main__, page
from app.report.facts import read, read_plan
from app.report.leave import leave
from app.report.page import BEGIN, BYTES_MOST, render
from app.runtime.folder import RunFolder
from tests.app.support.training import TINY

HOSTILE = "\"><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>"
VOID = {"meta", "br", "img", "path", "use"}
LOADS = ("src", "href", "xlink:href", "action", "srcset", "data", "background", "poster")


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def harmless(html: str) -> Page:
    """Parse a page and check that it begins with its policy, runs nothing, loads nothing, and names no address."""
    assert html.startswith(BEGIN)
    assert len(html.encode()) <= BYTES_MOST
    found = Page(html)
    for tag, attributes in found.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form", "a"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in LOADS:
                assert re.match(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+$|#[\w-]+$", value or ""), (tag, name, value)
    inside_tags = "".join(re.findall(r"<[^>]*>", html)) + "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert "://" not in inside_tags
    assert not re.search(r"url\((?!#)|@import", inside_tags)
    return found


def folder_of(path: Path, *events: dict[str, Any], **documents: Any) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    lines = [json.dumps({"time": 1.0, "epoch": 0, "step": 0, **event}) for event in events]
    folder.metrics.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for name, value in documents.items():
        write_json(getattr(folder, name), value)
    return folder


def accuracy(what: str, value: float, step: int = 0, epoch: int = 0) -> dict[str, Any]:
    return {"event": "eval", "what": what, "accuracy": value, "rank1": 0.9, "step": step, "epoch": epoch}


START = {
    "event": "start", "world_size": 1, "device": "cpu", "precision": "fp32", "epochs": 2, "steps_per_epoch": 4,
    "train_rows": 32, "dataset_id": "abc", "fraction": 1.0, "resumed_from": None, "notes": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of a real tiny run, made with the command that users call."""
    from app import prepare
    from app.data.sources.source import Source
    from tests.app.conftest import faces

    images = faces(people=14, each=4)
    labels = np.repeat(np.arange(14, dtype=np.int32), 4)
    source = Source("small", len(images), lambda a, b: images[a:b], labels, held_out=24, block_rows=4)
    data = tmp_path_factory.mktemp("data") / "images.npy"
    prepare.prepare(source, data)
    path = tmp_path_factory.mktemp("runs") / "tiny"
    words = [*TINY, f"data.binary_cache_path={data}", f"run.dir={path}", "train.epochs=2", "run.report=true"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert train.main(words) == 0
    assert told.getvalue().splitlines()[-1] == f"report: {path / 'report.html'}"
    return RunFolder(path)


def test_training_leaves_a_report(trained: RunFolder) -> None:
    assert "ROC" in harmless(trained.report.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(("attempt", "gpu"), [(2, "NVIDIA A40"), (1, None), (None, None)])
def test_the_plan_has_what_the_machine_added_in_this_attempt(
    tmp_path: Path, attempt: int | None, gpu: str | None
) -> None:
    """`invoke report` on the laptop reads plan.json and placement.json; on the machine, plan.json has all of it."""
    folder = RunFolder(tmp_path)
    write_json(folder.plan, {"attempt": 2, "gpu": None, "machine": "m"})
    if attempt is not None:
        write_json(folder.placement, {"attempt": attempt, "gpu": "NVIDIA A40"})
    assert read_plan(folder) == {"attempt": 2, "gpu": gpu, "machine": "m"}


def test_a_real_run_has_every_section(trained: RunFolder) -> None:
    limits = {"max_usd": 5.0}
    phases = [{"name": "training", "seconds": 90.0, "usd": 0.1}]
    write_json(trained.plan, {"limits": limits, "usd_per_hour": 2.0, "expected_usd": 0.5, "phases": phases})
    gpu = {"utilization_pct": 93, "memory_used_bytes": 30 << 30, "memory_bytes": 80 << 30}
    write_json(trained.status, {"spend_usd": 1.25, "gpus": [gpu]})
    found = harmless(render(read(trained), trained))
    for words in (
        "Held-out people are verified with", "95% interval", "the untrained network", "raw pixels", "not comparable",
        "images per second", "ROC", "AUC", "EER", "threshold (cosine)", "Scores: trained network",
        "Two people, but similar", "One person, but different", "Coverage", "Churn", "Contact sheet after",
        "Expected and taken time", "$1.25 spent, of a limit of $5.00", "93% busy", "30.0 of 80.0 GiB",
        "train.optimizer.lr", "data set", "commit", "its SHA-256",
    ):  # fmt: skip
        assert words in found.text, words
    assert sum(tag == "svg" for tag, _ in found.tags) == 9
    assert sum(tag == "img" for tag, _ in found.tags) > 16
    assert "Left out" not in found.text


def test_verification_is_that_of_the_newest_measurement(trained: RunFolder) -> None:
    """The report has the accuracy of the events, and ignores a verification file of another step."""
    facts = read(trained)
    for what, about in facts.verification["of"].items():
        assert about["accuracy"] == pytest.approx(facts.measured(what)[-1]["accuracy"])
    events = [{**accuracy("trained", 0.9, step=99)}]
    copy = folder_of(trained.path.parent / "other", *events, verification=dict(facts.verification))
    assert read(copy).verification == {}
    assert "ROC" not in harmless(render(read(copy), copy)).text


def test_whatever_a_folder_says_is_shown_as_text(tmp_path: Path) -> None:
    """Every text of every file is hostile."""
    bad = {"what": HOSTILE, "name": HOSTILE, HOSTILE: HOSTILE}
    folder = folder_of(
        tmp_path / "run",
        {**START, "dataset_id": HOSTILE, "device": HOSTILE, "precision": HOSTILE, "notes": [HOSTILE, 7]},
        accuracy("pixels", 0.6),
        accuracy("trained", 0.9, step=4),
        {"event": "eval", "what": f"sets/{HOSTILE}", "accuracy": 0.7, "measure": HOSTILE},
        {"event": "mining", "count": 3, "coverage": 0.5, "accepted": False, "why": HOSTILE, "sizes": {HOSTILE: 3}},
        {"event": "checkpoint", "file": HOSTILE, "sha256": HOSTILE},
        {"event": "end", "reason": "failed", "message": HOSTILE},
        plan={"machine": HOSTILE, "gpu": HOSTILE, "gpus": HOSTILE, "code": {"commit": HOSTILE}, "phases": [bad]},
        status={"gpus": [bad], "spend_usd": HOSTILE},
        run={"spend": bad, "phases": bad},
        verification={
            "step": 4,
            "of": {"trained": {"curve": {"far": [HOSTILE], "tar": [1]}, "auc": HOSTILE}},
            "hardest": {"one_person": [{"left": HOSTILE, "right": HOSTILE, "cosine": 1}, HOSTILE]},
        },
    )
    folder.config.write_text(f"{json.dumps(HOSTILE)}: {json.dumps(HOSTILE)}\n", encoding="utf-8")
    found = harmless(render(read(folder), folder))
    assert found.text.count(HOSTILE) >= 8
    assert "The run failed" in found.text


@pytest.mark.parametrize(
    "value", ["x", float("nan"), -1, 10**400, True, [[[]]]], ids=["text", "nan", "negative", "huge", "true", "nested"]
)
def test_any_value_in_any_place_still_gives_a_page(trained: RunFolder, tmp_path: Path, value: object) -> None:
    """A wrong value replaces each field of the events and documents of a real run."""
    lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    events = [{key: value if key not in ("event", "what") else own for key, own in event.items()} for event in lines]
    events[-1] = accuracy("trained", 0.9, step=4)  # has the step of the verification
    good = json.loads(trained.verification.read_text())["of"]["trained"]
    about = {
        "trained": {**good, "scores": dict.fromkeys(good["scores"], value), "gain": value, "auc": value},
        "untrained": {**dict.fromkeys(good, value), "curve": {"far": value, "tar": [value, 1]}},
        "pixels": value,
    }
    verification = {"step": 4, "people": value, "of": about, "hardest": {"one_person": [value], "two_people": value}}
    documents = {key: dict.fromkeys(("gpus", "limits", "phases", "spend"), value) for key in ("plan", "run", "status")}
    folder = folder_of(tmp_path / "run", *events, verification=verification, **documents)
    folder.config.write_text("a: [1\n")
    assert "ROC" in harmless(render(read(folder), folder)).text


def test_a_folder_with_little_in_it_still_gives_a_page(tmp_path: Path) -> None:
    empty = folder_of(tmp_path / "empty")
    assert "No accuracy was measured" in harmless(render(read(empty), empty)).text
    empty.metrics.write_bytes(b"\xff\x00{\n[1]\n" + b"x" * (1 << 20) + b'\n{"event": "start"')
    assert "has not ended, or was killed" in harmless(render(read(empty), empty)).text
    nan = folder_of(tmp_path / "nan", START, {"event": "step", "loss": float("nan"), "images_per_s": None})
    assert "Rate" not in harmless(render(read(nan), nan)).text


def test_a_resumed_run_counts_no_step_twice(tmp_path: Path) -> None:
    """Steps repeated after the checkpoint count once; a new start in the same folder drops the run before it."""
    step = {"event": "step", "loss": 1.0}
    first = [START, *({**step, "step": number} for number in range(1, 7)), {"event": "end", "reason": "stopped"}]
    again = [{**START, "step": 4, "resumed_from": "epoch_000.pt"}, {**step, "step": 5}]
    facts = read(folder_of(tmp_path / "a", *first, *again))
    assert [each["step"] for each in facts.events["step"]] == [1, 2, 3, 4, 5]
    assert facts.events["end"] == []
    facts = read(folder_of(tmp_path / "b", *first, START, {**step, "step": 1}))
    assert [each["step"] for each in facts.events["step"]] == [1]


def test_a_page_that_would_be_too_large_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "run", START, {"event": "end", "reason": "done"})
    folder.mining.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (900, 836, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder.mining / "epoch_000.png")
    assert "Contact sheet after 0 epochs" in harmless(render(read(folder), folder)).text
    monkeypatch.setattr(page, "BYTES_MOST", 100_000)
    found = harmless(render(read(folder), folder))
    assert "Contact sheet" not in found.text
    assert "below 3 MB: sheets" in found.text


def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    steps = ({"event": "step", "step": n, "epoch": n // 160, "loss": 5.0, "images_per_s": 9.0} for n in range(8_000))
    mined = ({"event": "mining", "epoch": n, "count": 3, "coverage": 0.5, "accepted": True} for n in range(50))
    folder = folder_of(tmp_path / "run", {**START, "epochs": 50, "steps_per_epoch": 160}, *steps, *mined)
    html = render(read(folder), folder)
    harmless(html)
    assert len(html) < 200_000


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(99)])
def test_a_broken_contact_sheet_is_left_out(tmp_path: Path, content: bytes) -> None:
    folder = folder_of(tmp_path / "run", START)
    folder.mining.mkdir()
    (folder.mining / "epoch_000.png").write_bytes(content)
    assert "Contact sheet" not in harmless(render(read(folder), folder)).text


def test_only_a_jpeg_is_taken_for_one() -> None:
    from app.report.pictures import jpeg

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    good = base64.b64encode(file.getvalue()).decode()
    assert jpeg(good) == good
    for bad in (None, 7, "", good + '"', good[1:], base64.b64encode(b"<svg>").decode(), "A" * 100_000, "ä"):
        assert jpeg(bad) == ""


def test_the_command_writes_the_page_or_says_one_sentence(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main([str(trained.path)]) == 0
    assert capsys.readouterr().out.strip() == str(trained.report)
    harmless(trained.report.read_text(encoding="utf-8"))
    for words in ([], ["a", "b"], [str(tmp_path / "none")], [str(tmp_path)], [str(trained.metrics)]):
        assert __main__.main(words) == EXIT_WRONG_USE
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "runs/RUN" in told
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", START)
    folder.report.mkdir()
    told = leave(folder)
    assert told.startswith("no report: ")
    assert "\n" not in told
    assert leave(folder, limit_s=0.01).startswith("no report: it was not ready after 0 s")


def test_the_report_says_which_people_chose_the_checkpoint(tmp_path: Path) -> None:
    """The result of a checkpoint that the same people chose is that of the luckiest of several."""
    known = {"of": {"trained": {"curve": {"far": [0.1, 1.0], "tar": [0.5, 1.0]}}}, "step": 8, "people": 5, "images": 50}
    measured = [
        {**accuracy("trained", 0.85, 4, 0), "validation_accuracy": 0.91},
        {**accuracy("trained", 0.88, 8, 1), "validation_accuracy": 0.90},
    ]
    divided = harmless(render(read(of := folder_of(tmp_path / "a", START, *measured, verification=known)), of)).text
    assert "Other held-out people choose the best checkpoint (--which best), train.eval.validation." in divided
    assert "best after epoch 0, with 91.0%; that of the people of the result is then 85.0%." in divided
    assert "people who choose the checkpoint" in divided
    plain = [{key: each[key] for key in each if key != "validation_accuracy"} for each in measured]
    same = harmless(render(read(of := folder_of(tmp_path / "b", START, *plain, verification=known)), of)).text
    assert "The same people choose the best checkpoint (--which best)" in same
    assert "people who choose the checkpoint" not in same


ENDED = """
import os, signal, subprocess, sys, threading
from pathlib import Path
from app.report.leave import leave
from app.runtime.folder import RunFolder
signal.signal(signal.SIGTERM, lambda *_: None)  # as a rank, which writes a checkpoint before it ends
told = []
making = threading.Thread(target=lambda: told.append(leave(RunFolder(Path(sys.argv[1])))))
making.start()
def makes():  # before exec, a child has this script's own command line
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = " ".join(each.read_text() for each in own).split()
    return any(b"-m\\0app.report" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
while making.is_alive() and not makes():
    pass
os.killpg(0, signal.SIGTERM)
making.join()
print(told[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: torchrun of several ranks runs there")
def test_a_rank_that_is_told_to_end_still_leaves_its_report(tmp_path: Path) -> None:
    """If one rank fails, torchrun sends SIGTERM to the groups of the others: rank 0 is making the report then."""
    folder = folder_of(tmp_path / "r", START, {"event": "end", "reason": "failed", "message": "m", "seconds": 1.0})
    done = subprocess.run(
        [sys.executable, "-c", ENDED, str(folder.path)],
        cwd=Path(page.__file__).parents[2],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"report: {folder.report}\n", 0), done.stderr
    assert "The run failed after 0 of 2 epochs: m." in folder.report.read_text(encoding="utf-8")


def test_a_note_about_the_start_is_no_warning(tmp_path: Path) -> None:
    note = "5 held-out people choose the best checkpoint, the result is of 5 others"
    found = harmless(render(read(of := folder_of(tmp_path / "r", {**START, "notes": [note, 5]})), of))
    assert f"{note}." in found.text
    assert not [tag for tag, attributes in found.tags if attributes.get("class") == "warn"]
