"""Configuration: every file in conf/ composes; the error for a wrong key or value says what would work."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.config import CONF, compose, load, own_words, read_command_line, schema
from app.config.checks import faults
from app.errors import WrongUse
from app.models import BACKBONES
from app.models.heads import HEADS
from app.recipes import RECIPES
from tests.app.config.published import PUBLISHED

EXPERIMENT = "# @package _global_\ntrain:\n  epochs: 3\n"
GROUPS = ("recipe", "backbone", "data", "experiment")
CHOICES = [
    (group, file.stem)
    for group in GROUPS
    for file in sorted((CONF / group).glob("*.yaml"))
    if group != "experiment" or file.stem not in PUBLISHED  # test_published_experiments.py composes those
]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_in_conf_composes(group: str, choice: str) -> None:
    needed = ["recipe.distill.teacher=x.pt"] if choice == "distill" else []
    assert load([f"{group}={choice}", *needed])


def test_the_schema_names_what_there_is() -> None:
    assert set(schema.HEADS) == set(HEADS)
    assert set(schema.BACKBONES) == set(BACKBONES)
    assert set(schema.RECIPES) == set(RECIPES)


def test_each_rule_of_the_schema_is_known_and_fits_its_default() -> None:
    """A misspelled rule would never be applied."""
    known = {"choices", "least", "above_zero", "from_zero", "below_one", "probability", "most", "such_as", "share_or"}
    parts = [part for part in vars(schema).values() if dataclasses.is_dataclass(part)]
    rules = [each.metadata for part in parts for each in dataclasses.fields(part) if each.metadata]
    assert len(rules) > 50
    assert {name for rule in rules for name in rule} == known
    assert list(faults(schema.Config())) == []


def test_the_keys_that_users_type_work() -> None:
    config = load(
        [
            "data.binary_cache_path=/dev/shm/images.npy",
            "data.data_fraction=0.01",
            "train.batch.size=384",
            "train.batch.grad_accum_steps=1",
            "train.optimizer.lr=0.03",
            "train.lr_schedule.warmup.start_lr=0.003",
            "train.resume=/path/epoch_014.pt",
        ]
    )
    assert config.data.binary_cache_path == "/dev/shm/images.npy"
    assert (config.train.batch.size, config.train.optimizer.lr) == (384, 0.03)
    assert config.train.resume == "/path/epoch_014.pt"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.bacth.size=3", "train.batch.size"),
        ("batch.size=3", "train.batch.size"),
        ("trian.epochs=3", "train.epochs"),
        ("+train.extra=1", "no option train.extra"),
        ("backbone=iresnet5", "iresnet50"),
        ("experiment=tryuot", "tryout"),
        ("recipe=selfsupervised", "self_supervised"),
        ("backbone.name=resnet", "iresnet"),
        ("train.optimizer.name=sdg", "sgd"),
        ("track=wandbb", "wandb"),
        ("data.data_fraction=0", "0.1"),
        ("data.data_fraction=1.5", "0.1"),
        ("data.data_fraction=nan", "0.1"),
        ("data.data_fraction=abc", "data.data_fraction"),
        ("train.epochs=0", "at least 1"),
        ("train.batch.size=1", "at least 2"),
        ("train.epochs=many", "train.epochs"),
        ("train.optimizer.lr=-1", "above 0"),
        ("recipe.moco.momentum=1", "0.999"),
        ("recipe.moco.queue_size=8", "mask_most_similar"),
        ("recipe.positives.epochs=[0]", "one probability"),
        ("recipe.augment.flip=1.5", "from 0 to 1"),
        ("recipe.augment.crop_scale=[0.5]", "two numbers"),
        ("recipe.augment.blur_sigma_px=[2,1]", "the smaller first"),
        ("recipe.augment.crop_scale=[0.5,1.5]", "up to 1,"),
        ("recipe.augment.crop_ratio=[0.1,100]", "up to 10,"),
        ("recipe.augment.cutout_side=[0.1,2]", "up to 1,"),
        ("recipe.augment.jpeg_quality=[40,400]", "up to 100,"),
        ("recipe.augment.blur_sigma_px=[1,90]", "up to 55.5,"),
        ("recipe.augment.blur_sigma_px=[1,nan]", "up to 55.5,"),
        ("recipe.augment.brightness=1.5", "from 0 to 1,"),
        ("recipe.augment.contrast=-1", "from 0 to 1,"),
        ("recipe.augment.saturation=nan", "from 0 to 1,"),
        ("recipe.augment.noise_std=5", "from 0 to 1,"),
        ("recipe.augment.rotation_deg=1000", "from 0 to 180,"),
        ("recipe.moco.projection_dim=0", "at least 1"),
        ("recipe.moco.projection_hidden=-1", "at least 1"),
        ("recipe.moco.margin=nan", "from 0 to 2,"),
        ("recipe.moco.margin=-0.1", "from 0 to 2,"),
        ("recipe.moco.queue_size=100000000000000000000", "too large"),
        ("recipe.positives.epochs=[0,5,5,20,35]", "ascend"),
        ("recipe.positives.epochs=[-1,5,10,20,35]", "at least 0"),
        ("recipe.positives.probability=[[1]]", "a single value"),
        ("recipe.head.margins=[[1]]", "a single value"),
        ("backbone.layers=[[1]]", "a single value"),
        ("mining.start_epoch=-1", "at least 0"),
        ("mining.neighbours=100000", "from 1 to 2048,"),
        ("mining.false_edges_per_image=nan", "from 0 on"),
        ("train.batch.size=1000000000000", "from 2 to 1048576,"),
        ("train.lr_schedule.milestones=[-1]", "at least 0"),
        ("plan.images_per_s=inf", "above 0, such as 500"),
        ("--mutlirun", "key=value"),
        ("train.epochs", "key=value"),
    ],
)
def test_a_wrong_word_is_answered_with_one_sentence_that_helps(override: str, words: str) -> None:
    with pytest.raises(WrongUse) as raised:
        load([override])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("wieghts=a.pt", "there is no option wieghts; did you mean weights?"),
        ("trian.epochs=3", "there is no option trian.epochs; did you mean train.epochs?"),
        ("backbon=iresnet18", "there is no option backbon; did you mean backbone?"),
        ("weights", "weights is not of the form key=value, such as weights=…; --help shows what can be given"),
        ("--weights=a.pt", "--weights=a.pt is not of the form key=value, such as weights=…; --help shows"),
        ("sets=b.bin", "sets= is given twice; give it once"),
    ],
)
def test_a_wrong_word_beside_a_commands_own_is_answered_too(word: str, sentence: str) -> None:
    with pytest.raises(WrongUse, match=f"^{re.escape(sentence)}"):
        own_words(["sets=a.bin", word], ("weights", "sets"))


@pytest.mark.parametrize("layers", ["[-1,1,1,1]", "[1,0,1,1]", "[1,1,1]"])
def test_a_mobilefacenet_without_a_stage_is_refused(layers: str) -> None:
    with pytest.raises(WrongUse, match="four numbers of layers from 1 on"):
        load(["backbone=mobilefacenet", f"backbone.layers={layers}"])


def test_of_two_words_for_one_key_the_wrong_one_is_named() -> None:
    for words in (["train.epochs=3", "train.epochs=many"], ["train.epochs=many", "train.epochs=3"]):
        with pytest.raises(WrongUse, match=r"^train\.epochs=many does not fit"):
            load(words)


def test_a_commands_own_words_are_taken_out_and_the_others_left() -> None:
    words = ["weights=a=b.pt", "backbone=vit_t", "train.eval.batch_size=4", "+train.seed=1"]
    assert own_words(words, ("weights", "sets")) == ({"weights": "a=b.pt"}, words[1:])


def test_the_command_prints_json_without_importing_torch() -> None:
    code = "import sys; sys.argv[1:] = ['experiment=tryout']; from app.config import __main__ as config; config.main()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["data"]["binary_cache_path"] is None
    assert facts["model"]["recipe"] == "self_supervised"


def test_the_command_ends_with_2_and_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.config", "train.epcohs=3"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train.epochs" in done.stderr


# Hydra's options: --help, --cfg, --package, --multirun


def test_help_names_every_group_and_every_key_with_its_default() -> None:
    text = read_command_line(["--help"], "Train.").text
    assert text is not None
    assert text.startswith("Train.")
    assert "backbone=iresnet100 | iresnet18" in text
    assert "train.optimizer.lr=0.03" in text


def test_cfg_job_prints_what_would_run_and_package_a_part_of_it() -> None:
    whole = read_command_line(["train.epochs=3", "--cfg", "job"], "").text
    assert whole is not None
    assert "epochs: 3" in whole
    part = read_command_line(["--cfg", "job", "-p", "train.batch"], "").text
    assert part == "size: 128\ngrad_accum_steps: 1\nparity_sum: false\n"


def test_multirun_makes_every_combination() -> None:
    jobs = read_command_line(
        ["-m", "train.optimizer.lr=0.1,0.2", "backbone=glob(iresnet1*)", "train.epochs=2"], ""
    ).jobs
    assert [(job.train.optimizer.lr, job.backbone.layers) for job in jobs] == [
        (lr, layers) for lr in (0.1, 0.2) for layers in ([3, 13, 30, 3], [2, 2, 2, 2])
    ]
    assert {job.train.epochs for job in jobs} == {2}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train.epochs=1,2"], "--multirun"),
        (["--cfg", "hydra"], "--cfg job"),
        (["--cfg", "job", "--package", "trian"], "train.optimizer"),
        (["--confg", "job"], "--help"),
        (["-m", "train.epcohs=1,2"], "train.epochs"),
        (["-m", "train.epochs=1,0"], "at least 1"),
    ],
)
def test_a_wrong_use_of_them_is_answered_with_the_right_one(words: list[str], answer: str) -> None:
    with pytest.raises(WrongUse, match=answer) as error:
        read_command_line(words, "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (codecs.BOM_UTF16_LE + EXPERIMENT.encode("utf-16-le"), "is not UTF-8 without a byte order mark"),
        (codecs.BOM_UTF16_BE + EXPERIMENT.encode("utf-16-be"), "is not UTF-8 without a byte order mark"),
        (EXPERIMENT.encode("utf-16-le"), "is not UTF-8 without a byte order mark"),
        (EXPERIMENT.encode("utf-8-sig"), "is not UTF-8 without a byte order mark"),
        (b"# gr\xf6\xdfe\n" + EXPERIMENT.encode(), "is not UTF-8 without a byte order mark"),
        (EXPERIMENT.replace("  ", "\t").encode(), "line 3 is not valid YAML: found character"),
    ],
)
def test_a_file_that_an_editor_spoiled_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, says: str
) -> None:
    """PowerShell 5 writes UTF-16 by `>`. A byte order mark hides the line that says where the values belong."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.write_bytes(EXPERIMENT.encode().replace(b"\n", b"\r\n"))
    assert load(["experiment=mine"]).train.epochs == 3
    file.with_name("._a.yaml").write_bytes(b"\0\5\x16\7")  # as macOS does on a disk without extended attributes
    file.write_bytes(data)
    with pytest.raises(WrongUse) as caught:
        load(["experiment=mine"])
    told = str(caught.value)
    assert "conf/experiment/mine.yaml" in told.replace("\\", "/")
    assert says in told
    assert "\n" not in told
    choices = compose.groups()["experiment"]
    assert "mine" in choices
    assert not [name for name in choices if name.startswith(".")]


def test_a_file_that_was_edited_since_the_last_load_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are composed once per process. An edit may leave the time and the size of a file as they were."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.write_text(EXPERIMENT)
    time_ns = file.stat().st_mtime_ns
    assert load(["experiment=mine"]).train.epochs == 3
    file.write_text(EXPERIMENT.replace("3", "4"))
    os.utime(file, ns=(time_ns, time_ns))
    assert load(["experiment=mine"]).train.epochs == 4
    (file.parent / ".#mine.yaml").symlink_to("nowhere")  # an editor's lock
    file.rename(file.with_name("yours.yaml"))
    assert load(["experiment=yours"]).train.epochs == 4
    with pytest.raises(WrongUse, match="experiment=mine is not known"):
        load(["experiment=mine"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train.epochs=2", "recipe=supervised", "train.epochs=3", "backbone=vit_t", "backbone.layers=[2]"],
        ["recipe.positives.epochs=[0]", "recipe.positives.probability=[0.5]"],
        ["data.binary_cache_path='a b'", "data.labels_path=${data.binary_cache_path}"],
        ["experiment=tryout", "++train.epochs=4", "train.optimizer.lr=1e-3", "train.seed=${train.epochs}"],
        ["train.batch.size=1.5"],
        ["+train.epochs=2"],
        ["~train.epochs"],
        ["recipe=supervised", "recipe=distill", "recipe.distill.teacher=x.pt"],
        ["train.epochs=2", "train.epochs=${nothing}"],
        ["recipe@train=supervised"],
        ["~recipe=supervised"],
    ],
)
def test_the_result_is_what_hydra_composes_of_all_words_at_once(words: list[str]) -> None:
    """Values are set on a composition of the groups, which is kept."""
    for _ in range(2):
        try:
            ours: Any = load(words)
        except WrongUse as error:
            ours = error.__cause__
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                hydras: Any = OmegaConf.to_object(hydra_compose("config", words))
        except (HydraException, OmegaConfBaseException) as error:
            hydras = error
        if isinstance(hydras, Exception):
            assert _cause(ours) == _cause(hydras)
        else:
            assert ours == hydras


def _cause(error: BaseException | None) -> str:
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
