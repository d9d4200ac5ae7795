"""The schema: every key with its default and meaning. conf/*.yaml hold values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# The only lists of these names. The metadata of a key is the rule that app/config/checks.py applies to its value.
BACKBONES = ("iresnet", "mobilefacenet", "vit")
FOURIER = ("none", "vit", "iresnet")
ATTENTIONS = ("fp32", "auto")
HEADS = ("combined", "arcface", "cosface", "sphereface", "adaface", "magface", "curricularface")
RECIPES = ("self_supervised", "supervised", "distill")
DISTILLATIONS = ("cosine", "l2")
SHARDS = ("whole", "by_node")
SWITCH = ("auto", "on", "off")
PROBABILITY, BELOW_ONE = {"probability": True}, {"below_one": True}
ABOVE_ZERO, FROM_ZERO = {"above_zero": True}, {"from_zero": True}
NO_ID = -1  # the pseudo-ID of an image without a cluster


@dataclass
class DataConfig:
    """The location of the images and the selection to train on."""

    binary_cache_path: str | None = None  # images.npy, images.jpegs or a .rec; docs/photographs.md
    labels_path: str | None = None  # null: labels.npy beside the images, if it exists
    # Labels to learn, int32 [N]; -1 leaves an image out. null: the labels above. Pseudo-IDs work too.
    train_labels_path: str | None = None
    data_fraction: float = 1.0  # rounded to whole blocks; app/data/dataset.py chooses them
    block_size: int = field(default=8192, metadata={"least": 1})  # rows per block, unless manifest.json sets it
    # whole: every machine reads all images; by_node: each of several machines only its own share of the blocks
    shards: str = field(default="whole", metadata={"choices": SHARDS})


@dataclass
class AugmentConfig:
    """Strengths of the random augmentations of a view; probabilities are per image."""

    crop_scale: list[float] = field(default_factory=lambda: [0.75, 1.0])  # share of the area: least, most
    crop_ratio: list[float] = field(default_factory=lambda: [0.92, 1.08])  # width / height of the crop: least, most
    rotation_deg: float = field(default=0.0, metadata={"most": 180.0})  # at most, in both directions
    flip: float = field(default=0.5, metadata=PROBABILITY)  # probability to mirror
    # probability to change brightness, contrast, saturation and hue
    jitter: float = field(default=0.8, metadata=PROBABILITY)
    brightness: float = field(default=0.25, metadata={"most": 1.0})  # at most, as a share
    contrast: float = field(default=0.25, metadata={"most": 1.0})  # at most, as a share
    saturation: float = field(default=0.25, metadata={"most": 1.0})  # at most, as a share
    hue: float = field(default=0.06, metadata=PROBABILITY)  # as a share of a full turn
    gray: float = field(default=0.08, metadata=PROBABILITY)  # probability
    blur: float = field(default=0.35, metadata=PROBABILITY)  # probability
    blur_sigma_px: list[float] = field(default_factory=lambda: [0.3, 1.5])  # least, most
    jpeg: float = field(default=0.45, metadata=PROBABILITY)  # probability to compress
    jpeg_quality: list[float] = field(default_factory=lambda: [40.0, 95.0])  # least, most
    noise: float = field(default=0.2, metadata=PROBABILITY)  # probability
    noise_std: float = field(default=0.05, metadata={"most": 1.0})  # at most, for pixels in [-1, 1]
    cutout: float = field(default=0.2, metadata=PROBABILITY)  # probability to blank a square
    cutout_side: list[float] = field(default_factory=lambda: [0.15, 0.35])  # share of the image's side: least, most
    # mix the low-frequency amplitudes with those of another image
    amplitude_mix: float = field(default=0.0, metadata=PROBABILITY)
    # largest share taken from the other image
    amplitude_mix_alpha: float = field(default=1.0, metadata=PROBABILITY)


@dataclass
class BackboneConfig:
    name: str = field(default="iresnet", metadata={"choices": BACKBONES})  # iresnet, mobilefacenet or vit
    layers: list[int] = field(default_factory=lambda: [3, 4, 14, 3])  # blocks per stage; vit has one stage
    width: int = field(default=64, metadata={"least": 1})  # channels of the first stage; vit: token size
    embedding_dim: int = field(default=512, metadata={"least": 1})  # size of the embedding
    dropout: float = field(default=0.0, metadata=BELOW_ONE)  # probability before the embedding
    # side of the network's input; cropping resamples images to it
    image_size: int = field(default=112, metadata={"least": 16})
    # learned gain on the image's spectrum: none, or the mask made for vit or iresnet
    fourier: str = field(default="none", metadata={"choices": FOURIER})
    gradient_checkpointing: bool = False  # a third more compute, but most activations need no memory
    # only for vit:
    patch_size: int = field(default=9, metadata={"least": 1})  # pixels
    # probability to skip the last block; it rises from 0 at the first
    drop_path: float = field(default=0.0, metadata=BELOW_ONE)
    # share of tokens left out in training
    mask_ratio: float = field(default=0.0, metadata={"below_one": True, "such_as": 0.1})
    parity_mask_ratio: bool = False  # as published: any mask_ratio above 0 means 0.1
    # of queries, keys and values: fp32, as published, or auto, the precision of training
    attention_precision: str = field(default="fp32", metadata={"choices": ATTENTIONS})


@dataclass
class MocoConfig:
    # width of the hidden layer between backbone and loss
    projection_hidden: int = field(default=2048, metadata={"least": 1})
    projection_dim: int = field(default=128, metadata={"least": 1})  # size of the vectors that the loss compares
    queue_size: int = field(default=65536, metadata={"least": 1})  # keys of earlier batches, the negatives
    # of the momentum encoder, per step: its share of its own old weights
    momentum: float = field(default=0.999, metadata=BELOW_ONE)
    temperature: float = field(default=0.05, metadata=ABOVE_ZERO)  # divides the cosines
    margin: float = field(default=0.15, metadata={"most": 2.0})  # subtracted from the positive's cosine
    # most similar negatives per query left out: they may be the same person
    mask_most_similar: int = field(default=8, metadata={"least": 0})
    multi_positive: bool = False  # queue entries of the same pseudo-ID are positives instead of being masked


@dataclass
class PositiveMixConfig:
    """Probability by epoch that the positive is another image of the same pseudo-ID."""

    # first epoch of each probability, ascending
    epochs: list[int] = field(default_factory=lambda: [0, 5, 10, 20, 35], metadata={"least": 0})
    # one for each entry of `epochs`
    probability: list[float] = field(default_factory=lambda: [0.0, 0.3, 0.6, 0.85, 0.9], metadata=PROBABILITY)
    # least probability of two views of one image, in every epoch
    min_same_image: float = field(default=0.15, metadata=PROBABILITY)


@dataclass
class MiningConfig:
    """Mining of pseudo-IDs: embed, search nearest neighbours, cluster, check the result. See docs/mining.md."""

    start_epoch: int = field(default=2, metadata={"least": 0})  # the first epoch that begins with mining
    every_epochs: int = field(default=2, metadata={"least": 1})  # epochs between two refreshes
    # fresh: embed every image again; bank: reuse the momentum encoder's training embeddings
    features: str = field(default="fresh", metadata={"choices": ("fresh", "bank")})
    batch_size: int = field(default=512, metadata={"least": 1})  # images per process and batch
    flip_sum: bool = False  # add the embedding of the mirrored image: twice the work, fewer false neighbours
    # the search:
    neighbours: int = field(default=32, metadata={"least": 1, "most": 2048})  # per image
    backend: str = field(default="auto", metadata={"choices": ("auto", "faiss", "torch")})  # auto, faiss or torch
    # exact: compare all pairs; ivf: compare within near cells, by FAISS; auto: exact up to 5 million images
    search: str = field(default="auto", metadata={"choices": ("auto", "exact", "ivf")})
    # replicated: every process holds all embeddings; ring: processes pass them around; auto: whichever fits
    placement: str = field(default="auto", metadata={"choices": ("auto", "replicated", "ring")})
    # of a sample's neighbours against brute force; a lower recall ends the run. ivf: of those that clustering reads
    min_recall: float = field(default=0.999, metadata=PROBABILITY)
    # clusters:
    # or parity: connected components of mutual neighbours above a fixed similarity
    method: str = field(default="overlap", metadata={"choices": ("overlap", "parity")})
    # overlap: share of common neighbours; give 0.2 for 20 neighbours or fewer
    min_overlap: float = field(default=0.25, metadata=PROBABILITY)
    # overlap: expected number above the floor of the nearest neighbour
    false_edges_per_image: float = field(default=0.05, metadata=FROM_ZERO)
    # parity: each image is among the other's first `mutual_top` neighbours
    mutual_top: int = field(default=5, metadata={"least": 1})
    similarity: float = field(default=0.6, metadata=PROBABILITY)  # parity: least cosine of an edge
    min_cluster: int = field(default=2, metadata={"least": 2})  # images; the others get no pseudo-ID
    max_cluster: int = 32768  # larger clusters are split; nobody has as many images
    # the gate; labels that break one of these limits are rejected, and the old ones stay:
    # share of images with a pseudo-ID; overlap also needs twice false_edges_per_image; 0 accepts any share
    min_coverage: float = field(default=0.02, metadata=PROBABILITY)
    # share of all images in the largest cluster
    max_largest_share: float = field(default=0.2, metadata=PROBABILITY)
    # share of images with a pseudo-ID that lose or change it
    max_churn: float = field(default=0.95, metadata=PROBABILITY)


@dataclass
class HeadConfig:
    """The margin loss on the angle between an embedding and its class centre."""

    # combined, arcface, cosface, sphereface, adaface, magface or curricularface
    name: str = field(default="arcface", metadata={"choices": HEADS})
    scale: float = field(default=64.0, metadata=ABOVE_ZERO)  # of the logits
    # null: the head's published margin; magface: the margin at the smallest norm; sphereface: a factor of the angle
    margin: float | None = None
    margins: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.0])  # combined: cos(m1 * angle + m2) - m3
    # arcface, combined, sphereface: leave the margin out of the gradient, as published since 2022
    straight_through: bool = True
    # ignore other classes above this cosine: they may be the same person
    filter_above: float | None = None
    # Share of class centres per step (Partial FC); always includes the batch's classes. 0: those alone.
    sample_rate: float = field(default=1.0, metadata={"most": 1.0, "such_as": 0.3})
    # lazy: centres not sampled stay; dense: weight decay and momentum move them, as published
    update: str = field(default="lazy", metadata={"choices": ("lazy", "dense")})
    warm_start: bool = False  # train.warm_start also loads the centres of labels that both runs share


@dataclass
class DistillConfig:
    """Recipe distill: the embeddings follow those of a larger, frozen network, the teacher."""

    # a checkpoint of a run, published weights, or an ONNX file (which runs on the CPU); on the machine that trains
    teacher: str | None = None
    backbone: str | None = None  # of published weights: a name of conf/backbone; null: the teacher's config.yaml tells
    # of published weights: as backbone.fourier
    fourier: str = field(default="none", metadata={"choices": FOURIER})
    # between unit embeddings: cosine is 1 - cosine; l2 is the squared distance, twice that
    loss: str = field(default="cosine", metadata={"choices": DISTILLATIONS})
    weight: float = field(default=1.0, metadata=ABOVE_ZERO)  # of this loss
    # of the margin loss of recipe.head, which needs labels; 0: the teacher alone, without labels
    head_weight: float = field(default=0.0, metadata=FROM_ZERO)
    projection: bool = False  # learn a matrix to the teacher's embedding size, if the sizes differ


@dataclass
class RecipeConfig:
    # self_supervised, supervised or distill
    name: str = field(default="self_supervised", metadata={"choices": RECIPES})
    head: HeadConfig = field(default_factory=HeadConfig)
    # supervised, distill: evaluate a running mean of the weights with this decay; 0: the weights themselves
    ema: float = field(default=0.0, metadata=BELOW_ONE)
    distill: DistillConfig = field(default_factory=DistillConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
    positives: PositiveMixConfig = field(default_factory=PositiveMixConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class BatchConfig:
    size: int = field(default=128, metadata={"least": 2, "most": 2**20})  # images per process
    grad_accum_steps: int = field(default=1, metadata={"least": 1})  # batches per step of the optimizer
    parity_sum: bool = False  # add accumulated losses instead of averaging: not one large batch, but as published


@dataclass
class OptimizerConfig:
    name: str = field(default="sgd", metadata={"choices": ("sgd", "adamw")})  # or adamw
    lr: float = field(default=0.03, metadata=ABOVE_ZERO)  # at the end of the warm-up
    momentum: float = field(default=0.9, metadata=BELOW_ONE)  # sgd
    nesterov: bool = True  # sgd
    weight_decay: float = field(default=5e-4, metadata=FROM_ZERO)  # not of biases, BN and PReLU
    decay_all: bool = False  # weight decay also for biases, BN and PReLU, as in the published margin recipes
    # largest norm of the gradient; a larger one is scaled down
    clip_grad_norm: float = field(default=5.0, metadata=ABOVE_ZERO)


@dataclass
class WarmupConfig:
    epochs: float = field(default=2.0, metadata=FROM_ZERO)  # from start_lr to the base rate, in equal steps
    # null: no warm-up, the base rate from the start
    start_lr: float | None = field(default=None, metadata=FROM_ZERO)


@dataclass
class LrScheduleConfig:
    # cosine, poly or multistep
    name: str = field(default="cosine", metadata={"choices": ("cosine", "poly", "multistep")})
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    final_lr: float = field(default=0.0, metadata=FROM_ZERO)  # for cosine and poly
    milestones: list[int] = field(default_factory=lambda: [20, 40, 60], metadata={"least": 0})  # epochs, for multistep
    gamma: float = field(default=0.5, metadata=FROM_ZERO)  # for multistep
    power: float = field(default=1.0, metadata=FROM_ZERO)  # for poly


@dataclass
class CheckpointConfig:
    every_epochs: int = field(default=1, metadata={"least": 1})  # also at the end
    # the newest ones that stay; the best of each measure stays too
    keep: int = field(default=10, metadata={"least": 1})


@dataclass
class EvalConfig:
    every_epochs: int = field(default=5, metadata={"least": 1})  # also at the end
    # extra evaluations of `sets` every so many steps; 0: only with the epochs
    every_steps: int = field(default=0, metadata={"least": 0})
    sets: list[str] = field(default_factory=list)  # lfw.bin,pairs.csv, …: the kinds that app.evaluate reads
    # images of `sets` that are not square: crop takes the middle; squash and pad take all
    fit: str = field(default="crop", metadata={"choices": ("crop", "squash", "pad")})
    batch_size: int = field(default=256, metadata={"least": 1})  # images per process and batch
    # who chooses the best checkpoint. auto: half of the held-out people if there are at least 20, and the result is of
    # the others; none: the people of the result; or a share of the people, such as 0.5
    validation: str = field(default="auto", metadata={"share_or": ("auto", "none"), "such_as": 0.5})
    # held-out images used; the number of pairs grows with its square
    max_images: int = field(default=2000, metadata={"least": 1})


@dataclass
class TrainConfig:
    epochs: int = field(default=75, metadata={"least": 1})  # of the whole run, also of one that resumes
    seed: int = field(default=2048, metadata={"least": 0})  # of weights, order of images and augmentations
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    resume: str | None = None  # auto, none, or a checkpoint's path
    warm_start: str | None = None  # checkpoint or published weights: start a new run with that backbone
    # auto, fp32, bf16 or fp16. auto: bf16 on GPUs from compute capability 8.0 on, fp16 on older ones, fp32 on a CPU.
    # The run folder's config.yaml records the choice.
    precision: str = field(default="auto", metadata={"choices": ("auto", "fp32", "bf16", "fp16")})
    tf32: bool = True  # fp32 products on a GPU use a 10-bit mantissa
    channels_last: bool = True  # memory layout of convolutions; on GPUs faster with 16 bits
    # torch.compile of the networks that train and mine: minutes at the start, faster on GPUs; the image can do it
    compile: bool = False
    # capture the network's passes as CUDA graphs, for few launches a step; auto: off until a GPU has measured them
    cuda_graphs: str = field(default="auto", metadata={"choices": SWITCH})
    # in a row; each is skipped, and the last one ends the run
    max_nonfinite_steps: int = field(default=10, metadata={"least": 1})
    log_every_steps: int = field(default=10, metadata={"least": 1})  # a line of the log and an event of metrics.jsonl
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class RunConfig:
    dir: str | None = None  # null: runs/by-hand-<time>
    report: bool = True  # write report.html when the run ends, is stopped or fails
    commit: str = "none"  # the code's commit, given by the caller; recorded in every checkpoint's JSON


@dataclass
class PlanConfig:
    # measured rate of one process; used only to estimate the time in the plan
    images_per_s: float | None = field(default=None, metadata={"above_zero": True, "such_as": 500})


@dataclass
class WandbConfig:
    project: str = "sniperface"  # where runs appear
    entity: str | None = None  # null: your account's default
    artifacts: bool = False  # upload each checkpoint, with its JSON, as a version of the artifact RUN-checkpoint


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
    # none, wandb or tensorboard (event files in the run's folder tensorboard/)
    track: str = field(default="none", metadata={"choices": ("none", "wandb", "tensorboard")})

    @property
    def has_head(self) -> bool:
        """Whether labels are learnt, with a margin head."""
        recipe = self.recipe
        return recipe.name == "supervised" or (recipe.name == "distill" and recipe.distill.head_weight > 0)

    def model(self) -> dict[str, Any]:
        """Settings that a checkpoint must match to be loaded: they decide the shapes of its tensors."""
        moco, distill = self.recipe.moco, self.recipe.distill
        if self.recipe.name != "self_supervised":
            apart = {"with_head": self.has_head, "matrix": distill.projection}
            return {
                "recipe": self.recipe.name,
                "backbone": dataclasses.asdict(self.backbone),
                "head": self.recipe.head.name if self.has_head else None,
                "ema": self.recipe.ema > 0,
                **(apart if self.recipe.name == "distill" else {}),
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
