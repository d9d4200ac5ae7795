"""Contracts between the two halves, which never import each other: only these tests compare them."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import prepare
from app.config import load
from app.data import dataset as app_data
from app.data import shards as app_shards
from app.data.sources.source import Source
from app.data.sources.writer import begun
from app.mining import ivf, search
from app.report import page
from app.report.__main__ import make
from app.report.facts import read, read_plan
from app.report.verdict import sentence
from app.runtime import checkpoint
from app.runtime.folder import RunFolder as AppFolder
from deploy import border
from deploy.pod.base import checkpoints
from deploy.pod.base.folder import RunFolder as DeployFolder
from deploy.runs.records import carried_out, home
from deploy.shell import LocalShell
from deploy.specs import mining, shards
from deploy.specs.request import hydra_override
from deploy.workspace import dataset as deploy_data
from deploy.workspace.sources import HERE, Origin
from tests.deploy.workspace.test_dataset import Staging


@given(rows=st.integers(1, 5000), block=st.integers(1, 400), fraction=st.floats(0.0005, 1))
def test_a_fraction_means_the_same_blocks_on_both_sides(rows: int, block: int, fraction: float) -> None:
    assert app_data.choose_blocks(rows, block, fraction) == deploy_data.choose_blocks(rows, block, fraction)


@given(
    rows=st.integers(1, 900),
    held=st.integers(0, 300),
    block=st.integers(1, 90),
    of=st.integers(1, 9),
    n=st.integers(0, 8),
)
def test_a_shard_means_the_same_blocks_on_both_sides(rows: int, held: int, block: int, of: int, n: int) -> None:
    held, n = min(held, rows - 1), n % of
    theirs = shards.file_blocks(rows, held, block, shards.Shard(n, of))
    assert app_shards.file_blocks(rows, held, block, n, of) == theirs


@pytest.mark.parametrize("name", ["images.npy", "images.jpegs"])
def test_the_laptop_knows_the_file_that_an_interrupted_prepare_leaves(name: str, tmp_path: Path) -> None:
    assert not begun(tmp_path / name)
    deploy_data.unfinished(tmp_path / name).touch()
    assert begun(tmp_path / name)


@pytest.mark.parametrize("name", ["auto", "exact", "ivf"])
@pytest.mark.parametrize("images", [2, mining.EXACT_UP_TO, mining.EXACT_UP_TO + 1])
def test_the_plan_names_the_search_that_the_app_makes(name: str, images: int) -> None:
    assert mining.choose(name, images) == search.choose_search(name, images, faiss=True)
    cells = (mining.ROWS_A_CELL, mining.TRAINED_A_CELL, mining.TRAINING_ROUNDS)
    assert cells == (ivf.ROWS_A_CELL, ivf.TRAINED_A_CELL, ivf.TRAINING_ROUNDS)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_shards_that_the_laptop_stages_are_what_the_app_reads(
    prepared: Path, tmp_path: Path, fraction: float
) -> None:
    options = {"labels_path": None, "fraction": fraction, "block_rows": 8192}
    whole = app_data.open_dataset(prepared, **options)
    read = np.zeros(len(whole.train_rows), np.int64)
    for number in (0, 1):
        staging = Staging(prepared, tmp_path / "ram", tmp_path / "root", shards.Shard(number, 2))
        assert "staged" in (staging.run(fraction) or "")
        assert "already there" in (staging.run(fraction) or "")
        path = Path(staging.plan(fraction).data_path)
        staged = app_data.open_dataset(path, **options)
        assert staged.part == app_shards.Part(number, 2)
        assert staged.dataset_id == whole.dataset_id
        assert path.stat().st_size < prepared.stat().st_size * 0.8
        own = np.isin(np.arange(len(read)) // 3 % 2, number)  # blocks of 3
        assert np.array_equal(staged.images[staged.train_rows[own]], whole.images[whole.train_rows[own]])
        assert np.array_equal(staged.images[staged.held_out_rows], whole.images[whole.held_out_rows])
        assert np.array_equal(staged.labels[staged.train_rows], whole.labels[whole.train_rows])
        read += own
    assert (read == 1).all()


def test_a_run_folder_has_the_same_names_on_both_sides() -> None:
    app, deploy = AppFolder(Path("r")), DeployFolder(Path("r"))
    names = ["path", "plan", "placement", "run", "config", "metrics", "status", "report", "verification"]
    names += ["checkpoints", "latest"]
    assert [getattr(app, name) for name in names] == [getattr(deploy, name) for name in names]


NOTES = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 3)), min_size=1, max_size=6, unique=True)


@given(notes=NOTES)
@settings(max_examples=50, deadline=None)
def test_both_sides_name_the_same_checkpoint_the_newest(notes: list[tuple[int, bool, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints"
        folder.mkdir()
        for number, (epoch, complete, step) in enumerate(notes):
            path = folder / f"epoch_{number}.pt"
            path.write_bytes(b"%d" % number)
            note = {"file": path.name, "bytes": 1, "sha256": checkpoint.sha256(path)}
            note |= {"epoch": epoch, "epoch_complete": complete, "step": step}
            path.with_suffix(".json").write_text(json.dumps(note))
        told = checkpoints.newest(DeployFolder(Path(place)))
        found = checkpoint.newest(AppFolder(Path(place)))
        assert told
        assert found
        assert told["file"] == found.name


@pytest.mark.parametrize("plan", [{}, {"gpus": 1}, {"attempt": 2, "gpus": 1, "command": "a"}], ids=["no", "old", "new"])
@pytest.mark.parametrize("placement", [{}, {"attempt": 1, "gpus": 4}, {"attempt": 2, "gpus": 4}], ids=["no", "1", "2"])
def test_both_sides_read_the_same_plan_as_carried_out(
    plan: dict[str, object], placement: dict[str, object], tmp_path: Path
) -> None:
    """A report and `invoke status` show the same GPUs. Only the placement of the plan's own attempt counts."""
    folder = AppFolder(Path(home(tmp_path, "r").path))
    folder.path.mkdir(parents=True)
    for path, content in ((folder.plan, plan), (folder.placement, placement)):
        if content:
            path.write_text(json.dumps(content))
    read_there, read_here = read_plan(folder), carried_out(tmp_path, "r")
    assert read_there == read_here
    assert read_here.get("gpus") == (4 if plan.get("attempt") == placement.get("attempt") == 2 else plan.get("gpus"))


def test_both_installers_ask_alike_whether_torch_needs_cuda() -> None:
    import bootstrap
    from deploy.pod.agent import environment

    assert bootstrap.ASKS_FOR_CUDA == environment.ASKS_FOR_CUDA


def test_the_laptop_takes_the_reports_that_the_app_writes() -> None:
    assert page.BEGIN.encode() == border.REPORT_BEGINS


def test_the_launcher_prints_the_verdict_of_the_report(tmp_path: Path) -> None:
    """The sentence is made in one place, whatever a machine calls its sets."""
    measured = {"event": "eval", "what": "sets/<b> \"x\" & 'y'", "accuracy": 0.9, "step": 1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(measured) + "\n")
    facts = read(AppFolder(tmp_path))
    make(AppFolder(tmp_path))
    assert sentence(facts).count("<b> \"x\" & 'y'") == 1
    assert border.verdict(tmp_path / "report.html") == sentence(facts)
    assert border.FILE_BYTES["report.html"] >= page.BYTES_MOST


def test_the_app_hears_which_of_its_options_were_typed_as_flags() -> None:
    from app.errors import FLAGS
    from deploy.commands.app import FLAGS as TOLD

    assert FLAGS == TOLD


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """24 images of 8 people in blocks of 3; 6 images are held out."""
    images = np.random.default_rng(0).integers(0, 255, (24, 112, 112, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(8, dtype=np.int32), 3)
    out = tmp_path / "data" / "images.npy"
    prepare.prepare(Source("faces", 24, lambda a, b: images[a:b], labels, held_out=6, block_rows=3), out)
    return out


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_what_the_laptop_stages_is_what_the_app_would_have_read_in_place(
    prepared: Path, tmp_path: Path, fraction: float
) -> None:
    staging = Staging(prepared, tmp_path / "ram", tmp_path / "root")
    staging.run(fraction)
    staged_path = Path(staging.plan(fraction).data_path)
    options = {"labels_path": None, "fraction": fraction, "block_rows": 8192}
    staged, in_place = app_data.open_dataset(staged_path, **options), app_data.open_dataset(prepared, **options)
    for part in ("train_rows", "held_out_rows"):
        here, there = getattr(staged, part), getattr(in_place, part)
        assert np.array_equal(staged.images[here], in_place.images[there])
        assert np.array_equal(staged.labels[here], in_place.labels[there])
    assert (
        staged.dataset_id
        == in_place.dataset_id
        == json.loads(prepared.with_name("manifest.json").read_text())["dataset_id"]
    )


def test_the_laptop_knows_what_the_app_will_make_of_the_photographs(tmp_path: Path) -> None:
    out = tmp_path / "orl" / "images.npy"
    prepare.main(["source=orl", f"out={out}"])
    known = deploy_data.orl_facts(out, 0.3)
    found = deploy_data.facts(deploy_data.find(Origin(HERE, out, LocalShell()), 8192), 0.3)
    prepared = dataclasses.replace(known, ready=True, dataset_id=found.dataset_id, staged_as=found.staged_as)
    assert prepared == found


@settings(max_examples=15)
@given(st.text(min_size=1, max_size=30).filter(lambda text: "\n" not in text and "\r" not in text and "\0" not in text))
def test_any_path_survives_the_command_line(text: str) -> None:
    assert load([hydra_override("data.binary_cache_path", text)]).data.binary_cache_path == text


def test_the_plan_and_the_job_settle_the_precision_alike() -> None:
    """Each half has its own copy of the rule, because they share no code."""
    from app.runtime.precision import resolve
    from deploy.specs import memory

    for wish in ("auto", "fp32", "fp16", "bf16"):
        assert memory.resolve(wish, None, None) == resolve(wish, [])
        for capability in ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
            assert memory.resolve(wish, capability, "any") == resolve(wish, [capability])
