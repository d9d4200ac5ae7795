"""The schema: every key there is, its default and what it means. conf/*.yaml hold values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NO_ID = -1  # the pseudo-ID of an image that belongs to no cluster


@dataclass
class DataConfig:
    """Where the images are and which of them are used."""

    binary_cache_path: str | None = None  # images.npy, uint8 [N, 112, 112, 3] RGB
    labels_path: str | None = None  # null: labels.npy beside the images, where there is one
    # What recipe supervised learns, int32 [N]; -1 leaves an image out. null: the labels above. Pseudo-IDs fit here.
    train_labels_path: str | None = None
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
    hue: float = 0.06  # of a whole turn
    gray: float = 0.08
    blur: float = 0.35
    blur_sigma_px: list[float] = field(default_factory=lambda: [0.3, 1.5])
    jpeg: float = 0.45
    jpeg_quality: list[float] = field(default_factory=lambda: [40.0, 95.0])
    noise: float = 0.2
    noise_std: float = 0.05  # of the range [-1, 1]
    cutout: float = 0.2
    cutout_side: list[float] = field(default_factory=lambda: [0.15, 0.35])  # share of the image's side
    amplitude_mix: float = 0.0  # the amplitudes of low frequencies are mixed with those of another image
    amplitude_mix_alpha: float = 1.0  # most that is taken over


@dataclass
class BackboneConfig:
    name: str = "iresnet"  # iresnet, mobilefacenet or vit
    layers: list[int] = field(default_factory=lambda: [3, 4, 14, 3])  # blocks of each stage; vit has one stage
    width: int = 64  # channels of the first stage; of vit, numbers a token
    embedding_dim: int = 512
    dropout: float = 0.0
    image_size: int = 112  # what the network sees; images are resampled while they are cropped
    fourier: str = "none"  # a learned gain on the image's spectrum: none, vit or iresnet (the mask that goes with it)
    gradient_checkpointing: bool = False  # a third more work for the memory of most activations
    # vit alone
    patch_size: int = 9
    drop_path: float = 0.0  # probability that the last block is skipped; it rises from 0 at the first
    mask_ratio: float = 0.0  # share of the tokens left out while training
    parity_mask_ratio: bool = False  # as published: any mask_ratio above 0 means 0.1


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
    min_same_image: float = 0.15  # least probability of two views of one image, whatever the epoch says


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
    min_overlap: float = 0.25  # overlap: shared neighbours of two images; 0.2 where `neighbours` is 20 or less
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
class HeadConfig:
    """What is asked of the angle between an embedding and the centre of its class."""

    name: str = "arcface"  # combined, arcface, cosface, sphereface, adaface, magface or curricularface
    scale: float = 64.0  # of the logits
    margin: float | None = None  # null: the published one of that head; magface: of the smallest norm
    margins: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.0])  # combined: cos(m1 * angle + m2) - m3
    # arcface, combined, sphereface: the margin is left out of the gradient, as published since 2022
    straight_through: bool = True
    filter_above: float | None = None  # other classes above this cosine do not push: they may be the same person
    sample_rate: float = 1.0  # share of the class centres a step compares with (Partial FC); those met always are
    update: str = "lazy"  # lazy: centres that are not sampled rest; dense: they decay and drift on, as published
    warm_start: bool = False  # train.warm_start brings the centres of the labels that are the same, too


@dataclass
class RecipeConfig:
    name: str = "self_supervised"  # or supervised
    head: HeadConfig = field(default_factory=HeadConfig)
    ema: float = 0.0  # supervised: what is evaluated is the running mean of the weights, with this decay; 0: themselves
    moco: MocoConfig = field(default_factory=MocoConfig)
    positives: PositiveMixConfig = field(default_factory=PositiveMixConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class BatchConfig:
    size: int = 128  # images a process
    grad_accum_steps: int = 1
    parity_sum: bool = False  # accumulated losses are added, not averaged: the published trainer's unequal large batch


@dataclass
class OptimizerConfig:
    name: str = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False  # also biases, BN and PReLU, as the published margin recipes do
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
    every_steps: int = 0  # the sets, more often than that; 0: with the epochs
    sets: list[str] = field(default_factory=list)  # lfw.bin,pairs.csv, …: what app.evaluate takes
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
    warm_start: str | None = None  # a checkpoint or published weights: a fresh start, but with that backbone
    # auto, fp32, bf16 or fp16. auto: bf16 on GPUs from compute capability 8.0 on, fp16 on older ones, fp32 on a CPU.
    # The run folder's config.yaml has what it came to.
    precision: str = "auto"
    tf32: bool = True  # what stays in fp32 on a GPU is multiplied with 10 bits of mantissa
    channels_last: bool = True
    compile: bool = False  # torch.compile: minutes at the start, faster steps on a GPU; the image has what it needs
    max_nonfinite_steps: int = 10  # in a row; each is skipped, then the run ends
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
        if self.recipe.name == "supervised":
            backbone = dataclasses.asdict(self.backbone)
            return {
                "recipe": "supervised",
                "backbone": backbone,
                "head": self.recipe.head.name,
                "ema": self.recipe.ema > 0,
            }
        return {
            "recipe": self.recipe.name,
            "backbone": dataclasses.asdict(self.backbone),
            "projection": [moco.projection_hidden, moco.projection_dim],
            "queue_size": moco.queue_size,
        }

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested dict with its value: `train.batch.size`, 128."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def defaults() -> dict[str, Any]:
    """Every key with its default."""
    return dict(leaves(Config().as_dict()))
