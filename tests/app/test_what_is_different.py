"""The table "What is different" of docs/from-arcface-torch.md: each row has a test with the published formula."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from app.config import CONF, load
from app.config.schema import BackboneConfig, HeadConfig, LrScheduleConfig, OptimizerConfig, WarmupConfig
from app.data.sources.photograph import load_face
from app.evaluation.embedding import embed_all
from app.evaluation.measures import folds_of
from app.evaluation.protocols import PairList
from app.models import build_backbone
from app.models.partial_fc import PartialFC, share_of
from app.recipes.recipe import decay_groups
from app.recipes.supervised import Supervised
from app.recipes.update import batches
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.schedule import learning_rate
from tests.app.conftest import faces
from tests.app.evaluation.test_measures import reference_accuracy
from tests.app.support.ranks import run_ranks
from tests.app.support.training import TINY

PAGE = CONF.parent / "docs" / "from-arcface-torch.md"
SUPERVISED = "tests.app.recipes.test_supervised"
MODELS = "tests.app.models"
ROWS: dict[str, str] = {  # first cell of a row -> its test
    "gradient accumulation": f"{SUPERVISED}.test_as_published_accumulated_losses_are_added",
    "ViT's mask ratio": f"{MODELS}.test_vit.test_parity_means_a_tenth_whatever_the_ratio",
    "centres that a step did not sample": f"{MODELS}.test_partial_fc."
    "test_dense_treats_other_rows_as_if_their_gradient_were_zero",
    "gradient of ArcFace's margin": f"{MODELS}.test_heads.test_straight_through_leaves_the_margin_out_of_the_gradient",
    "resuming": f"{SUPERVISED}.test_the_number_of_processes_may_change",
    "fine-tuning with other classes": f"{SUPERVISED}."
    "test_centres_of_the_same_classes_can_be_kept_when_classes_are_added",
}  # fmt: skip


def row(title: str) -> Callable[[Any], Any]:
    """Register a test of this file as the test of a row."""

    def note(test: Any) -> Any:
        ROWS[title] = f"{__name__}.{test.__name__}"
        return test

    return note


def test_each_row_has_a_test() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## What is different")[1]
    titles = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    assert sorted(titles) == sorted(ROWS)
    for name in ROWS.values():
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))


def published_rate(base: float, step: int, warmup: int, total: int) -> float:
    """The published rate of update `step`, from 0 on; before its first step the scheduler keeps the base rate."""
    if step == 0:
        return base
    return base * step / warmup if step <= warmup else base * (1 - (step - warmup) / (total - warmup))


@row("first update of a warm-up")
def test_only_the_first_update_has_another_rate() -> None:
    warmup, total, an_epoch = 30, 200, 10
    config = LrScheduleConfig("poly", WarmupConfig(epochs=warmup / an_epoch, start_lr=0.0))
    ours = [learning_rate(0.4, config, step / an_epoch, total // an_epoch) for step in range(total)]
    theirs = [published_rate(0.4, step, warmup, total) for step in range(total)]
    assert ours[1:] == pytest.approx(theirs[1:], rel=1e-12)
    assert (ours[0], theirs[0]) == (0, 0.4)
    plain = LrScheduleConfig("poly", WarmupConfig(epochs=0, start_lr=0.0))
    without = [learning_rate(0.4, plain, step / an_epoch, total // an_epoch) for step in range(total)]
    assert without == pytest.approx([published_rate(0.4, step, 0, total) for step in range(total)], rel=1e-12)


def supervised(data: Path, alone: World, *words: str) -> tuple[Any, Supervised, Any]:
    config = load([*TINY, "recipe=supervised", "train.batch.size=5", f"data.binary_cache_path={data}", *words])
    rows = Supervised.training_data(config)
    return config, Supervised(config, rows, alone), rows


@row("last batch of an epoch")
def test_the_last_batch_is_filled_up_and_not_dropped(small_data: Path, alone: World) -> None:
    config, recipe, data = supervised(small_data, alone)
    count, size = len(data.train_rows), config.train.batch.size
    found = list(batches(config, recipe, data, TrainState(), alone))
    assert (len(found), count // size) == (7, 6)
    order = np.concatenate([batch.rows for batch in found])
    assert sorted(order[:count]) == sorted(data.train_rows)
    assert order[count:].tolist() == order[: len(order) - count].tolist()


@row("sampling of Partial FC")
def test_the_size_of_the_sample_does_not_depend_on_the_ranks() -> None:
    classes, rate, device = 10, 0.5, torch.device("cpu")
    for ranks in (1, 3, 4):
        published, ours, labels = 0, 0, torch.tensor([0])
        for rank in range(ranks):
            here = World(rank, ranks, device)
            start, stop = share_of(classes, here)
            published += int(rate * (stop - start))  # each rank samples from its own classes
            layer = PartialFC(classes, 4, HeadConfig(sample_rate=rate), OptimizerConfig(), here, seed=0)
            ours += int((layer.sample(labels) < classes).sum())
        assert ours == 5
        assert published == {1: 5, 3: 4, 4: 4}[ranks]


@row("weight decay of biases and BN")
def test_all_parameters_decay_in_the_published_experiments() -> None:
    network = build_backbone(BackboneConfig("iresnet", [1, 1], width=8, embedding_dim=16, image_size=32))
    trained = [p for p in network.parameters() if p.requires_grad]
    (everything,) = decay_groups(network, decay_all=True)
    assert [id(p) for p in everything["params"]] == [id(p) for p in trained]
    decaying, resting = decay_groups(network, decay_all=False)
    assert resting["weight_decay"] == 0
    assert len(decaying["params"]) + len(resting["params"]) == len(trained)
    affine = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(m.weight) for m in affine} <= {id(p) for p in resting["params"]}


@row("XNorm")
def test_xnorm_is_a_mean_over_distinct_images(alone: World) -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig("iresnet", [1, 1], width=8, embedding_dim=16, image_size=32)
    network = build_backbone(backbone).eval()
    images = faces(people=3, each=1)
    found, xnorm = embed_all(network, images, backbone, alone, batch_size=4, flip=False)
    lengths = np.linalg.norm(found, axis=1)
    pairs = np.array([0, 1, 0, 2, 0, 0])  # a list of three pairs repeats image 0
    assert xnorm == pytest.approx(lengths.mean(), rel=1e-5)
    assert abs(lengths[pairs].mean() - xnorm) > 1e-3 * xnorm


@row("images in a list of pairs that are not square")
def test_the_middle_square_is_taken_where_the_published_code_squashes(tmp_path: Path) -> None:
    pixels = np.zeros((112, 224, 3), np.uint8)
    pixels[:, 56:168] = 200  # the middle square, between black sides
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    published = np.asarray(Image.open(tmp_path / "wide.png").resize((112, 112)))
    ours = load_face(tmp_path / "wide.png")
    assert (ours == 200).all()
    assert (published[:, :20] == 0).all()
    assert np.array_equal(load_face(tmp_path / "wide.png", "squash"), published)


TWO_RANKS = """
import torch
from app.runtime import dist
from app.runtime.data_parallel import data_parallel
with dist.world() as here:
    gradients = torch.tensor([1e-8, 1e-3, 0.1234567])
    module = torch.nn.Linear(3, 1, bias=False)
    parallel = data_parallel(module, here)
    parallel(gradients * (1 + here.rank)).backward()
    expected = gradients * 1.5                                      # the mean over the ranks
    torch.testing.assert_close(module.weight.grad[0], expected, rtol=1e-6, atol=0)
    ranks = [(gradients * (1 + rank)).half() / here.size for rank in range(here.size)]
    published = sum(ranks).float()                                  # cast, divided and summed in fp16
    assert published[0] == 0 and not torch.allclose(published, expected, rtol=1e-4, atol=0)
print("fine")
"""


@row("gradients between GPUs")
def test_the_mean_of_gradients_keeps_what_fp16_loses() -> None:
    run_ranks(TWO_RANKS, 2)


@row("accuracy of a pair list")
def test_both_accuracies_are_those_of_the_published_loops(alone: World) -> None:
    """testarcface.py takes the best of all scores as its threshold; the ten folds are those of verification.py."""
    rng = np.random.default_rng(3)
    people = np.repeat(rng.normal(size=(200, 6)), 2, axis=0)
    x = (people + 0.9 * rng.normal(size=people.shape)).astype(np.float32)
    left, same = np.arange(0, 400, 2), np.arange(200) % 2 == 0
    right = np.where(same, left + 1, (left + 7) % 400)
    outcome = PairList(left, right, same, folds_of(same, "set")).judge(x, alone)
    assert outcome is not None
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    score = (unit[left] * unit[right]).sum(1)
    tuned = max(float(np.mean((score >= threshold) == same)) for threshold in score)
    assert outcome.numbers["accuracy_tuned_on_test"] == pytest.approx(tuned)
    threshold = outcome.thresholds["tuned_on_test"].cosine
    assert np.mean((score >= threshold - 1e-6) == same) == pytest.approx(tuned)
    ten_folds, spread, cut = reference_accuracy(2 - 2 * score, same)
    assert (outcome.numbers["accuracy"], outcome.numbers["accuracy_std"]) == pytest.approx((ten_folds, spread))
    assert outcome.thresholds["ten_folds"].squared_distance == pytest.approx(cut)
    assert outcome.numbers[outcome.headline] == pytest.approx(ten_folds) != pytest.approx(tuned)


@row("precision")
def test_a_published_experiment_takes_the_precision_of_the_gpu() -> None:
    words = ["experiment=ms1mv3_r50_onegpu"]
    assert load(words).train.precision == "auto"
    assert load([*words, "train.precision=fp16"]).train.precision == "fp16"


@row("CatFace's `ms1mv2_r50` and `wf42m_pfc03_40epoch_64gpu_vit_s`")
def test_catfaces_own_values_of_two_shared_names_can_be_given() -> None:
    page = PAGE.read_text(encoding="utf-8")
    first, second = re.findall(r"`(data=[^`]*)`", page.split("What is different")[1])
    cats = load(["experiment=ms1mv2_r50", *first.split()])
    assert (cats.data.binary_cache_path, cats.train.batch.size) == ("data/catface/images.npy", 512)
    assert (cats.train.epochs, cats.train.optimizer.lr, cats.train.lr_schedule.warmup.epochs) == (20, 0.1, 0)
    people = load(["experiment=wf42m_pfc03_40epoch_64gpu_vit_s", *second.split()])
    assert (people.data.binary_cache_path, people.train.epochs) == ("data/ms1mv2/images.npy", 30)
    assert (people.train.lr_schedule.warmup.epochs, people.backbone.fourier) == (3, "vit")
    assert (people.train.batch.size, people.recipe.head.sample_rate) == (384, 0.3)
