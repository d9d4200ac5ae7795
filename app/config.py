"""The whole configuration: typed schema, loading, checks. The only place that knows Hydra.

`python -m app.config key=value …` prints the resolved configuration as JSON, or one sentence and exit code 2. It
imports no torch, so a laptop can ask it before anything is rented or started.

conf/*.yaml hold values only; a key that is not in this schema is an error, and so is a value that cannot work.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import EXIT_WRONG_USE, WrongUse
from app.files import write_text

CONF = Path(__file__).parents[1] / "conf"

NO_ID = -1  # the pseudo-ID of an image that belongs to no cluster


@dataclass
class DataConfig:
    """Where the images are and which of them are used."""

    binary_cache_path: str | None = None  # images.npy, uint8 [N, 112, 112, 3] RGB
    labels_path: str | None = None  # null: labels.npy beside the images, where there is one; measured with, not learnt
    data_fraction: float = 1.0  # whole blocks, chosen by the rule in app/data/dataset.py
    block_size: int = 8192  # rows a block, where no manifest.json says it


@dataclass
class AugmentConfig:
    """Strength of the random changes that make one view of an image; probabilities are per image."""

    crop_scale: list[float] = field(default_factory=lambda: [0.75, 1.0])  # share of the area, from and to
    crop_ratio: list[float] = field(default_factory=lambda: [0.92, 1.08])
    rotation_deg: float = 0.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    gray: float = 0.08
    blur: float = 0.35
    blur_sigma_px: list[float] = field(default_factory=lambda: [0.3, 1.5])
    noise: float = 0.2
    noise_std: float = 0.05  # of the range [-1, 1]
    cutout: float = 0.2
    cutout_side: list[float] = field(default_factory=lambda: [0.15, 0.35])  # share of the image's side


@dataclass
class BackboneConfig:
    name: str = "iresnet"
    layers: list[int] = field(default_factory=lambda: [3, 4, 14, 3])
    width: int = 64
    embedding_dim: int = 512
    dropout: float = 0.0
    image_size: int = 112  # what the network sees; images are resampled while they are cropped


@dataclass
class MocoConfig:
    projection_hidden: int = 2048
    projection_dim: int = 128
    queue_size: int = 65536
    momentum: float = 0.999
    temperature: float = 0.05
    margin: float = 0.15  # taken off the positive's cosine
    mask_most_similar: int = 8  # negatives per query left out as likely the same person
    multi_positive: bool = False  # queue entries of the same pseudo-ID pull too, instead of being masked


@dataclass
class PositiveMixConfig:
    """With which probability the positive is another image of the same pseudo-ID, by epoch."""

    epochs: list[int] = field(default_factory=lambda: [0, 5, 10, 20, 35])
    probability: list[float] = field(default_factory=lambda: [0.0, 0.3, 0.6, 0.85, 0.9])


@dataclass
class MiningConfig:
    """Pseudo-IDs: embed, search nearest neighbours, cluster, judge."""

    start_epoch: int = 2
    every_epochs: int = 2
    features: str = "fresh"  # fresh: embed every image anew; bank: reuse what the momentum encoder saw while training
    batch_size: int = 512  # images embedded at once by a process
    flip_sum: bool = False  # add the embedding of the mirrored image: twice the work, fewer false neighbours
    # search
    neighbours: int = 32
    backend: str = "auto"  # auto, faiss or torch
    placement: str = "auto"  # replicated: every process holds all embeddings; ring: they travel; auto: what fits
    min_recall: float = 0.999  # of the neighbours of a sample, against brute force; less ends the run
    # clusters
    method: str = "overlap"  # or parity: mutual neighbours above a fixed similarity, connected
    min_overlap: float = 0.2  # overlap: shared neighbours of two images, as a share of their lists
    false_edges_per_image: float = 0.05  # overlap: expected at the similarity floor, estimated from the data
    mutual_top: int = 5  # parity: both among each other's first so many
    similarity: float = 0.6  # parity: least cosine of an edge
    min_cluster: int = 2
    max_cluster: int = 1000  # larger ones are split
    # gate: a labelling that breaks one of these is refused, the old one stays
    min_coverage: float = 0.02  # share of images with a pseudo-ID
    max_largest_share: float = 0.2  # of all images in one cluster
    max_churn: float = 0.95  # share of images that had a pseudo-ID and do not keep it


@dataclass
class RecipeConfig:
    name: str = "self_supervised"
    moco: MocoConfig = field(default_factory=MocoConfig)
    positives: PositiveMixConfig = field(default_factory=PositiveMixConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class BatchConfig:
    size: int = 128  # images a process
    grad_accum_steps: int = 1


@dataclass
class OptimizerConfig:
    name: str = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_grad_norm: float = 5.0


@dataclass
class WarmupConfig:
    epochs: float = 2.0
    start_lr: float | None = None  # null: no warm-up, the base rate from the start


@dataclass
class LrScheduleConfig:
    name: str = "cosine"
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    final_lr: float = 0.0
    milestones: list[int] = field(default_factory=lambda: [20, 40, 60])  # epochs, for multistep
    gamma: float = 0.5  # for multistep
    power: float = 1.0  # for poly


@dataclass
class CheckpointConfig:
    every_epochs: int = 1
    keep: int = 10


@dataclass
class EvalConfig:
    every_epochs: int = 5  # and at the end
    batch_size: int = 256
    max_images: int = 2000  # of the held-out ones; their pairs grow with the square


@dataclass
class TrainConfig:
    epochs: int = 75
    seed: int = 2048
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    resume: str | None = None  # auto, none, or a checkpoint's path
    precision: str = "fp32"
    channels_last: bool = True
    log_every_steps: int = 10
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class RunConfig:
    dir: str | None = None  # null: runs/by-hand-<time>
    commit: str = "none"  # of the code, as the caller knows it; goes into every checkpoint's JSON


@dataclass
class PlanConfig:
    images_per_s: float | None = None  # a measured rate of one process; only for the plan's estimate of the time


@dataclass
class WandbConfig:
    project: str = "sniperface"
    entity: str | None = None


@dataclass
class Config:
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    track: str = "none"

    def model(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded: everything that decides the shapes of its tensors."""
        moco = self.recipe.moco
        return {
            "recipe": self.recipe.name,
            "backbone": dataclasses.asdict(self.backbone),
            "projection": [moco.projection_hidden, moco.projection_dim],
            "queue_size": moco.queue_size,
        }

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load(overrides: Sequence[str]) -> Config:
    """Compose conf/config.yaml with Hydra overrides into a checked Config. Raises WrongUse with one sentence."""
    # Imported here so that a process which only needs the dataclasses does not pay for Hydra.
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="sniperface"):
            _refuse_unknown_names(overrides)
            config = OmegaConf.to_object(compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise WrongUse(_one_sentence(error, overrides)) from error
    assert isinstance(config, Config)
    for fault in faults(config):
        raise WrongUse(fault)
    return config


def save_resolved(config: Config, path: Path) -> None:
    """Write the configuration as it was used, in the form that Hydra reads."""
    from omegaconf import OmegaConf

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def faults(config: Config) -> Iterator[str]:
    """Everything wrong with the values, a sentence each that names the key and a value that works."""
    train, data, backbone, recipe = config.train, config.data, config.backbone, config.recipe
    mining, positives = config.mining, recipe.positives
    fraction = data.data_fraction
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        yield f"data.data_fraction={fraction:g} is no share of the data; give a number above 0 and up to 1, such as 0.1"
    for key, name, choices in (
        ("recipe.name", recipe.name, ["self_supervised"]),
        ("backbone.name", backbone.name, ["iresnet", "mobilefacenet"]),
        ("train.optimizer.name", train.optimizer.name, ["sgd", "adamw"]),
        ("train.lr_schedule.name", train.lr_schedule.name, ["cosine", "poly", "multistep"]),
        ("train.precision", train.precision, ["fp32", "bf16", "fp16"]),
        ("mining.features", mining.features, ["fresh", "bank"]),
        ("mining.backend", mining.backend, ["auto", "faiss", "torch"]),
        ("mining.placement", mining.placement, ["auto", "replicated", "ring"]),
        ("mining.method", mining.method, ["overlap", "parity"]),
        ("track", config.track, ["none", "wandb"]),
    ):
        if name not in choices:
            yield f"{key}={name} is not known; {_nearest(name, choices)}"
    for key, number, least in (
        ("train.epochs", train.epochs, 1),
        ("train.batch.size", train.batch.size, 2),
        ("train.batch.grad_accum_steps", train.batch.grad_accum_steps, 1),
        ("train.log_every_steps", train.log_every_steps, 1),
        ("train.checkpoint.every_epochs", train.checkpoint.every_epochs, 1),
        ("train.checkpoint.keep", train.checkpoint.keep, 1),
        ("train.eval.every_epochs", train.eval.every_epochs, 1),
        ("train.eval.batch_size", train.eval.batch_size, 1),
        ("data.block_size", data.block_size, 1),
        ("backbone.width", backbone.width, 1),
        ("backbone.embedding_dim", backbone.embedding_dim, 1),
        ("backbone.image_size", backbone.image_size, 16),
        ("recipe.moco.queue_size", recipe.moco.queue_size, 1),
        ("recipe.moco.mask_most_similar", recipe.moco.mask_most_similar, 0),
        ("mining.neighbours", mining.neighbours, 1),
        ("mining.every_epochs", mining.every_epochs, 1),
        ("mining.batch_size", mining.batch_size, 1),
        ("mining.mutual_top", mining.mutual_top, 1),
        ("mining.min_cluster", mining.min_cluster, 2),
        ("mining.max_cluster", mining.max_cluster, mining.min_cluster),
    ):
        if number < least:
            yield f"{key}={number} is too small; give at least {least}"
    for key, value in (
        ("train.optimizer.lr", train.optimizer.lr),
        ("train.optimizer.clip_grad_norm", train.optimizer.clip_grad_norm),
        ("recipe.moco.temperature", recipe.moco.temperature),
    ):
        if not (math.isfinite(value) and value > 0):
            yield f"{key}={value:g} must be a finite number above 0, such as {_default(key)}"
    if not 0 <= recipe.moco.momentum < 1:
        yield f"recipe.moco.momentum={recipe.moco.momentum:g} must be at least 0 and below 1, such as 0.999"
    if recipe.moco.mask_most_similar >= recipe.moco.queue_size:
        yield (
            f"recipe.moco.mask_most_similar={recipe.moco.mask_most_similar} leaves no negatives in a queue of "
            f"{recipe.moco.queue_size}; give at most {recipe.moco.queue_size - 1}"
        )
    augment = recipe.augment
    for key, probability in (
        *((f"recipe.augment.{name}", getattr(augment, name)) for name in ("flip", "jitter", "gray", "blur", "noise")),
        ("recipe.augment.cutout", augment.cutout),
        *(("recipe.positives.probability", value) for value in positives.probability),
        *((f"mining.{name}", getattr(mining, name)) for name in ("min_recall", "min_coverage", "max_largest_share")),
        *((f"mining.{name}", getattr(mining, name)) for name in ("max_churn", "min_overlap", "similarity")),
    ):
        if not 0 <= probability <= 1:
            yield f"{key}={probability:g} is out of range; give a number from 0 to 1"
    for name in ("crop_scale", "crop_ratio", "blur_sigma_px", "cutout_side"):
        bounds = getattr(augment, name)
        if not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] < math.inf):
            key = f"recipe.augment.{name}"
            yield f"{key}={bounds} must be two numbers above 0, the smaller first, such as {_default(key)}"
    if len(positives.epochs) != len(positives.probability):
        yield (
            f"recipe.positives.epochs has {len(positives.epochs)} entries and recipe.positives.probability "
            f"{len(positives.probability)}; give one probability for each start epoch"
        )
    if backbone.name == "mobilefacenet" and (backbone.width % 64 or len(backbone.layers) != 4):
        yield "backbone mobilefacenet takes four layers and a width of 64, 128 or 256; give backbone=mobilefacenet"


def _refuse_unknown_names(overrides: Sequence[str]) -> None:
    """A misspelt key or group gets the nearest right one; Hydra's own message names no alternative."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    keys = _keys()
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "deploy"}
    for word in overrides:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise WrongUse(f"{word} is not of the form key=value, such as train.epochs=10") from error
        name, value = override.key_or_group, override.value()
        if name in groups:
            choices = sorted(path.stem for path in (CONF / name).glob("*.yaml"))
            if value is not None and value not in choices:
                raise WrongUse(f"{name}={value} is not known; {_nearest(str(value), choices)}")
        elif name not in keys:
            raise WrongUse(f"there is no option {name}; {_nearest(name, sorted(keys | groups))}")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys() -> set[str]:
    return {key for key, _ in _leaves(dataclasses.asdict(Config()))}


def _default(key: str) -> Any:
    return dict(_leaves(dataclasses.asdict(Config())))[key]


def _nearest(name: str, choices: Sequence[str]) -> str:
    """ "did you mean a?" where something is close, else the whole list (or how to see it)."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    # A right last part under a wrong path is the commonest slip: batch.size for train.batch.size.
    close = close or [choice for choice in choices if choice.endswith("." + name.split(".")[-1])][:1]
    if close:
        return f"did you mean {close[0]}?"
    if len(choices) <= 12:
        return f"choose from {', '.join(choices)}"
    return "`python -m app.config` lists all of them"


def _one_sentence(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra and OmegaConf say in several lines and several errors, with the default as a value that works."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).splitlines() or [type(cause).__name__]
    key = next((line.removeprefix("    full_key: ") for line in lines if line.startswith("    full_key: ")), "")
    key, complaint = key.split("[")[0], lines[0].rstrip(".")
    given = next((word for word in overrides if word.lstrip("+~").startswith(f"{key}=")), key)
    default = f", such as {key}={json.dumps(_default(key))}" if key and key in _keys() else ""
    return f"{given or 'the configuration'} does not fit: {complaint}; give a value of its kind{default}"


def main() -> int:
    try:
        config = load(sys.argv[1:])
    except WrongUse as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    print(json.dumps({**config.as_dict(), "model": config.model()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
