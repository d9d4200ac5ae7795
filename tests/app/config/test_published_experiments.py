"""Every configuration that arcface_torch and CatFace publish exists here, with its name and its values."""

from __future__ import annotations

import math
import re

import pytest
import yaml

from app.config import CONF, load
from app.config.peers import BACKBONES, in_our_words
from tests.app.config.published import ARCFACE_TORCH, CATFACE, DATA, NETWORKS, PUBLISHED, RECOMPUTED, configured


def test_all_42_of_arcface_torch_and_19_of_catface_exist() -> None:
    files = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert (len(ARCFACE_TORCH), len(CATFACE)) == (42, 19)
    assert set(PUBLISHED) <= files


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_has_its_published_values(name: str) -> None:
    row, config = PUBLISHED[name], configured(name)
    train, head, backbone, schedule = config.train, config.recipe.head, config.backbone, config.train.lr_schedule
    network = (backbone.name, backbone.layers, backbone.width, backbone.drop_path, backbone.mask_ratio)
    assert network == NETWORKS[row.network]
    assert (backbone.embedding_dim, backbone.image_size, backbone.dropout) == (512, 112, 0)
    assert backbone.gradient_checkpointing == (row.network in RECOMPUTED)
    assert backbone.fourier == ("vit" if name in CATFACE and backbone.name == "vit" else "none")
    assert config.data.binary_cache_path == f"data/{row.data}/images.npy"
    assert (config.recipe.name, head.name, head.scale, head.straight_through) == ("supervised", "combined", 64, True)
    assert tuple(head.margins) == row.margins
    assert (head.sample_rate, head.filter_above or 0) == (row.sample_rate, row.filter_above)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == (row.optimizer, row.lr, row.weight_decay)
    assert (optimizer.decay_all, optimizer.clip_grad_norm) == (True, 5)
    if row.optimizer == "sgd":
        assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert (train.batch.size, train.batch.grad_accum_steps) == (row.batch, row.accumulate)
    assert (train.epochs, schedule.warmup.epochs) == (row.epochs, row.warmup)
    assert (schedule.name, schedule.power, schedule.final_lr, schedule.warmup.start_lr) == ("poly", 1, 0, 0)
    assert (train.seed, train.precision) == (2048, "auto")  # published: fp16; auto takes bf16 where the GPU has it


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_the_run_that_used_dalis_augmentations_does_more_than_mirror(name: str) -> None:
    augment = configured(name).recipe.augment
    assert (augment.flip, augment.crop_scale, augment.jpeg, augment.noise, augment.cutout) == (0.5, [1, 1], 0, 0, 0)
    dali = (0.1, 0.2, 0.2) if name == "wf42m_pfc02_vit_h" else (0, 0, 0)
    assert (augment.gray, augment.blur, augment.jitter) == dali


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_schedule_fits_the_data(name: str) -> None:
    row = PUBLISHED[name]
    _, images = DATA[row.data]
    updates = math.ceil(images / (row.batch * row.accumulate * row.gpus))
    assert updates >= 10, "too few updates an epoch for a schedule by epochs"
    assert row.warmup <= row.epochs / 5
    kind = "ArcFace" if row.margins[1] else "CosFace"
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.search(rf"^# .*{kind} on ", text, re.MULTILINE)


@pytest.mark.parametrize("name", DATA)
def test_the_first_line_of_a_data_set_tells_its_size(name: str) -> None:
    people, images = DATA[name]
    first, second, *_ = (CONF / "data" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert re.search(rf"{people:,} (people|cats), {images:,} images", first)
    assert f"out=data/{name}/images.npy" in second


def test_published_names_of_backbones_are_accepted() -> None:
    for published, ours in BACKBONES.items():
        assert in_our_words(f"backbone={published}") == f"backbone={ours}"
        values = yaml.safe_load((CONF / "backbone" / f"{ours}.yaml").read_text(encoding="utf-8"))
        assert (values["name"], values["layers"], values["width"]) == NETWORKS[published][:3]
    assert load(["backbone=r50"]).backbone.layers == NETWORKS["r50"][1]
