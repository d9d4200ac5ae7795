"""Recipe distill: the student comes nearer to the teacher on faces it never saw, and the teacher stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.config import Config, load
from app.data.augment import to_float
from app.data.dataset import Dataset, open_configured
from app.errors import WrongUse
from app.export import main as export
from app.models import build_backbone
from app.recipes import Distill
from app.recipes.recipe import Batch
from app.recipes.teacher import Teacher
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.weights import load_backbone
from app.train import main
from tests.app.support.training import TINY, assert_equal_bits, run, tensors

LAST = Path("checkpoints") / "epoch_002.pt"
STUDENT = ["recipe=distill", "backbone.layers=[1]", "train.optimizer.lr=0.1", "recipe.augment.flip=0.5"]


@pytest.fixture(scope="module")
def taught(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a supervised run: a larger network than the student, with a larger input."""
    folder, here = tmp_path_factory.mktemp("teacher") / "run", World(0, 1, torch.device("cpu"))
    run(
        small_data, folder, here,
        "recipe=supervised", "recipe.head.scale=16", "recipe.head.margin=0.2", "backbone.image_size=48",
        "train.optimizer.lr=0.1",
    )  # fmt: skip
    return folder / LAST


def network_of(path: Path, config: Config) -> nn.Module:
    network = build_backbone(config.backbone)
    load_backbone(path, network)
    return network.eval()


@torch.no_grad()
def embeddings(network: nn.Module, config: Config, images: np.ndarray) -> torch.Tensor:
    return F.normalize(network(to_float(torch.from_numpy(images), config.backbone.image_size)), dim=1)


def test_the_student_comes_nearer_to_the_teacher_on_held_out_faces(
    taught: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    """Without labels: the file has none."""
    bare = tmp_path / "images.npy"
    shutil.copy(small_data, bare)
    shutil.copy(small_data.with_name("manifest.json"), bare.with_name("manifest.json"))
    before = checkpoint.sha256(taught)
    seen = run(bare, tmp_path / "run", alone, *STUDENT, f"recipe.distill.teacher={taught}", "train.epochs=12")
    path = tmp_path / "run" / "checkpoints" / "epoch_011.pt"
    teacher_config = load([], base=taught.parent.parent / "config.yaml")
    student_config = load([], base=tmp_path / "run" / "config.yaml")
    data = open_configured(student_config.data)
    held_out = np.ascontiguousarray(data.images[data.held_out_rows])
    wanted = embeddings(network_of(taught, teacher_config), teacher_config, held_out)
    trained = embeddings(network_of(path, student_config), student_config, held_out)
    first = Distill(student_config, data, alone)
    first.calibrate()
    untrained = embeddings(first.backbone.eval(), student_config, held_out)
    before_it, after = ((each * wanted).sum(1) for each in (untrained, trained))
    assert float(after.mean()) > float(before_it.mean()) + 0.2, "the people of these images were in no batch"
    gain = after - before_it
    assert float(gain.mean()) > 4 * float(gain.std()) / len(gain) ** 0.5, "not the luck of a few images"
    steps = [e for e in seen if e["event"] == "step"]
    assert steps[-1]["teacher_cosine"] > steps[0]["teacher_cosine"] + 0.2
    assert steps[-1]["distillation"] == pytest.approx(1 - steps[-1]["teacher_cosine"], abs=1e-5)
    assert checkpoint.sha256(taught) == before
    kept = tensors(path)
    assert {name.split(".")[0] for name in kept if not name[0].isdigit()} == {"embedder"}, "the teacher is in no file"
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["facts"]["teacher"] == {"file": "epoch_002.pt", "sha256": before}
    assert (told["recipe"], told["model"]["head"]) == ("distill", None)


def configured(small_data: Path, *words: str) -> Config:
    return load([*TINY, *STUDENT, f"data.binary_cache_path={small_data}", "train.precision=fp32", *words])


def batch_of(recipe: Distill, rows: list[int]) -> Batch:
    data = recipe.data
    draws = recipe.augment.draw(len(rows), torch.Generator().manual_seed(3))
    images = torch.from_numpy(np.ascontiguousarray(data.images[rows]))
    return Batch(images, np.array(rows), torch.from_numpy(recipe.targets(np.array(rows))), draws, 0)


def recipe_of(config: Config, alone: World) -> Distill:
    return Distill(config, Distill.training_data(config), alone)


def test_the_teacher_is_frozen_and_sees_the_same_views_at_its_own_size(
    taught: Path, small_data: Path, alone: World
) -> None:
    recipe = recipe_of(configured(small_data, f"recipe.distill.teacher={taught}"), alone)
    teacher = recipe.teacher
    assert teacher.size == 48
    batch = batch_of(recipe, [0, 5, 9])
    views = recipe.augment(batch.images, batch.draws)
    assert views.shape[-1] == 32
    recipe.modules.train()
    wanted = teacher(views, batch)
    assert not wanted.requires_grad
    config = load([], base=taught.parent.parent / "config.yaml")
    own = network_of(taught, config)
    larger = teacher.augment(batch.images, batch.draws)
    with torch.no_grad():
        torch.testing.assert_close(
            F.normalize(wanted, dim=1), F.normalize(own(larger), dim=1), rtol=1e-4, atol=1e-4
        )  # BN's averages, not the batch's
    pooled = F.interpolate(larger, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    apart, mirrored = (float((each - views).abs().mean()) for each in (pooled, pooled.flip(3)))
    assert apart < 0.5 * mirrored, "the same side, at two sizes"
    loss, _ = recipe.loss(batch)
    loss.backward()
    assert all(p.grad is None for p in teacher.embedder.network.parameters())
    trained = {id(p) for group in recipe.param_groups() for p in group["params"]}
    own_ones = [p for p in recipe.backbone.parameters() if p.requires_grad]
    assert trained == {id(p) for p in own_ones}
    assert all(p.grad is not None for p in own_ones)


def test_the_teacher_runs_in_the_precision_of_the_run(taught: Path, small_data: Path, alone: World) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        config = configured(small_data, f"recipe.distill.teacher={taught}", f"train.precision={precision}")
        teacher = Teacher(config, alone)
        kinds: set[torch.dtype] = set()
        convolution = next(m for m in teacher.embedder.network.modules() if isinstance(m, nn.Conv2d))
        convolution.register_forward_hook(lambda _, __, out, kinds=kinds: kinds.add(out.dtype))
        recipe = recipe_of(config, alone)
        batch = batch_of(recipe, [0, 1])
        assert teacher(recipe.augment(batch.images, batch.draws), batch).dtype == torch.float32
        found[precision] = kinds
    assert found == {"fp32": {torch.float32}, "bf16": {torch.bfloat16}}


WITH_HEAD = [
    "backbone.embedding_dim=16", "recipe.distill.projection=true", "recipe.distill.head_weight=0.5",
    "recipe.head.scale=16", "recipe.distill.loss=l2", "recipe.ema=0.9",
]  # fmt: skip


def test_with_a_head_both_losses_are_added(taught: Path, small_data: Path, alone: World) -> None:
    config = configured(small_data, f"recipe.distill.teacher={taught}", *WITH_HEAD, "recipe.distill.weight=3")
    recipe = recipe_of(config, alone)
    batch = batch_of(recipe, [0, 5, 9, 20])
    loss, metrics = recipe.loss(batch)
    margin, _ = recipe.head(recipe.last, batch.targets)
    torch.testing.assert_close(loss, 3 * metrics["distillation"] + 0.5 * margin)
    assert recipe.projection.weight.shape == (32, 16)
    names = {name for name, p in recipe.trained.named_parameters() if p.requires_grad}
    assert "projection.weight" in names
    assert recipe.tables()["weight"].shape == (8, 16)


def test_another_size_of_the_embedding_needs_a_matrix(taught: Path, small_data: Path, alone: World) -> None:
    config = configured(small_data, f"recipe.distill.teacher={taught}", "backbone.embedding_dim=16")
    with pytest.raises(WrongUse, match=r"have 32 numbers and the student's 16; give backbone\.embedding_dim=32, or"):
        recipe_of(config, alone)


@pytest.mark.parametrize(
    "words", [pytest.param([], id="alone"), pytest.param(WITH_HEAD, id="with head and matrix", marks=pytest.mark.slow)]
)
def test_stopped_and_resumed_equals_never_stopped(
    words: list[str], taught: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    words = [*STUDENT, f"recipe.distill.teacher={taught}", "train.epochs=2", *words]
    run(small_data, tmp_path / "whole", alone, *words)
    assert run(small_data, tmp_path / "cut", alone, *words, stop_at=6)[-1]["reason"] == "stopped"
    run(small_data, tmp_path / "cut", alone, *words, "train.resume=auto")
    final = Path("checkpoints") / "epoch_001.pt"
    assert_equal_bits(tmp_path / "whole" / final, tmp_path / "cut" / final)


def test_another_teacher_is_refused_and_the_same_under_another_name_is_not(
    taught: Path, small_data: Path, tmp_path: Path, alone: World
) -> None:
    words = [*STUDENT, f"recipe.distill.teacher={taught}", "train.epochs=2"]
    run(small_data, tmp_path / "run", alone, *words, stop_at=4)
    other = tmp_path / "other" / "checkpoints" / "first.pt"
    other.parent.mkdir(parents=True)
    shutil.copy(taught.parent.parent / "config.yaml", other.parent.parent / "config.yaml")
    shutil.copy(taught.with_name("epoch_000.pt"), other)
    again = [*STUDENT, "train.epochs=2", "train.resume=auto"]
    with pytest.raises(WrongUse, match=r"made with the teacher epoch_002\.pt .*here it is the teacher first\.pt "):
        run(small_data, tmp_path / "run", alone, *again, f"recipe.distill.teacher={other}")
    shutil.copy(taught, other)
    seen = run(small_data, tmp_path / "run", alone, *again, f"recipe.distill.teacher={other}")
    assert [e["notes"] for e in seen if e["event"] == "start"][-1] == []
    assert seen[-1]["reason"] == "done"


@pytest.mark.slow
def test_the_tryout_trains_with_its_teacher(small_data: Path, tmp_path: Path) -> None:
    where = [f"data.binary_cache_path={small_data}", "train.epochs=1", "train.lr_schedule.warmup.epochs=0.5"]
    teacher = tmp_path / "teacher"
    assert main(["experiment=tryout_supervised", *where, f"run.dir={teacher}"]) == 0
    told = [f"recipe.distill.teacher={teacher / 'checkpoints' / 'epoch_000.pt'}", f"run.dir={tmp_path / 'student'}"]
    assert main(["experiment=tryout_distill", *where, *told]) == 0
    assert (tmp_path / "student" / "checkpoints" / "epoch_000.pt").is_file()


@pytest.mark.slow
def test_an_onnx_file_and_published_weights_teach_the_same(
    small_data: Path, tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both of a MobileFaceNet of random weights; the backbone of the .pt is named."""
    named = ["backbone=mobilefacenet", "backbone.width=64", "backbone.layers=[1,1,1,1]", "backbone.embedding_dim=32"]
    torch.manual_seed(5)
    network = build_backbone(load(named).backbone)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "mbf.pt")
    assert export([f"weights={tmp_path / 'mbf.pt'}", *named, f"out={tmp_path / 'mbf.onnx'}"]) == 0
    capsys.readouterr()
    config = configured(small_data, f"recipe.distill.teacher={tmp_path / 'mbf.onnx'}")
    recipe = recipe_of(config, alone)
    batch = batch_of(recipe, [3, 7])
    views = recipe.augment(batch.images, batch.draws)
    wanted = recipe.teacher(views, batch)
    assert (recipe.teacher.size, recipe.teacher.dim) == (112, 32)
    with torch.no_grad():
        own = network.eval()(recipe.teacher.augment(batch.images, batch.draws))
    torch.testing.assert_close(F.normalize(wanted, dim=1), F.normalize(own, dim=1), rtol=1e-4, atol=1e-4)
    seen = run(small_data, tmp_path / "run", alone, *STUDENT, "train.epochs=1",
               f"recipe.distill.teacher={tmp_path / 'mbf.onnx'}")  # fmt: skip
    assert seen[-1]["reason"] == "done"
    told = json.loads((tmp_path / "run" / "checkpoints" / "epoch_000.json").read_text())
    assert told["facts"]["teacher"]["file"] == "mbf.onnx"


def test_published_weights_are_taken_by_the_name_of_their_backbone(
    small_data: Path, tmp_path: Path, alone: World
) -> None:
    torch.manual_seed(5)
    torch.save({"model": build_backbone(load(["backbone=mbf"]).backbone).state_dict()}, tmp_path / "backbone.pt")
    words = [f"recipe.distill.teacher={tmp_path / 'backbone.pt'}", "recipe.distill.backbone=mbf"]
    teacher = Teacher(configured(small_data, *words), alone)
    assert (teacher.size, teacher.dim) == (112, 512)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe.distill.teacher=null"], r"recipe\.distill\.teacher=runs/RUN/checkpoints"),
        (["recipe.distill.loss=mse"], "cosine, l2"),
        (["recipe.distill.weight=0"], "above 0"),
        (["recipe.distill.head_weight=-1"], "from 0 on"),
        (["recipe.head.scale=30"], r"recipe\.distill\.head_weight=1"),
        (["data.train_labels_path=x.npy"], r"recipe\.distill\.head_weight=1"),
        (["recipe.distill.fourier=vit"], r"recipe\.distill\.backbone"),
        (["recipe=supervised"], "give recipe=distill"),
    ],
)
def test_settings_that_cannot_work_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        load(["recipe=distill", "recipe.distill.teacher=x.pt", *words])


@pytest.mark.parametrize(
    ("name", "backbone", "said"),
    [
        ("TEXT.onnx", None, "cannot be run"),
        ("PLAIN.pt", None, r"add one such as recipe\.distill\.backbone=iresnet50"),
        ("PLAIN.pt", "iresnet5", r"recipe\.distill\.backbone=iresnet5 is not known; did you mean iresnet50"),
        ("PLAIN.pt", "r18", "does not fit this configuration"),
        ("NAN.pt", "mbf", "not finite"),
        ("GAIN.pt", "vit_t", r"recipe\.distill\.fourier=vit"),
    ],
)
def test_a_file_that_cannot_teach_is_refused(
    name: str, backbone: str | None, said: str, files: Path, small_data: Path, alone: World
) -> None:
    config = configured(small_data, f"recipe.distill.teacher={files / name}")
    config.recipe.distill.backbone = backbone
    with pytest.raises(WrongUse, match=said):
        Teacher(config, alone)


@pytest.mark.parametrize("name", ["nowhere.pt", "TEXT.pt"])
def test_nothing_is_written_before_the_teacher_is_read(
    name: str, files: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}"]
    assert main([*TINY, *STUDENT, *place, f"recipe.distill.teacher={files / name}"]) == 2
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1
    assert str(files / name) in told
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are no teacher, or one whose backbone no one told."""
    folder = tmp_path_factory.mktemp("files")
    network = build_backbone(load(["backbone=mbf"]).backbone)
    torch.save(network.state_dict(), folder / "PLAIN.pt")
    broken = {name: t * float("nan") if t.is_floating_point() else t for name, t in network.state_dict().items()}
    torch.save(broken, folder / "NAN.pt")
    torch.save({"fourier_transform_layer.learnable_param": torch.ones(3, 112, 112)}, folder / "GAIN.pt")
    for name in ("TEXT.pt", "TEXT.onnx"):
        (folder / name).write_text("no network")
    return folder


def test_the_data_may_be_without_labels_only_without_a_head(taught: Path, small_data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.npy"
    bare.write_bytes(small_data.read_bytes())
    words = [f"recipe.distill.teacher={taught}"]
    found: Dataset = Distill.training_data(configured(bare, *words))
    assert found.classes is None
    with pytest.raises(WrongUse, match="a margin head needs labels"):
        Distill.training_data(configured(bare, *words, "recipe.distill.head_weight=1"))
