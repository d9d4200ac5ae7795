"""The schema: every key with its default and meaning. conf/*.yaml hold values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NO_ID = -1  # the pseudo-ID of an image without a cluster


@dataclass
class DataConfig:
    """The location of the images and the selection to train on."""

    binary_cache_path: str | None = None  # images.npy, uint8 [N, 112, 112, 3] RGB
    labels_path: str | None = None  # null: labels.npy beside the images, if it exists
    # Labels for recipe supervised, int32 [N]; -1 leaves an image out. null: the labels above. Pseudo-IDs work too.
    train_labels_path: str | None = None
    data_fraction: float = 1.0  # rounded to whole blocks; app/data/dataset.py chooses them
    block_size: int = 8192  # rows per block, unless manifest.json sets it


@dataclass
class AugmentConfig:
    """Strengths of the random augmentations of a view; probabilities are per image."""

    crop_scale: list[float] = field(default_factory=lambda: [0.75, 1.0])  # share of the area: least, most
    crop_ratio: list[float] = field(default_factory=lambda: [0.92, 1.08])
    rotation_deg: float = 0.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.06  # as a share of a full turn
    gray: float = 0.08
    blur: float = 0.35
    blur_sigma_px: list[float] = field(default_factory=lambda: [0.3, 1.5])
    jpeg: float = 0.45
    jpeg_quality: list[float] = field(default_factory=lambda: [40.0, 95.0])
    noise: float = 0.2
    noise_std: float = 0.05  # at most, for pixels in [-1, 1]
    cutout: float = 0.2
    cutout_side: list[float] = field(default_factory=lambda: [0.15, 0.35])  # share of the image's side: least, most
    amplitude_mix: float = 0.0  # mix the low-frequency amplitudes with those of another image
    amplitude_mix_alpha: float = 1.0  # largest share taken from the other image


@dataclass
class BackboneConfig:
    name: str = "iresnet"  # iresnet, mobilefacenet or vit
    layers: list[int] = field(default_factory=lambda: [3, 4, 14, 3])  # blocks per stage; vit has one stage
    width: int = 64  # channels of the first stage; vit: token size
    embedding_dim: int = 512
    dropout: float = 0.0
    image_size: int = 112  # side of the network's input; cropping resamples images to it
    fourier: str = "none"  # learned gain on the image's spectrum: none, or the mask made for vit or iresnet
    gradient_checkpointing: bool = False  # a third more compute, but most activations need no memory
    # only for vit
    patch_size: int = 9
    drop_path: float = 0.0  # probability to skip the last block; it rises from 0 at the first
    mask_ratio: float = 0.0  # share of tokens left out in training
    parity_mask_ratio: bool = False  # as published: any mask_ratio above 0 means 0.1


@dataclass
class MocoConfig:
    projection_hidden: int = 2048
    projection_dim: int = 128
    queue_size: int = 65536
    momentum: float = 0.999
    temperature: float = 0.05
    margin: float = 0.15  # subtracted from the positive's cosine
    mask_most_similar: int = 8  # most similar negatives per query left out: they may be the same person
    multi_positive: bool = False  # queue entries of the same pseudo-ID are positives instead of being masked


@dataclass
class PositiveMixConfig:
    """Probability by epoch that the positive is another image of the same pseudo-ID."""

    epochs: list[int] = field(default_factory=lambda: [0, 5, 10, 20, 35])
    probability: list[float] = field(default_factory=lambda: [0.0, 0.3, 0.6, 0.85, 0.9])
    min_same_image: float = 0.15  # least probability of two views of one image, in every epoch


@dataclass
class MiningConfig:
    """Mining of pseudo-IDs: embed, search nearest neighbours, cluster, check the result."""

    start_epoch: int = 2
    every_epochs: int = 2
    features: str = "fresh"  # fresh: embed every image again; bank: reuse the momentum encoder's training embeddings
    batch_size: int = 512  # images per process and batch
    flip_sum: bool = False  # add the embedding of the mirrored image: twice the work, fewer false neighbours
    # search
    neighbours: int = 32
    backend: str = "auto"  # auto, faiss or torch
    # replicated: every process holds all embeddings; ring: processes pass them around; auto: whichever fits
    placement: str = "auto"
    min_recall: float = 0.999  # of a sample's neighbours against brute force; a lower recall ends the run
    # clusters
    method: str = "overlap"  # or parity: connected components of mutual neighbours above a fixed similarity
    min_overlap: float = 0.25  # overlap: share of common neighbours; give 0.2 for 20 neighbours or fewer
    false_edges_per_image: float = 0.05  # overlap: expected number above the floor of the nearest neighbour
    mutual_top: int = 5  # parity: each image is among the other's first `mutual_top` neighbours
    similarity: float = 0.6  # parity: least cosine of an edge
    min_cluster: int = 2
    max_cluster: int = 1000  # larger clusters are split
    # gate: a labelling that breaks one of these limits is rejected, and the old one stays
    # Share of images with a pseudo-ID; overlap also requires twice false_edges_per_image. 0 accepts any share.
    min_coverage: float = 0.02
    max_largest_share: float = 0.2  # share of all images in the largest cluster
    max_churn: float = 0.95  # share of images with a pseudo-ID that lose or change it


@dataclass
class HeadConfig:
    """The margin loss on the angle between an embedding and its class centre."""

    name: str = "arcface"  # combined, arcface, cosface, sphereface, adaface, magface or curricularface
    scale: float = 64.0  # of the logits
    margin: float | None = None  # null: the head's published margin; magface: the margin at the smallest norm
    margins: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.0])  # combined: cos(m1 * angle + m2) - m3
    # arcface, combined, sphereface: leave the margin out of the gradient, as published since 2022
    straight_through: bool = True
    filter_above: float | None = None  # ignore other classes above this cosine: they may be the same person
    # Share of class centres per step (Partial FC); always includes the batch's classes. 0: those alone.
    sample_rate: float = 1.0
    update: str = "lazy"  # lazy: centres not sampled stay; dense: weight decay and momentum move them, as published
    warm_start: bool = False  # train.warm_start also loads the centres of labels that both runs share


@dataclass
class RecipeConfig:
    name: str = "self_supervised"  # or supervised
    head: HeadConfig = field(default_factory=HeadConfig)
    ema: float = 0.0  # supervised: evaluate a running mean of the weights with this decay; 0: the weights themselves
    moco: MocoConfig = field(default_factory=MocoConfig)
    positives: PositiveMixConfig = field(default_factory=PositiveMixConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class BatchConfig:
    size: int = 128  # images per process
    grad_accum_steps: int = 1
    parity_sum: bool = False  # add accumulated losses instead of averaging: not one large batch, but as published


@dataclass
class OptimizerConfig:
    name: str = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False  # weight decay also for biases, BN and PReLU, as in the published margin recipes
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
    every_epochs: int = 5  # also at the end
    every_steps: int = 0  # extra evaluations of `sets` every so many steps; 0: only with the epochs
    sets: list[str] = field(default_factory=list)  # lfw.bin,pairs.csv, …: the kinds that app.evaluate reads
    batch_size: int = 256
    max_images: int = 2000  # held-out images used; the number of pairs grows with its square


@dataclass
class TrainConfig:
    epochs: int = 75
    seed: int = 2048
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    resume: str | None = None  # auto, none, or a checkpoint's path
    warm_start: str | None = None  # checkpoint or published weights: start a new run with that backbone
    # auto, fp32, bf16 or fp16. auto: bf16 on GPUs from compute capability 8.0 on, fp16 on older ones, fp32 on a CPU.
    # The run folder's config.yaml records the choice.
    precision: str = "auto"
    tf32: bool = True  # fp32 products on a GPU use a 10-bit mantissa
    channels_last: bool = True
    compile: bool = False  # torch.compile: minutes at the start, faster steps on a GPU; the image has its dependencies
    max_nonfinite_steps: int = 10  # in a row; each is skipped, and the last one ends the run
    log_every_steps: int = 10
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class RunConfig:
    dir: str | None = None  # null: runs/by-hand-<time>
    report: bool = True  # write report.html when the run ends, is stopped or fails
    commit: str = "none"  # the code's commit, given by the caller; recorded in every checkpoint's JSON


@dataclass
class PlanConfig:
    images_per_s: float | None = None  # measured rate of one process; used only to estimate the time in the plan


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
        """Settings that a checkpoint must match to be loaded: they decide the shapes of its tensors."""
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
    """Yield every key of a nested dict with its value: `train.batch.size`, 128."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def defaults() -> dict[str, Any]:
    """Return every key with its default."""
    return dict(leaves(Config().as_dict()))
