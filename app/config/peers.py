"""Words of arcface_torch's users: some are accepted, the others are answered with the word for here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.errors import WrongUse

LISTS = ("train.eval.sets",)  # of paths, given with commas as in app.evaluate's sets=
BACKBONES = {  # their name -> our file in conf/backbone
    **{f"r{depth}": f"iresnet{depth}" for depth in (18, 34, 50, 100, 200, 2060)},
    "mbf": "mobilefacenet",
    "mbf_large": "mobilefacenet_large",
}
KEYS = {  # of their configurations
    "network": "backbone=iresnet50",
    "rec": "data.binary_cache_path=faces/train.rec",
    "margin_list": '"recipe.head.margins=[1.0,0.5,0.0]"',
    "sample_rate": "recipe.head.sample_rate=0.3",
    "interclass_filtering_threshold": "recipe.head.filter_above=0.4",
    "embedding_size": "backbone.embedding_dim=512",
    "fp16": "train.precision=fp16",
    "batch_size": "train.batch.size=128",
    "gradient_acc": "train.batch.grad_accum_steps=12",
    "optimizer": "train.optimizer.name=sgd",
    "lr": "train.optimizer.lr=0.1",
    "momentum": "train.optimizer.momentum=0.9",
    "weight_decay": "train.optimizer.weight_decay=0.0005",
    "num_epoch": "train.epochs=20",
    "warmup_epoch": "train.lr_schedule.warmup.epochs=2",
    "seed": "train.seed=2048",
    "resume": "train.resume=auto",
    "output": "run.dir=runs/NAME",
    "verbose": "train.eval.every_steps=2000",
    "frequent": "train.log_every_steps=10",
    "val_targets": "train.eval.sets=lfw.bin,cfp_fp.bin",
    "using_wandb": "track=wandb",
    "wandb_project": "wandb.project=NAME",
    "wandb_entity": "wandb.entity=NAME",
}
NEEDLESS = {
    "num_classes": "the labels of the data give the number of classes",
    "num_image": "the data give the number of images",
    "dali": "images.npy needs no DALI",
    "num_workers": "reading images.npy needs no workers",
    "save_all_states": "every checkpoint holds all states",
    "local_rank": "torchrun sets the rank",
}


def in_our_words(word: str) -> str:
    """Rewrite `backbone=r50` to our name, and `key=a,b` in Hydra's list syntax if the key is a list of paths.

    Returns other overrides unchanged.
    """
    key, _, value = word.partition("=")
    if key == "backbone":
        return f"{key}={','.join(BACKBONES.get(name, name) for name in value.split(','))}" if value else word
    if key.lstrip("+") not in LISTS or value.startswith("[") or not value:
        return word
    quoted = ["'" + part.strip().replace("\\", "\\\\").replace("'", "\\'") + "'" for part in value.split(",")]
    return f"{key}=[{','.join(quoted)}]"


def refuse_habits(word: str, experiments: Sequence[str]) -> None:
    """Raise WrongUse for a configuration file, key or option of arcface_torch; the message has the word for here."""
    key, equals, _ = word.partition("=")
    key = key.removeprefix("--").removeprefix("config.").strip().replace("-", "_")
    if not equals and (word.startswith("configs/") or word.endswith(".py") or word in experiments):
        name = Path(word).stem
        if name in experiments:
            raise WrongUse(f"{word} is not of the form key=value; give experiment={name}")
        raise WrongUse(
            f"{word} has no counterpart in conf/experiment; give its values, such as backbone=r50 train.epochs=20, or "
            f"write them to conf/experiment/{name}.yaml"
        )
    if not (equals or word.startswith("--")):
        return
    if key in NEEDLESS:
        raise WrongUse(f"{key} is a setting of arcface_torch that does not exist here: {NEEDLESS[key]}; leave it out")
    if key in KEYS:
        raise WrongUse(f"{key} is a setting of arcface_torch; give it here as in {KEYS[key]}")
