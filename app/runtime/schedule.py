"""Schedules: pure functions of the progress through a run, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.config import LrScheduleConfig


def learning_rate(base: float, config: LrScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of update `step` (0-based).

    Linear warm-up from `warmup.start_lr` to `base` over `warmup.epochs`, then
    cosine: to `final_lr`; polynomial: base * (1 - t)^power; multistep: times `gamma` at each of `milestones` (epochs).
    """
    warmup_steps = round(config.warmup.epochs * steps_per_epoch)
    if step < warmup_steps:
        start = base if config.warmup.start_lr is None else config.warmup.start_lr
        return start + (base - start) * step / warmup_steps
    if config.name == "multistep":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return base * config.gamma**passed
    t = (step - warmup_steps) / max(1, epochs * steps_per_epoch - warmup_steps)
    t = min(t, 1.0)
    if config.name == "cosine":
        return config.final_lr + (base - config.final_lr) * 0.5 * (1 + math.cos(math.pi * t))
    return config.final_lr + (base - config.final_lr) * (1 - t) ** config.power


def by_epoch(starts: Sequence[int], values: Sequence[float], epoch: int) -> float:
    """The value whose start epoch was reached last; 0 before the first. starts [0, 5], values [0, .3], epoch 7 -> .3"""
    reached = [value for start, value in zip(starts, values, strict=True) if epoch >= start]
    return reached[-1] if reached else 0.0
