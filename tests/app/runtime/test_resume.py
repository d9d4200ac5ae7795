"""The resume contract: each cell of its table, its page in docs/, and real runs."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app import prepare, resumable, train
from app.config import load
from app.data.dataset import identity, open_configured
from app.data.sources.source import Source
from app.errors import WrongUse
from app.recipes import RECIPES
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.resume import EXACT, REFUSED, RULES, SAID, UNFORESEEN, facts_of, judge, recorded
from tests.app.conftest import faces
from tests.app.support.training import PROJECT, TINY, events, run, tensors

DATA = {"data": "one", "images": 40, "rows": 32, "classes": "c", "labels": "l"}
BASE = facts_of(load(TINY), **DATA, ranks=2)
HEAD = facts_of(
    load([*(w for w in TINY if "mining" not in w and "recipe" not in w), "recipe=supervised"]), **DATA, ranks=2
)
OTHER: dict[str, dict[str, Any]] = {
    "recipe": {"recipe": "supervised"},
    "backbone": {"backbone": {**BASE["backbone"], "width": 16}},
    "projection": {"projection": [64, 16]},
    "queue_size": {"queue_size": 48},
    "with_head": {"with_head": True},
    "matrix": {"matrix": True},
    "teacher": {"teacher": {"file": "r100.pt", "sha256": "0" * 64}},
    "head": {"head": "magface"},
    "ema": {"ema": True},
    "classes": {"classes": "others"},
    "optimizer": {"optimizer": "adamw"},
    "decay_all": {"decay_all": True},
    "data": {"data": "another"},
    "fraction": {"fraction": 0.5},
    "labels": {"labels": "others"},
    "rows": {"rows": 16},
    "shards": {"shards": 2},
    "seed": {"seed": 7},
    "batch": {"batch": 4},
    "accumulate": {"accumulate": 2},
    "ranks": {"ranks": 3},
    "precision": {"precision": "fp16"},
    "regularisation": {"regularisation": {**BASE["regularisation"], "dropout": 0.5}},
    "validation": {"validation": "auto"},
    "epochs": {"epochs": 9},
    "gradient_checkpointing": {"gradient_checkpointing": {"gradient_checkpointing": True}},
}


def test_every_fact_has_a_rule_and_every_rule_a_case() -> None:
    names = {rule.name for rule in RULES}
    assert names == {*OTHER}
    assert names == {*BASE} - {"images"}  # `images` is part of the data's identity


@pytest.mark.parametrize("seen", [0, 8], ids=["between", "mid"])
@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_each_cell_of_the_contract(rule: Any, seen: int) -> None:
    saved = HEAD if rule.name in ("head", "ema") else BASE
    here = {**saved, **OTHER[rule.name]}
    answer = rule.mid if seen else rule.between

    def judged() -> Any:
        return judge("epoch_001.pt", saved, here, epoch=2, seen=seen, own=True)

    if answer is REFUSED:
        with pytest.raises(WrongUse, match=r"^epoch_001\.pt .*; give ") as refused:
            judged()
        sentence = str(refused.value)
        assert "\n" not in sentence
        assert ("middle of epoch 2" in sentence) == (rule.between is not REFUSED)
        return
    notes = judged().notes
    assert len(notes) == (answer is SAID)
    assert judged().other_data == (rule.name == "data")
    assert answer in (SAID, EXACT)


def test_the_same_facts_continue_without_a_word() -> None:
    for saved in (BASE, HEAD):
        for seen in (0, 8):
            assert judge("x.pt", saved, saved, epoch=1, seen=seen, own=False).notes == ()


def test_the_sentences_name_what_works() -> None:
    def refusal(saved: dict[str, Any], here: dict[str, Any], seen: int = 8) -> str:
        with pytest.raises(WrongUse) as refused:
            judge("e.pt", saved, here, epoch=0, seen=seen, own=False)
        return str(refused.value)

    assert "give train.optimizer.name=sgd, or" in refusal(BASE, {**BASE, "optimizer": "adamw"})
    assert "give backbone.width=8, or" in refusal(BASE, {**BASE, **OTHER["backbone"]})
    assert "give recipe.head.name=arcface, or" in refusal(HEAD, {**HEAD, "head": "magface"})
    assert "give data.data_fraction=1, or a checkpoint of a whole epoch" in refusal(BASE, {**BASE, "fraction": 0.1})
    taught = {**HEAD, "recipe": "distill", "with_head": True, "matrix": False, "teacher": {"file": "a", "sha256": "1"}}
    assert "give recipe.distill.head_weight=1, or" in refusal(taught, {**taught, "with_head": False})
    assert "give recipe.distill.projection=false, or" in refusal(taught, {**taught, "matrix": True})
    other = {**taught, "teacher": {"file": "a", "sha256": "2"}}
    assert "made with the teacher a (sha256 1), here it is the teacher a (sha256 2)" in refusal(taught, other)
    renamed = {**taught, "teacher": {"file": "b", "sha256": "1"}}
    assert judge("e.pt", taught, renamed, epoch=0, seen=8, own=False).notes == ()
    assert "give data set one, or" in refusal(BASE, {**BASE, "data": "two"})
    assert (
        "needs data.shards=whole, and this run has data.shards=by_node with 2 machines; give data.shards=whole, or"
        in (refusal(BASE, {**BASE, "shards": 2}))
    )
    assert "give data.shards=by_node with 2 machines, or" in refusal({**BASE, "shards": 2}, {**BASE, "shards": 3})
    assert "needs a file of 40 images" in refusal(BASE, {**BASE, "images": 41})
    assert "give recipe.moco.projection_hidden=32 recipe.moco.projection_dim=16, or" in refusal(
        BASE, {**BASE, "projection": [1, 2]}
    )


@pytest.mark.parametrize(
    ("epochs", "epoch", "own", "refused"),
    [(2, 3, True, True), (2, 3, False, True), (3, 3, False, True), (3, 3, True, False), (4, 3, False, False)],
)
def test_epochs_that_are_done_already(epochs: int, epoch: int, own: bool, refused: bool) -> None:
    here = {**BASE, "epochs": epochs}
    if epochs <= epoch:
        for saved, seen in (({**here, "epochs": 9}, 0), (here, 8)):  # fewer epochs than before, or inside an epoch
            with pytest.raises(WrongUse, match="are done already; give"):
                judge("e.pt", saved, here, epoch=epoch, seen=seen, own=own)
    if refused:
        with pytest.raises(WrongUse, match=r"3 epochs are done already; give train\.epochs=4 or more"):
            judge("e.pt", here, here, epoch=epoch, seen=0, own=own)
    else:
        notes = judge("e.pt", here, here, epoch=epoch, seen=0, own=own).notes
        assert bool(notes) == (epochs == epoch)


def test_a_number_of_images_that_follows_from_the_fraction_is_not_told_twice() -> None:
    notes = judge("e.pt", BASE, {**BASE, "fraction": 0.5, "rows": 16}, epoch=1, seen=0, own=True).notes
    assert notes == ("data.data_fraction 0.5, was 1",)


def test_an_older_checkpoint_tells_what_it_can() -> None:
    groups = [{"lr": 0.1, "nesterov": True}, {"lr": 0.1, "nesterov": True}]
    note = {"dataset_id": "one", "fraction": 1.0, "world_size": 2, "model": load(TINY).model()}
    old = recorded({"optimizer": {"param_groups": groups}}, note)
    assert {**BASE, **old} == BASE
    verdict = judge("e.pt", old, BASE, epoch=1, seen=4, own=True)
    assert len(verdict.notes) == 1
    assert "does not record" in verdict.notes[0]
    assert "train.precision" in verdict.notes[0]
    bare = recorded({"optimizer": {"param_groups": [{"betas": (0.9, 0.999)}]}}, {})
    assert bare == {"optimizer": "adamw", "decay_all": True, "shards": 1, "validation": "none"}


def test_the_page_shows_the_contract() -> None:
    page = (PROJECT / "docs" / "resume.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- contract -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert table
    rows = [f"| `{rule.key}` | {rule.mid.value} | {rule.between.value} |" for rule in RULES]
    assert table.group(1).splitlines()[2:] == rows


# Real runs


SUPERVISED = [
    "backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "backbone.embedding_dim=32",
    "train.epochs=3", "train.batch.size=8", "train.log_every_steps=1", "train.lr_schedule.warmup.epochs=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data like small_data: as many images and the same labels, but other people."""
    images = faces(people=12, each=4, seed=9)
    source = Source(
        name="other", count=len(images), read=lambda start, stop: images[start:stop],
        labels=np.repeat(np.arange(12, dtype=np.int32), 4), held_out=16, block_rows=4,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("other") / "images.npy"
    prepare.prepare(source, out)
    return out


@pytest.fixture(scope="module")
def begun(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders stopped in the middle of epoch 1, and after epoch 0."""
    here = World(0, 1, torch.device("cpu"))
    folders = {}
    for name, stop_at in (("mid", 6), ("between", 4)):
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        run(small_data, folders[name], here, stop_at=stop_at)
    return folders


def again(begun: Path, into: Path) -> Path:
    shutil.copytree(begun, into)
    return into


def start_of(seen: list[dict]) -> dict:
    return [event for event in seen if event["event"] == "start"][-1]


REAL: list[tuple[str, list[str], str, str]] = [
    # name, words, outcome in the middle of an epoch and between two; "": no note; "!": refused with this text
    ("fraction", ["data.data_fraction=0.5"], "!data.data_fraction=1", "data.data_fraction 0.5, was 1"),
    ("seed", ["train.seed=5"], "!train.seed=2048", "train.seed 5, was 2048"),
    ("batch", ["train.batch.size=4"], "train.batch.size 4, was 8", "train.batch.size 4, was 8"),
    ("accumulate", ["train.batch.grad_accum_steps=2"], *("train.batch.grad_accum_steps 2, was 1",) * 2),
    ("projection", ["recipe.moco.projection_dim=8"], *("!give recipe.moco.projection_hidden=32",) * 2),
    ("precision", ["train.precision=fp16"], "train.precision fp16, was fp32", "train.precision fp16, was fp32"),
    ("optimizer", ["train.optimizer.name=adamw"], "!train.optimizer.name=sgd", "!train.optimizer.name=sgd"),
    ("decay_all", ["train.optimizer.decay_all=true"], "!decay_all=false", "!decay_all=false"),
    ("queue", ["recipe.moco.queue_size=32"], "!queue_size=24", "!queue_size=24"),
    ("backbone", ["backbone.width=16"], "!backbone.width=8", "!backbone.width=8"),
    ("epochs", ["train.epochs=4"], "train.epochs 4, was 3", "train.epochs 4, was 3"),
    ("rate", ["train.optimizer.lr=0.01", "train.optimizer.momentum=0.5"], "", ""),
    ("memory", ["backbone.gradient_checkpointing=true"], "", ""),
    ("dropout", ["backbone.dropout=0.1"], "backbone.dropout 0.1, was 0", "backbone.dropout 0.1, was 0"),
]


CELLS = [
    pytest.param(where, words, told, id=f"{name}-{where}")
    for name, words, mid, between in REAL
    for where, told in (("mid", mid), ("between", between))
]


@pytest.mark.parametrize(("where", "words", "told"), CELLS)
def test_a_real_run_keeps_the_contract(
    where: str, words: list[str], told: str, begun: dict[str, Path], small_data: Path, tmp_path: Path, alone: World
) -> None:
    folder = again(begun[where], tmp_path / "run")
    before = (folder / "config.yaml").read_text()
    if told.startswith("!"):
        with pytest.raises(WrongUse, match=re.escape(told[1:])):
            run(small_data, folder, alone, "train.resume=auto", *words)
        assert (folder / "config.yaml").read_text() == before, "the checkpoints in this folder are still of the old one"
        return
    seen = run(small_data, folder, alone, "train.resume=auto", *words)
    assert start_of(seen)["notes"] == ([told] if told else [])
    assert seen[-1]["reason"] == "done"
    final = sorted(folder.glob("checkpoints/epoch_00?.pt"))[-1]
    assert all(bool(torch.isfinite(t).all()) for t in tensors(final).values() if t.is_floating_point())


def test_other_data_is_refused_in_an_epoch_and_said_between_two(
    begun: dict[str, Path], other_data: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    with pytest.raises(WrongUse, match="in the middle of epoch 1, which needs data set"):
        run(other_data, again(begun["mid"], tmp_path / "mid"), alone, "train.resume=auto")
    taught = tmp_path / "taught"
    run(small_data, taught, alone, "mining.min_coverage=0", stop_at=8)
    ids = tensors(taught / "checkpoints" / "epoch_001.pt")["pseudo_ids.ids"]
    assert (ids >= 0).any()
    seen = run(other_data, taught, alone, "train.resume=auto", "mining.start_epoch=9")
    assert "pseudo-IDs and queue restart" in start_of(seen)["notes"][0]
    after = tensors(taught / "checkpoints" / "epoch_002.pt")
    assert (after["pseudo_ids.ids"] == -1).all(), "those of other images mean nothing here"
    assert set(after["queue.rows"].tolist()) <= {-1, *range(32)}
    assert len(open_configured(load([f"data.binary_cache_path={other_data}"]).data).images) == 48


def test_a_supervised_run_keeps_its_head_and_labels(
    small_data: Path, other_data: Path, tmp_path: Path, alone: World
) -> None:
    def go(data: Path, folder: Path, *words: str, stop_at: int | None = None) -> list[dict]:
        return run_supervised(data, folder, alone, *words, stop_at=stop_at)

    go(small_data, tmp_path / "mid", stop_at=6)
    go(small_data, tmp_path / "between", stop_at=4)
    shutil.copytree(tmp_path / "between", tmp_path / "other")
    for folder in (tmp_path / "mid", tmp_path / "between"):
        with pytest.raises(WrongUse, match=r"give recipe\.head\.name=arcface, or"):
            go(small_data, folder, "train.resume=auto", "recipe.head.name=magface")
        with pytest.raises(WrongUse, match=r"give train\.optimizer\.name=sgd, or"):
            go(small_data, folder, "train.resume=auto", "train.optimizer.name=adamw")
    with pytest.raises(WrongUse, match="middle of epoch 1, which needs data set"):
        go(other_data, tmp_path / "mid", "train.resume=auto")
    seen = go(other_data, tmp_path / "other", "train.resume=auto")
    assert start_of(seen)["notes"][0].startswith("continues with other data (data set ")
    labels = tmp_path / "labels.npy"
    people = np.repeat(np.arange(12, dtype=np.int32), 4)
    np.save(labels, np.append(np.roll(people[:32], 1), people[32:]))
    with pytest.raises(WrongUse, match="which needs the labels it was trained with"):
        go(small_data, tmp_path / "mid", "train.resume=auto", f"data.train_labels_path={labels}")
    np.save(labels, np.repeat(np.arange(12, dtype=np.int32) * 2, 4))
    with pytest.raises(WrongUse, match="was trained with other labels; give those labels"):
        go(small_data, tmp_path / "between", "train.resume=auto", f"data.train_labels_path={labels}")


def run_supervised(data: Path, folder: Path, here: World, *words: str, stop_at: int | None = None) -> list[dict]:
    """As `run`, with recipe supervised."""
    from app.runtime.folder import RunFolder
    from app.runtime.stop import Stop
    from app.runtime.track import JsonLines, Tracker
    from tests.app.support.training import Hook

    given = [
        *SUPERVISED,
        "recipe=supervised",
        "train.precision=fp32",
        f"data.binary_cache_path={data}",
        f"run.dir={folder}",
        *words,
    ]
    config, run_folder, stop = load(given), RunFolder(folder), Stop()

    def ask(record: dict) -> None:
        if record["event"] == "step" and record["step"] == stop_at:
            stop.asked.set()

    track = Tracker([JsonLines(run_folder), Hook(ask)])
    try:
        train.train(config, RECIPES["supervised"].training_data(config), run_folder, here, track, stop)
    finally:
        track.close()
    return events(folder)


def test_a_finished_run_is_done_and_fewer_epochs_are_wrong_use(
    small_data: Path, tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(small_data, folder, alone, "train.epochs=2")
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={folder}", "train.resume=auto"]
    assert train.main([*words, "train.epochs=1"]) == 2
    assert "2 epochs are done already; give train.epochs=3 or more" in capsys.readouterr().out
    assert train.main([*words, "train.epochs=2"]) == 0
    assert "all 2 epochs are done already" in capsys.readouterr().out
    assert events(folder)[-1]["reason"] == "done"


def test_a_checkpoint_without_facts_is_continued_and_says_what_it_lacks(
    begun: dict[str, Path], small_data: Path, tmp_path: Path, alone: World
) -> None:
    folder = again(begun["mid"], tmp_path / "run")
    path = next(folder.glob("checkpoints/*_step_*.pt"))
    content = torch.load(path, weights_only=True)
    del content["facts"]
    torch.save(content, path)
    note = json.loads(path.with_suffix(".json").read_text())
    del note["facts"]
    path.with_suffix(".json").write_text(json.dumps({**note, "sha256": checkpoint.sha256(path)}))
    seen = run(small_data, folder, alone, "train.resume=auto")
    assert seen[-1]["reason"] == "done"
    assert (
        "does not record train.seed" in " ".join(start_of(seen)["notes"])
        or "does not record" in start_of(seen)["notes"][0]
    )


def test_data_without_a_manifest_is_known_by_its_images(small_data: Path, tmp_path: Path) -> None:
    images = np.load(small_data)
    names = []
    for number in range(3):
        images[:, 0, 0, 0] += number == 2
        np.save(tmp_path / f"{number}.npy", images)
        names.append(
            identity(open_configured(load([f"data.binary_cache_path={tmp_path / f'{number}.npy'}"]).data))["data"]
        )
    assert names[0] == names[1] != names[2]


# For each fact, the word of a command line that changes it and no other fact of TINY.
WORDS: dict[str, str] = {
    "backbone": "backbone.width=16",
    "projection": "recipe.moco.projection_hidden=64",
    "queue_size": "recipe.moco.queue_size=48",
    "optimizer": "train.optimizer.name=adamw",
    "decay_all": "train.optimizer.decay_all=true",
    "fraction": "data.data_fraction=0.5",
    "seed": "train.seed=7",
    "batch": "train.batch.size=4",
    "accumulate": "train.batch.grad_accum_steps=2",
    "precision": "train.precision=fp16",
    "regularisation": "backbone.dropout=0.5",
    "epochs": "train.epochs=9",
    "gradient_checkpointing": "backbone.gradient_checkpointing=true",
}


def asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    note: Any,
    *words: str,
    data: str | None = "one",
    **more: object,
) -> tuple[int, str]:
    """The exit code of app.resumable, and what it says."""
    question = json.dumps({"note": note, "data": data, "own": False, **more})
    monkeypatch.setattr("sys.stdin", io.StringIO(question))
    monkeypatch.setattr("sys.argv", ["app.resumable", *TINY, *words])
    code = resumable.main()
    said = capsys.readouterr()
    return code, (said.err if code else said.out).strip()


def note_of(facts: Any, *, mid: bool) -> dict[str, Any]:
    return {"file": "epoch_001.pt", "epoch": 0 if not mid else 1, "step": 5, "epoch_complete": not mid, "facts": facts}


@pytest.mark.parametrize("mid", [False, True], ids=["between", "mid"])
@pytest.mark.parametrize("name", [*WORDS, "data"])
def test_the_laptop_is_told_what_training_will_say(
    name: str, mid: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, data = [WORDS[name]] if name in WORDS else [], "another" if name == "data" else "one"
    here = facts_of(load([*TINY, *words]), **{**DATA, "data": data}, ranks=2)
    assert {key for key in BASE if here[key] != BASE[key]} == {name}
    code, said = asked(monkeypatch, capsys, note_of(BASE, mid=mid), *words, data=data)
    expected = verdict_of(here, mid=mid)
    assert code == (2 if isinstance(expected, str) else 0)
    assert (said if code else json.loads(said)["notes"]) == expected


def verdict_of(here: dict[str, Any], *, mid: bool) -> str | list[str]:
    """What training answers to a resume from BASE: a refusal, or notes."""
    try:
        notes = judge("epoch_001.pt", BASE, here, epoch=1, seen=int(mid), own=False).notes
    except WrongUse as refused:
        return str(refused)
    # Training also says what becomes of pseudo-IDs, which depends on the rows of the file.
    return [note.partition("; pseudo-IDs")[0] for note in notes]


def test_what_the_laptop_cannot_know_is_left_to_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {**BASE, **{name: OTHER[name][name] for name in OTHER if name in UNFORESEEN}, "images": 1}
    assert asked(monkeypatch, capsys, note_of(others, mid=True), "data.shards=by_node") == (0, '{"notes": []}')
    code, said = asked(monkeypatch, capsys, note_of(others, mid=True))  # with data.shards=whole it knows the shards
    assert (code, "needs data.shards=by_node with 2 machines" in said) == (2, True)
    divided, by_node = note_of({**BASE, "shards": 2}, mid=True), "data.shards=by_node"
    assert asked(monkeypatch, capsys, divided, by_node, machines=2) == (0, '{"notes": []}')
    code, said = asked(monkeypatch, capsys, divided, by_node, machines=3)
    assert (code, "this run has data.shards=by_node with 3 machines" in said) == (2, True)
    assert asked(monkeypatch, capsys, note_of({**BASE, "data": "two"}, mid=True), data=None) == (0, '{"notes": []}')
    later = asked(monkeypatch, capsys, note_of({**BASE, "precision": "fp16"}, mid=True), "train.precision=auto")
    assert later == (0, '{"notes": []}')


def test_a_note_of_an_older_version_or_of_a_stranger_ends_in_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(TINY)
    older = {**note_of(None, mid=False), "model": config.model(), "dataset_id": "two", "fraction": 1.0}
    code, said = asked(monkeypatch, capsys, older)
    assert code == 0
    assert json.loads(said)["notes"][0] == "continues with other data (data set one, was data set two)"
    assert "does not record" in said
    code, said = asked(monkeypatch, capsys, older, "backbone.width=16")
    assert code == 2
    assert "give backbone.width=8, or" in said
    for value in (None, [], {}, "x", 1e400, True, [[1], "y"]):
        strange = dict.fromkeys(BASE, value)
        code, said = asked(monkeypatch, capsys, note_of(strange, mid=True))
        assert code in (0, 2), said
        assert "\n" not in said
