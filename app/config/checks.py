"""Check a configuration and its names; each message suggests a value that works."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence

from app.config.schema import Config, HeadConfig, defaults

HEADS = ["combined", "arcface", "cosface", "sphereface", "adaface", "magface", "curricularface"]


def faults(config: Config) -> Iterator[str]:
    """Yield one message per invalid value; it names the key and a value that works."""
    train, data, backbone, recipe = config.train, config.data, config.backbone, config.recipe
    mining, positives, head = config.mining, recipe.positives, recipe.head
    fraction = data.data_fraction
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        yield f"data.data_fraction={fraction:g} is not a fraction; give a number above 0 and up to 1, such as 0.1"
    for key, name, choices in (
        ("recipe.name", recipe.name, ["self_supervised", "supervised"]),
        ("backbone.name", backbone.name, ["iresnet", "mobilefacenet", "vit"]),
        ("backbone.fourier", backbone.fourier, ["none", "vit", "iresnet"]),
        ("recipe.head.name", head.name, HEADS),
        ("recipe.head.update", head.update, ["lazy", "dense"]),
        ("train.optimizer.name", train.optimizer.name, ["sgd", "adamw"]),
        ("train.lr_schedule.name", train.lr_schedule.name, ["cosine", "poly", "multistep"]),
        ("train.eval.fit", train.eval.fit, ["crop", "squash", "pad"]),
        ("train.precision", train.precision, ["auto", "fp32", "bf16", "fp16"]),
        ("mining.features", mining.features, ["fresh", "bank"]),
        ("mining.backend", mining.backend, ["auto", "faiss", "torch"]),
        ("mining.placement", mining.placement, ["auto", "replicated", "ring"]),
        ("mining.method", mining.method, ["overlap", "parity"]),
        ("track", config.track, ["none", "wandb"]),
    ):
        if name not in choices:
            yield f"{key}={name} is not known; {nearest(name, choices)}"
    for key, number, least in (
        ("train.epochs", train.epochs, 1),
        ("train.batch.size", train.batch.size, 2),
        ("train.batch.grad_accum_steps", train.batch.grad_accum_steps, 1),
        ("train.seed", train.seed, 0),
        ("train.eval.max_images", train.eval.max_images, 1),
        ("train.max_nonfinite_steps", train.max_nonfinite_steps, 1),
        ("train.log_every_steps", train.log_every_steps, 1),
        ("train.checkpoint.every_epochs", train.checkpoint.every_epochs, 1),
        ("train.checkpoint.keep", train.checkpoint.keep, 1),
        ("train.eval.every_epochs", train.eval.every_epochs, 1),
        ("train.eval.every_steps", train.eval.every_steps, 0),
        ("train.eval.batch_size", train.eval.batch_size, 1),
        ("data.block_size", data.block_size, 1),
        ("backbone.width", backbone.width, 1),
        ("backbone.embedding_dim", backbone.embedding_dim, 1),
        ("backbone.image_size", backbone.image_size, 16),
        ("backbone.patch_size", backbone.patch_size, 1),
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
        ("recipe.head.scale", head.scale),
    ):
        if not (math.isfinite(value) and value > 0):
            yield f"{key}={value:g} must be a finite number above 0, such as {defaults()[key]}"
    if not 0 <= recipe.moco.momentum < 1:
        yield f"recipe.moco.momentum={recipe.moco.momentum:g} must be at least 0 and below 1, such as 0.999"
    if recipe.moco.mask_most_similar >= recipe.moco.queue_size:
        yield (
            f"recipe.moco.mask_most_similar={recipe.moco.mask_most_similar} leaves no negatives in a queue of "
            f"{recipe.moco.queue_size}; give at most {recipe.moco.queue_size - 1}"
        )
    yield from _faults_of_schedule(config)
    yield from _faults_of_head(config)
    if train.seed >= 2**63:
        yield f"train.seed={train.seed} is too large; give one below {2**63}"
    for key, share in (
        ("recipe.ema", recipe.ema),
        ("backbone.drop_path", backbone.drop_path),
        ("backbone.dropout", backbone.dropout),
        ("train.optimizer.momentum", train.optimizer.momentum),
    ):
        if not 0 <= share < 1:
            yield f"{key}={share:g} must be at least 0 and below 1, such as {defaults()[key]:g}"
    if not 0 <= backbone.mask_ratio < 1:
        yield f"backbone.mask_ratio={backbone.mask_ratio:g} must be at least 0 and below 1, such as 0.1"
    augment = recipe.augment
    for key, probability in (
        *((f"recipe.augment.{name}", getattr(augment, name)) for name in ("flip", "jitter", "gray", "blur", "noise")),
        *(
            (f"recipe.augment.{name}", getattr(augment, name))
            for name in ("hue", "jpeg", "cutout", "amplitude_mix", "amplitude_mix_alpha")
        ),
        *(("recipe.positives.probability", value) for value in positives.probability),
        ("recipe.positives.min_same_image", positives.min_same_image),
        *((f"mining.{name}", getattr(mining, name)) for name in ("min_recall", "min_coverage", "max_largest_share")),
        *((f"mining.{name}", getattr(mining, name)) for name in ("max_churn", "min_overlap", "similarity")),
    ):
        if not 0 <= probability <= 1:
            yield f"{key}={probability:g} is out of range; give a number from 0 to 1"
    yield from _faults_of_ranges(config)
    if len(positives.epochs) != len(positives.probability):
        yield (
            f"recipe.positives.epochs has {len(positives.epochs)} entries and recipe.positives.probability "
            f"{len(positives.probability)}; give one probability for each start epoch"
        )
    if mining.features == "bank" and mining.start_epoch == 0:
        yield "mining.features=bank is empty before epoch 0; give mining.start_epoch=1 or mining.features=fresh"
    vit_alone = {"drop_path": 0, "mask_ratio": 0, "parity_mask_ratio": False}
    for name, unset in vit_alone.items():
        if backbone.name != "vit" and getattr(backbone, name) != unset:
            yield f"backbone.{name} applies only to backbone vit; leave it out, or give backbone=vit_t"
    if backbone.name == "vit" and (len(backbone.layers) != 1 or backbone.width % 8):
        yield "backbone vit needs one number of layers and a width divisible by 8; give backbone=vit_t"
    if backbone.name == "vit" and backbone.patch_size > backbone.image_size:
        yield (
            f"backbone.patch_size={backbone.patch_size} is larger than backbone.image_size={backbone.image_size}; "
            "give a smaller one, such as 9"
        )
    if backbone.name == "iresnet" and not (1 <= len(backbone.layers) <= 4 and min(backbone.layers) >= 1):
        yield f"backbone.layers={backbone.layers} must be one to four numbers from 1 on, such as [3, 4, 14, 3]"
    if backbone.name == "vit" and backbone.layers and backbone.layers[0] < 1:
        yield f"backbone.layers={backbone.layers} must be a number from 1 on, such as [12]"
    if config.data.train_labels_path and recipe.name != "supervised":
        yield "data.train_labels_path is for recipe supervised; give recipe=supervised, or leave it out"
    if backbone.name == "mobilefacenet" and (backbone.width % 64 or len(backbone.layers) != 4):
        yield "backbone mobilefacenet takes four layers and a width of 64, 128 or 256; give backbone=mobilefacenet"


def _faults_of_ranges(config: Config) -> Iterator[str]:
    """Check the ranges of the augmentations."""
    augment = config.recipe.augment
    widest_blur = (config.backbone.image_size - 1) / 2  # the kernel reaches two sigmas; reflect padding limits it
    for name, most in (
        ("crop_scale", 1.0),
        ("crop_ratio", 10.0),
        ("blur_sigma_px", widest_blur),
        ("jpeg_quality", 100.0),
        ("cutout_side", 1.0),
    ):
        bounds = getattr(augment, name)
        if not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= most):
            key = f"recipe.augment.{name}"
            yield (
                f"{key}={bounds} must be two numbers above 0 and up to {most:g}, the smaller first, "
                f"such as {defaults()[key]}"
            )
    for name, most in (
        ("brightness", 1.0),
        ("contrast", 1.0),
        ("saturation", 1.0),
        ("noise_std", 1.0),
        ("rotation_deg", 180.0),
    ):
        if not 0 <= getattr(augment, name) <= most:
            key = f"recipe.augment.{name}"
            yield f"{key}={getattr(augment, name):g} must be from 0 to {most:g}, such as {defaults()[key]:g}"


def _faults_of_schedule(config: Config) -> Iterator[str]:
    o, schedule = config.train.optimizer, config.train.lr_schedule
    for key, value in (
        ("train.optimizer.weight_decay", o.weight_decay),
        ("train.lr_schedule.final_lr", schedule.final_lr),
        ("train.lr_schedule.power", schedule.power),
        ("train.lr_schedule.gamma", schedule.gamma),
        ("train.lr_schedule.warmup.epochs", schedule.warmup.epochs),
        ("train.lr_schedule.warmup.start_lr", schedule.warmup.start_lr or 0.0),
    ):
        if not (math.isfinite(value) and value >= 0):
            yield f"{key}={value:g} must be a finite number from 0 on, such as {defaults()[key] or 0}"
    if o.name == "sgd" and o.nesterov and o.momentum == 0:
        yield "train.optimizer.momentum=0 does not work with Nesterov momentum; add train.optimizer.nesterov=false"


def _faults_of_head(config: Config) -> Iterator[str]:
    """Check the head; also refuse keys that it would ignore, as a silently ignored margin spoils an experiment."""
    recipe, head = config.recipe, config.recipe.head
    unset = HeadConfig()
    if not 0 <= head.sample_rate <= 1:
        yield f"recipe.head.sample_rate={head.sample_rate:g} must be from 0 to 1, such as 0.3"
    if head.filter_above is not None and not -1 <= head.filter_above <= 1:
        yield f"recipe.head.filter_above={head.filter_above:g} is not a cosine; give one such as 0.4, or null"
    m1, m2, m3 = head.margins if len(head.margins) == 3 else (0.0, 0.0, 0.0)
    if not (all(math.isfinite(m) for m in head.margins) and m1 > 0 and 0 <= m2 < math.pi / 2 and 0 <= m3 < 1):
        yield (
            f"recipe.head.margins={head.margins} must be three numbers, above 0, from 0 to 1.57 (radians) and from 0 "
            "to 1, such as [1.0, 0.5, 0.0]"
        )
    most = 4.0 if head.name == "sphereface" else 1.2 if head.name == "magface" else 1.57
    if head.margin is not None and not 0 <= head.margin <= most:
        yield f"recipe.head.margin={head.margin:g} must be from 0 to {most:g} (radians, not degrees), such as 0.4"
    if head.name != "combined" and head.margins != unset.margins:
        yield f"recipe.head.margins applies to head combined, not to {head.name}; give recipe.head.name=combined"
    if head.name == "combined" and head.margin is not None:
        yield "recipe.head.margin does not apply to head combined; give recipe.head.margins"
    if recipe.name != "supervised" and (head != unset or recipe.ema):
        yield "recipe.head and recipe.ema apply only to recipe supervised; give recipe=supervised, or leave them out"
    if head.warm_start and config.train.warm_start is None:
        yield "recipe.head.warm_start=true needs train.warm_start=PATH, a checkpoint of recipe supervised"


def nearest(name: str, choices: Sequence[str]) -> str:
    """Suggest the closest choice, else list the choices; more than 12: name the command that lists them."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    # The most common mistake is a right last part under a wrong path: batch.size for train.batch.size.
    close = close or [choice for choice in choices if choice.endswith("." + name.split(".")[-1])][:1]
    if close:
        return f"did you mean {close[0]}?"
    if len(choices) <= 12:
        return f"choose from {', '.join(choices)}"
    return "`python -m app.train --help` lists all of them"
