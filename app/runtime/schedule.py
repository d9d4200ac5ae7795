"""Schedules as pure functions of the progress of a run, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.config import LrScheduleConfig


def learning_rate(base: float, config: LrScheduleConfig, progress: float, epochs: int) -> float:
    """Learning rate of the update that begins at `progress` epochs; 1.5 is the middle of the second epoch.

    Linear warm-up from `warmup.start_lr` to `base` over `warmup.epochs`, then
    cosine: to `final_lr`; polynomial: base * (1 - t)^power; multistep: times `gamma` at each of `milestones` (epochs).
    """
    warmup = config.warmup.epochs
    if progress < warmup:
        start = base if config.warmup.start_lr is None else config.warmup.start_lr
        return start + (base - start) * progress / warmup
    if config.name == "multistep":
        return base * config.gamma ** sum(progress >= milestone for milestone in config.milestones)
    t = min((progress - warmup) / (epochs - warmup), 1.0) if epochs > warmup else 1.0
    if config.name == "cosine":
        return config.final_lr + (base - config.final_lr) * 0.5 * (1 + math.cos(math.pi * t))
    return config.final_lr + (base - config.final_lr) * (1 - t) ** config.power


def by_epoch(starts: Sequence[int], values: Sequence[float], epoch: int) -> float:
    """The value of the last start epoch reached; 0 before the first. starts [0, 5], values [0, .3], epoch 7 -> .3"""
    reached = [value for start, value in zip(starts, values, strict=True) if epoch >= start]
    return reached[-1] if reached else 0.0
