"""Check a configuration and its names; each message suggests a value that works."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from app.config.schema import BackboneConfig, Config, DistillConfig, HeadConfig, defaults

MOST = 2**63  # the first whole number that torch and numpy do not take


def faults(config: Config) -> Iterator[str]:
    """Yield one message per invalid value; it names the key and a value that works."""
    train, data, recipe, mining = config.train, config.data, config.recipe, config.mining
    positives = recipe.positives
    fraction = data.data_fraction
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        yield f"data.data_fraction={fraction:g} is not a fraction; give a number above 0 and up to 1, such as 0.1"
    yield from _faults_of_keys(config)
    if mining.max_cluster < mining.min_cluster:
        yield f"mining.max_cluster={mining.max_cluster} is too small; give at least {mining.min_cluster}"
    if recipe.moco.mask_most_similar >= recipe.moco.queue_size:
        yield (
            f"recipe.moco.mask_most_similar={recipe.moco.mask_most_similar} leaves no negatives in a queue of "
            f"{recipe.moco.queue_size}; give at most {recipe.moco.queue_size - 1}"
        )
    sgd = train.optimizer
    if sgd.name == "sgd" and sgd.nesterov and sgd.momentum == 0:
        yield "train.optimizer.momentum=0 does not work with Nesterov momentum; add train.optimizer.nesterov=false"
    yield from _faults_of_head(config)
    yield from _faults_of_distillation(config)
    yield from _faults_of_ranges(config)
    if any(one >= other for one, other in pairwise(positives.epochs)):
        yield f"recipe.positives.epochs={positives.epochs} must ascend, such as [0, 5, 10]"
    if len(positives.epochs) != len(positives.probability):
        yield (
            f"recipe.positives.epochs has {len(positives.epochs)} entries and recipe.positives.probability "
            f"{len(positives.probability)}; give one probability for each start epoch"
        )
    if mining.features == "bank" and mining.start_epoch == 0:
        yield "mining.features=bank is empty before epoch 0; give mining.start_epoch=1 or mining.features=fresh"
    if data.train_labels_path and not config.has_head:
        yield f"data.train_labels_path is for recipe supervised; give {_for_a_head(config)}, or leave it out"
    yield from _faults_of_backbone(config.backbone)


def _faults_of_backbone(backbone: BackboneConfig) -> Iterator[str]:
    """Check the keys that only some backbones have, and the form of the layers of each."""
    is_vit, layers = backbone.name == "vit", backbone.layers
    vit_alone = {"drop_path": 0, "mask_ratio": 0, "parity_mask_ratio": False, "attention_precision": "fp32"}
    for name, unset in vit_alone.items():
        if not is_vit and getattr(backbone, name) != unset:
            yield f"backbone.{name} applies only to backbone vit; leave it out, or give backbone=vit_t"
    if is_vit and (len(layers) != 1 or backbone.width % 8):
        yield "backbone vit needs one number of layers and a width divisible by 8; give backbone=vit_t"
    if is_vit and backbone.patch_size > backbone.image_size:
        yield (
            f"backbone.patch_size={backbone.patch_size} is larger than backbone.image_size={backbone.image_size}; "
            "give a smaller one, such as 9"
        )
    if backbone.name == "iresnet" and not (1 <= len(layers) <= 4 and min(layers) >= 1):
        yield f"backbone.layers={layers} must be one to four numbers from 1 on, such as [3, 4, 14, 3]"
    if is_vit and layers and layers[0] < 1:
        yield f"backbone.layers={layers} must be a number from 1 on, such as [12]"
    fits = len(layers) == 4 and min(layers) >= 1 and backbone.width % 64 == 0
    if backbone.name == "mobilefacenet" and not fits:
        yield (
            "backbone mobilefacenet takes four numbers of layers from 1 on, and a width of 64, 128 or 256; "
            "give backbone=mobilefacenet"
        )


def _faults_of_keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Check each key of the schema by the rule in its metadata."""
    for each in dataclasses.fields(section):
        key, set_to, rule = f"{prefix}{each.name}", getattr(section, each.name), each.metadata
        if dataclasses.is_dataclass(set_to):
            yield from _faults_of_keys(set_to, f"{key}.")
        for value in set_to if isinstance(set_to, list) else [set_to]:
            if value is not None and (words := _fault(value, rule, each.default)):
                yield f"{key}={f'{value:g}' if isinstance(value, float) else value} {words}"


def _fault(value: Any, rule: Mapping[str, Any], default: Any) -> str | None:
    """Return what is wrong with a value, and one that works."""
    such_as = rule.get("such_as", default)
    if isinstance(value, list):  # inside a list
        return "must be a single value; give a list such as [1,2]"
    if isinstance(value, int) and value >= MOST:
        return f"is too large; give less than {MOST}"
    if "choices" in rule and value not in rule["choices"]:
        return f"is not known; {nearest(value, rule['choices'])}"
    if "share_or" in rule and value not in rule["share_or"] and not _is_share(value):
        return f"is not known; give {', '.join(rule['share_or'])}, or a number above 0 and below 1, such as {such_as:g}"
    if "least" in rule and value < rule["least"]:
        return f"is too small; give at least {rule['least']}"
    if "above_zero" in rule and not (math.isfinite(value) and value > 0):
        return f"must be a finite number above 0, such as {such_as}"
    if "from_zero" in rule and not (math.isfinite(value) and value >= 0):
        return f"must be a finite number from 0 on, such as {such_as or 0}"
    if "below_one" in rule and not 0 <= value < 1:
        return f"must be at least 0 and below 1, such as {such_as:g}"
    if "probability" in rule and not 0 <= value <= 1:
        return "is out of range; give a number from 0 to 1"
    if "most" in rule and not 0 <= value <= rule["most"]:
        return f"must be from {rule.get('least', 0)} to {rule['most']:.10g}, such as {such_as:g}"
    # Other checks name the whole list, and the range of a number that may be null.
    if isinstance(default, float) and not math.isfinite(value):
        return f"is not a finite number; give one such as {such_as:g}"
    return None


def _is_share(value: str) -> bool:
    """Whether a text is a number above 0 and below 1."""
    try:
        return 0 < float(value) < 1
    except ValueError:
        return False


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


def _faults_of_head(config: Config) -> Iterator[str]:
    """Check the head; also refuse keys that it would ignore, as a silently ignored margin spoils an experiment."""
    recipe, head = config.recipe, config.recipe.head
    unset = HeadConfig()
    if head.filter_above is not None and not -1 <= head.filter_above <= 1:
        yield f"recipe.head.filter_above={head.filter_above:g} is not a cosine; give one such as 0.4, or null"
    m1, m2, m3 = head.margins if len(head.margins) == 3 else (0.0, 0.0, 0.0)
    if not (all(math.isfinite(m) for m in head.margins) and m1 > 0 and 0 <= m2 < math.pi / 2 and 0 <= m3 < 1):
        yield (
            f"recipe.head.margins={head.margins} must be three numbers, above 0, from 0 to 1.57 (radians) and from 0 "
            "to 1, such as [1.0, 0.5, 0.0]"
        )
    most = 1.2 if head.name == "magface" else 1.57
    if head.name == "sphereface":
        if head.margin is not None and not 1 <= head.margin <= 4:
            yield f"recipe.head.margin={head.margin:g} must be from 1 to 4 (a factor of the angle), such as 1.7"
    elif head.margin is not None and not 0 <= head.margin <= most:
        yield f"recipe.head.margin={head.margin:g} must be from 0 to {most:g} (radians, not degrees), such as 0.4"
    if head.name != "combined" and head.margins != unset.margins:
        yield f"recipe.head.margins applies to head combined, not to {head.name}; give recipe.head.name=combined"
    if head.name == "combined" and head.margin is not None:
        yield "recipe.head.margin does not apply to head combined; give recipe.head.margins"
    if recipe.name == "self_supervised" and (head != unset or recipe.ema):
        yield "recipe.head and recipe.ema apply only to recipe supervised; give recipe=supervised, or leave them out"
    if recipe.name == "distill" and head != unset and not config.has_head:
        yield f"recipe.head has no effect without labels; give {_for_a_head(config)}, or leave it out"
    if head.warm_start and config.train.warm_start is None:
        yield "recipe.head.warm_start=true needs train.warm_start=PATH, a checkpoint of recipe supervised"


def _for_a_head(config: Config) -> str:
    return "recipe.distill.head_weight=1" if config.recipe.name == "distill" else "recipe=supervised"


def _faults_of_distillation(config: Config) -> Iterator[str]:
    """Check recipe distill; its keys are refused for other recipes, which would ignore them."""
    distill = config.recipe.distill
    if config.recipe.name != "distill":
        if distill != DistillConfig():
            yield "recipe.distill applies only to recipe distill; give recipe=distill, or leave it out"
        return
    if distill.teacher is None:
        yield (
            "recipe.distill.teacher is not set; give the network to learn from, such as "
            "recipe.distill.teacher=runs/RUN/checkpoints/epoch_014.pt"
        )
    if distill.fourier != "none" and distill.backbone is None:
        yield "recipe.distill.fourier is for published weights; give recipe.distill.backbone, or leave it out"


def nearest(name: str, choices: Sequence[str]) -> str:
    """Suggest the closest choice, else list the choices; more than 12: name the command that lists them."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    # The most common mistake is a right last part under a wrong path: batch.size for train.batch.size.
    close = close or [choice for choice in choices if choice.endswith("." + name.split(".")[-1])][:1]
    if close:
        return f"did you mean {close[0]}?"
    if len(choices) <= 12:
        return f"choose from {', '.join(choices)}"
    return f"`python -m app.train --help` lists all of them, such as {choices[0]}"
