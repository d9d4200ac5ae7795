"""Images packed for a slow connection: real SSH, the app's own packing; only the training is a stub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import WrongUse
from deploy.runs import records
from deploy.shell import LocalShell
from deploy.specs.request import parse_request
from deploy.workspace import compression, dataset
from deploy.workspace.sources import HERE, Origin
from tests.deploy.commands.test_remote import SLOW_STEPS, Box, any_box, box
from tests.deploy.conftest import SOURCE, Project, wait_until
from tests.deploy.support.pretend.app.prepare import header
from tests.deploy.support.proxy import proxy

__all__ = ["any_box", "box"]  # fixtures

ROW = dataset.ROW_BYTES
ROWS, BLOCK_ROWS, HELD_OUT = 40, 5, 10


@pytest.fixture
def project(project: Project) -> Project:
    """The stub app with the packing of the real one."""
    shutil.copytree(SOURCE / "app" / "packing", project.path / "app" / "packing")
    for name in ("files.py", "errors.py"):
        shutil.copy(SOURCE / "app" / name, project.path / "app" / name)
    return project


def prepare(path: Path, rows: int = ROWS, *, noise: int = 12, manifest: bool = True) -> Path:
    """Write images of smooth colours with noise, in blocks of 5; the last 10 rows are held out."""
    rng = np.random.default_rng(rows)
    ramp = np.linspace(0, 1, 112)
    corners = rng.integers(20, 230, (2, rows, 1, 1, 3))
    smooth = corners[0] * ramp[None, :, None, None] + corners[1] * (1 - ramp[None, None, :, None])
    images = np.clip(smooth / 1.2 + rng.normal(0, noise, (rows, 112, 112, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header("|u1", images.shape) + images.tobytes())
    blocks = [hashlib.sha256(images[at : at + BLOCK_ROWS].tobytes()).hexdigest() for at in range(0, rows, BLOCK_ROWS)]
    about = {
        "dataset_id": dataset.dataset_id(blocks), "name": "faces", "rows": rows, "block_rows": BLOCK_ROWS,
        "blocks": blocks, "held_out_rows": HELD_OUT, "selection": None,
    }  # fmt: skip
    if manifest:
        path.with_name("manifest.json").write_text(json.dumps(about), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return prepare(tmp_path / "my fäces" / "images.npy")


def pixels(path: Path) -> Any:
    return np.load(path)


def manifest(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))
    return told


def deploy(box: Box, images: Path, *words: str, code: int = 0) -> str:
    box.target(data=str(images))
    done = box.invoke("deploy", *words, code=code)
    return done.stderr if code else done.stdout


def cached(box: Box, kind: str) -> list[Path]:
    return sorted((box.project.path / ".sniperface" / "packed").glob(f"*/{kind}/*.pack"))


def test_lossless_arrives_to_the_bit(any_box: Box, images: Path) -> None:
    """The staged images equal an upload without packing, so a later call without the flag uploads nothing."""
    said = deploy(any_box, images, "--pack", "lossless")
    assert "packed as lossless (nothing is lost)" in said
    staged = any_box.staged()
    assert staged.read_bytes()[-ROWS * ROW :] == images.read_bytes()[-ROWS * ROW :]
    assert manifest(staged)["dataset_id"] == manifest(images)["dataset_id"]
    assert manifest(staged)["packed"] is None
    assert not (any_box.root / "packed").exists()
    assert "already there" in deploy(any_box, images)


def test_what_is_lossy_is_another_data_set(box: Box, images: Path) -> None:
    """A lossy copy has another id, manifest and blocks than the original, and a folder of its own."""
    said = deploy(box, images, "--pack", "jpeg95")
    assert "packed as jpeg95 (lossy: another data set than the original)" in said
    assert "train on it with" in said
    assert "--pack jpeg95" in said.split("train on it with")[1]
    staged = box.staged()
    about, error = manifest(staged), pixels(staged).astype(float) - pixels(images)
    assert 0 < np.abs(error).max() <= 40
    assert 10 * np.log10(255**2 / (error**2).mean()) > 33
    assert about["dataset_id"] == f"{manifest(images)['dataset_id']}-jpeg95"
    assert about["packed"] == "jpeg95"
    starts = range(0, ROWS, BLOCK_ROWS)
    assert about["blocks"] == [
        hashlib.sha256(pixels(staged)[at : at + BLOCK_ROWS].tobytes()).hexdigest() for at in starts
    ]
    assert not set(about["blocks"]) & set(manifest(images)["blocks"])
    packed = {path: path.stat().st_mtime_ns for path in cached(box, "jpeg95")}
    assert len(packed) == ROWS // BLOCK_ROWS
    again = deploy(box, images, "--pack", "jpeg95")
    assert "already there" in again
    assert "packed as" not in again
    assert "staged" in deploy(box, images)
    assert np.array_equal(pixels(box.staged()), pixels(images))
    assert "already there" in deploy(box, images, "--pack", "jpeg95")
    assert not np.array_equal(pixels(staged), pixels(images))
    assert {path: path.stat().st_mtime_ns for path in cached(box, "jpeg95")} == packed
    assert not (box.root / "packed").exists()


def test_without_a_manifest_it_is_told_apart_as_well(box: Box, tmp_path: Path) -> None:
    """Path, size, time and packing format identify a data set. Changed images are packed and staged again."""
    images = prepare(tmp_path / "bare" / "images.npy", manifest=False)
    deploy(box, images, "--pack", "jpeg80")
    staged = box.staged()
    lossy = pixels(staged)
    assert manifest(staged)["dataset_id"].endswith("-jpeg80")
    assert "already there" in deploy(box, images, "--pack", "jpeg80")
    assert "staged" in deploy(box, images)
    assert not np.array_equal(pixels(box.staged()), lossy)
    prepare(images, rows=ROWS + 1, manifest=False)
    assert "staged" in deploy(box, images, "--pack", "jpeg80")
    assert len(pixels(box.staged())) == ROWS + 1
    assert np.array_equal(pixels(staged), lossy)  # each has a folder of its own


def test_a_fraction_packs_its_blocks_and_no_others(box: Box, images: Path) -> None:
    """A later call with more of the data packs the missing blocks. The target's file may set the format."""
    box.target(pack="jpeg95")
    plan = box.json("train", "--dry-run", "--data", str(images), "--fraction", "0.5")
    assert (plan["data"]["packed"], plan["data"]["packed_bytes"]) == ("jpeg95", None)
    shown = box.invoke("train", "--dry-run", "--data", str(images), "--fraction", "0.5").stdout
    assert "packed as jpeg95 (lossy: another data set than the original), before a machine is requested" in shown
    assert not cached(box, "jpeg95")
    done = box.json("train", "--data", str(images), "--fraction", "0.5")
    assert done["state"] == "succeeded"
    chosen = [*dataset.choose_blocks(ROWS - HELD_OUT, BLOCK_ROWS, 0.5), 6, 7]
    assert [int(path.stem) for path in cached(box, "jpeg95")] == chosen
    told = manifest(next(box.ram.rglob("*-f0.5/images.npy")))
    assert told["selection"]["of"] == f"{manifest(images)['dataset_id']}-jpeg95"
    assert told["dataset_id"].endswith("-jpeg95")
    home = box.project.path / "runs" / done["run_id"]
    kept = records.carried_out(home.parent, home.name)
    sizes = [path.stat().st_size for path in cached(box, "jpeg95")]
    assert (kept["data"]["packed_bytes"], kept["request"]["pack"]) == (sum(sizes), "jpeg95")
    shown = box.invoke("train", "--dry-run", "--data", str(images), "--fraction", "0.5").stdout
    assert "MiB instead of" in shown
    box.json("train", "--data", str(images))
    assert len(cached(box, "jpeg95")) == ROWS // BLOCK_ROWS
    box.json("train", "--data", str(images), "--pack", "none")
    assert np.array_equal(pixels(box.staged()), pixels(images))


@pytest.mark.slow
def test_a_cut_in_the_middle_moves_only_the_rest(box: Box, tmp_path: Path) -> None:
    """The laptop dies during a slow upload. The next call packs nothing again and uploads only the rest."""
    images = prepare(tmp_path / "faces" / "images.npy", rows=250, noise=60)
    box.invoke("deploy")  # uploads the code
    with proxy(box.server.port, bytes_per_s=1.5e6) as line:
        box.target(port=line.port, data=str(images))
        first = box.project.start("deploy", "--on", "box", "--pack", "jpeg95")
        wait_until(lambda: line.counters()["up"] > 3e6, 60)
        first.kill()
        first.communicate()
        sent = sum(path.stat().st_size for path in cached(box, "jpeg95"))
        assert sent > 4e6
        assert not [each for each in box.ram.rglob("images.npy") if not each.parent.name.startswith("orl-")]
        packed = {path: path.stat().st_mtime_ns for path in cached(box, "jpeg95")}
        before = line.counters()["up"]
        deploy_again = box.invoke("deploy", "--pack", "jpeg95").stdout
        assert "staged" in deploy_again
        assert line.counters()["up"] - before < sent - 1e6
    assert {path: path.stat().st_mtime_ns for path in cached(box, "jpeg95")} == packed
    staged = box.staged()
    assert hashlib.sha256(pixels(staged)[-BLOCK_ROWS:].tobytes()).hexdigest() == manifest(staged)["blocks"][-1]
    assert not list(box.ram.rglob("*.part"))
    assert not (box.root / "packed").exists()


def test_a_packed_block_that_was_spoiled_is_refused_with_its_name(box: Box, images: Path) -> None:
    """No file appears under the final name, and the advice in the error works."""
    deploy(box, images, "--pack", "jpeg95")
    shutil.rmtree(box.ram)
    spoiled = cached(box, "jpeg95")[3]
    content = bytearray(spoiled.read_bytes())
    content[-9] ^= 0x5A
    spoiled.write_bytes(content)
    failed = deploy(box, images, "--pack", "jpeg95", code=1)
    assert "packed block 3 (rows 15 onwards)" in failed
    assert f"remove {spoiled.parent}" in failed
    assert not list(box.ram.rglob("images.npy"))
    shutil.rmtree(spoiled.parent)
    assert "staged" in deploy(box, images, "--pack", "jpeg95")


def test_images_that_are_not_what_their_manifest_says_are_not_packed(box: Box, images: Path) -> None:
    """The check comes before anything is written on the machine."""
    with images.open("r+b") as file:
        file.seek(128 + 12 * ROW)
        file.write(b"spoiled")
    failed = deploy(box, images, "--pack", "lossless", code=1)
    assert "block 2 (rows 10 onwards) of " in failed
    assert "not what manifest.json says" in failed
    assert not box.root.exists()


def test_a_run_that_goes_on_keeps_its_way(box: Box, images: Path) -> None:
    """Another --pack would train on other images, so it is refused. Without the flag, the run keeps its format."""
    run = box.json("train", "--data", str(images), "--pack", "jpeg95", "--detach", *SLOW_STEPS)["run_id"]
    wait_until(lambda: list((box.root / "runs").glob("*/checkpoints/epoch_000.json")), 60)
    box.invoke("stop")
    refused = box.invoke("train", "--resume", "auto", "--pack", "none", code=2).stderr
    assert f"--pack none contradicts run {run}" in refused
    on = box.invoke("train", "--resume", "auto", "--detach").stdout
    assert "already there" in on
    assert manifest(box.staged())["packed"] == "jpeg95"
    box.invoke("stop")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deploy", "--on", "local", "--pack", "jpeg95"], "these stay here: leave it out"),
        (["deploy", "--on", "box", "--pack", "jpeg95"], "these are on the machine"),
        (["train", "--on", "box", "--data", "machine:/a/images.npy", "--pack", "lossless"], "are on the machine"),
        (["train", "--on", "box", "--pack", "jpeg20"], "jpeg50 to jpeg100"),
    ],
)
def test_where_packing_means_nothing_it_is_said(box: Box, words: list[str], said: str) -> None:
    """The command ends with exit code 2 before it changes anything."""
    assert said in box.project.invoke(*words, code=2).stderr
    assert not box.root.exists()


def test_a_target_may_say_it_for_those_images_that_are_sent(box: Box) -> None:
    """A target's format is ignored if the images are not uploaded. An invalid format is an error."""
    box.target(pack="jpeg95")
    planned = box.invoke("train", "--dry-run").stdout
    assert "pack: jpeg95 of conf/deploy/box.yaml is for images of this computer" in planned
    assert "these are on the machine: not packed" in planned
    assert box.json("train", "--dry-run")["request"]["pack"] == "none"
    box.target(pack="png")
    assert "pack: in conf/deploy/box.yaml: png is not a packing format" in box.invoke("deploy", code=2).stderr


@pytest.mark.parametrize("kind", ["none", "lossless", "jpeg50", "jpeg100"])
def test_kinds(kind: str) -> None:
    assert parse_request(target="x", pack=kind).pack == kind


@pytest.mark.parametrize("kind", ["", "jpeg", "jpeg49", "jpeg101", "jpeg095", "JPEG95", "png", "jpeg\u0669\u0665"])
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(WrongUse, match="such as jpeg95"):
        parse_request(target="x", pack=kind)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error also says how to install it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("PIL", "simplejpeg") else find(name))
    with pytest.raises(
        WrongUse, match=r"pillow and simplejpeg, not installed here: start the command with `python bootstrap\.py"
    ):
        compression.check_possible("jpeg95")


def test_the_real_app_reads_what_was_sent(box: Box, tmp_path: Path) -> None:
    """The app, its photographs, configuration and manifest are real. No training runs."""
    from app import prepare as app_prepare
    from app.data.dataset import open_dataset
    from app.data.sources.source import orl

    for name in ("app", "torch"):
        shutil.rmtree(box.project.path / name)
    for name in ("app", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "deploy")
        shutil.copytree(SOURCE / name, box.project.path / name, ignore=ignored, dirs_exist_ok=True)
    images = tmp_path / "orl" / "images.npy"
    app_prepare.prepare(orl(), images)
    deploy(box, images, "--pack", "jpeg95")
    options = {"labels_path": None, "fraction": 1.0, "block_rows": 8192}
    there, here = open_dataset(box.staged(), **options), open_dataset(images, **options)
    assert there.dataset_id == f"{here.dataset_id}-jpeg95"
    assert np.array_equal(there.train_rows, here.train_rows)
    assert np.array_equal(there.labels, here.labels)
    error = there.images.astype(np.float32) - here.images
    assert 10 * np.log10(255**2 / (error**2).mean(axis=(1, 2, 3)).max()) > 40
    assert np.abs(error).max() <= 16
    sent = sum(path.stat().st_size for path in cached(box, "jpeg95"))
    assert sent < images.stat().st_size / 5


def test_a_lossy_copy_stays_one(box: Box, images: Path, tmp_path: Path) -> None:
    """An upload of a lossy copy without packing keeps its id and its mark."""
    deploy(box, images, "--pack", "jpeg95")
    staged = box.staged()
    mine = tmp_path / "copy" / "images.npy"
    mine.parent.mkdir()
    for name in ("images.npy", "manifest.json"):
        shutil.copy(staged.with_name(name), mine.with_name(name))
    shutil.rmtree(box.ram)
    deploy(box, mine)
    assert manifest(staged)["dataset_id"] == manifest(mine)["dataset_id"]
    assert manifest(staged)["packed"] == "jpeg95"
    found = dataset.find(Origin(HERE, mine, LocalShell()), 8192)
    assert dataset.facts(found, 1.0).dataset_id == f"{manifest(images)['dataset_id']}-jpeg95"


def test_a_machine_without_room_for_the_packed_file_says_so(box: Box, images: Path) -> None:
    """Packed blocks are uploaded to the machine's disk, wherever the images are staged."""
    (box.root / "packed").parent.mkdir(parents=True)
    (box.root / "packed").write_bytes(b"in the way")
    if sys.platform == "win32":
        pytest.skip("needs POSIX: another sentence there")
    failed = deploy(box, images, "--pack", "jpeg95", code=1)
    assert "packed images" in failed
    assert "--pack none" in failed
